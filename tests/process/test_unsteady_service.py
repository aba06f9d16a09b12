"""The real process and a service that is not always well: where the user says so, it costs no attempt."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.inference.test_client import http, read_request, serving
from tests.support.fake_inference import GREY, Fake, Fault, Plan, open_fake, stored_for
from tests.support.harness import free_port, open_service_manager, until
from tests.support.scene import SMALL_WINDOW, Scene

FRAMES = 60


async def check_one_attempt(scene: Scene) -> None:
    (attempt,) = await scene.ledger.attempts(scene.scenario_id)
    assert attempt["outcome"] == "completed"
    assert await scene.ledger.retry_events(scene.scenario_id) == []
    await scene.ledger.check_invariants(scene.scenario_id)


class Bucket:
    """A plan: of more than `most` requests within `seconds`, each further one meets `fault`, and counts as none."""

    def __init__(self, fault: Fault, most: int = 20, seconds: float = 1.0) -> None:
        self._fault, self._most, self._seconds = fault, most, seconds
        self._times: list[float] = []
        self.refused = 0

    def __call__(self, _request: int, _number: int) -> Fault | None:
        now = trio.current_time()
        if len([time for time in self._times[-self._most :] if time > now - self._seconds]) == self._most:
            self.refused += 1
            return self._fault
        self._times.append(now)
        return None


@pytest.mark.parametrize("fault", [Fault.STATUS_429_SOON, Fault.STATUS_429_BARE])
async def test_a_service_that_limits_requests_costs_no_attempt(scene: Scene, clip: Path, fault: Fault) -> None:
    """Every 21st request of a second, as a real service does with those of a minute."""
    bucket = Bucket(fault)
    async with open_fake(plan=bucket) as fake:
        config = scene.write_config(
            video={"path": str(clip)}, inference={"url": fake.url, "retry_seconds": 60.0, "timeout_seconds": 60.0}
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 0, done.err
    assert bucket.refused > 0
    assert sorted(fake.answered) == list(range(FRAMES))
    await scene.check_rows(FRAMES)
    await check_one_attempt(scene)


async def test_a_service_that_is_paced_refuses_nothing(scene: Scene, clip: Path) -> None:
    bucket = Bucket(Fault.STATUS_429_BARE)
    # Below the limit by more than the four requests that may be under way while a machine stands still: they arrive
    # together.
    pace = {"requests_per_second": 14.0, "timeout_seconds": 60.0}
    async with open_fake(plan=bucket) as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url, **pace})
        done = await scene.run_to_the_end(config)
    assert done.code == 0, done.err
    assert bucket.refused == 0
    await scene.check_rows(FRAMES)
    await check_one_attempt(scene)


async def test_a_cold_start_is_waited_for_before_the_claim(scene: Scene, clip: Path) -> None:
    """The service is not there at first, and then not ready; meanwhile nothing is claimed."""
    port = free_port()
    ready = False

    def plan(_: int, number: int) -> Fault | None:
        assert ready or number == GREY, "a frame was sent before the service was ready"
        return None if ready else Fault.STATUS_503

    config = scene.write_config(
        video={"path": str(clip)},
        inference={"url": f"http://127.0.0.1:{port}", "ready_timeout_seconds": 120.0, "timeout_seconds": 60.0},
    )
    async with (
        open_service_manager() as manager,
        scene.cli.started("run", config, variables=manager.variables) as running,
    ):
        await manager.wait_for("STATUS=waiting for the inference service")
        async with open_fake(port=port, plan=plan):
            await trio.sleep(1)
            assert "READY=1" not in manager.states
            assert any(state.startswith("EXTEND_TIMEOUT_USEC=") for state in manager.states)
            assert await scene.ledger.scenario(scene.scenario_id) is None
            ready = True
            done = await running.wait()
    assert done.code == 0, done.err
    await scene.check_rows(FRAMES)
    await check_one_attempt(scene)


async def test_a_service_that_is_never_ready_is_named(scene: Scene, clip: Path) -> None:
    async with open_fake(plan=lambda *_: Fault.STATUS_503) as fake:
        config = scene.write_config(
            video={"path": str(clip)}, inference={"url": fake.url, "ready_timeout_seconds": 1.0}
        )
        done = await scene.run_to_the_end(config)
        assert fake.numbers == []
    assert done.code == 75, done.err
    body = await scene.check_death(done, "inference_unavailable", named=fake.url)
    message = body["error"]["message"]
    assert message.startswith("not ready within 1 s: ")
    assert message.endswith(": raise inference.ready_timeout_seconds")
    assert done.err.count("waiting for the inference service, for up to 1 s: ") == 1


async def test_a_service_that_is_restarted_costs_no_attempt(scene: Scene, clip: Path) -> None:
    port = free_port()
    answered: list[int] = []

    async def serve_until(done: Callable[[Fake], bool]) -> None:
        async with open_fake(port=port) as fake:

            async def is_done() -> bool:
                return done(fake)

            await until(is_done, described="enough is answered")
        answered.extend(fake.answered)

    config = scene.write_config(
        video={"path": str(clip)},
        inference={"url": f"http://127.0.0.1:{port}", "retry_seconds": 60.0, "ready_timeout_seconds": 60.0},
        pipeline=SMALL_WINDOW["pipeline"],
        database=SMALL_WINDOW["database"],
    )
    async with scene.cli.started("run", config) as running:
        await serve_until(lambda fake: len(fake.answered) > 10)
        await trio.sleep(1)
        await serve_until(lambda fake: len(fake.answered) > 10)
        await trio.sleep(1)
        async with open_fake(port=port) as fake:
            done = await running.wait()
    answered.extend(fake.answered)
    assert done.code == 0, done.err
    assert set(answered) == set(range(FRAMES))
    await scene.check_rows(FRAMES)
    await check_one_attempt(scene)


def at_frames(faults: dict[int, Fault]) -> Plan:
    return lambda _, number: faults.get(number)


BAD = {
    0: (Fault.STATUS_413, "inference_rejected"),
    7: (Fault.FAILURE, "inference_bad_answer"),
    8: (Fault.WRONG_TYPE, "inference_bad_answer"),
    20: (Fault.STATUS_500, "inference_unavailable"),
    40: (Fault.HANG, "inference_timeout"),
    59: (Fault.STATUS_500, "inference_unavailable"),
}


async def test_a_frame_that_could_not_be_inferred_is_never_stored_as_one_in_which_nothing_was_seen(
    scene: Scene, clip: Path
) -> None:
    plan = at_frames({number: fault for number, (fault, _) in BAD.items()})
    async with open_fake(plan=plan) as fake:
        config = scene.write_config(
            video={"path": str(clip)},
            inference={"url": fake.url, "timeout_seconds": 3.0, "max_failed_frames": len(BAD)},
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 0, done.err
    rows = await scene.ledger.predictions(scene.scenario_id)
    assert [row["frame_index"] for row in rows] == list(range(FRAMES))
    for row in rows:
        number = row["frame_index"]
        if number in BAD:
            assert row["detections"] is None
            assert row["error"].startswith(f"{BAD[number][1]}: {fake.url}")
        else:
            assert (row["detections"], row["error"]) == (stored_for(number, 320, 240), None)
    assert "not inferred: 6 of 60 stored frames" in done.err
    await check_one_attempt(scene)


@pytest.mark.parametrize(
    ("faults", "code"),
    [
        ({5: Fault.STATUS_413, 25: Fault.STATUS_413, 30: Fault.STATUS_413}, "inference_rejected"),
        ({25: Fault.STATUS_500, 26: Fault.STATUS_500}, "inference_unavailable"),
        ({25: Fault.STATUS_404}, "inference_rejected"),
    ],
    ids=["one too many", "two neighbours", "not the frame's fault"],
)
async def test_any_other_failure_ends_the_attempt(
    scene: Scene, clip: Path, faults: dict[int, Fault], code: str
) -> None:
    async with open_fake(plan=at_frames(faults)) as fake:
        config = scene.write_config(
            video={"path": str(clip)},
            inference={"url": fake.url, "max_failed_frames": 2},
            pipeline=SMALL_WINDOW["pipeline"],
            database=SMALL_WINDOW["database"],
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 75, done.err
    error_class = "permanent" if code == "inference_rejected" else "retriable"
    await scene.check_death(done, code, named=fake.url, error_class=error_class)
    assert await scene.stored() <= max(faults)


async def test_a_signal_ends_a_runner_that_is_sending_again(scene: Scene, clip: Path) -> None:
    async with open_fake(plan=lambda _, number: Fault.STATUS_503 if number >= 10 else None) as fake:
        config = scene.write_config(
            video={"path": str(clip)},
            inference={"url": fake.url, "retry_seconds": 600.0},
            runner={"drain_seconds": 1.0},
            pipeline=SMALL_WINDOW["pipeline"],
            database=SMALL_WINDOW["database"],
        )
        async with scene.cli.started("run", config) as running:

            async def is_sending_again() -> bool:
                return len(fake.numbers) > 20

            await until(is_sending_again, described="requests are sent again")
            running.send_signal(signal.SIGTERM)
            with trio.fail_after(30):
                done = await running.wait()
    assert done.code == 0, done.err
    await scene.check_death(done, "interrupted", named="asked to stop", error_class="interrupted")


async def test_a_secret_that_an_error_repeats_is_masked(scene: Scene, clip: Path) -> None:
    """Services quote what they were sent, the token too."""
    token = "c4n4ry-" + "x" * 40
    (scene.directory / "token").write_text(token)
    body = json.dumps({"error": {"message": f"no such token: Bearer {token}"}}).encode()
    asked = 0

    async def script(stream: trio.SocketStream) -> None:
        nonlocal asked
        while request := await read_request(stream):
            assert token.encode() in request
            asked += 1
            await stream.send_all(http(body, "503 Service Unavailable" if asked == 1 else "401 Unauthorized"))

    async with serving(script) as server:
        config = scene.write_config(
            video={"path": str(clip)},
            inference={
                "url": server.url,
                "token_file": "token",
                "allow_plaintext_token": True,
                "retry_seconds": 60.0,
                "in_flight": 1,
            },
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 75, done.err
    event = await scene.check_death(
        done, "inference_rejected", named="no such token: Bearer ***", error_class="permanent"
    )
    rows = [*await scene.ledger.attempts(scene.scenario_id), await scene.ledger.existing(scene.scenario_id)]
    for text in (done.out, done.err, json.dumps(event), str(rows)):
        assert token not in text
    assert done.err.count("no such token: Bearer ***") >= 2, "the log has both answers"
    assert "the request is sent again" in done.err

"""Deaths that the dead did not report: reported by a service manager or after the lease, once, under the same id."""

from __future__ import annotations

import os
import shutil
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from tests.support import clips
from tests.support.fake_inference import Fault, at_frame, open_fake
from tests.support.harness import (
    Event,
    Finished,
    command,
    open_service_manager,
    read_topic,
    until,
)
from tests.support.scene import SMALL_WINDOW, Held, Scene, death_without_kafka, held_run, locked


async def killed(scene: Scene, held: Held) -> None:
    held.running.send_signal(signal.SIGKILL)
    assert (await held.running.wait()).code == -signal.SIGKILL

    async def nobody_left() -> bool:
        return held.running.family() == []

    await until(nobody_left, described="the children are gone")


async def end_lease(scene: Scene) -> None:
    """As time does; a lease short enough to wait for may end under a living runner on a busy machine."""
    await scene.ledger.query(
        "UPDATE scenarios SET lease_until = now() - interval '1 s' WHERE id = $1", scene.scenario_id
    )


async def report_death(scene: Scene, *options: str, **variables: str) -> Finished:
    config = scene.directory / "runner.toml"
    async with scene.cli.started("report-death", config, *options, variables=variables) as running:
        return await running.wait()


KILLED = {"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL"}


def invocation_of(scene: Scene) -> str:
    """The service manager's name for the start of this test's runner."""
    return f"{scene.scenario_id:032x}"


OTHER_INVOCATION = "fedcba9876543210fedcba9876543210"


@pytest.mark.parametrize(
    ("result", "code"),
    [("signal", "runner_killed"), ("oom-kill", "runner_out_of_memory"), ("watchdog", "runner_hung")],
)
async def test_a_killed_runner_is_reported_once_and_the_next_one_goes_on(
    scene: Scene, big_clip: Path, result: str, code: str
) -> None:
    ended = KILLED | {"SERVICE_RESULT": result, "INVOCATION_ID": invocation_of(scene)}
    async with held_run(scene, big_clip, invocation=invocation_of(scene)) as held:
        other = await report_death(scene, **KILLED, INVOCATION_ID=OTHER_INVOCATION)
        assert "nothing to report" in other.out, "another process ended, and this one lives"
        await killed(scene, held)
    done = await report_death(scene, **ended)
    assert done.code == 0, done.err
    assert "attempt 1: the retry event is published" in done.out
    (attempt,) = await scene.ledger.attempts(scene.scenario_id)
    assert attempt["instance_id"] == uuid.UUID(invocation_of(scene))
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert (record["reporter"], record["body"]["error"]["code"]) == ("stop-post", code)
    event = await scene.the_event()
    assert (event.headers["ce_id"], event.body) == (str(record["event_id"]), record["body"])
    again = await report_death(scene, **ended)
    assert (again.code, "nothing to report" in again.out) == (0, True)
    await scene.the_event()
    await scene.check_resume(frames=120, size=clips.LARGE_SIZE, video={"path": str(big_clip)})


async def test_one_killed_before_it_could_claim_is_reported_too(scene: Scene, clip: Path) -> None:
    """The database knows of no attempt of this process."""
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        async with scene.cli.started("run", config, invocation=invocation_of(scene), executed=True) as running:
            # Long before Python has imported the program.
            os.kill(running.pid, signal.SIGKILL)
            await running.wait()
    assert await scene.ledger.scenario(scene.scenario_id) is None
    done = await report_death(scene, **KILLED, INVOCATION_ID=invocation_of(scene))
    assert done.code == 0, done.err
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert record["body"]["error"]["code"] == "runner_killed"
    assert (await scene.the_event()).headers["ce_id"] == str(record["event_id"])
    await scene.check_resume(frames=60, video={"path": str(clip)})


async def test_of_several_that_report_one_death_at_once_one_does(scene: Scene, clip: Path) -> None:
    scene.write_config(video={"path": str(clip)})
    ends: list[Finished] = []

    async def report() -> None:
        ends.append(await report_death(scene, **KILLED, INVOCATION_ID=invocation_of(scene)))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(report)
    assert [done.code for done in ends] == [0] * 4
    assert sum("attempt 1: the retry event is published" in done.out for done in ends) == 1
    row = await scene.ledger.existing(scene.scenario_id)
    assert (row["epoch"], row["failures"]) == (2, 1)
    await scene.the_event()


async def test_who_inherits_the_name_of_a_start_does_not_take_it(scene: Scene, clip: Path) -> None:
    """A shell below a unit starts two runners; each would be taken for the owner of the other's attempt."""
    below_a_unit = ["/bin/sh", "-c", '"$@"; exit', "sh", *command()]
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        async with scene.cli.started("run", config, program=below_a_unit, invocation=invocation_of(scene)) as running:
            assert (await running.wait()).code == 0
    (attempt,) = await scene.ledger.attempts(scene.scenario_id)
    assert attempt["instance_id"] != uuid.UUID(invocation_of(scene))


async def test_without_the_database_a_death_is_left_to_its_lease(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip, invocation=invocation_of(scene)) as held:
        await killed(scene, held)
    config = scene.directory / "runner.toml"
    shipped = config.read_text()
    address = urlsplit(scene.servers.database_url).netloc.rpartition("@")[2]
    config.write_text(shipped.replace(address, "127.0.0.1:1"))
    done = await report_death(scene, **KILLED, INVOCATION_ID=invocation_of(scene))
    assert (done.code, "Connect call failed" in done.err) == (74, True), done.err
    assert await events_of(scene) == []
    config.write_text(shipped)
    await end_lease(scene)

    async def reaped() -> bool:
        attempt = f"scenario {scene.scenario_id}, attempt 1"
        return f"{attempt}: the retry event is published" in (await scene.cli("reap", config)).out

    await until(reaped, described="a reaper has found it")
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert {each.headers["ce_id"] for each in await events_of(scene)} == {str(record["event_id"])}


async def test_a_scenario_that_was_named_on_the_command_line(
    scene: Scene, big_clip: Path, new_scenario_id: Callable[[], int]
) -> None:
    """The config of both verbs names another."""
    named = new_scenario_id()
    async with open_service_manager() as manager, open_fake(held=lambda number: number >= 5) as fake:
        config = scene.write_config(video={"path": str(big_clip)}, inference={"url": fake.url})
        async with scene.cli.started(
            "run", config, "--scenario", str(named), variables=manager.variables, invocation=invocation_of(scene)
        ) as running:
            await manager.wait_for("READY=1")
            running.send_signal(signal.SIGKILL)
            await running.wait()
    # The process is known by its own name, not by the one in the config.
    done = await report_death(scene, **KILLED, INVOCATION_ID=invocation_of(scene))
    assert f"scenario {named}, attempt 1: the retry event is published" in done.out
    assert await scene.ledger.scenario(scene.scenario_id) is None


async def test_what_a_runner_has_reported_is_not_reported_again(scene: Scene, clip: Path) -> None:
    async with open_fake(plan=at_frame(20, Fault.STATUS_500)) as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        async with scene.cli.started("run", config, invocation=invocation_of(scene)) as running:
            assert (await running.wait()).code == 75
    ended = {"SERVICE_RESULT": "exit-code", "EXIT_CODE": "exited", "EXIT_STATUS": "75"}
    done = await report_death(scene, **ended, INVOCATION_ID=invocation_of(scene))
    assert (done.code, "nothing to report" in done.out) == (0, True)
    unnamed = await report_death(scene, **KILLED, INVOCATION_ID="")
    assert (unnamed.code, "nothing to report" in unnamed.out) == (0, True)
    assert "INVOCATION_ID is not set" in unnamed.err
    await scene.the_event()
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert record["published_at"] >= record["received_at"]


async def events_of(scene: Scene) -> list[Event]:
    events = await read_topic(scene.servers.brokers, scene.topic)
    return [event for event in events if event.key == str(scene.scenario_id)]


@pytest.mark.kafka
async def test_a_reaper_finds_it_by_its_lease(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip, invocation=invocation_of(scene)) as held:
        config = scene.directory / "runner.toml"
        assert f"scenario {scene.scenario_id}," not in (await scene.cli("reap", config)).out, "it is alive"
        await killed(scene, held)
    await end_lease(scene)

    async def reaped() -> bool:
        done = await scene.cli("reap", config)
        assert done.code == 0, done.err
        return f"scenario {scene.scenario_id}, attempt 1: the retry event is published" in done.out

    await until(reaped, described="the lease has ended")
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert (record["reporter"], record["body"]["error"]["code"]) == ("reaper", "lease_expired")
    # A reaper looks at every scenario, and other tests leave killed runners behind.
    (event,) = await events_of(scene)
    assert (event.headers["ce_id"], event.body) == (str(record["event_id"]), record["body"])
    assert "nothing to report" in (await report_death(scene, **KILLED, INVOCATION_ID=invocation_of(scene))).out
    assert [event.body for event in await events_of(scene)] == [record["body"]]
    await scene.check_resume(frames=120, size=clips.LARGE_SIZE, video={"path": str(big_clip)})


async def test_an_unpublished_death_is_published_by_a_reaper(scene: Scene, clip: Path) -> None:
    """Its reporter died after it had recorded the death, and before it could hand the event over."""
    async with death_without_kafka(scene, clip) as (_, kafka, server):
        await scene.ledger.query(
            "UPDATE retry_events SET publish_due = now() + interval '60 s' WHERE scenario_id = $1", scene.scenario_id
        )
        attempt = f"scenario {scene.scenario_id}, attempt 1"
        config = scene.write_config("reap.toml", kafka=kafka)
        assert attempt not in (await scene.cli("reap", config)).out, "its reporter may still be at it"
        await scene.ledger.query(
            "UPDATE retry_events SET publish_due = now() WHERE scenario_id = $1",
            scene.scenario_id,
        )
        server.suspend()
        done = await scene.cli("reap", config)
        assert done.code == 74, done.out
        assert f"{attempt}: the retry event is recorded, and waits" in done.out
        (before,) = await scene.ledger.retry_events(scene.scenario_id)
        server.resume()

        async def reaped() -> bool:
            return f"{attempt}: the retry event is published" in (await scene.cli("reap", config)).out

        await until(reaped, described="a reaper has published the event")
        (record,) = await scene.ledger.retry_events(scene.scenario_id)
        assert (before["published_at"], record["published_at"] is None) == (None, False)
        ids = {event.headers["ce_id"] for event in await read_topic(kafka["brokers"], scene.topic)}
        assert str(record["event_id"]) in ids
        assert attempt not in (await scene.cli("reap", config)).out


async def test_what_the_ledger_recorded_and_is_no_event_holds_no_reaper_up(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip) as held:
        row = await scene.ledger.existing(scene.scenario_id)
        await scene.ledger.query(
            "SELECT fail($1, 1, $2, gen_random_uuid(), 'runner', 'retriable', '{}')",
            scene.scenario_id,
            row["instance_id"],
        )
        held.fake.gate.set()
        assert (await held.running.wait()).code == 79
    await scene.ledger.query("UPDATE retry_events SET publish_due = now() WHERE scenario_id = $1", scene.scenario_id)

    async def passed_over() -> bool:
        done = await scene.cli("reap", scene.directory / "runner.toml")
        return f"scenario {scene.scenario_id}, attempt 1 is no event" in done.err

    await until(passed_over, described="a reaper has met it")
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert record["published_at"] is None, "a later version may know what it is"


async def test_a_row_that_somebody_has_locked_holds_no_reaper_up(
    scene: Scene, clip: Path, new_scenario_id: Callable[[], int]
) -> None:
    config = scene.write_config(video={"path": str(clip)}, database={"command_timeout_seconds": 2.0})
    held_up, behind = scene.scenario_id, new_scenario_id()
    for number, seconds in ((held_up, 7200), (behind, 3600)):
        await scene.ledger.query(
            "SELECT claimed_epoch FROM claim"
            " ($1, 'x', 0, gen_random_uuid(), 'r', 'h', make_interval(secs => $2), 5, 'x', '{}')",
            number,
            -float(seconds),
        )
    async with locked(scene, f"SELECT FROM scenarios WHERE id = {held_up} FOR UPDATE"):
        done = await scene.cli("reap", config)
    assert done.code == 0, done.err
    assert f"scenario {behind}, attempt 1: the retry event is published" in done.out
    assert f"scenario {held_up}," not in done.out
    assert f"scenario {held_up}, attempt 1: the retry event is published" in (await scene.cli("reap", config)).out


async def test_a_reaper_that_comes_too_late_does_not_take_what_was_renewed(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip) as held:
        row = await scene.ledger.existing(scene.scenario_id)
        (answer,) = await scene.ledger.query(
            "SELECT fail($1, 1, $2, gen_random_uuid(), 'reaper', 'retriable', '{}') AS recorded",
            scene.scenario_id,
            row["instance_id"],
        )
        assert not answer["recorded"]
        held.fake.gate.set()
        assert (await held.running.wait()).code == 0


# the video and its sampling are those of the first claim


async def half_a_run(scene: Scene, clip: Path, **video: Any) -> None:
    async with open_fake(plan=at_frame(20, Fault.STATUS_500)) as fake:
        config = scene.write_config(
            "runner.toml", video={"path": str(clip)} | video, inference={"url": fake.url}, **SMALL_WINDOW
        )
        assert (await scene.run_to_the_end(config)).code == 75
    assert await scene.stored() > 0


@pytest.mark.parametrize("other", ["longer", "one bit"])
async def test_another_video_under_the_same_name_is_refused(scene: Scene, tmp_path: Path, other: str) -> None:
    path = clips.pixel_coded(tmp_path / "video.mp4", frames=60)
    await half_a_run(scene, path)
    before = await scene.ledger.predictions(scene.scenario_id)
    if other == "longer":
        clips.pixel_coded(path, frames=61)
    else:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(path)}, inference={"url": fake.url})
        done = await scene.run_to_the_end(config)
    assert done.code == 65, done.err
    assert fake.numbers == []
    row = await scene.ledger.existing(scene.scenario_id)
    assert (row["last_error"]["code"], row["outcome"]) == ("video_changed", "failed")
    assert await scene.ledger.predictions(scene.scenario_id) == before
    events = await read_topic(scene.servers.brokers, scene.topic)
    assert [event.body["error"]["code"] for event in events] == ["inference_unavailable", "video_changed"]
    await scene.ledger.check_invariants(scene.scenario_id)


@pytest.mark.parametrize(
    "changed",
    [
        {"stride": 2},
        {"max_fps": 10.0},
        {"start_seconds": 1.0},
        {"start_seconds": 5e-324},
        {"max_frames": 50},
        {"on_corrupt": "skip"},
    ],
)
async def test_another_sampling_is_refused(scene: Scene, clip: Path, changed: dict[str, Any]) -> None:
    await half_a_run(scene, clip)
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)} | changed, inference={"url": fake.url})
        done = await scene.run_to_the_end(config)
    assert done.code == 75, done.err
    assert fake.numbers == []
    row = await scene.ledger.existing(scene.scenario_id)
    assert (row["last_error"]["code"], row["outcome"]) == ("sampling_changed", "failed")
    assert next(iter(changed)) in row["last_error"]["message"]
    await scene.ledger.check_invariants(scene.scenario_id)


async def test_a_sampling_stored_by_a_version_with_other_options_is_the_same_sampling(scene: Scene, clip: Path) -> None:
    """One option less, and one more that is off: the scenario goes on."""
    await half_a_run(scene, clip)
    await scene.ledger.query(
        "UPDATE scenarios SET sampling = sampling - 'on_corrupt' || '{\"min_change\": 0.0}' WHERE id = $1",
        scene.scenario_id,
    )
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        done = await scene.run_to_the_end(config)
    assert done.code == 0, done.err
    await scene.check_rows(60)


async def test_as_long_as_nothing_is_stored_both_may_change(scene: Scene, tmp_path: Path) -> None:
    path = clips.pixel_coded(tmp_path / "video.mp4", frames=60)
    async with open_fake(plan=at_frame(0, Fault.STATUS_500)) as fake:
        config = scene.write_config(video={"path": str(path)}, inference={"url": fake.url})
        assert (await scene.run_to_the_end(config)).code == 75
    clips.pixel_coded(path, frames=30)
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(path), "stride": 3}, inference={"url": fake.url})
        assert (await scene.run_to_the_end(config)).code == 0
    rows = await scene.ledger.predictions(scene.scenario_id)
    assert [row["frame_index"] for row in rows] == list(range(0, 30, 3))


async def test_the_same_video_elsewhere_and_younger_is_the_same(scene: Scene, clip: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(clip, tmp_path / "copy.mp4"))
    await half_a_run(scene, path)
    shutil.copy(clip, path)
    os.utime(path, (0, 0))
    await scene.check_resume(frames=60, video={"path": str(path)})

"""`Runner` as other programs use it, beginning with the README's own example."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import trio

from tests.support import clips
from tests.support.fake_inference import Fault, at_frame, open_fake, stored_for
from tests.support.harness import (
    PATIENCE_SECONDS,
    Ledger,
    Servers,
    WriteConfig,
    free_port,
    new_database,
    read_topic,
    until,
)
from tests.support.scene import SMALL_WINDOW
from trio_runner import Runner
from trio_runner.base import aio
from trio_runner.config.errors import ConfigError
from trio_runner.config.load import load_config
from trio_runner.errors import ClaimRefusedError, ErrorCode, RunnerError
from trio_runner.failure.publication import Publication
from trio_runner.inference.client import InferenceClient
from trio_runner.model import Frame, FrameResult
from trio_runner.runner.outcome import Ending
from trio_runner.runner.runner import RunnerDead


@pytest.fixture
def new_runner(write_config: WriteConfig, clip: Path) -> Callable[[str], Runner]:
    """Makes runners on the session's servers and the clip, for the inference service at a URL."""

    def new(inference_url: str) -> Runner:
        config = write_config(video={"path": str(clip)}, inference={"url": inference_url})
        return Runner.from_config(load_config(config))

    return new


async def test_success(new_runner: Callable[[str], Runner], ledger: Ledger, scenario_id: int) -> None:
    async with open_fake() as fake:
        runner = new_runner(fake.url)
        await runner.start()
        assert await ledger.scenario(scenario_id) is None, "start() claims nothing"
        assert await runner.process_scenario(scenario_id) is True
        await runner.stop()
    assert runner.outcome is not None
    assert (runner.outcome.ending, runner.outcome.failure) == (Ending.COMPLETED, None)
    assert (runner.progress.frames_stored, runner.progress.next_frame) == (60, 60)
    rows = await ledger.predictions(scenario_id)
    assert [row["detections"] for row in rows] == [stored_for(number, 320, 240) for number in range(60)]


async def test_the_outcome_and_the_log_say_how_many_frames_were_not_inferred_and_how_many_boxes_were_clipped(
    new_runner: Callable[[str], Runner],
    ledger: Ledger,
    scenario_id: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Of the whole scenario, also where an earlier attempt stored the frames that were not inferred."""
    infer = InferenceClient.infer

    async def flawed(client: InferenceClient, frames: Sequence[Frame]) -> list[FrameResult]:
        (frame,), (result,) = frames, await infer(client, frames)
        if frame.index in {3, 50}:
            return [replace(result, detections=(), error=f"inference_rejected: frame {frame.index}")]
        if frame.index == 40 and failing:
            while first.progress.frames_stored <= 3:  # noqa: ASYNC110 - the writer wakes nobody
                await trio.sleep(0.01)
            raise RunnerError(ErrorCode.INFERENCE_UNAVAILABLE, "503")
        return [replace(result, clipped=frame.index == 59, tokens=10)]

    monkeypatch.setattr(InferenceClient, "infer", flawed)
    async with open_fake() as fake:
        failing = True
        first = new_runner(fake.url)
        assert await first.process_scenario(scenario_id) is False
        failing = False
        second = new_runner(fake.url)
        with caplog.at_level("INFO", logger="trio_runner.runner.attempt"):
            assert await second.process_scenario(scenario_id) is True
    assert first.outcome is not None
    assert second.outcome is not None
    assert (first.outcome.frames_not_inferred, first.outcome.boxes_clipped) == (1, 0)
    assert (second.outcome.frames_not_inferred, second.outcome.boxes_clipped) == (2, 1)
    assert "not inferred: 2 of 60 stored frames; the view trio_runner.frames has the reasons" in caplog.text
    assert "boxes that overshot the picture and were clipped at its border: 1" in caplog.text
    assert second.outcome.tokens % 10 == 0 < second.outcome.tokens <= 10 * 59
    assert f"{second.outcome.tokens} tokens, as the model counted" in caplog.text
    rows = await ledger.predictions(scenario_id)
    assert [row["frame_index"] for row in rows if row["detections"] is None] == [3, 50]
    await ledger.check_invariants(scenario_id)


async def test_a_secret_that_a_service_repeats_is_not_stored_as_the_reason_of_a_frame(
    write_config: WriteConfig,
    ledger: Ledger,
    scenario_id: int,
    clip: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    infer = InferenceClient.infer

    async def repeating(client: InferenceClient, frames: Sequence[Frame]) -> list[FrameResult]:
        results = await infer(client, frames)
        return [replace(result, detections=(), error="400: no such token: c4n4ry-t0ken") for result in results]

    monkeypatch.setattr(InferenceClient, "infer", repeating)
    token = tmp_path / "token"
    token.write_text("c4n4ry-t0ken")
    token.chmod(0o600)
    async with open_fake() as fake:
        inference = {"url": fake.url, "token_file": str(token), "allow_plaintext_token": True}
        runner = Runner.from_config(load_config(write_config(video={"path": str(clip)}, inference=inference)))
        assert await runner.process_scenario(scenario_id) is True
    assert {row["error"] for row in await ledger.predictions(scenario_id)} == {"400: no such token: ***"}


async def test_start_leaves_an_empty_database_empty(
    write_config: WriteConfig, servers: Servers, scenario_id: int, clip: Path
) -> None:
    async with new_database(servers, f"empty_{scenario_id}") as empty, open_fake() as fake:
        config = write_config(
            video={"path": str(clip)}, inference={"url": fake.url}, database={"url": empty.database_url}
        )
        await Runner.from_config(load_config(config)).start()
        (schema,) = await Ledger(empty).query("SELECT to_regnamespace('trio_runner') IS NULL AS missing")
    assert schema["missing"]


async def test_one_scenario_after_the_other(
    new_runner: Callable[[str], Runner], ledger: Ledger, new_scenario_id: Callable[[], int]
) -> None:
    ids = [new_scenario_id(), new_scenario_id()]
    async with open_fake() as fake:
        runner = new_runner(fake.url)
        assert [await runner.process_scenario(number) for number in ids] == [True, True]
    for number in ids:
        assert (await ledger.existing(number))["frames_stored"] == 60


async def test_failure_is_false_and_the_end_of_this_runner(
    new_runner: Callable[[str], Runner], ledger: Ledger, scenario_id: int, topic: str, servers: Servers
) -> None:
    async with open_fake(plan=at_frame(20, Fault.STATUS_500)) as fake:
        runner = new_runner(fake.url)
        assert await runner.process_scenario(scenario_id) is False
    assert runner.outcome is not None
    assert runner.outcome.ending is Ending.FAILED
    assert runner.outcome.event is Publication.PUBLISHED
    assert runner.outcome.failure is not None
    assert runner.outcome.failure.code is ErrorCode.INFERENCE_UNAVAILABLE
    (event,) = await read_topic(servers.brokers, topic)
    assert event.body["error"]["code"] == "inference_unavailable"
    with pytest.raises(RunnerDead):
        await runner.process_scenario(scenario_id)
    with pytest.raises(RunnerDead):
        await runner.start()
    await runner.stop()
    await ledger.check_invariants(scenario_id)


async def test_a_stopped_runner_is_dead(new_runner: Callable[[str], Runner], scenario_id: int) -> None:
    async with open_fake() as fake:
        runner = new_runner(fake.url)
        await runner.stop()
        with pytest.raises(RunnerDead):
            await runner.process_scenario(scenario_id)


async def test_a_completed_scenario_is_refused(
    new_runner: Callable[[str], Runner], ledger: Ledger, scenario_id: int, topic: str, servers: Servers
) -> None:
    async with open_fake() as fake:
        assert await new_runner(fake.url).process_scenario(scenario_id)
        runner = new_runner(fake.url)
        with pytest.raises(ClaimRefusedError, match="60 frames stored"):
            await runner.process_scenario(scenario_id)
    assert runner.outcome is not None
    assert runner.outcome.ending is Ending.ALREADY_COMPLETED
    assert len(await ledger.attempts(scenario_id)) == 1
    assert await read_topic(servers.brokers, topic) == []


async def test_the_scenario_of_another_video_is_refused(
    write_config: WriteConfig, clip: Path, scenario_id: int, tmp_path: Path
) -> None:
    other = clips.pixel_coded(tmp_path / "other.mp4", frames=1)
    async with open_fake(plan=at_frame(20, Fault.STATUS_500)) as fake:
        config = write_config("runner.toml", video={"path": str(clip)}, inference={"url": fake.url}, **SMALL_WINDOW)
        assert not await Runner.from_config(load_config(config)).process_scenario(scenario_id)
        config = write_config("other.toml", video={"path": str(other)}, inference={"url": fake.url})
        runner = Runner.from_config(load_config(config))
        with pytest.raises(ClaimRefusedError, match="another video"):
            await runner.process_scenario(scenario_id)


async def test_as_a_context(new_runner: Callable[[str], Runner], ledger: Ledger, scenario_id: int) -> None:
    async with open_fake() as fake:
        async with new_runner(fake.url) as runner:
            assert await runner.process_scenario(scenario_id)
        with pytest.raises(RunnerDead):
            await runner.process_scenario(scenario_id)
    assert (await ledger.existing(scenario_id))["outcome"] == "completed"


@pytest.mark.parametrize("brokers", [None, "embedded"], ids=["real servers", "embedded servers"])
async def test_the_callers_own_error_surfaces_as_itself(
    write_config: WriteConfig, servers: Servers, clip: Path, brokers: str | None
) -> None:
    async with open_fake() as fake:
        config = write_config(
            video={"path": str(clip)}, inference={"url": fake.url}, kafka={"brokers": brokers or servers.brokers}
        )
        children = psutil.Process().children()
        # Not a group with a ValueError in it: what the caller raises, the caller must be able to catch.
        with pytest.raises(ValueError, match="the caller's own"):
            async with Runner.from_config(load_config(config)):
                raise ValueError("the caller's own")
        assert psutil.Process().children() == children


async def test_start_names_what_does_not_answer_and_may_be_called_again(
    new_runner: Callable[[str], Runner], ledger: Ledger, scenario_id: int
) -> None:
    port = free_port()
    runner = new_runner(f"http://127.0.0.1:{port}")
    with pytest.raises(RunnerError, match="inference_unreachable"):
        await runner.start()
    assert await ledger.scenario(scenario_id) is None
    async with open_fake(port=port):
        await runner.start()


async def test_start_leaves_nothing_open(new_runner: Callable[[str], Runner]) -> None:
    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    def belongings() -> tuple[int, int]:
        # Not the children's children: the session's PostgreSQL has one for each connection, for a moment longer.
        me = psutil.Process()
        return len(me.children()), me.num_fds()

    async with open_fake() as fake:
        runner = new_runner(fake.url)
        idle = tasks()

        # The check of the service is a connection to our own fake, whose task ends a moment later.
        async def gone() -> bool:
            return tasks() == idle

        found = []
        for _ in range(2):
            await runner.start()
            await until(gone, described="as many tasks as before")
            found.append(belongings())
        assert found[0] == found[1]


async def test_cancelled_from_outside_it_reports_its_death_and_lets_the_cancellation_go_on(
    new_runner: Callable[[str], Runner], ledger: Ledger, scenario_id: int, topic: str, servers: Servers
) -> None:
    async with open_fake(held=lambda number: number >= 5) as fake:
        runner = new_runner(fake.url)
        went_on = False
        async with trio.open_nursery() as nursery:

            async def process() -> None:
                nonlocal went_on
                await runner.process_scenario(scenario_id)
                went_on = True

            nursery.start_soon(process)
            with trio.fail_after(PATIENCE_SECONDS):
                await runner.claimed.wait()
            nursery.cancel_scope.cancel()
        assert not went_on
    (event,) = await read_topic(servers.brokers, topic)
    assert (event.body["error"]["code"], event.body["error"]["class"]) == ("interrupted", "interrupted")
    assert (await ledger.existing(scenario_id))["failures"] == 0
    await ledger.check_invariants(scenario_id)
    assert not any("trio_runner.video.decoder" in child.cmdline() for child in psutil.Process().children())
    with pytest.raises(RunnerDead):
        await runner.process_scenario(scenario_id)


async def test_stop_from_another_task_drains(
    new_runner: Callable[[str], Runner], ledger: Ledger, scenario_id: int
) -> None:
    results: list[bool] = []
    async with open_fake(held=lambda number: number >= 5) as fake:
        runner = new_runner(fake.url)
        async with trio.open_nursery() as nursery:

            async def process() -> None:
                results.append(await runner.process_scenario(scenario_id))

            nursery.start_soon(process)

            async def waiting() -> bool:
                return len(fake.under_way) == 4

            await until(waiting, described="four frames held")
            # Everything else of this short clip waits in the window, which the drain does not throw away.
            await runner.stop()
            fake.gate.set()
    assert results in ([False], [True])
    assert runner.outcome is not None
    assert runner.outcome.ending is (Ending.COMPLETED if results == [True] else Ending.DRAINED)
    rows = await ledger.predictions(scenario_id)
    assert sorted(fake.answered) == [row["frame_index"] for row in rows]
    await ledger.check_invariants(scenario_id)


async def test_in_a_program_that_has_an_asyncio_loop_already(
    new_runner: Callable[[str], Runner], scenario_id: int
) -> None:
    async with open_fake() as fake, aio.open_loop():
        runner = new_runner(fake.url)
        await runner.start()
        assert await runner.process_scenario(scenario_id)


def test_bad_arguments_are_config_errors() -> None:
    with pytest.raises(ConfigError, match=r"inference\.url"):
        Runner(inference_url="localhost:8001")
    with pytest.raises(ConfigError, match="secret"):
        Runner(database_url="postgresql://user:password@localhost/db")
    with pytest.raises(ConfigError, match=r"runner\.id"):
        Runner(runner_id="runner 1")

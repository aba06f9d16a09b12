"""What the spawner of child processes does with them, where no peer answers: what is to be told waits in the spool."""

from __future__ import annotations

import json
import signal
import subprocess
import threading
import uuid
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import pytest
import trio
import trio.testing

from tests.support.harness import PATIENCE_SECONDS, until
from trio_runner.base import aio
from trio_runner.config.load import Config
from trio_runner.database.backlog import Work
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.failure.marker import Marker
from trio_runner.orchestrator.spawners import process
from trio_runner.orchestrator.spawners.process import open_processes
from trio_runner.orchestrator.spawners.runner_config import as_toml, runner_config
from trio_runner.orchestrator.spawners.spawner import Ended, SpawnRefusedError


def work(epoch: int = 1) -> Work:
    return Work(scenario_id=7, epoch=epoch, video_path="/srv/videos/7.mp4", settings={})


def config_in(directory: Path, *, stop_timeout_seconds: float = 60.0) -> Config:
    return Config().replace(
        runner={"data_dir": str(directory)},
        inference={"url": "http://127.0.0.1:9"},
        database={"url": "postgresql://u@127.0.0.1:9/d", "sslmode": "disable"},
        kafka={"brokers": "127.0.0.1:9", "connect_timeout_seconds": 0.5, "publish_timeout_seconds": 0.5},
        orchestrator={"stop_timeout_seconds": stop_timeout_seconds},
    )


def into(ends: list[Ended]) -> Callable[[Ended], Awaitable[None]]:
    async def on_ended(ended: Ended) -> None:
        # Whatever does not wait for this is through by then.
        await trio.testing.wait_all_tasks_blocked()
        ends.append(ended)
        raise RunnerError(ErrorCode.STORE_UNREACHABLE, "away")

    return on_ended


def spooled(directory: Path) -> list[str]:
    """The codes of the deaths that wait there."""
    records = [json.loads(path.read_text()) for path in (directory / "spool").glob("*.json")]
    return [json.loads(record["value"])["error"]["code"] for record in records]


def runners_in(directory: Path) -> list[psutil.Process]:
    found = []
    for each in psutil.Process().children():
        # It may end meanwhile.
        with suppress(psutil.NoSuchProcess):
            if any(str(directory) in text for text in each.cmdline()):
                found.append(each)
    return found


async def frozen(directory: Path) -> psutil.Process:
    """The one runner, which does nothing more."""

    async def found() -> list[psutil.Process]:
        return runners_in(directory)

    (runner,) = await until(found, described="there is a runner")
    runner.suspend()

    async def stopped() -> bool:
        return runner.status() == psutil.STATUS_STOPPED

    await until(stopped, described="it is frozen")
    return runner


async def test_one_is_asked_once_and_by_its_attempts_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    send_signal = subprocess.Popen.send_signal

    def noted(process: subprocess.Popen[bytes], number: int) -> None:
        asked.append(number)
        send_signal(process, number)

    monkeypatch.setattr(subprocess.Popen, "send_signal", noted)
    config, ends = config_in(tmp_path), list[Ended]()
    async with aio.open_loop(), open_processes(config, config, "here", into(ends)) as spawner:
        await spawner.start(work())
        runner = await frozen(tmp_path)
        await spawner.stop(7, 2)
        await spawner.stop(8, 1)
        assert asked == []
        for _ in range(2):
            await spawner.stop(7, 1)
        runner.resume()
    # Nor once more for the end of all.
    assert asked == [signal.SIGTERM]
    assert [(ended.scenario_id, ended.epoch, ended.failure) for ended in ends] == [(7, 1, None)]


async def test_who_does_not_leave_in_time_is_killed_and_reported(tmp_path: Path) -> None:
    config, ends = config_in(tmp_path, stop_timeout_seconds=0.1), list[Ended]()
    with trio.CancelScope() as told_to_leave:
        async with aio.open_loop(), open_processes(config, config, "here", into(ends)) as spawner:
            await spawner.start(work())
            await frozen(tmp_path)
            assert spawner.count == 1
            told_to_leave.cancel()
            await trio.sleep_forever()
    assert runners_in(tmp_path) == []
    assert spawner.count == 0
    assert [ended.detail for ended in ends] == ["signal KILL"]
    assert spooled(tmp_path) == ["runner_killed"]
    assert list((tmp_path / "runners").iterdir()) == []


async def test_an_end_is_told_when_there_is_room_again_and_told_to_the_end(tmp_path: Path) -> None:
    config, counted = config_in(tmp_path), list[int]()
    told, may_go_on = trio.Event(), trio.Event()

    async def on_ended(_: Ended) -> None:
        told.set()
        await may_go_on.wait()
        counted.append(spawner.count)

    async def go_on() -> None:
        # The block below has ended by then.
        await trio.testing.wait_all_tasks_blocked()
        may_go_on.set()

    async with (
        trio.open_nursery() as nursery,
        aio.open_loop(),
        open_processes(config, config, "here", on_ended) as spawner,
    ):
        await spawner.start(work())
        (await frozen(tmp_path)).kill()
        await told.wait()
        nursery.start_soon(go_on)
    assert counted == [0]


async def test_of_two_attempts_the_earlier_makes_room_and_of_one_none(tmp_path: Path) -> None:
    config, ends = config_in(tmp_path), list[Ended]()

    async def reported() -> bool:
        return bool(ends)

    async with aio.open_loop(), open_processes(config, config, "here", into(ends)) as spawner:
        await spawner.start(work())
        runner = await frozen(tmp_path)
        with pytest.raises(SpawnRefusedError, match="still lives on here"):
            await spawner.start(work())
        assert runner.status() == psutil.STATUS_STOPPED
        with pytest.raises(SpawnRefusedError, match="still lives on here"):
            await spawner.start(work(epoch=2))
        await until(reported, described="its end is reported")
        assert (ends[0].epoch, ends[0].detail) == (1, "signal KILL")
        await spawner.start(work(epoch=2))
    assert [ended.epoch for ended in ends] == [1, 2]


async def test_what_a_manager_tells_the_orchestrator_is_not_for_its_runners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "RUNTIME_DIRECTORY", "INVOCATION_ID"):
        monkeypatch.setenv(name, "the orchestrator's")
    config = config_in(tmp_path)
    async with aio.open_loop(), open_processes(config, config, "here", into([])) as spawner:
        await spawner.start(work())
        runner = await frozen(tmp_path)
        environ = runner.environ()
        runner.resume()
    assert "the orchestrator's" not in environ.values()
    assert environ["RUNTIME_DIRECTORY"] == str(tmp_path / "runners" / "7")


async def test_one_that_a_former_orchestrator_left_is_reported_before_the_next_starts(tmp_path: Path) -> None:
    config, ends = config_in(tmp_path), list[Ended]()
    place, other = (tmp_path / "runners" / name for name in ("7", "8"))
    for each in (place, other):
        each.mkdir(parents=True)
    (place / "runner.toml").write_text(as_toml(runner_config(config, work(), data_dir=place, node="here")))
    (other / "runner.toml").write_text("of another version\n")
    left = Marker(scenario_id=7, instance_id=str(uuid.uuid4()), epoch=1, claimed=1, video_path="/srv/videos/7.mp4")
    (place / f"attempt-7-{left.instance_id}.json").write_bytes(msgspec.json.encode(left))

    async with aio.open_loop(), open_processes(config, config, "here", into(ends)) as spawner:
        # From its first step on, and Trio runs what is ready in any order.
        for _ in range(2):
            await trio.lowlevel.checkpoint()
        with pytest.raises(SpawnRefusedError, match="is being reported"):
            await spawner.start(work(epoch=2))

        async def started() -> bool:
            try:
                await spawner.start(work(epoch=2))
            except SpawnRefusedError:
                return False
            return True

        await until(started, described="it is reported, and makes room")
        assert "runner_killed" in spooled(tmp_path)
    assert [ended.epoch for ended in ends] == [2]
    assert (other / "runner.toml").exists()


async def test_one_that_is_just_starting_is_not_left_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config, ends = config_in(tmp_path), list[Ended]()
    written, may_start = threading.Event(), threading.Event()
    write_config = process._write_config

    def write(config: Config, place: Path) -> Path:
        path = write_config(config, place)
        written.set()
        assert may_start.wait(PATIENCE_SECONDS)
        return path

    monkeypatch.setattr(process, "_write_config", write)
    monkeypatch.setattr(process, "FILE_SECONDS", PATIENCE_SECONDS)
    async with (
        aio.open_loop(),
        open_processes(config, config, "here", into(ends)) as spawner,
        trio.open_nursery() as nursery,
    ):
        nursery.start_soon(spawner.start, work())
        assert await trio.to_thread.run_sync(written.wait, PATIENCE_SECONDS)
        await spawner.report_left_behind()
        assert (tmp_path / "runners" / "7" / "runner.toml").exists()
        may_start.set()
    assert [ended.failure for ended in ends] == [None]

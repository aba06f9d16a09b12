"""The spawner of child processes, where no peer answers."""

from __future__ import annotations

import errno
import fcntl
import shutil
import signal
import subprocess
import threading
import uuid
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import trio
import trio.testing

from tests.support.hanging_disk import hanging_disk
from tests.support.harness import until
from trio_runner.base import aio
from trio_runner.base.files import write_private
from trio_runner.config.load import Config, load_config
from trio_runner.database.backlog import Work
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.failure.spool import Spool
from trio_runner.orchestrator.spawners import process, runner_directories
from trio_runner.orchestrator.spawners.process import open_processes
from trio_runner.orchestrator.spawners.runner_config import as_toml, runner_config
from trio_runner.orchestrator.spawners.runner_directories import LeftBehind, RunnerDirectories
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
        # Tasks that do not wait for this call have ended by then.
        await trio.testing.wait_all_tasks_blocked()
        ends.append(ended)
        raise RunnerError(ErrorCode.STORE_UNREACHABLE, "away")

    return on_ended


@pytest.fixture
def reports(monkeypatch: pytest.MonkeyPatch) -> list[Mapping[str, str]]:
    """What the spawner reports of each end, in the variables of systemd; a database would take it."""
    reports: list[Mapping[str, str]] = []

    async def note(_: Config, __: Spool, seen: Mapping[str, str]) -> None:
        await trio.lowlevel.checkpoint()
        reports.append(seen)

    monkeypatch.setattr(process, "report_invocation", note)
    return reports


def runners_in(directory: Path) -> list[psutil.Process]:
    found = []
    for each in psutil.Process().children():
        # The process may end meanwhile.
        with suppress(psutil.NoSuchProcess):
            if any(str(directory) in text for text in each.cmdline()):
                found.append(each)
    return found


async def frozen(directory: Path) -> psutil.Process:
    """Stop the only runner with SIGSTOP, and return it."""

    async def found() -> list[psutil.Process]:
        return runners_in(directory)

    (runner,) = await until(found, described="there is a runner")
    runner.suspend()

    async def stopped() -> bool:
        return runner.status() == psutil.STATUS_STOPPED

    await until(stopped, described="it is frozen")
    return runner


async def test_a_runner_is_asked_to_drain_once_and_by_its_epoch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    # The end of the block does not ask it a second time.
    assert asked == [signal.SIGTERM]
    assert [(ended.scenario_id, ended.epoch, ended.failure) for ended in ends] == [(7, 1, None)]


async def test_a_runner_that_does_not_drain_in_time_is_killed_and_reported(
    tmp_path: Path, reports: list[Mapping[str, str]]
) -> None:
    config, ends = config_in(tmp_path, stop_timeout_seconds=0.1), list[Ended]()
    with trio.CancelScope() as stopping:
        async with aio.open_loop(), open_processes(config, config, "here", into(ends)) as spawner:
            await spawner.start(work())
            await frozen(tmp_path)
            assert spawner.count == 1
            stopping.cancel()
            await trio.sleep_forever()
    assert runners_in(tmp_path) == []
    assert spawner.count == 0
    assert [ended.detail for ended in ends] == ["signal KILL"]
    assert [(seen["SERVICE_RESULT"], seen["EXIT_STATUS"]) for seen in reports] == [("signal", "KILL")]
    assert list((tmp_path / "runners").iterdir()) == []


async def test_an_end_is_reported_when_there_is_room_again_and_the_report_is_not_cut_off(tmp_path: Path) -> None:
    config, counted = config_in(tmp_path), list[int]()
    called, may_go_on = trio.Event(), trio.Event()

    async def on_ended(_: Ended) -> None:
        called.set()
        await may_go_on.wait()
        counted.append(spawner.count)

    async def go_on() -> None:
        # The block below waits for the report by then.
        await trio.testing.wait_all_tasks_blocked()
        may_go_on.set()

    async with (
        trio.open_nursery() as nursery,
        aio.open_loop(),
        open_processes(config, config, "here", on_ended) as spawner,
    ):
        await spawner.start(work())
        (await frozen(tmp_path)).kill()
        await called.wait()
        nursery.start_soon(go_on)
    assert counted == [0]


async def test_an_earlier_attempts_runner_is_killed_for_a_later_attempt_and_its_own_is_not(tmp_path: Path) -> None:
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


async def test_the_variables_of_the_orchestrators_service_manager_do_not_reach_its_runners(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in process._OF_A_SERVICE:
        monkeypatch.setenv(name, "the orchestrator's")
    config = config_in(tmp_path)
    async with aio.open_loop(), open_processes(config, config, "here", into([])) as spawner:
        await spawner.start(work())
        (path,) = (tmp_path / "runners" / "7").glob("*.toml")

        async def environ_of_runner() -> dict[str, str] | None:
            # Until the leash has become the runner, it has the variables that the orchestrator gave it.
            (runner,) = runners_in(tmp_path)
            environ = runner.environ()
            return environ | {"pid": str(runner.pid)} if "INVOCATION_ID" in environ else None

        environ = await until(environ_of_runner, described="the leash has become the runner")
        assert environ is not None
    assert "the orchestrator's" not in environ.values()
    assert (environ["INVOCATION_ID"], environ["SYSTEMD_EXEC_PID"]) == (path.stem, environ["pid"])


async def test_a_runner_that_a_former_orchestrator_left_is_reported_before_the_next_one_starts(
    tmp_path: Path, reports: list[Mapping[str, str]]
) -> None:
    config, ends = config_in(tmp_path), list[Ended]()
    left, unknown, alive = (tmp_path / "runners" / name / f"{uuid.uuid4().hex}.toml" for name in ("7", "8", "9"))
    for path in (left, unknown, alive):
        path.parent.mkdir(parents=True)
        path.write_text(as_toml(runner_config(config, work(), data_dir=path.parent, node="here")))
    unknown.write_text("of another version\n")

    with alive.open() as lock:
        # A runner that still drains holds this lock.
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with aio.open_loop(), open_processes(config, config, "here", into(ends)) as spawner:
            with pytest.raises(SpawnRefusedError, match="is being reported"):
                await spawner.start(work(epoch=2))

            async def started() -> bool:
                try:
                    await spawner.start(work(epoch=2))
                except SpawnRefusedError:
                    return False
                return True

            await until(started, described="it is reported, and makes room")
    named = [seen["INVOCATION_ID"] for seen in reports]
    assert (named[0], alive.stem in named) == (left.stem, False)
    assert (left.exists(), unknown.exists(), alive.exists()) == (False, True, True)
    assert [ended.epoch for ended in ends] == [2]


async def test_a_runner_that_cannot_be_started_leaves_no_config(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, ends = config_in(tmp_path), list[Ended]()

    def refuse(*_args: object, **_kwargs: object) -> None:
        raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")

    async with aio.open_loop(), open_processes(config, config, "here", into(ends)) as spawner:
        monkeypatch.setattr(subprocess, "Popen", refuse)
        with pytest.raises(SpawnRefusedError, match="temporarily unavailable"):
            await spawner.start(work())
        assert list((tmp_path / "runners" / "7").glob("*.toml")) == []
    assert ends == []


# a disk that hangs


async def test_a_start_on_a_hanging_disk_is_refused_in_time_and_succeeds_once_the_disk_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, ends = config_in(tmp_path), list[Ended]()
    monkeypatch.setattr(runner_directories, "FILE_SECONDS", 0.5)
    async with (
        hanging_disk() as disk,
        aio.open_loop(),
        open_processes(config, config, "here", into(ends)) as spawner,
    ):
        monkeypatch.setattr(runner_directories, "write_private", disk.holding_up(write_private))
        with pytest.raises(SpawnRefusedError, match=r"runners/7: it did not answer within 0\.5 s"):
            await spawner.start(work())
        # The first call may still write the config of the first attempt, so no second call begins.
        with pytest.raises(SpawnRefusedError, match="has not answered an earlier call yet"):
            await spawner.start(work(epoch=2))
        disk.answers.set()

        async def started() -> bool:
            try:
                await spawner.start(work(epoch=2))
            except SpawnRefusedError:
                return False
            return True

        await until(started, described="the disk answers, and the runner starts")
        # A config of the first attempt would look like that of a runner which has died.
        (config_of_the_second,) = (tmp_path / "runners" / "7").glob("*.toml")
        assert load_config(config_of_the_second).scenario.epoch == 2
    assert [ended.epoch for ended in ends] == [2]


async def test_a_removal_on_a_hanging_disk_holds_up_no_report_and_cannot_hit_the_next_runner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, ends = config_in(tmp_path), list[Ended]()
    monkeypatch.setattr(runner_directories, "FILE_SECONDS", 0.5)

    async def reported() -> bool:
        return bool(ends)

    async with (
        hanging_disk() as disk,
        aio.open_loop(),
        open_processes(config, config, "here", into(ends)) as spawner,
    ):
        await spawner.start(work())
        monkeypatch.setattr(shutil, "rmtree", disk.holding_up(shutil.rmtree))
        (await frozen(tmp_path)).kill()
        await until(reported, described="its end is reported")
        assert "runners/7: it did not answer within 0.5 s" in caplog.text
        with pytest.raises(SpawnRefusedError, match="has not answered an earlier call yet"):
            await spawner.start(work(epoch=2))


async def test_a_disk_that_hangs_at_the_start_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_in(tmp_path)
    monkeypatch.setattr(runner_directories, "FILE_SECONDS", 0.5)
    monkeypatch.setattr(runner_directories, "LOCKED_SECONDS", 0.01)
    async with hanging_disk() as disk:
        monkeypatch.setattr(RunnerDirectories, "_make_root", disk.holding_up(RunnerDirectories._make_root))

        async def waits() -> bool:
            return "runners: it did not answer within 0.5 s" in caplog.text

        async def answer() -> None:
            await until(waits, described="the log names what is waited for")
            disk.answers.set()

        async with trio.open_nursery() as nursery, aio.open_loop():
            nursery.start_soon(answer)
            async with open_processes(config, config, "here", into([])) as spawner:
                assert spawner.count == 0


async def test_configs_that_a_hanging_disk_does_not_give_are_named_and_hold_up_no_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config, ends = config_in(tmp_path), list[Ended]()
    monkeypatch.setattr(runner_directories, "FILE_SECONDS", 0.5)
    async with hanging_disk() as disk:
        monkeypatch.setattr(
            RunnerDirectories, "_find_left_behind", disk.holding_up(RunnerDirectories._find_left_behind)
        )
        async with aio.open_loop(), open_processes(config, config, "here", into(ends)) as spawner:
            assert "are not reported: it did not answer within 0.5 s" in caplog.text
            await spawner.start(work())
    assert [ended.epoch for ended in ends] == [1]


async def test_no_start_precedes_the_look_at_what_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory of a runner that has just started would look like one that is left behind."""
    config, ends, looked = config_in(tmp_path), list[Ended](), list[bool]()
    look = RunnerDirectories._find_left_behind

    def slow(directories: RunnerDirectories) -> list[LeftBehind]:
        found = look(directories)
        threading.Event().wait(0.5)
        looked.append(True)
        return found

    monkeypatch.setattr(RunnerDirectories, "_find_left_behind", slow)
    async with aio.open_loop(), open_processes(config, config, "here", into(ends)) as spawner:
        assert looked == [True]
        await spawner.start(work())
        await trio.testing.wait_all_tasks_blocked()
        assert list((tmp_path / "runners" / "7").glob("*.toml"))
    assert [ended.failure for ended in ends] == [None]

"""A directory is one process's at a time, and a disk that hangs holds nobody up."""

from __future__ import annotations

import fcntl
import threading
from pathlib import Path

import pytest
import trio

from tests.support.harness import PATIENCE_SECONDS, until
from trio_runner.base.directory_lock import DirectoryLock


def lock(directory: Path, seconds: float = PATIENCE_SECONDS) -> DirectoryLock:
    return DirectoryLock(directory, seconds=seconds)


async def test_it_is_one_holders_at_a_time(tmp_path: Path) -> None:
    first, second, third = (lock(tmp_path) for _ in range(3))
    assert await first.take()
    assert await first.take(), "asked twice it is held once"
    assert not await second.take()
    await first.release()
    assert await third.take()
    await third.release()


async def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        await lock(tmp_path / "none").take()


async def test_it_is_given_back_by_whoever_is_cancelled(tmp_path: Path) -> None:
    first, second = lock(tmp_path), lock(tmp_path)
    assert await first.take()
    with trio.CancelScope() as scope:
        scope.cancel()
        await first.release()
    assert await second.take()
    await second.release()


async def test_a_thread_that_comes_late_gives_it_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk_answers, flock = threading.Event(), fcntl.flock

    def hanging(descriptor: int, operation: int) -> None:
        disk_answers.wait(PATIENCE_SECONDS)
        flock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", hanging)
    first, second = lock(tmp_path, 0.05), lock(tmp_path)
    try:
        with pytest.raises(TimeoutError, match="did not answer within"):
            await first.take()
    finally:
        with trio.move_on_after(PATIENCE_SECONDS, shield=True):
            await first.release()
        disk_answers.set()
    await until(second.take, described="the late thread has given the lock back")
    await second.release()

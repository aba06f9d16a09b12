from __future__ import annotations

import errno
import threading

import pytest
import trio

from trio_runner.base import threads


async def test_what_the_function_gives_or_raises_comes_back() -> None:
    assert await threads.bounded(lambda: 7, seconds=60) == 7

    def refuse() -> None:
        raise PermissionError(errno.EACCES, "no entry")

    with pytest.raises(PermissionError, match="no entry"):
        await threads.bounded(refuse, seconds=60)


async def test_a_call_that_hangs_is_left_behind_and_named() -> None:
    answer = threading.Event()
    try:
        with pytest.raises(TimeoutError) as raised:
            await threads.bounded(lambda: answer.wait(60), seconds=0.01)
        assert raised.value.strerror == "it did not answer within 0.01 s"
    finally:
        answer.set()


async def test_a_machine_without_a_thread_to_spare_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none_left(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", none_left)
    with pytest.raises(OSError, match="no thread can be started"):
        await threads.bounded(lambda: None, seconds=60)

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


@pytest.mark.parametrize("why", ["too slow", "cancelled"])
async def test_the_result_of_a_call_that_comes_late_is_undone(why: str) -> None:
    answer, undone = threading.Event(), threading.Event()
    results: list[int] = []

    def work() -> int:
        answer.wait(60)
        return 7

    def undo(result: int) -> None:
        results.append(result)
        undone.set()

    with trio.move_on_after(0.01 if why == "cancelled" else 60) as scope:
        with pytest.raises(TimeoutError):
            await threads.bounded(work, seconds=60 if why == "cancelled" else 0.01, late=undo)
    assert scope.cancelled_caught == (why == "cancelled")
    assert results == []
    answer.set()
    assert await trio.to_thread.run_sync(undone.wait, 60)
    assert results == [7]


async def test_a_result_that_comes_in_time_is_not_undone() -> None:
    undone: list[int] = []
    assert await threads.bounded(lambda: 7, seconds=60, late=undone.append) == 7
    assert undone == []


async def test_a_machine_without_a_thread_to_spare_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none_left(*_: object, **__: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(trio.to_thread, "run_sync", none_left)
    with pytest.raises(OSError, match="no thread can be started"):
        await threads.bounded(lambda: None, seconds=60)

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.support.harness import PATIENCE_SECONDS
from trio_runner.base import aio


@pytest.fixture
async def loop() -> AsyncIterator[None]:
    async with aio.open_loop():
        yield


async def echo(value: object) -> object:
    await asyncio.sleep(0)
    return value


async def test_a_call_passes_arguments_and_result(loop: None) -> None:
    async def join(*parts: str, end: str) -> str:
        await asyncio.sleep(0)
        return "".join(parts) + end

    assert await aio.call(join, "a", "b", end=".") == "ab."


async def test_an_error_comes_out_as_itself(loop: None) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs"):
        await aio.call(fail)


async def test_a_library_that_cancels_itself_is_an_ordinary_error(loop: None) -> None:
    async def cancel_itself() -> None:
        await asyncio.sleep(0)
        raise asyncio.CancelledError

    async def await_a_cancelled_future() -> None:
        future = asyncio.get_running_loop().create_future()
        future.cancel()
        await future

    for function in (cancel_itself, await_a_cancelled_future):
        with pytest.raises(aio.LibraryCancelledError, match=function.__name__):
            await aio.call(function)
    assert issubclass(aio.LibraryCancelledError, Exception)


async def test_a_trio_deadline_cancels_the_call(loop: None, autojump_clock: MockClock) -> None:
    ended = ""

    async def wait() -> None:
        nonlocal ended
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:
            ended = "cancelled"
            raise

    with trio.move_on_after(1) as scope:
        await aio.call(wait)
    assert scope.cancelled_caught
    assert ended == "cancelled"
    assert trio.current_time() < 1_000


async def test_a_library_that_swallows_the_cancellation_hides_it_no_longer_than_one_call(
    loop: None, autojump_clock: MockClock
) -> None:
    async def swallow() -> str:
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:  # noqa: ASYNC103 - a library may
            return "swallowed"  # noqa: ASYNC104
        return "slept"

    with trio.move_on_after(1) as scope:
        # The result of the call may have to be closed, so the cancellation does not lose it.
        assert await aio.call(swallow) == "swallowed"
        await aio.call(swallow)
        pytest.fail("the scope is cancelled, this must not be reached")
    assert scope.cancelled_caught


async def test_a_call_in_a_cancelled_scope_does_not_start(loop: None) -> None:
    started = False

    async def start() -> None:
        nonlocal started
        started = True
        await asyncio.sleep(0)

    with trio.CancelScope() as scope:
        scope.cancel()
        await aio.call(start)
    assert scope.cancelled_caught
    assert not started


async def test_close_runs_in_a_cancelled_scope(loop: None) -> None:
    closed = False

    async def close() -> None:
        nonlocal closed
        await asyncio.sleep(0)
        closed = True

    with trio.CancelScope() as scope:
        scope.cancel()
        assert await aio.close(close, seconds=60)
    assert closed


async def test_close_is_bounded(loop: None, autojump_clock: MockClock) -> None:
    async def hang() -> None:
        await asyncio.sleep(1_000)

    with trio.CancelScope() as scope:
        scope.cancel()
        assert not await aio.close(hang, seconds=3)
    assert trio.current_time() < 1_000


async def test_close_is_bounded_also_where_the_library_swallows(loop: None, autojump_clock: MockClock) -> None:
    async def swallow() -> None:
        try:
            await asyncio.sleep(1_000)
        except asyncio.CancelledError:  # noqa: ASYNC103 - a library may
            return  # noqa: ASYNC104

    assert not await aio.close(swallow, seconds=3)


async def test_a_close_that_fails_is_no_new_error(loop: None) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise OSError("broken pipe")

    assert not await aio.close(fail, seconds=3)


async def test_a_loop_within_a_loop_is_the_same_loop() -> None:
    async def current() -> asyncio.AbstractEventLoop:
        await asyncio.sleep(0)
        return asyncio.get_running_loop()

    async with aio.open_loop():
        outer = await aio.call(current)
        async with aio.open_loop():
            assert await aio.call(current) is outer
        # The inner block's end has not closed it.
        assert await aio.call(current) is outer
        assert await aio.call(echo, 1) == 1


async def test_loops_one_after_the_other_are_two() -> None:
    for number in range(2):
        async with aio.open_loop():
            assert await aio.call(echo, number) == number


async def test_calls_of_several_tasks_run_side_by_side(loop: None, autojump_clock: MockClock) -> None:
    async def meet(barrier: asyncio.Barrier) -> None:
        await barrier.wait()

    async def make() -> asyncio.Barrier:
        await asyncio.sleep(0)
        return asyncio.Barrier(3)

    barrier = await aio.call(make)
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(aio.call, meet, barrier)


async def test_an_error_in_the_block_ends_the_loop() -> None:
    with pytest.RaisesGroup(KeyError, flatten_subgroups=True, allow_unwrapped=True):
        async with aio.open_loop():
            raise KeyError("mine")
    async with aio.open_loop():
        assert await aio.call(echo, "again") == "again"


async def test_an_error_that_nobody_waits_for_does_not_end_the_loop(caplog: pytest.LogCaptureFixture) -> None:
    """Asyncpg leaves such a future behind when a cancelled query's cancel request is refused."""

    async def leave_behind() -> None:
        await asyncio.sleep(0)
        asyncio.get_running_loop().create_future().set_exception(ConnectionError("left behind"))

    async with aio.open_loop():
        await aio.call(leave_behind)
        gc.collect()
        await aio.call(asyncio.sleep, 0)
    assert "left behind" in caplog.text


async def test_a_name_that_nobody_looks_up_does_not_hold_up_a_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = threading.Event()

    def never(*_: object, **__: object) -> list[Any]:
        # Now, and not some time after the start: the thread may be late.
        trio.from_thread.run_sync(scope.cancel)
        answer.wait(10 * PATIENCE_SECONDS)
        return []

    monkeypatch.setattr(socket, "getaddrinfo", never)
    try:
        with trio.fail_after(PATIENCE_SECONDS):
            async with aio.open_loop():
                with trio.CancelScope() as scope:
                    await aio.call(asyncio_connect)
        assert scope.cancelled_caught
    finally:
        answer.set()


async def asyncio_connect() -> None:
    await asyncio.get_running_loop().create_connection(asyncio.Protocol, "database.example", 5432)

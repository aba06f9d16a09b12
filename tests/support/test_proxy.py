"""The proxy of the fault tests does what they take it to do."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio

from tests.support.harness import PATIENCE_SECONDS
from tests.support.proxy import DRIP_SECONDS, Breakdown, Proxy, Way, open_proxy


@asynccontextmanager
async def echo_behind_proxy() -> AsyncIterator[tuple[Proxy, list[bytes]]]:
    """A server that gives back what it gets, and what it has got."""
    got: list[bytes] = []

    async def echo(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                async for data in stream:
                    got.append(bytes(data))
                    await stream.send_all(data)
            except trio.BrokenResourceError:
                return

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, echo, 0, host="127.0.0.1"))
            async with open_proxy("127.0.0.1", listener.socket.getsockname()[1]) as proxy:
                yield proxy, got
            nursery.cancel_scope.cancel()


async def connect(proxy: Proxy) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", proxy.port)


async def receive(stream: trio.SocketStream, count: int) -> bytes:
    data = b""
    while len(data) < count and (chunk := await stream.receive_some(count - len(data))):
        data += chunk
    return data


async def is_silent(stream: trio.SocketStream) -> bool:
    with trio.move_on_after(0.2):
        await stream.receive_some()
        return False
    return True


async def test_it_passes_everything_both_ways_and_the_end_too() -> None:
    async with echo_behind_proxy() as (proxy, _), await connect(proxy) as stream, trio.open_nursery() as nursery:
        sent = bytes(range(256)) * 4096
        nursery.start_soon(stream.send_all, sent)
        assert await receive(stream, len(sent)) == sent
        await stream.send_eof()
        assert await stream.receive_some() == b""
        assert (proxy.connections, proxy.broken_at) == (1, None)


async def test_refused() -> None:
    async with echo_behind_proxy() as (proxy, _), await connect(proxy) as stream:
        await stream.send_all(b"1")
        assert await receive(stream, 1) == b"1"
        proxy.break_down(Breakdown.REFUSE)
        with pytest.raises(trio.BrokenResourceError):
            await stream.receive_some()
        with pytest.raises(OSError, match="failed"):
            await connect(proxy)


@pytest.mark.parametrize("lasting", [True, False])
async def test_reset_and_cut(*, lasting: bool) -> None:
    async with echo_behind_proxy() as (proxy, _):
        for how in (Breakdown.RESET, Breakdown.CUT):
            async with await connect(proxy) as stream:
                await stream.send_all(b"1")
                assert await receive(stream, 1) == b"1"
                proxy.break_down(how, lasting=lasting)
                if how is Breakdown.RESET:
                    with pytest.raises(trio.BrokenResourceError):
                        await stream.receive_some()
                else:
                    assert await stream.receive_some() == b""
            async with await connect(proxy) as stream:
                answer = None
                try:
                    await stream.send_all(b"2")
                    answer = await stream.receive_some()
                except trio.BrokenResourceError:
                    pass
                assert answer in ((None, b"") if lasting else (b"2",))
            proxy.recover()


@pytest.mark.parametrize("way", Way)
async def test_after_so_many_bytes(way: Way) -> None:
    async with echo_behind_proxy() as (proxy, got), await connect(proxy) as stream:
        proxy.arm(partial(proxy.break_down, Breakdown.CUT), way, after=5)
        await stream.send_all(b"123")
        assert await receive(stream, 3) == b"123"
        await stream.send_all(b"4567")
        assert await receive(stream, 9) == (b"45" if way is Way.TO_CLIENT else b"")
        assert b"".join(got) == (b"1234567" if way is Way.TO_CLIENT else b"12345")
        assert proxy.broken_at is not None


@pytest.mark.parametrize(("passing", "last"), [(True, b"op two"), (False, b"o")])
async def test_where_a_string_appears_though_it_comes_in_pieces(*, passing: bool, last: bytes) -> None:
    async with echo_behind_proxy() as (proxy, got), await connect(proxy) as stream:
        act = partial(proxy.break_down, Breakdown.SWALLOW, ways=(Way.TO_SERVER,))
        proxy.arm(act, Way.TO_SERVER, at=b"stop", passing=passing)
        await stream.send_all(b"one st")
        assert await receive(stream, 6) == b"one st"
        await stream.send_all(b"op two")
        assert await receive(stream, len(last)) == last
        await stream.send_all(b"three")
        assert await is_silent(stream)
        assert b"".join(got) == b"one st" + last


@pytest.mark.parametrize("way", Way)
async def test_frozen_and_thawed(way: Way) -> None:
    async with echo_behind_proxy() as (proxy, got), await connect(proxy) as stream:
        proxy.break_down(Breakdown.FREEZE, ways=(way,))
        await stream.send_all(b"1")
        assert await is_silent(stream)
        assert got == ([b"1"] if way is Way.TO_CLIENT else [])
        async with await connect(proxy) as another:
            await another.send_all(b"2")
            assert await is_silent(another)
        proxy.recover()
        assert await receive(stream, 1) == b"1"


async def test_what_is_swallowed_never_comes() -> None:
    async with echo_behind_proxy() as (proxy, got), await connect(proxy) as stream:
        proxy.break_down(Breakdown.SWALLOW)
        await stream.send_all(bytes(10 * 2**20))
        assert await is_silent(stream)
        proxy.recover()
        await stream.send_all(b"2")
        assert await receive(stream, 1) == b"2"
        assert got == [b"2"]


async def test_drips() -> None:
    async with echo_behind_proxy() as (proxy, _), await connect(proxy) as stream:
        proxy.break_down(Breakdown.DRIP, ways=(Way.TO_CLIENT,))
        await stream.send_all(b"12345")
        started = trio.current_time()
        for byte in b"12345":
            assert await stream.receive_some() == bytes([byte])
        assert trio.current_time() - started >= 4 * DRIP_SECONDS - 0.05


async def test_what_the_server_sends_may_be_rewritten() -> None:
    async with (
        echo_behind_proxy() as (proxy, _),
        open_proxy("127.0.0.1", proxy.port, rewrite=lambda data: data.replace(b"a", b"b")) as outer,
        await connect(outer) as stream,
    ):
        await stream.send_all(b"aca")
        assert await receive(stream, 3) == b"bcb"

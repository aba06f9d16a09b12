"""A TCP proxy between a process and its peer that breaks down on demand: at any moment, at any byte, either way."""

from __future__ import annotations

import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum, auto

import trio

CHUNK_BYTES = 2**16
DRIP_SECONDS = 0.1
_RESET = struct.pack("ii", 1, 0)
"""SO_LINGER: closing sends RST, and what was not sent is dropped."""


class Way(Enum):
    """A direction."""

    TO_SERVER = auto()
    TO_CLIENT = auto()


class Breakdown(Enum):
    """The ways in which connections can break."""

    REFUSE = auto()
    """Nobody listens any more, and what is open is reset."""
    RESET = auto()
    """The client gets RST."""
    CUT = auto()
    """The client gets FIN, in the middle of whatever it is."""
    FREEZE = auto()
    """Nothing is read, so that in the end nobody can send either; nothing is closed."""
    SWALLOW = auto()
    """Everything is read, nothing is passed on."""
    DRIP = auto()
    """One byte at a time is passed on."""


@dataclass(eq=False, kw_only=True)
class _Trigger:
    """When bytes on one way shall have a consequence: after so many, or where a string appears."""

    way: Way
    after: int
    at: bytes
    act: Callable[[], None]
    passing: bool
    tail: bytes = b""

    def place(self, data: bytes) -> int | None:
        """How much of `data` comes before it is pulled; None where it is not."""
        if not self.at:
            self.after -= len(data)
            return None if self.after > 0 else len(data) + self.after
        seen = self.tail + data
        self.tail = seen[max(0, len(seen) - len(self.at) + 1) :]
        found = seen.find(self.at)
        return None if found < 0 else max(0, found + len(self.at) - (len(seen) - len(data)) - 1)


@dataclass(eq=False)
class _Connection:
    client: trio.SocketStream
    modes: dict[Way, Breakdown] = field(default_factory=dict)
    changed: trio.Event = field(default_factory=trio.Event)
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    def change(self, modes: dict[Way, Breakdown]) -> None:
        self.modes = modes
        if {Breakdown.REFUSE, Breakdown.RESET} & set(modes.values()):
            with suppress(OSError):
                self.client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        if {Breakdown.REFUSE, Breakdown.RESET, Breakdown.CUT} & set(modes.values()):
            self.scope.cancel()
        before, self.changed = self.changed, trio.Event()
        before.set()

    async def thawed(self, way: Way) -> None:
        while self.modes.get(way) is Breakdown.FREEZE:
            await self.changed.wait()


class Proxy:
    """A running proxy; made by `open_proxy`."""

    def __init__(self, target: tuple[str, int], rewrite: Callable[[bytes], bytes]) -> None:
        self.connections = 0
        """How many have been made."""
        self.port = 0
        self.broken_at: float | None = None
        """`trio.current_time()` when a breakdown was first felt by a client."""
        self._target, self._rewrite = target, rewrite
        self._open: set[_Connection] = set()
        self._lasting: dict[Way, Breakdown] = {}
        self._triggers: list[_Trigger] = []
        self._listening = trio.CancelScope()

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def break_down(self, how: Breakdown, *, ways: tuple[Way, ...] = tuple(Way), lasting: bool = True) -> None:
        """From now on, on every open connection; and if it is lasting, on each new one."""
        if self._open:
            self._felt()
        if how is Breakdown.REFUSE:
            self._listening.cancel()
        elif lasting:
            self._lasting |= dict.fromkeys(ways, how)
        for connection in self._open:
            connection.change(connection.modes | dict.fromkeys(ways, how))

    def recover(self) -> None:
        """Everything passes again that still can."""
        self._lasting = {}
        for connection in self._open:
            connection.change({})

    def arm(self, act: Callable[[], None], way: Way, *, after: int = 0, at: bytes = b"", passing: bool = False) -> None:
        """Once, `act` when `after` bytes have gone this way or just before the last byte of `at` would.

        Bytes of the same read from there on feel what `act` did, or still pass if `passing`.
        """
        self._triggers.append(_Trigger(way=way, after=after, at=at, act=act, passing=passing))

    def _felt(self) -> None:
        self.broken_at = self.broken_at or trio.current_time()

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            with self._listening:
                (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
                async with listener:
                    self.port = listener.socket.getsockname()[1]
                    task_status.started()
                    while True:
                        nursery.start_soon(self._connect, await listener.accept())

    async def _connect(self, client: trio.SocketStream) -> None:
        connection = _Connection(client)
        self.connections += 1
        self._open.add(connection)
        if self._lasting:
            self._felt()
        try:
            async with client:
                connection.change(self._lasting)
                with connection.scope, suppress(OSError, trio.BrokenResourceError):
                    async with await trio.open_tcp_stream(*self._target) as server, trio.open_nursery() as nursery:
                        nursery.start_soon(self._pump, connection, Way.TO_SERVER, client, server)
                        nursery.start_soon(self._pump, connection, Way.TO_CLIENT, server, client)
        finally:
            self._open.discard(connection)

    async def _pump(
        self, connection: _Connection, way: Way, source: trio.SocketStream, sink: trio.SocketStream
    ) -> None:
        try:
            await connection.thawed(way)
            while data := bytes(await source.receive_some(CHUNK_BYTES)):
                rest = await self._pull_triggers(way, self._rewrite(data) if way is Way.TO_CLIENT else data, sink)
                await self._pass_on(connection, way, rest, sink)
                await connection.thawed(way)
            await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            connection.scope.cancel()

    async def _pull_triggers(self, way: Way, data: bytes, sink: trio.SocketStream) -> bytes:
        for trigger in [each for each in self._triggers if each.way is way]:
            place = trigger.place(data)
            if place is not None and trigger in self._triggers:
                self._triggers.remove(trigger)
                if trigger.passing:
                    # Before it is sent: the answer may be here before that returns.
                    trigger.act()
                    place = len(data)
                await sink.send_all(data[:place])
                data = data[place:]
                if not trigger.passing:
                    trigger.act()
        return data

    async def _pass_on(self, connection: _Connection, way: Way, data: bytes, sink: trio.SocketStream) -> None:
        while data:
            await connection.thawed(way)
            mode = connection.modes.get(way)
            if mode is Breakdown.SWALLOW:
                return
            await sink.send_all(data[:1] if mode is Breakdown.DRIP else data)
            data = data[1:] if mode is Breakdown.DRIP else b""
            if data:
                await trio.sleep(DRIP_SECONDS)


@asynccontextmanager
async def open_proxy(
    target_host: str, target_port: int, *, rewrite: Callable[[bytes], bytes] = lambda data: data
) -> AsyncIterator[Proxy]:
    """A proxy before `target_host:target_port`; `rewrite` may change what the server sends, piece by piece."""
    proxy = Proxy((target_host, target_port), rewrite)
    async with trio.open_nursery() as nursery:
        await nursery.start(proxy.serve)
        yield proxy
        nursery.cancel_scope.cancel()

"""One connection to a service: a request is sent by one call, and an answer is read even while the request is sent."""

from __future__ import annotations

import socket as system
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NamedTuple

import httpx
import trio

from trio_runner.inference.http1 import ResponseParser

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

READ_BYTES: Final = 2**16
_MOST_BUFFERS: Final = 64
"""For one call of the system, which takes 1024."""


class Origin(NamedTuple):
    """To what a connection leads."""

    scheme: bytes
    host: str
    port: int


class Socket(trio.abc.Stream):
    """A connected socket that keeps reading while it cannot send.

    A peer may answer before it has read the whole request, and then close or read no further. So `send` does not
    raise: whether there is an answer, or why there is none, is found by receiving.
    """

    def __init__(self, stream: trio.SocketStream) -> None:
        """Own this stream."""
        self._stream = stream
        self.cut_off = False
        """Whether something was not sent."""
        self.while_blocked: Callable[[], Awaitable[bool]] | None = None
        """Runs while `send` waits; `send` gives up when it returns true."""
        self.at_hand_only = False
        """Whether receiving raises trio.WouldBlock where it would wait."""
        with suppress(OSError):
            # Trio lets only 16 KiB wait in the kernel, so that a picture would take many calls. 0: no such limit.
            stream.setsockopt(system.IPPROTO_TCP, system.TCP_NOTSENT_LOWAT, 0)

    async def send(self, parts: Sequence[bytes | bytearray | memoryview]) -> None:
        """Send the buffers as one piece, uncopied; see `cut_off`."""
        left = [memoryview(part) for part in parts if part]
        try:
            # The first call does not wait, because the peer has read all that came before.
            if not self.cut_off and (left := await self._send_some(left)):
                await self._send_slowly(left)
        except OSError:
            self.cut_off = True

    async def _send_slowly(self, left: list[memoryview]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run_while_blocked, nursery.cancel_scope)
            try:
                while left:
                    left = await self._send_some(left)
            except OSError:
                self.cut_off = True
            nursery.cancel_scope.cancel()
        self.cut_off |= bool(left)

    async def _run_while_blocked(self, sending: trio.CancelScope) -> None:
        if self.while_blocked and await self.while_blocked():
            sending.cancel()

    async def _send_some(self, left: list[memoryview]) -> list[memoryview]:
        sent = await self._stream.socket.sendmsg(left[:_MOST_BUFFERS])
        for number, part in enumerate(left):
            if sent < len(part):
                return [part[sent:], *left[number + 1 :]]
            sent -= len(part)
        return []

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Send as `send` does."""
        await self.send([data])

    async def wait_send_all_might_not_block(self) -> None:
        """See trio.SocketStream."""
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Receive what has come, or wait for it; see `at_hand_only`."""
        if self.at_hand_only and not self.is_readable():
            raise trio.WouldBlock
        return await self._stream.receive_some(max_bytes or READ_BYTES)

    def is_readable(self) -> bool:
        """Whether bytes, the end of the connection, or its reset have come."""
        return self._stream.socket.is_readable()

    def close(self) -> None:
        """Close at once."""
        self._stream.socket.close()

    async def aclose(self) -> None:
        """Close at once."""
        self.close()
        await trio.lowlevel.checkpoint()


class Connection:
    """A connection for one exchange at a time. After an error it is closed."""

    def __init__(self, origin: Origin, socket: Socket, secured: trio.SSLStream[Socket] | None) -> None:
        """Own a connected socket and, for https, the stream over it after its handshake."""
        self.origin = origin
        self.stream: Socket | trio.SSLStream[Socket] = secured or socket
        self._socket = socket
        self._secured = secured
        self._failure: httpx.TransportError | None = None
        self.answer = ResponseParser("GET")
        self.idle_since = 0.0

    async def exchange(self, method: str, parts: Sequence[bytes]) -> None:
        """Send a request, and receive until the head of its answer is whole.

        Raises:
            httpx.ReadError: The connection broke; `answer.begun` says whether something had come.
            httpx.RemoteProtocolError: It ended before the answer did, or the answer is not HTTP/1.1.
        """
        self.answer = ResponseParser(method)
        try:
            self._socket.while_blocked = self._find_early_answer
            if self._secured:
                # One part at a time would be a TLS record or more for each, and encrypting copies anyway.
                await self._secured.send_all(b"".join(parts))
            else:
                await self._socket.send(parts)
            self._socket.while_blocked = None
            self._raise_early_failure()
            while not self.answer.status:
                await self._receive()
        except trio.BrokenResourceError as error:
            self.close()
            raise httpx.ReadError("the connection broke") from error
        except BaseException:
            self.close()
            raise

    async def receive(self) -> None:
        """Receive more of the answer; raises as `exchange` does."""
        try:
            await self._receive()
        except BaseException:
            self.close()
            raise

    async def _receive(self) -> None:
        try:
            data = await self.stream.receive_some()
        except trio.BrokenResourceError as error:
            raise httpx.ReadError(f"the connection broke: {error.__cause__ or 'reset'}") from error
        self.answer.feed(bytes(data))

    async def _find_early_answer(self) -> bool:
        """Receive the head of an answer; true if it makes the rest of the request useless."""
        try:
            while not self.answer.status:
                await self._receive()
        except httpx.TransportError as error:
            self._failure = error
            return True
        return self.answer.status >= httpx.codes.MULTIPLE_CHOICES

    def _raise_early_failure(self) -> None:
        if self._failure:
            raise self._failure

    @property
    def is_reusable(self) -> bool:
        """Whether the exchange has left the connection in order."""
        answer = self.answer
        return answer.complete and answer.keep_alive and not answer.extra and not self._socket.cut_off

    async def is_quiet(self) -> bool:
        """Whether neither bytes nor the end of the connection have come since the last exchange."""
        if self._secured is None:
            return not self._socket.is_readable()
        # The socket may be readable for TLS's own messages, and what was read from it may hold more than one record.
        self._socket.at_hand_only = True
        try:
            await self._secured.receive_some(1)
        except trio.WouldBlock:
            self._socket.at_hand_only = False
            return True
        except trio.BrokenResourceError:
            return False
        return False

    def close(self) -> None:
        """Close at once."""
        self._socket.close()

"""httpx's transport for the hot path: HTTP/1.1 over Trio's streams, with one write for a request and no copy of it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final, Self, cast

import httpx
import trio

from trio_runner.inference.connection import Connection, Origin, Socket
from trio_runner.inference.http1 import ExtraDataError, request_head

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable

KEEPALIVE_SECONDS: Final = 2.0
"""Shorter than that of any common server (uvicorn 5 s, nginx 75 s), so that few connections are found closed."""


class Body(httpx.AsyncByteStream):
    """A body in a few buffers, each sent as it is.

    httpx's own bodies are async generators. After a cancellation the garbage collector would close one at some later
    time, with a warning from Trio.
    """

    def __init__(self, *parts: bytes) -> None:
        """Take the buffers whose concatenation is the body."""
        self.parts = parts

    def __aiter__(self) -> _Parts:
        return _Parts(self.parts)


class _Parts:
    def __init__(self, parts: tuple[bytes, ...]) -> None:
        self._left = iter(parts)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        for part in self._left:
            return part
        raise StopAsyncIteration


class TrioTransport(httpx.AsyncBaseTransport):
    """Connections to services, each for one exchange at a time; idle ones are used again."""

    def __init__(self, *, tls: ssl.SSLContext | None = None, socket_path: str = "", max_idle: int = 1) -> None:
        """Make no connection yet.

        Args:
            tls: For https addresses.
            socket_path: A Unix socket to connect to, whatever host an address names.
            max_idle: How many connections may wait for another exchange.
        """
        self._tls = tls
        self._socket_path = socket_path
        self._max_idle = max_idle
        self._idle: list[Connection] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request and wait for the head of its answer; the body is the response's stream.

        A connection that the peer closed while it was idle is replaced once. That is safe, because not a byte of an
        answer came on it.

        Raises:
            httpx.ConnectTimeout: No connection within `timeout["connect"]` seconds, of the request's extensions.
            httpx.ConnectError: No connection at all.
            httpx.ReadError: The connection broke.
            httpx.RemoteProtocolError: It ended before the answer did, or the answer is not HTTP/1.1.
        """
        body = await _buffers(request)
        parts = (request_head(request, sum(map(len, body))), *body)
        origin = _origin(request.url)
        if connection := await self._take_idle(origin):
            try:
                await connection.exchange(request.method, parts)
            except httpx.TransportError:
                if connection.answer.begun:
                    raise
            else:
                return self._response(connection)
        connection = await self.connect(request.url, request.extensions.get("timeout", {}).get("connect"))
        await connection.exchange(request.method, parts)
        return self._response(connection)

    async def connect(self, url: httpx.URL, seconds: float | None) -> Connection:
        """A new connection to the service at `url`, for https with TLS, within `seconds`.

        Raises:
            httpx.ConnectTimeout: Not within `seconds`.
            httpx.ConnectError: Not at all; its chain of causes holds the error of the system or of TLS.
        """
        origin = _origin(url)
        socket = secured = None
        try:
            with trio.fail_after(math.inf if seconds is None else seconds):
                if self._socket_path:
                    socket = Socket(await trio.open_unix_socket(self._socket_path))
                else:
                    socket = Socket(await trio.open_tcp_stream(origin.host, origin.port))
                if self._tls and origin.scheme == b"https":
                    secured = trio.SSLStream(socket, self._tls, server_hostname=origin.host, https_compatible=True)
                    await secured.do_handshake()
        except trio.TooSlowError as error:
            _close(socket)
            raise httpx.ConnectTimeout("no connection in time") from error
        except (OSError, trio.BrokenResourceError) as error:
            _close(socket)
            raise httpx.ConnectError(str(error) or "the connection broke") from error
        except BaseException:
            _close(socket)
            raise
        return Connection(origin, socket, secured)

    async def aclose(self) -> None:
        """Close the idle connections."""
        while self._idle:
            self._idle.pop().close()

    async def _take_idle(self, origin: Origin) -> Connection | None:
        """The connection used last that leads there and that nothing has come on since."""
        oldest = trio.current_time() - KEEPALIVE_SECONDS
        for connection in reversed(self._idle[:]):
            if connection.origin == origin and connection in self._idle:
                self._idle.remove(connection)
                try:
                    if connection.idle_since >= oldest and await connection.is_quiet():
                        return connection
                except BaseException:
                    connection.close()
                    raise
                connection.close()
        return None

    def _release(self, connection: Connection) -> None:
        if connection.is_reusable and len(self._idle) < self._max_idle:
            connection.idle_since = trio.current_time()
            self._idle.append(connection)
        else:
            connection.close()

    def _response(self, connection: Connection) -> httpx.Response:
        answer = connection.answer
        return httpx.Response(
            answer.status,
            headers=answer.headers,
            stream=_ResponseBody(connection, self._release),
            extensions={"http_version": b"HTTP/1.1", "reason_phrase": answer.reason},
        )


class _ResponseBody(httpx.AsyncByteStream):
    """The body as it comes. The connection is given back as soon as the answer is whole."""

    def __init__(self, connection: Connection, release: Callable[[Connection], None]) -> None:
        self._answer = connection.answer
        self._connection: Connection | None = connection
        self._release = release
        if self._answer.complete:
            self._give_back()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        while not (piece := self._answer.take_body()):
            if self._connection is None:
                if self._answer.extra:
                    raise ExtraDataError
                raise StopAsyncIteration
            await self._connection.receive()
            if self._answer.complete:
                self._give_back()
        return piece

    async def aclose(self) -> None:
        self._give_back()

    def _give_back(self) -> None:
        if self._connection:
            connection, self._connection = self._connection, None
            self._release(connection)


def _origin(url: httpx.URL) -> Origin:
    scheme = url.raw_scheme
    return Origin(scheme, url.raw_host.decode("ascii"), url.port or (443 if scheme == b"https" else 80))


async def _buffers(request: httpx.Request) -> tuple[bytes, ...]:
    """The whole body: a request is sent again only from memory."""
    if isinstance(request.stream, Body):
        return request.stream.parts
    return tuple([part async for part in cast("httpx.AsyncByteStream", request.stream)])


def _close(socket: Socket | None) -> None:
    if socket:
        socket.close()

"""Records the exchanges with a service as they are on the wire, for people to look at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Self, cast

import httpx
import trio

RECORDED_BYTES: Final = 2**16
"""So much of an answer is recorded; its size is counted to the end."""


@dataclass(slots=True, kw_only=True)
class Exchange:
    """One request and what came back; `status` is 0 while nothing has."""

    method: str
    url: str
    sent_headers: list[tuple[str, str]]
    sent_bytes: int
    status: int = 0
    reason: str = ""
    headers: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    """At most `RECORDED_BYTES` of it."""
    size: int = 0
    """Bytes of the whole body that were received."""
    started: float = 0.0
    seconds: float = 0.0
    """From the beginning of the request to the last byte of the answer that was received."""


class Recorder(httpx.AsyncBaseTransport):
    """A transport that passes everything on to another one and records it."""

    def __init__(self, transport: httpx.AsyncBaseTransport, exchanges: list[Exchange]) -> None:
        """Use this transport, close it in the end, and append each exchange to `exchanges`."""
        self._transport = transport
        self._exchanges = exchanges

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send the request, and record it and the head of its answer; raises what the other transport does."""
        exchange = Exchange(
            method=request.method,
            url=str(request.url),
            sent_headers=request.headers.multi_items(),
            sent_bytes=int(request.headers.get("Content-Length", "0")),
            started=trio.current_time(),
        )
        self._exchanges.append(exchange)
        response = await self._transport.handle_async_request(request)
        exchange.status, exchange.reason = response.status_code, response.reason_phrase
        exchange.headers = response.headers.multi_items()
        exchange.seconds = trio.current_time() - exchange.started
        response.stream = _Recorded(cast("httpx.AsyncByteStream", response.stream), exchange)
        return response

    async def aclose(self) -> None:
        """Close the other transport."""
        await self._transport.aclose()


class _Recorded(httpx.AsyncByteStream):
    """A body that is recorded while it is read."""

    def __init__(self, stream: httpx.AsyncByteStream, exchange: Exchange) -> None:
        self._stream, self._exchange = stream, exchange

    def __aiter__(self) -> Self:
        self._pieces = aiter(self._stream)
        return self

    async def __anext__(self) -> bytes:
        piece = await anext(self._pieces)
        exchange = self._exchange
        exchange.body += piece[: max(RECORDED_BYTES - len(exchange.body), 0)]
        exchange.size += len(piece)
        exchange.seconds = trio.current_time() - exchange.started
        return piece

    async def aclose(self) -> None:
        """Close the other transport's body."""
        await self._stream.aclose()

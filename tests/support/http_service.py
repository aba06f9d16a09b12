"""An HTTP service whose answers are a function of the request, for tests of one exchange or a few."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import h11
import trio

READ_BYTES = 2**16


@dataclass(frozen=True)
class Request:
    """What came; names of headers are in small letters."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes


Respond = Callable[[Request], "tuple[int, dict[str, str], bytes]"]
"""From a request to status, headers and body."""


@dataclass
class Service:
    """The address, and the requests in the order of their arrival."""

    respond: Respond
    url: str = ""
    requests: list[Request] = field(default_factory=list)

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer the requests of one connection until it ends."""
        async with stream:
            connection = h11.Connection(h11.SERVER)
            try:
                while await self._answer(connection, stream):
                    connection.start_next_cycle()
            except (trio.BrokenResourceError, h11.ProtocolError):
                return

    async def _answer(self, connection: h11.Connection, stream: trio.SocketStream) -> bool:
        head, body = None, bytearray()
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                connection.receive_data(await stream.receive_some(READ_BYTES))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage) and head:
                break
            else:
                return False
        headers = {name.decode(): value.decode() for name, value in head.headers}
        request = Request(head.method.decode(), head.target.decode(), headers, bytes(body))
        self.requests.append(request)
        status, fields, content = self.respond(request)
        fields = {"Content-Length": str(len(content)), **fields}
        answer = h11.Response(status_code=status, headers=list(fields.items()), reason=b"")
        parts = [connection.send(each) for each in (answer, h11.Data(data=content), h11.EndOfMessage())]
        await stream.send_all(b"".join(part or b"" for part in parts))
        return connection.our_state is not h11.MUST_CLOSE


@asynccontextmanager
async def open_service(respond: Respond) -> AsyncIterator[Service]:
    """A service on a port of its own on 127.0.0.1."""
    service = Service(respond)
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        service.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        await nursery.start(trio.serve_listeners, service.serve, listeners)
        yield service
        nursery.cancel_scope.cancel()

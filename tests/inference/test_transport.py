"""The transport, from one write to early answers, against scripted peers and against servers as they are."""

from __future__ import annotations

import http.server
import socket
import ssl
import struct
import threading
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import httpx
import pytest
import trio
import uvicorn

from tests.inference.test_client import ANSWER, Script, Server, answers, failure, read_request, serving
from tests.inference.test_client import http as response
from tests.support.certificates import Authority
from tests.support.harness import PATIENCE_SECONDS
from tests.support.makers import make_frame
from trio_runner.config.inference import InferenceSection, PredictSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.inference.client import open_client
from trio_runner.inference.http1 import ExtraDataError
from trio_runner.inference.transport import KEEPALIVE_SECONDS, Body, TrioTransport

MEBIBYTE = 2**20
BIG = bytes(8 * MEBIBYTE)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n"
TOO_LARGE = b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 8\r\n\r\ntoo big\n"


def post(url: str, *parts: bytes) -> httpx.Request:
    return httpx.Request("POST", f"{url}/predict", stream=Body(*(parts or (b"a picture",))))


async def exchange(transport: TrioTransport, request: httpx.Request) -> httpx.Response:
    """The whole response, in time."""
    with trio.fail_after(PATIENCE_SECONDS):
        answer = await transport.handle_async_request(request)
        await answer.aread()
        await answer.aclose()
    return answer


async def once(script: Script, method: str = "POST") -> httpx.Response:
    """The response to one request on a new connection."""
    async with serving(script) as server, TrioTransport() as transport:
        return await exchange(transport, httpx.Request(method, server.url, stream=Body(b"a picture")))


async def refused(script: Script) -> httpx.RemoteProtocolError:
    """The error of one request on a new connection."""
    async with serving(script) as server, TrioTransport() as transport:
        with pytest.raises(httpx.RemoteProtocolError) as caught:
            await exchange(transport, post(server.url))
    return caught.value


def reset(stream: trio.SocketStream) -> None:
    """End the connection with a reset."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


# the request


async def test_a_request_is_one_write() -> None:
    """The peer finds all of it with its first read, although it reads as soon as anything is there."""
    received = []

    async def script(stream: trio.SocketStream) -> None:
        for _ in range(20):
            received.append(await stream.receive_some(MEBIBYTE))
            await stream.send_all(response())

    async with serving(script) as server, TrioTransport() as transport:
        for _ in range(20):
            await exchange(transport, post(server.url, b"the frame's head, ", b"\xff" * 30_000, b", its tail"))
    assert {len(request) for request in received} == {len(received[0])}
    assert received[0].endswith(b"\r\n\r\nthe frame's head, " + b"\xff" * 30_000 + b", its tail")


async def test_a_picture_is_not_copied_on_its_way() -> None:
    """The kernel takes a part of it at a time."""

    async def script(stream: trio.SocketStream) -> None:
        while await stream.receive_some(2**16):
            with trio.move_on_after(0.05):
                while await stream.receive_some(2**16):
                    pass
                return
            await stream.send_all(response())

    async with serving(script) as server, TrioTransport() as transport:
        request = post(server.url, b"before it", BIG, b"behind it")
        tracemalloc.start()
        try:
            await exchange(transport, request)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < MEBIBYTE


async def test_any_body_of_httpx_is_sent_with_its_length() -> None:
    seen: list[bytes] = []

    async def script(stream: trio.SocketStream) -> None:
        while request := await read_request(stream):
            seen.append(request)
            await stream.send_all(response())

    async with serving(script) as server, TrioTransport() as transport:
        for content in (b"in pieces", Body(b"in ", b"pieces")):
            await exchange(transport, httpx.Request("POST", f"{server.url}/a?b=c", content=content))
        await exchange(transport, httpx.Request("POST", server.url, json={"in": "pieces"}))
    for request in seen[:2]:
        assert request.startswith(b"POST /a?b=c HTTP/1.1\r\n")
        assert request.lower().count(b"\r\ncontent-length: 9\r\n") == 1
        assert request.endswith(b"\r\n\r\nin pieces")
        assert b"transfer-encoding" not in request.lower()


@pytest.mark.parametrize("value", ["a\r\nX-Injected: b", "a\nb", "a\rb", "a\0b"])
async def test_a_header_that_would_be_two_is_not_sent(value: str) -> None:
    async with serving(answers(response())) as server, TrioTransport() as transport:
        with pytest.raises(httpx.LocalProtocolError):
            await exchange(transport, httpx.Request("POST", server.url, headers={"X-Key": value}, stream=Body(b"")))
        assert server.connections == 0


# the answer


@pytest.mark.parametrize(
    ("answer", "content"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", b"hello"),
        (b"HTTP/1.0 200 OK\r\n\r\nhello", b"hello"),
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n2;a=b\r\nhe\r\n3\r\nllo\r\n0\r\nX: y\r\n\r\n",
            b"hello",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", b"hello"),
        (b"HTTP/1.1 103 Early Hints\r\nLink: <x>\r\n\r\n" * 9 + b"HTTP/1.1 200\r\nContent-Length: 2\r\n\r\nhi", b"hi"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", b""),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", b""),
    ],
)
async def test_an_answer_ends_where_its_head_says(answer: bytes, content: bytes) -> None:
    async def script(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(answer)

    got = await once(script)
    assert got.content == content
    assert got.status_code == int(answer.rpartition(b"HTTP/1.")[2][2:5])


async def test_the_answer_to_head_has_no_body() -> None:
    got = await once(answers(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\nX-A: c\r\n\r\n"), "HEAD")
    assert (got.content, got.reason_phrase, got.headers["Content-Length"]) == (b"", "OK", "5")
    assert got.headers.get_list("X-A") == ["b", "c"]


@pytest.mark.parametrize(
    ("answer", "part"),
    [
        (b"", "without an answer"),
        (b"HTTP/1.1 200 O", "in the middle of its answer"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell", "in the middle of its answer"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n", "in the middle of its answer"),
        (b"SSH-2.0-OpenSSH_10.0\r\n", "not an HTTP/1 response, but b'SSH-2.0"),
        (b"HTTP/2.0 200 OK\r\n\r\n", "not an HTTP/1 response"),
        (b"HTTP/1.1 099 No\r\n\r\n", "status 099"),
        (b"HTTP/1.1 101 Yes\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n", "switched protocols"),
        (b"HTTP/1.1 2000 OK\r\n\r\n", "malformed head"),
        (b"HTTP/1.1 200 OK\r\nNo colon\r\n\r\n", "malformed head"),
        (b"HTTP/1.1 200 OK\r\nX: a\0b\r\n\r\n", "malformed head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length : 0\r\n\r\n", "malformed head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n0\r\n\r\n", "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", "transfer encoding"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n", "malformed chunk"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"f" * 17 + b"\r\n", "malformed chunk"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2**17, "longer than 65536 bytes"),
        (b"HTTP/1.1 103 Early Hints\r\n\r\n" * 3000, "longer than 65536 bytes"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n" + b"X: y\r\n" * 2**16, "between two chunks"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"y" * 2**19, "between two chunks"),
    ],
    ids=lambda value: repr(value[-30:]) if isinstance(value, bytes) else "",
)
async def test_an_answer_that_is_none_is_refused_with_the_reason(answer: bytes, part: str) -> None:
    async def script(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(answer)
        await stream.send_eof()
        while await stream.receive_some():
            pass

    assert part in str(await refused(script))


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH_10.0\r\n", b"220 mail.example ESMTP\r\n"])
async def test_another_protocol_is_noticed_while_the_connection_is_open(answer: bytes) -> None:
    async def script(stream: trio.SocketStream) -> None:
        await stream.send_all(answer)
        await trio.sleep_forever()

    assert "not an HTTP/1 response" in str(await refused(script))


# more than the answer


@pytest.mark.parametrize(
    "whole",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nhi",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n2\r\nhi\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
    ],
)
@pytest.mark.parametrize("extra", [b"x", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbye"])
async def test_what_lies_behind_an_answer_is_an_error(whole: bytes, extra: bytes) -> None:
    error = await refused(answers(whole + extra))
    assert isinstance(error, ExtraDataError)
    assert str(error) == "went on after its answer"


@pytest.mark.parametrize("late", [b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nstale", b"\r\n", b""])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_connection_on_which_something_came_while_it_was_idle_is_not_used_again(
    authority: Authority, late: bytes, *, tls: bool
) -> None:
    """Bytes, or its end."""
    idle, sent = trio.Event(), trio.Event()

    async def script(stream: Any) -> None:
        while await read_request(stream):
            await stream.send_all(response())
            if server.connections > 1:
                continue
            await idle.wait()
            if late:
                await stream.send_all(late)
            else:
                await close(stream)
            sent.set()
            await trio.sleep_forever()

    async with serving_over(script, authority if tls else None) as server, connecting(authority) as transport:
        await exchange(transport, post(server.url))
        idle.set()
        await sent.wait()
        await trio.testing.wait_all_tasks_blocked(0.05)
        for _ in range(3):
            assert (await exchange(transport, post(server.url))).content == ANSWER
        assert server.connections == 2


# connections


async def send_frames(url: str, frames: int, *, pause_seconds: float = 0.0, **config: Any) -> None:
    """Each of the frames is answered, or a RunnerError ends the test."""
    async with open_client(InferenceSection(url=url, **config)) as client:
        for number in range(frames):
            assert [found.label for found in (await client.infer([make_frame(number)]))[0].detections] == ["dog"]
            await trio.sleep(pause_seconds)


@pytest.mark.parametrize("after", [1, 2, 10])
async def test_a_server_that_closes_unannounced_after_some_answers_costs_no_frame(after: int) -> None:
    async with serving(answers(*[response()] * after)) as server:
        await send_frames(server.url, 30)
        assert server.connections == -(-30 // after)


@pytest.mark.parametrize("how", ["close", "reset", "close without reading"])
@pytest.mark.parametrize("body", [b"small", BIG], ids=["small", "big"])
async def test_a_connection_closed_just_when_it_is_used_again_is_replaced_once(how: str, body: bytes) -> None:
    """The peer decides to close before it has seen the second request, which was sent already."""

    async def script(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(response())
        if server.connections == 1:
            if how != "close without reading":
                await stream.receive_some()
            else:
                await trio.lowlevel.wait_readable(stream.socket)
            if how == "reset":
                reset(stream)
            return
        await read_request(stream)
        await stream.send_all(response())

    async with serving(script) as server, TrioTransport() as transport:
        for _ in range(2):
            assert (await exchange(transport, post(server.url, body))).content == ANSWER
        assert server.connections == 2


@pytest.mark.parametrize("begun", [b"", b"H", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_request_is_not_sent_again_where_something_was_answered_or_the_connection_was_new(begun: bytes) -> None:
    requests = 0

    async def script(stream: trio.SocketStream) -> None:
        nonlocal requests
        while await read_request(stream):
            requests += 1
            if requests > 1 or not begun:
                await stream.send_all(begun)
                return
            await stream.send_all(response())

    async with serving(script) as server, TrioTransport() as transport:
        if begun:
            await exchange(transport, post(server.url))
        with pytest.raises(httpx.RemoteProtocolError, match="closed the connection"):
            await exchange(transport, post(server.url))
    assert requests == (2 if begun else 1)


async def test_a_connection_that_was_idle_for_long_is_not_used_again(autojump_clock: trio.testing.MockClock) -> None:
    async with serving(answers(*[response()] * 9)) as server, TrioTransport() as transport:
        await exchange(transport, post(server.url))
        await trio.sleep(0.9 * KEEPALIVE_SECONDS)
        await exchange(transport, post(server.url))
        assert server.connections == 1
        await trio.sleep(1.1 * KEEPALIVE_SECONDS)
        await exchange(transport, post(server.url))
        assert server.connections == 2


async def test_no_more_connections_wait_than_there_are_senders() -> None:
    async with serving(answers(*[response()] * 99)) as server, TrioTransport(max_idle=2) as transport:
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(exchange, transport, post(server.url))
        made = server.connections
        for _ in range(9):
            await exchange(transport, post(server.url))
        assert server.connections == made
        assert len(transport._idle) == 2


async def test_a_response_that_is_closed_unread_gives_no_connection_back() -> None:
    async with serving(answers(response(b"x" * MEBIBYTE), response())) as server, TrioTransport() as transport:
        with trio.fail_after(PATIENCE_SECONDS):
            answer = await transport.handle_async_request(post(server.url))
            await answer.aclose()
        await exchange(transport, post(server.url))
        assert server.connections == 2


# servers as they are


@contextmanager
def python_http_server(idle_seconds: float) -> Iterator[str]:
    """http.server with keep-alive; it closes after `idle_seconds`."""

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        timeout = idle_seconds

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(200)
            self.send_header("Content-Length", str(len(ANSWER)))
            self.end_headers()
            self.wfile.write(ANSWER)

        def log_message(self, *_: object) -> None:
            return

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def uvicorn_server(http_parser: str, idle_seconds: int) -> Iterator[str]:
    """Uvicorn with one of its parsers; it closes after `idle_seconds`."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while (await receive()).get("more_body"):
            pass
        headers = [(b"content-length", b"%d" % len(ANSWER)), (b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": ANSWER})

    config = uvicorn.Config(
        app, http=http_parser, timeout_keep_alive=idle_seconds, lifespan="off", log_config=None, access_log=False
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


async def test_http_server_of_python_and_its_idle_time_cost_no_frame() -> None:
    with python_http_server(idle_seconds=0.05) as url:
        await send_frames(url, 30)
        await send_frames(url, 10, pause_seconds=0.1)
        # The server decides to close at about the time of each request.
        await send_frames(url, 40, pause_seconds=0.0495)


@pytest.mark.parametrize("parser", ["h11", "httptools"])
async def test_uvicorn_and_its_idle_time_cost_no_frame(parser: str) -> None:
    with uvicorn_server(parser, idle_seconds=1) as url:
        await send_frames(url, 30)
        await send_frames(url, 3, pause_seconds=1.0)


# answers before the request is whole


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def serving_over(script: Script, authority: Authority | None) -> AsyncIterator[Server]:
    """As `serving`, with TLS where there is an authority to issue a certificate."""
    if authority is None:
        async with serving(script) as server:
            yield server
        return
    context = authority.issue("127.0.0.1").server_context()

    async def secured(stream: trio.SocketStream) -> None:
        await script(trio.SSLStream(stream, context, server_side=True, https_compatible=True))  # type: ignore[arg-type]

    async with serving(secured) as server:
        server.scheme = "https"
        yield server


def connecting(authority: Authority) -> TrioTransport:
    return TrioTransport(tls=ssl.create_default_context(cafile=str(authority.ca_file)))


async def close(stream: Any) -> None:
    """With the rest of the request unread, so that the kernel sends a reset."""
    getattr(stream, "transport_stream", stream).socket.close()


async def close_after_reading_on(stream: Any) -> None:
    while await stream.receive_some(2**16):
        pass


async def stay(_: Any) -> None:
    await trio.sleep_forever()


async def shut_down(stream: Any) -> None:
    """Half-close, and read no more; as nginx does for a while (lingering close)."""
    getattr(stream, "transport_stream", stream).socket.shutdown(socket.SHUT_WR)
    await trio.sleep_forever()


@pytest.mark.parametrize("then", [close, stay, shut_down, close_after_reading_on])
@pytest.mark.parametrize("read", [0, 1_000, 3 * MEBIBYTE])
@pytest.mark.parametrize("tls", [False, True])
async def test_a_413_is_read_although_the_body_is_still_being_sent(
    authority: Authority, then: Script, read: int, *, tls: bool
) -> None:
    async def script(stream: Any) -> None:
        left = read
        while left > 0:
            left -= len(await stream.receive_some(min(left, 2**16)))
        await stream.send_all(TOO_LARGE)
        await then(stream)

    async with serving_over(script, authority if tls else None) as server:
        section = InferenceSection(url=server.url, ca_file=str(authority.ca_file) if tls else "", timeout_seconds=60)
        for _ in range(5):
            async with open_client(section) as client:
                with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RunnerError, match="413") as caught:
                    await client.infer([make_frame(content=BIG)])
            assert caught.value.code is ErrorCode.INFERENCE_REJECTED


async def test_an_interim_answer_does_not_stop_the_body() -> None:
    async def script(stream: trio.SocketStream) -> None:
        await stream.receive_some(1)
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n")
        await trio.sleep(0.05)
        received = 0
        while received < len(BIG):
            received += len(await stream.receive_some())
        await stream.send_all(response())

    assert await exchange_big(script) == [200]


async def test_a_good_answer_does_not_stop_the_body() -> None:
    """A service may begin to answer while it reads; the request goes on, and its connection stays usable."""

    async def script(stream: trio.SocketStream) -> None:
        for _ in range(2):
            whole = response()
            await stream.receive_some(1)
            await stream.send_all(whole[:-20])
            await trio.sleep(0.05)
            received = 1
            while received < len(BIG):
                received += len(await stream.receive_some())
            while stream.socket.is_readable():
                await stream.receive_some()
            await stream.send_all(whole[-20:])

    assert await exchange_big(script, times=2) == [200, 200]


async def exchange_big(script: Script, times: int = 1) -> list[int]:
    async with serving(script) as server, TrioTransport() as transport:
        statuses = [(await exchange(transport, post(server.url, BIG))).status_code for _ in range(times)]
        assert server.connections == 1
    return statuses


async def test_a_peer_that_hangs_up_without_an_answer_is_named() -> None:
    error = await failure(close, timeout_seconds=60)
    assert error.code is ErrorCode.INFERENCE_UNAVAILABLE
    assert "broke off" in error.message


# ways to a service


class Resolver(trio.abc.HostnameResolver):
    """Localhost is ::1 first."""

    async def getaddrinfo(self, host: Any, port: Any, *_: Any) -> list[Any]:
        assert host in {"localhost", b"localhost"}
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", port, 0, 0)),
            (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port)),
        ]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def test_a_localhost_that_is_ipv6_first_is_reached_at_its_other_address() -> None:
    async with serving(answers(*[response()] * 3)) as server:
        trio.socket.set_custom_hostname_resolver(Resolver())
        url = f"http://localhost:{server.port}"
        async with open_client(InferenceSection(url=url)) as client:
            await client.check()
        await send_frames(url, 3)


async def test_a_service_at_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "model.sock"
    heads: list[bytes] = []

    async def handle(stream: trio.SocketStream) -> None:
        while request := await read_request(stream):
            heads.append(request.partition(b"\r\n\r\n")[0])
            await stream.send_all(response())

    with trio.socket.socket(socket.AF_UNIX) as listener:
        await listener.bind(str(path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, handle, [trio.SocketListener(listener)])
            async with open_client(
                InferenceSection(url=f"unix:{path}", predict=PredictSection(path="/v2/find"))
            ) as client:
                await client.check()
            await send_frames(f"unix:{path}", 3, predict=PredictSection(path="/v2/find"))
            nursery.cancel_scope.cancel()
    assert [head.startswith(b"POST /v2/find HTTP/1.1\r\nHost: localhost\r\n") for head in heads] == [True] * 3


@pytest.mark.parametrize("action", ["infer", "check"])
async def test_a_unix_socket_that_is_not_there_is_unreachable(tmp_path: Path, action: str) -> None:
    async with open_client(InferenceSection(url=f"unix:{tmp_path}/none.sock")) as client:
        with pytest.raises(RunnerError, match="No such file") as caught:
            await (client.check() if action == "check" else client.infer([make_frame()]))
    assert caught.value.code is ErrorCode.INFERENCE_UNREACHABLE


async def test_a_proxy_of_the_config_is_asked_for_the_service() -> None:
    heads: list[bytes] = []

    async def script(stream: trio.SocketStream) -> None:
        heads.append(await read_request(stream))
        await stream.send_all(response())

    async with serving(script) as proxy:
        config = {"url": "http://far-away.example:8001", "proxy": proxy.url}
        async with open_client(InferenceSection(**config)) as client:  # type: ignore[arg-type]
            for number in range(3):
                await client.infer([make_frame(number)])
    assert [head.startswith(b"POST http://far-away.example:8001/predict HTTP/1.1\r\n") for head in heads] == [True] * 3


async def test_http2_is_spoken_where_the_config_says_so() -> None:
    requests: list[dict[bytes, bytes]] = []
    bodies: dict[int, int] = {}

    async def script(stream: trio.SocketStream) -> None:
        connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding=False))
        connection.initiate_connection()
        await stream.send_all(connection.data_to_send())
        while data := await stream.receive_some():
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    requests.append(dict(event.headers or ()))
                if isinstance(event, h2.events.DataReceived):
                    assert event.stream_id is not None
                    bodies[event.stream_id] = bodies.get(event.stream_id, 0) + len(event.data or b"")
                    connection.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
                if isinstance(event, h2.events.StreamEnded):
                    assert event.stream_id is not None
                    connection.send_headers(event.stream_id, [(b":status", b"200")])
                    connection.send_data(event.stream_id, ANSWER, end_stream=True)
            await stream.send_all(connection.data_to_send())

    async with serving(script) as server:
        await send_frames(server.url, 3, http2=True)
        assert server.connections == 1
    assert [(request[b":method"], request[b":path"]) for request in requests] == [(b"POST", b"/predict")] * 3
    assert [int(request[b"content-length"]) for request in requests] == list(bodies.values())


async def test_a_service_that_speaks_no_http2_is_named_with_the_key() -> None:
    async def script(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(response(b"", "400 Bad Request"))

    error = await failure(script, http2=True, timeout_seconds=60)
    assert error.code is ErrorCode.INFERENCE_UNAVAILABLE
    assert "inference.http2" in error.message

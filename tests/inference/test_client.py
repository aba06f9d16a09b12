"""The HTTP client against a server that a test scripts byte by byte."""

from __future__ import annotations

import gzip
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import trio

from tests.support.harness import PATIENCE_SECONDS, free_port
from tests.support.makers import make_frame
from trio_runner.config.inference import InferenceSection, OipSection, PredictSection
from trio_runner.errors import ErrorClass, ErrorCode, RunnerError
from trio_runner.inference.client import InferenceClient, open_client
from trio_runner.inference.protocols import open_protocol
from trio_runner.inference.statuses import MAX_RETRY_AFTER_SECONDS
from trio_runner.inference.transport import TrioTransport
from trio_runner.model import FrameResult

Script = Callable[[trio.SocketStream], Awaitable[None]]

ANSWER = json.dumps({"predictions": [{"class": "dog", "confidence": 0.5, "bbox": [1, 2, 3, 4]}]}).encode()


def http(body: bytes = ANSWER, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    head = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + body


async def read_request(stream: trio.SocketStream) -> bytes:
    """One whole request; empty when the client has closed."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = await stream.receive_some()
        if not chunk:
            return b""
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
    while len(body) < length:
        body += await stream.receive_some()
    return head + b"\r\n\r\n" + body


class Server:
    """Plays `script` on every connection, and counts them."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self.connections = 0
        self.port = 0
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    async def handle(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            try:
                await self._script(stream)
            except trio.BrokenResourceError:
                # The client hung up on us, which is what many of these tests want from it.
                return


@asynccontextmanager
async def serving(script: Script) -> AsyncIterator[Server]:
    server = Server(script)
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(partial(trio.serve_tcp, server.handle, 0, host="127.0.0.1"))
            server.port = listeners[0].socket.getsockname()[1]
            yield server
            nursery.cancel_scope.cancel()


def answers(*responses: bytes) -> Script:
    """One response after the other on one connection, each to a request."""

    async def script(stream: trio.SocketStream) -> None:
        for response in responses:
            if not await read_request(stream):
                return
            await stream.send_all(response)

    return script


async def infer(config: InferenceSection) -> FrameResult:
    async with open_client(config) as client:
        return (await client.infer([make_frame(sequence=3)]))[0]


async def failure(script: Script, **config: object) -> RunnerError:
    async with serving(script) as server:
        section = InferenceSection(url=server.url, **config)  # type: ignore[arg-type]
        async with open_client(section) as client:
            with pytest.raises(RunnerError) as caught:
                await client.infer([make_frame()])
    assert server.url in caught.value.message
    return caught.value


# what goes well


async def test_an_answer_becomes_the_frames_result() -> None:
    async with serving(answers(http())) as server:
        result = await infer(InferenceSection(url=server.url))
    assert (result.sequence, result.index, result.pts_seconds) == (3, 3, 3 / 25)
    assert [(found.label, found.bbox) for found in result.detections] == [("dog", (1.0, 2.0, 3.0, 4.0))]
    assert result.inference_ms >= 0


async def test_a_prediction_that_was_created_is_an_answer() -> None:
    async with serving(answers(http(status="201 Created"))) as server:
        assert (await infer(InferenceSection(url=server.url))).detections


async def test_an_answer_that_comes_later_is_no_answer() -> None:
    error = await failure(answers(http(status="202 Accepted")))
    assert error.code is ErrorCode.INFERENCE_REJECTED
    assert "answered 202 Accepted" in error.message
    assert "have it answer at once" in error.message


async def test_a_result_has_the_size_of_the_picture_that_its_boxes_are_in() -> None:
    """The picture that was sent is smaller."""
    async with serving(answers(http())) as server, open_client(InferenceSection(url=server.url)) as client:
        result = (await client.infer([make_frame(size=(1280, 960), sent=(640, 480))]))[0]
    assert (result.width, result.height) == (1280, 960)
    assert [found.bbox for found in result.detections] == [(2.0, 4.0, 6.0, 8.0)]


async def test_the_request_asks_for_no_compression_and_carries_no_credentials() -> None:
    seen: list[bytes] = []

    async def script(stream: trio.SocketStream) -> None:
        seen.append(await read_request(stream))
        await stream.send_all(http())

    async with serving(script) as server:
        await infer(InferenceSection(url=server.url, predict=PredictSection(path="/v2/predict", field="image")))
    head = seen[0].lower().partition(b"\r\n\r\n")[0]
    assert head.startswith(b"post /v2/predict http/1.1\r\n")
    assert f"\r\nhost: 127.0.0.1:{server.port}".encode() in head
    assert head.count(b"accept-encoding") == 1
    assert b"\r\naccept-encoding: identity" in head
    assert b"authorization" not in head
    assert b"cookie" not in head
    assert b'name="image"' in seen[0]


async def test_one_connection_serves_many_frames() -> None:
    async with serving(answers(*[http()] * 5)) as server, open_client(InferenceSection(url=server.url)) as client:
        for number in range(5):
            assert (await client.infer([make_frame(number)]))[0].sequence == number
        assert server.connections == 1


async def test_a_server_that_closes_after_every_answer_is_no_failure() -> None:
    async with serving(answers(http(ANSWER, "200 OK", "Connection: close"))) as server:
        async with open_client(InferenceSection(url=server.url)) as client:
            for number in range(5):
                await client.infer([make_frame(number)])
        assert server.connections == 5


async def test_senders_do_not_wait_for_each_others_connections() -> None:
    """All `in_flight` requests are at the server before it answers any of them."""
    in_flight = 8
    everybody = trio.Event()
    waiting = 0

    async def script(stream: trio.SocketStream) -> None:
        nonlocal waiting
        await read_request(stream)
        waiting += 1
        if waiting == in_flight:
            everybody.set()
        await everybody.wait()
        await stream.send_all(http())

    async with serving(script) as server:
        config = InferenceSection(url=server.url, in_flight=in_flight, timeout_seconds=PATIENCE_SECONDS)
        async with open_client(config) as client, trio.open_nursery() as nursery:
            for number in range(in_flight):
                nursery.start_soon(client.infer, [make_frame(number)])


async def test_a_cancelled_exchange_leaves_the_client_usable() -> None:
    """As many cancellations as there are connections, and then some: no slot may be lost (httpcore #1093)."""
    asked = trio.Event()
    silent = True

    async def script(stream: trio.SocketStream) -> None:
        while await read_request(stream):
            asked.set()
            if silent:
                await trio.sleep_forever()
            await stream.send_all(http())

    async with serving(script) as server, open_client(InferenceSection(url=server.url, in_flight=2)) as client:
        for _ in range(6):
            asked = trio.Event()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.infer, [make_frame()])
                await asked.wait()
                nursery.cancel_scope.cancel()
        silent = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.infer, [make_frame()])
            nursery.start_soon(client.infer, [make_frame()])


# statuses


@pytest.mark.parametrize(
    ("status", "code"),
    [
        ("500 Internal Server Error", ErrorCode.INFERENCE_UNAVAILABLE),
        ("502 Bad Gateway", ErrorCode.INFERENCE_UNAVAILABLE),
        ("503 Service Unavailable", ErrorCode.INFERENCE_UNAVAILABLE),
        ("504 Gateway Timeout", ErrorCode.INFERENCE_UNAVAILABLE),
        ("599", ErrorCode.INFERENCE_UNAVAILABLE),
        ("429 Too Many Requests", ErrorCode.INFERENCE_UNAVAILABLE),
        ("408 Request Timeout", ErrorCode.INFERENCE_UNAVAILABLE),
        ("425 Too Early", ErrorCode.INFERENCE_UNAVAILABLE),
        ("400 Bad Request", ErrorCode.INFERENCE_REJECTED),
        ("401 Unauthorized", ErrorCode.INFERENCE_REJECTED),
        ("404 Not Found", ErrorCode.INFERENCE_REJECTED),
        ("405 Method Not Allowed", ErrorCode.INFERENCE_REJECTED),
        ("413 Content Too Large", ErrorCode.INFERENCE_REJECTED),
        ("422 Unprocessable Content", ErrorCode.INFERENCE_REJECTED),
        ("202 Accepted", ErrorCode.INFERENCE_REJECTED),
        ("206 Partial Content", ErrorCode.INFERENCE_REJECTED),
        ("300 Multiple Choices", ErrorCode.INFERENCE_REJECTED),
    ],
)
async def test_a_status_has_one_name(status: str, code: ErrorCode) -> None:
    error = await failure(answers(http(b"", status)))
    assert error.code is code
    assert status in error.message
    permanent = code is ErrorCode.INFERENCE_REJECTED
    assert error.code.error_class is (ErrorClass.PERMANENT if permanent else ErrorClass.RETRIABLE)


@pytest.mark.parametrize("status", ["301 Moved Permanently", "302 Found", "303 See Other", "307 Temporary Redirect"])
async def test_a_redirect_is_not_followed(status: str) -> None:
    async with serving(answers(http())) as elsewhere:
        error = await failure(answers(http(b"", status, f"Location: {elsewhere.url}/predict")))
        assert elsewhere.connections == 0
    assert error.code is ErrorCode.INFERENCE_REJECTED
    assert "redirect" in error.message


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("Retry-After: 7", 7.0),
        ("Retry-After: 0", 0.0),
        ("Retry-After: 86400", MAX_RETRY_AFTER_SECONDS),
        ("Retry-After: " + "9" * 400, MAX_RETRY_AFTER_SECONDS),
        ("Retry-After: -1", None),
        ("Retry-After: 1.5", None),
        ("Retry-After: Fri, 31 Dec 2999 23:59:59 GMT", MAX_RETRY_AFTER_SECONDS),
        ("Retry-After: ", None),
        ("X-Nothing: 1", None),
    ],
)
async def test_retry_after_is_heeded_within_bounds(header: str, seconds: float | None) -> None:
    error = await failure(answers(http(b"", "503 Service Unavailable", header)))
    assert error.retry_after_seconds == seconds


# answers that are none


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>It works!</html>", b"[]", b'{"predictions": null}', b'{"predictions": [{"class": "dog"}]}'],
)
async def test_an_answer_that_is_none_is_a_bad_answer(body: bytes) -> None:
    assert (await failure(answers(http(body)))).code is ErrorCode.INFERENCE_BAD_ANSWER


async def test_an_endless_answer_is_cut_at_the_cap() -> None:
    sent = 0

    async def script(stream: trio.SocketStream) -> None:
        nonlocal sent
        await read_request(stream)
        await stream.send_all(http(b"", length=100 * 2**20))
        while True:
            await stream.send_all(b" " * 2**16)
            sent += 2**16

    error = await failure(script, max_response_bytes=2**16)
    assert error.code is ErrorCode.INFERENCE_BAD_ANSWER
    assert "max_response_bytes" in error.message
    # The client stops reading at the cap; only socket buffers hold bytes beyond it.
    assert sent < 50 * 2**20


async def test_an_answer_of_just_the_cap_is_taken() -> None:
    body = ANSWER + b" " * (1024 - len(ANSWER))
    async with serving(answers(http(body))) as server:
        assert (await infer(InferenceSection(url=server.url, max_response_bytes=1024))).detections
    error = await failure(answers(http(body + b" ")), max_response_bytes=1024)
    assert error.code is ErrorCode.INFERENCE_BAD_ANSWER


async def test_an_answer_too_many_is_not_taken_for_the_next_frames() -> None:
    """In one piece, on a connection that stays open: it lies there when the next question is asked."""
    stale = http(ANSWER.replace(b"dog", b"stale"))
    first = True

    async def script(stream: trio.SocketStream) -> None:
        nonlocal first
        while await read_request(stream):
            await stream.send_all(http() + (stale if first else b""))
            first = False

    async with (
        serving(script) as server,
        open_client(InferenceSection(url=server.url, in_flight=1)) as client,
    ):
        with pytest.raises(RunnerError, match="went on after its answer") as caught:
            await client.infer([make_frame(0)])
        assert caught.value.code is ErrorCode.INFERENCE_BAD_ANSWER
        for number in (1, 2):
            assert [found.label for found in (await client.infer([make_frame(number)]))[0].detections] == ["dog"]
        assert server.connections == 2


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "br", "identity, gzip"])
async def test_compression_that_nobody_asked_for_is_refused_unread(encoding: str) -> None:
    bomb = gzip.compress(bytes(50 * 2**20))
    error = await failure(answers(http(bomb, "200 OK", f"Content-Encoding: {encoding}")))
    assert error.code is ErrorCode.INFERENCE_BAD_ANSWER
    assert "compressed" in error.message


async def test_naming_the_identity_is_no_compression() -> None:
    async with serving(answers(http(ANSWER, "200 OK", "Content-Encoding: identity"))) as server:
        assert (await infer(InferenceSection(url=server.url))).detections


@pytest.mark.parametrize(
    "response",
    [
        b"",
        b"HTTP/1.1 200 OK\r\nContent-",
        http(ANSWER, length=len(ANSWER) + 1),
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{",
        b"\x00\x01\x02\x03 this is no HTTP\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: minus one\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"y" * 2**20,
        b"HTTP/1.1 999999 OK\r\n\r\n",
    ],
    ids=lambda response: repr(response[:50]),
)
async def test_an_exchange_that_breaks_off_is_unavailable(response: bytes) -> None:
    error = await failure(answers(response))
    assert error.code is ErrorCode.INFERENCE_UNAVAILABLE
    assert "broke off" in error.message


# one deadline for the whole


async def drip_head(stream: trio.SocketStream) -> None:
    await read_request(stream)
    await stream.send_all(b"HTTP/1.1 200 OK\r\nX: ")
    while True:
        await stream.send_all(b"y")
        await trio.sleep(0.02)


async def drip_body(stream: trio.SocketStream) -> None:
    await read_request(stream)
    await stream.send_all(http(b"", length=10_000))
    while True:
        await stream.send_all(b" ")
        await trio.sleep(0.02)


async def drip_continues(stream: trio.SocketStream) -> None:
    await read_request(stream)
    while True:
        await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n")
        await trio.sleep(0.02)


async def say_nothing(stream: trio.SocketStream) -> None:
    await read_request(stream)
    await trio.sleep_forever()


async def read_nothing(_: trio.SocketStream) -> None:
    await trio.sleep_forever()


@pytest.mark.parametrize("script", [drip_head, drip_body, drip_continues, say_nothing, read_nothing])
async def test_the_deadline_is_for_the_whole_exchange(script: Script) -> None:
    async with serving(script) as server:
        config = InferenceSection(url=server.url, timeout_seconds=0.3)
        async with open_client(config) as client:
            with pytest.raises(RunnerError) as caught:
                await client.infer([make_frame(content=bytes(10 * 2**20))])
    assert caught.value.code is ErrorCode.INFERENCE_TIMEOUT
    assert "0.3 s" in caught.value.message


# nobody there


@asynccontextmanager
async def black_hole() -> AsyncIterator[str]:
    """An address that takes no further connection and refuses none: its backlog is full, and nobody accepts."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = []
        try:
            for _ in range(4):
                client = socket.socket()
                client.settimeout(0)
                client.connect_ex(listener.getsockname())
                waiting.append(client)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for client in waiting:
                client.close()


Action = Callable[[InferenceClient], Awaitable[object]]
ACTIONS = [lambda client: client.infer([make_frame()]), lambda client: client.check()]


@pytest.mark.parametrize("action", ACTIONS, ids=["infer", "check"])
async def test_a_refused_connection_is_unreachable(action: Action) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    async with open_client(InferenceSection(url=url)) as client:
        with pytest.raises(RunnerError) as caught:
            await action(client)
    assert caught.value.code is ErrorCode.INFERENCE_UNREACHABLE
    assert url in caught.value.message
    assert caught.value.message != f"{url}: "


@pytest.mark.parametrize("action", ACTIONS, ids=["infer", "check"])
async def test_a_black_hole_is_unreachable_after_the_connect_timeout(action: Action) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with black_hole() as url, open_client(InferenceSection(url=url, connect_timeout_seconds=0.2)) as client:
            with pytest.raises(RunnerError, match="in time") as caught:
                await action(client)
    assert caught.value.code is ErrorCode.INFERENCE_UNREACHABLE


@pytest.mark.parametrize("action", ACTIONS, ids=["infer", "check"])
@pytest.mark.parametrize("host", ["no-such-host.invalid", "a" * 70 + ".invalid", "a..invalid"])
async def test_a_name_that_has_no_address_is_unreachable(action: Action, host: str) -> None:
    # A resolver without a network may be slow to say no; the timeout has the same name.
    config = InferenceSection(url=f"http://{host}:8001", connect_timeout_seconds=1.0)
    async with open_client(config) as client:
        with pytest.raises(RunnerError) as caught:
            await action(client)
    assert caught.value.code is ErrorCode.INFERENCE_UNREACHABLE


async def test_check_is_content_with_a_connection() -> None:
    async with serving(read_nothing) as server, open_client(InferenceSection(url=server.url)) as client:
        await client.check()


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(answers(http())) as proxy, serving(answers(http())) as server:
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, proxy.url)
        monkeypatch.delenv("NO_PROXY", raising=False)
        monkeypatch.delenv("no_proxy", raising=False)
        await infer(InferenceSection(url=server.url))
        assert (proxy.connections, server.connections) == (0, 1)


async def test_netrc_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password c4n4ry\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    seen: list[bytes] = []

    async def script(stream: trio.SocketStream) -> None:
        seen.append(await read_request(stream))
        await stream.send_all(http())

    async with serving(script) as server:
        await infer(InferenceSection(url=server.url))
    assert b"authorization" not in seen[0].lower()


async def test_an_error_in_the_block_comes_out_as_itself() -> None:
    with pytest.raises(KeyError, match="mine"):
        async with open_client(InferenceSection(url="http://127.0.0.1:1")):
            raise KeyError("mine")


# what a failure says, and whether it ends the attempt


async def test_an_error_is_quoted_even_if_its_body_does_not_end() -> None:
    async def script(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(http(b'no such model "a"', "422 Unprocessable Content", length=1000))
        await trio.sleep_forever()

    error = await failure(script, timeout_seconds=1.0)
    assert error.code is ErrorCode.INFERENCE_REJECTED
    assert 'answered 422 Unprocessable Content "no such model "a""' in error.message


async def test_of_an_endless_error_64_kib_are_read() -> None:
    sent = 0

    async def script(stream: trio.SocketStream) -> None:
        nonlocal sent
        await read_request(stream)
        await stream.send_all(http(b"busy\n", "503 Service Unavailable", length=100 * 2**20))
        while True:
            await stream.send_all(b" " * 2**16)
            sent += 2**16

    assert '"busy"' in (await failure(script)).message
    assert sent < 50 * 2**20


async def test_a_connection_on_which_an_error_came_serves_the_next_request() -> None:
    script = answers(http(b'{"error": "busy"}', "503 Service Unavailable"), http())
    async with serving(script) as server, open_client(InferenceSection(url=server.url, retry_seconds=20.0)) as client:
        assert (await client.infer([make_frame()]))[0].detections
        assert server.connections == 1


class AllAtOnce(httpx.AsyncBaseTransport):
    """Answers 429 to all of so many senders in the same tick of the event loop."""

    def __init__(self, senders: int) -> None:
        self._missing = senders
        self._complete = trio.Event()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self._missing -= 1
        if not self._missing:
            self._complete.set()
        await self._complete.wait()
        return httpx.Response(429, json={"error": "too many"}, request=request)


async def test_senders_that_are_refused_in_the_same_moment_fail_with_that_status() -> None:
    """The first one to fail cancels the others, which have their statuses by then."""
    config = InferenceSection(url="http://h:1")
    client = InferenceClient(
        AllAtOnce(config.in_flight), TrioTransport(), config, open_protocol(config), headers={}, query=""
    )

    async def all_senders() -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(config.in_flight):
                nursery.start_soon(client.infer, [make_frame()])

    errors: list[RunnerError] = []
    try:
        await all_senders()
    except* RunnerError as group:
        errors += [error for error in group.exceptions if isinstance(error, RunnerError)]
    assert errors
    assert {error.code for error in errors} == {ErrorCode.INFERENCE_UNAVAILABLE}
    assert all("answered 429" in error.message for error in errors)


@pytest.mark.parametrize(
    ("response", "code", "is_unclear"),
    [
        (http(b"", "413 Content Too Large"), "inference_rejected: ", False),
        (http(b"", "422 Unprocessable Content"), "inference_rejected: ", False),
        (http(b"nonsense"), "inference_bad_answer: ", False),
        (http(b'{"error": "no GPU"}'), "inference_bad_answer: ", False),
        (http(b"", "500 Internal Server Error"), "inference_unavailable: ", True),
        (None, "inference_timeout: ", True),
    ],
)
async def test_a_failure_that_may_be_the_frames_own_is_its_result_where_that_is_allowed(
    response: bytes | None, code: str, *, is_unclear: bool
) -> None:
    script = say_nothing if response is None else answers(response)
    async with serving(script) as server:
        result = await infer(InferenceSection(url=server.url, max_failed_frames=1, timeout_seconds=1.0))
    assert result.error is not None
    assert result.error.startswith(code)
    assert result.failure is not None
    assert (result.detections, result.is_unclear) == ((), is_unclear)


@pytest.mark.parametrize(
    "response",
    [
        http(b"", "401 Unauthorized"),
        http(b"", "404 Not Found"),
        http(b"", "429 Too Many Requests"),
        http(b"", "503 Service Unavailable"),
        http(ANSWER, "200 OK", "Content-Encoding: gzip"),
        http() + http(),
        b"",
    ],
    ids=lambda response: repr(response[:20]),
)
async def test_a_failure_of_the_service_ends_the_attempt_all_the_same(response: bytes) -> None:
    await failure(answers(response), max_failed_frames=1)


async def test_the_description_is_asked_for_again_and_counts_for_the_rate() -> None:
    described = json.dumps(
        {
            "name": "m",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}],
            "outputs": [{"name": name, "datatype": "FP32", "shape": [-1]} for name in ("boxes", "scores", "labels")],
        }
    ).encode()
    times: list[float] = []

    async def script(stream: trio.SocketStream) -> None:
        while await read_request(stream):
            times.append(trio.current_time())
            await stream.send_all(http(described) if len(times) > 2 else http(b"", "503 Service Unavailable"))

    async with serving(script) as server:
        config = InferenceSection(
            url=server.url, protocol="oip", oip=OipSection(model="m"), retry_seconds=20.0, requests_per_second=2.0
        )
        async with open_client(config) as client:
            await client.describe()
    assert len(times) == 3
    assert all(later - sooner >= 0.45 for sooner, later in pairwise(times))

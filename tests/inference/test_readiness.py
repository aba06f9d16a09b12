"""Waiting for a service that is still starting, in virtual time and against a real one."""

from __future__ import annotations

import time

import cv2
import numpy as np
import pytest
import trio
from trio.testing import MockClock

from tests.inference.test_client import answers, http, read_request, serving
from tests.support.fake_inference import Fault, open_fake
from tests.support.harness import free_port
from trio_runner.config.inference import InferenceSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.inference.client import open_client
from trio_runner.inference.protocols import open_protocol
from trio_runner.inference.readiness import LONGEST_PAUSE_SECONDS, readiness_call, wait_until_ready
from trio_runner.inference.statuses import InferenceError, status_error

REFUSED = InferenceError(ErrorCode.INFERENCE_UNREACHABLE, "Connection refused", transient=True)
SILENT = InferenceError(ErrorCode.INFERENCE_TIMEOUT, "no whole answer")


def status(number: int) -> InferenceError:
    return status_error(InferenceSection(), "/", [], status=number, reason="", headers={}, body=b"")


class Starting:
    """Raises `error` until it is ready after so many seconds, and `then` afterwards, if there is one."""

    def __init__(self, error: InferenceError, ready_after: float, then: InferenceError | None = None) -> None:
        self._error, self._then = error, then
        self._ready_at = trio.current_time() + ready_after
        self.times: list[float] = []
        self.waits: list[str] = []

    async def ask(self) -> None:
        await trio.lowlevel.checkpoint()
        self.times.append(trio.current_time())
        if trio.current_time() < self._ready_at:
            raise self._error
        if self._then:
            raise self._then

    async def __call__(self, *, seconds: float = 60.0, only_asks: bool = False) -> float:
        began = trio.current_time()
        await wait_until_ready(self.ask, only_asks=only_asks, seconds=seconds, on_wait=self.waits.append)
        return trio.current_time() - began


@pytest.mark.parametrize("error", [REFUSED, SILENT, *map(status, [408, 425, 429, 500, 502, 503, 504])])
async def test_a_cold_start_of_55_s_is_waited_for(autojump_clock: MockClock, error: InferenceError) -> None:
    starting = Starting(error, 55)
    assert 55 <= await starting() <= 55 + LONGEST_PAUSE_SECONDS
    assert set(starting.waits[:-1]) == {"waiting for the inference service"}
    assert starting.waits[-1] == ""
    assert 30 < len(starting.times) < 70


@pytest.mark.parametrize("number", [400, 408, 429, 500, 501, 503, 599])
async def test_a_readiness_url_that_answers_400_or_5xx_is_asked_again(autojump_clock: MockClock, number: int) -> None:
    """Triton and MLServer answer 400 while they load a model."""
    assert 55 <= await Starting(status(number), 55)(only_asks=True) <= 55 + LONGEST_PAUSE_SECONDS


@pytest.mark.parametrize("number", [302, 401, 403, 404, 405, 422])
async def test_a_readiness_url_that_refuses_the_question_is_not_asked_again(
    autojump_clock: MockClock, number: int
) -> None:
    with pytest.raises(InferenceError) as caught:
        await Starting(status(number), 1000)(only_asks=True)
    assert caught.value.status == number
    assert trio.current_time() == 0


async def test_a_model_that_is_never_ready_is_quoted_when_the_time_is_up(autojump_clock: MockClock) -> None:
    unknown = status_error(
        InferenceSection(protocol="oip"),
        "/v2/models/m/ready",
        [],
        status=400,
        reason="",
        headers={},
        body=b'{"error": "Request for unknown model"}',
    )
    with pytest.raises(InferenceError, match=r"not ready within 20 s: .*Request for unknown model.*check") as caught:
        await Starting(unknown, 1000)(seconds=20.0, only_asks=True)
    assert caught.value.code is ErrorCode.INFERENCE_UNAVAILABLE


async def test_a_service_that_is_ready_is_asked_once(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    starting = Starting(REFUSED, 0)
    assert await starting() == 0
    assert not caplog.messages
    assert len(starting.times) == 1


@pytest.mark.parametrize("number", [401, 403, 404])
@pytest.mark.parametrize("ready_after", [0, 10])
async def test_a_service_that_will_never_answer_is_not_waited_for(
    autojump_clock: MockClock, number: int, ready_after: float
) -> None:
    with pytest.raises(InferenceError) as caught:
        await Starting(status(503), ready_after, status(number))()
    assert caught.value.code is ErrorCode.INFERENCE_REJECTED
    assert trio.current_time() < 20


async def test_broken_tls_is_not_waited_for(autojump_clock: MockClock) -> None:
    with pytest.raises(InferenceError):
        await Starting(InferenceError(ErrorCode.INFERENCE_TLS, "not trusted"), 10)()


@pytest.mark.parametrize("number", [400, 413, 415, 422])
async def test_a_service_that_refuses_the_grey_picture_is_there(autojump_clock: MockClock, number: int) -> None:
    await Starting(status(503), 10, status(number))()
    with pytest.raises(InferenceError):
        await Starting(status(503), 10, status(number))(only_asks=True, seconds=20.0)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (REFUSED, ErrorCode.INFERENCE_UNREACHABLE),
        (SILENT, ErrorCode.INFERENCE_UNAVAILABLE),
        (status(503), ErrorCode.INFERENCE_UNAVAILABLE),
    ],
)
async def test_after_the_time_is_up_the_last_reason_is_named(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture, error: InferenceError, code: ErrorCode
) -> None:
    with pytest.raises(InferenceError) as caught:
        await Starting(error, 1000)(seconds=20.0)
    assert caught.value.code is code
    why = error.without_remedy
    assert caught.value.message == f"not ready within 20 s: {why}: raise inference.ready_timeout_seconds"
    assert caplog.messages == [f"waiting for the inference service, for up to 20 s: {why}"]


async def test_a_service_that_never_answers_is_named_too(autojump_clock: MockClock) -> None:
    with pytest.raises(
        InferenceError, match=r"not ready within 20 s: no answer: raise inference\.ready_timeout_seconds"
    ):
        await wait_until_ready(trio.sleep_forever, only_asks=True, seconds=20.0, on_wait=lambda _: None)


# what is sent


def test_the_picture_that_is_sent_is_grey() -> None:
    config = InferenceSection()
    call, only_asks = readiness_call(config, open_protocol(config))
    assert not only_asks
    jpeg = next(piece for piece in call.body if piece.startswith(b"\xff\xd8"))
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    assert picture.shape == (64, 64, 3)
    assert set(np.unique(picture)) == {128}


async def test_the_ready_path_is_asked_in_its_place() -> None:
    seen: list[bytes] = []

    async def script(stream: trio.SocketStream) -> None:
        while request := await read_request(stream):
            seen.append(request)
            await stream.send_all(http(b"", "503 Service Unavailable" if len(seen) < 3 else "200 OK"))

    async with serving(script) as server:
        config = InferenceSection(url=server.url, ready_timeout_seconds=20.0, ready_path="/health")
        async with open_client(config) as client:
            await client.wait_until_ready(lambda _: None)
    assert len(seen) == 3
    assert all(request.startswith(b"GET /health HTTP/1.1\r\n") for request in seen)


LLAMA = {"/v1/health": ["503 Service Unavailable", "503 Service Unavailable", "200 OK"], "/v1/models": ["200 OK"]}
OLLAMA = {"/v1/health": ["404 Not Found"], "/v1/models": ["200 OK"]}
GUARDED = {"/v1/health": ["403 Forbidden"] * 2, "/v1/models": ["503 Service Unavailable", "200 OK"]}


@pytest.mark.parametrize("statuses", [LLAMA, OLLAMA, GUARDED], ids=["llama.cpp", "ollama", "a proxy"])
async def test_a_model_that_is_loaded_is_waited_for_wherever_the_service_says_so(
    statuses: dict[str, list[str]],
) -> None:
    left = {path: list(each) for path, each in statuses.items()}

    async def script(stream: trio.SocketStream) -> None:
        while request := await read_request(stream):
            await stream.send_all(http(b"{}", left[request.split()[1].decode()].pop(0)))

    async with serving(script) as server:
        config = InferenceSection(url=server.url, ready_timeout_seconds=20.0, protocol="openai")
        async with open_client(config) as client:
            await client.wait_until_ready(lambda _: None)
    assert left["/v1/health"] == []
    assert left["/v1/models"] == (["200 OK"] if statuses is LLAMA else [])


async def test_a_key_that_the_service_refuses_is_refused_by_the_list_of_models_too() -> None:
    async def script(stream: trio.SocketStream) -> None:
        while await read_request(stream):
            await stream.send_all(http(b"{}", "401 Unauthorized"))

    async with serving(script) as server:
        config = InferenceSection(url=server.url, ready_timeout_seconds=20.0, protocol="openai")
        async with open_client(config) as client:
            with pytest.raises(InferenceError, match="401") as caught:
                await client.wait_until_ready(lambda _: None)
    assert caught.value.code is ErrorCode.INFERENCE_REJECTED


async def test_a_service_that_starts_late_is_waited_for() -> None:
    port = free_port()
    waits: list[str] = []

    async def serve_later() -> None:
        await trio.sleep(1)
        failing = [Fault.STATUS_500] * 2
        async with open_fake(port=port, plan=lambda *_: failing.pop() if failing else None):
            await trio.sleep_forever()

    config = InferenceSection(url=f"http://127.0.0.1:{port}", ready_timeout_seconds=30.0)
    async with trio.open_nursery() as nursery, open_client(config) as client:
        nursery.start_soon(serve_later)
        began = time.monotonic()
        await client.wait_until_ready(waits.append)
        assert time.monotonic() - began >= 1
        nursery.cancel_scope.cancel()
    assert waits[-1] == ""


async def test_a_service_that_does_not_become_ready_in_time_has_the_last_reason() -> None:
    config = InferenceSection(url=f"http://127.0.0.1:{free_port()}", ready_timeout_seconds=0.5)
    async with open_client(config) as client:
        with pytest.raises(RunnerError, match=r"not ready within 0\.5 s") as caught:
            await client.wait_until_ready(lambda _: None)
    assert caught.value.code is ErrorCode.INFERENCE_UNREACHABLE


async def test_an_answer_that_cannot_be_read_shows_that_the_service_is_there() -> None:
    async with (
        serving(answers(http(b"nonsense"))) as server,
        open_client(InferenceSection(url=server.url, ready_timeout_seconds=5.0)) as client,
    ):
        await client.wait_until_ready(lambda _: None)

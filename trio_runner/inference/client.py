"""The door to the inference service: one deadline for a whole exchange, a cap on the answer, a name for every error."""

from __future__ import annotations

import ssl
from contextlib import aclosing, asynccontextmanager
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Self, cast

import httpx
import trio

from trio_runner.inference import predict
from trio_runner.inference.protocol import BadAnswerError, WireProtocol
from trio_runner.model import ErrorCode, FrameResult, RunnerError

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from trio_runner.config import InferenceSection
    from trio_runner.model import Frame

PROTOCOLS: Final = MappingProxyType({"predict": cast("WireProtocol", predict)})

KEEPALIVE_SECONDS: Final = 2.0
"""Shorter than any common server's own (uvicorn 5 s, nginx 75 s): a connection that the server closes in the very
moment it is used again would look like a failing service."""

MAX_RETRY_AFTER_SECONDS: Final = 300.0
CLOSE_SECONDS: Final = 2.0
_UNAVAILABLE: Final = frozenset({408, 425, 429})


class InferenceClient:
    """Sends frames; made by `open_client`. `infer` may be called from several tasks."""

    def __init__(self, http: httpx.AsyncClient, config: InferenceSection) -> None:
        """Take the HTTP client over; `open_client` closes it."""
        self._http = http
        self._config = config
        self._protocol = PROTOCOLS[config.protocol]

    async def infer(self, frame: Frame) -> FrameResult:
        """Send one frame, wait for its detections, all within `timeout_seconds`.

        Raises:
            RunnerError: one of the `inference_*` codes; never retried here, the next attempt does that.
        """
        started = trio.current_time()
        seconds = self._config.timeout_seconds
        try:
            # httpx has timeouts per read and per write but none for the whole: a byte now and then would never end.
            with trio.fail_after(seconds):
                body = await self._exchange(self._protocol.request(self._config, frame))
        except trio.TooSlowError as error:
            raise RunnerError(
                ErrorCode.INFERENCE_TIMEOUT, f"{self._config.url} gave no whole answer within {seconds:g} s"
            ) from error
        except httpx.ConnectTimeout as error:
            raise self._unreachable("did not accept a connection in time") from error
        except httpx.ConnectError as error:
            raise self._unreachable(_root_cause(error)) from error
        except UnicodeError as error:
            raise self._unreachable(f"not a host name: {error}") from error
        except httpx.HTTPError as error:
            raise RunnerError(
                ErrorCode.INFERENCE_UNAVAILABLE,
                f"{self._config.url} broke off the exchange: {str(error) or type(error).__name__}",
            ) from error
        try:
            detections = self._protocol.detections(body, frame)
        except BadAnswerError as error:
            raise RunnerError(ErrorCode.INFERENCE_BAD_ANSWER, f"{self._config.url}: {error}") from error
        return FrameResult(
            sequence=frame.sequence,
            index=frame.index,
            pts_seconds=frame.pts_seconds,
            detections=detections,
            inference_ms=round(1000 * (trio.current_time() - started), 3),
        )

    async def check(self) -> None:
        """Raise `inference_unreachable` unless the service's address accepts a connection."""
        url = httpx.URL(self._config.url)
        port = url.port or (443 if url.scheme == "https" else 80)
        try:
            with trio.fail_after(self._config.connect_timeout_seconds):
                stream = await trio.open_tcp_stream(url.host, port)
        except trio.TooSlowError as error:
            raise self._unreachable("did not accept a connection in time") from error
        except (OSError, UnicodeError) as error:
            raise self._unreachable(_root_cause(error)) from error
        await trio.aclose_forcefully(stream)

    async def _exchange(self, request: httpx.Request) -> bytes:
        request.headers["Accept-Encoding"] = "identity"
        request.stream = _Body(request.content)
        response = await self._http.send(request, stream=True)
        try:
            self._check_status(response)
            return await self._read(response)
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await response.aclose()

    def _check_status(self, response: httpx.Response) -> None:
        status = response.status_code
        answered = f"{self._config.url} answered {status} {response.reason_phrase}".rstrip()
        if status in _UNAVAILABLE or status >= httpx.codes.INTERNAL_SERVER_ERROR:
            raise RunnerError(
                ErrorCode.INFERENCE_UNAVAILABLE, answered, retry_after_seconds=_retry_after(response.headers)
            )
        if response.is_redirect:
            raise RunnerError(
                ErrorCode.INFERENCE_REJECTED,
                f"{answered}: redirects are not followed; set inference.url to the target",
            )
        if status != httpx.codes.OK:
            raise RunnerError(ErrorCode.INFERENCE_REJECTED, f"{answered}: check inference.url, path and field")
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise RunnerError(ErrorCode.INFERENCE_BAD_ANSWER, f"{self._config.url} compressed its answer unasked")

    async def _read(self, response: httpx.Response) -> bytes:
        body = bytearray()
        async with aclosing(cast("AsyncGenerator[bytes, None]", response.aiter_raw())) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > self._config.max_response_bytes:
                    raise RunnerError(
                        ErrorCode.INFERENCE_BAD_ANSWER,
                        f"{self._config.url} answered with more than {self._config.max_response_bytes} bytes"
                        " (inference.max_response_bytes)",
                    )
        return bytes(body)

    def _unreachable(self, why: str) -> RunnerError:
        return RunnerError(ErrorCode.INFERENCE_UNREACHABLE, f"{self._config.url}: {why}")


class _Body(httpx.AsyncByteStream):
    """A whole body in one piece.

    httpx's own is an async generator, and one that a cancellation leaves half-way is closed whenever the garbage
    collector finds it, with a warning from Trio.
    """

    def __init__(self, content: bytes) -> None:
        self._content: bytes | None = content

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        content, self._content = self._content, None
        if content is None:
            raise StopAsyncIteration
        return content


@asynccontextmanager
async def open_client(config: InferenceSection) -> AsyncIterator[InferenceClient]:
    """A client for one service: no proxies or credentials from the environment, no redirects."""
    http = httpx.AsyncClient(
        verify=ssl.create_default_context() if config.url.startswith("https:") else False,
        trust_env=False,
        follow_redirects=False,
        timeout=httpx.Timeout(None, connect=config.connect_timeout_seconds),
        # As many connections as senders: a sender must never wait for a slot (httpcore #1093 loses slots then).
        limits=httpx.Limits(
            max_connections=config.in_flight,
            max_keepalive_connections=config.in_flight,
            keepalive_expiry=KEEPALIVE_SECONDS,
        ),
    )
    try:
        yield InferenceClient(http, config)
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await http.aclose()


def _root_cause(error: BaseException) -> str:
    """What the system said: httpx and Trio wrap it into "all attempts to connect failed"."""
    while (deeper := error.__cause__ or error.__context__) is not None or isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0] if isinstance(error, BaseExceptionGroup) else deeper or error
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _retry_after(response_headers: httpx.Headers) -> float | None:
    """Retry-After in seconds, at most five minutes; its date form is ignored, since clocks differ."""
    value = response_headers.get("Retry-After", "")
    return min(float(value), MAX_RETRY_AFTER_SECONDS) if value.isdecimal() else None

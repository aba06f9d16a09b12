"""The client of the inference service: one deadline for an exchange, a limit for its answer, a code for every error."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Final, cast

import httpx
import trio

from trio_runner.config.address import http_base, socket_path
from trio_runner.config.credentials import tls_context
from trio_runner.config.tls import causes, tls_problem
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.inference.answer import BadAnswerError
from trio_runner.inference.credentials import read_headers, read_labels, read_prompt, read_query, with_field_files
from trio_runner.inference.http1 import ExtraDataError
from trio_runner.inference.protocol import Answer
from trio_runner.inference.protocols import open_protocol
from trio_runner.inference.transport import KEEPALIVE_SECONDS, Body, TrioTransport
from trio_runner.model import FrameResult

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence

    from trio_runner.config.inference import InferenceSection
    from trio_runner.inference.protocol import Call, WireProtocol
    from trio_runner.model import Frame

MAX_RETRY_AFTER_SECONDS: Final = 300.0
CLOSE_SECONDS: Final = 2.0
VERDICT_SECONDS: Final = 0.2
"""How long the preflight listens after the handshake. A service that does not accept our certificate hangs up within
one round trip; any other sends nothing. A refusal that takes longer is found by the first frame."""
_UNAVAILABLE: Final = frozenset({408, 425, 429})
_UNAUTHORISED: Final = frozenset({401, 403})


class InferenceClient:
    """Sends frames; made by `open_client`. `infer` may be called from several tasks."""

    def __init__(
        self,
        transport: httpx.AsyncBaseTransport,
        connector: TrioTransport,
        config: InferenceSection,
        protocol: WireProtocol,
        *,
        headers: Mapping[str, str],
        query: str,
    ) -> None:
        """Use these transports, which `open_client` closes: one for frames, one for `check`.

        `headers` and `query` are added to every request.
        """
        self._transport = transport
        self._connector = connector
        self._config = config
        self._protocol = protocol
        self._headers, self._query = headers, query
        self._extensions = {"timeout": httpx.Timeout(None, connect=config.connect_timeout_seconds).as_dict()}

    @property
    def max_frames(self) -> int:
        """How many frames `infer` takes at once."""
        return self._protocol.max_frames

    async def infer(self, frames: Sequence[Frame]) -> list[FrameResult]:
        """Send frames in one request and wait for their detections, all within `timeout_seconds`.

        Raises:
            RunnerError: One of the `inference_*` codes. A frame is not sent again; the next attempt does that.
        """
        started = trio.current_time()
        seconds = self._config.timeout_seconds
        try:
            # httpx has timeouts for each read and write, but none for the whole exchange: a service that sends a byte
            # now and then could keep it up for ever.
            with trio.fail_after(seconds):
                answer = await self._exchange(self._protocol.call(frames))
        except trio.TooSlowError as error:
            raise RunnerError(
                ErrorCode.INFERENCE_TIMEOUT,
                f"{self._config.url} gave no whole answer within {seconds:g} s. Lower inference.in_flight, or raise "
                "inference.timeout_seconds",
            ) from error
        except (httpx.HTTPError, UnicodeError) as error:
            raise self._named(error) from error
        try:
            readings = self._protocol.read(answer, frames)
        except BadAnswerError as error:
            raise RunnerError(ErrorCode.INFERENCE_BAD_ANSWER, f"{self._config.url}: {error}") from error
        milliseconds = round(1000 * (trio.current_time() - started), 3)
        return [
            FrameResult(
                sequence=frame.sequence,
                index=frame.index,
                pts_seconds=frame.pts_seconds,
                width=frame.width,
                height=frame.height,
                detections=reading.detections,
                clipped=reading.clipped,
                tokens=reading.tokens,
                inference_ms=milliseconds,
            )
            for frame, reading in zip(frames, readings, strict=True)
        ]

    async def check(self) -> None:
        """Connect, and for https shake hands, within `connect_timeout_seconds`; no request is sent.

        Raises:
            RunnerError: `inference_unreachable` or `inference_tls`.
        """
        url = httpx.URL(self._config.proxy or http_base(self._config.url))
        try:
            connection = await self._connector.connect(url, self._config.connect_timeout_seconds)
        except (httpx.HTTPError, UnicodeError) as error:
            raise self._named(error) from error
        try:
            if url.scheme == "https":
                await self._await_verdict(connection.stream)
        finally:
            connection.close()

    async def _await_verdict(self, stream: trio.abc.ReceiveStream) -> None:
        """Wait whether the service refuses our certificate: with TLS 1.3 it checks it only after the handshake."""
        with trio.move_on_after(VERDICT_SECONDS):
            cause: trio.BrokenResourceError | None = None
            try:
                if await stream.receive_some(1):
                    return
            except trio.BrokenResourceError as error:
                cause = error
            why = "it hung up right after the TLS handshake: does it want another inference.certificate_file?"
            refused = RunnerError(ErrorCode.INFERENCE_TLS, f"{self._config.url}: {why}")
            raise (cause and self._broken_tls(cause)) or refused from cause

    async def _exchange(self, call: Call) -> Answer:
        address = http_base(self._config.url) + call.path
        if self._query:
            address += ("&" if "?" in call.path else "?") + self._query
        request = httpx.Request(
            call.method, address, headers=self._headers, stream=Body(*call.body), extensions=self._extensions
        )
        request.headers.update(
            {
                "Host": request.url.netloc.decode(),
                "Accept-Encoding": "identity",
                "Content-Length": str(sum(map(len, call.body))),
                **dict(call.headers),
            }
        )
        response = await self._transport.handle_async_request(request)
        try:
            self._check_status(response)
            return Answer(response.headers, await self._read(response))
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
        if status in _UNAUTHORISED:
            raise RunnerError(ErrorCode.INFERENCE_REJECTED, f"{answered}: check the token in inference.token_file")
        if status != httpx.codes.OK:
            raise RunnerError(
                ErrorCode.INFERENCE_REJECTED, f"{answered}: check inference.url and [inference.{self._config.protocol}]"
            )
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise RunnerError(ErrorCode.INFERENCE_BAD_ANSWER, f"{self._config.url} compressed its answer unasked")

    async def _read(self, response: httpx.Response) -> bytes:
        limit = self._config.max_response_bytes or self._protocol.max_answer_bytes
        body = bytearray()
        # The streams of httpx's own transport are async generators, which have to be closed here.
        stream = cast("httpx.AsyncByteStream", response.stream)
        async with aclosing(cast("AsyncGenerator[bytes, None]", aiter(stream))) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > limit:
                    raise RunnerError(
                        ErrorCode.INFERENCE_BAD_ANSWER,
                        f"{self._config.url} answered with more than {limit} bytes (inference.max_response_bytes)",
                    )
        return bytes(body)

    def _named(self, error: httpx.HTTPError | UnicodeError) -> RunnerError:
        if isinstance(error, UnicodeError):
            return self._unreachable(f"not a host name: {error}")
        if isinstance(error, httpx.ConnectTimeout):
            return self._unreachable("did not accept a connection in time")
        if isinstance(error, ExtraDataError):
            return RunnerError(ErrorCode.INFERENCE_BAD_ANSWER, f"{self._config.url} {error}")
        if broken := self._broken_tls(error):
            return broken
        if isinstance(error, httpx.ConnectError):
            return self._unreachable(_root_cause(error))
        return RunnerError(
            ErrorCode.INFERENCE_UNAVAILABLE,
            f"{self._config.url} broke off the exchange: {str(error) or type(error).__name__}"
            + ("; does it speak HTTP/2 (inference.http2)?" if self._config.http2 else ""),
        )

    def _broken_tls(self, error: BaseException) -> RunnerError | None:
        problem = tls_problem(error, "inference")
        return RunnerError(ErrorCode.INFERENCE_TLS, f"{self._config.url}: {problem}") if problem else None

    def _unreachable(self, why: str) -> RunnerError:
        return RunnerError(ErrorCode.INFERENCE_UNREACHABLE, f"{self._config.url}: {why}")


@asynccontextmanager
async def open_client(config: InferenceSection) -> AsyncIterator[InferenceClient]:
    """A client for one service: no proxies or credentials from the environment, no redirects.

    Raises:
        RunnerError: `credential_unreadable`: a certificate, or a file with a secret or with the labels.
    """
    tls = await tls_context(config, "inference") if config.url.startswith("https:") else None
    headers, query = await read_headers(config), await read_query(config)
    protocol = open_protocol(await with_field_files(await read_prompt(config)), await read_labels(config))
    ours = TrioTransport(tls=tls, socket_path=socket_path(config.url), max_idle=config.in_flight)
    transport = _httpx_transport(config, tls) if config.proxy or config.http2 else ours
    try:
        yield InferenceClient(transport, ours, config, protocol, headers=headers, query=query)
    finally:
        with trio.move_on_after(CLOSE_SECONDS, shield=True):
            await transport.aclose()


def _httpx_transport(config: InferenceSection, tls: ssl.SSLContext | None) -> httpx.AsyncBaseTransport:
    return httpx.AsyncHTTPTransport(
        verify=tls or False,
        trust_env=False,
        http1=not config.http2,
        http2=config.http2,
        proxy=config.proxy or None,
        # As many connections as senders, so that no sender waits for one: httpcore would lose connections (#1093).
        limits=httpx.Limits(
            max_connections=config.in_flight,
            # By HTTP/1.1, httpcore may take what comes behind an answer for the answer to the next request.
            max_keepalive_connections=config.in_flight if config.http2 else 0,
            keepalive_expiry=KEEPALIVE_SECONDS,
        ),
    )


def _root_cause(error: BaseException) -> str:
    """The system's own error, which httpx and Trio wrap into "all attempts to connect failed"."""
    *_, error = causes(error)
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__


def _retry_after(response_headers: httpx.Headers) -> float | None:
    """Retry-After in seconds, at most five minutes; its date form is ignored, since clocks differ."""
    value = response_headers.get("Retry-After", "")
    return min(float(value), MAX_RETRY_AFTER_SECONDS) if value.isdecimal() else None

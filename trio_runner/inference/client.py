"""The client of the inference service: one deadline for an exchange, a limit for its answer, a code for every error."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Final, cast

import httpx
import trio

from trio_runner.config.address import http_base, socket_path
from trio_runner.config.credentials import tls_context
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.inference.answer import BadAnswerError
from trio_runner.inference.credentials import read_headers, read_labels, read_prompt, read_query, with_field_files
from trio_runner.inference.protocol import Answer, DescribedProtocol, Reading
from trio_runner.inference.protocols import open_protocol
from trio_runner.inference.readiness import ask_or_otherwise, readiness_call, wait_until_ready
from trio_runner.inference.recording import Exchange, Recorder
from trio_runner.inference.retrying import Sending
from trio_runner.inference.statuses import MAX_COMPLAINT_BYTES, SUCCESSES, Blame, InferenceError, status_error
from trio_runner.inference.transport import KEEPALIVE_SECONDS, Body, TrioTransport
from trio_runner.inference.transport_errors import broken_tls, transport_error
from trio_runner.model import FrameResult

if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence

    from trio_runner.config.inference import InferenceSection
    from trio_runner.inference.protocol import Call, WireProtocol
    from trio_runner.model import Frame

CLOSE_SECONDS: Final = 2.0
VERDICT_SECONDS: Final = 0.2
"""How long the preflight listens after the handshake. A service that does not accept our certificate hangs up within
one round trip; any other sends nothing. A refusal that takes longer is found by the first frame."""
COMPLAINT_SECONDS: Final = 2.0
"""How long the body of an error may take; it is only quoted."""


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
        self._sending = Sending(config)

    @property
    def max_frames(self) -> int:
        """How many frames `infer` takes at once."""
        return self._protocol.max_frames

    async def infer(self, frames: Sequence[Frame]) -> list[FrameResult]:
        """Send frames in one request and wait for their detections: each exchange within `timeout_seconds`.

        The request is sent again for `retry_seconds` where the service may answer it later. If `max_failed_frames`
        allows it, a failure that may be the fault of these frames is their result.

        Raises:
            RunnerError: One of the `inference_*` codes. The next attempt sends these frames again.
        """
        started = trio.current_time()

        async def ask() -> Sequence[Reading]:
            nonlocal started
            started = trio.current_time()
            answer = await self._in_time(self._protocol.call(frames), frames)
            try:
                return self._protocol.read(answer, frames)
            except BadAnswerError as error:
                raise InferenceError(
                    ErrorCode.INFERENCE_BAD_ANSWER, f"{self._config.url}: {error}", blame=Blame.FRAME
                ) from error

        failure: InferenceError | None = None
        try:
            readings = await self._sending.persistently(ask)
        except InferenceError as error:
            if error.blame is Blame.SERVICE or not self._config.max_failed_frames:
                raise
            failure, readings = error, [Reading(())] * len(frames)
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
                error=str(failure) if failure else None,
                failure=failure,
                is_unclear=failure is not None and failure.blame is Blame.UNCLEAR,
            )
            for frame, reading in zip(frames, readings, strict=True)
        ]

    async def wait_until_ready(self, on_wait: Callable[[str], None]) -> None:
        """Ask the service whether it is ready, for `ready_timeout_seconds`.

        Args:
            on_wait: Called with what is being waited for, and with "" at the end.

        Raises:
            RunnerError: One of the `inference_*` codes.
        """
        call, only_asks = readiness_call(self._config, self._protocol)
        await wait_until_ready(
            partial(self._sending.once, partial(ask_or_otherwise, self._in_time, call)),
            only_asks=only_asks,
            seconds=self._config.ready_timeout_seconds,
            on_wait=on_wait,
        )

    async def describe(self) -> None:
        """Compare the config with what the service says about itself, where the protocol has a request for that.

        The request counts for the rate, and is sent again, like that of a frame.

        Raises:
            RunnerError: `inference_rejected` if they do not fit; any of the `inference_*` codes.
        """
        protocol = self._protocol
        if not isinstance(protocol, DescribedProtocol) or (call := protocol.description()) is None:
            return
        answer = await self._sending.persistently(partial(self._in_time, call))
        try:
            self._protocol = protocol.described(answer)
        except BadAnswerError as error:
            raise RunnerError(ErrorCode.INFERENCE_REJECTED, f"{self._config.url}{call.path}: {error}") from error

    async def check(self) -> None:
        """Connect, and for https shake hands, within `connect_timeout_seconds`; no request is sent.

        Raises:
            RunnerError: `inference_unreachable` or `inference_tls`.
        """
        url = httpx.URL(self._config.proxy or http_base(self._config.url))
        try:
            connection = await self._connector.connect(url, self._config.connect_timeout_seconds)
        except (httpx.HTTPError, UnicodeError) as error:
            raise transport_error(self._config, error) from error
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
            raise (cause and broken_tls(self._config.url, cause)) or refused from cause

    async def _in_time(self, call: Call, frames: Sequence[Frame] = ()) -> Answer:
        """One exchange within `timeout_seconds`; raises InferenceError."""
        seconds = self._config.timeout_seconds
        try:
            # httpx has timeouts for each read and write, but none for the whole exchange: a service that sends a byte
            # now and then could keep it up for ever.
            with trio.fail_after(seconds):
                return await self._exchange(call, frames)
        except trio.TooSlowError as error:
            raise InferenceError(
                ErrorCode.INFERENCE_TIMEOUT,
                f"{self._config.url} gave no whole answer within {seconds:g} s. Lower inference.in_flight, or raise "
                "inference.timeout_seconds",
                blame=Blame.UNCLEAR,
            ) from error
        except (httpx.HTTPError, UnicodeError) as error:
            raise transport_error(self._config, error) from error

    async def _exchange(self, call: Call, frames: Sequence[Frame]) -> Answer:
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
            if response.status_code not in SUCCESSES:
                raise status_error(
                    self._config,
                    call.path,
                    frames,
                    status=response.status_code,
                    reason=response.reason_phrase,
                    headers=response.headers,
                    body=await self._read_complaint(response),
                )
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise InferenceError(
                    ErrorCode.INFERENCE_BAD_ANSWER, f"{self._config.url} compressed its answer unasked"
                )
            return Answer(response.headers, await self._read(response))
        finally:
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await response.aclose()

    async def _read_complaint(self, response: httpx.Response) -> bytes:
        """The body of an error, or as much of it as comes in a short time; empty if it is compressed."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            return b""
        now = trio.current_time()
        # The status is known by now, and must not be lost to the deadline of the exchange. After another sender has
        # failed, this task is cancelled and the effective deadline is -inf.
        seconds = max(0.0, min(COMPLAINT_SECONDS, (trio.current_effective_deadline() - now) / 2))
        body = bytearray()
        stream = cast("httpx.AsyncByteStream", response.stream)
        with trio.move_on_after(seconds), suppress(httpx.HTTPError):
            async with aclosing(cast("AsyncGenerator[bytes, None]", aiter(stream))) as chunks:
                async for chunk in chunks:
                    body += chunk
                    if len(body) >= MAX_COMPLAINT_BYTES:
                        break
        return bytes(body[:MAX_COMPLAINT_BYTES])

    async def _read(self, response: httpx.Response) -> bytes:
        limit = self._config.max_response_bytes or self._protocol.max_answer_bytes
        body = bytearray()
        # The streams of httpx's own transport are async generators, which have to be closed here.
        stream = cast("httpx.AsyncByteStream", response.stream)
        async with aclosing(cast("AsyncGenerator[bytes, None]", aiter(stream))) as chunks:
            async for chunk in chunks:
                body += chunk
                if len(body) > limit:
                    raise InferenceError(
                        ErrorCode.INFERENCE_BAD_ANSWER,
                        f"{self._config.url} answered with more than {limit} bytes (inference.max_response_bytes)",
                        blame=Blame.FRAME,
                    )
        return bytes(body)


@asynccontextmanager
async def open_client(
    config: InferenceSection, *, exchanges: list[Exchange] | None = None
) -> AsyncIterator[InferenceClient]:
    """A client for one service: no proxies or credentials from the environment, no redirects.

    Args:
        config: The service.
        exchanges: Every exchange is recorded here, for people to look at.

    Raises:
        RunnerError: `credential_unreadable`: a certificate, or a file with a secret or with the labels.
    """
    tls = await tls_context(config, "inference") if config.url.startswith("https:") else None
    headers, query = await read_headers(config), await read_query(config)
    protocol = open_protocol(await with_field_files(await read_prompt(config)), await read_labels(config))
    ours = TrioTransport(tls=tls, socket_path=socket_path(config.url), max_idle=config.in_flight)
    transport = _httpx_transport(config, tls) if config.proxy or config.http2 else ours
    if exchanges is not None:
        transport = Recorder(transport, exchanges)
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

"""Asks a service harmless questions, each within a short time, to find out what it is."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Final, cast

import httpx
import trio

from trio_runner.config.address import http_base, socket_path
from trio_runner.config.credentials import tls_context
from trio_runner.config.tls import causes
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.inference.credentials import read_headers
from trio_runner.inference.recognise import QUESTIONS, models_in
from trio_runner.inference.replies import Reply
from trio_runner.inference.transport import Body, TrioTransport
from trio_runner.inference.transport_errors import transport_error

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Sequence

    from trio_runner.config.inference import InferenceSection

QUESTION_SECONDS: Final = 3.0
MAX_BODY_BYTES: Final = 2**20
"""So much of an answer is read; the description of a large API takes a few hundred KiB."""


async def ask(config: InferenceSection) -> tuple[dict[str, Reply], dict[str, str]]:
    """The answers by question, and for each question without an answer the reason.

    No picture is sent, and nothing that a service would count as inference. Redirects are not followed.

    Args:
        config: The address, the token and the certificates.

    Raises:
        RunnerError: `credential_unreadable`; `inference_unreachable` or `inference_tls` where no connection is made.
    """
    tls = await tls_context(config, "inference") if config.url.startswith("https:") else None
    headers = await read_headers(config)
    transport = TrioTransport(tls=tls, socket_path=socket_path(config.url), max_idle=1)
    replies: dict[str, Reply] = {}
    missing: dict[str, str] = {}

    async def put(questions: Sequence[str]) -> None:
        for question in questions:
            try:
                with trio.fail_after(QUESTION_SECONDS):
                    replies[question] = await _reply(transport, http_base(config.url), question, headers)
            except trio.TooSlowError:
                missing[question] = f"no answer within {QUESTION_SECONDS:g} s"
            except (httpx.ConnectError, UnicodeError) as error:
                if not replies:
                    raise _no_connection(config, error) from error
                missing[question] = f"no connection: {error}"
                # The others would fail as well.
                return
            except httpx.HTTPError as error:
                missing[question] = str(error) or type(error).__name__

    try:
        await put(QUESTIONS)
        await put([f"GET /v2/models/{model}" for model in models_in(replies)])
    finally:
        with trio.move_on_after(1, shield=True):
            await transport.aclose()
    return replies, missing


def _no_connection(config: InferenceSection, error: httpx.ConnectError | UnicodeError) -> RunnerError:
    if any(isinstance(cause, ConnectionRefusedError) for cause in causes(error)):
        return RunnerError(ErrorCode.INFERENCE_UNREACHABLE, f"{config.url}: nothing listens there")
    return transport_error(config, error)


async def _reply(transport: TrioTransport, base: str, question: str, headers: dict[str, str]) -> Reply:
    method, _, path = question.partition(" ")
    content = b"{}" if method == "POST" else b""
    url = httpx.URL(base + path)
    request = httpx.Request(method, url, headers=headers, stream=Body(content))
    request.headers.update(
        {
            "Host": url.netloc.decode(),
            "Accept-Encoding": "identity",
            "Content-Length": str(len(content)),
            **({"Content-Type": "application/json"} if content else {}),
        }
    )
    response = await transport.handle_async_request(request)
    body = bytearray()
    try:
        stream = cast("httpx.AsyncByteStream", response.stream)
        async with aclosing(cast("AsyncGenerator[bytes, None]", aiter(stream))) as pieces:
            async for piece in pieces:
                body += piece
                if len(body) > MAX_BODY_BYTES:
                    break
    finally:
        with trio.move_on_after(1, shield=True):
            await response.aclose()
    return Reply(response.status_code, dict(response.headers.items()), bytes(body[:MAX_BODY_BYTES]))

"""Waits for a service that is still starting, so that a cold start is no failure."""

from __future__ import annotations

import logging
import random
from base64 import b64decode
from typing import TYPE_CHECKING, Final

import trio

from trio_runner.errors import ErrorCode
from trio_runner.inference.protocol import Call
from trio_runner.inference.statuses import ABSENT, InferenceError
from trio_runner.model import Frame

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_runner.config.inference import InferenceSection
    from trio_runner.inference.protocol import WireProtocol

logger = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 2.0
BAD_REQUEST: Final = 400
SERVER_ERROR: Final = 500

_GREY_SIDE: Final = 64
_GREY_JPEG: Final = b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDABALDA4MChAODQ4SERATGCgaGBYWGDEjJR0oOjM9PDkzODdASFxOQERXRTc4UG1RV19iZ2hnPk1xeXBk"
    "eFxlZ2P/2wBDARESEhgVGC8aGi9jQjhCY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2NjY2P/wAARCABAAEAD"
    "ASIAAhEBAxEB/8QAFAABAAAAAAAAAAAAAAAAAAAAAP/EABQQAQAAAAAAAAAAAAAAAAAAAAD/xAAUAQEAAAAAAAAAAAAAAAAAAAAA/8QAFBEBAAAA"
    "AAAAAAAAAAAAAAAAAP/aAAwDAQACEQMRAD8AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA/9k="
)
"""A grey picture of 64 × 64 pixels: nothing of the video leaves before the scenario is claimed."""


def readiness_call(config: InferenceSection, protocol: WireProtocol) -> tuple[Call, bool]:
    """The request that asks whether the service is ready, and whether it is one that only asks.

    The other kind sends a grey picture. A service that is ready may refuse that one, as too small for example.
    """
    if config.ready_path:
        return Call(path=config.ready_path, method="GET"), True
    if call := protocol.readiness():
        return call, True
    grey = Frame(
        sequence=0,
        index=0,
        pts_seconds=0.0,
        width=_GREY_SIDE,
        height=_GREY_SIDE,
        sent_width=_GREY_SIDE,
        sent_height=_GREY_SIDE,
        content=_GREY_JPEG,
    )
    return protocol.call([grey]), False


async def ask_or_otherwise(send: Callable[[Call], Awaitable[object]], call: Call) -> None:
    """Send the request, and `call.otherwise` where the status says that the service does not take the first one.

    A proxy that only lets the paths of the API through may answer 401 or 403 to any other.

    Raises:
        InferenceError: By `send`.
    """
    try:
        await send(call)
    except InferenceError as error:
        is_refused = 300 <= error.status < 500 and not error.transient  # noqa: PLR2004 - redirects and refusals
        if call.otherwise is None or not is_refused:
            raise
        await send(call.otherwise)


async def wait_until_ready(
    ask: Callable[[], Awaitable[object]], *, only_asks: bool, seconds: float, on_wait: Callable[[str], None]
) -> None:
    """Call `ask` until the service is ready, with a pause of 0.25 to 2 s after each call.

    The first failure is logged, because nothing else shows that the runner waits.

    Args:
        ask: Sends one request, in bounded time; raises InferenceError.
        only_asks: Whether the request only asks whether the service is ready. Then a 400 and any 5xx mean that it is
            not: Triton and MLServer answer 400 until the model is loaded.
        seconds: For how long.
        on_wait: Called with what is being waited for, before each further call, and with "" at the end.

    Raises:
        InferenceError: The service will not become ready, as after a 404, or is not ready in time.
    """
    last: InferenceError | None = None
    longest = FIRST_PAUSE_SECONDS
    with trio.move_on_after(seconds):
        while True:
            try:
                await ask()
            except InferenceError as error:
                if not _is_starting(error, only_asks=only_asks):
                    if error.status in ABSENT or not error.status or only_asks:
                        raise
                    break
                if last is None:
                    logger.warning(
                        "waiting for the inference service, for up to %g s: %s", seconds, error.without_remedy
                    )
                last = error
            else:
                break
            on_wait("waiting for the inference service")
            await trio.sleep(longest * random.uniform(0.5, 1.0))  # noqa: S311 - jitter
            longest = min(2 * longest, LONGEST_PAUSE_SECONDS)
        on_wait("")
        return
    late, remedy = f"not ready within {seconds:g} s", "raise inference.ready_timeout_seconds"
    if last is None:
        raise InferenceError(ErrorCode.INFERENCE_UNAVAILABLE, f"{late}: no answer", remedy=remedy)
    if last.status == BAD_REQUEST:
        remedy += ", or check inference.url and the name of the model"
    is_there = last.status or last.code is ErrorCode.INFERENCE_TIMEOUT
    code = ErrorCode.INFERENCE_UNAVAILABLE if is_there else last.code
    raise InferenceError(code, f"{late}: {last.without_remedy}", remedy=remedy) from last


def _is_starting(error: InferenceError, *, only_asks: bool) -> bool:
    if only_asks and (error.status == BAD_REQUEST or error.status >= SERVER_ERROR):
        return True
    return error.transient or error.code is ErrorCode.INFERENCE_TIMEOUT

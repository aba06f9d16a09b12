"""The bridge to asyncio libraries: a typed call, a bounded close, and the loop in which both run.

This is the only file that imports asyncio or trio_asyncio. A cancelled Trio scope raises `Cancelled` at every await; a
cancelled asyncio task gets one `CancelledError` and no second. Callers therefore keep three rules:

- a function that asyncio runs uses no Trio scope;
- one call acquires a resource and releases it again, because a second call might never run;
- a call in a cancelled scope does not even start, so every clean-up is shielded from cancellation, and bounded.
"""

from __future__ import annotations

import asyncio
import logging
import warnings
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import trio

with warnings.catch_warnings():
    # On 3.12 and 3.13 importing trio_asyncio 0.16 touches asyncio's deprecated child watchers.
    warnings.simplefilter("ignore", DeprecationWarning)
    import trio_asyncio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class LibraryCancelledError(Exception):
    """The library cancelled its own call. Nobody on Trio's side asked for that, so here it is an ordinary error."""


@asynccontextmanager
async def open_loop() -> AsyncIterator[None]:
    """Run an asyncio loop inside this Trio task. Open it first, so that every client is closed before the loop.

    If the task already runs inside such a loop, ours or the application's, calls use that one. The application's loop
    may look a host name up for longer than a call's deadline.
    """
    if trio_asyncio.current_loop.get() is not None:
        yield
        return
    async with trio_asyncio.open_loop() as loop:
        # By default trio_asyncio ends the loop on an error that no task awaits, and without the loop no failure can be
        # reported. asyncpg leaves such an error behind if the server refuses its request to cancel a query.
        loop.set_exception_handler(_log_stray_error)
        loop.set_default_executor(_AbandoningExecutor())
        yield


class _AbandoningExecutor(trio_asyncio.TrioExecutor):  # type: ignore[misc]  # published without types
    """Leaves its threads behind at a deadline: one that looks a host name up may take long, and cannot be ended."""

    async def submit(self, func: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(func, *args, limiter=self._limiter, abandon_on_cancel=True)


def _log_stray_error(_: object, context: dict[str, Any]) -> None:
    """Log an error that no task awaits, instead of ending the loop."""
    error = context.get("exception")
    logger.warning("asyncio: %s (%r)", context.get("message"), error)
    logger.debug("asyncio: %s", context, exc_info=error)


async def call(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await an asyncio-flavoured function from Trio.

    Raises:
        LibraryCancelledError: the library cancelled itself; a cancellation by a Trio scope stays `trio.Cancelled`.
    """
    # A library may swallow the one cancellation that asyncio delivers. A loop of such calls then ends here, at the next
    # call. This check must not come after the call: its result, perhaps a connection, would be lost.
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        result: T = await trio_asyncio.aio_as_trio(function)(*args, **kwargs)
    except asyncio.CancelledError as error:
        raise LibraryCancelledError(  # noqa: ASYNC104 - our own cancellations arrive as trio.Cancelled
            f"{getattr(function, '__qualname__', function)} cancelled itself"
        ) from error
    return result


async def close(function: Callable[[], Awaitable[object]], *, seconds: float) -> bool:
    """Run a clean-up shielded from cancellation, for at most `seconds`; return False if it failed or took longer.

    It raises nothing, so that the error which led to the clean-up is not replaced.
    """
    with trio.move_on_after(seconds, shield=True) as scope:
        try:
            await call(function)
        except Exception as error:  # noqa: BLE001 - any library's, and nothing is left to do about it
            logger.debug("closing failed: %r", error)
            return False
    # `cancelled_caught` would be False if a library swallowed the cancellation.
    return not scope.cancel_called

"""The bridge to asyncio libraries: a typed call, a bounded close, and the loop they run in.

This is the only file that imports asyncio or trio_asyncio. The rules that its callers live by, because an asyncio task
sees one edge-triggered cancellation where Trio has a level-triggered scope:

- no Trio scope inside a function that asyncio runs;
- a whole verb in one call: what a verb acquires it also releases, since the second half of a pair may never run;
- an asyncio call made in a cancelled scope does not even start, so every clean-up is shielded, and bounded.
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
    """The library cancelled its own call: an ordinary error here, since nobody on Trio's side asked for it."""


@asynccontextmanager
async def open_loop() -> AsyncIterator[None]:
    """Run an asyncio loop inside this Trio task, outermost, so that every client is closed before it.

    Where the task already lives in such a loop, ours or an application's, that one serves; an application's waits for
    names to be looked up whatever the deadline.
    """
    if trio_asyncio.current_loop.get() is not None:
        yield
        return
    async with trio_asyncio.open_loop() as loop:
        # By default an error that no task waits for ends the loop, and with it the only way to report a failure.
        # asyncpg leaves one behind when a query is cancelled and its cancel request is refused.
        loop.set_exception_handler(_log_stray_error)
        loop.set_default_executor(_AbandoningExecutor())
        yield


class _AbandoningExecutor(trio_asyncio.TrioExecutor):  # type: ignore[misc]  # published without types
    """Its threads are left behind at a deadline: one that looks up a host name cannot be ended, and may take long."""

    async def submit(self, func: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(func, *args, limiter=self._limiter, abandon_on_cancel=True)


def _log_stray_error(_: object, context: dict[str, Any]) -> None:
    error = context.get("exception")
    logger.warning("asyncio: %s (%r)", context.get("message"), error)
    logger.debug("asyncio: %s", context, exc_info=error)


async def call(function: Callable[P, Awaitable[T]], *args: P.args, **kwargs: P.kwargs) -> T:
    """Await an asyncio-flavoured function from Trio.

    Raises:
        LibraryCancelledError: the library cancelled itself; a cancellation by a Trio scope stays `trio.Cancelled`.
    """
    # Not after the call: what it gives back, a connection perhaps, would be lost. So a loop of calls whose library
    # swallows the one cancellation that asyncio delivers ends at the next one.
    await trio.lowlevel.checkpoint_if_cancelled()
    try:
        result: T = await trio_asyncio.aio_as_trio(function)(*args, **kwargs)
    except asyncio.CancelledError as error:
        raise LibraryCancelledError(  # noqa: ASYNC104 - our own cancellations arrive as trio.Cancelled
            f"{getattr(function, '__qualname__', function)} cancelled itself"
        ) from error
    return result


async def close(function: Callable[[], Awaitable[object]], *, seconds: float) -> bool:
    """Run a clean-up shielded from cancellation, for at most `seconds`; False where it failed or took longer.

    What could not be closed is dropped by the caller; the error that led here is the one that counts.
    """
    with trio.move_on_after(seconds, shield=True) as scope:
        try:
            await call(function)
        except Exception as error:  # noqa: BLE001 - any library's, and there is nothing left to do about it
            logger.debug("closing failed: %r", error)
            return False
    # Not `cancelled_caught`: a library may have swallowed the cancellation.
    return not scope.cancel_called

"""Blocking calls, to a file system above all, in a thread that is left behind at a deadline."""

from __future__ import annotations

import errno
import threading
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def bounded(function: Callable[[], T], *, seconds: float, late: Callable[[T], None] | None = None) -> T:
    """Call `function` in a thread and wait for it, for at most `seconds`.

    At the deadline, or when the caller is cancelled, the thread is left behind: a call into storage that hangs cannot
    be ended. It may still do its work later, so `function` must be harmless when it comes late, or `late` must undo
    its work: that is called with the result of `function` if nobody waits for it any more, in a thread too.

    Raises:
        OSError: Whatever `function` raised; that it did not answer in time (ETIMEDOUT); or that there is no thread to
            be had (EAGAIN). `strerror` says why in words.
    """
    results: list[T] = []
    turn = threading.Lock()
    waiting = True

    def call() -> None:
        result = function()
        with turn:
            results.append(result)
            wanted = waiting
        if late is not None and not wanted:
            late(result)

    def leave() -> None:
        nonlocal waiting
        with turn:
            waiting = False
            unwanted = list(results)
        if late is not None and unwanted:
            # The result came in the very moment of the cancellation.
            threading.Thread(target=late, args=unwanted, daemon=True).start()

    try:
        with trio.fail_after(seconds):
            await trio.to_thread.run_sync(call, abandon_on_cancel=True)
    except trio.TooSlowError:
        leave()
        raise TimeoutError(errno.ETIMEDOUT, f"it did not answer within {seconds:g} s") from None
    except trio.Cancelled:
        leave()
        raise
    except RuntimeError as error:
        if "thread" not in str(error):
            raise
        raise OSError(errno.EAGAIN, "no thread can be started") from error
    return results[0]

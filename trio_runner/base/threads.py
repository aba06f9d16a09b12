"""Blocking calls, to a file system above all, in a thread that is left behind at a deadline."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING, TypeVar

import trio

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


async def bounded(function: Callable[[], T], *, seconds: float) -> T:
    """Call `function` in a thread and wait for it, for at most `seconds`.

    At the deadline, or when the caller is cancelled, the thread is left behind: a call into storage that hangs cannot
    be ended. It may still do its work later, so `function` must be harmless when it comes late.

    Raises:
        OSError: Whatever `function` raised; that it did not answer in time (ETIMEDOUT); or that there is no thread to
            be had (EAGAIN). `strerror` says why in words.
    """
    try:
        with trio.fail_after(seconds):
            return await trio.to_thread.run_sync(function, abandon_on_cancel=True)
    except trio.TooSlowError:
        raise TimeoutError(errno.ETIMEDOUT, f"it did not answer within {seconds:g} s") from None
    except RuntimeError as error:
        if "thread" not in str(error):
            raise
        raise OSError(errno.EAGAIN, "no thread can be started") from error

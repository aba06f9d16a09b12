"""An exclusive lock on a directory that no hanging disk can hold up."""

from __future__ import annotations

import fcntl
import os
import threading
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from trio_runner.base.threads import bounded

if TYPE_CHECKING:
    from pathlib import Path


class DirectoryLock:
    """A lock (flock(2)) that one process at a time has; it ends with the process at the latest."""

    def __init__(self, directory: Path, *, seconds: float) -> None:
        """Touch nothing yet; each call to the file system gets `seconds`."""
        self._directory, self._seconds = directory, seconds
        self._descriptor: int | None = None
        # A thread that was left behind at its deadline may still get the lock: `release` tells it to give that back.
        self._turn = threading.Lock()
        self._released = False

    async def take(self) -> bool:
        """Whether this object has the lock now; False: another has it.

        Raises:
            OSError: The directory cannot be opened or locked, or its disk does not answer in time.
        """
        await bounded(self._take, seconds=self._seconds)
        return self._descriptor is not None

    async def release(self) -> None:
        """Give the lock back for good; also when cancelled, and within the deadline."""
        with trio.CancelScope(shield=True), suppress(OSError):
            await bounded(self._release, seconds=self._seconds)

    def _take(self) -> None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return
        except OSError:
            os.close(descriptor)
            raise
        with self._turn:
            if self._released or self._descriptor is not None:
                os.close(descriptor)
            else:
                self._descriptor = descriptor

    def _release(self) -> None:
        with self._turn:
            self._released = True
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

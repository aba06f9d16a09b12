"""An exclusive lock on a directory that no hanging disk can hold up."""

from __future__ import annotations

import fcntl
import os
from contextlib import suppress
from typing import TYPE_CHECKING

import trio

from trio_runner.base.files import close_descriptor
from trio_runner.base.threads import bounded

if TYPE_CHECKING:
    from pathlib import Path


class DirectoryLock:
    """A lock (flock(2)) that one process at a time has; it ends with the process at the latest."""

    def __init__(self, directory: Path, *, seconds: float) -> None:
        """Touch nothing yet; each call to the file system gets `seconds`."""
        self._directory, self._seconds = directory, seconds
        self._descriptor: int | None = None

    async def take(self) -> bool:
        """Whether this object has the lock now; False: another has it.

        Raises:
            OSError: The directory cannot be opened or locked, or its disk does not answer in time.
        """
        if self._descriptor is None:
            self._descriptor = await bounded(self._lock, seconds=self._seconds, late=close_descriptor)
        return self._descriptor is not None

    async def release(self) -> None:
        """Give the lock back; also when cancelled, and within the deadline."""
        descriptor, self._descriptor = self._descriptor, None
        with trio.CancelScope(shield=True), suppress(OSError):
            await bounded(lambda: close_descriptor(descriptor), seconds=self._seconds)

    def _lock(self) -> int | None:
        descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        except OSError:
            os.close(descriptor)
            raise
        return descriptor

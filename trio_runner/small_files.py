"""Reads a small regular file whole, and refuses what could hang or never end."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def read_small_file(path: str | Path, *, max_bytes: int) -> tuple[bytes, os.stat_result]:
    """Its bytes and its state; links are followed, a FIFO, a socket and a device are not waited for.

    Raises:
        OSError: it cannot be read, is not a regular file, or holds more than `max_bytes`; `strerror` says why.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        state = os.fstat(descriptor)
        if stat.S_ISDIR(state.st_mode):
            raise IsADirectoryError(errno.EISDIR, "it is a directory")
        if not stat.S_ISREG(state.st_mode):
            raise OSError(errno.EINVAL, "it is not a regular file")
        data = b""
        while chunk := os.read(descriptor, max_bytes + 1 - len(data)):
            data += chunk
            if len(data) > max_bytes:
                raise OSError(errno.EFBIG, f"it is larger than {max_bytes} bytes")
    finally:
        os.close(descriptor)
    return data, state

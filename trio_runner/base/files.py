"""Small files: read without waiting for a FIFO or a device, and written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def read_small_file(path: str | Path, *, max_bytes: int) -> tuple[bytes, os.stat_result]:
    """The file's bytes and its state. Links are followed; a FIFO, a socket or a device is refused at once.

    Raises:
        OSError: It cannot be read, is not a regular file, or holds more than `max_bytes`; `strerror` says why.
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


def close_descriptor(descriptor: int | None) -> None:
    """Close an open file; None stands for no file. Closing does not wait in Trio, so it runs in a thread."""
    if descriptor is not None:
        os.close(descriptor)


def write_whole(descriptor: int, content: bytes) -> None:
    """Write `content` over what the file holds from its beginning; raises OSError where the disk has no room for it."""
    written = 0
    # A disk that becomes full takes a part of the content, and refuses the rest.
    while written < len(content):
        written += os.pwrite(descriptor, content[written:], written)


def write_private(path: Path, content: bytes) -> None:
    """Write a file that only this user can read; afterwards it is there whole, synced to the disk, or not at all.

    Raises:
        OSError: It cannot be written; a file that was at `path` before is still there.
    """
    temporary = path.with_name(f"{path.name}.tmp")
    # A process that was killed may have left a temporary file, and somebody else may have put a link there.
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            write_whole(descriptor, content)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        temporary.rename(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise

"""Opens the file or directory that a video path names, and the files in it; refuses whatever lies outside the root."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from trio_runner.errors import ErrorCode, RunnerError

MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)


def open_video(path: str, root: str = "") -> int:
    """Open a regular file or a directory for reading, symbolic links followed; raises RunnerError for anything else.

    With a `root` it must lie in that directory. A hard link in the root passes, because its origin cannot be known.
    """
    descriptor = _open(path, path, root)
    status = os.fstat(descriptor)
    # Files of /proc have no size either, and reading some of them never ends.
    if not stat.S_ISDIR(status.st_mode) and not status.st_size:
        os.close(descriptor)
        raise RunnerError(ErrorCode.VIDEO_UNREADABLE, f"{path}: the file is empty. Give another file")
    return descriptor


def open_within(directory: int, name: str, path: str, root: str = "") -> int:
    """Open the file or directory `name` in the directory behind this descriptor; checks as `open_video` does.

    `path` is the directory's own path, for messages.
    """
    return _open(name, f"{path}/{name}", root, directory)


def is_directory(descriptor: int) -> bool:
    """Whether an open descriptor is that of a directory."""
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


def _open(name: str, shown: str, root: str, directory: int | None = None) -> int:
    """Check and open `name`, which is relative to `directory` where that is given.

    The checks look at the descriptor and not at the path, so a change of the path between two checks makes no
    difference. O_PATH finds the file without opening it: no device notices, and no FIFO waits for its writer.
    """
    try:
        found = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=directory)
        try:
            _check_kind(shown, os.fstat(found))
            if root:
                _check_place(shown, Path(f"/proc/self/fd/{found}").readlink(), root)
            return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        finally:
            os.close(found)
    except OSError as error:
        if error.errno not in MISSING:
            raise
        message = f"{shown}: cannot be opened: {error.strerror}. Correct video.path, or the file's permissions"
        raise RunnerError(ErrorCode.VIDEO_MISSING, message) from error


def _check_kind(shown: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{shown}: is {kind}, not a file or directory. Correct video.path")


def _check_place(shown: str, opened: Path, root: str) -> None:
    try:
        directory = os.path.realpath(root, strict=True)
    except OSError as error:
        message = f"{shown}: video.root = {root} cannot be found: {error.strerror}. Correct video.root"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, message) from error
    if not opened.is_relative_to(directory):
        message = f"{shown}: is {opened}, outside video.root = {root}. Move it there, or correct video.root"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, message)

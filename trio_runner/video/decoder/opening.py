"""Opens the regular file that a video path names, and refuses anything else and any file outside the root."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from trio_runner.errors import ErrorCode, RunnerError

MISSING = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG)


def open_file(path: str, root: str = "") -> int:
    """Open a regular file for reading, symbolic links followed; raises RunnerError for anything else.

    The checks look at the descriptor and not at the path, so a change of the path between two checks makes no
    difference. O_PATH finds the file without opening it: no device notices, and no FIFO waits for its writer. With a
    `root` the file must lie in it. A hard link in the root passes, because its origin cannot be known.
    """
    try:
        found = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            _check_kind(path, os.fstat(found))
            if root:
                _check_place(path, Path(f"/proc/self/fd/{found}").readlink(), root)
            return os.open(f"/proc/self/fd/{found}", os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
        finally:
            os.close(found)
    except OSError as error:
        if error.errno not in MISSING:
            raise
        message = f"{path}: cannot be opened: {error.strerror}. Correct video.path, or the file's permissions"
        raise RunnerError(ErrorCode.VIDEO_MISSING, message) from error


def _check_kind(path: str, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        kinds = {stat.S_IFDIR: "a directory", stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(status.st_mode), "a device")
        raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{path}: is {kind}, not a file. Correct video.path")
    # Files of /proc have no size either, and reading some of them never ends.
    if not status.st_size:
        raise RunnerError(ErrorCode.VIDEO_UNREADABLE, f"{path}: the file is empty. Give another file")


def _check_place(path: str, opened: Path, root: str) -> None:
    try:
        directory = os.path.realpath(root, strict=True)
    except OSError as error:
        message = f"{path}: video.root = {root} cannot be found: {error.strerror}. Correct video.root"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, message) from error
    if not opened.is_relative_to(directory):
        message = f"{path}: is {opened}, outside video.root = {root}. Move it there, or correct video.root"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, message)

"""The directory that holds copies of fetched objects: bounded, shared by processes, no half a file in sight.

For each object the directory holds `KEY.part`, the bytes received so far, with `KEY.part.json`; later
`KEY-VERSION.mp4`, the whole file, with `KEY.json`. A process that fetches an object has `KEY.lock` exclusively. A
process that reads a whole file has a shared lock on that file. A process that makes room has `.lock`. The locks are
those of flock(2), which end with their process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

import msgspec

from trio_runner.base.files import read_small_file, write_private
from trio_runner.errors import ErrorCode, RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

MAX_META_BYTES: Final = 64 * 1024
POLL_SECONDS: Final = 0.1
ROOM_SECONDS: Final = 30.0
"""How long the other processes of a machine may take to make room before this one does."""


class Version(msgspec.Struct, frozen=True, kw_only=True):
    """One content of an object, as the storage names it. Equal versions have equal bytes."""

    size: int
    etag: str = ""
    modified: str = ""

    @property
    def is_strong(self) -> bool:
        """Whether two answers with this version are parts of the same bytes (RFC 9110, 8.8.1)."""
        return self.etag.startswith('"')

    @property
    def is_known(self) -> bool:
        """Whether anything but the size tells this version from another."""
        return bool(self.etag or self.modified)


class Cache:
    """The cache in one directory, for one process; every method may wait for the file system."""

    def __init__(self, directory: Path, max_bytes: int) -> None:
        """Make the directory, for this user alone; raises OSError."""
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._directory, self._max_bytes = directory, max_bytes

    @contextmanager
    def held(self, key: str, on_wait: Callable[[], None]) -> Iterator[None]:
        """Be the only process that works on this object; `on_wait` is called while another one is, and may raise."""
        descriptor = self._locked(self._path(key, "lock"), fcntl.LOCK_EX, on_wait)
        try:
            yield
        finally:
            os.close(descriptor)

    def whole(self, key: str, suffix: str) -> Version | None:
        """The version of the whole file that the cache has of this object, if it has one of the right size."""
        version = self._version(self._path(key, "json"))
        if version is None:
            return None
        with suppress(OSError):
            if self.path_of(key, version, suffix).stat().st_size == version.size:
                return version
        return None

    def path_of(self, key: str, version: Version, suffix: str) -> Path:
        """The whole file's path. Each version has one of its own, so that no reader's file is replaced."""
        digest = hashlib.sha256(msgspec.json.encode(version)).hexdigest()[:12]
        return self._directory / f"{key}-{digest}{suffix}"

    def part(self, key: str) -> tuple[Version, int] | None:
        """The version of which a part can be resumed, and the byte at which, which is one that the version has."""
        version = self._version(self._path(key, "part.json"))
        if version is None or not version.is_strong:
            return None
        with suppress(OSError):
            size = self._path(key, "part").stat().st_size
            # Of a part that is complete the last byte is asked for again: no server has a range behind it.
            return (version, min(size, version.size - 1)) if 0 < size <= version.size else None
        return None

    def begin(self, key: str, version: Version) -> int:
        """An empty part for this version, open for writing, with room for the whole of it.

        Raises:
            RunnerError: `video_refused`: the object is larger than the cache; `cache_unusable`: the rest of it is read.
        """
        if version.size > self._max_bytes:
            sizes = f"{version.size} bytes, more than storage.cache_max_mib = {self._max_bytes // 2**20}"
            raise RunnerError(ErrorCode.VIDEO_REFUSED, f"it has {sizes}. Raise that")
        self.drop_part(key)
        with self._making_room():
            self._make_room(key, version.size)
            write_private(self._path(key, "part.json"), msgspec.json.encode(version))
        return self._open_part(key, os.O_CREAT | os.O_TRUNC)

    def resume(self, key: str, begin: int) -> int:
        """The part that is there, open for writing from byte `begin` on."""
        descriptor = self._open_part(key, 0)
        os.lseek(descriptor, begin, os.SEEK_SET)
        return descriptor

    def drop_part(self, key: str) -> None:
        """Remove what has come of this object so far."""
        self._path(key, "part.json").unlink(missing_ok=True)
        self._path(key, "part").unlink(missing_ok=True)

    def finish(self, key: str, version: Version, suffix: str) -> None:
        """Make the whole file of a part that is complete and written to the disk."""
        self._path(key, "part").rename(self.path_of(key, version, suffix))
        write_private(self._path(key, "json"), msgspec.json.encode(version))
        self._path(key, "part.json").unlink(missing_ok=True)

    def reading(self, key: str, version: Version, suffix: str) -> int | None:
        """A descriptor that keeps the whole file from being evicted while it is open; None: it is evicted already."""
        path = self.path_of(key, version, suffix)
        descriptor = lock_for_reading(path)
        if descriptor is not None:
            os.utime(path)
        return descriptor

    def _open_part(self, key: str, flags: int) -> int:
        return os.open(self._path(key, "part"), os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)

    def _path(self, key: str, kind: str) -> Path:
        return self._directory / f"{key}.{kind}"

    @staticmethod
    def _version(path: Path) -> Version | None:
        with suppress(OSError, msgspec.MsgspecError):
            return msgspec.json.decode(read_small_file(path, max_bytes=MAX_META_BYTES)[0], type=Version)
        return None

    @staticmethod
    def _locked(path: Path, kind: int, on_wait: Callable[[], None]) -> int:
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if _try_lock(descriptor, kind) and _is_at(descriptor, path):
                return descriptor
            os.close(descriptor)
            on_wait()
            time.sleep(POLL_SECONDS)

    @contextmanager
    def _making_room(self) -> Iterator[None]:
        limit = time.monotonic() + ROOM_SECONDS

        def on_wait() -> None:
            if time.monotonic() > limit:
                raise RunnerError(ErrorCode.CACHE_UNUSABLE, "another process holds the cache's lock for too long")

        descriptor = self._locked(self._directory / ".lock", fcntl.LOCK_EX, on_wait)
        try:
            yield
        finally:
            os.close(descriptor)

    def _make_room(self, own_key: str, size: int) -> None:
        """Evict what was used longest ago until `size` bytes fit; what is read or fetched at the moment stays."""
        entries = sorted(self._entries())
        used = sum(entry_bytes for _, entry_bytes, _ in entries)
        for _, entry_bytes, path in entries:
            if used + size <= self._max_bytes:
                return
            if self._evict(path, own_key):
                used -= entry_bytes
        if used + size > self._max_bytes:
            message = (
                f"{size} bytes do not fit beside the {used} that are being read or fetched. Raise storage.cache_max_mib"
            )
            raise RunnerError(ErrorCode.CACHE_UNUSABLE, message)

    def _entries(self) -> Iterator[tuple[float, int, Path]]:
        """When it was last used, how many bytes it takes or will take, and its path, for each file with content."""
        for path in self._directory.iterdir():
            if path.suffix in {".lock", ".json", ".tmp"} or path.name == ".lock":
                continue
            with suppress(OSError):
                state = path.stat()
                planned = self._version(path.with_name(f"{path.name}.json")) if path.suffix == ".part" else None
                yield state.st_mtime, max(state.st_size, planned.size if planned else 0), path

    def _evict(self, path: Path, own_key: str) -> bool:
        key = path.name.partition("." if path.suffix == ".part" else "-")[0]
        lock = self._path(key, "lock")
        held = None
        if key != own_key:
            with suppress(OSError):
                held = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            if held is None or not (_try_lock(held, fcntl.LOCK_EX) and _is_at(held, lock)):
                if held is not None:
                    os.close(held)
                return False
        try:
            return _remove_unread(path)
        finally:
            if held is not None:
                with suppress(OSError):
                    self._tidy(key)
                os.close(held)

    def _tidy(self, key: str) -> None:
        """Remove the small files of an object of which nothing else is left."""
        left = {path.name.partition("-")[0].partition(".")[0] for _, _, path in self._entries()}
        if key not in left:
            for kind in ("json", "part.json", "lock"):
                self._path(key, kind).unlink(missing_ok=True)


def lock_for_reading(path: Path) -> int | None:
    """A descriptor of the file, locked against eviction while it is open; None where the file is gone.

    Raises:
        OSError: It cannot be opened.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None
        # An eviction holds its lock for a moment, after which the file is gone.
        if _try_lock(descriptor, fcntl.LOCK_SH) and _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)
        time.sleep(POLL_SECONDS)


def _remove_unread(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        if not _try_lock(descriptor, fcntl.LOCK_EX):
            return False
        path.unlink(missing_ok=True)
    finally:
        os.close(descriptor)
    return True


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether the path still names the file that was opened: the one who held its lock before may have removed it."""
    try:
        there = path.stat()
    except OSError:
        return False
    ours = os.fstat(descriptor)
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)

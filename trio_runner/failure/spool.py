"""A directory for retry events that neither Kafka nor PostgreSQL took, with room for one more on a full disk."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import re
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias, TypeVar

import msgspec
import trio

from trio_runner.base.directory_lock import DirectoryLock
from trio_runner.base.files import read_small_file, write_private, write_whole
from trio_runner.base.threads import bounded
from trio_runner.errors import ErrorCode, RunnerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio_runner.config.load import Config

T = TypeVar("T")

logger = logging.getLogger(__name__)

RESERVE_BYTES: Final = 48 * 1024
"""Twice the largest event, since its JSON stands in a JSON string here, and its topic and headers."""

RESERVE_SECONDS: Final = 5.0
_RECORD_NAME: Final = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\.json")

PUT_SECONDS: Final = 3.0
"""A busy disk may take a second for each of the two syncs."""


Reserve: TypeAlias = tuple[int, Path]
"""An open descriptor of a reserve file, locked, and where it lies."""


class SpooledRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A record for Kafka, as text that a person can read; what is sent later is the same, byte for byte."""

    id: str
    topic: str
    key: str
    headers: tuple[tuple[str, str], ...]
    value: str


class Spool:
    """One process's use of the directory; several runners may share it.

    Every process holds a reserve file of its own, written and synced before the work begins. An event goes into a new
    file. Where the disk has no room for that file, or the process no descriptor, the event goes into the reserve, which
    then gets the event's name. A lock says who owns a reserve, so that of a killed process serves the next one.
    """

    def __init__(self, directory: Path) -> None:
        """Touch nothing yet."""
        self.directory = directory
        self._reserve: Reserve | None = None

    async def reserve(self) -> None:
        """Make the directory and hold a reserve in it; harmless when it is held.

        Raises:
            RunnerError: `spool_unusable`; a runner that could not keep an event does not start to work.
        """
        if self._reserve is None:
            self._reserve = await self._in_time(self._take_reserve, RESERVE_SECONDS)

    async def put(self, record: SpooledRecord) -> Path:
        """Keep the record, synced to the disk when this returns; raises RunnerError (`spool_unusable`)."""
        # A thread that is left behind may still write after `close`: it has the reserve for itself.
        reserve, self._reserve = self._reserve, None
        path, self._reserve = await self._in_time(lambda: self._put(record, reserve), PUT_SECONDS)
        return path

    async def waiting(self) -> list[Path]:
        """The files of the records that wait, oldest first; raises RunnerError (`spool_unusable`)."""
        return await self._in_time(lambda: _waiting_in(self.directory), RESERVE_SECONDS)

    async def read(self, path: Path) -> SpooledRecord | None:
        """The record in `path`; None where it is gone, or no record: then it is called `.bad` from now on."""
        return await self._in_time(lambda: _read(path), RESERVE_SECONDS)

    async def remove(self, path: Path) -> None:
        """Remove a record that Kafka has acknowledged; raises RunnerError (`spool_unusable`)."""
        await self._in_time(lambda: path.unlink(missing_ok=True), RESERVE_SECONDS)

    @asynccontextmanager
    async def flushing(self) -> AsyncIterator[bool]:
        """Whether this process alone empties the directory now; False: another does, or there is nothing."""
        lock = DirectoryLock(self.directory, seconds=RESERVE_SECONDS)
        try:
            try:
                ours = await lock.take()
            except OSError:
                ours = False
            yield ours
        finally:
            await lock.release()  # noqa: ASYNC102 - it is shielded and bounded

    def close(self) -> None:
        """Give the reserve up; it stays on the disk for the next process."""
        if self._reserve is not None:
            os.close(self._reserve[0])
            self._reserve = None

    async def _in_time(self, function: Callable[[], T], seconds: float) -> T:
        try:
            return await bounded(function, seconds=seconds)
        except OSError as error:
            raise RunnerError(
                ErrorCode.SPOOL_UNUSABLE,
                f"{self.directory}: {error.strerror or error}. "
                "Correct kafka.spool_dir: a directory on a local disk that it may write to",
            ) from error

    def _take_reserve(self) -> Reserve:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self.directory / f"{os.urandom(8).hex()}.reserve"
        for path in [*self.directory.glob("*.reserve"), new]:
            # A reserve of another user, and anything that is no file, is passed over.
            with suppress(*() if path == new else (OSError,)):
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    # Its former owner may have renamed it between our open and our lock.
                    if os.path.samestat(os.fstat(descriptor), path.stat()):
                        # Written, not only allocated: some file systems take new blocks for the first write.
                        write_whole(descriptor, bytes(RESERVE_BYTES))
                        os.fsync(descriptor)
                        _sync_directory(self.directory)
                        return descriptor, path
                except BlockingIOError:
                    pass
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)
        raise FileNotFoundError("the reserve file vanished")

    def _put(self, record: SpooledRecord, reserve: Reserve | None) -> tuple[Path, Reserve | None]:
        content = msgspec.json.encode(record) + b"\n"
        target = self.directory / f"{record.id}.json"
        try:
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_private(target, content)
        except OSError:
            if reserve is None or len(content) > RESERVE_BYTES:
                raise
            descriptor, path = reserve
            write_whole(descriptor, content)
            os.ftruncate(descriptor, len(content))
            os.fsync(descriptor)
            path.rename(target)
            os.close(descriptor)
            reserve = None
        with suppress(OSError):
            _sync_directory(self.directory)
        return target, reserve


def spool_of(config: Config) -> Spool:
    """The spool that the config names: `kafka.spool_dir`, or `spool` in the data directory."""
    return Spool(Path(config.kafka.spool_dir or Path(config.runner.data_dir) / "spool"))


@asynccontextmanager
async def open_spool(config: Config) -> AsyncIterator[Spool]:
    """The spool that the config names; its reserve is let go at the end, in a thread and in time."""
    spool = spool_of(config)
    try:
        yield spool
    finally:
        with trio.CancelScope(shield=True), suppress(OSError):
            await bounded(spool.close, seconds=RESERVE_SECONDS)


def _read(path: Path) -> SpooledRecord | None:
    try:
        data, _ = read_small_file(path, max_bytes=RESERVE_BYTES)
        return msgspec.json.decode(data, type=SpooledRecord)
    except FileNotFoundError:
        return None
    except (msgspec.DecodeError, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in {errno.EINVAL, errno.EISDIR, errno.EFBIG, errno.ELOOP}:
            raise
        logger.error("%s holds no event and is set aside as .bad: %s", path, error)  # noqa: TRY400 - no stack is needed
        path.rename(path.with_suffix(".bad"))
        return None


def _waiting_in(directory: Path) -> list[Path]:
    """The records in the directory; not by `glob`, for which a directory that may not be read is empty."""
    try:
        return sorted((path for path in directory.iterdir() if _RECORD_NAME.fullmatch(path.name)), key=_age)
    except FileNotFoundError:
        return []


def _age(path: Path) -> tuple[int, str]:
    with suppress(FileNotFoundError):
        # A link that leads nowhere must not hide the other records.
        return path.lstat().st_mtime_ns, path.name
    return 0, path.name


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

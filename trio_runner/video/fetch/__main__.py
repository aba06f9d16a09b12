"""The fetcher child: brings one object into the cache, or goes on with what is there of it, and reports as it comes.

    python -m trio_runner.video.fetch

The order is one line of JSON on standard input (module `messages`), because a presigned URL and the credentials must
stand in no argument. Standard output has the records, `Ready` or `Fault` last. After `Ready` the child keeps the file
from being evicted until its standard input is closed. Any other error is a traceback and exit code 1.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import http.client
import os
import sys
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from trio_runner.base.leash import tie_to_parent
from trio_runner.base.redact import redact
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.video.cache import Cache, Version
from trio_runner.video.fetch import messages
from trio_runner.video.fetch.asking import LOOK, Answer, asked, broken
from trio_runner.video.source import location_of, object_key, suffix_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_runner.config.location import Location

READ_BYTES: Final = 256 * 1024
REPORT_SECONDS: Final = 1.0
MIN_GAIN_BYTES: Final = 2**20
"""A connection that has brought so much before it broke is followed by another one in the same attempt."""

SYNC_BYTES: Final = 256 * 2**20
"""After so many bytes they are written to the disk, so that the last sync of a large file does not take minutes."""

MAX_RESTARTS: Final = 3
"""How often the object may turn out to be another version than the part that is there."""


class Fetcher:
    """One order, carried out once."""

    def __init__(self, order: messages.Order, out: int) -> None:
        """Touch nothing yet; `out` is where the records before the last one are written."""
        self._order, self._storage, self._out = order, order.storage, out
        self._limit = time.monotonic() + order.storage.fetch_timeout_seconds
        self._reported_at = 0.0
        self._problem: RunnerError | None = None
        """What ended the last body before its end; None where its connection was closed."""
        self.reading: int | None = None
        """The descriptor that keeps the whole file from being evicted. It stays open until this process ends."""

    def result(self) -> messages.Ready | messages.Fault:
        """The last record; raises BrokenPipeError when nobody reads the others."""
        try:
            self._location = self._allowed()
            self._key, self._suffix = object_key(self._location), suffix_of(self._location)
            return self._look() if self._order.only_look else self._fetch()
        except RunnerError as error:
            return messages.Fault(error.code, redact(error.message), error.retry_after_seconds)
        except BrokenPipeError:
            raise
        except OSError as error:
            is_full = error.errno == errno.ENOSPC
            remedy = "Free the disk, or lower storage.cache_max_mib" if is_full else "Correct storage.cache_dir"
            problem = f"the cache in {self._storage.cache_dir} cannot be used: {error.strerror}. {remedy}"
            return messages.Fault(ErrorCode.CACHE_UNUSABLE, f"{redact(self._order.url)}: {problem}")

    def _allowed(self) -> Location:
        location = location_of(self._order.url, self._storage.url_prefixes)
        if location is None:
            raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{self._order.url}: is not a URL")
        return location

    def _look(self) -> messages.Ready:
        """Ask for the object, and fetch nothing; raises RunnerError."""
        with asked(self._location, self._storage, self._order.credentials) as answer:
            size = answer.version.size if answer.version else 0
        if size > self._storage.cache_max_mib * 2**20:
            limit = f"storage.cache_max_mib = {self._storage.cache_max_mib}"
            raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{self._location}: it has {size} bytes, more than {limit}")
        return messages.Ready("", size, fetched=False)

    def _fetch(self) -> messages.Ready:
        """The whole file, from the cache or from the storage, locked against eviction; raises RunnerError, OSError."""
        cache = Cache(Path(self._storage.cache_dir), self._storage.cache_max_mib * 2**20)
        with cache.held(self._key, self._wait):
            restarts = 0
            while restarts <= MAX_RESTARTS:
                known, part = cache.whole(self._key, self._suffix), cache.part(self._key)
                # A part is of a later version than the whole file beside it.
                with asked(
                    self._location, self._storage, self._order.credentials, known=None if part else known, part=part
                ) as answer:
                    if answer.version is None:
                        cache.drop_part(self._key)
                        restarts += 1
                        continue
                    version = answer.version
                    if not answer.is_current and not self._receive(cache, answer, version):
                        continue
                if not answer.is_current:
                    cache.finish(self._key, version, self._suffix)
                self.reading = cache.reading(self._key, version, self._suffix)
                if self.reading is None:
                    restarts += 1
                    continue
                path = str(cache.path_of(self._key, version, self._suffix))
                return messages.Ready(path, version.size, fetched=not answer.is_current)
        raise RunnerError(ErrorCode.STORAGE_BAD_ANSWER, f"{self._location}: the object changes all the time")

    def _receive(self, cache: Cache, answer: Answer, version: Version) -> bool:
        """Write the body into the part; whether that is the whole object now. False: another connection is due.

        Raises:
            RunnerError: The connection broke or stalled before it had brought much, or the content is not right.
        """
        if answer.begin:
            descriptor = cache.resume(self._key, answer.begin)
        else:
            try:
                descriptor = cache.begin(self._key, version)
            except RunnerError as error:
                raise RunnerError(error.code, f"{self._location}: {error.message}") from None
        received = synced = answer.begin
        try:
            while chunk := self._next(answer):
                _write(descriptor, chunk)
                received += len(chunk)
                if received - synced >= SYNC_BYTES:
                    os.fdatasync(descriptor)
                    synced = received
                self._check_time()
                self._report(messages.Received(received, version.size))
            if received < version.size:
                if version.is_strong and received - answer.begin >= MIN_GAIN_BYTES:
                    return False
                cut = f"{self._location}: it broke off after {received} of {version.size} bytes. {LOOK}"
                raise self._problem or RunnerError(ErrorCode.STORAGE_UNAVAILABLE, cut)
            self._check(descriptor, version, answer.checksums or {}, cache)
            os.fsync(descriptor)
        except OSError:
            # A full disk needs the room.
            cache.drop_part(self._key)
            raise
        finally:
            os.close(descriptor)
        return True

    def _next(self, answer: Answer) -> bytes:
        """The next piece of the body; empty at its end, and where it broke off."""
        self._problem = None
        try:
            return answer.body.read1(READ_BYTES) if answer.body else b""
        except (OSError, http.client.HTTPException) as error:
            self._problem = broken(self._location, error, self._storage)
            return b""

    def _check(self, descriptor: int, version: Version, checksums: Mapping[str, str], cache: Cache) -> None:
        """Compare the part with the checksums that the storage has named; raises `storage_bad_answer`."""
        sha256, crc32, offset = hashlib.sha256(), 0, 0
        while checksums and (chunk := os.pread(descriptor, 4 * READ_BYTES, offset)):
            offset += len(chunk)
            if "sha256" in checksums:
                sha256.update(chunk)
            if "crc32" in checksums:
                crc32 = zlib.crc32(chunk, crc32)
            # A sign of life: a large file takes minutes.
            self._report(messages.Received(version.size, version.size))
        digests = {"sha256": sha256.digest(), "crc32": crc32.to_bytes(4)}
        found = {name: base64.b64encode(digest).decode() for name, digest in digests.items()}
        if wrong := [name for name, value in checksums.items() if found[name] != value]:
            cache.drop_part(self._key)
            message = f"{self._location}: what came is not what its {wrong[0]} says. It is fetched anew next time"
            raise RunnerError(ErrorCode.STORAGE_BAD_ANSWER, message)

    def _wait(self) -> None:
        self._check_time()
        self._report(messages.Waiting())

    def _check_time(self) -> None:
        if time.monotonic() > self._limit:
            limit = f"storage.fetch_timeout_seconds = {self._storage.fetch_timeout_seconds:g}"
            raise RunnerError(ErrorCode.STORAGE_TIMEOUT, f"{self._location}: not whole within {limit}. Raise that")

    def _report(self, record: messages.Record) -> None:
        if time.monotonic() - self._reported_at >= REPORT_SECONDS:
            write(self._out, record)
            self._reported_at = time.monotonic()


def write(out: int, record: messages.Record) -> None:
    """Write one record as a line; raises BrokenPipeError when nobody reads any more."""
    line = memoryview(messages.encode(record) + b"\n")
    while line:
        line = line[os.write(out, line) :]


def _write(descriptor: int, chunk: bytes) -> None:
    rest = memoryview(chunk)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def main() -> int:
    """Run the child; returns its exit code."""
    tie_to_parent()
    # From here on standard output is standard error, so that no text which a library prints gets between the records.
    out = os.dup(1)
    os.dup2(2, 1)
    order = messages.decode_order(sys.stdin.buffer.readline(messages.MAX_LINE_BYTES))
    try:
        write(out, Fetcher(order, out).result())
        # The daemon locks the file itself before it closes this.
        sys.stdin.buffer.read()
    except BrokenPipeError:
        # The daemon is gone, or wants the object no more.
        return 0
    return 0


if __name__ == "__main__":
    sys.exit(main())

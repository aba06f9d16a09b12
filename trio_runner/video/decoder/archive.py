"""The images in a zip archive. They are read into memory, and their names serve as names alone."""

from __future__ import annotations

import os
import stat
import zipfile
import zlib
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.video.decoder.listing import Listing, is_hidden, natural_key

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trio_runner.config.sections import VideoSection
    from trio_runner.video.decoder.listing import Member

SIGNATURES: Final = (b"PK\x03\x04", b"PK\x05\x06")
"""Of the first file in an archive, and of an archive without files."""

METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ENCRYPTED: Final = 1

CONTENTS_BYTES: Final = 32 * 2**20
"""Of an archive's table of contents at most: some 300,000 files. It is read in one go, which takes seconds."""

END = b"PK\x05\x06"
END_BYTES: Final = 22 + 2**16 + 20
"""So far from an archive's end its last record begins at most, with the locator of the 64-bit one before it."""


def is_archive(descriptor: int) -> bool:
    """Whether the file begins as a zip archive does."""
    return os.pread(descriptor, 4, 0) in SIGNATURES


class Archive:
    """A zip archive, as a `Store` of images."""

    kind = "zip archive"

    def __init__(self, descriptor: int, options: VideoSection, sign_of_life: Callable[[], None]) -> None:
        self._path = options.path
        if _contents_bytes(descriptor) > CONTENTS_BYTES:
            message = f"{options.path}: this zip archive lists too many files. Make several videos of it"
            raise RunnerError(ErrorCode.VIDEO_REFUSED, message)
        with ExitStack() as opened:
            file = opened.enter_context(os.fdopen(os.dup(descriptor), "rb"))
            try:
                self._zip = opened.enter_context(zipfile.ZipFile(file))
            except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
                # The table of contents is at the archive's end.
                message = f"{options.path}: this zip archive is cut short or damaged: {error}. Copy it again"
                raise RunnerError(ErrorCode.VIDEO_TRUNCATED, message) from error
            listing = Listing(options, self.shown)
            entries = self._list(listing, sign_of_life)
            self.close = opened.pop_all().close
        self.members: Sequence[Member] = sorted(listing.members, key=lambda member: natural_key(member.name))
        self.others = listing.others
        self._entries = [entries[member.name] for member in self.members]

    def shown(self, name: str) -> str:
        """The path of this file, for messages."""
        return f"{self._path}: {name}"

    def read(self, index: int) -> bytes:
        """The bytes of the image with this index; none where the archive is damaged."""
        entry = self._entries[index]
        try:
            with self._zip.open(entry) as file:
                return file.read(entry.file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
            return b""

    def fingerprint(self) -> Iterator[bytes]:
        """The checksum of each image, which the archive holds."""
        for entry in self._entries:
            yield entry.CRC.to_bytes(4, "big")

    def _list(self, listing: Listing, sign_of_life: Callable[[], None]) -> dict[str, zipfile.ZipInfo]:
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in self._zip.infolist():
            sign_of_life()
            listing.count()
            name = entry.filename
            # A name may be empty, for which `entry.is_dir()` fails.
            if name.endswith("/") or is_hidden(name) or not listing.takes(name):
                continue
            self._check(entry, is_double=name in entries)
            entries[name] = entry
            listing.add(name, entry.file_size)
        return entries

    def _check(self, entry: zipfile.ZipInfo, *, is_double: bool) -> None:
        """Raise RunnerError for an entry that cannot be read as an image."""
        kind = stat.S_IFMT(entry.external_attr >> 16)
        problem = ""
        if entry.flag_bits & ENCRYPTED:
            problem = "is encrypted. Unpack the archive, and give the directory"
        elif entry.compress_type not in METHODS:
            problem = f"is compressed by method {entry.compress_type}. Pack the archive with deflate"
        elif kind not in {0, stat.S_IFREG}:
            problem = "is a link or a special file. Pack the archive with the files themselves"
        elif is_double:
            problem = "is in the archive twice. Pack it anew"
        if problem:
            raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{self.shown(entry.filename)}: {problem}")


def _contents_bytes(descriptor: int) -> int:
    """The length of the table of contents, as the archive's last record says (APPNOTE.TXT 4.3.14 and 4.3.16)."""
    size = os.fstat(descriptor).st_size
    tail = os.pread(descriptor, END_BYTES, max(0, size - END_BYTES))
    end = tail.rfind(END)
    length = int.from_bytes(tail[end + 12 : end + 16], "little") if end >= 0 else 0
    if length != 2**32 - 1:
        return length
    # The locator of the 64-bit record, which has room for a greater length, stands right before.
    place = int.from_bytes(tail[max(0, end - 12) : max(0, end - 4)], "little")
    return int.from_bytes(os.pread(descriptor, 8, place + 40), "little") if place < size else 0

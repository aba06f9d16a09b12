"""Where a sequence of images lies: the directory or zip archive, its images in natural order, and their bytes."""

from __future__ import annotations

import os
import re
import stat
import zipfile
import zlib
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final, Protocol

from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.video.decoder.opening import is_directory, open_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trio_runner.config.sections import VideoSection

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})

UNREADABLE_SUFFIXES: Final = frozenset(
    {
        *(".apng", ".arw", ".avif", ".cr2", ".cr3", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".jp2", ".jxl"),
        *(".nef", ".orf", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".raf", ".rw2", ".tga"),
    }
)
"""Images that are not read. They are refused by name, because a video without them would lack frames unnoticed."""

MAX_FILES: Final = 1_000_000
"""In one directory, or archive, with all directories in it."""

BYTES_PER_PIXEL: Final = 8
"""Of the largest image that is not compressed: four channels of 16 bits."""

EXTRA_BYTES: Final = 16 * 2**20
"""Beside its pixels a camera puts profiles, previews and short films into a file."""

SAMPLES: Final = 16
SAMPLE_BYTES: Final = 64 * 1024

ZIP_SIGNATURES: Final = (b"PK\x03\x04", b"PK\x05\x06")
"""Of the first file in an archive, and of an archive without files."""

ZIP_METHODS: Final = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
ZIP_ENCRYPTED: Final = 1


@dataclass(frozen=True, slots=True)
class Member:
    """One image: its path within the directory or archive, and its size in bytes."""

    name: str
    size: int


class Store(Protocol):
    """The images of one directory or archive."""

    members: Sequence[Member]
    """In natural order."""
    others: int
    """The number of files that are no images by their names, and are ignored."""

    @property
    def kind(self) -> str:
        """What the images lie in, for messages."""

    def shown(self, name: str) -> str:
        """The path of this file, for messages."""

    def read(self, index: int) -> bytes:
        """The bytes of the image with this index; none where the archive is damaged. Raises RunnerError, OSError."""

    def close(self) -> None:
        """Close what the store has opened itself."""

    def fingerprint(self) -> Iterator[bytes]:
        """As much of the content as tells apart two stores whose names and sizes are the same."""


def open_store(descriptor: int, options: VideoSection, sign_of_life: Callable[[], None]) -> Store | None:
    """The images behind this descriptor, None if it is a file other than a zip archive.

    Args:
        descriptor: Of the file or directory. It stays open for as long as the store is used.
        options: The path, and the limits.
        sign_of_life: Called for every file that is found, because a million of them take a while.

    Raises:
        RunnerError: An image is of a kind or size that is not read, lies outside `video.root`, or there is none.
    """
    store: _Directory | _Archive
    if is_directory(descriptor):
        store = _Directory(descriptor, options, sign_of_life)
    elif os.pread(descriptor, 4, 0) in ZIP_SIGNATURES:
        store = _Archive(descriptor, options)
    else:
        return None
    if not store.members:
        store.close()
        beside = f", and {store.others} other files" if store.others else ""
        message = f"{options.path}: this {store.kind} holds no image{beside}. Images end with {_suffixes()}"
        raise RunnerError(ErrorCode.VIDEO_NO_FRAMES, message)
    return store


def natural_key(path: str) -> tuple[object, ...]:
    """Sorts paths as people count: img2 before img10, and each directory as a whole."""
    parts = []
    for part in path.split("/"):
        pieces: list[Any] = re.split(r"([0-9]+)", part.casefold())
        # Numbers are compared as text, because Python converts no more than 4300 digits.
        pieces[1::2] = [(len(number), number) for number in (digits.lstrip("0") for digits in pieces[1::2])]
        parts.append(tuple(pieces))
    return tuple(parts), path


def _suffixes() -> str:
    return ", ".join(sorted(SUFFIXES))


def _is_hidden(path: str) -> bool:
    """Whether an operating system put this file there, and not the user."""
    return any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in path.split("/"))


class _Listing:
    """Collects the images among the files of a directory or archive."""

    def __init__(self, options: VideoSection, shown: Callable[[str], str]) -> None:
        self.members: list[Member] = []
        self.others = self._files = 0
        self._shown = shown
        self._max_bytes = options.limit_width * options.limit_height * BYTES_PER_PIXEL + EXTRA_BYTES
        self._path = options.path

    def count(self) -> None:
        """Count one more file, hidden or not; raises RunnerError for one too many."""
        self._files += 1
        if self._files > MAX_FILES:
            message = f"{self._path}: holds more than {MAX_FILES} files. Make several videos of it"
            raise RunnerError(ErrorCode.VIDEO_REFUSED, message)

    def takes(self, name: str) -> bool:
        """Whether this file is an image; raises RunnerError for an image of a kind that is not read."""
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in UNREADABLE_SUFFIXES:
            message = f"{self._shown(name)}: {suffix} is none of {_suffixes()}. Convert the image, or move it away"
            raise RunnerError(ErrorCode.VIDEO_REFUSED, message)
        self.others += suffix not in SUFFIXES
        return suffix in SUFFIXES

    def add(self, name: str, size: int) -> None:
        """Take this image; raises RunnerError for one that cannot be within the limits."""
        if size > self._max_bytes:
            message = (
                f"{self._shown(name)}: an image of {size} bytes is over the limit of {self._max_bytes}. Raise "
                "video.limit_width and video.limit_height, or scale the image down"
            )
            raise RunnerError(ErrorCode.VIDEO_REFUSED, message)
        self.members.append(Member(name, size))


class _Directory:
    """A directory and the directories in it; each file is opened when it is read, and closed again."""

    kind = "directory"

    def __init__(self, descriptor: int, options: VideoSection, sign_of_life: Callable[[], None]) -> None:
        self._descriptor, self._path, self._root = descriptor, options.path.rstrip("/"), options.root
        self._sign_of_life = sign_of_life
        self._listing = _Listing(options, self.shown)
        waiting = [""]
        while waiting:
            waiting += self._list(waiting.pop())
        self.members: Sequence[Member] = sorted(self._listing.members, key=lambda member: natural_key(member.name))
        self.others = self._listing.others

    def shown(self, name: str) -> str:
        return f"{self._path}/{name}"

    def read(self, index: int) -> bytes:
        member = self.members[index]
        # A file that has grown gives one byte more than it had.
        return self._read(member.name, member.size + 1)

    def close(self) -> None:
        """Each file is closed where it is read."""

    def fingerprint(self) -> Iterator[bytes]:
        last = len(self.members) - 1
        for index in sorted({last * number // (SAMPLES - 1) for number in range(SAMPLES)}):
            yield self._read(self.members[index].name, SAMPLE_BYTES)

    def _list(self, prefix: str) -> list[str]:
        """Take the images in one directory, and return the directories in it."""
        directory = open_within(self._descriptor, prefix or ".", self._path, self._root)
        deeper = []
        try:
            with os.scandir(directory) as entries:
                for entry in entries:
                    self._sign_of_life()
                    self._listing.count()
                    if _is_hidden(entry.name):
                        continue
                    name = prefix + entry.name
                    # A chain of links that leads back to itself ends with an error of the kernel's.
                    if entry.is_dir():
                        deeper.append(f"{name}/")
                    elif self._listing.takes(name):
                        self._take(name, entry)
        finally:
            os.close(directory)
        return deeper

    def _take(self, name: str, entry: os.DirEntry[str]) -> None:
        if entry.is_file(follow_symlinks=False):
            self._listing.add(name, entry.stat(follow_symlinks=False).st_size)
            return
        # A link is followed now, so that one which leads outside `video.root` or to a device is refused at once.
        found = open_within(self._descriptor, name, self._path, self._root)
        try:
            self._listing.add(name, os.fstat(found).st_size)
        finally:
            os.close(found)

    def _read(self, name: str, max_bytes: int) -> bytes:
        found = open_within(self._descriptor, name, self._path, self._root)
        with os.fdopen(found, "rb", buffering=0) as file:
            content = bytearray()
            while len(content) < max_bytes and (part := file.read(max_bytes - len(content))):
                content += part
        return bytes(content)


class _Archive:
    """A zip archive. Its members are read into memory, and their names serve as names alone."""

    kind = "zip archive"

    def __init__(self, descriptor: int, options: VideoSection) -> None:
        self._path = options.path
        with ExitStack() as opened:
            file = opened.enter_context(os.fdopen(os.dup(descriptor), "rb"))
            try:
                self._zip = opened.enter_context(zipfile.ZipFile(file))
            except (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError) as error:
                # The table of contents is at the archive's end.
                message = f"{options.path}: this zip archive is cut short or damaged: {error}. Copy it again"
                raise RunnerError(ErrorCode.VIDEO_TRUNCATED, message) from error
            listing = _Listing(options, self.shown)
            entries = self._list(listing)
            self.close = opened.pop_all().close
        self.members: Sequence[Member] = sorted(listing.members, key=lambda member: natural_key(member.name))
        self.others = listing.others
        self._entries = [entries[member.name] for member in self.members]

    def shown(self, name: str) -> str:
        return f"{self._path}: {name}"

    def read(self, index: int) -> bytes:
        entry = self._entries[index]
        try:
            with self._zip.open(entry) as file:
                return file.read(entry.file_size)
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, ValueError):
            return b""

    def fingerprint(self) -> Iterator[bytes]:
        # The archive holds a checksum of each image.
        for entry in self._entries:
            yield entry.CRC.to_bytes(4, "big")

    def _list(self, listing: _Listing) -> dict[str, zipfile.ZipInfo]:
        entries: dict[str, zipfile.ZipInfo] = {}
        for entry in self._zip.infolist():
            listing.count()
            name = entry.filename
            if entry.is_dir() or _is_hidden(name) or not listing.takes(name):
                continue
            self._check(entry, is_double=name in entries)
            entries[name] = entry
            listing.add(name, entry.file_size)
        return entries

    def _check(self, entry: zipfile.ZipInfo, *, is_double: bool) -> None:
        """Raise RunnerError for an entry that cannot be read as an image."""
        kind = stat.S_IFMT(entry.external_attr >> 16)
        problem = ""
        if entry.flag_bits & ZIP_ENCRYPTED:
            problem = "is encrypted. Unpack the archive, and give the directory"
        elif entry.compress_type not in ZIP_METHODS:
            problem = f"is compressed by method {entry.compress_type}. Pack the archive with deflate"
        elif kind not in {0, stat.S_IFREG}:
            problem = "is a link or a special file. Pack the archive with the files themselves"
        elif is_double:
            problem = "is in the archive twice. Pack it anew"
        if problem:
            raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{self.shown(entry.filename)}: {problem}")

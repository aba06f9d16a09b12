"""Where a sequence of images lies: the directory or zip archive, its images in natural order, and their bytes."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final, Protocol

from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.video.decoder.archive import Archive, is_archive
from trio_runner.video.decoder.listing import Listing, is_hidden, natural_key, suffixes
from trio_runner.video.decoder.opening import is_directory, open_within

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trio_runner.config.sections import VideoSection
    from trio_runner.video.decoder.listing import Member

SAMPLES: Final = 16
SAMPLE_BYTES: Final = 64 * 1024


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
    store: _Directory | Archive
    if is_directory(descriptor):
        store = _Directory(descriptor, options, sign_of_life)
    elif is_archive(descriptor):
        store = Archive(descriptor, options, sign_of_life)
    else:
        return None
    if not store.members:
        store.close()
        beside = f", only {store.others} other file{'s' * (store.others > 1)}" if store.others else ""
        message = f"{options.path}: this {store.kind} holds no images{beside}. Images end with {suffixes()}"
        raise RunnerError(ErrorCode.VIDEO_NO_FRAMES, message)
    return store


class _Directory:
    """A directory and the directories in it; each file is opened when it is read, and closed again."""

    kind = "directory"

    def __init__(self, descriptor: int, options: VideoSection, sign_of_life: Callable[[], None]) -> None:
        self._descriptor, self._path, self._root = descriptor, options.path.rstrip("/"), options.root
        self._sign_of_life = sign_of_life
        self._listing = Listing(options, self.shown)
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
                    if is_hidden(entry.name):
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

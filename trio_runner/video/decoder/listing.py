"""Which files are images, and in which order: the same rules for a directory and for an archive."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from trio_runner.errors import ErrorCode, RunnerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_runner.config.sections import VideoSection

SUFFIXES: Final = frozenset({".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff"})

UNREADABLE_SUFFIXES: Final = frozenset(
    {
        *(".apng", ".arw", ".avif", ".cr2", ".cr3", ".dng", ".exr", ".gif", ".hdr", ".heic", ".heif", ".jp2", ".jxl"),
        *(".nef", ".orf", ".pbm", ".pgm", ".pnm", ".ppm", ".psd", ".raf", ".rw2", ".tga"),
    }
)
"""Images that are not read. They are refused by name, because a video without them would lack frames unnoticed."""

MAX_FILES: Final = 250_000
"""In one directory, or archive, with all directories in it."""

BYTES_PER_PIXEL: Final = 8
"""Of the largest image that is not compressed: four channels of 16 bits."""

EXTRA_BYTES: Final = 16 * 2**20
"""Beside its pixels a camera puts profiles, previews and short films into a file."""


@dataclass(frozen=True, slots=True)
class Member:
    """One image: its path within the directory or archive, and its size in bytes."""

    name: str
    size: int


def natural_key(path: str) -> tuple[object, ...]:
    """Sorts paths as people count: img2 before img10, and each directory as a whole."""
    parts = []
    for part in path.split("/"):
        pieces: list[Any] = re.split(r"([0-9]+)", part.casefold())
        # Numbers are compared as text, because Python converts no more than 4300 digits.
        pieces[1::2] = [(len(number), number) for number in (digits.lstrip("0") for digits in pieces[1::2])]
        parts.append(tuple(pieces))
    return tuple(parts), path


def suffixes() -> str:
    """How the names of images end, for messages."""
    return ", ".join(sorted(SUFFIXES))


def is_hidden(path: str) -> bool:
    """Whether an operating system put this file there, and not the user."""
    return any((part.startswith(".") and part.strip(".")) or part == "__MACOSX" for part in path.split("/"))


class Listing:
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
            problem = f"{suffix} images are not read. Convert it to one of {suffixes()}, or move it away"
            message = f"{self._shown(name)}: {problem}"
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

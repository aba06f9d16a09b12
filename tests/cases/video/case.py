"""What a case of the corpus is: a file that is made, and what a reader of videos should get from it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeAlias

from trio_runner.errors import ErrorCode

SIZE = (96, 64)
"""Width and height of most pictures: each cell of the painted number is one macroblock of 16 × 16 pixels."""

Shown: TypeAlias = tuple[int, float]
"""The number that a picture shows, and its presentation time in seconds."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One file of the corpus.

    `frames` are the frames that a player presents, in order. With a `code` the reader ends with that error. It may have
    given some of `frames` before, from the first on.
    """

    name: str
    """The file's name; its suffix chooses the container, unless the maker says otherwise."""
    make: Callable[[Path], object]
    """Writes the file."""
    frames: tuple[Shown, ...] = ()
    size: tuple[int, int] | None = SIZE
    """Width and height of each picture as a player shows it; None where the size changes or is not checked."""
    code: ErrorCode | None = None
    message: str = ""
    """A part of the error's message."""
    certain: tuple[Shown, ...] | None = None
    """Those of `frames` that the reader must give although it passes over damage; it may give others of them, too."""
    options: dict[str, Any] = field(default_factory=dict)
    """Keys of the config's section `[video]`."""


def steady(count: int, rate: Fraction | int = 25, *, first: int = 0, start: float = 0.0) -> tuple[Shown, ...]:
    """Frames at a constant rate, which show the numbers from `first` on; the first is presented at `start` seconds."""
    return tuple((first + index, start + float(index / Fraction(rate))) for index in range(count))


def timed(seconds: Iterable[float]) -> tuple[Shown, ...]:
    """Frames that show the numbers from 0 on, presented at `seconds`."""
    return tuple(enumerate(seconds))

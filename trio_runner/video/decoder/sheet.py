"""Draws a contact sheet: pictures of a video side by side, with number and time beneath each."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np

from trio_runner.video.report import MAX_PICTURES

if TYPE_CHECKING:
    from collections.abc import Sequence

SHEET_PIXELS: Final = 1920
"""The width of a sheet at most; a sheet of many pictures, which are as high as wide, is about as high."""

GAP_PIXELS: Final = 8
LABEL_PIXELS: Final = 22
NARROWEST_PIXELS: Final = 144
"""The width of a column at least: a label must be legible under a picture of a few pixels, too."""

FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
FONT_SCALE: Final = 0.5
PAPER, INK, WARNING = (250, 250, 250), (40, 40, 40), (30, 30, 200)
"""Colours as blue, green, red."""


class Sheet:
    """Collects pictures, scaled down to what the sheet has room for, and draws them in the end."""

    def __init__(self, count: int) -> None:
        """`count` pictures at most will be added."""
        self._columns = math.ceil(math.sqrt(min(count, MAX_PICTURES)))
        self._room = (SHEET_PIXELS - GAP_PIXELS) // self._columns - GAP_PIXELS
        self._pictures: list[tuple[Any, str, tuple[int, int, int]]] = []

    @property
    def is_empty(self) -> bool:
        """Whether no picture was added."""
        return not self._pictures

    def add(self, index: int, pts_seconds: float, image: Any, *, whole: bool = True) -> None:
        """Add a picture, a BGR array, or None where there is only damage to show."""
        if image is None:
            image = np.full((NARROWEST_PIXELS * 3 // 4, NARROWEST_PIXELS, 3), 200, np.uint8)
        height, width = image.shape[:2]
        scale = min(1.0, self._room / max(width, height))
        # A picture that is a thousand times as wide as high is still a pixel high.
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        # The picture is copied, because the caller may use its memory for the next one.
        scaled = cv2.resize(image, size, interpolation=cv2.INTER_AREA) if scale < 1 else image.copy()
        label = f"{index}   {pts_seconds:.3f} s{'' if whole else '  damaged'}"
        self._pictures.append((scaled, label, INK if whole else WARNING))

    def draw(self) -> Any:
        """The sheet as a BGR array."""
        column = max([NARROWEST_PIXELS, *(image.shape[1] for image, _, _ in self._pictures)])
        rows = [self._pictures[start : start + self._columns] for start in range(0, len(self._pictures), self._columns)]
        heights = [max(image.shape[0] for image, _, _ in row) for row in rows]
        width = GAP_PIXELS + min(self._columns, len(self._pictures)) * (column + GAP_PIXELS)
        height = GAP_PIXELS + sum(heights) + len(rows) * (LABEL_PIXELS + GAP_PIXELS)
        sheet = np.full((height, width, 3), PAPER, np.uint8)
        top = GAP_PIXELS
        for row, row_height in zip(rows, heights, strict=True):
            for place, (image, label, colour) in enumerate(row):
                left = GAP_PIXELS + place * (column + GAP_PIXELS)
                # All labels of a row stand in one line, and each picture stands right above its own.
                bottom = top + row_height
                sheet[bottom - image.shape[0] : bottom, left : left + image.shape[1]] = image
                _write(sheet, label, (left, bottom), column, colour)
            top += row_height + LABEL_PIXELS + GAP_PIXELS
        return sheet


def encode(sheet: Any, suffix: str) -> bytes:
    """The sheet as the bytes of an image file of this kind."""
    _, encoded = cv2.imencode(suffix, sheet)
    return bytes(encoded.tobytes())


def _write(sheet: Any, label: str, place: Sequence[int], room: int, colour: Sequence[int]) -> None:
    """Write the label beneath `place`, in letters small enough for the room there is."""
    (width, _), _ = cv2.getTextSize(label, FONT, FONT_SCALE, 1)
    scale = FONT_SCALE * min(1.0, room / width)
    left, top = place
    cv2.putText(sheet, label, (left, top + LABEL_PIXELS - 7), FONT, scale, colour, 1, cv2.LINE_AA)

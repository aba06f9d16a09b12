"""Pictures that carry their own number, and the answer of a service that reads it.

The number is painted over the whole picture as 6 × 4 black and white cells: 16 bits of number, highest first,
then 8 bits of checksum. A picture that was turned, mirrored, torn or smeared is, but for one in 256,
unreadable rather than misread.

This module imports numpy and OpenCV alone: servers that other people wrote run it in environments of their own.
"""

from __future__ import annotations

import itertools
import zlib
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Image = npt.NDArray[np.uint8]

COLUMNS, ROWS, NUMBER_BITS = 6, 4, 16
BLACK, WHITE = 16, 235
UNSURE = range(96, 160)


def checksum(number: int) -> int:
    """Return 8 bits that differ for numbers one or two bits apart, and for 0 are not 0: black shows none."""
    return zlib.crc32(number.to_bytes(2)) & 0xFF


def paint(number: int, size: tuple[int, int]) -> Image:
    """Return a grey picture (height, width) that shows `number` (0..65535); size is (width, height)."""
    code = number << 8 | checksum(number)
    bits = [code >> shift & 1 for shift in reversed(range(COLUMNS * ROWS))]
    cells = np.where(np.array(bits).reshape(ROWS, COLUMNS), WHITE, BLACK).astype(np.uint8)
    return np.asarray(cv2.resize(cells, size, interpolation=cv2.INTER_NEAREST), np.uint8)


def read_frame_number(image: Image) -> int:
    """Read the number back from a BGR (h, w, 3) or grey (h, w) picture of any size from 24 × 16 on.

    Raises:
        ValueError: the picture shows no number, or not upright, or too damaged to be sure of it.
    """
    height, width = image.shape[:2]
    if width < 4 * COLUMNS or height < 4 * ROWS:
        raise ValueError(f"{width} × {height} pixels are too few to show a number")
    code = 0
    for row, column in itertools.product(range(ROWS), range(COLUMNS)):
        # The middle half of a cell: its rim is where compression and scaling smear the neighbours in.
        top, bottom = (round((row + part) * height / ROWS) for part in (0.25, 0.75))
        left, right = (round((column + part) * width / COLUMNS) for part in (0.25, 0.75))
        level = round(float(image[top:bottom, left:right].mean()))
        if level in UNSURE:
            raise ValueError(f"cell {column},{row} is neither black nor white: {level}")
        code = code << 1 | (level >= UNSURE.stop)
    number = code >> 8
    if code & 0xFF != checksum(number):
        raise ValueError(f"the checksum of {number} is {checksum(number)}, the picture says {code & 0xFF}")
    return number


def answer_for(number: int, width: int, height: int) -> dict[str, Any]:
    """The one detection in the picture `number`, in pixels of a picture of `width` × `height`."""
    left, top = (number % 8) / 16, (number // 8 % 8) / 16
    box = [left * width, top * height, (left + 0.25) * width, (top + 0.25) * height]
    return {"class": f"frame-{number}", "confidence": number % 100 / 100, "bbox": box}

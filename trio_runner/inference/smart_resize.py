"""The size to which services for Qwen2-VL and Qwen2.5-VL resize a picture before the model sees it."""

from __future__ import annotations

import math
from typing import Final

FACTOR: Final = 28
"""Two patches of 14 pixels: one token of the model covers so many pixels each way."""


def smart_resize(width: int, height: int, *, min_pixels: int, max_pixels: int) -> tuple[int, int]:
    """The width and height that a picture of `width` × `height` pixels is resized to; its boxes are in these pixels.

    Both are multiples of 28, the nearest ones if the area lies within the limits. If it does not, both sides are scaled
    by one factor to the limit and rounded towards it. The rounding is that of `smart_resize` in Hugging Face's
    `image_processing_qwen2_vl.py` and in `qwen_vl_utils`, which vLLM and SGLang use too: Python's `round`, to even.

    Args:
        width: Of the picture that was sent.
        height: Of the picture that was sent.
        min_pixels: The smallest area, `min_pixels` of the model's `preprocessor_config.json`.
        max_pixels: The largest area, `max_pixels` there.
    """
    wide, high = _nearest(width), _nearest(height)
    if wide * high > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        return _below(width / shrink), _below(height / shrink)
    if wide * high < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        return _above(width * grow), _above(height * grow)
    return wide, high


def _nearest(side: int) -> int:
    return max(FACTOR, round(side / FACTOR) * FACTOR)


def _below(side: float) -> int:
    return max(FACTOR, math.floor(side / FACTOR) * FACTOR)


def _above(side: float) -> int:
    return math.ceil(side / FACTOR) * FACTOR

"""Draws detections into a picture: boxes with labels, keypoints and outlines, readable at full size."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import cv2
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.model import Detection

FONT: Final = cv2.FONT_HERSHEY_SIMPLEX
COLOURS: Final = ((60, 60, 230), (60, 180, 60), (230, 120, 30), (30, 170, 240), (200, 60, 200), (180, 170, 20))
"""Blue, green and red of each. A label has always the same one in a picture."""
LETTERS_OF_A_HEIGHT: Final = 40
"""A line of text takes this part of the picture's height, within the limits below."""
SMALLEST, LARGEST = 12, 48
"""Pixels of a line of text."""
MAX_LABEL: Final = 60


def drawn(picture: bytes, detections: Sequence[Detection], suffix: str) -> bytes:
    """The picture, a JPEG of the decoder's, with the detections in it, as an image file (".png", ".jpg")."""
    image: Any = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    line = max(SMALLEST, min(LARGEST, image.shape[0] // LETTERS_OF_A_HEIGHT))
    thick = max(1, line // 10)
    labels = list(dict.fromkeys(each.label for each in detections))
    colours = [COLOURS[labels.index(each.label) % len(COLOURS)] for each in detections]
    for each, colour in zip(detections, colours, strict=True):
        _draw_shape(image, each, colour, thick)
    free = line // 2
    # The labels come last, so that no box runs through one of them.
    for each, colour in zip(detections, colours, strict=True):
        text = _label(each)
        if each.bbox is None:
            _write(image, text, (line // 2, free + line), line, colour)
            free += line + line // 2
        else:
            _write(image, text, (round(each.bbox[0]), round(each.bbox[1])), line, colour)
    _, encoded = cv2.imencode(suffix, image)
    return bytes(encoded.tobytes())


def _draw_shape(image: Any, detection: Detection, colour: tuple[int, int, int], thick: int) -> None:
    if detection.bbox is not None:
        x1, y1, x2, y2 = map(round, detection.bbox)
        cv2.rectangle(image, (x1, y1), (x2, y2), colour, thick, cv2.LINE_AA)
    polygon = detection.attributes.get("mask", {}).get("polygon")
    if polygon:
        cv2.polylines(
            image, [np.rint(np.array(polygon)).astype(np.int32)], isClosed=True, color=colour, thickness=thick
        )
    for x, y, *_ in detection.attributes.get("keypoints", ()):
        cv2.circle(image, (round(x), round(y)), 2 * thick, colour, cv2.FILLED, cv2.LINE_AA)


def _label(detection: Detection) -> str:
    score = "" if detection.confidence is None else f" {detection.confidence:.2f}"
    text = detection.attributes.get("text")
    said = f": {text}" if isinstance(text, str) else ""
    whole = detection.label + score + said
    # OpenCV's letters are those of ASCII.
    plain = "".join(letter if " " <= letter <= "~" else "?" for letter in whole)
    return plain if len(plain) <= MAX_LABEL else plain[: MAX_LABEL - 3] + "..."


def _write(image: Any, text: str, place: tuple[int, int], line: int, colour: tuple[int, int, int]) -> None:
    """Write the text on a ground of its colour, with its lower left corner at `place`, but inside the picture."""
    height, width = image.shape[:2]
    scale, thick = line / 30, max(1, line // 14)
    (wide, high), low = cv2.getTextSize(text, FONT, scale, thick)
    edge = max(2, line // 6)
    left = max(0, min(place[0], width - wide - 2 * edge))
    bottom = max(high + low + 2 * edge, min(place[1], height))
    cv2.rectangle(image, (left, bottom - high - low - 2 * edge), (left + wide + 2 * edge, bottom), colour, cv2.FILLED)
    cv2.putText(image, text, (left + edge, bottom - low - edge), FONT, scale, (255, 255, 255), thick, cv2.LINE_AA)

"""What a service found in one frame into detections: its boxes are judged together, as a wrong scale shows in all."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

from trio_runner.inference.answer import BadAnswerError
from trio_runner.inference.protocol import Reading
from trio_runner.model import Detection

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trio_runner.config.inference import BoxKeys
    from trio_runner.model import Frame

Four = tuple[float, float, float, float]

FORMATS: Final[Mapping[str, Callable[[float, float, float, float], Four]]] = MappingProxyType(
    {
        "xyxy": lambda x1, y1, x2, y2: (x1, y1, x2, y2),
        "xywh": lambda x, y, width, height: (x, y, x + width, y + height),
        "cxcywh": lambda x, y, width, height: (x - width / 2, y - height / 2, x + width / 2, y + height / 2),
        "yxyx": lambda y1, x1, y2, x2: (x1, y1, x2, y2),
        "xxyy": lambda x1, x2, y1, y2: (x1, y1, x2, y2),
    }
)
"""The orders in which services write the four numbers of a box, and the corners that they mean."""

SPANS: Final[Mapping[str, float]] = MappingProxyType({"pixels": 0.0, "0-1": 1.0, "0-1000": 1000.0})
"""The number that means the whole width, or the whole height; 0 where pixels of the sent picture are counted."""

MOST_OF_A_SIDE: Final = 1.5
"""A box from 0 to 1 may reach beyond the picture, but not by more than half of a side."""

ROUNDING: Final = 0.01
"""Pixels by which a service that rounds may put the right corner left of the left one."""

OVERSHOOT: Final = 0.1
"""A box that reaches further beyond the border than this part of the side tells of a wrong scale, if most do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One object, or one label of the whole frame, as the service describes it."""

    path: str
    """Its place in the answer, for messages."""
    label: str
    class_id: int | None = None
    confidence: float | None = None
    box: tuple[str, Four] | None = None
    """Its place in the answer, and its four numbers."""
    attributes: dict[str, Any] = field(default_factory=dict)
    """In the form of `model.Detection`, in source pixels."""


def reading(found: Sequence[Found], frame: Frame, keys: BoxKeys, table: str, *, tokens: int = 0) -> Reading:
    """The detections of one frame, with boxes in source pixels; raises BadAnswerError as `place` does.

    Either all of `found` have a box or none has one: a single item without a box would be one whose box was not found.
    """
    boxes = [each.box for each in found if each.box is not None]
    if boxes and len(boxes) < len(found):
        path = next(each.path for each in found if each.box is None)
        raise BadAnswerError(f"{path}: no box, although other items have one")
    placed, clipped = place(boxes, frame, keys, table) if boxes else ([None] * len(found), 0)
    detections = tuple(
        Detection(each.label, each.confidence, box, each.class_id, each.attributes)
        for each, box in zip(found, placed, strict=True)
        if box is not None or not boxes
    )
    return Reading(detections, clipped, tokens)


def place(given: Sequence[tuple[str, Four]], frame: Frame, keys: BoxKeys, table: str) -> tuple[list[Four | None], int]:
    """The corners of each box in source pixels, cut off at the border, and how many were cut off.

    A box is None, and counts as cut off, where it lies in the padding around the picture.

    Args:
        given: Each box as the service writes it, with its JSON path.
        frame: The frame that was sent.
        keys: `box_format` and `box_scale`.
        table: The name of the table of these keys, for messages.

    Raises:
        BadAnswerError: A box lies wholly outside the picture, its corners are out of order, most boxes overshoot the
            border by more than a tenth of the side, or all numbers lie within 0 to 1 although the scale is
            neither that nor pixels by configuration.
    """
    if keys.box_scale in {"", "0-1000"} and given and all(map(_looks_normalised, (box for _, box in given))):
        raise BadAnswerError(
            f"{given[0][0]}: all boxes lie within 0 to 1, which looks like a scale of 0 to 1: set "
            f'{table}.box_scale = "0-1", or "pixels" if these are pixels'
        )
    way = (keys.box_format, keys.box_scale or "pixels")
    corners = [_corners(box, frame, *way) for _, box in given]
    if 2 * sum(_overshoots(box, frame) for box in corners) > len(corners):
        path, box = next((path, box) for (path, _), box in zip(given, corners, strict=True) if _overshoots(box, frame))
        raise BadAnswerError(
            f"{path}: {_shown(box)} reaches far beyond the picture of {frame.sent_width}×{frame.sent_height}, as most "
            f"boxes do{_remedy(given, frame, way, table)}"
        )
    placed: list[Four | None] = []
    clipped = 0
    for (path, _), box in zip(given, corners, strict=True):
        problem = _problem(box, frame)
        if problem:
            raise BadAnswerError(f"{path}: {_shown(box)} {problem}{_remedy(given, frame, way, table)}")
        inside, cut = _in_source(box, frame)
        placed.append(inside)
        clipped += cut
    return placed, clipped


def point_in_source(x: float, y: float, frame: Frame, scale: str) -> tuple[float, float]:
    """A point of the sent picture in source pixels; one beyond the border stays there.

    Args:
        x: Its distance from the left.
        y: Its distance from the top.
        frame: The frame that was sent.
        scale: As `box_scale`; "" means pixels.
    """
    x, y, _, _ = _corners((x, y, x, y), frame, "xyxy", scale or "pixels")
    left, top, width, height = frame.inset or (0, 0, frame.sent_width, frame.sent_height)
    return round((x - left) * frame.width / width, 2), round((y - top) * frame.height / height, 2)


def _looks_normalised(box: Four) -> bool:
    """Whether these could be parts of the sides: a box may overshoot the border there as well."""
    return all(-MOST_OF_A_SIDE / 3 <= number <= MOST_OF_A_SIDE for number in box)


def _corners(box: Four, frame: Frame, form: str, scale: str) -> Four:
    """Left, top, right and bottom in pixels of the sent picture."""
    x1, y1, x2, y2 = FORMATS[form](*box)
    span = SPANS[scale]
    if not span:
        return x1, y1, x2, y2
    across, down = frame.sent_width / span, frame.sent_height / span
    return x1 * across, y1 * down, x2 * across, y2 * down


def _overshoots(box: Four, frame: Frame) -> bool:
    slack_x, slack_y = OVERSHOOT * frame.sent_width, OVERSHOOT * frame.sent_height
    x1, y1, x2, y2 = box
    return x1 < -slack_x or y1 < -slack_y or x2 > frame.sent_width + slack_x or y2 > frame.sent_height + slack_y


def _problem(box: Four, frame: Frame) -> str:
    x1, y1, x2, y2 = box
    if x2 < x1 - ROUNDING or y2 < y1 - ROUNDING:
        return "has its corners out of order"
    if x2 < 0 or y2 < 0 or x1 > frame.sent_width or y1 > frame.sent_height:
        return f"lies wholly outside the picture of {frame.sent_width}×{frame.sent_height}"
    return ""


def _in_source(box: Four, frame: Frame) -> tuple[Four | None, bool]:
    """The box in source pixels, and whether it was cut off; None where it lies in the padding alone."""
    left, top, width, height = frame.inset or (0, 0, frame.sent_width, frame.sent_height)
    across, down = frame.width / width, frame.height / height
    x1, y1, x2, y2 = (
        round((box[0] - left) * across, 2),
        round((box[1] - top) * down, 2),
        round((max(box[0], box[2]) - left) * across, 2),
        round((max(box[1], box[3]) - top) * down, 2),
    )
    if x2 < 0 or y2 < 0 or x1 > frame.width or y1 > frame.height:
        return None, True
    inside = (max(x1, 0.0), max(y1, 0.0), min(x2, float(frame.width)), min(y2, float(frame.height)))
    return inside, inside != (x1, y1, x2, y2)


def _remedy(given: Sequence[tuple[str, Four]], frame: Frame, used: tuple[str, str], table: str) -> str:
    """The settings with which every box would lie in the picture, with the fewest changes; empty if there are none."""
    ways = [
        way
        for way in itertools.product(FORMATS, SPANS)
        if _fits([_corners(box, frame, *way) for _, box in given], frame)
    ]
    changes = min((_changes(way, used) for way in ways), default=0)
    settings = [_settings(way, used, table) for way in ways if _changes(way, used) == changes]
    if not settings:
        return ""
    draws = "; trio-runner probe -o draws them, which shows the right one" if len(settings) > 1 else ""
    return f": {', or '.join(settings)} would fit{draws}"


def _fits(boxes: Sequence[Four], frame: Frame) -> bool:
    return not any(_problem(box, frame) or _overshoots(box, frame) for box in boxes)


def _changes(way: tuple[str, str], used: tuple[str, str]) -> int:
    return sum(new != old for new, old in zip(way, used, strict=True))


def _settings(way: tuple[str, str], used: tuple[str, str], table: str) -> str:
    names = zip(("box_format", "box_scale"), way, used, strict=True)
    return " and ".join(f'{table}.{key} = "{new}"' for key, new, old in names if new != old)


def _shown(box: Four) -> str:
    return "[" + ", ".join(f"{number:g}" for number in box) + "]"

"""The `predict` protocol: a JPEG in a multipart field, answered by a JSON list of labelled boxes.

    POST {url}/predict   field `frame` (frame.jpg, image/jpeg)
    200 {"predictions": [{"class": "person", "confidence": 0.9, "bbox": [x1, y1, x2, y2]}]}

Services of this kind spell the answer in several ways (`detections`, `boxes` or `prediction` for the list; `class_name`
or `label`; `score`, or no confidence at all; `box`, `bb`, a box within a list, or four scalars). All of these are
accepted, and nothing else. One wrong item makes the whole answer an error; so does a sign of failure beside the list.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trio_runner.inference.answer import (
    BadAnswerError,
    confidence,
    contents,
    items,
    json_kind,
    named,
    number,
    parse_json,
    refuse_empty_failure,
    refuse_failure,
)
from trio_runner.inference.boxes import Found, reading
from trio_runner.inference.multipart import form
from trio_runner.inference.protocol import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.config.inference import InferenceSection, PredictSection
    from trio_runner.inference.boxes import Four
    from trio_runner.inference.protocol import Answer, Reading, WireProtocol
    from trio_runner.model import Frame

TABLE: Final = "inference.predict"
LIST_KEYS: Final = ("predictions", "detections", "boxes", "prediction")
LABEL_KEYS: Final = ("class", "class_name", "label")
SCORE_KEYS: Final = ("confidence", "score")
BOX_KEYS: Final = ("bbox", "box", "bb")
CORNER_KEYS: Final = ("x1", "y1", "x2", "y2")
_ANOTHER_SHAPE: Final = (
    '; a service of another shape is reached with inference.protocol = "http"; `trio-runner protocols` lists presets'
)


def open_protocol(config: InferenceSection, names: Sequence[str]) -> WireProtocol:
    """The protocol with the table `[inference.predict]` and the names of the classes."""
    return Predict(config.predict, tuple(names), secrets.token_hex(16))


@dataclass(frozen=True, slots=True)
class Predict:
    """One service of this kind."""

    keys: PredictSection
    names: tuple[str, ...]
    boundary: str
    """Separates the parts of the form; random, so that no picture holds it."""
    max_answer_bytes: int = 2**20
    max_frames: int = 1

    def call(self, frames: Sequence[Frame]) -> Call:
        """`POST {url}{path}` with the JPEG in the multipart field `field`."""
        (frame,) = frames
        content_type, body = form(self.boundary, self.keys.field, frame.content)
        return Call(path=self.keys.path, headers=(("Content-Type", content_type),), body=body)

    def read(self, answer: Answer, frames: Sequence[Frame]) -> Sequence[Reading]:
        """The frame's detections; raises BadAnswerError with the JSON path of the wrong value."""
        (frame,) = frames
        whole = parse_json(answer.body)
        if not isinstance(whole, dict):
            raise BadAnswerError(f"$: expected an object, got {json_kind(whole)}")
        refuse_failure(whole, LIST_KEYS)
        key = _only_one(whole, LIST_KEYS, "$")
        listed = items(whole[key], f"$.{key}")
        found = [_found(item, f"$.{key}[{place}]", self.names) for place, item in enumerate(listed)]
        if not found:
            refuse_empty_failure(whole)
        return [reading(found, frame, self.keys, TABLE)]

    def readiness(self) -> Call | None:
        """None: the protocol has no request of that kind."""
        return None


def _found(item: Any, path: str, names: Sequence[str]) -> Found:
    if not isinstance(item, dict):
        raise BadAnswerError(f"{path}: expected an object, got {json_kind(item)}")
    label_key = _only_one(item, LABEL_KEYS, path)
    score_key = _only_one(item, SCORE_KEYS, path, required=False)
    label, class_id = named(item[label_key], f"{path}.{label_key}", names)
    return Found(
        path=path,
        label=label,
        class_id=class_id,
        confidence=None if score_key is None else confidence(item[score_key], f"{path}.{score_key}"),
        box=_box(item, path),
    )


def _box(item: dict[str, Any], path: str) -> tuple[str, Four] | None:
    """The place of the box and its four numbers; None for a classification, which has label and score alone."""
    # A box may also be four scalars; the first one's key stands for all of them.
    key = _only_one(item, (*BOX_KEYS, CORNER_KEYS[0]), path, required=not _is_classification(item))
    if key is None:
        return None
    if key == CORNER_KEYS[0]:
        corners = [item[name] for name in CORNER_KEYS if name in item]
    else:
        corners, path = item[key], f"{path}.{key}"
        if isinstance(corners, dict):
            there = contents(corners, "it")
            raise BadAnswerError(f"{path}: expected [x1, y1, x2, y2], got an object: {there}{_ANOTHER_SHAPE}")
        if isinstance(corners, list) and len(corners) == 1:
            corners = corners[0]
    if not isinstance(corners, list) or len(corners) != len(CORNER_KEYS):
        raise BadAnswerError(f"{path}: expected [x1, y1, x2, y2]")
    x1, y1, x2, y2 = (number(corner, f"{path}[{place}]") for place, corner in enumerate(corners))
    return path, (x1, y1, x2, y2)


def _is_classification(item: dict[str, Any]) -> bool:
    """Whether an item has a label and a score and, beside them, nothing in which a box could be hidden."""
    others = {key: value for key, value in item.items() if key not in (*LABEL_KEYS, *SCORE_KEYS)}
    numbers = [value for key, value in others.items() if isinstance(value, int | float) and not key.endswith("_id")]
    tables = [value for value in others.values() if isinstance(value, list | dict)]
    return len(others) < len(item) - 1 and not numbers and not tables


def _only_one(holder: dict[str, Any], keys: tuple[str, ...], path: str, *, required: bool = True) -> Any:
    found = [key for key in keys if key in holder]
    if len(found) > 1:
        raise BadAnswerError(f"{path}: both {found[0]!r} and {found[1]!r}: which one counts?")
    if not found and required:
        there = contents(holder, "the answer" if path == "$" else "the item")
        raise BadAnswerError(f"{path}: none of {', '.join(keys)}: {there}{_ANOTHER_SHAPE}")
    return found[0] if found else None

"""The `predict` protocol: a JPEG in a multipart field, answered by a JSON list of labelled boxes.

    POST {url}/predict   field `frame` (frame.jpg, image/jpeg)
    200 {"predictions": [{"class": "person", "confidence": 0.9, "bbox": [x1, y1, x2, y2]}]}

Services of this kind spell the answer in several ways (`detections`, `boxes` or `prediction` for the list; `class_name`
or `label`; `score`, or no confidence at all; `box`, `bb`, a box within a list, or four scalars). All of these are
accepted, and nothing else. One wrong item makes the whole answer an error; so does a sign of failure beside the list.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import httpx

from trio_runner.inference.answer import (
    BadAnswerError,
    box,
    class_id,
    confidence,
    items,
    label,
    number,
    parse_json,
    quoted,
)
from trio_runner.model import Detection

if TYPE_CHECKING:
    from trio_runner.config.sections import InferenceSection
    from trio_runner.model import Frame

LIST_KEYS: Final = ("predictions", "detections", "boxes", "prediction")
LABEL_KEYS: Final = ("class", "class_name", "label")
SCORE_KEYS: Final = ("confidence", "score")
BOX_KEYS: Final = ("bbox", "box", "bb")
CORNER_KEYS: Final = ("x1", "y1", "x2", "y2")
COMPLAINT_KEYS: Final = ("error", "errors", "detail", "message", "reason")
FAILED_STATUSES: Final = frozenset({"error", "fail", "failed", "failure"})


def request(config: InferenceSection, frame: Frame) -> httpx.Request:
    """`POST {url}{path}` with the JPEG in the multipart field named `config.field`."""
    made = httpx.Request(
        "POST",
        config.url.rstrip("/") + config.path,
        files={config.field: ("frame.jpg", frame.jpeg, "image/jpeg")},
    )
    # Read into one piece: httpx would send the form's head, each 64 KiB of the picture and the form's tail separately.
    made.read()
    return made


def detections(body: bytes, frame: Frame) -> tuple[Detection, ...]:
    """The answer's detections in source pixels; raises BadAnswerError with the JSON path of the wrong value."""
    answer = parse_json(body)
    if not isinstance(answer, dict):
        raise BadAnswerError(f"$: expected an object, got {type(answer).__name__}")
    _refuse_failure(answer)
    key = _only_one(answer, LIST_KEYS, "$")
    return tuple(
        _detection(item, frame, f"$.{key}[{place}]") for place, item in enumerate(items(answer[key], f"$.{key}"))
    )


def _refuse_failure(answer: dict[str, Any]) -> None:
    """Raise BadAnswerError for an answer with status 200 whose body reports a failure, whatever else it holds."""
    complaint = next((f": {quoted(answer[key])}" for key in COMPLAINT_KEYS if answer.get(key)), "")
    sign = next((f"$.{key}" for key, value in answer.items() if _means_failure(key, value)), "")
    if not sign and complaint and answer.keys().isdisjoint(LIST_KEYS):
        sign = "$"
    if sign:
        raise BadAnswerError(f"{sign}: the service reports a failure with status 200{complaint}")


def _means_failure(key: str, value: Any) -> bool:
    match key:
        case "success" | "ok":
            return value is not True
        case "error" | "errors":
            return bool(value)
        case "status":
            return isinstance(value, str) and value.lower() in FAILED_STATUSES
    return False


def _detection(item: Any, frame: Frame, path: str) -> Detection:
    if not isinstance(item, dict):
        raise BadAnswerError(f"{path}: expected an object, got {type(item).__name__}")
    label_key = _only_one(item, LABEL_KEYS, path)
    score_key = _only_one(item, SCORE_KEYS, path, required=False)
    return Detection(
        label=label(item[label_key], f"{path}.{label_key}"),
        confidence=None if score_key is None else confidence(item[score_key], f"{path}.{score_key}"),
        bbox=_box(item, frame, path),
        class_id=class_id(item[label_key], f"{path}.{label_key}"),
    )


def _box(item: dict[str, Any], frame: Frame, path: str) -> tuple[float, float, float, float]:
    # A box may also be four scalars; the first one's key stands for all of them.
    key = _only_one(item, (*BOX_KEYS, CORNER_KEYS[0]), path)
    if key == CORNER_KEYS[0]:
        corners = [item[name] for name in CORNER_KEYS if name in item]
    else:
        corners, path = item[key], f"{path}.{key}"
        if isinstance(corners, list) and len(corners) == 1:
            corners = corners[0]
    if not isinstance(corners, list) or len(corners) != len(CORNER_KEYS):
        raise BadAnswerError(f"{path}: expected [x1, y1, x2, y2]")
    x1, y1, x2, y2 = (number(corner, f"{path}[{place}]") for place, corner in enumerate(corners))
    return box((x1, y1, x2, y2), frame, path)


def _only_one(holder: dict[str, Any], keys: tuple[str, ...], path: str, *, required: bool = True) -> Any:
    found = [key for key in keys if key in holder]
    if len(found) > 1:
        raise BadAnswerError(f"{path}: both {found[0]!r} and {found[1]!r}: which one counts?")
    if not found and required:
        raise BadAnswerError(f"{path}: none of {', '.join(keys)}")
    return found[0] if found else None

"""The raw outputs of detectors, as they are exported, into candidates: boxes, scores and classes.

An exported YOLO gives one output. A row of it is a candidate: the centre, width and height of its box, and then

    v5         the score that there is an object, and the score of each class: [N, 5 + C]
    v8         the score of each class, also of v9, v11 and v12: [4 + C, N], by some exporters [N, 4 + C]
    end-to-end the corners of the box, a score and a class number, from v10 and v26 on: [N, 6]

DETR and its relatives give boxes [N, 4], centre, width and height from 0 to 1, and logits [N, C]. With a sigmoid each
class is judged by itself; with a softmax the last of C + 1 classes means that there is no object. RF-DETR has C + 1
logits and a sigmoid: its last logit belongs to no class.

How many classes have a name says where the scores of a raw head end: behind them an oriented box has an angle, and a
pose its points.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeAlias

import cv2
import numpy as np

from trio_runner.inference.answer import BadAnswerError

if TYPE_CHECKING:
    from collections.abc import Iterator

Array: TypeAlias = np.ndarray[Any, Any]

MAX_CANDIDATES: Final = 3000
"""Of more candidates than these, the best are kept. Their number bounds the time that the suppression takes."""

MAX_END_TO_END_ROWS: Final = 1000
"""An output [N, 6] with more rows is that of a detector of few classes before suppression."""

SLACK: Final = 1e-3
"""A score of a model in half precision may be so far beyond 0 and 1."""

END_TO_END_FIELDS: Final = 6

NAMES_REMEDY: Final = "set inference.labels: the number of classes says where they end"


@dataclass(frozen=True, slots=True, eq=False)
class Candidates:
    """Rows that belong together: corners of boxes, in the scale of the model, with scores and class numbers."""

    boxes: Array
    scores: Array
    classes: Array

    def chosen(self, rows: Array) -> Candidates:
        """The candidates of these rows."""
        return Candidates(self.boxes[rows], self.scores[rows], self.classes[rows])


def yolo(output: Array, path: str, *, classes: int, head: str, threshold: float, overlap: float) -> Candidates:
    """The objects that an exported YOLO finds: of candidates that overlap, the best.

    Args:
        output: The output for one frame.
        path: Its JSON path, for messages.
        classes: How many classes have a name; 0 where no names are known, which an end-to-end head alone allows.
        head: "auto", or one of the heads of this module's description.
        threshold: At least this score is kept.
        overlap: See `suppressed`.

    Raises:
        BadAnswerError: The output has another shape, or numbers that are no scores.
    """
    head, rows = _oriented(_finite(output, path), path, classes, head)
    if head == "end-to-end":
        # The model itself leaves one candidate for each object.
        return _above(Candidates(rows[:, :4], rows[:, 4], rows[:, 5]), threshold, path)
    scores = rows[:, 5:] * rows[:, 4:5] if head == "v5" else rows[:, 4:]
    return suppressed(_above(Candidates(_corners(rows[:, :4]), *_best(scores)), threshold, path), overlap)


def detr(logits: Array, boxes: Array, path: str, *, classes: int, activation: str, threshold: float) -> Candidates:
    """The candidates of a DETR whose score is at least `threshold`.

    Args:
        logits: The logits [N, C] for one frame.
        boxes: The boxes [N, 4] for the same frame.
        path: The JSON path of the logits, for messages.
        classes: How many classes have a name.
        activation: "sigmoid", "softmax", or "auto".
        threshold: At least this score is kept.

    Raises:
        BadAnswerError: The outputs have other shapes, or hold numbers that are not finite.
    """
    if logits.ndim != 2 or boxes.shape != (logits.shape[0], 4) or not logits.shape[1]:  # noqa: PLR2004 - rows of boxes
        raise BadAnswerError(
            f"{path}: {list(logits.shape)} for boxes {list(boxes.shape)}, but [N, C] and [N, 4] belong"
        )
    logits, boxes = _finite(logits, path), _finite(boxes, path)
    activation = _activation(logits.shape[1], path, classes, activation)
    if activation == "sigmoid":
        # The same as 1 / (1 + e^-x), without an overflow.
        scores = (1 + np.tanh(logits[:, :classes] / 2)) / 2
    else:
        powers = np.exp(logits - logits.max(axis=1, keepdims=True))
        scores = (powers / powers.sum(axis=1, keepdims=True))[:, :-1]
    return _above(Candidates(_corners(boxes), *_best(scores)), threshold, path)


def _activation(wide: int, path: str, classes: int, activation: str) -> str:
    """Sigmoid or softmax; raises BadAnswerError where `wide` logits do not say which, or do not fit the names."""
    logits = f"{path}: {wide} logits for {classes} names"
    if not classes or wide - classes not in {0, 1}:
        raise BadAnswerError(f"{logits}: {NAMES_REMEDY}")
    if wide == classes:
        if activation == "softmax":
            raise BadAnswerError(f"{logits}, but with a softmax the last logit has no name: {NAMES_REMEDY}")
        return "sigmoid"
    if activation == "auto":
        raise BadAnswerError(
            f'{logits}: set inference.oip.activation to "sigmoid" (RF-DETR, Deformable DETR, RT-DETR) or "softmax" '
            "(DETR, Conditional DETR, YOLOS)"
        )
    return activation


def suppressed(candidates: Candidates, overlap: float) -> Candidates:
    """The best candidates, without each that overlaps a better one of its class by more than `overlap` (IoU)."""
    boxes = candidates.boxes.astype(np.float64)
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    rows = cv2.dnn.NMSBoxesBatched(
        np.hstack([boxes[:, :2], sides]).tolist(),
        candidates.scores.astype(np.float32).tolist(),
        candidates.classes.astype(np.int32).tolist(),
        score_threshold=0.0,
        nms_threshold=overlap,
        top_k=MAX_CANDIDATES,
    )
    return candidates.chosen(np.array(rows, np.intp))


def _oriented(output: Array, path: str, classes: int, head: str) -> tuple[str, Array]:
    """Which head it is, and its output with a row for each candidate."""
    if output.ndim != 2:  # noqa: PLR2004 - a table
        raise BadAnswerError(f"{path}: {list(output.shape)} is no table of candidates")
    found = list(_readings(output, classes, head))
    if len(found) == 1:
        return found[0]
    if not classes and head != "end-to-end":
        raise BadAnswerError(f"{path}: {list(output.shape)}, and no class has a name: {NAMES_REMEDY}")
    raise BadAnswerError(
        f"{path}: {list(output.shape)} could be {len(found)} of the heads, as {classes} classes have names: set "
        "inference.oip.yolo_head, and the names of all classes in inference.labels"
    )


def _readings(output: Array, classes: int, head: str) -> Iterator[tuple[str, Array]]:
    """Each head that an output of this shape may come from, with a row for each candidate."""
    rows, fields = output.shape
    if head in {"auto", "end-to-end"} and fields == END_TO_END_FIELDS and rows <= MAX_END_TO_END_ROWS:
        yield "end-to-end", output
    if not classes:
        return
    for each, before in {"v5": 5, "v8": 4}.items():
        # In columns, a v8 with an angle for each box has as many fields as a v5, which is exported in rows.
        tables = (output,) if (head, each) == ("auto", "v5") else (output, output.T)
        for table in tables:
            if head in {"auto", each} and table.shape[1] == before + classes:
                yield each, table


def _corners(boxes: Array) -> Array:
    """Left, top, right and bottom of boxes given by centre, width and height."""
    centres, halves = boxes[:, :2], boxes[:, 2:] / 2
    return np.hstack([centres - halves, centres + halves])


def _best(scores: Array) -> tuple[Array, Array]:
    """The best score of each row, and its class."""
    classes = scores.argmax(axis=1)
    return np.take_along_axis(scores, classes[:, np.newaxis], axis=1)[:, 0], classes


def _above(candidates: Candidates, threshold: float, path: str) -> Candidates:
    scores = candidates.scores
    if scores.size and not (scores.min() >= -SLACK and scores.max() <= 1 + SLACK):
        raise BadAnswerError(
            f"{path}: scores from {scores.min():g} to {scores.max():g}: export the model with its sigmoid, or set "
            "inference.oip.yolo_head"
        )
    kept = candidates.chosen(np.flatnonzero(scores >= threshold))
    return Candidates(kept.boxes, kept.scores.clip(0, 1), kept.classes)


def _finite(values: Array, path: str) -> Array:
    """The numbers in at least single precision; raises BadAnswerError where one of them is none."""
    if values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise BadAnswerError(f"{path}: holds something that is no finite number")
    return values if values.dtype.itemsize > 2 else values.astype(np.float32)  # noqa: PLR2004 - half precision

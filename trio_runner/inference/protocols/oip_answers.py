"""The output tensors of a model into the detections of each frame, as the config names them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np

from trio_runner.config.inference import BoxKeys
from trio_runner.inference.answer import MAX_DETECTIONS, BadAnswerError, confidence, named, number, quoted
from trio_runner.inference.boxes import Found, reading

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from trio_runner.config.inference import OipSection
    from trio_runner.inference.protocol import Reading
    from trio_runner.inference.protocols.oip_tensors import Tensor
    from trio_runner.model import Frame

Array: TypeAlias = np.ndarray[Any, Any]

TABLE: Final = "inference.oip"
RAW_THRESHOLD: Final = 0.25
"""What Ultralytics keeps of a raw output where nobody sets a threshold."""

SLACK: Final = 1e-3
"""A score in half precision may be so far beyond 0 and 1."""

CORNERS: Final = 4


def readings(
    tensors: Mapping[str, Tensor], frames: Sequence[Frame], keys: OipSection, names: Sequence[str]
) -> list[Reading]:
    """The detections of each frame.

    Args:
        tensors: The outputs by their names.
        frames: The frames of the request.
        keys: Which output is what.
        names: The names of the classes.

    Raises:
        BadAnswerError: An output is missing, has another shape, or holds a value that none of its kind can be.
    """
    form: BoxKeys
    if keys.decode == "boxes":
        found, form = _objects(tensors, len(frames), keys, names), keys
    else:
        found = _candidates(tensors, len(frames), keys, names)
        form = BoxKeys(box_scale=keys.box_scale or ("0-1" if keys.decode == "detr" else ""))
    return [reading(each, frame, form, TABLE) for each, frame in zip(found, frames, strict=True)]


def _objects(tensors: Mapping[str, Tensor], frames: int, keys: OipSection, names: Sequence[str]) -> list[list[Found]]:
    """The objects in each frame, of outputs with an element for each object."""
    counts = [_count(each, f"$.outputs.{keys.count}") for each in _split(tensors, keys, "count", frames)]
    parts = {
        key: _split(tensors, keys, key, frames, counts) for key in ("boxes", "scores", "labels") if getattr(keys, key)
    }
    return [
        list(_listed({key: each[place] for key, each in parts.items()}, counts[place] if counts else None, keys, names))
        for place in range(frames)
    ]


def _split(
    tensors: Mapping[str, Tensor], keys: OipSection, key: str, frames: int, counts: Sequence[int] = ()
) -> list[Array]:
    """The part of the output that belongs to each frame; nothing where the config names none.

    The first dimension is that of the frames. Where `counts` says how many objects each frame has, it may be that of
    the objects of all frames.
    """
    name = getattr(keys, key)
    if not name:
        return []
    if name not in tensors:
        raise BadAnswerError(
            f"$.outputs: no output {quoted(name)}, but {quoted(', '.join(tensors))}: set {TABLE}.{key}"
        )
    values = tensors[name].values
    if frames == 1:
        return [values]
    if counts and values.ndim == (2 if key == "boxes" else 1) and len(values) == sum(counts):
        return np.split(values, np.cumsum(counts)[:-1])
    if values.ndim < _least_rank(key, keys) or len(values) != frames:
        raise BadAnswerError(
            f"$.outputs.{name}: {list(values.shape)} for {frames} frames, but the first dimension must be that of the "
            f"frames, and the next one that of the objects: set {TABLE}.batch = 1, or {TABLE}.count"
        )
    return list(values)


def _least_rank(key: str, keys: OipSection) -> int:
    """How many dimensions an output for several frames has at least.

    Boxes [2, 4] for two frames may both belong to one of them. The other outputs need no dimension of the objects where
    that of the boxes says how many a frame has.
    """
    if keys.decode == "boxes" and key == "boxes":
        return 3
    return 1 if key == "count" or keys.boxes else 2


def _listed(parts: Mapping[str, Array], count: int | None, keys: OipSection, names: Sequence[str]) -> Iterable[Found]:
    """The objects in one frame."""
    boxes, scores, labels = (parts.get(key) for key in ("boxes", "scores", "labels"))
    if boxes is not None:
        boxes = _numbers(boxes, f"$.outputs.{keys.boxes}")
        if boxes.size % CORNERS or (boxes.size and boxes.shape[-1] != CORNERS):
            raise BadAnswerError(f"$.outputs.{keys.boxes}: {list(boxes.shape)}, but a box has {CORNERS} numbers")
        boxes = boxes.reshape(-1, CORNERS)
    size = next(
        len(each.reshape(-1) if each is not boxes else each) for each in (boxes, labels, scores) if each is not None
    )
    classes: Array = np.zeros(size, np.intp)
    if scores is not None:
        scores = _numbers(scores, f"$.outputs.{keys.scores}").reshape(-1)
        if labels is None and boxes is None:
            classes = np.arange(size)
        elif labels is None and size and scores.size > size:
            of_classes = _of_classes(parts["scores"], size, keys)
            classes, scores = of_classes.argmax(axis=1), of_classes.max(axis=1)
        _check_size(scores, size, keys.scores)
    if labels is not None:
        classes = labels.reshape(-1)
        _check_size(classes, size, keys.labels)
    rows = _rows(scores, size if count is None else count, keys)
    if rows and rows[-1] >= size:
        raise BadAnswerError(f"$.outputs.{keys.count}: {count} objects, but there are {size}")
    for row in rows:
        label, class_id = _named(classes[row], f"$.outputs.{keys.labels or keys.scores}[{row}]", names)
        yield Found(
            path=f"$.outputs[{row}]",
            label=label,
            class_id=class_id,
            confidence=None if scores is None else _score(scores[row], f"$.outputs.{keys.scores}[{row}]"),
            box=None if boxes is None else _box(boxes[row], f"$.outputs.{keys.boxes}[{row}]"),
        )


def _of_classes(scores: Array, size: int, keys: OipSection) -> Array:
    """The scores with a row for each of `size` boxes and a column for each class, in whichever order they came.

    PaddleDetection gives a row for each class, as ONNX NonMaxSuppression takes them: [1, C, N].
    """
    shape = tuple(length for length in scores.shape if length != 1)
    if size == 1 and len(shape) == 1:
        return scores.reshape(1, -1)
    path = f"$.outputs.{keys.scores}"
    if len(shape) != 2 or size not in shape:  # noqa: PLR2004 - boxes and classes
        raise BadAnswerError(f"{path}: {list(scores.shape)} for {size} boxes, but [N], [N, C] or [C, N] belong")
    if shape == (size, size):
        raise BadAnswerError(
            f"{path}: {list(scores.shape)} for {size} boxes could be [N, C] or [C, N]: have the model give class "
            f"numbers, and set {TABLE}.labels"
        )
    return scores.reshape(shape) if shape[0] == size else scores.reshape(shape).T


def _rows(scores: Array | None, count: int, keys: OipSection) -> list[int]:
    """The numbers of the objects whose score is high enough, of the first `count`."""
    if scores is None:
        rows = list(range(count))
    else:
        counted = scores[:count]
        if not np.isfinite(counted).all():
            raise BadAnswerError(f"$.outputs.{keys.scores}: not a finite number")
        rows = [*map(int, np.flatnonzero(counted >= keys.score_threshold))] if keys.score_threshold else [*range(count)]
    _check_many(len(rows))
    return rows


def _candidates(
    tensors: Mapping[str, Tensor], frames: int, keys: OipSection, names: Sequence[str]
) -> list[list[Found]]:
    """The objects in each frame, of the raw outputs of a detector."""
    from trio_runner.inference.protocols import oip_heads  # noqa: PLC0415 - OpenCV is loaded where it is needed alone

    threshold = keys.score_threshold or RAW_THRESHOLD
    path = f"$.outputs.{keys.boxes}"
    found = []
    outputs = [_table(each) for each in _split(tensors, keys, "boxes", frames)]
    if keys.decode == "detr":
        logits = [_table(each) for each in _split(tensors, keys, "scores", frames)]
        each_frame = [
            oip_heads.detr(each, boxes, path, classes=len(names), activation=keys.activation, threshold=threshold)
            for each, boxes in zip(logits, outputs, strict=True)
        ]
    else:
        each_frame = [
            oip_heads.yolo(
                output, path, classes=len(names), head=keys.yolo_head, threshold=threshold, overlap=keys.nms_threshold
            )
            for output in outputs
        ]
    for candidates in each_frame:
        _check_many(len(candidates.scores))
        found.append(
            [
                Found(
                    path=path,
                    label=label,
                    class_id=class_id,
                    confidence=_score(score, path),
                    box=_box(box, path),
                )
                for box, score, each in zip(candidates.boxes, candidates.scores, candidates.classes, strict=True)
                for label, class_id in [_named(each, path, names)]
            ]
        )
    return found


def _table(values: Array) -> Array:
    """The values without the dimension of a batch of one."""
    while values.ndim > 2 and values.shape[0] == 1:  # noqa: PLR2004 - rows and columns
        values = values[0]
    return values


def _count(values: Array, path: str) -> int:
    if values.size != 1:
        raise BadAnswerError(f"{path}: {list(values.shape)}, but a frame has one count")
    count = number(_plain(values.reshape(-1)[0]), path)
    if count < 0 or count != int(count):
        raise BadAnswerError(f"{path}: {count:g} is no count")
    _check_many(int(count))
    return int(count)


def _check_many(count: int) -> None:
    if count > MAX_DETECTIONS:
        raise BadAnswerError(
            f"$.outputs: {count} detections, more than {MAX_DETECTIONS}: raise {TABLE}.score_threshold"
        )


def _check_size(values: Array, size: int, name: str) -> None:
    if values.size != size:
        raise BadAnswerError(f"$.outputs.{name}: {values.size} elements for {size} objects")


def _numbers(values: Array, path: str) -> Array:
    if values.dtype.kind not in "fiu":
        raise BadAnswerError(f"{path}: expected numbers")
    return values


def _named(value: Any, path: str, names: Sequence[str]) -> tuple[str, int | None]:
    """The label and the class number of an element, which is text, or a whole number in any datatype."""
    if isinstance(value, bytes):
        try:
            return named(value.decode(), path, names)
        except UnicodeDecodeError:
            raise BadAnswerError(f"{path}: {quoted(repr(value[:40]))} is not UTF-8") from None
    plain = number(_plain(value), path)
    if plain != int(plain):
        raise BadAnswerError(f"{path}: {plain:g} is no class number")
    return named(int(plain) if isinstance(plain, float) else plain, path, names)


def _score(value: Any, path: str) -> float:
    score = number(_plain(value), path)
    return confidence(min(max(score, 0.0), 1.0) if -SLACK <= score <= 1 + SLACK else score, path)


def _box(values: Array, path: str) -> tuple[str, tuple[float, float, float, float]]:
    x1, y1, x2, y2 = (number(_plain(each), f"{path}[{place}]") for place, each in enumerate(values))
    return path, (x1, y1, x2, y2)


def _plain(value: Any) -> Any:
    """An element as Python's own number; of a short float the shortest decimal, as 0.9 and not 0.8999999761581421."""
    if isinstance(value, np.float16 | np.float32):
        return float(str(value))
    return value.item() if isinstance(value, np.generic) else value

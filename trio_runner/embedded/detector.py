"""Finds the eighty COCO kinds of object in a picture: NanoDet-g under onnxruntime, with pure steps around it.

The network sees a 416 x 256 picture: the source is scaled to fit, and the rest is grey (a letterbox). It answers,
for each cell of three grids (strides 8, 16 and 32), eighty class scores and the distances from the cell's centre to
the four sides of a box. The constants are those of NanoDet's own configuration (github.com/RangiLyu/nanodet).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
import onnxruntime

if TYPE_CHECKING:
    from collections.abc import Iterable

    from numpy.typing import NDArray

    Image = NDArray[np.uint8]
    Floats = NDArray[np.float32]
    Indices = NDArray[np.intp]

MODEL_DIR = Path(__file__).parent / "models"

INPUT_WIDTH, INPUT_HEIGHT = 416, 256
STRIDES = (8, 16, 32)
DISTANCE_BINS = 11
GREY = 114
# Blue, green, red. With the channels in reverse order the boxes would be right and the classes wrong.
MEAN = np.array([103.53, 116.28, 123.675], dtype=np.float32)
DEVIATION = np.array([57.375, 57.12, 58.395], dtype=np.float32)


class Detection(NamedTuple):
    """One object: its COCO label, a confidence in [0, 1], and its box (x1, y1, x2, y2) in pixels of the source.

    `class_id` is the label's place in the list of the eighty.
    """

    label: str
    confidence: float
    box: tuple[float, float, float, float]
    class_id: int


class Letterbox(NamedTuple):
    """Where a source of `width` x `height` pixels lies in the network's input."""

    width: int
    height: int
    inner_width: int
    inner_height: int
    left: int
    top: int

    @classmethod
    def fit(cls, width: int, height: int) -> Letterbox:
        """Scale to the largest size that fits, at least one pixel either way, and centre it."""
        scale = min(INPUT_WIDTH / width, INPUT_HEIGHT / height)
        inner_width = max(1, round(width * scale))
        inner_height = max(1, round(height * scale))
        return cls(
            width,
            height,
            inner_width,
            inner_height,
            (INPUT_WIDTH - inner_width) // 2,
            (INPUT_HEIGHT - inner_height) // 2,
        )

    def to_source(self, boxes: Floats) -> Floats:
        """Map n x 4 boxes from the network's input to the source, cut off at the source's edges."""
        offset, scale, limit = self._offset(), self._scale(), self._limit()
        source: Floats = np.clip((boxes - offset) / scale, 0, limit)
        return source

    def to_input(self, boxes: Floats) -> Floats:
        """Map n x 4 boxes from the source to the network's input."""
        return boxes * self._scale() + self._offset()

    def _offset(self) -> Floats:
        return np.array([self.left, self.top, self.left, self.top], dtype=np.float32)

    def _scale(self) -> Floats:
        across, down = self.inner_width / self.width, self.inner_height / self.height
        return np.array([across, down, across, down], dtype=np.float32)

    def _limit(self) -> Floats:
        return np.array([self.width, self.height, self.width, self.height], dtype=np.float32)


def prepare(image_bgr: Image, letterbox: Letterbox) -> Floats:
    """Turn a height x width x 3 picture (blue, green, red) into the network's 1 x 3 x 256 x 416 input."""
    canvas = np.full((INPUT_HEIGHT, INPUT_WIDTH, 3), GREY, dtype=np.uint8)
    inner = cv2.resize(image_bgr, (letterbox.inner_width, letterbox.inner_height), interpolation=cv2.INTER_LINEAR)
    bottom, right = letterbox.top + letterbox.inner_height, letterbox.left + letterbox.inner_width
    canvas[letterbox.top : bottom, letterbox.left : right] = inner
    return np.ascontiguousarray(((canvas - MEAN) / DEVIATION).transpose(2, 0, 1)[np.newaxis])


def decode(outputs: Iterable[Floats], min_confidence: float) -> tuple[Floats, Floats, Indices]:
    """Read the network's outputs: n x 4 boxes in input pixels, n confidences, n class numbers.

    The outputs are recognised by their shapes, since runtimes give them in different orders. A side's distance is the
    expectation over eleven bins, in strides (Generalized Focal Loss, arXiv:2006.04388).
    """
    by_shape = {output.shape[-2:]: output.reshape(output.shape[-2:]) for output in outputs}
    class_count = min(columns for _, columns in by_shape if columns != 4 * DISTANCE_BINS)
    boxes, confidences, classes = [], [], []
    for stride in STRIDES:
        columns, rows = INPUT_WIDTH // stride, INPUT_HEIGHT // stride
        scores = by_shape[columns * rows, class_count]
        best = scores.argmax(axis=1)
        confidence = scores[np.arange(len(scores)), best]
        chosen = np.flatnonzero(confidence >= min_confidence)
        bins = by_shape[columns * rows, 4 * DISTANCE_BINS][chosen].reshape(-1, 4, DISTANCE_BINS)
        weights = np.exp(bins - bins.max(axis=2, keepdims=True))
        distances = stride * (weights @ np.arange(DISTANCE_BINS, dtype=np.float32)) / weights.sum(axis=2)
        centres = stride * (np.stack([chosen % columns, chosen // columns], axis=1) + np.float32(0.5))
        boxes.append(np.hstack([centres - distances[:, :2], centres + distances[:, 2:]]))
        confidences.append(confidence[chosen])
        classes.append(best[chosen])
    return np.concatenate(boxes).astype(np.float32), np.concatenate(confidences), np.concatenate(classes)


def intersection_over_union(box: Floats, boxes: Floats) -> Floats:
    """Overlap of one box with each of n x 4 boxes: shared area over joint area, 0 where both are empty."""
    corners = np.hstack([np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])])
    shared = _areas(corners)
    joint = _areas(box[np.newaxis]) + _areas(boxes) - shared
    overlap: Floats = np.divide(shared, joint, out=np.zeros_like(shared), where=joint > 0)
    return overlap


def _areas(boxes: Floats) -> Floats:
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    areas: Floats = sides[:, 0] * sides[:, 1]
    return areas


def suppress(boxes: Floats, confidences: Floats, classes: Indices, max_overlap: float) -> Indices:
    """Non-maximum suppression within each class: the indices of the boxes kept, most confident first.

    A box is dropped if a kept box of its class overlaps it by more than `max_overlap`. Equal confidences are ordered by
    class and place, so that the same boxes are kept whatever order they come in.
    """
    left = np.lexsort((*boxes.T, classes, -confidences))
    kept = []
    while left.size:
        best, left = left[0], left[1:]
        kept.append(best)
        rivals = classes[left] == classes[best]
        left = left[~(rivals & (intersection_over_union(boxes[best], boxes[left]) > max_overlap))]
    return np.array(kept, dtype=np.intp)


class Detector:
    """The network, loaded and ready; `detect` may be called from several threads at once."""

    def __init__(self, *, threads: int = 2, min_confidence: float = 0.45, max_overlap: float = 0.5) -> None:
        """Load the packaged model on the CPU and let it compute with `threads` threads per picture."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # By default idle workers keep a core busy in a loop between pictures.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        model = str(MODEL_DIR / "nanodet_g_256x416.onnx")
        self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self._input_name = self._session.get_inputs()[0].name
        self._labels = (MODEL_DIR / "coco_labels.txt").read_text(encoding="utf-8").splitlines()
        self._min_confidence = min_confidence
        self._max_overlap = max_overlap

    def detect(self, image_bgr: Image) -> list[Detection]:
        """Find the objects in a height x width x 3 picture (blue, green, red), most confident first.

        Confidences have four decimals and pixels two, so that an FP32 tensor and JSON have the same numbers.
        """
        height, width = image_bgr.shape[:2]
        letterbox = Letterbox.fit(width, height)
        outputs = self._session.run(None, {self._input_name: prepare(image_bgr, letterbox)})
        boxes, confidences, classes = decode(outputs, self._min_confidence)
        boxes = letterbox.to_source(boxes)
        kept = suppress(boxes, confidences, classes, self._max_overlap)
        objects = []
        for i in kept:
            left, top, right, bottom = (round(side, 2) for side in boxes[i].tolist())
            if left < right and top < bottom:
                number = int(classes[i])
                confidence = round(float(confidences[i]), 4)
                objects.append(Detection(self._labels[number], confidence, (left, top, right, bottom), number))
        return objects

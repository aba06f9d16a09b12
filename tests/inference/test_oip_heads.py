"""The raw outputs of detectors, against a reference that goes through them one by one."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from trio_runner.inference.answer import BadAnswerError
from trio_runner.inference.protocols.oip_heads import Candidates, detr, suppressed, yolo

CLASSES = 3
ROWS = 60
Found = list[tuple[int, float, list[float]]]


def rows_of(candidates: Candidates) -> Found:
    return [
        (int(each), round(float(score), 4), [round(float(number), 3) for number in box])
        for box, score, each in zip(candidates.boxes, candidates.scores, candidates.classes, strict=True)
    ]


def assert_same(candidates: Candidates, expected: Found) -> None:
    found = rows_of(candidates)
    assert [each for each, *_ in found] == [each for each, *_ in expected]
    assert [score for _, score, _ in found] == pytest.approx([score for _, score, _ in expected], abs=2e-4)
    assert [box for *_, box in found] == [pytest.approx(box, abs=2e-3) for *_, box in expected]


def overlap(one: list[float], other: list[float]) -> float:
    across = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    area = (one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1])
    return across * down / (area - across * down)


def reference(rows: list[list[float]], *, objectness: bool, threshold: float, most: float) -> Found:
    """Of the candidates in these rows those of each class that no better one covers, the best first."""
    found = []
    for x, y, width, height, *rest in rows:
        scores = [rest[0] * each for each in rest[1:]] if objectness else rest
        best = max(range(CLASSES), key=scores.__getitem__)
        if scores[best] >= threshold:
            box = [x - width / 2, y - height / 2, x + width / 2, y + height / 2]
            found.append((best, scores[best], box))
    kept: Found = []
    for each, score, box in sorted(found, key=lambda one: -one[1]):
        if not any(other == each and overlap(box, its) > most for other, _, its in kept):
            kept.append((each, score, box))
    return [(each, round(score, 4), [round(number, 3) for number in box]) for each, score, box in kept]


def head(seed: int, *, fields: int, rows: int = ROWS) -> np.ndarray[Any, Any]:
    """Boxes in a few heaps, so that many overlap."""
    random = np.random.default_rng(seed)
    boxes = np.hstack(
        [random.integers(1, 4, (rows, 2)) * 100 + random.normal(0, 8, (rows, 2)), random.uniform(60, 90, (rows, 2))]
    )
    return np.hstack([boxes, random.uniform(0, 1, (rows, fields - 4))]).astype(np.float32)


@pytest.mark.parametrize("seed", range(5))
def test_a_v8_is_read_in_columns_and_in_rows(seed: int) -> None:
    table = head(seed, fields=4 + CLASSES)
    expected = reference(table.tolist(), objectness=False, threshold=0.25, most=0.45)
    assert 3 <= len(expected) < 0.8 * ROWS
    for output, kind, classes in (
        (table.T, "auto", CLASSES),
        (table, "auto", CLASSES),
        (table, "v8", CLASSES),
        (np.ascontiguousarray(table.T), "v8", CLASSES),
    ):
        found = yolo(output, "$", classes=classes, head=kind, threshold=0.25, overlap=0.45)
        assert_same(found, expected)


@pytest.mark.parametrize("seed", range(5))
def test_a_v5_multiplies_by_the_score_of_an_object(seed: int) -> None:
    table = head(seed, fields=5 + CLASSES)
    expected = reference(table.tolist(), objectness=True, threshold=0.25, most=0.45)
    for kind, classes in (("auto", CLASSES), ("v5", CLASSES)):
        found = yolo(table, "$", classes=classes, head=kind, threshold=0.25, overlap=0.45)
        assert_same(found, expected)


def test_an_end_to_end_head_has_its_objects_already() -> None:
    table = np.array([[10, 20, 30, 40, 0.9, 2], [11, 20, 30, 40, 0.8, 2], [0, 0, 0, 0, 0.0, 0]], np.float32)
    for classes in (0, CLASSES, 80):
        found = yolo(table, "$", classes=classes, head="auto", threshold=0.25, overlap=0.45)
        assert rows_of(found) == [(2, 0.9, [10, 20, 30, 40]), (2, 0.8, [11, 20, 30, 40])]


def test_boxes_of_different_classes_do_not_suppress_each_other() -> None:
    table = np.array([[10, 10, 5, 5, 0.9, 0], [10, 10, 5, 5, 0, 0.8], [10, 10, 5, 5, 0.7, 0]], np.float32)
    found = yolo(table, "$", classes=2, head="v8", threshold=0.25, overlap=0.45)
    assert [(each, score) for each, score, _ in rows_of(found)] == [(0, 0.9), (1, 0.8)]
    everything = yolo(table, "$", classes=2, head="v8", threshold=0.25, overlap=1.0)
    assert len(everything.scores) == 3


def test_half_precision_is_read_like_single_precision() -> None:
    table = np.array([[10, 10, 5, 5, 0.9, 0], [100, 100, 5, 5, 0, 0.5]], np.float16)
    found = yolo(table, "$", classes=2, head="v8", threshold=0.25, overlap=0.45)
    assert [(each, round(score, 2)) for each, score, _ in rows_of(found)] == [(0, 0.9), (1, 0.5)]


@pytest.mark.parametrize(
    ("shape", "classes", "kind", "part"),
    [
        ((600, 85), 0, "auto", "no class has a name: set inference.labels: the number of classes says where they end"),
        ((20, 21504), 0, "auto", "set inference.labels"),
        ((20, 21504), 0, "v8", "set inference.labels"),
        ((20, 21504), 15, "auto", "could be 0 of the heads"),
        ((20, 21504), 15, "v8", "could be 0 of the heads"),
        ((600, 85), 79, "auto", "could be 0 of the heads, as 79 classes have names"),
        ((300, 6), 1, "auto", "could be 2 of the heads"),
        ((300, 7), 80, "end-to-end", "could be 0 of the heads"),
        ((60,), 0, "auto", "no table"),
        ((2, 60, 85), 0, "auto", "no table"),
    ],
)
def test_an_output_that_could_be_several_heads_is_not_guessed(
    shape: tuple[int, ...], classes: int, kind: str, part: str
) -> None:
    with pytest.raises(BadAnswerError) as caught:
        yolo(np.zeros(shape, np.float32), "$.outputs.o", classes=classes, head=kind, threshold=0.25, overlap=0.45)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("number", "part"), [(math.nan, "no finite number"), (math.inf, "no finite"), (7.5, "its sigmoid")]
)
def test_what_is_no_score_is_refused(number: float, part: str) -> None:
    table = head(1, fields=4 + CLASSES)
    table[3, 5] = number
    with pytest.raises(BadAnswerError, match=part):
        yolo(table, "$", classes=CLASSES, head="auto", threshold=0.25, overlap=0.45)


LOGITS = np.array([[4.0, -4.0, 0.0], [-4.0, -4.0, 6.0], [-3.0, 2.0, -3.0]], np.float32)
BOXES = np.array([[0.5, 0.5, 0.2, 0.4], [0.1, 0.1, 0.1, 0.1], [0.3, 0.6, 0.2, 0.2]], np.float32)


def test_a_detr_with_softmax_has_a_class_for_no_object() -> None:
    found = detr(LOGITS, BOXES, "$", classes=2, activation="softmax", threshold=0.25)
    powers = [[math.exp(each) for each in row] for row in LOGITS.tolist()]
    expected = [powers[0][0] / sum(powers[0]), powers[2][1] / sum(powers[2])]
    assert found.classes.tolist() == [0, 1]
    assert found.scores.tolist() == pytest.approx(expected, rel=1e-5)
    assert found.boxes.tolist() == [pytest.approx([0.4, 0.3, 0.6, 0.7]), pytest.approx([0.2, 0.5, 0.4, 0.7])]


def test_a_detr_with_sigmoid_judges_each_class_by_itself() -> None:
    found = detr(LOGITS, BOXES, "$", classes=3, activation="auto", threshold=0.25)
    assert found.classes.tolist() == [0, 2, 1]
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-each)) for each in (4, 6, 2)], rel=1e-5)
    large = detr(LOGITS * 1000, BOXES, "$", classes=3, activation="sigmoid", threshold=0.25)
    assert large.scores.tolist() == [1.0, 1.0, 1.0]


def test_the_spare_logit_of_an_rf_detr_is_no_class() -> None:
    found = detr(LOGITS, BOXES, "$", classes=2, activation="sigmoid", threshold=0.25)
    assert found.classes.tolist() == [0, 1], "the second row has its highest logit in the spare column"
    assert found.scores.tolist() == pytest.approx([1 / (1 + math.exp(-each)) for each in (4, 2)], rel=1e-5)


@pytest.mark.parametrize(
    ("classes", "activation", "part"),
    [
        (2, "auto", 'activation to "sigmoid" (RF-DETR, Deformable DETR, RT-DETR) or "softmax" (DETR'),
        (3, "softmax", "with a softmax the last logit has no name"),
        (0, "auto", "set inference.labels"),
        (0, "softmax", "set inference.labels"),
        (1, "sigmoid", "3 logits for 1 names: set inference.labels"),
        (80, "sigmoid", "3 logits for 80 names: set inference.labels"),
    ],
)
def test_a_detr_is_not_guessed(classes: int, activation: str, part: str) -> None:
    with pytest.raises(BadAnswerError) as caught:
        detr(LOGITS, BOXES, "$", classes=classes, activation=activation, threshold=0.25)
    assert part in str(caught.value)


def test_each_row_of_logits_has_a_box() -> None:
    with pytest.raises(BadAnswerError, match="belong"):
        detr(LOGITS, BOXES[:2], "$", classes=2, activation="auto", threshold=0.25)


def test_suppression_takes_a_bounded_number_of_candidates() -> None:
    table = head(3, fields=4 + CLASSES, rows=8400)
    boxes = np.hstack([table[:, :2], table[:, :2] + 1])
    crowd = Candidates(boxes * 100, table[:, 4], table[:, 5] * 0)
    assert len(suppressed(crowd, 0.45).scores) <= 3000


def test_nothing_found_is_nothing() -> None:
    table = head(1, fields=4 + CLASSES)
    assert rows_of(yolo(table, "$", classes=CLASSES, head="auto", threshold=1.0, overlap=0.45)) == []

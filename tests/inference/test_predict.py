from __future__ import annotations

import dataclasses
import json
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support.hostile_answers import assert_refusal, assert_sound
from tests.support.makers import make_frame
from trio_runner.config.inference import InferenceSection, PredictSection
from trio_runner.inference.answer import MAX_DETECTIONS, BadAnswerError
from trio_runner.inference.protocol import Answer, Reading
from trio_runner.inference.protocols import open_protocol
from trio_runner.model import Detection, Frame

FRAME = make_frame(size=(640, 480))
BOX = [10, 20, 30.5, 40]
ITEM: dict[str, Any] = {"class": "person", "confidence": 0.9, "bbox": BOX}
PERSON = Detection("person", 0.9, (10.0, 20.0, 30.5, 40.0))


def read(body: bytes, frame: Frame = FRAME, **config: Any) -> Reading:
    protocol = open_protocol(msgspec.convert({"predict": config}, InferenceSection))
    (reading,) = protocol.read(Answer({}, body), [frame])
    return reading


def detections(answer: Any, frame: Frame = FRAME, **config: Any) -> tuple[Detection, ...]:
    return read(json.dumps(answer).encode(), frame, **config).detections


def parsed(body: bytes, frame: Frame = FRAME) -> tuple[Detection, ...] | BadAnswerError:
    """Either of the two; anything else that is raised is a bug."""
    try:
        return read(body, frame).detections
    except BadAnswerError as error:
        return error


def refusal(answer: Any) -> str:
    with pytest.raises(BadAnswerError) as caught:
        detections(answer)
    assert str(caught.value).startswith("$")
    return str(caught.value)


# the request


def test_the_request_is_a_multipart_post_of_the_jpeg() -> None:
    config = InferenceSection(predict=PredictSection(path="/predict", field="image"))
    call = open_protocol(config).call([make_frame(content=b"\xff\xd8pixels\xff\xd9")])
    body = b"".join(call.body)
    assert (call.method, call.path) == ("POST", "/predict")
    ((name, content_type),) = call.headers
    boundary = content_type.removeprefix("multipart/form-data; boundary=").encode()
    assert name == "Content-Type"
    assert body.startswith(b"--" + boundary + b"\r\n")
    assert body.endswith(b"\r\n--" + boundary + b"--\r\n")
    assert b'name="image"; filename="frame.jpg"\r\nContent-Type: image/jpeg\r\n\r\n\xff\xd8pixels\xff\xd9\r\n' in body


# spellings that services are known to use


@pytest.mark.parametrize("key", ["predictions", "detections", "boxes", "prediction"])
def test_the_list_has_four_names(key: str) -> None:
    assert detections({key: [ITEM]}) == (PERSON,)


@pytest.mark.parametrize(
    "item",
    [
        {"class_name": "person", "confidence": 0.9, "bbox": BOX},
        {"label": "person", "score": 0.9, "box": BOX},
        {"label": "person", "score": 0.9, "bb": BOX},
        {"class": "person", "confidence": 0.9, "bbox": [BOX]},
        {"class": "person", "confidence": 0.9, "x1": 10, "y1": 20, "x2": 30.5, "y2": 40},
        {"class": "person", "confidence": 0.9, "bbox": BOX, "track_id": 7, "mask": None},
    ],
)
def test_an_item_has_several_spellings(item: dict[str, Any]) -> None:
    assert detections({"predictions": [item]}) == (PERSON,)


def test_a_class_number_is_a_label() -> None:
    (found,) = detections({"predictions": [ITEM | {"class": 0}]})
    assert (found.label, found.class_id) == ("class 0", 0)
    assert detections({"predictions": [ITEM]})[0].class_id is None
    assert "$.predictions[0].class: a class number beyond 64 bits" in refusal(
        {"predictions": [ITEM | {"class": 2**63}]}
    )


def test_a_missing_confidence_is_none_and_not_a_number() -> None:
    assert detections({"boxes": [{"class": "dog", "bbox": BOX}]})[0].confidence is None


def test_nothing_seen_is_an_answer() -> None:
    assert detections({"predictions": []}) == ()
    assert detections({"success": True, "predictions": [], "error": None}) == ()


def test_what_is_around_the_list_is_ignored() -> None:
    answer = {"success": True, "model": "yolo", "image": {"width": 1}, "duration": 0.1, "predictions": [ITEM]}
    assert detections(answer) == (PERSON,)


@pytest.mark.parametrize("score", [0, 1, 0.0, 1.0])
def test_the_ends_of_the_confidence_count(score: float) -> None:
    assert detections({"predictions": [ITEM | {"confidence": score}]})[0].confidence == score


def test_the_order_of_the_service_is_kept() -> None:
    items = [ITEM | {"class": name} for name in "cab"]
    assert [found.label for found in detections({"predictions": items})] == ["c", "a", "b"]


# what is refused, with the path of the culprit


@pytest.mark.parametrize(
    ("answer", "path"),
    [
        (None, "$: expected an object"),
        ([ITEM], "$: expected an object"),
        ("yes", "$: expected an object"),
        ({}, "$: none of"),
        (
            {"results": [], "time": 1},
            (
                "$: none of predictions, detections, boxes, prediction: the answer has the keys results, time; a "
                'service of another shape is reached with inference.protocol = "http"; `trio-runner protocols` '
                "lists presets"
            ),
        ),
        (
            {"predictions": [ITEM | {"bbox": {"x": 1, "y": 2}}]},
            (
                "$.predictions[0].bbox: expected [x1, y1, x2, y2], got an object: it has the keys x, y; a service of "
                'another shape is reached with inference.protocol = "http"'
            ),
        ),
        ({"predictions": [], "boxes": []}, "$: both"),
        ({"predictions": None}, "$.predictions: expected a list"),
        ({"predictions": {}}, "$.predictions: expected a list"),
        ({"boxes": "none"}, "$.boxes: expected a list"),
        ({"success": False, "predictions": []}, "$.success: the service reports a failure"),
        ({"error": "out of memory", "predictions": []}, "$.error: the service reports a failure"),
        ({"predictions": [ITEM, 7]}, "$.predictions[1]: expected an object"),
        ({"predictions": [{"bbox": BOX}]}, "$.predictions[0]: none of"),
        ({"predictions": [ITEM | {"label": "dog"}]}, "$.predictions[0]: both"),
        ({"predictions": [ITEM | {"score": 1}]}, "$.predictions[0]: both"),
        ({"predictions": [ITEM | {"box": BOX}]}, "$.predictions[0]: both"),
        ({"predictions": [ITEM | {"class": ""}]}, "$.predictions[0].class: "),
        ({"predictions": [ITEM | {"class": True}]}, "$.predictions[0].class: "),
        ({"predictions": [ITEM | {"class": 1.5}]}, "$.predictions[0].class: "),
        ({"predictions": [ITEM | {"class": None}]}, "$.predictions[0].class: "),
        ({"predictions": [ITEM | {"class": "x" * 201}]}, "$.predictions[0].class: "),
        ({"predictions": [ITEM | {"class": 10**300}]}, "$.predictions[0].class: "),
        ({"predictions": [ITEM | {"class": "a\0b"}]}, "$.predictions[0].class: holds a control"),
        ({"predictions": [ITEM | {"class": "a\nb"}]}, "$.predictions[0].class: holds a control"),
        ({"predictions": [ITEM | {"class": "\x1b[31m"}]}, "$.predictions[0].class: holds a control"),
        ({"predictions": [ITEM | {"confidence": None}]}, "$.predictions[0].confidence: "),
        ({"predictions": [ITEM | {"confidence": True}]}, "$.predictions[0].confidence: "),
        ({"predictions": [ITEM | {"confidence": "0.9"}]}, "$.predictions[0].confidence: "),
        ({"predictions": [ITEM | {"confidence": 1.01}]}, "$.predictions[0].confidence: "),
        ({"predictions": [ITEM | {"confidence": -0.01}]}, "$.predictions[0].confidence: "),
        ({"predictions": [ITEM | {"confidence": 10**400}]}, "$"),
        ({"predictions": [{"class": "dog"}]}, "$.predictions[0]: none of bbox"),
        ({"predictions": [{"class": "dog", "x1": 1, "y1": 1, "x2": 2}]}, "$.predictions[0]"),
        ({"predictions": [ITEM | {"bbox": None}]}, "$.predictions[0].bbox: "),
        ({"predictions": [ITEM | {"bbox": []}]}, "$.predictions[0].bbox: "),
        ({"predictions": [ITEM | {"bbox": [1, 2, 3]}]}, "$.predictions[0].bbox: "),
        ({"predictions": [ITEM | {"bbox": [1, 2, 3, 4, 5]}]}, "$.predictions[0].bbox: "),
        ({"predictions": [ITEM | {"bbox": [[BOX]]}]}, "$.predictions[0].bbox: "),
        ({"predictions": [ITEM | {"bbox": [BOX, BOX]}]}, "$.predictions[0].bbox: "),
        ({"predictions": [ITEM | {"bbox": {"x1": 1}}]}, "$.predictions[0].bbox: "),
        ({"predictions": [ITEM | {"bbox": [1, 2, 3, "4"]}]}, "$.predictions[0].bbox[3]: "),
        ({"predictions": [ITEM | {"bbox": [1, 2, 3, True]}]}, "$.predictions[0].bbox[3]: "),
        (
            {"predictions": [ITEM | {"bbox": [30, 20, 10, 40]}]},
            "$.predictions[0].bbox: [30, 20, 10, 40] has its corners out of order",
        ),
        (
            {"predictions": [ITEM | {"bbox": [10, 40, 30, 20]}]},
            "$.predictions[0].bbox: [10, 40, 30, 20] has its corners out of order",
        ),
        ({"predictions": [ITEM | {"bbox": [-65, 20, 30, 40]}]}, "$.predictions[0].bbox: "),
        ({"predictions": [ITEM | {"bbox": [10, -49, 30, 40]}]}, "$.predictions[0].bbox: "),
        ({"predictions": [ITEM | {"bbox": [10, 20, 705, 40]}]}, "$.predictions[0].bbox: "),
        ({"predictions": [ITEM | {"bbox": [10, 20, 30, 529]}]}, "$.predictions[0].bbox: "),
        ({"predictions": [ITEM | {"bbox": [0, 0, 10**300, 1]}]}, "$.predictions[0].bbox"),
    ],
    ids=lambda value: json.dumps(value)[:60] if not isinstance(value, str) else "",
)
def test_what_is_off_is_refused_with_its_path(answer: Any, path: str) -> None:
    assert refusal(answer).startswith(path)


def test_a_thousand_detections_are_taken_and_one_more_is_not() -> None:
    assert len(detections({"predictions": [ITEM] * MAX_DETECTIONS})) == MAX_DETECTIONS
    assert "1001 detections" in refusal({"predictions": [ITEM] * (MAX_DETECTIONS + 1)})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b'{"predictions": [',
        b'{"predictions": []} trailing',
        b'{"predictions": [{"class": "\xff"}]}',
        b'{"predictions": [{"class": "\\ud800", "bbox": [1,2,3,4]}]}',
        b'{"predictions": [{"class": "dog", "bbox": [1,2,3,NaN]}]}',
        b'{"predictions": [{"class": "dog", "bbox": [1,2,3,Infinity]}]}',
        b'{"predictions": [{"class": "dog", "bbox": [1,2,3,1e400]}]}',
        b'{"predictions": [{"class": "dog", "bbox": [1,2,3,' + b"9" * 400 + b"]}]}",
        b'{"predictions": [{"class": ' + b"9" * 5_000 + b', "bbox": [1,2,3,4]}]}',
        b"[" * 100_000,
        b'{"predictions": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"a":' * 50_000 + b"1" + b"}" * 50_000,
    ],
    ids=lambda body: repr(body[:60]),
)
def test_what_is_no_strict_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadAnswerError, match=r"^\$"):
        read(body, FRAME)


# the box


def test_a_box_comes_back_in_pixels_of_the_source() -> None:
    frame = make_frame(size=(1920, 1080), sent=(640, 360))
    assert detections({"boxes": [ITEM | {"bbox": [0, 0, 640, 360]}]}, frame)[0].bbox == (0.0, 0.0, 1920.0, 1080.0)
    assert detections({"boxes": [ITEM | {"bbox": [100, 50.5, 200, 300]}]}, frame)[0].bbox == (
        300.0,
        151.5,
        600.0,
        900.0,
    )


def test_sides_that_scale_differently_are_scaled_each_by_its_own() -> None:
    # 1919 x 1081 made 640 wide is 360.5 high, sent as 361 (or 360): the two scales differ.
    frame = make_frame(size=(1919, 1081), sent=(640, 361))
    (found,) = detections({"boxes": [ITEM | {"bbox": [64, 36.1, 640, 361]}]}, frame)
    assert found.bbox == (191.9, 108.1, 1919.0, 1081.0)


def test_what_overshoots_the_border_is_cut_off_and_counted() -> None:
    reading = read(json.dumps({"boxes": [ITEM, ITEM | {"bbox": [-64, -48, 704, 528]}]}).encode())
    assert [found.bbox for found in reading.detections] == [PERSON.bbox, (0.0, 0.0, 640.0, 480.0)]
    assert reading.clipped == 1


def test_a_few_boxes_may_overshoot_by_far() -> None:
    reading = read(json.dumps({"boxes": [ITEM, ITEM | {"bbox": [-600, 20, 30, 4000]}]}).encode())
    assert [found.bbox for found in reading.detections] == [PERSON.bbox, (0.0, 20.0, 30.0, 480.0)]


@pytest.mark.parametrize(
    ("box", "setting"),
    [
        ([100, 200, 900, 990], 'inference.predict.box_scale = "0-1000"'),
        ([0.1, 0.2, 0.9, 0.99], 'inference.predict.box_scale = "0-1"'),
        ([600, 400, 30, 60], 'inference.predict.box_format = "xywh"'),
        ([600, 400, 30, 60], 'inference.predict.box_format = "cxcywh" would fit; trio-runner probe -o draws them'),
        ([900, 300, 950, 200], ""),
    ],
)
def test_the_refusal_of_a_scale_names_the_setting_that_fits(box: list[float], setting: str) -> None:
    message = refusal({"predictions": [ITEM | {"bbox": box}] * 3})
    assert setting in message
    assert ("inference.predict" in message) is bool(setting)


def test_a_scale_to_1000_refuses_what_lies_within_0_to_1() -> None:
    with pytest.raises(BadAnswerError, match=r'set inference\.predict\.box_scale = "0-1"'):
        detections({"predictions": [ITEM | {"bbox": [0.1, 0.2, 0.3, 0.4]}]}, box_scale="0-1000")


@pytest.mark.parametrize("box", [[0.1, 0.2, 0.5, 1.002], [-0.004, 0.2, 0.5, 0.8], [0.3, -0.2, 1.1, 0.9]])
def test_boxes_from_0_to_1_that_overshoot_are_known_as_such(box: list[float]) -> None:
    assert "looks like a scale of 0 to 1" in refusal({"predictions": [ITEM | {"bbox": box}]})


def test_what_rounding_does_is_no_mistake() -> None:
    (found,) = detections({"predictions": [ITEM | {"bbox": [50.001, 20, 50, 40], "confidence": 1.0000001192092896}]})
    assert found == Detection("person", 1.0, (50.0, 20.0, 50.0, 40.0))


def test_pixels_that_are_configured_may_all_lie_within_0_to_1() -> None:
    answer = {"predictions": [ITEM | {"bbox": [0, 0, 1, 1]}]}
    assert detections(answer, box_scale="pixels")[0].bbox == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("form", "box"),
    [
        ("xyxy", [64, 96, 128, 144]),
        ("xywh", [64, 96, 64, 48]),
        ("cxcywh", [96, 120, 64, 48]),
        ("yxyx", [96, 64, 144, 128]),
        ("xxyy", [64, 128, 96, 144]),
    ],
)
@pytest.mark.parametrize("scale", ["pixels", "0-1", "0-1000"])
def test_boxes_are_read_in_the_configured_form_and_scale(form: str, box: list[float], scale: str) -> None:
    across, down = {"pixels": (1.0, 1.0), "0-1": (1 / 640, 1 / 480), "0-1000": (1000 / 640, 1000 / 480)}[scale]
    sides = {"yxyx": (down, across, down, across), "xxyy": (across, across, down, down)}
    factors = sides.get(form, (across, down, across, down))
    written = [number * factor for number, factor in zip(box, factors, strict=True)]
    (found,) = detections({"boxes": [ITEM | {"bbox": written}]}, box_format=form, box_scale=scale)
    assert found.bbox == (64.0, 96.0, 128.0, 144.0)


def test_a_box_in_a_padded_picture_is_moved_and_one_in_the_padding_is_left_out() -> None:
    # 1280 x 720 in 640 x 640: scaled to 640 x 360, with 140 rows of padding above and below.
    frame = dataclasses.replace(make_frame(size=(1280, 720), sent=(640, 640)), inset=(0, 140, 640, 360))
    body = json.dumps({"boxes": [ITEM | {"bbox": box} for box in ([0, 140, 320, 500], [10, 10, 90, 90])]}).encode()
    reading = read(body, frame)
    assert [found.bbox for found in reading.detections] == [(0.0, 0.0, 640.0, 720.0)]
    assert reading.clipped == 1


def test_class_numbers_have_their_names() -> None:
    protocol = open_protocol(InferenceSection(), ["person", "", "car"])
    body = json.dumps({"boxes": [ITEM | {"class": number} for number in (2, 1, 7, -1)]}).encode()
    ((reading,)) = protocol.read(Answer({}, body), [FRAME])
    assert [found.label for found in reading.detections] == ["car", "class 1", "class 7", "class -1"]


def test_a_box_without_area_is_a_box() -> None:
    assert detections({"boxes": [ITEM | {"bbox": [5, 5, 5, 5]}]})[0].bbox == (5.0, 5.0, 5.0, 5.0)


# anything at all

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(10**320), 10**320)
    | st.floats()
    | st.text(st.characters(categories=None), max_size=10),
    lambda inner: (
        st.lists(inner, max_size=5)
        | st.dictionaries(
            st.sampled_from(["predictions", "boxes", "class", "label", "confidence", "score", "bbox", "x1", "success"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=20,
)
coordinates = st.floats(-20, 700) | st.integers(-20, 700) | json_values
nearly_items = st.fixed_dictionaries(
    {"class": st.sampled_from(["person", 3]) | json_values, "bbox": st.lists(coordinates, min_size=4, max_size=4)},
    optional={"confidence": st.floats(-0.1, 1.1) | json_values},
)
answers = json_values | st.fixed_dictionaries({"predictions": st.lists(nearly_items, max_size=3)})


@given(answers, st.tuples(st.integers(1, 4000), st.integers(1, 4000)))
@example({"predictions": [{"class": 3, "bbox": [-0.0, -1e-320, 1, 1]}]}, (3, 7))
def test_any_json_is_sound_detections_or_a_bad_answer(answer: Any, size: tuple[int, int]) -> None:
    frame = make_frame(size=size, sent=(640, 480))
    # NaN, Infinity and lone surrogates are written as Python does it, so that the parser meets them.
    found = parsed(json.dumps(answer).encode(), frame)
    if isinstance(found, BadAnswerError):
        assert_refusal(str(found))
    else:
        assert_sound(found, frame)


@given(st.binary(max_size=200))
def test_any_bytes_are_sound_detections_or_a_bad_answer(body: bytes) -> None:
    found = parsed(body)
    if isinstance(found, BadAnswerError):
        assert_refusal(str(found))
    else:
        assert_sound(found, FRAME)


boxes = st.tuples(st.floats(-64, 640), st.floats(-48, 480), st.floats(0, 640), st.floats(0, 480)).map(
    lambda box: [box[0], box[1], min(max(box[0] + box[2], 0), 704), min(max(box[1] + box[3], 0), 528)]
)


@given(st.lists(boxes, max_size=5), st.integers(1, 4000), st.integers(1, 4000))
def test_every_box_within_the_slack_is_kept_sound_whatever_the_scale(
    given_boxes: list[list[float]], width: int, height: int
) -> None:
    frame = make_frame(size=(width, height), sent=(640, 480))
    answer = {"predictions": [ITEM | {"bbox": box} for box in given_boxes]}
    found = detections(answer, frame, box_scale="pixels")
    assert len(found) == len(given_boxes)
    assert_sound(found, frame)

from __future__ import annotations

import base64
import contextlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.inference.test_client import http, read_request, serving
from tests.support.hostile_answers import assert_refusal, assert_sound
from tests.support.makers import make_frame
from trio_runner.config.http_presets import resolved
from trio_runner.config.inference import InferenceSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.inference.answer import BadAnswerError
from trio_runner.inference.client import open_client
from trio_runner.inference.protocol import Answer, Call, Reading, WireProtocol
from trio_runner.inference.protocols import open_protocol
from trio_runner.model import Detection, Frame

FRAME = make_frame(size=(640, 480), content=b"\xff\xd8pixels\xff\xd9")
PICTURE = base64.b64encode(FRAME.content).decode()
LIST: dict[str, Any] = {"list": "found", "label": "name", "score": "score", "box": "bbox"}
CAR = {"name": "car", "score": 0.9, "bbox": [10, 20, 110, 200]}
DETECTED = Detection("car", 0.9, (10.0, 20.0, 110.0, 200.0))


def protocol(names: tuple[str, ...] = (), **keys: Any) -> WireProtocol:
    config = {"protocol": "http", "http": keys}
    return open_protocol(msgspec.convert(config, InferenceSection), names)


def read(answer: Any, frame: Frame = FRAME, names: tuple[str, ...] = (), **keys: Any) -> Reading:
    (reading,) = protocol(names, **keys).read(Answer({}, json.dumps(answer).encode()), [frame])
    return reading


def detections(answer: Any, frame: Frame = FRAME, names: tuple[str, ...] = (), **keys: Any) -> tuple[Detection, ...]:
    return read(answer, frame, names, **keys).detections


def refusal(answer: Any, **keys: Any) -> str:
    with pytest.raises(BadAnswerError) as caught:
        read(answer, **keys)
    assert_refusal(str(caught.value))
    return str(caught.value)


def call(**keys: Any) -> Call:
    return protocol(**{**LIST, **keys}).call([FRAME])


def json_body(sent: Call) -> Any:
    assert sent.headers == (("Content-Type", "application/json"),)
    return json.loads(b"".join(sent.body))


# the request


def test_without_further_keys_the_picture_is_posted_in_the_field_file() -> None:
    sent = call()
    ((name, content_type),) = sent.headers
    boundary = content_type.removeprefix("multipart/form-data; boundary=")
    assert (sent.method, sent.path, name) == ("POST", "/", "Content-Type")
    assert (
        b"".join(sent.body)
        == (
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="frame.jpg"\r\n'
            "Content-Type: image/jpeg\r\n\r\n"
        ).encode()
        + FRAME.content
        + f"\r\n--{boundary}--\r\n".encode()
    )


def test_the_picture_is_not_copied() -> None:
    assert FRAME.content in call(image="raw").body
    assert any(piece is FRAME.content for piece in call().body)


def test_fields_of_a_form_are_texts() -> None:
    body = b"".join(call(path="/detect", fields={"conf": 0.25, "nms": True, "model": "a", "of": ["x", 1]}).body)
    for name, text in {"conf": "0.25", "nms": "true", "model": "a", "of": '["x", 1]'}.items():
        assert f'name="{name}"\r\n\r\n{text}\r\n'.encode() in body


def test_a_raw_body_is_the_picture_with_its_media_type() -> None:
    sent = call(image="raw", method="PUT", content_type="application/octet-stream")
    assert (sent.method, sent.body) == ("PUT", (FRAME.content,))
    assert sent.headers == (("Content-Type", "application/octet-stream"),)
    assert call(image="raw").headers == (("Content-Type", "image/jpeg"),)


@pytest.mark.parametrize(
    ("keys", "body"),
    [
        ({"image": "base64"}, {"image": PICTURE}),
        ({"image": "data-url"}, {"image": f"data:image/jpeg;base64,{PICTURE}"}),
        (
            {"image": "base64", "image_at": "instances[0].image_bytes.b64"},
            {"instances": [{"image_bytes": {"b64": PICTURE}}]},
        ),
        ({"image": "base64", "image_at": '"a.b"."c d"'}, {"a.b": {"c d": PICTURE}}),
        (
            {"image": "base64", "image_at": "a[1]", "fields": {"a[0]": "first", "b.c": {"d": [1]}, "b.e": None}},
            {"a": ["first", PICTURE], "b": {"c": {"d": [1]}, "e": None}},
        ),
        ({"image": "base64", "image_at": "a.b", "fields": {"a": {"c": 1}}}, {"a": {"c": 1, "b": PICTURE}}),
    ],
)
def test_a_json_body_has_the_picture_and_the_fields_at_their_places(keys: dict[str, Any], body: Any) -> None:
    assert json_body(call(**keys)) == body


def test_readiness_is_asked_where_a_path_is_set() -> None:
    assert protocol(**LIST).readiness() is None
    assert protocol(**LIST, ready_path="/healthz").readiness() == Call(method="GET", path="/healthz")


# the answer


def test_a_list_of_items_is_mapped_by_expressions() -> None:
    assert detections({"found": [CAR, CAR | {"name": "bus"}]}, **LIST) == (
        DETECTED,
        Detection("bus", 0.9, DETECTED.bbox),
    )
    assert detections({"found": []}, **LIST) == ()


def test_a_list_may_be_missing_where_the_expression_says_so() -> None:
    assert "nothing there" in refusal({"time": 1}, **LIST)
    assert detections({"time": 1}, **LIST | {"list": "not_null(found, `[]`)"}) == ()


def test_an_object_of_four_scalars_is_turned_into_a_list_by_a_multiselect() -> None:
    keys = LIST | {"box": "[box.left, box.top, box.w, box.h]", "box_format": "xywh"}
    item = {"name": "car", "score": 0.9, "box": {"left": 10, "top": 20, "w": 100, "h": 180}}
    assert detections({"found": [item]}, **keys) == (DETECTED,)


def test_a_root_list_is_the_answer_itself() -> None:
    assert detections([CAR], **LIST | {"list": "@"}) == (DETECTED,)


def test_arrays_that_belong_together_are_mapped_as_one() -> None:
    answer = {"boxes": [[10, 20, 110, 200], [0, 0, 1, 1]], "labels": [2, 0], "scores": [0.9, None]}
    keys: dict[str, Any] = {"boxes": "boxes", "labels": "labels", "scores": "scores", "box_scale": "pixels"}
    assert detections(answer, names=("person", "", "car"), **keys) == (
        Detection("car", 0.9, DETECTED.bbox, class_id=2),
        Detection("person", None, (0.0, 0.0, 1.0, 1.0), class_id=0),
    )
    assert detections({"boxes": [], "labels": [], "scores": []}, **keys) == ()
    # Tensors have class numbers with a point.
    assert detections({"labels": [2.0]}, labels="labels")[0] == Detection("class 2", None, None, class_id=2)
    names: dict[str, Any] = {"labels": "labels", "class_ids": "ids"}
    assert detections({"labels": ["car"], "ids": [7]}, **names)[0] == Detection("car", None, None, class_id=7)


def test_arrays_of_different_lengths_are_refused() -> None:
    answer = {"boxes": [[10, 20, 110, 200]], "labels": [2, 0]}
    message = refusal(answer, boxes="boxes", labels="labels")
    assert message == "$: the arrays of inference.http differ in length: boxes has 1, labels has 2"


def test_a_class_has_a_name_a_number_or_both() -> None:
    found = [{"name": "car", "id": 7}, {"name": None, "id": 1}, {"id": 0.0}]
    keys: dict[str, Any] = {"list": "found", "label": "name", "class_id": "id"}
    assert [(each.label, each.class_id) for each in detections({"found": found}, names=("a", "b"), **keys)] == [
        ("car", 7),
        ("b", 1),
        ("a", 0),
    ]
    assert detections([{}], list="@", label="'face'")[0].label == "face"


def test_a_score_in_a_string_is_taken_where_the_expression_says_so() -> None:
    item = CAR | {"score": "0.9"}
    assert refusal({"found": [item]}, **LIST) == (
        "$.found[0]: inference.http.score `score`: expected a number, got text: `to_number(score)` reads one that is "
        "written as text"
    )
    arrays: dict[str, Any] = {"labels": "labels", "scores": "scores"}
    answer = {"labels": ["car"], "scores": ["0.9"]}
    assert "`map(&to_number(@), scores)` reads those" in refusal(answer, **arrays)
    (found,) = detections(answer, **arrays | {"scores": "map(&to_number(@), scores)"})
    assert found.confidence == 0.9
    keys = LIST | {"score": "to_number(score)"}
    assert detections({"found": [item]}, **keys) == (DETECTED,)
    for text in ("high", "", "nan", "1_0", "0x1", "9" * 5000):
        assert "a string that is no number" in refusal({"found": [CAR | {"score": text}]}, **keys)


def test_an_absent_score_is_none_and_a_low_one_is_left_out() -> None:
    items = [CAR, CAR | {"score": None}, {"name": "car", "bbox": CAR["bbox"]}, CAR | {"score": 0.2}]
    assert [each.confidence for each in detections({"found": items}, **LIST)] == [0.9, None, None, 0.2]
    assert [each.confidence for each in detections({"found": items}, **LIST, min_score=0.5)] == [0.9, None, None]


def test_what_is_no_box_becomes_an_attribute_in_source_pixels() -> None:
    frame = make_frame(size=(1280, 960), sent=(640, 480))
    keys = LIST | {
        "keypoints": "points[].[x, y, s]",
        "polygon": "outline",
        "track_id": "id",
        "text": "plate",
    }
    item = CAR | {"points": [{"x": 1, "y": 2, "s": 0.5}, {"x": 3, "y": 4}], "outline": [[0, 0], [640, 0], [640, 480]]}
    (found,) = detections({"found": [item | {"id": 7.0, "plate": "AB 1"}]}, frame, **keys)
    assert found.attributes == {
        "keypoints": [[2.0, 4.0, 0.5], [6.0, 8.0, None]],
        "mask": {"polygon": [[0.0, 0.0], [1280.0, 0.0], [1280.0, 960.0]]},
        "track_id": 7,
        "text": "AB 1",
    }
    (flat,) = detections({"found": [item | {"outline": [0, 0, 640, 0]}]}, frame, **keys)
    assert flat.attributes["mask"] == {"polygon": [[0.0, 0.0], [1280.0, 0.0]]}
    assert detections({"found": [CAR]}, **keys)[0].attributes == {}
    mask = {"size": [480, 640], "counts": "PPYo1"}
    (rle,) = detections({"found": [CAR | {"segmentation": mask | {"more": 1}}]}, **LIST, rle="segmentation")
    assert rle.attributes == {"mask": {"rle": mask}}


def test_points_have_the_scale_of_boxes() -> None:
    keys = LIST | {"box_scale": "0-1", "polygon": "outline"}
    (found,) = detections({"found": [{"name": "a", "bbox": [0, 0, 1, 1], "outline": [[0.5, 0.5]]}]}, **keys)
    assert found.attributes["mask"] == {"polygon": [[320.0, 240.0]]}


def test_a_raw_answer_is_stored_as_it_came() -> None:
    assert detections({"a": [1, None]}, raw=True) == (
        Detection("raw", None, None, attributes={"raw": {"a": [1, None]}}),
    )
    assert "NUL" in refusal({"a\0": 1}, raw=True)
    assert detections({"a": "\\u0000"}, raw=True)[0].attributes == {"raw": {"a": "\\u0000"}}
    assert "the service reports a failure" in refusal({"success": False}, raw=True)


def test_a_function_takes_the_class_from_the_keys_of_an_object() -> None:
    answer = {"found": {"car": [{"at": [10, 20, 110, 200], "score": 0.9}], "bus": []}}
    keys: dict[str, Any] = {"list": "labelled(found)", "label": "label", "score": "score", "box": "at"}
    assert detections(answer, **keys) == (DETECTED,)
    assert detections({"found": {"car": [10, 20, 110, 200]}}, **keys | {"box": "`null`"})[0].label == "car"


def test_functions_join_arrays_and_read_json_in_strings() -> None:
    keys = LIST | {"list": "parse_json(@)", "polygon": "s && zip(s.x, s.y)"}
    (found,) = detections(json.dumps([CAR | {"s": {"x": [1, 2], "y": [3, 4]}}]), **keys)
    assert found.attributes["mask"] == {"polygon": [[1.0, 3.0], [2.0, 4.0]]}
    assert "zip() got arrays of 1, 0 items" in refusal(json.dumps([CAR | {"s": {"x": [1], "y": []}}]), **keys)
    assert "parse_json() got a string that is no JSON" in refusal("nothing", **keys)
    assert "parse_json() does not take the value that stands there" in refusal([], **keys)


# what is refused names the key

NO_LIST = "$: inference.http.list `found`: nothing there:"
BOX = "$.found[0]: inference.http.box `bbox`:"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            {"images": 1, "time": 2},
            "$: inference.http.list `found`: nothing there: the answer has the keys images, time",
        ),
        ({}, "$: inference.http.list `found`: nothing there: the answer has no keys"),
        ([1], "$: inference.http.list `found`: nothing there: the answer is a list"),
        ({"found": None}, "$: inference.http.list `found`: nothing there: the answer has the keys found"),
        ({"found": {}}, "$.found: inference.http.list `found`: expected a list, got object"),
        ({"found": [CAR] * 1001}, "$.found: inference.http.list `found`: 1001 detections, more than 1000"),
        ({"found": [7]}, "$.found[0]: inference.http.label `name`: nothing there: the item is a number"),
        (
            {"found": [CAR, {"name": "a"}]},
            "$.found[1]: inference.http.box `bbox`: nothing there: the item has the keys name",
        ),
        (
            {"found": [CAR | {"bbox": {"x": 1}}]},
            "$.found[0]: inference.http.box `bbox`: an object with the keys x: list",
        ),
        (
            {"found": [CAR | {"bbox": [1, 2, 3]}]},
            "$.found[0]: inference.http.box `bbox`: expected a list of four numbers, got 3",
        ),
        (
            {"found": [CAR | {"bbox": [1, 2, 3, "4"]}]},
            "$.found[0]: inference.http.box `bbox`: number 4 of the four: expected a number, got text",
        ),
        (
            {"found": [CAR | {"bbox": [1, None, 3, 4]}]},
            "$.found[0]: inference.http.box `bbox`: number 2 of the four is null: the item has the keys name",
        ),
        (
            {"found": [CAR | {"score": 91}]},
            "$.found[0]: inference.http.score `score`: 91 is not in 0..1: a percentage?",
        ),
        ({"found": [CAR | {"bbox": [0, 0, 0.5, 0.5]}]}, "$.found[0]: all boxes lie within 0 to 1"),
        ({"found": [{"name": None}]}, "$.found[0]: inference.http.label `name`: nothing there: the item has the keys"),
        ({"found": [CAR | {"score": 90}]}, "$.found[0]: inference.http.score `score`: 90 is not in 0..1"),
        (
            {"found": [], "success": False, "error": "busy"},
            "$.success: the service reports a failure with status 200: busy",
        ),
        ({"found": [], "code": 500}, "$.code: the service reports a failure with status 200: 500"),
    ],
)
def test_what_does_not_fit_is_refused_with_key_expression_and_what_stands_there(answer: Any, message: str) -> None:
    assert refusal(answer, **LIST).startswith(message)


def test_a_wrong_scale_names_the_setting_of_this_table() -> None:
    assert 'inference.http.box_scale = "0-1"' in refusal({"found": [CAR | {"bbox": [0, 0, 0.5, 0.5]}]}, **LIST)


def test_a_configured_failure_is_the_only_one() -> None:
    keys = LIST | {"failure": "status != 'done'", "failure_message": "reason"}
    assert detections({"status": "done", "error": "none", "code": 500, "found": []}, **keys) == ()
    assert refusal({"status": "busy", "reason": "no GPU"}, **keys) == (
        "$: the service reports a failure with status 200: no GPU"
    )
    assert refusal({"status": "busy"}, **keys) == "$: the service reports a failure with status 200"
    assert refusal({"problem": "no GPU"}, **LIST | {"failure": "problem"}).endswith("status 200: no GPU")


# all forms and scales, and anything at all

FORMS = {
    "xyxy": [64, 96, 128, 144],
    "xywh": [64, 96, 64, 48],
    "cxcywh": [96, 120, 64, 48],
    "yxyx": [96, 64, 144, 128],
    "xxyy": [64, 128, 96, 144],
}
SCALES = {"pixels": (1.0, 1.0), "0-1": (1 / 640, 1 / 480), "0-1000": (1000 / 640, 1000 / 480)}


@given(
    st.sampled_from(list(FORMS)),
    st.sampled_from(list(SCALES)),
    st.tuples(st.floats(1, 600), st.floats(1, 440), st.floats(1, 39), st.floats(1, 39)),
)
def test_boxes_of_every_form_and_scale_end_as_the_same_corners(
    form: str, scale: str, box: tuple[float, float, float, float]
) -> None:
    x, y, width, height = box
    across, down = SCALES[scale]
    x1, y1, x2, y2 = x * across, y * down, (x + width) * across, (y + height) * down
    written = {
        "xyxy": [x1, y1, x2, y2],
        "xywh": [x1, y1, x2 - x1, y2 - y1],
        "cxcywh": [(x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1],
        "yxyx": [y1, x1, y2, x2],
        "xxyy": [x1, x2, y1, y2],
    }[form]
    (found,) = detections({"found": [CAR | {"bbox": written}]}, **LIST, box_format=form, box_scale=scale)
    assert found.bbox == pytest.approx((x, y, x + width, y + height), abs=0.011)


KEYS = ["found", *CAR, "points", "id"]
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**320), 10**320) | st.floats() | st.text(max_size=10),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["found", *CAR, "points", "id"]), inner, max_size=4)
    ),
    max_leaves=20,
)
items = st.fixed_dictionaries(
    {"name": st.just("car") | json_values, "bbox": st.lists(st.floats(-20, 700) | json_values, min_size=4, max_size=4)},
    optional={"score": st.floats(0, 1) | json_values, "points": json_values, "id": json_values, "t": json_values},
)
EVERYTHING: dict[str, Any] = LIST | {
    "keypoints": "points",
    "polygon": "id",
    "rle": "t",
    "track_id": "t",
    "text": "id",
    "class_id": "id",
}


@given(
    json_values | st.fixed_dictionaries({"found": st.lists(items, max_size=3)}),
    st.sampled_from(
        [
            EVERYTHING,
            {"raw": True},
            {"boxes": "found[].bbox", "labels": "found[].name", "scores": "found[].score"},
            EVERYTHING | {"list": "labelled(@)", "score": "to_number(score)", "polygon": "zip(points, id)"},
            LIST | {"list": "sort_by(found, &score)", "failure": "max_by(found, &score).name == 'busy'"},
        ]
    ),
)
def test_any_json_is_sound_detections_or_a_bad_answer(answer: Any, keys: dict[str, Any]) -> None:
    try:
        found = read(answer, **keys).detections
    except BadAnswerError as error:
        assert_refusal(str(error))
    else:
        assert_sound(found, FRAME)
        assert b"\\u0000" not in msgspec.json.encode(found)


def test_the_keys_of_the_config_come_before_the_defaults() -> None:
    section = msgspec.convert({"http": {"path": "/x"}}, InferenceSection)
    assert (resolved(section.http).path, resolved(section.http).method) == ("/x", "POST")


# through the real client


async def exchange(answer: Any, **keys: Any) -> tuple[bytes, tuple[Detection, ...]]:
    """The request that a service received, and what the client made of its answer."""
    seen: list[bytes] = []

    async def script(stream: trio.SocketStream) -> None:
        seen.append(await read_request(stream))
        await stream.send_all(http(json.dumps(answer).encode()))

    async with serving(script) as server:
        section = msgspec.convert({"url": server.url, "protocol": "http", **keys}, InferenceSection)
        async with open_client(section) as client:
            (result,) = await client.infer([FRAME])
    return seen[0], result.detections


async def test_one_clip_gives_the_same_detections_by_predict_and_by_http() -> None:
    answer = {"predictions": [{"class": "dog", "confidence": 0.5, "bbox": [1, 2, 3, 4]}]}
    keys = {"path": "/predict", "image_at": "frame", "list": "predictions", "label": "class"}
    by_http = await exchange(answer, http=keys | {"score": "confidence", "box": "bbox"})
    by_predict = await exchange(answer, protocol="predict")
    assert by_http[1] == by_predict[1] != ()
    # The bodies differ in nothing but the boundary.
    bodies = [request.partition(b"boundary=") for request, _ in (by_http, by_predict)]
    boundaries = [rest.partition(b"\r\n")[0] for _, _, rest in bodies]
    ours, theirs = (rest.replace(boundary, b"") for (_, _, rest), boundary in zip(bodies, boundaries, strict=True))
    assert ours == theirs


async def test_secrets_in_the_body_come_from_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret-in-the-body\n")
    keys = {"raw": True, "image": "base64", "field_files": {"auth.key": str(tmp_path / "key")}, "fields": {"a": 1}}
    request, _ = await exchange([], http=keys)
    body = json.loads(request.partition(b"\r\n\r\n")[2])
    assert body == {"a": 1, "auth": {"key": "s3cret-in-the-body"}, "image": PICTURE}


async def test_a_file_of_a_field_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    keys = {"raw": True, "field_files": {"key": str(tmp_path / "missing")}}
    section = msgspec.convert({"url": "http://127.0.0.1:9", "protocol": "http", "http": keys}, InferenceSection)
    with pytest.raises(RunnerError) as caught:
        async with open_client(section):
            pass
    assert caught.value.code is ErrorCode.CREDENTIAL_UNREADABLE
    assert "inference.http.field_files.key" in caught.value.message


async def test_class_numbers_have_the_names_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "labels").write_text("person\ncar\n")
    answer = {"boxes": [[10, 20, 110, 200]], "labels": [1], "scores": [0.9]}
    keys = {"boxes": "boxes", "labels": "labels", "scores": "scores"}
    _, found = await exchange(answer, http=keys, labels_file=str(tmp_path / "labels"))
    assert found == (Detection("car", 0.9, DETECTED.bbox, class_id=1),)


# what a large answer costs


def calls_for(answer: Any, **keys: Any) -> int:
    """How many Python functions are called to read the answer."""
    opened, body = protocol(**keys), json.dumps(answer).encode()
    count = 0

    def profile(*event: object) -> None:
        nonlocal count
        count += event[1] == "call"

    sys.setprofile(profile)
    try:
        with contextlib.suppress(BadAnswerError):
            opened.read(Answer({}, body), [FRAME])
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize(
    "make",
    [
        lambda size: {"found": [CAR] * size},
        lambda size: {"found": [CAR | {"points": [[1, 2]] * size}]},
        lambda size: {"found": {f"k{number}": [CAR] for number in range(size)}},
        lambda size: {f"k{number}": number for number in range(size)},
    ],
)
def test_the_work_grows_no_faster_than_the_answer(make: Callable[[int], Any]) -> None:
    keys = EVERYTHING | {"failure": "error || max_by(values(@), &length(to_string(@))) == `1`"}
    small, large = (calls_for(make(size), **keys) for size in (200, 800))
    assert large <= 5 * small


def test_an_expression_does_not_multiply_the_answer_beyond_the_limit() -> None:
    assert "2000 detections, more than 1000" in refusal({"found": [CAR] * 1000}, **LIST | {"list": "[found, found][]"})

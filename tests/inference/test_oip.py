"""The Open Inference Protocol: requests byte for byte, answers of real servers, metadata, batches, sequences."""

from __future__ import annotations

import base64
import dataclasses
import json
import math
import struct
from typing import Any, get_args, get_type_hints

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.hostile_answers import assert_refusal, assert_sound
from tests.support.makers import make_frame
from trio_runner.config.inference import InferenceSection, OipSection
from trio_runner.config.tensor import TensorSection
from trio_runner.inference.answer import BadAnswerError
from trio_runner.inference.protocol import Answer, Call, DescribedProtocol, Reading
from trio_runner.inference.protocols import open_protocol
from trio_runner.inference.protocols.oip import MAX_JSON_BYTES, Oip
from trio_runner.inference.protocols.oip_model import SENT
from trio_runner.model import Detection, Frame

FRAME = make_frame(size=(640, 480))
LENGTH = "Inference-Header-Content-Length"


def protocol(names: tuple[str, ...] = (), **keys: Any) -> Oip:
    config = msgspec.convert(
        {"protocol": "oip", "oip": {"model": "nanodet", "input": "image"} | keys}, InferenceSection
    )
    opened = open_protocol(config, names)
    assert isinstance(opened, Oip)
    return opened


def body(call: Call) -> bytes:
    return b"".join(call.body)


def triton_answer(*outputs: tuple[str, str, list[int], bytes]) -> Answer:
    """As Triton writes it: JSON, and then the tensors."""
    described = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, datatype, shape, data in outputs
    ]
    head = json.dumps({"id": "1", "model_name": "nanodet", "model_version": "1", "outputs": described}).encode()
    return Answer({LENGTH.lower(): str(len(head))}, head + b"".join(data for *_, data in outputs))


def json_answer(**outputs: Any) -> Answer:
    described = [
        {"name": name, "datatype": datatype, "shape": shape, "data": data}
        for name, (datatype, shape, data) in outputs.items()
    ]
    return Answer({}, json.dumps({"model_name": "nanodet", "outputs": described}).encode())


def elements(*texts: str) -> bytes:
    return b"".join(struct.pack("<I", len(text.encode())) + text.encode() for text in texts)


def floats(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


def refusal(opened: Oip, answer: Answer, *frames: Frame) -> str:
    with pytest.raises(BadAnswerError) as caught:
        opened.read(answer, frames or (FRAME,))
    assert_refusal(str(caught.value))
    return str(caught.value)


# Triton 2.51.0, from the wheel of nvidia-pytriton 0.7.0, with a model of its python backend: recorded by hand.


def test_the_binary_request_is_the_one_that_triton_takes() -> None:
    jpeg = b"\xff\xd8" + b"p" * 34788 + b"\xff\xd9"
    call = protocol(labels="").call([make_frame(1, content=jpeg)])
    head = (
        b'{"id":"1","inputs":[{"name":"image","datatype":"BYTES","shape":[1],"parameters":{"binary_data_size":34796}}],'
        b'"outputs":[{"name":"boxes","parameters":{"binary_data":true}},{"name":"scores","parameters":'
        b'{"binary_data":true}}]}'
    )
    assert (call.method, call.path) == ("POST", "/v2/models/nanodet/infer")
    assert dict(call.headers) == {"Content-Type": "application/octet-stream", LENGTH: str(len(head))}
    assert body(call) == head + struct.pack("<I", 34792) + jpeg
    assert any(piece is jpeg for piece in call.body), "the picture is copied"


def test_the_binary_answer_of_triton() -> None:
    head = (
        b'{"id":"f1","model_name":"nanodet","model_version":"1","outputs":[{"name":"boxes","datatype":"FP32","shape":'
        b'[4,4],"parameters":{"binary_data_size":64}},{"name":"scores","datatype":"FP32","shape":[4],"parameters":'
        b'{"binary_data_size":16}},{"name":"labels","datatype":"BYTES","shape":[4],"parameters":'
        b'{"binary_data_size":39}}]}'
    )
    assert len(head) == 323
    boxes = [(10 * place, 20, 10 * place + 30.5, 400) for place in range(4)]
    data = floats(*(number for box in boxes for number in box)) + floats(0.9, 0.8, 0.75, 0.4)
    data += elements("person", "person", "person", "truck")
    assert len(head + data) == 442
    answer = Answer({"content-type": "application/octet-stream", LENGTH: "323"}, head + data)
    (reading,) = protocol().read(answer, [FRAME])
    labels, scores = ["person", "person", "person", "truck"], [0.9, 0.8, 0.75, 0.4]
    assert reading.detections == tuple(map(Detection, labels, scores, boxes))


def test_the_json_answer_of_triton() -> None:
    answer = json_answer(
        boxes=("FP32", [1, 4], [10.0, 20.0, 30.5, 40.0]),
        scores=("FP32", [1], [0.8999999761581421]),
        labels=("BYTES", [1], ["person"]),
    )
    (reading,) = protocol(encoding="json").read(answer, [FRAME])
    assert reading.detections == (Detection("person", 0.9, (10.0, 20.0, 30.5, 40.0)),)


# MLServer 1.7.1


def test_the_json_request_is_the_one_that_mlserver_takes() -> None:
    call = protocol(encoding="json").call([FRAME])
    assert dict(call.headers) == {"Content-Type": "application/json"}
    assert json.loads(body(call)) == {
        "id": "0",
        "inputs": [
            {
                "name": "image",
                "datatype": "BYTES",
                "shape": [1],
                "data": [base64.b64encode(FRAME.content).decode()],
                "parameters": {"content_type": "base64"},
            }
        ],
        "outputs": [{"name": "boxes"}, {"name": "scores"}, {"name": "labels"}],
    }


def test_mlserver_answers_lists_as_columns() -> None:
    answer = json_answer(
        boxes=("FP32", [2, 4], [1, 2, 30, 4, 5, 6, 70, 8]),
        scores=("FP64", [2, 1], [0.9, 0.4]),
        labels=("BYTES", [2, 1], ["dog", "cat"]),
    )
    (reading,) = protocol(encoding="json").read(answer, [FRAME])
    assert [(each.label, each.confidence) for each in reading.detections] == [("dog", 0.9), ("cat", 0.4)]


# what outputs mean


def test_class_numbers_of_any_datatype_have_names() -> None:
    for datatype, written in (("INT64", [1, 7]), ("INT32", [1, 7]), ("UINT8", [1, 7]), ("FP32", [1.0, 7.0])):
        answer = json_answer(
            boxes=("FP32", [1, 2, 4], [1, 2, 30, 4, 5, 6, 70, 8]),
            scores=("FP32", [1, 2], [0.9, 0.4]),
            labels=(datatype, [1, 2], written),
        )
        (reading,) = protocol(("cat", "dog")).read(answer, [FRAME])
        assert [(each.label, each.class_id) for each in reading.detections] == [("dog", 1), ("class 7", 7)]


def test_a_count_says_how_many_rows_are_objects() -> None:
    padding = [-1.0] * 4
    answer = json_answer(
        num=("INT32", [1, 1], [1]),
        boxes=("FP32", [1, 3, 4], [1, 2, 30, 4, *padding, *padding]),
        scores=("FP32", [1, 3], [0.5, -1, -1]),
        labels=("INT32", [1, 3], [0, -1, -1]),
    )
    (reading,) = protocol(count="num").read(answer, [FRAME])
    assert [each.bbox for each in reading.detections] == [(1.0, 2.0, 30.0, 4.0)]


def test_a_score_for_each_class_and_no_labels() -> None:
    answer = json_answer(
        boxes=("FP32", [2, 4], [1, 2, 30, 4, 5, 6, 70, 8]), scores=("FP32", [2, 3], [0.1, 0.7, 0.2, 0.5, 0.25, 0])
    )
    (reading,) = protocol(("a", "b", "c"), labels="").read(answer, [FRAME])
    assert [(each.label, each.confidence) for each in reading.detections] == [("b", 0.7), ("a", 0.5)]


@pytest.mark.parametrize("shape", [[1, 3, 2], [3, 2], [1, 3, 1, 2]])
def test_scores_with_a_row_for_each_class_are_turned(shape: list[int]) -> None:
    """As PaddleDetection exports them without suppression: boxes [1, N, 4] and scores [1, C, N]."""
    boxes = ("FP32", [1, 2, 4], [1, 2, 30, 4, 5, 6, 70, 8])
    answer = json_answer(boxes=boxes, scores=("FP32", shape, [0.1, 0.5, 0.7, 0.25, 0.2, 0]))
    (reading,) = protocol(("a", "b", "c"), labels="").read(answer, [FRAME])
    assert [(each.label, each.confidence) for each in reading.detections] == [("b", 0.7), ("a", 0.5)]


@pytest.mark.parametrize("shape", [[2, 2], [1, 2, 2], [4], [1, 4], [2, 2, 2]])
def test_scores_whose_order_is_not_certain_are_refused(shape: list[int]) -> None:
    boxes = ("FP32", [2, 4], [1, 2, 30, 4, 5, 6, 70, 8])
    answer = json_answer(boxes=boxes, scores=("FP32", shape, [0.1] * math.prod(shape)))
    message = refusal(protocol(("a", "b"), labels=""), answer)
    assert message.startswith(f"$.outputs.scores: {shape} for 2 boxes")
    assert ("set inference.oip.labels" in message) == (shape[-2:] == [2, 2] and len(shape) - shape.count(1) == 2)


def test_one_box_may_have_its_scores_in_any_shape() -> None:
    for shape in ([3], [1, 3], [3, 1], [1, 3, 1]):
        answer = json_answer(boxes=("FP32", [1, 4], [1, 2, 30, 4]), scores=("FP32", shape, [0.1, 0.7, 0.2]))
        (reading,) = protocol(("a", "b", "c"), labels="").read(answer, [FRAME])
        assert [(each.label, each.confidence) for each in reading.detections] == [("b", 0.7)]


def test_a_classification_has_no_boxes() -> None:
    answer = json_answer(scores=("FP32", [1, 3], [0.1, 0.7, 0.2]))
    (reading,) = protocol(("a", "b", "c"), boxes="", labels="", score_threshold=0.15).read(answer, [FRAME])
    assert [(each.label, each.confidence, each.bbox) for each in reading.detections] == [
        ("b", 0.7, None),
        ("c", 0.2, None),
    ]


def test_no_scores_is_no_confidence() -> None:
    answer = json_answer(boxes=("INT32", [1, 4], [1, 2, 30, 4]), labels=("BYTES", [1], ["dog"]))
    (reading,) = protocol(scores="").read(answer, [FRAME])
    assert reading.detections == (Detection("dog", None, (1.0, 2.0, 30.0, 4.0)),)


@pytest.mark.parametrize("shape", [[0, 4], [1, 0, 4], [0]])
def test_nothing_seen_is_an_answer(shape: list[int]) -> None:
    answer = json_answer(boxes=("FP32", shape, []), scores=("FP32", [0], []), labels=("BYTES", [0], []))
    assert protocol().read(answer, [FRAME]) == [Reading(())]


def test_a_box_on_a_letterboxed_picture_is_one_of_the_source() -> None:
    frame = dataclasses.replace(make_frame(size=(640, 480), sent=(320, 320)), inset=(0, 40, 320, 240))
    answer = json_answer(
        boxes=("FP32", [1, 4], [160, 160, 320, 280]), scores=("FP32", [1], [0.5]), labels=("INT8", [1], [0])
    )
    (reading,) = protocol().read(answer, [frame])
    assert [each.bbox for each in reading.detections] == [(320.0, 240.0, 640.0, 480.0)]


ONE = {"boxes": ("FP32", [1, 4], [1, 2, 30, 4]), "scores": ("FP32", [1], [0.5]), "labels": ("BYTES", [1], ["a"])}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"scores": ("FP32", [2], [0.5, 0.5])}, "$.outputs.scores: 2 elements for 1 objects"),
        ({"labels": ("BYTES", [2], ["a", "b"])}, "$.outputs.labels: 2 elements for 1 objects"),
        ({"scores": ("FP32", [1], [1.5])}, "$.outputs.scores[0]: 1.5 is not in 0..1"),
        ({"scores": ("FP32", [1], [1e39])}, "not a finite number"),
        ({"boxes": ("FP32", [1, 4], [1, 2, 1e39, 4])}, "$.outputs.boxes[0][2]: not a finite number"),
        ({"boxes": ("FP32", [1, 5], [1, 2, 30, 4, 5])}, "$.outputs.boxes: [1, 5], but a box has 4 numbers"),
        ({"boxes": ("BYTES", [1, 4], ["1", "2", "3", "4"])}, "$.outputs.boxes: expected numbers"),
        ({"scores": ("BYTES", [1], ["0.5"])}, "$.outputs.scores: expected numbers"),
        ({"labels": ("FP32", [1], [0.5])}, "$.outputs.labels[0]: 0.5 is no class number"),
        ({"labels": ("BYTES", [1], ["a\n"])}, "$.outputs.labels[0]: holds a control character"),
        ({"labels": ("BYTES", [1], [""])}, "$.outputs.labels[0]: expected a name"),
        ({"boxes": ("FP32", [1, 4], [0.1, 0.2, 0.3, 0.4])}, 'set inference.oip.box_scale = "0-1"'),
    ],
)
def test_an_answer_that_makes_no_sense_is_refused(change: dict[str, Any], part: str) -> None:
    assert part in refusal(protocol(), json_answer(**(ONE | change)))


def test_an_output_that_is_missing_names_the_key_and_the_others() -> None:
    answer = json_answer(detection_boxes=("FP32", [0, 4], []))
    assert "no output boxes, but detection_boxes: set inference.oip.boxes" in refusal(protocol(), answer)


@pytest.mark.parametrize(
    ("header", "whole", "part"),
    [
        ("900", b'{"outputs": []}', "900, and the answer has 15 bytes"),
        ("-1", b'{"outputs": []}', "-1"),
        ("0", b"\0" * 16, "$: not JSON"),
        ("9" * 5000, b"{}", LENGTH),
        ("\u0663", b"{}", LENGTH),
        ("15", b'{"outputs": []}xyz', "3 bytes follow the last tensor"),
        ("", b"[]", "expected an object"),
        ("", b'{"error": "out of memory"}', "$.error: the service reports a failure with status 200: out of memory"),
        ("", b"{}", "$.outputs: expected a list"),
    ],
)
def test_an_answer_that_is_cut_wrong_is_refused(header: str, whole: bytes, part: str) -> None:
    assert part in refusal(protocol(), Answer({LENGTH: header} if header else {}, whole))


@pytest.mark.parametrize("encoding", ["json", "binary"])
def test_json_has_a_lower_limit_than_binary_tensors(encoding: str) -> None:
    blanks = b" " * MAX_JSON_BYTES
    message = refusal(protocol(encoding=encoding), Answer({}, b"{}" + blanks))
    assert message.startswith(f"$: {MAX_JSON_BYTES + 2} bytes of JSON, more than {MAX_JSON_BYTES}: ")
    assert 'encoding = "binary"' in message
    assert "raise inference.max_response_bytes" in message
    config = InferenceSection(protocol="oip", max_response_bytes=MAX_JSON_BYTES + 2, oip=OipSection(model="m"))
    with pytest.raises(BadAnswerError, match="expected a list"):
        open_protocol(config, ()).read(Answer({}, b"{}" + blanks), [FRAME])
    size = MAX_JSON_BYTES // 16 + 1
    scores = ("scores", "FP32", [size], bytes(4 * size))
    large = triton_answer(
        ("boxes", "FP32", [size, 4], bytes(16 * size)), scores, ("labels", "UINT8", [size], bytes(size))
    )
    assert protocol(score_threshold=0.5).read(large, [FRAME]) == [Reading(())]


def test_more_than_a_thousand_detections_are_refused_with_the_key_that_lowers_their_number() -> None:
    answer = json_answer(
        boxes=("FP32", [1001, 4], [1, 2, 30, 4] * 1001),
        scores=("FP32", [1001], [0.5] * 1001),
        labels=("INT8", [1001], [0] * 1001),
    )
    assert "raise inference.oip.score_threshold" in refusal(protocol(), answer)


@given(st.binary(max_size=200), st.integers(0, 210))
def test_any_bytes_are_detections_or_a_refusal(whole: bytes, length: int) -> None:
    for decode in ("boxes", "yolo", "detr"):
        answer = Answer({LENGTH: str(length)}, whole)
        try:
            (reading,) = protocol(decode=decode).read(answer, [FRAME])
        except BadAnswerError as error:
            assert_refusal(str(error))
        else:
            assert_sound(reading.detections, FRAME)


NUMBERS = st.floats(width=32) | st.sampled_from([0.0, 0.5, 1.0, 100.0])


@given(
    st.sampled_from(["boxes", "yolo", "detr"]),
    st.lists(NUMBERS, min_size=60, max_size=60),
    st.sampled_from([[10, 6], [6, 10], [1, 10, 6], [15, 4], [1, 15, 4], [60], [3, 20], [20, 3]]),
    st.sampled_from([[15, 4], [60], [10, 6], [15, 4, 1], [1, 60]]),
)
def test_any_numbers_are_detections_or_a_refusal(
    decode: str, numbers: list[float], boxes: list[int], scores: list[int]
) -> None:
    data = floats(*numbers)
    answer = triton_answer(
        ("boxes", "FP32", boxes, data), ("scores", "FP32", scores, data), ("labels", "FP32", [60], data)
    )
    for names in ((), ("a",), ("a", "b")):
        try:
            (reading,) = protocol(names, decode=decode).read(answer, [FRAME])
        except BadAnswerError as error:
            assert_refusal(str(error))
        else:
            assert_sound(reading.detections, FRAME)


# several frames in a request

TWO = [make_frame(0), make_frame(1, content=b"\xff\xd8other\xff\xd9")]


def test_several_jpegs_are_the_elements_of_one_tensor() -> None:
    opened = protocol(batch=2)
    assert opened.max_frames == 2
    call = opened.call(TWO)
    head = json.loads(call.body[0])
    assert head["inputs"][0]["shape"] == [2]
    assert head["inputs"][0]["parameters"]["binary_data_size"] == sum(4 + len(frame.content) for frame in TWO)
    assert body(call)[len(call.body[0]) :] == b"".join(
        struct.pack("<I", len(frame.content)) + frame.content for frame in TWO
    )
    described = json.loads(body(protocol(batch=2, encoding="json").call(TWO)))["inputs"][0]
    assert [base64.b64decode(each) for each in described["data"]] == [frame.content for frame in TWO]


def test_the_answer_is_split_by_its_first_dimension() -> None:
    answer = json_answer(
        boxes=("FP32", [2, 1, 4], [1, 2, 30, 4, 5, 6, 70, 8]),
        scores=("FP32", [2, 1], [0.9, 0.4]),
        labels=("INT8", [2, 1], [0, 1]),
    )
    readings = protocol(("a", "b"), batch=2).read(answer, TWO)
    assert [[each.label for each in reading.detections] for reading in readings] == [["a"], ["b"]]


def test_the_answer_is_split_by_the_counts() -> None:
    answer = json_answer(
        count=("INT32", [2], [1, 2]),
        boxes=("FP32", [3, 4], [1, 2, 30, 4, 5, 6, 70, 8, 9, 10, 110, 12]),
        scores=("FP32", [3], [0.9, 0.4, 0.3]),
        labels=("INT8", [3], [0, 1, 0]),
    )
    readings = protocol(("a", "b"), batch=2, count="count").read(answer, TWO)
    assert [[each.label for each in reading.detections] for reading in readings] == [["a"], ["b", "a"]]


def test_an_answer_for_another_number_of_frames_is_refused() -> None:
    assert "set inference.oip.batch = 1" in refusal(protocol(batch=2), json_answer(**ONE), *TWO)


@pytest.mark.parametrize("boxes", ["boxes", ""])
def test_outputs_without_a_dimension_of_the_frames_are_refused(boxes: str) -> None:
    """Both objects may belong to one of the two frames."""
    answer = json_answer(
        boxes=("FP32", [2, 4], [1, 2, 30, 4, 5, 6, 70, 8]),
        scores=("FP32", [2], [0.9, 0.4]),
        labels=("INT8", [2], [0, 1]),
        count=("INT32", [2], [1, 1]),
    )
    message = refusal(protocol(batch=2, boxes=boxes), answer, *TWO)
    assert message.startswith(f"$.outputs.{boxes or 'scores'}: {[2, 4] if boxes else [2]} for 2 frames")
    assert "inference.oip.batch = 1, or inference.oip.count" in message
    assert len(protocol(batch=2, boxes=boxes, count="count").read(answer, TWO)) == 2
    assert len(protocol(batch=2, boxes=boxes).read(answer, TWO[:1])[0].detections) == 2


# tensors in place of JPEGs


@pytest.mark.parametrize(
    ("keys", "shape"),
    [
        ({"datatype": "UINT8", "layout": "NHWC"}, [1, 2, 3, 3]),
        ({"datatype": "FP32", "layout": "NCHW"}, [1, 3, 2, 3]),
    ],
)
def test_a_tensor_is_sent_as_it_came_from_the_decoder(keys: dict[str, Any], shape: list[int]) -> None:
    content = bytes(range(18)) * (4 if keys["datatype"] == "FP32" else 1)
    frame = make_frame(content=content, sent=(3, 2))
    tensor = {"width": 3, "height": 2, **keys}
    call = protocol(tensor=tensor).call([frame])
    described = json.loads(call.body[0])["inputs"][0]
    assert (described["datatype"], described["shape"]) == (keys["datatype"], shape)
    assert described["parameters"]["binary_data_size"] == len(content)
    assert call.body[1] is content
    written = json.loads(body(protocol(tensor=tensor, encoding="json").call([frame])))["inputs"][0]
    kind = {"UINT8": "u1", "FP32": "<f4"}[keys["datatype"]]
    assert np.array(written["data"], kind).tobytes() == content
    assert "parameters" not in written


# stateful models


def test_an_attempt_is_a_sequence_with_a_start_and_an_end() -> None:
    opened = protocol(sequence=True, parameters={"confidence": 0.4}, encoding="json")
    frames = [make_frame(0), make_frame(1), dataclasses.replace(make_frame(2), last=True)]
    parameters = [json.loads(body(opened.call([frame])))["parameters"] for frame in frames]
    ends = [(each["sequence_start"], each["sequence_end"]) for each in parameters]
    assert ends == [(True, False), (False, False), (False, True)]
    (number,) = {each["sequence_id"] for each in parameters}
    assert 0 < number < 2**63
    assert {each["confidence"] for each in parameters} == {0.4}
    assert protocol(sequence=True).sequence_id != number


# metadata and readiness


def test_readiness_and_metadata_are_those_of_the_model() -> None:
    ready = protocol(version="3").readiness()
    assert ready is not None
    assert (ready.method, ready.path) == ("GET", "/v2/models/nanodet/versions/3/ready")
    described = protocol().description()
    assert described is not None
    assert (described.method, described.path) == ("GET", "/v2/models/nanodet")
    assert protocol(metadata=False).description() is None
    assert isinstance(protocol(), DescribedProtocol)


def metadata(shape: list[int], datatype: str = "BYTES", **more: Any) -> Answer:
    outputs = [{"name": name, "datatype": "FP32", "shape": [-1]} for name in ("boxes", "scores", "labels")]
    inputs = [{"name": "image", "datatype": datatype, "shape": shape}]
    whole = {"name": "nanodet", "versions": ["1"], "platform": "python", "inputs": inputs, "outputs": outputs}
    return Answer({}, json.dumps(whole | more).encode())


TENSOR = {"datatype": "FP32", "width": 640, "height": 480}


@pytest.mark.parametrize(
    ("keys", "answer", "shape"),
    [
        ({}, metadata([1]), [1]),
        ({}, metadata([-1]), [1]),
        ({}, metadata([-1, 1]), [1, 1]),
        ({"tensor": TENSOR}, metadata([-1, 3, 480, 640], "FP32"), [1, 3, 480, 640]),
        ({"tensor": TENSOR}, metadata([1, 3, -1, -1], "FP32"), [1, 3, 480, 640]),
        ({"tensor": TENSOR}, metadata([3, 480, 640], "FP32"), [3, 480, 640]),
        ({}, metadata([1, 416, 416, 3], "FP32", platform="OpenVINO"), [1]),
        ({"input": "image"}, metadata([1], inputs=[], outputs=[]), [1]),
    ],
)
def test_a_model_that_fits_is_asked_in_its_own_form(keys: dict[str, Any], answer: Answer, shape: list[int]) -> None:
    frame = make_frame(content=bytes(4 * 3 * 640 * 480)) if "tensor" in keys else FRAME
    described = protocol(**({"input": ""} | keys)).described(answer)
    asked = json.loads(described.call([frame]).body[0])["inputs"][0]
    assert (asked["name"], asked["shape"]) == ("image", shape)


def test_the_supported_datatypes_are_those_of_the_config() -> None:
    assert get_args(get_type_hints(TensorSection)["datatype"]) == SENT


@pytest.mark.parametrize(
    ("keys", "answer", "part"),
    [
        ({}, Answer({}, b'{"ready": true}'), "check inference.url and inference.oip.model"),
        ({"input": "picture"}, metadata([1]), "no input picture, but image: set inference.oip.input"),
        ({"input": ""}, metadata([1], inputs=[]), "none: set inference.oip.input"),
        ({"boxes": "dets"}, metadata([1]), "no output dets, but boxes, scores, labels: set inference.oip.boxes"),
        ({}, metadata([3, 480, 640], "FP32"), "the model takes FP32: set inference.oip.tensor.datatype"),
        (
            {},
            metadata([3, 480, 640], "FP16"),
            "takes FP16, which is not supported: give it an input of BYTES, UINT8, FP32",
        ),
        ({"tensor": TENSOR}, metadata([1, 3, 480, 640], "FP16"), "the model takes FP16, which is not supported"),
        ({"tensor": TENSOR}, metadata([1]), "takes BYTES: set inference.oip.tensor.datatype, which is FP32"),
        ({"tensor": TENSOR}, metadata([1, 3, 640, 640], "FP32"), "set layout, width and height"),
        ({"tensor": TENSOR | {"layout": "NHWC"}}, metadata([1, 3, 480, 640], "FP32"), "[1, 480, 640, 3] would be sent"),
        ({"batch": 4}, metadata([1]), "set inference.oip.batch, which is 4, to 1"),
        ({"tensor": TENSOR, "batch": 8}, metadata([4, 3, 480, 640], "FP32"), "which is 8, to 4"),
    ],
)
def test_a_model_that_does_not_fit_names_the_key(keys: dict[str, Any], answer: Answer, part: str) -> None:
    with pytest.raises(BadAnswerError) as caught:
        protocol(**keys).described(answer)
    assert_refusal(str(caught.value))
    assert part in str(caught.value)


def test_a_model_that_takes_four_frames_is_given_four() -> None:
    opened = protocol(batch=4).described(metadata([4]))
    described = json.loads(opened.call(TWO).body[0])["inputs"][0]
    assert described["shape"] == [4]
    answer = json_answer(
        boxes=("FP32", [4, 1, 4], [1, 2, 30, 4] * 4),
        scores=("FP32", [4, 1], [0.5] * 4),
        labels=("INT8", [4], [0, 1, 1, 1]),
    )
    readings = opened.read(answer, TWO)
    assert [[each.class_id for each in reading.detections] for reading in readings] == [[0], [1]]


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["name", "inputs", "outputs", "datatype", "shape"]), inner, max_size=5)
    ),
)


@given(JSON)
def test_any_metadata_fit_or_are_refused(whole: Any) -> None:
    try:
        protocol().described(Answer({}, json.dumps(whole).encode()))
    except BadAnswerError as error:
        assert_refusal(str(error))

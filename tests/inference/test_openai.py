from __future__ import annotations

import base64
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.cases.inference.openai_answers import RECORDED, Recorded
from tests.support.harness import REPOSITORY
from tests.support.hostile_answers import assert_refusal, assert_sound
from tests.support.makers import make_frame
from trio_runner.config.inference import InferenceSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.inference.answer import BadAnswerError
from trio_runner.inference.credentials import read_prompt
from trio_runner.inference.prose import MAX_BRACKETS
from trio_runner.inference.protocol import Answer, Call, Reading
from trio_runner.inference.protocols import open_protocol
from trio_runner.inference.smart_resize import smart_resize
from trio_runner.model import Frame

FRAME = make_frame(size=(640, 480))
ITEM: dict[str, Any] = {"label": "car", "bbox": [10, 20, 30, 40]}
CAR = ("car", (10.0, 20.0, 30.0, 40.0))


def section(config: dict[str, Any]) -> InferenceSection:
    return msgspec.convert({"protocol": "openai", "openai": config}, InferenceSection)


def read(body: bytes, frame: Frame = FRAME, **config: Any) -> Reading:
    (reading,) = open_protocol(section(config)).read(Answer({}, body), [frame])
    return reading


def saying(content: Any, **usage: Any) -> bytes:
    return json.dumps({"choices": [{"message": {"content": content}}], "usage": usage}).encode()


def found(content: Any, frame: Frame = FRAME, **config: Any) -> list[tuple[str, Any]]:
    return [(each.label, each.bbox) for each in read(saying(content), frame, **config).detections]


def refusal(body: bytes, **config: Any) -> str:
    with pytest.raises(BadAnswerError) as caught:
        read(body, **config)
    assert_refusal(str(caught.value))
    return str(caught.value)


def request(config: dict[str, Any]) -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(b"".join(open_protocol(section(config)).call([FRAME]).body))
    return whole


def prompt(config: dict[str, Any]) -> str:
    (message,) = request(config)["messages"]
    return str(message["content"][1]["text"])


# the request


def test_the_request_is_a_chat_with_the_picture_and_a_schema() -> None:
    call = open_protocol(section({"model": "qwen", "classes": ["person", "red car"]})).call([FRAME])
    whole = json.loads(b"".join(call.body))
    assert (call.method, call.path) == ("POST", "/v1/chat/completions")
    assert call.headers == (("Content-Type", "application/json"),)
    assert (whole["model"], whole["max_tokens"], whole["temperature"]) == ("qwen", 2048, 0.0)
    ((picture, text),) = (message["content"] for message in whole["messages"])
    start, _, encoded = picture["image_url"]["url"].partition(",")
    assert (start, base64.b64decode(encoded)) == ("data:image/jpeg;base64", FRAME.content)
    assert '"person", "red car"' in text["text"]
    schema = whole["response_format"]["json_schema"]
    assert schema["strict"] is True
    item = schema["schema"]["properties"]["detections"]["items"]
    assert item["required"] == ["label", "bbox"]
    assert item["additionalProperties"] is False
    assert item["properties"]["label"]["enum"] == ["person", "red car"]
    assert item["properties"]["bbox"]["items"] == {"type": "integer"}


def test_what_is_left_out_is_not_sent() -> None:
    whole = request({"max_tokens": 0, "temperature": "default", "response_format": "none"})
    assert set(whole) == {"messages"}
    assert "every object in this picture" in prompt({})


def test_further_keys_are_sent() -> None:
    extra = {"seed": 1, "max_completion_tokens": 500, "chat_template_kwargs": {"enable_thinking": False}}
    whole = request({"max_tokens": 0, "extra": extra})
    assert whole.items() >= extra.items()


@pytest.mark.parametrize(
    ("dialect", "shown"),
    [
        ("plain", '"bbox": [x1, y1, x2, y2]'),
        ("qwen2.5-vl", '"bbox_2d": [x1, y1, x2, y2]'),
        ("qwen3-vl", "[x1, y1, x2, y2] from 0 to 1000"),
        ("gemini", '"box_2d": [ymin, xmin, ymax, xmax]'),
    ],
)
def test_the_prompt_asks_for_boxes_as_the_model_writes_them(dialect: str, shown: str) -> None:
    assert shown in prompt({"dialect": dialect})


def test_a_prompt_of_ones_own_is_sent_as_it_is() -> None:
    own = 'How many "cars"?\n\N{WHITE SQUARE}picture\N{WHITE SQUARE}'
    assert prompt({"prompt": own, "classes": ["car"]}) == own


def test_the_labels_of_the_service_are_the_classes_where_none_are_set() -> None:
    for classes, looked_for in (([], "dog"), (["cat"], "cat")):
        call = open_protocol(section({"classes": classes}), ["dog", ""]).call([FRAME])
        whole = json.loads(b"".join(call.body))
        item = whole["response_format"]["json_schema"]["schema"]["properties"]["detections"]["items"]
        assert item["properties"]["label"]["enum"] == [looked_for]


@pytest.mark.parametrize(
    ("answer", "kind"), [("boxes", "json_schema"), ("labels", "json_schema"), ("raw", "json_object"), ("text", None)]
)
def test_the_form_of_the_answer_is_asked_for(answer: str, kind: str | None) -> None:
    assert request({"answer": answer}).get("response_format", {}).get("type") == kind
    assert prompt({"answer": answer})


def test_readiness_is_asked_for_beside_the_chat() -> None:
    call = open_protocol(section({"path": "/v1beta/openai/chat/completions"})).readiness()
    models = Call(method="GET", path="/v1beta/openai/models")
    assert call == Call(method="GET", path="/v1beta/openai/health", otherwise=models)
    assert open_protocol(section({"path": "/chat"})).readiness() is None


# recorded answers


@pytest.mark.parametrize("case", RECORDED, ids=lambda case: case.name)
def test_recorded_answers_are_read_as_they_are_meant(case: Recorded) -> None:
    frame, body = make_frame(size=case.size), json.dumps(case.answer()).encode()
    if case.accepted is None:
        with pytest.raises(BadAnswerError) as caught:
            read(body, frame, **case.config)
        assert str(caught.value).startswith(case.refused)
        return
    reading = read(body, frame, **case.config)
    assert tuple((each.label, each.bbox) for each in reading.detections) == case.accepted
    assert [each.confidence for each in reading.detections] == [None] * len(case.accepted)
    assert (reading.clipped, reading.tokens) == (case.clipped, 1300)


# JSON among prose


@pytest.mark.parametrize(
    "content",
    [
        '{"detections": [%s]}',
        "[%s]",
        "%s",
        '{"objects": [%s], "count": 1}',
        "```json\n[%s]\n```",
        "```\n[%s]\n```",
        "Here are [two] {cars}:\n```json\n[%s]\n```\nI hope that helps [1]!",
        "The picture shows: [%s] and (nothing) else.",
        "```json\n[%s]",
        "  \n[%s]\n",
        "[%s]\n\n[%s]",
    ],
)
def test_the_one_json_value_is_taken_from_the_prose_around_it(content: str) -> None:
    assert found(content.replace("%s", json.dumps(ITEM))) == [CAR]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("I see no cars.", "no JSON object or list in it"),
        ("[1, 2] or [3, 4]", "two different JSON values in it"),
        ('```json\n[]\n```\n```json\n[{"label": "a", "bbox": [1, 2, 3, 4]}]\n```', "two different JSON values"),
        ('[{"label": "car", "bbox": [10, 20, 30, 40]}, {"label": "ca', "not JSON"),
        ('So: {"detections": [{"label": "car", "bbox": [10, 20, 30, 40]}, {"la', "not JSON"),
        ('So: {"detections', "not JSON"),
        ('{"label": "car", "label": "dog", "bbox": [1, 2, 3, 4]}', "$.label: appears twice"),
        ('[{"label": "car", "bbox": [1, 2, 3, NaN]}]', "not JSON"),
        ("[{'label': 'car'}]", "not JSON"),
        ("[" * 100_000, "nested too deeply"),
        ("see " + "[" * 100_000, "nested too deeply"),
        ("<think>a car at [1, 2, 3, 4]", "no end"),
        ("<think>[]</think>\n", "nothing follows"),
        ('{"a": [], "b": []}', "expected one list in the object, got 2"),
        ('{"error": "no image was provided", "detections": []}', "$.error: the service reports a failure"),
        ('{"success": false, "detections": []}', "$.success: the service reports a failure"),
        ('{"status": "failed", "detections": []}', "$.status: the service reports a failure"),
        ('{"is_error": true, "detections": []}', "$.is_error: the service reports a failure"),
        ('{"count": 3}', "expected one list in the object, got 0"),
        ("[7]", "$[0]: expected an object"),
        ('[{"bbox": [1, 2, 3, 4]}]', "$[0]: none of label"),
        ('[{"label": "car"}]', "$[0]: none of bbox"),
        ('[{"label": "car", "name": "b", "bbox": [1, 2, 3, 4]}]', "$[0]: both label and name"),
        ('[{"label": "a\\nb", "bbox": [1, 2, 3, 4]}]', "$[0].label: holds a control character"),
        ('[{"label": "car", "bbox": [1, 2, 3]}]', "$[0].bbox: expected four numbers"),
        ('[{"label": "car", "bbox": [1, 2, 3, "4"]}]', "$[0].bbox[3]: expected a number"),
        ('[{"label": "car", "bbox": [1, 2, 3, 1e400]}]', "$"),
        ('[{"label": "car", "bbox": [1, 2, 3, 6401]}]', "$[0].bbox[3]: 6401 has more digits"),
        ('[{"label": "car", "bbox": [1, 2, 3, 4], "score": 70}]', "$[0].score: 70 is not in 0..1"),
        ('[{"label": "car", "bbox_2d": [1, 2, 3, 4]}]', '"qwen2.5-vl" or "qwen3-vl"'),
        ('[{"label": "car", "box_2d": [1, 2, 3, 4]}]', 'inference.openai.dialect = "gemini"'),
        ('[{"label": "car", "bbox": [0.1, 0.2, 0.3, 0.4]}]', 'inference.openai.box_scale = "0-1"'),
        ('[{"label": "car", "bbox": [100, 200, 900, 990]}]', 'inference.openai.box_scale = "0-1000" would fit'),
    ],
    ids=lambda value: value[:40],
)
def test_what_is_no_answer_is_refused_with_its_place(content: str, why: str) -> None:
    message = refusal(saying(content))
    assert message.startswith("$.choices[0].message.content: ")
    assert why in message


@pytest.mark.parametrize(
    "content",
    ['"Sure: ```" + "a" * 900_000', '"a" + "[a " * 300_000', '"a" + "[1] " * 200_000', '"http://" * 130_000'],
)
def test_no_text_takes_the_runner_longer_than_its_length(content: str) -> None:
    # In a process of its own, because a text whose reading takes hours could not be given up in this one.
    program = f"""
from tests.inference.test_openai import refusal, saying
print(refusal(saying({content})))
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True, cwd=REPOSITORY
    )
    assert done.stdout.startswith("$.choices[0].message.content: $: ")


def test_only_so_many_brackets_are_tried() -> None:
    prose = "see [a] " * (MAX_BRACKETS - 2)
    assert found(f"{prose} {[]}") == []
    assert "more than 200 brackets" in refusal(saying(f"{prose} [b] [c] {[]}"))
    assert "more than 200 brackets" in refusal(saying("```[a]``` " * 300))


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ({"error": {"message": "model is overloaded", "code": 503}}, "$.error: the service reports a failure"),
        ({"error": "Model unloaded"}, "with status 200: Model unloaded"),
        ([], "$: expected an object"),
        ({}, "$.choices: expected a list"),
        ({"choices": []}, "$.choices: expected one object, got 0"),
        ({"choices": [{}, {}]}, "$.choices: expected one object, got 2"),
        ({"choices": [3]}, "$.choices: expected one object"),
        ({"choices": [{"text": "[]"}]}, "$.choices[0].message: expected an object"),
        ({"choices": [{"message": {"content": "[]"}, "finish_reason": "tool_calls"}]}, "tool_calls: the service gave"),
        ({"choices": [{"message": {"content": "[]"}, "finish_reason": ["stop"]}]}, "no whole answer"),
        ({"choices": [{"message": {"content": 7}}]}, "$.choices[0].message.content: expected a list"),
        ({"choices": [{"message": {"content": [7]}}]}, "$.choices[0].message.content[0]: expected a text"),
        ({"choices": [{"message": {"content": [{"type": "text"}]}}]}, "content[0]: expected a text"),
        ({"choices": [{"message": {"content": [{"type": []}]}}]}, "content[0]: expected a text"),
        ({"choices": [{"message": {"content": [{"type": "refusal", "refusal": "no"}]}}]}, "the model refused: no"),
        ({"choices": [{"message": {"content": " \n"}}]}, "$.choices[0].message.content: empty"),
    ],
)
def test_an_answer_that_reports_a_failure_is_a_failure(answer: Any, why: str) -> None:
    assert why in refusal(json.dumps(answer).encode())


@pytest.mark.parametrize("reason", [None, "stop", "eos", "end_turn", "STOP", "eos_token", "stop_sequence"])
def test_an_answer_that_ended_by_itself_is_whole(reason: str | None) -> None:
    body = {"choices": [{"finish_reason": reason, "message": {"content": "[]"}}]}
    assert read(json.dumps(body).encode()).detections == ()


def test_boxes_within_0_to_1_are_not_taken_for_thousandths() -> None:
    body = saying('[{"label": "car", "bbox_2d": [0.1, 0.2, 0.3, 0.4]}]')
    assert 'inference.openai.box_scale = "0-1"' in refusal(body, dialect="qwen3-vl")
    (car,) = read(body, dialect="qwen3-vl", box_scale="0-1").detections
    assert car.bbox == (64.0, 96.0, 192.0, 192.0)


def test_an_order_and_a_scale_of_ones_own_count() -> None:
    content = '[{"label": "car", "box_2d": [500, 250, 1000, 500]}]'
    assert found(content, box_format="yxyx", box_scale="0-1000") == [("car", (160.0, 240.0, 320.0, 480.0))]


# answers that are no boxes


def test_labels_are_detections_without_a_box() -> None:
    assert found('{"detections": [{"label": "rain"}, {"label": "night"}]}', answer="labels") == [
        ("rain", None),
        ("night", None),
    ]
    assert found('["rain"]', answer="labels") == [("rain", None)]
    (scored,) = read(saying('[{"label": "rain", "confidence": 0.5}]'), answer="labels").detections
    assert scored.confidence == 0.5


def test_a_description_is_stored_as_text() -> None:
    (said,) = read(saying("<think>hm</think>\nTwo cars.\nA dog [brown]. "), answer="text").detections
    assert (said.label, said.bbox, said.confidence) == ("text", None, None)
    assert said.attributes == {"text": "Two cars.\nA dog [brown]."}


def test_json_of_any_form_is_stored_as_it_is() -> None:
    (said,) = read(saying('```json\n{"weather": "rain", "cars": 2}\n```'), answer="raw").detections
    assert (said.label, said.attributes) == ("raw", {"raw": {"weather": "rain", "cars": 2}})


@pytest.mark.parametrize(("answer", "content"), [("text", "Two \0 cars."), ("raw", '{"cars": ["\\u0000"]}')])
def test_a_nul_is_refused_and_not_stored_as_another_character(answer: str, content: str) -> None:
    assert "holds a NUL character" in refusal(saying(content), answer=answer)


# tokens


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        ({"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 20}, 20),
        ({"prompt_tokens": 10, "completion_tokens": 5}, 15),
        ({}, 0),
        ({"total_tokens": "many"}, 0),
        ({"total_tokens": -3}, 0),
        ({"total_tokens": 10**30}, 0),
    ],
)
def test_tokens_are_counted_and_never_a_reason_to_refuse(usage: dict[str, Any], tokens: int) -> None:
    assert read(saying("[]", **usage)).tokens == tokens


# the size that Qwen2.5-VL counts in


@pytest.mark.parametrize(
    ("size", "resized"),
    [((1920, 1080), (1932, 1092)), ((512, 512), (504, 504)), ((368, 434), (364, 448)), ((10, 10), (56, 56))],
)
def test_pictures_are_resized_as_the_services_do_it(size: tuple[int, int], resized: tuple[int, int]) -> None:
    # Sources: LlamaFactory #7690 (1920×1080), Qwen3-VL #1111 (512×512) and #1035 (368×434).
    assert smart_resize(*size, min_pixels=56 * 56, max_pixels=28 * 28 * 16_384) == resized


def test_boxes_are_in_pixels_of_the_resized_picture() -> None:
    content = '[{"label": "car", "bbox_2d": [0, 0, 1288, 728]}]'
    frame = make_frame(size=(1920, 1080))
    (box,) = (box for _, box in found(content, frame, dialect="qwen2.5-vl", max_pixels=1_003_520))
    assert smart_resize(1920, 1080, min_pixels=56 * 56, max_pixels=1_003_520) == (1316, 728)
    assert box == (0.0, 0.0, round(1288 / 1316 * 1920, 2), 1080.0)


@given(st.integers(1, 16_384), st.integers(1, 16_384), st.integers(784, 100_000), st.integers(4, 1000))
def test_a_resized_picture_keeps_its_form_within_the_limits(width: int, height: int, least: int, times: int) -> None:
    wide, high = smart_resize(width, height, min_pixels=least, max_pixels=least * times)
    assert wide % 28 == high % 28 == 0
    assert wide * high >= least
    # A picture that is one token high or wide can be no smaller, and cannot keep its form.
    if min(wide, high) > 28:
        assert wide * high <= least * times
        assert (wide - 28) * height <= (high + 28) * width
        assert (high - 28) * width <= (wide + 28) * height


# anything at all

json_pieces = st.sampled_from(["[", "]", "{", "}", ": ", ", ", "null", "0.5", "-1", "1e9", "\\", '"', "\x00", "\ud800"])
pieces = json_pieces | st.sampled_from(
    ['{"detections": ', '"label"', '"car"', '"bbox"', '"bbox_2d"', '"box_2d"', "[1, 2, 3, 4]", json.dumps(ITEM)]
)
pieces |= st.sampled_from(["```json\n", "```", "<think>", "</think>"])
texts = st.lists(pieces, max_size=12).map("".join) | st.text(st.characters(categories=None), max_size=60)
configs = st.fixed_dictionaries(
    {
        "dialect": st.sampled_from(["plain", "qwen2.5-vl", "qwen3-vl", "gemini"]),
        "answer": st.sampled_from(["boxes", "labels", "text", "raw"]),
    }
)


@given(texts, configs)
@example("[[[[", {"dialect": "plain"})
@example('["', {"dialect": "plain"})
def test_any_text_is_sound_detections_or_a_bad_answer(text: str, config: dict[str, Any]) -> None:
    try:
        detections = read(saying(text), **config).detections
    except BadAnswerError as error:
        assert_refusal(str(error))
    else:
        assert_sound(detections, FRAME)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["choices", "message", "content", "finish_reason", "error", "type", "text", "usage"]), inner
        )
    ),
    max_leaves=15,
)


@given(
    json_values
    | st.fixed_dictionaries({"choices": st.lists(st.fixed_dictionaries({"message": json_values}), max_size=2)})
)
def test_any_json_is_sound_detections_or_a_bad_answer(answer: Any) -> None:
    try:
        detections = read(json.dumps(answer).encode()).detections
    except BadAnswerError as error:
        assert_refusal(str(error))
    else:
        assert_sound(detections, FRAME)


@given(
    st.lists(st.tuples(*[st.integers(0, 1000)] * 4), min_size=1, max_size=5), st.sampled_from(["qwen3-vl", "gemini"])
)
def test_every_box_of_thousandths_lies_in_the_picture(boxes: list[tuple[int, ...]], dialect: str) -> None:
    key = "box_2d" if dialect == "gemini" else "bbox_2d"
    ordered = [[min(a, c), min(b, d), max(a, c) + 2, max(b, d) + 2] for a, b, c, d in boxes]
    content = json.dumps([{"label": "car", key: box} for box in ordered])
    assert_sound(read(saying(content), dialect=dialect).detections, FRAME)
    assert len(read(saying(content), dialect=dialect).detections) == len(boxes)


# the file with the prompt


async def test_the_prompt_may_be_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prompt.txt"
    file.write_text("\N{BYTE ORDER MARK}How many cars?\n")
    config = await read_prompt(section({"prompt_file": str(file)}))
    assert config.openai.prompt == "How many cars?"
    assert await read_prompt(section({"prompt": "a"})) == section({"prompt": "a"})


@pytest.mark.parametrize(("content", "why"), [(b" \n", "it is empty"), (b"\xff", "utf-8"), (None, "No such file")])
async def test_a_file_without_a_prompt_is_named(tmp_path: Path, content: bytes | None, why: str) -> None:
    file = tmp_path / "prompt.txt"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(RunnerError, match=rf"inference\.openai\.prompt_file .*{why}") as caught:
        await read_prompt(section({"prompt_file": str(file)}))
    assert caught.value.code is ErrorCode.CREDENTIAL_UNREADABLE

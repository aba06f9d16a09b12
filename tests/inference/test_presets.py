"""Each preset of the protocol `http`: the request as the service wants it, and its recorded answer."""

from __future__ import annotations

import base64
import json
import re
import textwrap
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from tests.support.harness import REPOSITORY
from tests.support.hostile_answers import assert_refusal, assert_sound
from tests.support.makers import make_frame
from trio_runner.config.errors import ConfigError, Problem
from trio_runner.config.expressions import Expression
from trio_runner.config.http_presets import placeholders, preset_names, read_preset
from trio_runner.config.inference import HttpSection, InferenceSection
from trio_runner.config.load import Config, parse_config
from trio_runner.inference.answer import BadAnswerError
from trio_runner.inference.protocol import Answer, WireProtocol
from trio_runner.inference.protocols import open_protocol
from trio_runner.model import Detection

KEYS_OF_A_CASE = {"source", "size", "keys", "request", "answer", "detections", "failures"}
CASES = {path.stem: json.loads(path.read_text()) for path in (REPOSITORY / "tests/cases/inference").glob("*.json")}
PRESETS = (
    *("azure-custom-vision", "codeproject", "cog", "cvat", "huggingface", "localai", "moondream", "nim", "roboflow"),
    *("roboflow-workflow", "tfserving", "torchserve", "ultralytics", "vertex"),
)
NAMES = ("", "person")
FRAME = make_frame(size=(640, 480), content=b"\xff\xd8pixels\xff\xd9")
PICTURE = base64.b64encode(FRAME.content).decode()


def keys_of(name: str) -> dict[str, Any]:
    return {"preset": name, **CASES[name]["keys"]}


def protocol_of(name: str) -> WireProtocol:
    config = msgspec.convert({"protocol": "http", "http": keys_of(name)}, InferenceSection)
    return open_protocol(config, NAMES if name == "tfserving" else ())


def test_every_preset_has_a_recorded_answer_and_its_source() -> None:
    assert tuple(preset_names()) == PRESETS
    assert set(PRESETS) <= set(CASES)
    incomplete = {name: sorted(KEYS_OF_A_CASE - CASES[name].keys()) for name in PRESETS}
    assert {name: missing for name, missing in incomplete.items() if missing} == {}
    assert all(case["source"] for case in CASES.values())


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_recorded_answer_has_these_detections(name: str) -> None:
    case = CASES[name]
    frame = make_frame(size=tuple(case["size"]))
    (reading,) = protocol_of(name).read(Answer({}, json.dumps(case["answer"]).encode()), [frame])
    assert reading.detections == tuple(msgspec.convert(case["detections"], list[Detection]))
    assert reading.clipped == 0


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name in PRESETS for number in range(len(CASES[name]["failures"]))]
)
def test_a_failure_with_status_200_is_named(name: str, number: int) -> None:
    failure = CASES[name]["failures"][number]
    with pytest.raises(BadAnswerError) as caught:
        protocol_of(name).read(Answer({}, json.dumps(failure["answer"]).encode()), [FRAME])
    assert_refusal(str(caught.value))
    assert failure["message"] in str(caught.value)


@pytest.mark.parametrize("name", PRESETS)
def test_the_request_is_the_one_that_the_service_wants(name: str) -> None:
    assert_request(protocol_of(name), CASES[name]["request"])


def assert_request(protocol: WireProtocol, wanted: dict[str, Any]) -> None:
    call = protocol.call([FRAME])
    body = b"".join(call.body)
    ((_, content_type),) = call.headers
    assert (call.method, call.path) == ("POST", wanted["path"])
    if "raw" in wanted:
        assert (content_type, body) == (wanted["raw"], FRAME.content)
    elif "json" in wanted:
        text = json.dumps(wanted["json"]).replace("<base64>", PICTURE)
        text = text.replace("<data-url>", f"data:image/jpeg;base64,{PICTURE}")
        assert (content_type, json.loads(body)) == ("application/json", json.loads(text))
    else:
        boundary = content_type.removeprefix("multipart/form-data; boundary=").encode()
        parts = [part.partition(b"\r\n\r\n") for part in body.split(b"--" + boundary)[1:-1]]
        fields = {re.findall(rb'name="([^"]+)"', head)[0].decode(): value[:-2] for head, _, value in parts}
        assert fields.pop(wanted["field"]) == FRAME.content
        assert fields == {key: value.encode() for key, value in wanted["form"].items()}


# in the config


def problems_of(text: str) -> tuple[Problem, ...]:
    try:
        parse_config(text, base_dir=Path("/x"), environ={})
    except ConfigError as error:
        return error.problems
    return ()


@pytest.mark.parametrize("name", PRESETS)
def test_a_printed_preset_is_a_config_in_which_only_placeholders_are_wrong(name: str) -> None:
    text = read_preset(name).as_toml().replace("REGION-", "europe-west4-")
    expected = {key.partition(".")[0] for key, _ in placeholders(HttpSection(preset=name))}
    problems = problems_of(text)
    assert {problem.path[-1] for problem in problems} == expected
    assert all(f"the preset {name} needs it" in problem.problem and problem.line for problem in problems)


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_works_once_its_placeholders_are_replaced(name: str) -> None:
    config = Config().replace(inference={"url": "https://h", "protocol": "http", "http": keys_of(name)})
    assert config.inference.http.preset == name


def test_a_placeholder_names_its_key_the_line_and_the_remedy() -> None:
    text = (
        "[inference]\nurl = 'http://h'\nprotocol = 'http'\n[inference.http]\npreset = 'moondream'\nlabel = \"'car'\"\n"
    )
    with pytest.raises(ConfigError) as caught:
        parse_config(text, base_dir=Path("/x"), environ={})
    assert str(caught.value) == (
        "line 5: inference.http.fields: object is not set, and the preset moondream needs it; `trio-runner protocols "
        "moondream` prints a config in which <OBJECT> is to be replaced"
    )


def test_keys_of_the_config_come_before_those_of_the_preset() -> None:
    keys = {"preset": "localai", "fields": {"model": "a", "threshold": 0.3}, "score": "p", "box": "`null`"}
    protocol = open_protocol(msgspec.convert({"protocol": "http", "http": keys}, InferenceSection))
    body = json.loads(b"".join(protocol.call([FRAME]).body))
    assert body == {"model": "a", "threshold": 0.3, "image": PICTURE}
    answer = {"detections": [{"class_name": "cat", "p": 0.5, "x": 1}]}
    ((reading),) = protocol.read(Answer({}, json.dumps(answer).encode()), [FRAME])
    assert reading.detections == (Detection("cat", 0.5, None),)


# the page


def test_the_worked_example_of_the_page_is_a_config_that_reads_its_answer() -> None:
    page = (REPOSITORY / "docs/protocols.md").read_text().partition("### A new preset")[2]
    config = parse_config(textwrap.dedent(page.partition("```toml\n")[2].partition("   ```")[0]), base_dir=Path("/x"))
    answer = next(line for line in page.splitlines() if line.startswith('    {"state"'))
    protocol = open_protocol(config.inference)
    (reading,) = protocol.read(Answer({}, answer.encode()), [FRAME])
    assert reading.detections == (Detection("car", 0.93, (10.0, 20.0, 110.0, 100.0)),)
    with pytest.raises(BadAnswerError, match="status 200: overloaded"):
        protocol.read(Answer({}, b'{"state": "overloaded"}'), [FRAME])


def test_preset_and_recorded_answer_of_the_worked_example_are_whole() -> None:
    page = (REPOSITORY / "docs/protocols.md").read_text().partition("### A new preset")[2]
    config = parse_config(textwrap.dedent(page.partition("```toml\n")[2].partition("   ```")[0]), base_dir=Path("/x"))
    preset = tomli.loads(page.partition("# Finder,")[2].partition("\n")[2].partition("   ```")[0])
    assert msgspec.convert(preset, HttpSection) == config.inference.http
    case = json.loads(page.partition("```json\n")[2].partition("   ```")[0])
    assert case.keys() == KEYS_OF_A_CASE
    protocol = open_protocol(config.inference)
    (reading,) = protocol.read(Answer({}, json.dumps(case["answer"]).encode()), [make_frame(size=tuple(case["size"]))])
    assert reading.detections == tuple(msgspec.convert(case["detections"], list[Detection]))
    assert_request(protocol, case["request"])
    (failure,) = case["failures"]
    with pytest.raises(BadAnswerError, match=failure["message"]):
        protocol.read(Answer({}, json.dumps(failure["answer"]).encode()), [FRAME])


def test_the_page_lists_every_preset_and_every_expression_of_its_recipes_is_valid() -> None:
    page = (REPOSITORY / "docs/protocols.md").read_text()
    assert set(PRESETS) <= set(re.findall(r"^\| `([a-z-]+)` \|", page.partition("### Presets")[2], re.MULTILINE))
    recipes = page.partition("### Recipes")[2].partition("### Presets")[0]
    expressions = re.findall(r'(?:box|list|label|labels|score|scores|boxes|keypoints|polygon) = "([^"]+)"', recipes)
    assert len(expressions) > 12
    for text in expressions:
        Expression(text)


# anything at all

words = sorted({word for case in CASES.values() for word in re.findall(r'"(\w+)":', json.dumps(case["answer"]))})
values = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 700) | st.floats() | st.sampled_from(["0.5", "succeeded", "a\0", ""]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(words), inner, max_size=4),
    max_leaves=15,
)


def changed(value: Any, chance: Any, new: Any) -> Any:
    """The value, in which a part is replaced here and there."""
    if chance.random() < 0.05:
        return new
    if isinstance(value, dict):
        return {key: changed(inner, chance, new) for key, inner in value.items()}
    return [changed(inner, chance, new) for inner in value] if isinstance(value, list) else value


@given(st.sampled_from(sorted(CASES)), values, st.randoms(use_true_random=False) | st.none())
def test_any_answer_to_a_preset_is_sound_detections_or_a_bad_answer(name: str, value: Any, chance: Any) -> None:
    answer = value if chance is None else changed(CASES[name]["answer"], chance, value)
    frame = make_frame(size=(640, 480))
    try:
        (reading,) = protocol_of(name).read(Answer({}, json.dumps(answer).encode()), [frame])
    except BadAnswerError as error:
        assert_refusal(str(error))
    else:
        assert_sound(reading.detections, frame)
        assert b"\\u0000" not in msgspec.json.encode(reading.detections)

"""Commands on Kafka, well-formed and hostile: a command, or a reason why it is none, and nothing else ever."""

from __future__ import annotations

import json
from importlib import resources
from typing import Any

import jsonschema
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_runner.config.load import Config
from trio_runner.config.settings import OF_A_SCENARIO
from trio_runner.kafka.command import MAX_COMMAND_BYTES, START, STOP, StartCommand, StopCommand, decode_command
from trio_runner.kafka.record import BadEventError, Record

SCHEMA = json.loads(resources.files("trio_runner").joinpath("kafka/schemas/command.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)
CONFIG = Config()
GOOD: dict[str, Any] = {"scenario_id": 7, "video_path": "/videos/a.mp4"}

Headers = tuple[tuple[str, bytes | None], ...]


def headers(kind: str = START, command_id: bytes = b"c-1") -> Headers:
    return (("ce_id", command_id), ("ce_type", kind.encode()))


def record(value: bytes | None, *, key: bytes | None = b"7", raw_headers: Headers | None = None) -> Record:
    given = headers() if raw_headers is None else raw_headers
    return Record(topic="runner.commands", partition=0, offset=3, key=key, value=value, raw_headers=given)


def body(**changes: Any) -> bytes:
    return json.dumps(GOOD | changes).encode()


def refusal(hostile: Record) -> str:
    with pytest.raises(BadEventError) as caught:
        decode_command(hostile, CONFIG)
    reason = str(caught.value)
    assert reason.isprintable()
    assert len(reason) <= 300
    return reason


def test_a_start_is_decoded() -> None:
    settings = {"video": {"stride": 2}, "scenario": {"max_failures": 3}}
    command_id, command = decode_command(record(body(settings=settings)), CONFIG)
    assert command_id == "c-1"
    assert command == StartCommand(scenario_id=7, video_path="/videos/a.mp4", settings=settings)


def test_a_stop_is_decoded() -> None:
    stop = record(b'{"scenario_id": 7}', raw_headers=headers(STOP, b"c-2"))
    assert decode_command(stop, CONFIG) == ("c-2", StopCommand(scenario_id=7))


def test_further_headers_and_any_order_are_welcome() -> None:
    more = (("traceparent", b"00-1"), *reversed(headers()), ("content-type", b"application/json"), ("x", None))
    assert decode_command(record(body(), raw_headers=more), CONFIG)[0] == "c-1"


def settings_json(text: str) -> bytes:
    return b'{"scenario_id": 7, "video_path": "/a", "settings": ' + text.encode() + b"}"


HOSTILE: dict[str, tuple[Record, str]] = {
    "no value": (record(None), "no command"),
    "an empty value": (record(b""), "no command"),
    "no headers": (record(body(), raw_headers=()), "ce_type is None"),
    "no ce_id": (record(body(), raw_headers=(("ce_type", START.encode()),)), "ce_id"),
    "an empty ce_id": (record(body(), raw_headers=headers(START, b"")), "ce_id"),
    "a ce_id of null": (record(body(), raw_headers=(("ce_id", None), ("ce_type", START.encode()))), "ce_id"),
    "a long ce_id": (record(body(), raw_headers=headers(START, b"x" * 201)), "ce_id"),
    "a ce_id with a control character": (record(body(), raw_headers=headers(START, b"a\x1b[31m")), "ce_id"),
    "a ce_id with NUL": (record(body(), raw_headers=headers(START, b"a\x00")), "ce_id"),
    "an unknown type": (record(body(), raw_headers=headers("trio-runner.destroy.v1")), "ce_type"),
    "a later version": (record(body(), raw_headers=headers("trio-runner.start.v2")), "ce_type"),
    "the type of an event": (record(body(), raw_headers=headers("trio-runner.died.v1")), "ce_type"),
    "a type with an escape": (record(body(), raw_headers=headers("\x1b[2J")), "ce_type"),
    "a start with the body of a stop": (record(b'{"scenario_id": 7}'), "video_path"),
    "a stop with the body of a start": (record(body(), raw_headers=headers(STOP)), "video_path"),
    "no key": (record(body(), key=None), "key"),
    "another's key": (record(body(), key=b"8"), "key"),
    "a key with a zero": (record(body(), key=b"07"), "key"),
    "a key with a blank": (record(body(), key=b" 7"), "key"),
    "no UTF-8": (record(b"\xff\xfe\x00"), "no command"),
    "no UTF-8 in a text": (record(b'{"scenario_id": 7, "video_path": "/\xff"}'), "no command"),
    "a byte order mark": (record(b"\xef\xbb\xbf" + body()), "no command"),
    "two documents": (record(body() + body()), "no command"),
    "a list": (record(b"[]"), "no command"),
    "a number": (record(b"7"), "no command"),
    "oversized": (record(body(video_path="/" + "a" * MAX_COMMAND_BYTES)), "bytes"),
    "a long path": (record(body(video_path="/" + "a" * 4096)), "video_path"),
    "no path": (record(body(video_path="")), "video_path"),
    "a relative path": (record(body(video_path="a.mp4")), "video_path"),
    "a path with NUL": (record(body(video_path="/a\x00")), "video_path"),
    "a path with an escape": (record(body(video_path="/\x1b[31m")), "video_path"),
    "a path with //": (record(body(video_path="/videos//a.mp4")), "video_path"),
    "a path with /./": (record(body(video_path="/videos/./a.mp4")), "video_path"),
    "a lone surrogate": (record(b'{"scenario_id": 7, "video_path": "/\\ud800"}'), "no command"),
    "a lone low surrogate": (record(b'{"scenario_id": 7, "video_path": "/\\udc80"}'), "no command"),
    "an unknown key": (record(body(epoch=7)), "epoch"),
    "a key twice": (record(b'{"scenario_id": 7, "video_path": "/a", "video_path": "/b"}'), "twice"),
    "a setting twice": (record(settings_json('{"video": {"stride": 2, "stride": 3}}')), "twice"),
    "the id 0": (record(body(scenario_id=0), key=b"0"), "scenario_id"),
    "a negative id": (record(body(scenario_id=-1), key=b"-1"), "scenario_id"),
    "a huge id": (record(body(scenario_id=2**63), key=str(2**63).encode()), "no command"),
    "an id as text": (record(body(scenario_id="7")), "scenario_id"),
    "an id as a fraction": (record(b'{"scenario_id": 7.0, "video_path": "/a"}', key=b"7"), "scenario_id"),
    "an id as a truth value": (record(body(scenario_id=True), key=b"True"), "scenario_id"),
    "settings of a list": (record(settings_json("[]")), "settings"),
    "settings of null": (record(settings_json("null")), "settings"),
    "a section of a list": (record(settings_json('{"video": []}')), "settings"),
    "nested deeply": (
        record(settings_json('{"video": {"stride": ' + "[" * 5000 + "]" * 5000 + "}}")),
        "no command|video.stride",
    ),
    "nested": (record(settings_json('{"video": {"stride": {"stride": 2}}}')), "video.stride"),
    "NaN": (record(settings_json('{"video": {"max_fps": NaN}}')), "no command"),
    "infinity": (record(settings_json('{"video": {"max_fps": 1e999}}')), "no command"),
    "a long number": (record(settings_json('{"video": {"stride": ' + "9" * 5000 + "}}")), "no command"),
    "a service of its own": (record(settings_json('{"inference": {"url": "http://evil"}}')), "inference.url"),
    "a token": (record(settings_json('{"inference": {"token_file": "/etc/shadow"}}')), "inference.token_file"),
    "a password": (record(settings_json('{"database": {"password_file": "/x"}}')), "database.password_file"),
    "another video": (record(settings_json('{"video": {"path": "/etc/passwd"}}')), "video.path"),
    "a limit": (record(settings_json('{"video": {"limit_memory_mib": 1048576}}')), "video.limit_memory_mib"),
    "an epoch": (record(settings_json('{"scenario": {"epoch": 9}}')), "scenario.epoch"),
    "a number that is a text": (record(settings_json('{"video": {"stride": "2"}}')), "video.stride"),
    "a number out of range": (record(settings_json('{"video": {"stride": 0}}')), "video.stride"),
    "a fraction for a count": (record(settings_json('{"scenario": {"max_failures": 3.0}}')), "scenario.max_failures"),
    "a truth value for a count": (record(settings_json('{"scenario": {"max_failures": true}}')), "max_failures"),
    "a text that is none of the choices": (record(settings_json('{"video": {"on_corrupt": "\\u0000"}}')), "on_corrupt"),
    "settings that contradict": (record(settings_json('{"video": {"stride": 2, "max_fps": 1}}')), "video.max_fps"),
    "a section called as a parameter": (record(settings_json('{"self": {}}')), "self"),
    "a section called as an argument": (record(settings_json('{"sections": {}}')), "sections"),
    "an empty section that is not a scenario's": (record(settings_json('{"kafka": {}}')), "kafka"),
    "a section with NUL": (record(settings_json('{"\\u0000": {}}')), "not for a scenario"),
    "many sections": (record(settings_json(json.dumps({f"s{n}": {} for n in range(1000)}))), "not for a scenario"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_command_is_refused_with_its_reason(name: str) -> None:
    hostile, because = HOSTILE[name]
    # How deep is too deep differs between Pythons.
    assert any(each in refusal(hostile) for each in because.split("|"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=10,
)
sections = st.sampled_from([*OF_A_SCENARIO, "self", "kafka", "orchestrator"]) | st.text(max_size=10)
keys = st.sampled_from([key for each in OF_A_SCENARIO.values() for key in each] + ["url", "path", "x"])
bodies = st.fixed_dictionaries(
    {},
    optional={
        "scenario_id": st.just(7) | st.integers() | json_values,
        "video_path": st.just("/a") | st.text() | json_values,
        "settings": st.dictionaries(sections, st.dictionaries(keys, json_values, max_size=3), max_size=3) | json_values,
        "x": json_values,
    },
).map(lambda value: json.dumps(value).encode())
header_lists = st.lists(
    st.tuples(st.sampled_from(["ce_id", "ce_type", "x"]), st.none() | st.binary(max_size=20)), max_size=4
).map(tuple)


@given(
    st.none() | st.binary(max_size=300) | bodies,
    st.none() | st.just(b"7") | st.binary(max_size=20),
    st.just(headers()) | st.just(headers(STOP)) | header_lists,
)
@example(settings_json('{"self": {}}'), b"7", headers())
def test_whatever_comes_is_a_command_or_a_reason(value: bytes | None, key: bytes | None, given: Headers) -> None:
    try:
        command_id, command = decode_command(record(value, key=key, raw_headers=given), CONFIG)
    except BadEventError:
        return
    assert 0 < len(command_id) <= 200
    assert str(command.scenario_id).encode() == key
    if isinstance(command, StartCommand):
        # It can be given to PostgreSQL and to a runner.
        json.dumps(command.settings, allow_nan=False).encode()
        CONFIG.replace(**command.settings)


# the schema that others validate with


def test_the_schema_is_one_and_names_what_a_scenario_may_set() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    properties = SCHEMA["$defs"]["start"]["properties"]["settings"]["properties"]
    named = {name: set(section["propertyNames"]["enum"]) for name, section in properties.items()}
    assert named == {name: set(keys) for name, keys in OF_A_SCENARIO.items()}


@given(bodies, st.sampled_from([START, STOP]))
@example(body(), START)
@example(body(settings={"video": {"stride": 2}}), START)
@example(b'{"scenario_id": 7}', STOP)
def test_what_is_taken_is_valid_by_the_schema(value: bytes, kind: str) -> None:
    parsed = json.loads(value)
    key = str(parsed.get("scenario_id")).encode()
    try:
        decode_command(record(value, key=key, raw_headers=headers(kind)), CONFIG)
    except BadEventError:
        return
    VALIDATOR.validate(parsed)


OF_THE_SCHEMA = ["a long path", "no path", "a relative path", "a path with NUL", "a path with an escape"]
OF_THE_SCHEMA += ["an unknown key", "the id 0", "a negative id", "a huge id", "an id as text", "settings of a list"]
OF_THE_SCHEMA += ["settings of null", "a section of a list", "nested", "a service of its own", "a token", "a limit"]
OF_THE_SCHEMA += ["a section called as a parameter", "an empty section that is not a scenario's", "a list", "a number"]


@pytest.mark.parametrize("name", OF_THE_SCHEMA)
def test_what_is_hostile_by_its_shape_is_not_valid_by_the_schema_either(name: str) -> None:
    assert not VALIDATOR.is_valid(json.loads(HOSTILE[name][0].value or b""))

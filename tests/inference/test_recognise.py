from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import tomli
from hypothesis import example, given
from hypothesis import strategies as st

from tests.cases.inference.described import DESCRIBED, Described, upload
from trio_runner.config.errors import ConfigError
from trio_runner.config.inference import InferenceSection
from trio_runner.config.load import parse_config
from trio_runner.inference.recognise import QUESTIONS, guesses, models_in
from trio_runner.inference.replies import Guess, Reply

PROTOCOLS = get_args(get_type_hints(InferenceSection)["protocol"])


def toml(guess: Guess) -> str:
    return "\n".join(('[inference]\nurl = "http://h"', *guess.lines))


@pytest.mark.parametrize("case", DESCRIBED, ids=lambda case: case.name)
def test_services_are_recognised_by_their_answers(case: Described) -> None:
    best, *_ = guesses(case.replies())
    assert best.what == case.what
    assert set(case.lines) <= set(best.lines), best.lines
    inference = tomli.loads(toml(best))["inference"]
    assert inference["protocol"] in PROTOCOLS
    replaced, placeholders = re.subn("<[A-Z/]+>", "a", toml(best))
    parse_config(replaced, base_dir=Path("/"), environ={})
    if placeholders:
        with pytest.raises(ConfigError, match=r"<[A-Z/]+>"):
            parse_config(toml(best), base_dir=Path("/"), environ={})


@pytest.mark.parametrize("protocol", ["oip", "openai"])
def test_a_config_in_which_the_placeholder_of_a_model_is_left_is_refused(protocol: str) -> None:
    text = f"[inference]\nurl = 'http://h'\nprotocol = '{protocol}'\n[inference.{protocol}]\nmodel = '<MODEL>'\n"
    with pytest.raises(ConfigError, match=f"line 5: inference.{protocol}.model: .*<MODEL>"):
        parse_config(text + "boxes = 'b'\n" * (protocol == "oip"), base_dir=Path("/"), environ={})


def test_a_service_of_its_own_names_the_protocol_for_answers_of_another_shape() -> None:
    own = [case for case in DESCRIBED if "of its own" in case.what]
    assert len(own) == 4
    for case in own:
        best, *_ = guesses(case.replies())
        assert '"http' in toml(best)
        assert "`trio-runner protocols` lists presets" in toml(best)


def test_every_path_that_takes_a_picture_is_listed() -> None:
    pages = [upload(path, "file", {"type": "string", "format": "binary"}) for path in ("/detect", "/classify", "/pose")]
    page = pages[0] | {"paths": {path: methods for each in pages for path, methods in each["paths"].items()}}
    case = Described(name="", source="", answers={"GET /openapi.json": page}, what="", lines=())
    found = guesses(case.replies())
    assert [line for guess in found for line in guess.lines if line.startswith("path")] == [
        'path = "/detect"',
        'path = "/classify"',
        'path = "/pose"',
    ]


def test_a_server_of_several_kinds_is_all_of_them() -> None:
    replies = {question: reply for case in DESCRIBED for question, reply in case.replies().items()}
    found = [guess.what for guess in guesses(replies)]
    assert found[0].endswith("the Open Inference Protocol v2")
    assert len(found) == len(set(found)) > 4


@pytest.mark.parametrize(
    "answers",
    [
        {},
        {"GET /": b"It works!", "GET /ping": b"pong", "GET /healthz": {"status": "ok"}},
        {"GET /v2": {"message": "hello"}, "GET /v1/models": {"models": []}},
        {"GET /openapi.json": upload("/v1/audio/transcriptions", "file", {"type": "string", "format": "binary"})},
        {"GET /openapi.json": {"paths": {"/items": {"post": {"requestBody": {}}}, "/x": 3}}},
    ],
)
def test_another_web_server_is_not_recognised(answers: dict[str, Any]) -> None:
    case = Described(name="", source="", answers=answers, what="", lines=())
    assert guesses(case.replies()) == []


def test_only_a_few_models_with_plain_names_are_asked_for() -> None:
    names = ["a", "a", "../../x", "b c", "b\n", 7, None, {"name": "d"}, *map(str, range(9))]
    body = json.dumps([each if isinstance(each, dict) else {"name": each} for each in names]).encode()
    assert models_in({"POST /v2/repository/index": Reply(200, {}, body)}) == ["a", "d", "0", "1", "2"]


FASTAPI = ["paths", "/p", "post", "requestBody", "content", "multipart/form-data", "schema", "properties", "$ref"]
KEYS = [
    *FASTAPI,
    "name",
    "format",
    "anyOf",
    "extensions",
    "inputs",
    "outputs",
    "shape",
    "datatype",
    "data",
    "id",
    "object",
]
KEYS += ["status", "success", "info", "title", "backends", "error", "owned_by"]
json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=5)
    | st.sampled_from(["#/a", "binary", "FP32", "list"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
    max_leaves=25,
)


@given(
    st.dictionaries(
        st.sampled_from([*QUESTIONS, "GET /v2/models/m"]),
        st.tuples(
            st.sampled_from([200, 404, 405]), json_values.map(json.dumps).map(str.encode) | st.binary(max_size=20)
        ),
    )
)
@example({"GET /ping": (200, b'{"status": []}')})
def test_whatever_a_service_answers_the_config_is_toml(answers: dict[str, tuple[int, bytes]]) -> None:
    replies = {question: Reply(status, {}, body) for question, (status, body) in answers.items()}
    for guess in guesses(replies):
        assert "inference" in tomli.loads(toml(guess))
        assert guess.what.isprintable()

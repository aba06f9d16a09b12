from __future__ import annotations

import msgspec
import pytest

from trio_runner.errors import (
    ClaimRefusedError,
    ErrorClass,
    ErrorCode,
    RunnerError,
    ScenarioCompletedError,
    Stage,
    SupersededError,
)
from trio_runner.model import Detection


def test_every_code_is_its_own_string_with_one_stage_and_one_class() -> None:
    assert len(ErrorCode) == len({str(code) for code in ErrorCode})
    for code in ErrorCode:
        assert code == code.name.lower()
        assert ErrorCode[code.name] is code
        assert isinstance(code.stage, Stage)
        assert isinstance(code.error_class, ErrorClass)


def test_every_stage_and_class_is_used() -> None:
    assert {code.stage for code in ErrorCode} == set(Stage)
    assert {code.error_class for code in ErrorCode} == set(ErrorClass)


def test_only_an_interruption_is_of_the_class_that_does_not_count() -> None:
    assert [code for code in ErrorCode if code.error_class is ErrorClass.INTERRUPTED] == [ErrorCode.INTERRUPTED]


@pytest.mark.parametrize("code", ErrorCode)
def test_a_code_travels_through_json(code: ErrorCode) -> None:
    assert msgspec.json.decode(msgspec.json.encode(code), type=ErrorCode) is code


def test_a_code_that_is_not_in_the_list_is_refused() -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'"gremlins"', type=ErrorCode)


def test_an_error_begins_with_its_code() -> None:
    error = RunnerError(ErrorCode.STORE_LOST, "the cable", retry_after_seconds=3)
    assert str(error) == "store_lost: the cable"
    assert (error.code, error.message, error.retry_after_seconds) == (ErrorCode.STORE_LOST, "the cable", 3)


def test_who_catches_a_refusal_does_not_catch_a_supersession() -> None:
    assert issubclass(ScenarioCompletedError, ClaimRefusedError)
    assert not issubclass(SupersededError, ClaimRefusedError)
    assert SupersededError("gone").code is ErrorCode.SUPERSEDED


def test_a_detection_without_confidence_has_null_in_json() -> None:
    encoded = msgspec.json.encode(Detection("dog", None, (0.0, 1.0, 2.0, 3.5)))
    assert msgspec.json.decode(encoded) == {"label": "dog", "confidence": None, "bbox": [0.0, 1.0, 2.0, 3.5]}


def test_what_a_detection_lacks_is_null_and_what_is_no_box_stands_only_where_it_is_set() -> None:
    assert msgspec.json.encode(Detection("cat", 0.5, None)) == b'{"label":"cat","confidence":0.5,"bbox":null}'
    full = Detection("class 3", None, None, class_id=3, attributes={"text": "STOP"})
    encoded = msgspec.json.encode(full)
    assert encoded == (b'{"label":"class 3","confidence":null,"bbox":null,"class_id":3,"attributes":{"text":"STOP"}}')
    assert msgspec.json.decode(encoded, type=Detection) == full

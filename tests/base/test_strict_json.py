"""JSON with a key twice is refused, with the path of the key."""

from __future__ import annotations

import pytest

from trio_runner.base.strict_json import RepeatedKeyError, refuse_repeated_keys


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"a": 1, "a": 1}', "$.a: appears twice"),
        (b'[{"a": 1}, {"b": {"c": [0, {"d": 1, "e": 2, "d": 3}]}}]', "$[1].b.c[1].d: appears twice"),
        (b'{"a": 1, "\\u0061": 1}', "$.a: appears twice"),
        (b'{"\\u001b[2J": 1, "\\u001b[2J": 1}', "$.\N{REPLACEMENT CHARACTER}[2J: appears twice"),
        (b'{"' + b"a" * 500 + b'": 1, "' + b"a" * 500 + b'": 1}', f"$.{'a' * 199}: appears twice"),
    ],
)
def test_a_key_twice_is_refused_with_its_path(body: bytes, message: str) -> None:
    with pytest.raises(RepeatedKeyError) as caught:
        refuse_repeated_keys(body)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "body", [b"1", b"{}", b'{"a": {"a": 1}, "b": [{"a": 1}, {"a": 1}]}', b"[" + b"9" * 5000 + b"]"]
)
def test_one_key_in_several_objects_is_no_repetition(body: bytes) -> None:
    refuse_repeated_keys(body)

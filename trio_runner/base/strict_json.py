"""JSON that means the same to every reader: no object in it has one key twice."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

from trio_runner.base.text import harmless

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class RepeatedKeyError(ValueError):
    """An object has one key twice; the message begins with the JSON path of that key."""


def refuse_repeated_keys(body: bytes, *, quote: Callable[[str], str] = harmless) -> None:
    """Check that no object in `body` has one key twice; msgspec keeps the last of two and says nothing.

    Args:
        body: JSON that msgspec has decoded before, and so is well-formed.
        quote: Makes a key fit for a message.

    Raises:
        RepeatedKeyError: One has.
        RecursionError: `body` is nested too deeply.
    """
    repeated: list[_RepeatedKey] = []

    def make(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _RepeatedKey:
        made = dict(pairs)
        if len(made) == len(pairs):
            return made
        repeated.append(_RepeatedKey(Counter(key for key, _ in pairs).most_common(1)[0][0]))
        return repeated[-1]

    # The numbers do not matter here, and Python is slow to read long integers.
    answer = json.loads(body, object_pairs_hook=make, parse_int=str, parse_float=str)
    if repeated:
        path = next(_paths_of_repeated_keys(answer, quote))
        raise RepeatedKeyError(f"${path[:200]}: appears twice")


class _RepeatedKey(str):
    """Takes the place of an object that has this key twice."""

    __slots__ = ()


def _paths_of_repeated_keys(value: Any, quote: Callable[[str], str]) -> Iterator[str]:
    if isinstance(value, _RepeatedKey):
        yield f".{quote(value)}"
    elif isinstance(value, dict):
        for key, inner in value.items():
            for path in _paths_of_repeated_keys(inner, quote):
                yield f".{quote(key)}{path}"
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            for path in _paths_of_repeated_keys(inner, quote):
                yield f"[{number}]{path}"

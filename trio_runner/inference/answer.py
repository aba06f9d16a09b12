"""Checks of an answer that all wire protocols share: strict JSON, and every value in it."""

from __future__ import annotations

import math
import re
import textwrap
from codecs import BOM_UTF8
from typing import TYPE_CHECKING, Any, Final
from unicodedata import category

import msgspec

from trio_runner.base.redact import redact
from trio_runner.base.strict_json import RepeatedKeyError, refuse_repeated_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

FP32_ROUNDING = 1e-6
MAX_DETECTIONS = 1000
MAX_LABEL_CHARACTERS = 200
MAX_CLASS_ID = 2**63 - 1
MAX_QUOTED_CHARACTERS = 200
COMPLAINT_KEYS = ("error", "errors", "detail", "message", "reason")
_MAX_SHOWN_KEYS = 12
_PERCENT = 100
_BEYOND_VISIBILITY = 2
"""The highest visibility of a keypoint as COCO writes it: such a number is not taken for a percentage."""
FAILED_STATUSES = frozenset({"error", "fail", "failed", "failure"})
UNFINISHED_STATUSES = FAILED_STATUSES | {"timeout", "cancelled", "canceled"}
_NUL: Final = re.compile(rb"(?<!\\)(?:\\\\)*\\u0000")
"""A NUL in JSON as msgspec writes it; a backslash before the u that is itself escaped is none."""
_JOINERS = "\u200c\u200d"
"""Format characters without which Persian, Hindi and many emoji cannot be written."""


class BadAnswerError(ValueError):
    """The service's answer is not one of this protocol; the message begins with the JSON path."""


def parse_json(body: bytes) -> Any:
    """Strict JSON: no NaN, no number beyond a double, no lone surrogate, no key twice; raises BadAnswerError.

    A byte order mark before it is skipped: RFC 8259 lets a reader do so, and some services write one.
    """
    body = body.removeprefix(BOM_UTF8)
    try:
        answer = msgspec.json.decode(body)
        # msgspec keeps the last of two equal keys and says nothing. Each key that it drops takes its colon along, so
        # the answer written again has fewer colons; only an escaped colon could hide that. Counting costs a third of
        # `refuse_repeated_keys`.
        if b"\\" in body or body.count(b":") != msgspec.json.encode(answer).count(b":"):
            refuse_repeated_keys(body, quote=quoted)
    except RepeatedKeyError as error:
        raise BadAnswerError(str(error)) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadAnswerError(f"$: not JSON: {error}") from error
    except RecursionError as error:
        raise BadAnswerError("$: nested too deeply") from error
    return answer


def quoted(value: Any) -> str:
    """A value of the answer, fit for a message: one printable line of at most 200 characters, no user part of a URL.

    The line is cut between words, because a secret that is cut in half would not be recognised and masked.
    """
    text = value if isinstance(value, str) else msgspec.json.encode(value).decode()
    line = textwrap.shorten(
        redact(text), MAX_QUOTED_CHARACTERS, placeholder=" …", break_long_words=False, break_on_hyphens=False
    )
    return "".join("\N{REPLACEMENT CHARACTER}" if _is_unprintable(letter) else letter for letter in line)


def _is_unprintable(letter: str) -> bool:
    """Controls, surrogates, line separators, and format characters, which can turn a line of text around."""
    return not letter.isprintable() and letter not in _JOINERS and category(letter) in {"Cc", "Cf", "Cs", "Zl", "Zp"}


def json_kind(value: Any) -> str:
    """What a value is, as JSON calls it."""
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "text"
        case list():
            return "list"
    return "object"


def contents(value: Any, who: str) -> str:
    """What `who`, an answer or an item, holds: the keys of an object, or what else it is."""
    if not isinstance(value, dict):
        return (
            f"{who} is {json_kind(value)}"
            if value is None
            else f"{who} is {_article(json_kind(value))} {json_kind(value)}"
        )
    more = ", …" if len(value) > _MAX_SHOWN_KEYS else ""
    return f"{who} has the keys {', '.join(key_names(value))}{more}" if value else f"{who} has no keys"


def key_names(value: dict[str, Any]) -> list[str]:
    """The first keys of an object, fit for a message."""
    return [quoted(key) for key in list(value)[:_MAX_SHOWN_KEYS]]


def _article(noun: str) -> str:
    return "an" if noun[0] in "aeiou" else "a"


def refuse_failure(answer: dict[str, Any], list_keys: Sequence[str]) -> None:
    """Raise BadAnswerError for an answer with status 200 whose body reports a failure, whatever else it holds."""
    complaint = _complaint(answer)
    sign = next((f"$.{key}" for key, value in answer.items() if _means_failure(key, value)), "")
    if not sign and complaint and answer.keys().isdisjoint(list_keys):
        sign = "$"
    if sign:
        raise BadAnswerError(f"{sign}: the service reports a failure with status 200{complaint}")


def _complaint(answer: dict[str, Any]) -> str:
    return next((f": {quoted(answer[key])}" for key in COMPLAINT_KEYS if answer.get(key)), "")


def _means_failure(key: str, value: Any) -> bool:
    match key:
        case "success" | "ok":
            return value is not True
        case "error" | "errors":
            return bool(value)
        case "status":
            return isinstance(value, str) and value.lower() in FAILED_STATUSES
    return False


def refuse_empty_failure(answer: Any) -> None:
    """Raise BadAnswerError for an answer with an empty list beside a sign that the picture was not looked at.

    Beside detections the same keys may mean something else, as the code of a product.
    """
    if isinstance(answer, dict):
        for key, value in answer.items():
            if _means_failure_if_empty(key, value):
                complaint = _complaint(answer) or f": {quoted(value)}"
                raise BadAnswerError(f"$.{key}: the service reports a failure with status 200{complaint}")


def _means_failure_if_empty(key: str, value: Any) -> bool:
    match key:
        case "status" | "state" if isinstance(value, str):
            return value.lower() in UNFINISHED_STATUSES
        case "status" | "code":
            # 10000 is the code of success of some services.
            return isinstance(value, int) and 400 <= value < 600  # noqa: PLR2004 - the statuses of errors in HTTP
        case "is_error" | "isError":
            return value is True
        case "exception":
            return bool(value)
    return False


def storable(value: Any, path: str) -> Any:
    """The value as it is, for an attribute of a detection; raises BadAnswerError if a text in it holds a NUL."""
    if _NUL.search(msgspec.json.encode(value)):
        raise BadAnswerError(f"{path}: holds a NUL character, which PostgreSQL does not store")
    return value


def items(value: Any, path: str) -> list[Any]:
    """A list of at most 1,000; raises BadAnswerError."""
    if not isinstance(value, list):
        raise BadAnswerError(f"{path}: expected a list, got {json_kind(value)}")
    if len(value) > MAX_DETECTIONS:
        raise BadAnswerError(f"{path}: {len(value)} detections, more than {MAX_DETECTIONS}")
    return value


def number(value: Any, path: str) -> float:
    """A finite number; raises BadAnswerError, also for true and false."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnswerError(f"{path}: expected a number, got {json_kind(value)}")
    try:
        as_float = float(value)
    except OverflowError:
        as_float = math.inf
    if not math.isfinite(as_float):
        raise BadAnswerError(f"{path}: not a finite number")
    return as_float


def confidence(value: Any, path: str) -> float:
    """A number in 0..1, to the precision of FP32; raises BadAnswerError."""
    score = number(value, path)
    if 1 < score <= 1 + FP32_ROUNDING:
        return 1.0
    if not 0 <= score <= 1:
        guess = ": a percentage?" if _BEYOND_VISIBILITY < score <= _PERCENT else ""
        raise BadAnswerError(f"{path}: {score:g} is not in 0..1{guess}")
    return score


def named(value: Any, path: str, names: Sequence[str] = ()) -> tuple[str, int | None]:
    """The label, and the class number if the service gives one; raises BadAnswerError.

    A class number has its name from `names`; without one it is called `class 7`.
    """
    number_of_class = class_id(value, path)
    if number_of_class is None:
        return label(value, path), None
    known = 0 <= number_of_class < len(names) and names[number_of_class]
    return known or f"class {number_of_class}", number_of_class


def class_id(value: Any, path: str) -> int | None:
    """The value if it is a class number, which PostgreSQL can hold, and None if not; raises BadAnswerError."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    if not -MAX_CLASS_ID <= value <= MAX_CLASS_ID:
        raise BadAnswerError(f"{path}: a class number beyond 64 bits")
    return value


def label(value: Any, path: str) -> str:
    """A printable name; raises BadAnswerError."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_LABEL_CHARACTERS:
        raise BadAnswerError(f"{path}: expected a name of 1 to {MAX_LABEL_CHARACTERS} characters")
    if not value.isprintable() and any(map(_is_unprintable, value)):
        raise BadAnswerError(f"{path}: holds a control character")
    return value

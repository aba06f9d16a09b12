"""The part that all wire protocols share: their interface, strict JSON, and checks of every value in an answer."""

from __future__ import annotations

import math
import textwrap
from typing import TYPE_CHECKING, Any, Protocol
from unicodedata import category

import msgspec

from trio_runner.base.redact import redact
from trio_runner.base.strict_json import RepeatedKeyError, refuse_repeated_keys

if TYPE_CHECKING:
    import httpx

    from trio_runner.config.sections import InferenceSection
    from trio_runner.model import Detection, Frame

MAX_DETECTIONS = 1000
MAX_LABEL_CHARACTERS = 200
MAX_CLASS_ID = 2**63 - 1
MAX_QUOTED_CHARACTERS = 200
_JOINERS = "\u200c\u200d"
"""Format characters without which Persian, Hindi and many emoji cannot be written."""


class BadAnswerError(ValueError):
    """The service's answer is not one of this protocol; the message begins with the JSON path."""


class WireProtocol(Protocol):
    """How one kind of service is asked and its answer read; pure, so that a test needs no network."""

    def request(self, config: InferenceSection, frame: Frame) -> httpx.Request:
        """The request that carries `frame`."""
        ...

    def detections(self, body: bytes, frame: Frame) -> tuple[Detection, ...]:
        """The answer's detections, with boxes in source pixels; raises BadAnswerError."""
        ...


def parse_json(body: bytes) -> Any:
    """Strict JSON: no NaN, no number beyond a double, no lone surrogate, no key twice; raises BadAnswerError."""
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


def items(value: Any, path: str) -> list[Any]:
    """A list of at most 1,000; raises BadAnswerError."""
    if not isinstance(value, list):
        raise BadAnswerError(f"{path}: expected a list, got {type(value).__name__}")
    if len(value) > MAX_DETECTIONS:
        raise BadAnswerError(f"{path}: {len(value)} detections, more than {MAX_DETECTIONS}")
    return value


def number(value: Any, path: str) -> float:
    """A finite number; raises BadAnswerError, also for true and false."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise BadAnswerError(f"{path}: expected a number, got {type(value).__name__}")
    try:
        as_float = float(value)
    except OverflowError:
        as_float = math.inf
    if not math.isfinite(as_float):
        raise BadAnswerError(f"{path}: not a finite number")
    return as_float


def confidence(value: Any, path: str) -> float:
    """A number in 0..1; raises BadAnswerError."""
    score = number(value, path)
    if not 0 <= score <= 1:
        raise BadAnswerError(f"{path}: {score:g} is not in 0..1")
    return score


def class_id(value: Any, path: str) -> int | None:
    """The value if it is a class number, which PostgreSQL can hold, and None if not; raises BadAnswerError."""
    if not isinstance(value, int) or isinstance(value, bool):
        return None
    if not -MAX_CLASS_ID <= value <= MAX_CLASS_ID:
        raise BadAnswerError(f"{path}: a class number beyond 64 bits")
    return value


def label(value: Any, path: str) -> str:
    """A printable name; `class 0` for a class number without a name; raises BadAnswerError."""
    number_of_class = class_id(value, path)
    if number_of_class is not None:
        return f"class {number_of_class}"
    if not isinstance(value, str) or not 0 < len(value) <= MAX_LABEL_CHARACTERS:
        raise BadAnswerError(f"{path}: expected a name of 1 to {MAX_LABEL_CHARACTERS} characters")
    if not value.isprintable() and any(map(_is_unprintable, value)):
        raise BadAnswerError(f"{path}: holds a control character")
    return value


def box(corners: tuple[float, float, float, float], frame: Frame, path: str) -> tuple[float, float, float, float]:
    """The box in source pixels, given in pixels of the picture that was sent; raises BadAnswerError.

    A detector may overshoot the border a little: up to 2 % of the side is cut off, more is an error.
    """
    x1, y1, x2, y2 = corners
    slack_x, slack_y = 0.02 * frame.sent_width, 0.02 * frame.sent_height
    if not (x1 <= x2 and y1 <= y2):
        raise BadAnswerError(f"{path}: corners out of order: [{x1:g}, {y1:g}, {x2:g}, {y2:g}]")
    if x1 < -slack_x or y1 < -slack_y or x2 > frame.sent_width + slack_x or y2 > frame.sent_height + slack_y:
        raise BadAnswerError(
            f"{path}: [{x1:g}, {y1:g}, {x2:g}, {y2:g}] lies outside the frame of {frame.sent_width}×{frame.sent_height}"
        )
    scale_x, scale_y = frame.width / frame.sent_width, frame.height / frame.sent_height

    def inside(value: float, scale: float, side: int) -> float:
        return round(min(max(value * scale, 0.0), float(side)), 2)

    return (
        inside(x1, scale_x, frame.width),
        inside(y1, scale_y, frame.height),
        inside(x2, scale_x, frame.width),
        inside(y2, scale_y, frame.height),
    )

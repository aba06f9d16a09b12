"""What a language model wrote: its answer without its thinking, and the JSON value in it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from trio_runner.inference.answer import BadAnswerError, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_THINKING: Final = re.compile(r"\s*<(think|thinking|thought)>")
_THOUGHT: Final = re.compile(r"</(?:think|thinking|thought)>")
_FENCE: Final = "```"
_BRACKET: Final = re.compile(r"[{\[]")
MAX_BRACKETS: Final = 200
"""How many brackets of a text are tried. Each try may take as long as the text, where the scanner counts its lines."""
_SCANNER: Final = json.JSONDecoder(parse_int=str, parse_float=str, parse_constant=str)
"""Finds where a value ends; the numbers in it do not matter, and Python is slow to read long integers."""


def without_thinking(text: str) -> str:
    """The text behind the thinking, without blanks around it; raises BadAnswerError if there is none.

    Some chat templates begin the thinking in the prompt, so that the text holds `</think>` alone.
    """
    *_, end = (0, *(mark.end() for mark in _THOUGHT.finditer(text)))
    if not end and _THINKING.match(text):
        raise BadAnswerError("the model's thinking has no end: raise inference.openai.max_tokens, or turn it off")
    if not (answer := text[end:].strip()):
        raise BadAnswerError("nothing follows the model's thinking")
    return answer


def json_in(text: str) -> Any:
    """The one JSON object or list in a text that may have prose or a fence (```json … ```) around it.

    A value that is written twice counts once. What is not closed is an error: a part of it would pass for the whole.

    Raises:
        BadAnswerError: There is none, there are two different ones, or it is not strict JSON.
    """
    # The text in a fence begins with the name of a language, which holds no bracket.
    fenced = [] if text.startswith(("{", "[")) else text.split(_FENCE)[1:-1:2]
    pieces = list(_values(fenced or [text]))
    if not pieces:
        raise BadAnswerError("$: no JSON object or list in it")
    first, *others = (parse_json(piece.encode()) for piece in dict.fromkeys(pieces))
    if any(other != first for other in others):
        raise BadAnswerError("$: two different JSON values in it: which one counts?")
    return first


def _values(texts: Sequence[str]) -> Iterator[str]:
    """Each outermost JSON object or list in the texts, as it is written."""
    tries = 0
    for text in texts:
        place = 0
        while bracket := _BRACKET.search(text, place):
            place, tries = bracket.start(), tries + 1
            if tries > MAX_BRACKETS:
                raise BadAnswerError(f"$: more than {MAX_BRACKETS} brackets that may begin JSON")
            try:
                _, end = _SCANNER.raw_decode(text, place)
            except json.JSONDecodeError as error:
                if not _is_prose(text, place + 1, error.pos):
                    raise BadAnswerError(f"$: not JSON: {error.msg} at character {error.pos}") from error
                place += 1
            except RecursionError as error:
                raise BadAnswerError("$: nested too deeply") from error
            else:
                yield text[place:end]
                place = end


def _is_prose(text: str, inside: int, wrong: int) -> bool:
    """Whether a bracket belongs to prose, as in "[two cars]": what follows it at `inside` is wrong, and no string."""
    while inside < len(text) and text[inside].isspace():
        inside += 1
    return wrong <= inside < len(text) and text[inside] != '"'

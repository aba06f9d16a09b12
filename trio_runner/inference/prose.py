"""What a language model wrote: its answer without its thinking, and the JSON value in it."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, Final

from trio_runner.inference.answer import BadAnswerError, parse_json

if TYPE_CHECKING:
    from collections.abc import Iterator

_THINKING: Final = re.compile(r"\s*<(think|thinking|thought)>")
_THOUGHT: Final = re.compile(r"</(?:think|thinking|thought)>")
_FENCE: Final = re.compile(r"```[A-Za-z0-9_-]*[ \t]*\r?\n?(.*?)```", re.DOTALL)
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
    if text.startswith(("{", "[")):
        pieces = list(_values(text))
    else:
        fenced = [match[1] for match in _FENCE.finditer(text)]
        pieces = [value for each in fenced or [text] for value in _values(each)]
    if not pieces:
        raise BadAnswerError("$: no JSON object or list in it")
    first, *others = (parse_json(piece.encode()) for piece in dict.fromkeys(pieces))
    if any(other != first for other in others):
        raise BadAnswerError("$: two different JSON values in it: which one counts?")
    return first


def _values(text: str) -> Iterator[str]:
    """Each outermost JSON object or list in the text, as it is written."""
    place = 0
    while place < len(text):
        if text[place] not in "{[":
            place += 1
            continue
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

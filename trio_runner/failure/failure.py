"""Flattens the exception that ended a run into the one Failure that log, database and event show."""

from __future__ import annotations

import traceback
from itertools import islice
from typing import TYPE_CHECKING
from unicodedata import category

from trio_runner.base.redact import redact
from trio_runner.errors import ErrorClass, ErrorCode, RunnerError
from trio_runner.model import Failure

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_MESSAGE_CHARACTERS = 2048
MAX_STACK_FRAMES = 20
MAX_CAUSES = 4


def flatten(error: BaseException, secrets: frozenset[str] = frozenset()) -> Failure:
    """One Failure for `error`; of a group (Trio wraps even a single error) the most important one, the others counted.

    An exception that is no RunnerError is a bug: it is the most important, and `internal`. A stack names file, line and
    function of the innermost 20 frames and never a value, because local variables hold connection parameters.

    Args:
        error: What a run raised.
        secrets: Values that are masked wherever they appear.
    """
    leaves = list(_leaves(error))
    first = min(leaves, key=_rank)
    code = first.code if isinstance(first, RunnerError) else ErrorCode.INTERNAL
    message = first.message if isinstance(first, RunnerError) else str(first) or type(first).__name__
    stack = [f"{f.filename}:{f.lineno}:{f.name}" for f in traceback.extract_tb(first.__traceback__)]
    return Failure(
        code=code,
        type=type(first).__name__,
        message=_clean(message, secrets),
        stack=tuple(_clean(line, secrets) for line in stack[-MAX_STACK_FRAMES:]),
        causes=tuple(
            (type(cause).__name__, _clean(str(cause), secrets)) for cause in islice(_causes(first), MAX_CAUSES)
        ),
        suppressed=len(leaves) - 1,
        retry_after_seconds=first.retry_after_seconds if isinstance(first, RunnerError) else None,
    )


def _clean(text: str, secrets: frozenset[str]) -> str:
    """The text, cut, without secrets, and without the characters that JSON or PostgreSQL refuse."""
    text = redact(text, secrets)[:MAX_MESSAGE_CHARACTERS]
    return "".join(
        "\N{REPLACEMENT CHARACTER}" if category(letter) in {"Cc", "Cs"} and letter != "\n" else letter
        for letter in text
    )


def _leaves(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for part in error.exceptions:
            yield from _leaves(part)
    else:
        yield error


def _rank(error: BaseException) -> int:
    """The lower, the more important: `superseded` (no event is due); bugs; permanent errors; the rest in order."""
    if not isinstance(error, RunnerError):
        return 1
    if error.code is ErrorCode.SUPERSEDED:
        return 0
    return 2 if error.code.error_class is ErrorClass.PERMANENT else 3


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = {id(error)}
    cause = _behind(error)
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = _behind(cause)


def _behind(error: BaseException) -> BaseException | None:
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)

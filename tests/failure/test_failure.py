from __future__ import annotations

import random

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from trio_runner.errors import ErrorClass, ErrorCode, RunnerError, SupersededError
from trio_runner.failure.failure import MAX_CAUSES, MAX_MESSAGE_CHARACTERS, MAX_STACK_FRAMES, flatten
from trio_runner.model import Failure

CANARY = "c4n4ryc4n4ry"


def raised(error: Exception) -> Exception:
    with pytest.raises(type(error)) as caught:
        raise error
    return caught.value


def test_a_named_error_keeps_its_name() -> None:
    failure = flatten(raised(RunnerError(ErrorCode.STORE_LOST, "the cable", retry_after_seconds=7)))
    assert (failure.code, failure.message, failure.type) == (ErrorCode.STORE_LOST, "the cable", "RunnerError")
    assert (failure.suppressed, failure.causes, failure.retry_after_seconds) == (0, (), 7)


def test_an_error_without_a_name_is_internal() -> None:
    failure = flatten(raised(KeyError("x")))
    assert (failure.code, failure.type, failure.message) == (ErrorCode.INTERNAL, "KeyError", "'x'")


def test_an_error_that_says_nothing_is_called_by_its_type() -> None:
    assert flatten(raised(ValueError())).message == "ValueError"


def test_the_group_of_a_nursery_is_flattened() -> None:
    async def main() -> None:
        async with trio.open_nursery(), trio.open_nursery():
            raise RunnerError(ErrorCode.VIDEO_TRUNCATED, "cut")

    with pytest.RaisesGroup(RunnerError, flatten_subgroups=True) as caught:
        trio.run(main)
    failure = flatten(caught.value)
    assert (failure.code, failure.suppressed) == (ErrorCode.VIDEO_TRUNCATED, 0)


RANKED = [
    SupersededError("gone"),
    KeyError("bug"),
    RunnerError(ErrorCode.VIDEO_REFUSED, "permanent"),
    RunnerError(ErrorCode.STORE_LOST, "retriable"),
]


@pytest.mark.parametrize("first", range(len(RANKED)))
def test_the_gravest_of_a_group_speaks_whatever_the_order(first: int) -> None:
    errors = list(RANKED[first:])
    random.Random(first).shuffle(errors)
    failure = flatten(ExceptionGroup("", [ExceptionGroup("", errors[:1]), *errors[1:], RANKED[-1]]))
    assert failure.type == type(RANKED[first]).__name__
    assert failure.message == getattr(RANKED[first], "message", "'bug'")
    assert failure.suppressed == len(errors)


def test_of_equals_the_first_speaks() -> None:
    errors = [RunnerError(ErrorCode.STORE_LOST, "one"), RunnerError(ErrorCode.INFERENCE_TIMEOUT, "two")]
    assert flatten(ExceptionGroup("", errors)).message == "one"


def test_the_stack_is_innermost_last_bounded_and_without_values() -> None:
    def descend(depth: int, secret: str) -> None:
        if depth == 0:
            raise ValueError("deep")
        descend(depth - 1, secret)

    with pytest.raises(ValueError, match="deep") as caught:
        descend(50, CANARY)
    failure = flatten(caught.value)
    assert len(failure.stack) == MAX_STACK_FRAMES
    assert failure.stack[-1].startswith(f"{__file__}:")
    assert failure.stack[-1].endswith(":descend")
    assert CANARY not in repr(failure)


def chain(length: int) -> BaseException:
    error: BaseException = ValueError("0")
    for number in range(1, length):
        further = ValueError(str(number))
        further.__cause__ = error
        error = further
    return error


def test_causes_are_named_nearest_first_and_bounded() -> None:
    failure = flatten(chain(10))
    assert failure.message == "9"
    assert failure.causes == tuple(("ValueError", str(number)) for number in (8, 7, 6, 5))
    assert len(failure.causes) == MAX_CAUSES


def test_a_cause_that_leads_back_to_itself_ends() -> None:
    one, two = ValueError("one"), ValueError("two")
    one.__cause__, two.__cause__ = two, one
    assert flatten(one).causes == (("ValueError", "two"),)


def test_a_context_counts_unless_it_was_suppressed() -> None:
    error = ValueError("outer")
    error.__context__ = KeyError("inner")
    assert flatten(error).causes == (("KeyError", "'inner'"),)
    # What `raise error from None` does.
    error.__suppress_context__ = True
    assert flatten(error).causes == ()


def test_secrets_are_in_no_part() -> None:
    error = RunnerError(ErrorCode.STORE_UNREACHABLE, f"token {CANARY} at http://me:{CANARY}@h")
    error.__cause__ = OSError(f"connect postgresql://u:{CANARY}@h failed")
    failure = flatten(error, frozenset({CANARY}))
    assert failure.causes
    assert CANARY not in repr(failure)
    assert flatten(OSError(f"x://u:{CANARY}@h")).message == "x://***@h"


texts = st.text(st.characters(categories=None), max_size=3_000)
leaves: st.SearchStrategy[BaseException] = st.one_of(
    st.builds(RunnerError, st.sampled_from(ErrorCode), texts.filter(bool)),
    st.builds(ValueError, texts),
    st.builds(OSError, st.integers(), texts),
    st.builds(KeyboardInterrupt),
)
errors = st.recursive(
    leaves,
    lambda parts: st.lists(parts, min_size=1, max_size=4).map(lambda group: BaseExceptionGroup("", group)),
    max_leaves=8,
)


@given(errors)
def test_whatever_was_raised_becomes_one_bounded_failure_that_can_be_written_down(error: BaseException) -> None:
    failure = flatten(error)
    assert isinstance(failure, Failure)
    assert isinstance(failure.code.error_class, ErrorClass)
    assert failure.message
    assert len(failure.message) <= MAX_MESSAGE_CHARACTERS
    # JSON has no lone surrogates (they come with file names that are no UTF-8), and jsonb no NUL.
    written = msgspec.json.encode([failure.message, failure.causes, failure.stack])
    assert b"\\u0000" not in written

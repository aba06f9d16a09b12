"""Decides which failed frames are stored as not inferred, by the answers to the frames around them."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.model import FrameResult


def storable(before: FrameResult | None, results: Sequence[FrameResult], *, is_last: bool) -> int:
    """How many of these results, which are in frame order, can be stored now: all of them, or all but the last one.

    A failure that is not clearly the frame's own counts as its own if the service answered the frame before it and the
    one behind it. Where an attempt begins or the video ends there is only one of them, and that one must be answered.

    Args:
        before: The result before the first of these; None where the attempt begins with them.
        results: At least one.
        is_last: Whether no result will follow, because the video has ended. Otherwise an unclear one at the end of
            `results` waits for the next one.

    Raises:
        RunnerError: The failure of an unclear result without such answers.
    """
    sequence = [before, *results, None]
    for previous, result, following in zip(sequence, results, sequence[2:], strict=False):
        if not result.is_unclear:
            continue
        if following is None and not is_last and (previous is None or not previous.is_unclear):
            return len(results) - 1
        neighbours = [each for each in (previous, following) if each is not None]
        if result.failure and (not neighbours or any(each.is_unclear for each in neighbours)):
            raise result.failure
    return len(results)

"""The writer task: puts results back into frame order and stores them in the ledger in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.config.sections import DatabaseSection
    from trio_runner.model import Claim, FrameResult, Progress
    from trio_runner.pipeline.window import Window


class Ledger(Protocol):
    """Keeps results: the database, or a fake in tests."""

    async def store(self, claim: Claim, expected_frame: int, results: Sequence[FrameResult]) -> None:
        """Store `results` if no frame at or after `expected_frame` is stored yet; raises RunnerError."""
        ...


class Reorder:
    """Takes results in any order and returns them in sequence."""

    def __init__(self) -> None:
        """Start with result number 0 as the next one due."""
        self._due = 0
        self._early: dict[int, FrameResult] = {}

    def add(self, result: FrameResult) -> list[FrameResult]:
        """Keep `result`, and return the results that are now in order, beginning with the one that was due."""
        self._early[result.sequence] = result
        ready = []
        while self._due in self._early:
            ready.append(self._early.pop(self._due))
            self._due += 1
        return ready


async def write_results(
    ledger: Ledger,
    claim: Claim,
    results: trio.MemoryReceiveChannel[FrameResult],
    window: Window,
    progress: Progress,
    config: DatabaseSection,
) -> None:
    """Store every result, `batch_frames` at a time or after `batch_seconds`, until the channel is closed.

    The first result is stored at once, in a batch of its own, because it makes the scenario `active`.
    """
    reorder = Reorder()
    batch_frames = 1
    with results:
        while batch := await _collect(results, reorder, batch_frames, config.batch_seconds):
            await ledger.store(claim, progress.next_frame, batch)
            _count(progress, batch)
            window.release_frames(len(batch))
            batch_frames = config.batch_frames


async def _collect(
    results: trio.MemoryReceiveChannel[FrameResult], reorder: Reorder, frames: int, seconds: float
) -> list[FrameResult]:
    """At least `frames` results in order, or those of the first `seconds` after the first one; empty at the end."""
    batch: list[FrameResult] = []
    with trio.CancelScope() as age:
        while len(batch) < frames:
            try:
                ready = reorder.add(await results.receive())
            except trio.EndOfChannel:
                break
            if ready and not batch:
                age.deadline = trio.current_time() + seconds
            batch += ready
    return batch


def _count(progress: Progress, stored: list[FrameResult]) -> None:
    progress.next_frame = stored[-1].index + 1
    progress.frames_stored += len(stored)
    progress.last_advance = trio.current_time()
    progress.detections += sum(len(result.detections) for result in stored)
    progress.frames_not_inferred += sum(result.error is not None for result in stored)
    progress.boxes_clipped += sum(result.clipped for result in stored)
    progress.tokens += sum(result.tokens for result in stored)

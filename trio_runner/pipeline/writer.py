"""The writer task: puts results back into frame order and stores them in the ledger in batches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from trio_runner.errors import RunnerError
from trio_runner.pipeline.not_inferred import storable

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio_runner.config.load import Config
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
    config: Config,
    has_ended: Callable[[], bool],
) -> None:
    """Store every result, `batch_frames` at a time or after `batch_seconds`, until the channel is closed.

    The first result is stored at once, in a batch of its own, because it makes the scenario `active`. A failed frame
    whose fault is not certain waits for the next result.

    Raises:
        RunnerError: The failure of a frame that may not be stored as not inferred.
    """
    reorder = Reorder()
    batch_frames = 1
    before: FrameResult | None = None
    waiting: list[FrameResult] = []
    with results:
        while True:
            new = await _collect(results, reorder, batch_frames, config.database.batch_seconds)
            # Asked once the channel is closed: a drain closes it as well, and the frame behind may yet be answered.
            batch = [*waiting, *new]
            if not batch or (not new and not has_ended()):
                return
            count = storable(before, batch, is_last=not new)
            ready, waiting = batch[:count], batch[count:]
            if ready:
                _refuse_too_many(progress, ready, config.inference.max_failed_frames)
                await ledger.store(claim, progress.next_frame, ready)
                _count(progress, ready)
                window.release_frames(len(ready))
                before = ready[-1]
                batch_frames = config.database.batch_frames


def _refuse_too_many(progress: Progress, results: Sequence[FrameResult], allowed: int) -> None:
    """Raise the failure of the first frame beyond the `allowed` ones of the scenario."""
    failures = [result.failure for result in results if result.failure]
    for failure in failures[max(0, allowed - progress.frames_not_inferred) :]:
        number = max(allowed, progress.frames_not_inferred) + 1
        raise RunnerError(
            failure.code,
            f"{failure.message} (this would be frame no. {number} that is not inferred; "
            f"inference.max_failed_frames = {allowed})",
            retry_after_seconds=failure.retry_after_seconds,
        ) from failure


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

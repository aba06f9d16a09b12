"""The nursery that hosts reader, senders and writer, the two channels between them, and the order in which they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from trio_runner.model import ErrorCode, Frame, FrameResult, RunnerError
from trio_runner.reader import FrameSource, read_frames
from trio_runner.sender import Inference, send_frames
from trio_runner.window import Window
from trio_runner.writer import Ledger, write_results

if TYPE_CHECKING:
    from trio_runner.config import Config
    from trio_runner.model import Claim, Progress
    from trio_runner.records import End


class LeasedLedger(Ledger, Protocol):
    """A ledger whose claim must be kept alive."""

    async def heartbeat(self, claim: Claim) -> None:
        """Renew the lease; raises RunnerError."""
        ...


async def run_pipeline(
    source: FrameSource,
    inference: Inference,
    ledger: LeasedLedger,
    *,
    claim: Claim,
    config: Config,
    progress: Progress,
    drain: trio.Event,
) -> End:
    """Take every frame of `source` to the ledger; returns how the video ended.

    One for all: the first task that fails cancels the others, and nothing is restarted here. When `drain` is set the
    source stops and what is under way is finished, within `drain_seconds`.

    Raises:
        RunnerError: why it ended early, in an exception group when a task raised it; `interrupted` after a drain.
    """
    window = Window(max_frames=config.pipeline.max_buffered_frames, max_bytes=config.pipeline.max_buffered_bytes)
    frames_in, frames_out = trio.open_memory_channel[Frame](config.inference.in_flight)
    # Room for all that the window admits: a sender hands its result over and goes on, whatever the writer does.
    results_in, results_out = trio.open_memory_channel[FrameResult](config.pipeline.max_buffered_frames)
    ending: End | RunnerError | None = None
    async with trio.open_nursery() as helpers:
        async with trio.open_nursery() as tasks:
            reading = trio.CancelScope()
            helpers.start_soon(_keep_lease, ledger, claim, config.database.lease_seconds / 3)
            helpers.start_soon(_drain_when, drain, reading, tasks.cancel_scope, config.runner.drain_seconds)  # noqa: ASYNC111 - helpers end with the tasks
            tasks.start_soon(write_results, ledger, claim, results_out, window, progress, config.database)
            async with frames_out, results_in:
                for _ in range(config.inference.in_flight):
                    tasks.start_soon(send_frames, inference, frames_out.clone(), results_in.clone(), window)
            with reading:
                ending = await read_frames(source, frames_in, window, progress)
        helpers.cancel_scope.cancel()
    if isinstance(ending, RunnerError):
        raise ending
    if ending is None or tasks.cancel_scope.cancelled_caught:
        raise RunnerError(ErrorCode.INTERRUPTED, "asked to stop before the video's end")
    return ending


async def _keep_lease(ledger: LeasedLedger, claim: Claim, seconds: float) -> None:
    """Every stored batch renews the lease too; this is for a service so slow that none is stored for long."""
    while True:
        await trio.sleep(seconds)
        await ledger.heartbeat(claim)


async def _drain_when(
    drain: trio.Event, reading: trio.CancelScope, tasks: trio.CancelScope, grace_seconds: float
) -> None:
    await drain.wait()
    reading.cancel()
    tasks.deadline = trio.current_time() + grace_seconds

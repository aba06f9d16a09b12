"""The nursery that hosts reader, senders and writer, the two channels between them, and the order in which they end."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Protocol, TypeVarTuple

import trio

from trio_runner.config.location import is_url
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import Frame, FrameResult
from trio_runner.pipeline.reader import FrameSource, read_frames
from trio_runner.pipeline.sender import Inference, send_frames
from trio_runner.pipeline.window import Window
from trio_runner.pipeline.writer import Ledger, write_results

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_runner.config.inference import InferenceSection
    from trio_runner.config.load import Config
    from trio_runner.model import Claim, End, Progress

Ts = TypeVarTuple("Ts")

STALLED_SECONDS: Final = 45.0
"""After so long without a frame read or stored the run has stalled, unless the config allows a step nearly as much."""

STALLED_GRACE_SECONDS: Final = 5.0


class LeasedLedger(Ledger, Protocol):
    """A ledger whose claim expires unless it is renewed."""

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
    on_failure: Callable[[], None],
) -> End:
    """Process every frame of `source` into the ledger, and return how the video ended.

    The first task that fails cancels the others, and nothing is restarted here. When `drain` is set, the source stops
    and the frames under way are finished, within `drain_seconds`. `on_failure` is called at the first error, before the
    other tasks are cancelled.

    Raises:
        RunnerError: Why it ended early, in an exception group if a task raised it; `interrupted` after a drain.
    """
    window = Window(max_frames=config.pipeline.max_buffered_frames, max_bytes=config.pipeline.max_buffered_bytes)
    frames_in, frames_out = trio.open_memory_channel[Frame](config.inference.in_flight)
    # Room for every frame that the window admits: a sender never waits for the writer.
    results_in, results_out = trio.open_memory_channel[FrameResult](config.pipeline.max_buffered_frames)
    ending: End | RunnerError | None = None

    async def read() -> None:
        nonlocal ending
        ending = await read_frames(source, frames_in, window, progress)

    async def watched(function: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
        try:
            await function(*args)
        except Exception:
            on_failure()
            raise

    async with trio.open_nursery() as helpers:
        async with trio.open_nursery() as tasks:
            reading = trio.CancelScope()
            helpers.start_soon(watched, keep_lease, ledger, claim, config.database.lease_seconds / 3)
            helpers.start_soon(watched, _watch_progress, progress, stalled_seconds(config))
            helpers.start_soon(_drain_when, drain, reading, tasks.cancel_scope, config.runner.drain_seconds, on_failure)  # noqa: ASYNC111 - helpers end with the tasks
            tasks.start_soon(
                watched,
                write_results,
                ledger,
                claim,
                results_out,
                window,
                progress,
                config,
                lambda: ending is not None and not isinstance(ending, RunnerError),
            )
            with frames_out, results_in:
                for _ in range(config.inference.in_flight):
                    tasks.start_soon(watched, send_frames, inference, frames_out.clone(), results_in.clone(), window)
            with reading:
                await watched(read)
        helpers.cancel_scope.cancel()
    if isinstance(ending, RunnerError):
        raise ending
    if ending is None or tasks.cancel_scope.cancelled_caught:
        raise RunnerError(ErrorCode.INTERRUPTED, "asked to stop before the video's end")
    return ending


async def keep_lease(ledger: LeasedLedger, claim: Claim, seconds: float) -> None:
    """Renew the lease every so many seconds, until cancelled; raises RunnerError.

    Each stored batch does so too, but a slow service may let none be stored for a long time.
    """
    while True:
        await trio.sleep(seconds)
        await ledger.heartbeat(claim)


async def _watch_progress(progress: Progress, seconds: float) -> None:
    """Raise `stalled` after `seconds` without progress. Each step has its own deadline; this one is for bugs."""
    while trio.current_time() < (limit := progress.last_advance + seconds):  # noqa: ASYNC110 - a clock wakes nobody
        await trio.sleep_until(limit)
        # After a process was stopped for a while, the time is up although the work is about to go on.
        await trio.sleep(STALLED_GRACE_SECONDS)
    raise RunnerError(
        ErrorCode.STALLED, f"no frame was read or stored for {seconds:g} s, and no step has run into its own deadline"
    )


def stalled_seconds(config: Config) -> float:
    """Longer than every deadline of a single step, so that the step at fault raises its own error first."""
    reading = config.video.frame_timeout_seconds
    # The oldest frame of a batch may wait for the answer to the next frame, and the batch for `batch_seconds`.
    storing = (
        2 * _answering_seconds(config.inference)
        + config.database.batch_seconds
        + config.database.command_timeout_seconds
    )
    # Before it gives up, the daemon waits for the fetcher's start as well.
    silent = config.storage.connect_timeout_seconds + config.storage.stall_timeout_seconds
    fetching = STALLED_SECONDS + 1.5 * silent if is_url(config.video.path) else 0.0
    return max(STALLED_SECONDS, 1.5 * reading, 1.25 * storing, fetching)


def _answering_seconds(inference: InferenceSection) -> float:
    """The longest that a frame may be in its sender's hands."""
    seconds = inference.timeout_seconds
    if inference.retry_seconds:
        # Before the first exchange, a Retry-After to another sender; behind `retry_seconds`, the last exchange.
        seconds += 2 * inference.retry_seconds + inference.timeout_seconds
    rates = [rate for rate in (inference.requests_per_second, inference.requests_per_minute / 60) if rate]
    # Each sender may have to wait until all others have had their turns.
    seconds += max(((inference.in_flight + 1) / rate for rate in rates), default=0.0)
    # The frames of a batch that failed are sent again one by one, and each is a result of its own.
    return 2 * seconds if inference.max_failed_frames else seconds


async def _drain_when(
    drain: trio.Event,
    reading: trio.CancelScope,
    tasks: trio.CancelScope,
    grace_seconds: float,
    on_failure: Callable[[], None],
) -> None:
    await drain.wait()
    reading.cancel()
    await trio.sleep(grace_seconds)
    on_failure()
    tasks.cancel()

"""One attempt at a scenario: clients, claim, pipeline, end; or one failure, reported before anything is closed."""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_runner.base.text import counted
from trio_runner.database.store import Attempt
from trio_runner.errors import ClaimRefusedError, ErrorCode, RunnerError, SupersededError
from trio_runner.failure.failure import flatten
from trio_runner.failure.publication import Publication
from trio_runner.failure.record import claim_scenario
from trio_runner.failure.report import report_death
from trio_runner.pipeline.ahead import LookAhead
from trio_runner.pipeline.run import keep_lease, run_pipeline
from trio_runner.runner.outcome import Ending, Outcome
from trio_runner.runner.preflight import open_clients
from trio_runner.runner.sampling import differences, sampling_of
from trio_runner.video.fetcher import open_fetched

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio_runner.config.load import Config
    from trio_runner.database.store import Store
    from trio_runner.failure.spool import Spool
    from trio_runner.inference.client import InferenceClient
    from trio_runner.model import Claim, Progress
    from trio_runner.video.child import Video

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """The caller's means to end an attempt, and the calls that notify the caller."""

    work: trio.CancelScope
    """Cancelled to end the attempt at once."""
    drain: trio.Event
    """Set to end it when what is under way is stored."""
    on_claimed: Callable[[Claim], None]
    on_failure: Callable[[], None]
    """Called when the failure path begins, perhaps more than once; must not wait."""
    is_aborted: Callable[[], bool]
    """Whether `work` was cancelled in order to cut a drain short."""


async def run_attempt(
    config: Config,
    spool: Spool,
    *,
    instance_id: str,
    progress: Progress,
    controls: Controls,
    secrets: frozenset[str],
) -> Outcome:
    """Claim the scenario and take its video from the first frame that is not stored to its end.

    Raises:
        ClaimRefusedError: The scenario is not this runner's to take.
        BaseException: The caller was cancelled; the death is reported before that goes on.
    """
    attempt = Attempt(
        scenario_id=config.scenario.id,
        epoch=config.scenario.epoch,
        video_path=config.video.path,
        runner_id=config.runner.id,
        instance_id=instance_id,
        max_failures=config.scenario.max_failures,
        retry_topic=config.kafka.retry_topic,
    )
    claim: Claim | None = None
    try:
        with controls.work:
            advance = partial(_advance, progress)
            clients = open_clients(config, spool, on_passed=advance, on_wait=advance, secrets=secrets)
            async with clients as (store, inference, video):
                identity = video.info.identity if video else None
                attempt = replace(attempt, video_identity=identity, sampling=sampling_of(config.video))
                try:
                    claim = await claim_scenario(store, attempt)
                    async with _ready(config, store, attempt, claim, video, progress, controls) as ready:
                        await _process(config, claim, store, inference, ready, progress, controls)
                except BaseException:
                    # Called here, before the clients are closed, because closing may be what hangs.
                    controls.on_failure()
                    raise
            return Outcome(ending=Ending.COMPLETED, claim=claim)
        controls.on_failure()
        failure = flatten(RunnerError(ErrorCode.INTERRUPTED, "asked to stop"))
    except ClaimRefusedError:
        raise
    except Exception as error:  # noqa: BLE001 - every error ends this attempt and must be reported
        controls.on_failure()
        failure = flatten(error, secrets)
    except BaseException as error:
        controls.on_failure()
        # The caller cancels this task, or Ctrl-C fell. An error of the same moment is the better reason.
        named = error.subgroup(Exception) if isinstance(error, BaseExceptionGroup) else None
        failure = flatten(named or RunnerError(ErrorCode.INTERRUPTED, "cancelled from outside"), secrets)
        with suppress(ClaimRefusedError, SupersededError):
            # report_death shields and bounds itself.
            await report_death(config, spool, attempt, claim, failure, progress)  # noqa: ASYNC102
        raise
    level = logging.INFO if failure.code is ErrorCode.INTERRUPTED else logging.ERROR
    logger.log(level, "%s: %s", failure.code, failure.message)
    try:
        report = await report_death(config, spool, attempt, claim, failure, progress)
    except SupersededError as error:
        return Outcome(ending=Ending.SUPERSEDED, claim=None, failure=flatten(error), event=Publication.SUPERSEDED)
    if report.event is Publication.COMPLETED:
        return Outcome(ending=Ending.COMPLETED, claim=report.claim)
    if report.event is Publication.SUPERSEDED:
        ending = Ending.SUPERSEDED
    elif failure.code is ErrorCode.INTERRUPTED and not controls.is_aborted():
        ending = Ending.DRAINED
    else:
        ending = Ending.FAILED
    return Outcome(ending=ending, claim=report.claim, failure=failure, event=report.event)


def _advance(progress: Progress, activity: str = "") -> None:
    """Frames that are passed over, because they are stored already, are progress too, and so is a video that grows."""
    progress.activity = activity
    progress.last_advance = trio.current_time()


@asynccontextmanager
async def _ready(
    config: Config,
    store: Store,
    attempt: Attempt,
    claim: Claim,
    video: Video | None,
    progress: Progress,
    controls: Controls,
) -> AsyncIterator[Video]:
    """The claimed scenario's video: the open one or, where that is None, one that is fetched while the lease is kept.

    Raises:
        RunnerError: The video is not the one that the stored frames come from; or, perhaps in an exception group, it
            cannot be fetched or opened; `interrupted` after a drain.
    """
    if video is not None:
        _check_same(claim, attempt)
        controls.on_claimed(claim)
        yield video
        return
    controls.on_claimed(claim)

    async def end_when_drained() -> None:
        await controls.drain.wait()
        raise RunnerError(ErrorCode.INTERRUPTED, "asked to stop while the video was being fetched")

    async with AsyncExitStack() as stack:
        async with trio.open_nursery() as helpers:
            helpers.start_soon(keep_lease, store, claim, config.database.lease_seconds / 3)
            helpers.start_soon(end_when_drained)
            advance = partial(_advance, progress)
            fetched = await open_fetched(stack, config, on_progress=advance, on_passed=advance)
            helpers.cancel_scope.cancel()
        attempt = replace(attempt, video_identity=fetched.info.identity)
        # The same claim once more: now that the video is here, the ledger learns which one it is.
        _check_same(await store.claim(attempt), attempt)
        advance()
        yield fetched


async def _process(
    config: Config,
    claim: Claim,
    store: Store,
    inference: InferenceClient,
    video: Video,
    progress: Progress,
    controls: Controls,
) -> None:
    progress.next_frame = claim.next_frame
    progress.frames_stored_before = claim.frames_stored
    progress.frames_not_inferred = claim.frames_not_inferred
    if video.info.video_streams > 1:
        logger.info(
            "the file has %d video streams; stream %d is decoded, as video.stream = %s",
            video.info.video_streams,
            video.info.stream,
            config.video.stream,
        )
    progress.declared_frames = video.info.declared_frames
    progress.max_frames = config.video.max_frames
    progress.last_advance = trio.current_time()
    video.start(claim.next_frame, frames_stored=claim.frames_stored, last_pts_seconds=claim.last_pts_seconds)
    try:
        end = await run_pipeline(
            LookAhead(video) if config.inference.is_stateful else video,
            inference,
            store,
            claim=claim,
            config=config,
            progress=progress,
            drain=controls.drain,
            on_failure=controls.on_failure,
        )
    finally:
        _log_flaws(progress)
    if end.skipped_corrupt:
        logger.warning("passed over as damaged: %s", counted(end.skipped_corrupt, "frame"))
    await store.finish(claim, end.selected, config.scenario.on_complete)


def _log_flaws(progress: Progress) -> None:
    """Log how many frames were not inferred, boxes clipped and tokens counted; nothing where there are none."""
    if progress.frames_not_inferred:
        stored = progress.frames_stored_before + progress.frames_stored
        logger.warning(
            "not inferred: %d of %s; the view trio_runner.frames has the reasons",
            progress.frames_not_inferred,
            counted(stored, "stored frame"),
        )
    if progress.boxes_clipped:
        logger.info("boxes that overshot the picture and were clipped at its border: %d", progress.boxes_clipped)
    if progress.tokens:
        logger.info("%s, as the model counted", counted(progress.tokens, "token"))


def _check_same(claim: Claim, attempt: Attempt) -> None:
    """What is stored and what would be stored are of one kind; raises RunnerError where they are not."""
    stored = f"the {claim.frames_stored} frames stored"
    if claim.video_identity != attempt.video_identity:
        raise RunnerError(
            ErrorCode.VIDEO_CHANGED,
            f"{attempt.video_path}: is not the video that {stored} come from. Put that one back, or give the new one "
            "a scenario of its own",
        )
    if changed := differences(claim.sampling, attempt.sampling):
        raise RunnerError(
            ErrorCode.SAMPLING_CHANGED,
            f"{stored} were chosen by other options of [video]: {'; '.join(changed)}. Set [video] as it was, or use "
            "another scenario",
        )

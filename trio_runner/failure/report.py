"""Reports a death: recorded in PostgreSQL, then published, or else left in the spool; shielded, every step bounded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from trio_runner.base.logs import about
from trio_runner.database.store import open_store
from trio_runner.errors import ClaimRefusedError, ErrorCode, RunnerError, SupersededError
from trio_runner.failure.outbox import keep, mark, publish
from trio_runner.failure.publication import Publication, Report
from trio_runner.failure.record import claim_scenario, progress_of, record_death
from trio_runner.kafka.retry_event import build_event
from trio_runner.model import Claim

if TYPE_CHECKING:
    from trio_runner.config.load import Config
    from trio_runner.database.store import Attempt
    from trio_runner.failure.spool import Spool
    from trio_runner.kafka.retry_event import RetryEvent
    from trio_runner.model import Failure, Progress

logger = logging.getLogger(__name__)

RECORD_SECONDS: Final = 3.0
"""How long PostgreSQL is given to record a death. With 7 s for cancelling, 15 for publishing, 2 for the producer's stop
and 3 for the spool a death takes 30 s at the worst, below the 60 that a service manager grants."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Recording:
    """What PostgreSQL made of a death."""

    event: RetryEvent
    recorded: bool = False
    refused: Publication | None = None
    """Why no event is due, where PostgreSQL has said that."""


async def report_death(
    config: Config,
    spool: Spool,
    attempt: Attempt,
    claim: Claim | None,
    failure: Failure,
    progress: Progress,
    *,
    reporter: str = "runner",
) -> Report:
    """Record the failure and release the claim, then publish the retry event.

    An attempt that died before it could claim claims now, so that its death has an epoch and a row. One that refused
    the ledger (`store_schema`) changes nothing there. An event that Kafka does not take waits in the database; where
    PostgreSQL did not record the death either, it waits in the spool.

    Raises:
        ClaimRefusedError, SupersededError: The attempt had not claimed, and the scenario is not its to fail.
    """
    if failure.code is ErrorCode.SUPERSEDED:
        return Report(claim=claim or _no_claim(attempt), event=Publication.SUPERSEDED)
    with (
        trio.CancelScope(shield=True),
        about(scenario_id=attempt.scenario_id, runner_id=attempt.runner_id, **_epoch_of(claim)) as names,
    ):
        recording = await _record(config, attempt, claim, failure, progress, reporter)
        event = recording.event
        names.update(_epoch_of(event.claim))
        if recording.refused is not None:
            return Report(claim=event.claim, event=recording.refused)
        published = await publish(config, event)
        if recording.recorded:
            await mark(config, event.claim, published=published)
            became = Publication.PUBLISHED if published else Publication.RECORDED
        elif published:
            became = Publication.PUBLISHED
        else:
            became = Publication.SPOOLED if await keep(config, spool, event) else Publication.LOST
    return Report(claim=event.claim, event=became)


async def _record(
    config: Config, attempt: Attempt, claim: Claim | None, failure: Failure, progress: Progress, reporter: str
) -> _Recording:
    """Record the death over a new connection, since the old one may be the error, within `RECORD_SECONDS`."""
    uptime_seconds = trio.current_time() - progress.started if reporter == "runner" else None

    def build(claim: Claim, progress: Progress) -> RetryEvent:
        return build_event(
            failure,
            claim=claim,
            runner_id=attempt.runner_id,
            progress=progress,
            reporter=reporter,
            uptime_seconds=uptime_seconds,
        )

    recording = _Recording(event=build(claim or _no_claim(attempt), progress))
    if claim is None and failure.code is ErrorCode.STORE_SCHEMA:
        # Another version made this ledger, and goes on serving the scenario.
        return recording
    with trio.move_on_after(RECORD_SECONDS) as scope:
        try:
            async with open_store(config.database, application_name="trio-runner death", close_seconds=0) as store:
                if claim is None:
                    claim = await claim_scenario(store, attempt)
                    recording = _Recording(event=build(claim, progress_of(claim)))
                if await record_death(store, claim, recording.event):
                    return _Recording(event=recording.event, recorded=True)
                done = await store.is_completed(claim)
                return _Recording(
                    event=recording.event, refused=Publication.COMPLETED if done else Publication.SUPERSEDED
                )
        except (ClaimRefusedError, SupersededError):
            raise
        except RunnerError as error:
            logger.warning("the database may not have recorded this failure: %s", error)
        except Exception:
            # A bug here must not keep the event from being published.
            logger.exception("the database may not have recorded this failure")
    if scope.cancelled_caught:
        logger.warning("the database may not have recorded this failure: no answer within %g s", RECORD_SECONDS)
    return recording


def _epoch_of(claim: Claim | None) -> dict[str, object]:
    """The epoch as a log line names it, where there is one."""
    return {"epoch": claim.epoch} if claim is not None and claim.epoch else {}


def _no_claim(attempt: Attempt) -> Claim:
    """Stands in for the claim of an attempt that had none: epoch 0, since the epoch it was started for may be taken."""
    return Claim(
        scenario_id=attempt.scenario_id, epoch=0, instance_id=attempt.instance_id, next_frame=0, frames_stored=0
    )

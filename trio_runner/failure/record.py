"""Claims an attempt and records its death in PostgreSQL, over a connection that the caller opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import msgspec

from trio_runner.errors import ErrorCode
from trio_runner.kafka import retry_event
from trio_runner.model import Claim, Failure, Progress

if TYPE_CHECKING:
    from trio_runner.database.store import Attempt, Store
    from trio_runner.kafka.retry_event import RetryEvent

_LOST: Final = Failure(
    code=ErrorCode.LEASE_EXPIRED, type="LeaseExpired", message="its runner did not renew the lease before it ended"
)


async def claim_scenario(store: Store, attempt: Attempt) -> Claim:
    """Claim the scenario for `attempt`.

    An attempt that names no epoch (one that a person started) takes over from a runner whose lease has ended, and
    records that runner's death first.

    Raises:
        ClaimRefusedError, SupersededError: The scenario is not this runner's to take.
    """
    lost = None if attempt.epoch else await store.expired_claim(attempt.scenario_id)
    # An attempt whose own claim succeeded may have lost the reply for longer than the lease lasts.
    if lost is not None and lost[0].instance_id != attempt.instance_id:
        claim, runner_id, host = lost
        # Nobody publishes this event: the next attempt, which the event would ask for, is the caller's.
        await record_death(store, claim, _lost_event(claim, runner_id=runner_id, host=host, reporter="takeover"))
    return await store.claim(attempt)


async def record_death(store: Store, claim: Claim, event: RetryEvent) -> bool:
    """Record the death of an attempt and release its claim.

    Returns:
        False where the death was recorded before, or the scenario is another attempt's by now.
    """
    return await store.fail(
        claim,
        event_id=event.id,
        reporter=event.reporter,
        error_class=event.error.error_class,
        body=retry_event.encode(event),
        retry_after_seconds=event.error.retry_after_seconds or 0.0,
    )


async def record_lost(store: Store, claim: Claim, *, runner_id: str, host: str) -> bool:
    """Record the death of a runner whose lease has ended; False where it has renewed the lease meanwhile."""
    return await record_death(store, claim, _lost_event(claim, runner_id=runner_id, host=host, reporter="reaper"))


def progress_of(claim: Claim) -> Progress:
    """The progress that the database knew when the scenario was claimed."""
    return Progress(next_frame=claim.next_frame, frames_stored_before=claim.frames_stored)


def _lost_event(claim: Claim, *, runner_id: str, host: str, reporter: str) -> RetryEvent:
    event = retry_event.build_event(
        _LOST, claim=claim, runner_id=runner_id, progress=progress_of(claim), reporter=reporter
    )
    return msgspec.structs.replace(event, host=host)

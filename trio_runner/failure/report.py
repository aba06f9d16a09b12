"""Tells the ledger and Kafka, or else the spool, that an attempt died: shielded, every step bounded."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from trio_runner.database.store import open_store
from trio_runner.errors import ClaimRefusedError, ErrorCode, RunnerError, SupersededError
from trio_runner.failure.spool import SpooledRecord
from trio_runner.kafka import connection as kafka
from trio_runner.kafka import retry_event as retry
from trio_runner.model import Claim, Failure, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from trio_runner.config.load import Config
    from trio_runner.database.store import Attempt, Store
    from trio_runner.failure.spool import Spool

logger = logging.getLogger(__name__)

RELEASE_SECONDS: Final = 3.0
"""How long the ledger is given. With 7 for cancelling, 15 for publishing, 2 for the producer's stop and 3 for the spool
a death takes 30 s at the worst, below the 60 that a service manager grants."""

NOTE_SECONDS: Final = 1.0
"""How long the ledger is given to note that Kafka has the event; without, a reaper sends it once more."""

FLUSH_SECONDS: Final = 15.0
"""How long a start, or `report-death`, spends on events that wait in the spool; the rest waits for the next one."""


_LOST: Final = Failure(
    code=ErrorCode.LEASE_EXPIRED, type="LeaseExpired", message="its runner was not heard of until the lease ended"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What became of the news: the claim it was about, whether it was still ours to report, whether Kafka has it."""

    claim: Claim
    superseded: bool = False
    completed: bool = False
    """The attempt had reached its end; only the reply that said so was lost."""
    event_confirmed: bool = False
    event_spooled: bool = False

    @property
    def settled(self) -> bool:
        """Whether nobody need report this death again."""
        return self.superseded or self.completed or self.event_confirmed or self.event_spooled


async def claim_scenario(store: Store, attempt: Attempt) -> Claim:
    """Claim for `attempt`; one started by hand takes over from a runner whose lease has ended, and reports its death.

    Raises:
        ClaimRefusedError, SupersededError: the scenario is not this runner's to take.
    """
    lost = None if attempt.epoch else await store.expired_claim(attempt.scenario_id)
    # Its own claim, whose reply was lost for longer than the lease lasts, is still its own.
    if lost is not None and lost[0].instance_id != attempt.instance_id:
        claim, runner_id, host = lost
        event = _lost_event(claim, runner_id=runner_id, host=host, reporter="takeover")
        # For the ledger alone: nobody need be called, the next attempt is this one.
        await record_death(store, claim, event)
    return await store.claim(attempt)


async def record_lost(store: Store, claim: Claim, *, runner_id: str, host: str) -> bool:
    """Record the death of a runner that was not heard of until its lease ended; False where it came back."""
    return await record_death(store, claim, _lost_event(claim, runner_id=runner_id, host=host, reporter="reaper"))


async def publish_recorded(
    config: Config, store: Store, scenario_id: int, epoch: int, body: str, *, spool: Spool | None = None
) -> Report | None:
    """Publish an event that the ledger has, perhaps for the second time; None where what it has is no event.

    Without a spool, what Kafka does not take is left to the next reaper.
    """
    try:
        event = msgspec.json.decode(body, type=retry.RetryEvent)
    except msgspec.ValidationError as error:
        # A later version's, perhaps: whoever knows that version can tell it.
        logger.error("the ledger's record of scenario %d, attempt %d is no event: %s", scenario_id, epoch, error)  # noqa: TRY400 - no stack is needed
        return None
    confirmed = await _publish(config, event)
    spooled = not confirmed and spool is not None and await _keep(config, spool, event)
    if confirmed:
        try:
            await store.mark_published(scenario_id, epoch)
        except RunnerError as error:
            logger.warning("a reaper will send the event again: %s", error)
    return Report(claim=event.claim, event_confirmed=confirmed, event_spooled=spooled)


def _lost_event(claim: Claim, *, runner_id: str, host: str, reporter: str) -> retry.RetryEvent:
    event = retry.build_event(_LOST, claim=claim, runner_id=runner_id, progress=_progress_of(claim), reporter=reporter)
    return msgspec.structs.replace(event, host=host)


def _progress_of(claim: Claim) -> Progress:
    return Progress(next_frame=claim.next_frame, frames_stored_before=claim.frames_stored)


async def record_death(store: Store, claim: Claim, event: retry.RetryEvent) -> bool:
    """Record this death and release the claim; False where it was recorded before, or is not the ledger's to take."""
    return await store.fail(
        claim,
        event_id=event.id,
        reporter=event.reporter,
        error_class=event.error.error_class,
        body=retry.encode(event),
        retry_after_seconds=event.error.retry_after_seconds or 0.0,
    )


async def publish_spooled(config: Config, spool: Spool) -> tuple[int, int]:
    """Send what waits in the spool, oldest first; returns how many were sent, and how many still wait.

    Another process that is emptying the same directory is left to it. Sent twice is no harm, an event's id tells.

    Raises:
        RunnerError: `spool_unusable`, or why Kafka does not take one; those that it takes are sent all the same.
    """
    sent, problem = 0, None
    async with spool.flushing() as ours:
        for path in await spool.waiting() if ours else ():
            try:
                sent += await _publish_spooled_record(config, spool, path)
            except RunnerError as error:
                # A topic that takes nothing, or a file that cannot be read, holds up nothing but itself.
                if error.code not in {ErrorCode.KAFKA_TOPIC, ErrorCode.SPOOL_UNUSABLE}:
                    raise
                problem = problem or error
    if problem is not None:
        raise problem
    return sent, len(await spool.waiting())


async def flush(config: Config, spool: Spool) -> None:
    """Send what waits in the spool, if Kafka takes it now; the same at a start and after an end, for at most 15 s."""
    try:
        with trio.move_on_after(FLUSH_SECONDS) as scope:
            await publish_spooled(config, spool)
    except RunnerError as error:
        logger.warning("events wait in the spool: %s", error)
    if scope.cancelled_caught:
        logger.warning("events wait in the spool: not all could be sent within %g s", FLUSH_SECONDS)


async def _publish_spooled_record(config: Config, spool: Spool, path: Path) -> bool:
    record = await spool.read(path)
    if record is None:
        return False
    headers = [(name, value.encode()) for name, value in record.headers]
    await kafka.send(config.kafka, record.topic, record.key.encode(), record.value.encode(), headers)
    await spool.remove(path)
    logger.info("retry event %s, which had waited in the spool, is acknowledged", record.id)
    return True


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
    """Record the failure and release the claim, then publish the retry event; without Kafka it goes to the spool.

    An attempt that died before it could claim claims now, so that this death has an epoch and the ledger a row; where
    the ledger cannot be reached the event goes out without.

    Raises:
        ClaimRefusedError, SupersededError: it had not claimed, and the scenario is not this runner's to fail.
    """
    obituary = _Obituary(config, attempt, claim, failure, progress, reporter)
    if failure.code is ErrorCode.SUPERSEDED:
        return Report(claim=obituary.claim, superseded=True)
    with trio.CancelScope(shield=True):
        ours = await obituary.record()
        confirmed = ours and await _publish(config, obituary.event)
        spooled = ours and not confirmed and await _keep(config, spool, obituary.event)
        if confirmed and obituary.recorded:
            await _mark_published(config, obituary.claim)
    if obituary.completed:
        return Report(claim=obituary.claim, completed=True)
    return Report(claim=obituary.claim, superseded=not ours, event_confirmed=confirmed, event_spooled=spooled)


class _Obituary:
    def __init__(
        self,
        config: Config,
        attempt: Attempt,
        claim: Claim | None,
        failure: Failure,
        progress: Progress,
        reporter: str,
    ) -> None:
        self._config, self._attempt, self._failure, self._progress = config, attempt, failure, progress
        self._claimed, self._reporter = claim, reporter
        self._uptime_seconds = trio.current_time() - progress.started if reporter == "runner" else None
        self.recorded = False
        self.completed = False
        self.event = self._build()

    @property
    def claim(self) -> Claim:
        """The claim this death is about; without one its epoch is 0, since another may hold the one it was for."""
        return self._claimed or Claim(
            scenario_id=self._attempt.scenario_id,
            epoch=0,
            instance_id=self._attempt.instance_id,
            next_frame=0,
            frames_stored=0,
        )

    async def record(self) -> bool:
        """Tell the ledger, over a connection of its own since the old one may be the error; False: not ours to tell."""
        ours = True
        with trio.move_on_after(RELEASE_SECONDS) as scope:
            try:
                async with open_store(
                    self._config.database, application_name="trio-runner death", close_seconds=0
                ) as store:
                    if self._claimed is None:
                        self._claimed = await claim_scenario(store, self._attempt)
                        self._progress = _progress_of(self._claimed)
                        self.event = self._build()
                    ours = self.recorded = await record_death(store, self._claimed, self.event)
                    self.completed = not ours and await store.is_completed(self._claimed)
            except (ClaimRefusedError, SupersededError):
                raise
            except RunnerError as error:
                logger.warning("the ledger may not know of this failure: %s", error)
            except Exception:
                # A bug in one rung of the ladder must not take the others away.
                logger.exception("the ledger may not know of this failure")
        if scope.cancelled_caught:
            logger.warning("the ledger may not know of this failure: no answer within %g s", RELEASE_SECONDS)
        return ours

    def _build(self) -> retry.RetryEvent:
        return retry.build_event(
            self._failure,
            claim=self.claim,
            runner_id=self._attempt.runner_id,
            progress=self._progress,
            reporter=self._reporter,
            uptime_seconds=self._uptime_seconds,
        )


async def _publish(config: Config, event: retry.RetryEvent) -> bool:
    """Tell Kafka; whether it has acknowledged."""
    try:
        await retry.publish(config.kafka, event)
    except RunnerError as error:
        logger.error("the retry event is not confirmed: %s", error)  # noqa: TRY400 - a named error needs no stack
        return False
    except Exception:
        logger.exception("the retry event is not confirmed")
        return False
    logger.info("retry event %s is acknowledged", event.id)
    return True


async def _mark_published(config: Config, claim: Claim) -> None:
    """Over a connection of its own once more: the one that recorded the death is not kept open for Kafka's 15 s."""
    problem: Exception | None = None
    with trio.move_on_after(NOTE_SECONDS) as scope:
        try:
            async with open_store(config.database, application_name="trio-runner death", close_seconds=0) as store:
                await store.mark_published(claim.scenario_id, claim.epoch)
        except Exception as error:  # noqa: BLE001 - Kafka has it, which nothing that goes wrong here can change
            problem = error
    if problem or scope.cancelled_caught:
        logger.warning("a reaper will send the event again: %s", problem or f"no answer within {NOTE_SECONDS:g} s")


async def _keep(config: Config, spool: Spool, event: retry.RetryEvent) -> bool:
    """Leave the event in the spool; whether it is there."""
    record = SpooledRecord(
        id=event.id,
        topic=config.kafka.retry_topic,
        key=str(event.scenario_id),
        headers=tuple((name, value.decode()) for name, value in retry.headers(event)),
        value=retry.encode(event).decode(),
    )
    try:
        path = await spool.put(record)
    except RunnerError as error:
        logger.error("the retry event may not be in the spool: %s", error)  # noqa: TRY400 - no stack is needed
        return False
    except Exception:
        logger.exception("the retry event may not be in the spool")
        return False
    logger.warning("the retry event waits in %s; the next runner there sends it, or trio-runner flush-spool", path)
    return True

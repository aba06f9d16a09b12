"""Publishes retry events: at once, from the database's outbox, or from the spool; the next start tries again."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from trio_runner.database.store import open_store
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.failure.publication import FlushResult, Publication, Report
from trio_runner.failure.spool import SpooledRecord
from trio_runner.kafka import connection, retry_event
from trio_runner.kafka.retry_event import RetryEvent

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from pathlib import Path

    from trio_runner.config.load import Config
    from trio_runner.database.store import Store
    from trio_runner.failure.spool import Spool
    from trio_runner.model import Claim

logger = logging.getLogger(__name__)

MARK_SECONDS: Final = 1.0
"""How long PostgreSQL is given to note what became of an event; without the note a reaper publishes the event again."""

FLUSH_SECONDS: Final = 15.0
"""How long a start, or `report-death`, spends on events that wait; the rest waits for the next start."""

OUTBOX_BATCH: Final = 50
"""So few that a process has usually dealt with them all when their lease ends."""

OUTBOX_LEASE_SECONDS: Final = 60.0
"""How long the events of a batch are left to the process that took it."""

TRIES: Final = 3
"""After so many events in a row that Kafka did not take, a pass ends: Kafka then most likely does not answer at all.

One event alone proves nothing, because its topic may refuse it.
"""


async def publish(config: Config, event: RetryEvent, topic: str | None = None) -> bool:
    """Publish the event within `kafka.publish_timeout_seconds`; return whether Kafka acknowledged it. Never raises.

    `topic` takes the place of the config's own retry topic.
    """
    kafka = msgspec.structs.replace(config.kafka, retry_topic=topic or config.kafka.retry_topic)
    try:
        await retry_event.publish(kafka, event)
    except RunnerError as error:
        logger.error("the retry event is not confirmed: %s", error)  # noqa: TRY400 - a named error needs no stack
        return False
    except Exception:
        logger.exception("the retry event is not confirmed")
        return False
    logger.info("retry event %s is acknowledged", event.id)
    return True


async def mark(config: Config, claim: Claim, *, published: bool) -> None:
    """Note in PostgreSQL that the event is published, or that another process may publish it. Never raises.

    The connection is a new one: the one that recorded the death is not kept open while Kafka is waited for.
    """

    async def note() -> None:
        async with open_store(config.database, application_name="trio-runner death", close_seconds=0) as store:
            if published:
                await store.mark_published(claim.scenario_id, claim.epoch)
            else:
                await store.hand_over([(claim.scenario_id, claim.epoch)])

    when = "once more" if published else "later"
    await _try_briefly(note, otherwise=f"a reaper will publish the event {when}")


async def _try_briefly(note: Callable[[], Awaitable[None]], *, otherwise: str) -> None:
    """Call `note` for MARK_SECONDS at most, also after a cancellation; log `otherwise` if it fails. Never raises."""
    problem: Exception | None = None
    with trio.move_on_after(MARK_SECONDS, shield=True) as scope:
        try:
            await note()
        except Exception as error:  # noqa: BLE001 - a note that fails changes no event
            problem = error
    if problem or scope.cancelled_caught:
        logger.warning("%s: %s", otherwise, problem or f"no answer within {MARK_SECONDS:g} s")


async def keep(config: Config, spool: Spool, event: RetryEvent) -> bool:
    """Put the event into the spool; return whether it is there. Never raises."""
    record = SpooledRecord(
        id=event.id,
        topic=config.kafka.retry_topic,
        key=str(event.scenario_id),
        headers=tuple((name, value.decode()) for name, value in retry_event.headers(event)),
        value=retry_event.encode(event).decode(),
    )
    try:
        path = await spool.put(record)
    except RunnerError as error:
        logger.error("the retry event may not be in the spool: %s", error)  # noqa: TRY400 - no stack is needed
        return False
    except Exception:
        logger.exception("the retry event may not be in the spool")
        return False
    logger.warning(
        "the retry event waits in %s; the next runner there sends it, or trio-runner flush-spool CONFIG", path
    )
    return True


async def publish_recorded(
    config: Config, store: Store, scenario_id: int, epoch: int, *, recorded_by: str | None = None
) -> Report | None:
    """Publish the event of a death that PostgreSQL has recorded, unless it is published by now.

    Args:
        config: Where Kafka is, and how long it may take.
        store: Where the event is recorded.
        scenario_id: Whose death it is.
        epoch: The attempt that died.
        recorded_by: Publish the event only if this reporter recorded it; None: if any did.

    Returns:
        None where there is nothing to publish, or where the record is no event of this version.

    Raises:
        RunnerError: PostgreSQL cannot be asked.
    """
    waiting = await store.unpublished_event(scenario_id, epoch)
    if waiting is None:
        return None
    body, topic = waiting
    try:
        event = msgspec.json.decode(body, type=RetryEvent)
    except msgspec.ValidationError as error:
        # A later version of this program may have written the record; a process of that version can publish it.
        logger.error("the record of scenario %d, attempt %d is no event: %s", scenario_id, epoch, error)  # noqa: TRY400 - no stack is needed
        return None
    if recorded_by not in (None, event.reporter):
        return None
    published = await publish(config, event, topic)
    if published:
        try:
            await store.mark_published(scenario_id, epoch)
        except RunnerError as error:
            logger.warning("a reaper will publish the event once more: %s", error)
    return Report(claim=event.claim, event=Publication.PUBLISHED if published else Publication.RECORDED)


async def publish_outbox(
    config: Config, store: Store, scenario_id: int | None = None, *, limit: int | None = None
) -> list[Report]:
    """Publish the deaths that PostgreSQL has recorded and nobody has published, so far as Kafka takes them.

    Of one scenario, or of all; `limit` deaths at most. Each is tried once. An event that its reporter may still be
    publishing is left to it for a minute. Events that were taken and are not published are handed back, also after a
    cancellation.

    Raises:
        RunnerError: PostgreSQL cannot be asked.
    """
    reports: list[Report] = []
    left: list[tuple[int, int]] = []
    tried: set[tuple[int, int]] = set()
    refused: list[tuple[int, int]] = []
    refused_in_a_row = 0
    try:
        while refused_in_a_row < TRIES and (limit is None or len(tried) < limit):
            if not left:
                taken = await store.unpublished(
                    OUTBOX_BATCH, lease_seconds=OUTBOX_LEASE_SECONDS, scenario_id=scenario_id
                )
                if not taken:
                    break
                # Where publishing takes longer than the lease, events that were tried before are due again.
                left = [death for death in taken if death not in tried]
                continue
            death = left[0]
            report = await publish_recorded(config, store, *death)
            left.pop(0)
            tried.add(death)
            if report is None:
                continue
            reports.append(report)
            refused_in_a_row = refused_in_a_row + 1 if report.event.is_due else 0
            if report.event.is_due:
                refused.append(death)
    finally:
        # Shielded and bounded: after a cancellation the events are handed back, too.
        await _try_briefly(  # noqa: ASYNC102
            partial(_hand_back, store, left, refused),
            otherwise=f"retry events are due again only in {OUTBOX_LEASE_SECONDS:g} s",
        )
    return reports


async def _hand_back(store: Store, *batches: list[tuple[int, int]]) -> None:
    """Let any process publish these events from now on, the first batch before the others.

    Refused events come last: otherwise the same three would end each pass before it reaches the events behind them.
    """
    for batch in filter(None, batches):
        await store.hand_over(batch)


async def publish_spooled(config: Config, spool: Spool) -> FlushResult:
    """Publish the events that wait in the spool, oldest first, and return what became of them.

    Where another process is emptying the same directory, nothing is done. An event that is sent twice does no harm,
    because its id is the same. After a topic has refused one record, its other records are left for the next pass:
    each may cost the whole of `kafka.publish_timeout_seconds`.

    Raises:
        RunnerError: Kafka takes no event of any topic.
    """
    sent, waiting, problem = 0, 0, None
    refusing: set[str] = set()
    try:
        async with spool.flushing() as ours:
            for path in await spool.waiting() if ours else ():
                try:
                    sent += await _publish_spooled_record(config, spool, path, refusing)
                except RunnerError as error:
                    # A topic that refuses its event, or a file that cannot be read, holds up nothing but itself.
                    if error.code not in {ErrorCode.KAFKA_TOPIC, ErrorCode.SPOOL_UNUSABLE}:
                        raise
                    problem = problem or error
        waiting = len(await spool.waiting())
    except RunnerError as error:
        # The directory cannot be listed. The events in the database have nothing to do with it.
        if error.code is not ErrorCode.SPOOL_UNUSABLE:
            raise
        problem = problem or error
    return FlushResult(sent=sent, waiting=waiting, problem=problem)


async def flush(config: Config, spool: Spool, store: Store | None = None) -> None:
    """Publish the events that wait in the spool and, with a `store`, those of the config's scenario in the database.

    This takes FLUSH_SECONDS at most, and an event that Kafka does not take goes on waiting. The deaths of other
    scenarios are left to an orchestrator, a reaper or `flush-spool`: many runners start at once when Kafka is back, and
    each would try to publish all of them.
    """
    try:
        with trio.move_on_after(FLUSH_SECONDS) as scope:
            spooled = await publish_spooled(config, spool)
            if store is not None:
                await publish_outbox(config, store, config.scenario.id)
            if spooled.problem is not None:
                raise spooled.problem
    except RunnerError as error:
        logger.warning("retry events wait to be published: %s", error)
    if scope.cancelled_caught:
        logger.warning("retry events wait to be published: not all could be sent within %g s", FLUSH_SECONDS)


async def _publish_spooled_record(config: Config, spool: Spool, path: Path, refusing: set[str]) -> bool:
    """Whether the record was sent. Nothing is sent to topics in `refusing`; a topic that refuses is added to them."""
    record = await spool.read(path)
    if record is None or record.topic in refusing:
        return False
    headers = [(name, value.encode()) for name, value in record.headers]
    try:
        await connection.send(config.kafka, record.topic, record.key.encode(), record.value.encode(), headers)
    except RunnerError as error:
        if error.code is ErrorCode.KAFKA_TOPIC:
            refusing.add(record.topic)
        raise
    await spool.remove(path)
    logger.info("retry event %s, which had waited in the spool, is acknowledged", record.id)
    return True

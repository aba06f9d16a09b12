"""Reads topics as a member of a consumer group: what was handled is committed, what was not comes again."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import trio
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError

from trio_runner.base import aio
from trio_runner.kafka.connection import STOP_SECONDS, connection_options, named_errors
from trio_runner.kafka.record import record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from trio_runner.config.sections import KafkaSection
    from trio_runner.kafka.record import Record


logger = logging.getLogger(__name__)

SESSION_SECONDS: Final = 10.0
"""A member that froze for so long is left out, and its partitions go to the others."""

REBALANCE_SECONDS: Final = 3 * SESSION_SECONDS
"""How long partitions may be dealt out anew: the broker waits for each member as long as for one that froze."""

_REBALANCING: Final = (CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError)


class Inbox:
    """The partitions that this member of the group was given; made by `open_inbox`."""

    def __init__(self, consumer: AIOKafkaConsumer, config: KafkaSection) -> None:
        """Take the started consumer over; `open_inbox` stops it."""
        self._consumer, self._config = consumer, config

    async def receive(self, *, wait_seconds: float, limit: int) -> list[Record]:
        """The next records, as soon as there are any; none after `wait_seconds`, or while no broker answers."""
        # While partitions are dealt out anew aiokafka waits for that, whatever it was told. Who left the group for it
        # would have them dealt out once more.
        with named_errors(self._config, seconds=wait_seconds + REBALANCE_SECONDS):
            batches = await aio.call(
                partial(self._consumer.getmany, timeout_ms=int(wait_seconds * 1000), max_records=limit)
            )
        return [record_of(message) for messages in batches.values() for message in messages]

    async def commit(self) -> None:
        """All that was received is handled: another member that takes a partition over begins behind it.

        Where the partitions are being given out anew just now, nothing is committed and the records come again.

        Raises:
            RunnerError: one of `kafka_*`; the same.
        """
        with named_errors(self._config, seconds=self._config.connect_timeout_seconds):
            try:
                await aio.call(self._consumer.commit)
            except _REBALANCING as error:
                logger.info("not committed, the group is being reordered: %s", error)


@asynccontextmanager
async def open_inbox(config: KafkaSection, topics: Sequence[str], group: str) -> AsyncIterator[Inbox]:
    """A member of `group` for these topics; a group that is new begins with the oldest record.

    Raises:
        RunnerError: one of `kafka_*`, naming the cause, or `credential_unreadable`.
    """
    options = await connection_options(config, seconds=config.connect_timeout_seconds)
    # Making it does not wait; a cancellation now would leave one behind that nobody stops.
    with trio.CancelScope(shield=True):
        consumer = await aio.call(_make_consumer, group, options)
    try:
        with named_errors(config, seconds=config.connect_timeout_seconds):
            await aio.call(consumer.start)
            # Not before: it would wait for partitions, which the group has to give once more when a member has died,
            # and that takes as long as its session. Giving up on it and joining again would only prolong that.
            await aio.call(_subscribe, consumer, topics)
        yield Inbox(consumer, config)
    finally:
        await aio.close(consumer.stop, seconds=STOP_SECONDS)  # noqa: ASYNC102 - close shields and bounds


async def _subscribe(consumer: AIOKafkaConsumer, topics: Sequence[str]) -> None:
    """asyncio-flavoured."""
    consumer.subscribe(list(topics))


async def _make_consumer(group: str, options: dict[str, Any]) -> AIOKafkaConsumer:
    """asyncio-flavoured: aiokafka's constructor needs the running loop."""
    return AIOKafkaConsumer(
        **options,
        group_id=group,
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        session_timeout_ms=int(SESSION_SECONDS * 1000),
        heartbeat_interval_ms=3_000,
        # A topic that is made later is found within this time.
        metadata_max_age_ms=10_000,
    )

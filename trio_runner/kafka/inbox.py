"""Reads topics as a member of a consumer group: handled records are committed, all others come again."""

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
from trio_runner.kafka.errors import CauseCollector, Target
from trio_runner.kafka.record import record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping

    from trio_runner.config.sections import KafkaSection
    from trio_runner.kafka.record import Record


logger = logging.getLogger(__name__)

SESSION_SECONDS: Final = 10.0
"""After so long without a sign of life a member loses its partitions to the others."""

REBALANCE_SECONDS: Final = 3 * SESSION_SECONDS
"""How long sharing the partitions out again may take: the broker waits a session for each member that froze."""

_REBALANCING: Final = (CommitFailedError, IllegalGenerationError, RebalanceInProgressError, UnknownMemberIdError)


class Inbox:
    """The partitions that this member of the group was given; made by `open_inbox`."""

    def __init__(self, consumer: AIOKafkaConsumer, causes: CauseCollector) -> None:
        """Use the started consumer, which `open_inbox` stops."""
        self._consumer, self._causes = consumer, causes

    async def receive(self, *, wait_seconds: float, limit: int) -> list[Record]:
        """The next records, as soon as there are any; none after `wait_seconds`, or while no broker answers.

        Raises:
            RunnerError: one of `kafka_*`, naming the cause.
        """
        # While the group shares its partitions out again, aiokafka waits for that and ignores `timeout_ms`. A member
        # that left the group because of this would make it share them out once more.
        with named_errors(self._causes, seconds=wait_seconds + REBALANCE_SECONDS):
            batches = await aio.call(
                partial(self._consumer.getmany, timeout_ms=int(wait_seconds * 1000), max_records=limit)
            )
        return [record_of(message) for messages in batches.values() for message in messages]

    async def commit(self) -> None:
        """Mark all received records as handled: a member that takes a partition over begins behind them.

        While the group shares its partitions out again, nothing is committed and the records come again.

        Raises:
            RunnerError: one of `kafka_*`, naming the cause.
        """
        with named_errors(self._causes, seconds=self._causes.target.config.connect_timeout_seconds):
            try:
                await aio.call(self._consumer.commit)
            except _REBALANCING as error:
                logger.info("not committed, the group is being reordered: %s", error)


@asynccontextmanager
async def open_inbox(config: KafkaSection, topics: Mapping[str, str], group: str) -> AsyncIterator[Inbox]:
    """A member of `group` for these topics; a group that is new begins with the oldest record.

    Args:
        config: Where the brokers are.
        topics: The config key that names each topic, by the topic's name.
        group: The consumer group that `orchestrator.group` names.

    Raises:
        RunnerError: one of `kafka_*`, naming the cause, or `credential_unreadable`.
    """
    causes = CauseCollector(Target(config, topics, "READ", group))
    options = await connection_options(config, seconds=config.connect_timeout_seconds)
    # Making the consumer does not wait. If it were cancelled, nobody would stop the consumer.
    with trio.CancelScope(shield=True):
        consumer = await aio.call(_make_consumer, group, options)
    try:
        with named_errors(causes, seconds=config.connect_timeout_seconds):
            await aio.call(consumer.start)
            # Only now: with topics, `start` would wait until the group has given this member its partitions. After the
            # death of a member that takes as long as its session, and joining again would only prolong it.
            await aio.call(_subscribe, consumer, topics)
        yield Inbox(consumer, causes)
    finally:
        await aio.close(consumer.stop, seconds=STOP_SECONDS)  # noqa: ASYNC102 - close shields and bounds


async def _subscribe(consumer: AIOKafkaConsumer, topics: Iterable[str]) -> None:
    """asyncio-flavoured: `subscribe` starts tasks on the running loop."""
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
        # Within this time the consumer notices a topic that has been created.
        metadata_max_age_ms=10_000,
    )

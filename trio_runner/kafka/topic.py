"""Reads the retry topic from its beginning: what the runners of this system died of."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import trio
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import LeaderNotAvailableError, NoError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.metadata import MetadataRequest

from trio_runner.base import aio
from trio_runner.kafka.connection import STOP_SECONDS, connection_options, named_errors
from trio_runner.kafka.errors import CauseCollector, Target
from trio_runner.kafka.record import record_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_runner.config.sections import KafkaSection
    from trio_runner.kafka.record import Record

T = TypeVar("T")


class TopicReader:
    """A consumer without a group: it reads from the beginning and leaves no trace on the broker."""

    def __init__(self, consumer: AIOKafkaConsumer, causes: CauseCollector) -> None:
        """Use the started consumer, which `open_topic` stops."""
        self._consumer, self._causes = consumer, causes
        self._config = causes.target.config
        self._subscribed = False

    async def read(self, *, wait_seconds: float) -> list[Record]:
        """The next records, as soon as there are any; none after `wait_seconds`, or if the topic does not exist yet."""
        if not self._subscribed:
            # Subscribing to a topic that does not exist makes many a broker create it.
            self._subscribed = await self._exists()
            if not self._subscribed:
                await trio.sleep(wait_seconds)
                return []
            self._consumer.subscribe([self._config.retry_topic])
        batches = await self._bounded(partial(self._consumer.getmany, timeout_ms=int(wait_seconds * 1000)))
        return [record_of(message) for messages in batches.values() for message in messages]

    async def at_end(self) -> bool:
        """Whether everything that was on the topic at this moment has been read."""
        if not self._subscribed:
            return not await self._exists()
        partitions = list(self._consumer.assignment())
        ends = await self._bounded(self._consumer.end_offsets, partitions)
        return bool(ends) and all(
            [await self._bounded(self._consumer.position, partition) >= end for partition, end in ends.items()]
        )

    async def _exists(self) -> bool:
        return await self._bounded(_topic_exists, self._consumer, self._config.retry_topic)

    async def _bounded(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        with named_errors(self._causes, seconds=self._config.connect_timeout_seconds):
            return await aio.call(function, *args)


@asynccontextmanager
async def open_topic(config: KafkaSection) -> AsyncIterator[TopicReader]:
    """A reader at the beginning of every partition of the retry topic.

    Raises:
        RunnerError: one of `kafka_*`, naming the cause, or `credential_unreadable`.
    """
    causes = CauseCollector(Target(config, {config.retry_topic: "kafka.retry_topic"}, "READ"))
    options = await connection_options(config, seconds=config.connect_timeout_seconds)
    # Making the consumer does not wait. If it were cancelled, nobody would stop the consumer.
    with trio.CancelScope(shield=True):
        consumer = await aio.call(_make_consumer, options)
    try:
        with named_errors(causes, seconds=config.connect_timeout_seconds):
            await aio.call(consumer.start)
        yield TopicReader(consumer, causes)
    finally:
        await aio.close(consumer.stop, seconds=STOP_SECONDS)  # noqa: ASYNC102 - close shields and bounds


async def _make_consumer(options: dict[str, Any]) -> AIOKafkaConsumer:
    """asyncio-flavoured: aiokafka's constructor needs the running loop."""
    return AIOKafkaConsumer(**options, enable_auto_commit=False, auto_offset_reset="earliest")


async def _topic_exists(consumer: AIOKafkaConsumer, topic: str) -> bool:
    """asyncio-flavoured: ask whether the topic exists without creating it; raise if this user may not see it."""
    client = consumer._client  # noqa: SLF001 - `topics()` leaves out the topics that this user may not see
    request = MetadataRequest([topic], allow_auto_topic_creation=False)
    response = await client.send(client.get_random_node(), request)
    ((code, *_),) = response.topics
    error = for_code(code)
    if error not in (NoError, UnknownTopicOrPartitionError, LeaderNotAvailableError):
        raise error
    return error is NoError

"""Reads the retry topic from its beginning: what the runners of this system died of."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from trio_runner import aio
from trio_runner.model import ErrorCode, RunnerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_runner.config import KafkaSection

STOP_SECONDS = 2.0


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One record of the topic: its place, its CloudEvents attributes, its body (None where that is not JSON)."""

    partition: int
    offset: int
    headers: dict[str, str]
    body: Any


class TopicReader:
    """A consumer without a group: it reads from the beginning and leaves no trace on the broker."""

    def __init__(self, consumer: AIOKafkaConsumer, config: KafkaSection) -> None:
        """Take the started consumer over; `open_topic` stops it."""
        self._consumer, self._config = consumer, config

    async def read(self, *, wait_seconds: float) -> list[Record]:
        """The next records, as soon as there are any; none after `wait_seconds`, or where the topic is empty."""
        batches = await aio.call(self._consumer.getmany, timeout_ms=int(wait_seconds * 1000))
        return [_record(message) for messages in batches.values() for message in messages]

    async def at_end(self) -> bool:
        """Whether everything that was on the topic at this moment has been read."""
        partitions = list(self._consumer.assignment())
        with trio.fail_after(self._config.connect_timeout_seconds):
            ends = await aio.call(self._consumer.end_offsets, partitions)
            for partition, end in ends.items():
                if await aio.call(self._consumer.position, partition) < end:
                    return False
        return True


@asynccontextmanager
async def open_topic(config: KafkaSection) -> AsyncIterator[TopicReader]:
    """A reader at the beginning of every partition of the retry topic.

    Raises:
        RunnerError: `kafka_unreachable`.
    """
    consumer = await aio.call(_make_consumer, config)
    try:
        try:
            with trio.fail_after(config.connect_timeout_seconds):
                await aio.call(consumer.start)
                partitions = await aio.call(_partitions, consumer, config.retry_topic)
                if partitions:
                    consumer.assign(partitions)
                    await aio.call(consumer.seek_to_beginning, *partitions)
        except (KafkaError, OSError, trio.TooSlowError, aio.LibraryCancelledError) as error:
            raise RunnerError(ErrorCode.KAFKA_UNREACHABLE, f"Kafka at {config.brokers}: {error}") from error
        yield TopicReader(consumer, config)
    finally:
        await aio.close(consumer.stop, seconds=STOP_SECONDS)


async def _make_consumer(config: KafkaSection) -> AIOKafkaConsumer:
    """asyncio-flavoured: aiokafka's constructor needs the running loop."""
    return AIOKafkaConsumer(
        bootstrap_servers=config.brokers.split(","),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        request_timeout_ms=int(config.connect_timeout_seconds * 1000),
    )


async def _partitions(consumer: AIOKafkaConsumer, topic: str) -> list[TopicPartition]:
    """asyncio-flavoured: the topic's partitions, none where it does not exist."""
    await consumer.topics()
    return [TopicPartition(topic, number) for number in sorted(consumer.partitions_for_topic(topic) or ())]


def _record(message: Any) -> Record:
    try:
        body = msgspec.json.decode(message.value or b"null")
    except (msgspec.DecodeError, UnicodeDecodeError):
        body = None
    return Record(
        partition=message.partition,
        offset=message.offset,
        headers={name: value.decode(errors="replace") for name, value in message.headers},
        body=body,
    )

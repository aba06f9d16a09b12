"""Reads the retry topic from its beginning: what the runners of this system died of."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
import trio
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from trio_runner import aio
from trio_runner.model import ErrorCode, RunnerError
from trio_runner.retry import CauseCollector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from trio_runner.config import KafkaSection

T = TypeVar("T")

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
        self._subscribed = False

    async def read(self, *, wait_seconds: float) -> list[Record]:
        """The next records, as soon as there are any; none after `wait_seconds`, or where there is no topic yet."""
        if not self._subscribed:
            # Subscribing to a topic that does not exist would create it on many a broker.
            self._subscribed = self._config.retry_topic in await self._bounded(self._consumer.topics)
            if not self._subscribed:
                await trio.sleep(wait_seconds)
                return []
            self._consumer.subscribe([self._config.retry_topic])
        batches = await self._bounded(partial(self._consumer.getmany, timeout_ms=int(wait_seconds * 1000)))
        return [_record(message) for messages in batches.values() for message in messages]

    async def at_end(self) -> bool:
        """Whether everything that was on the topic at this moment has been read."""
        if not self._subscribed:
            return self._config.retry_topic not in await self._bounded(self._consumer.topics)
        partitions = list(self._consumer.assignment())
        ends = await self._bounded(self._consumer.end_offsets, partitions)
        return bool(ends) and all(
            [await self._bounded(self._consumer.position, partition) >= end for partition, end in ends.items()]
        )

    async def _bounded(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        with _named_errors(self._config), trio.fail_after(self._config.connect_timeout_seconds):
            return await aio.call(function, *args)


@contextmanager
def _named_errors(config: KafkaSection) -> Iterator[None]:
    with CauseCollector() as causes:
        try:
            yield
        except (KafkaError, OSError, trio.TooSlowError, aio.LibraryCancelledError) as error:
            why = causes.last or str(error) or "no answer in time"
            raise RunnerError(ErrorCode.KAFKA_UNREACHABLE, f"Kafka at {config.brokers}: {why}") from error


@asynccontextmanager
async def open_topic(config: KafkaSection) -> AsyncIterator[TopicReader]:
    """A reader at the beginning of every partition of the retry topic.

    Raises:
        RunnerError: `kafka_unreachable`.
    """
    consumer = await aio.call(_make_consumer, config)
    try:
        with _named_errors(config), trio.fail_after(config.connect_timeout_seconds):
            await aio.call(consumer.start)
        yield TopicReader(consumer, config)
    finally:
        await aio.close(consumer.stop, seconds=STOP_SECONDS)  # noqa: ASYNC102 - close shields and bounds


async def _make_consumer(config: KafkaSection) -> AIOKafkaConsumer:
    """asyncio-flavoured: aiokafka's constructor needs the running loop."""
    return AIOKafkaConsumer(
        bootstrap_servers=config.brokers.split(","),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        request_timeout_ms=int(config.connect_timeout_seconds * 1000),
    )


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

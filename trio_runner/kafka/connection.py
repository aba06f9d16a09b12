"""The door to Kafka: how we connect, how a record leaves, and whether it could."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError, LeaderNotAvailableError, NoError, UnknownTopicOrPartitionError, for_code
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from trio_runner.base import aio
from trio_runner.config.credentials import read_secret, tls_context
from trio_runner.kafka.errors import CauseCollector

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from trio_runner.config.sections import KafkaSection

STOP_SECONDS: Final = 2.0
NO_PARTITION: Final = 2**31 - 1
"""The highest number a partition could have, and none has."""


async def send(config: KafkaSection, topic: str, key: bytes, value: bytes, headers: list[tuple[str, bytes]]) -> None:
    """Send one record and wait until the broker has it, within `publish_timeout_seconds` and 2 s to stop.

    A producer of its own, made now: one that idled through the run would add states and save nothing. Not idempotent:
    when the broker freezes, send and stop of an idempotent one never end by themselves, and its record is doubled by
    the next producer all the same (measured by `benchmarks/producer.py`); consumers know a repeated event by its id.

    Raises:
        RunnerError: one of `kafka_*`, naming the cause, or `credential_unreadable`; the record may still arrive.
    """
    seconds = config.publish_timeout_seconds
    with named_errors(msgspec.structs.replace(config, retry_topic=topic), seconds=seconds) as causes:
        async with _open_producer(config, seconds=seconds) as producer:
            await _find_topic(producer, topic, causes)
            await aio.call(partial(producer.send_and_wait, topic, value, key, headers=headers))


async def check_broker(config: KafkaSection) -> None:
    """Check within `connect_timeout_seconds`, and 2 s to stop, that a retry event could leave now.

    A broker answers and takes us for who we say we are; the retry topic is there, or was created by this question; and
    we may write to it, which the broker is asked with a record for a partition that does not exist: Apache Kafka
    (`KafkaApis.handleProduceRequest`) looks for the right first and for the partition then, so nothing is left behind.
    Not checked: the size that the topic takes, and whether enough of its replicas are in sync. librdkafka's mock
    cluster lets everybody do everything.

    Raises:
        RunnerError: one of `kafka_*`, naming the cause, or `credential_unreadable`.
    """
    seconds = config.connect_timeout_seconds
    with named_errors(config, seconds=seconds) as causes:
        async with _open_producer(config, seconds=seconds) as producer:
            await _find_topic(producer, config.retry_topic, causes)
            await aio.call(_ask_to_write, producer, config.retry_topic)


async def connection_options(config: KafkaSection, *, seconds: float) -> dict[str, Any]:
    """What a producer and a consumer are both told: where the brokers are, and how to speak to them.

    Args:
        config: Where, how, and as whom.
        seconds: How long everything together may take: every broker of the list has its turn in that time.

    Raises:
        RunnerError: `credential_unreadable`.
    """
    brokers = config.brokers.split(",")
    each = min(config.connect_timeout_seconds, seconds / len(brokers))
    options: dict[str, Any] = {
        "bootstrap_servers": brokers,
        "client_id": "trio-runner",
        "request_timeout_ms": max(1, int(each * 1000)),
        "security_protocol": config.security_protocol,
    }
    if config.security_protocol in ("SSL", "SASL_SSL"):
        options["ssl_context"] = await tls_context(config, "kafka")
    if config.security_protocol in ("SASL_PLAINTEXT", "SASL_SSL"):
        options["sasl_mechanism"] = config.sasl_mechanism
        options["sasl_plain_username"] = config.username
        options["sasl_plain_password"] = await read_secret(config.password_file, "kafka.password_file")
        # It logs whole requests at DEBUG, that of the mechanism PLAIN with the password in it.
        logging.getLogger("aiokafka.conn").addFilter(_is_no_request)
    return options


@contextmanager
def named_errors(config: KafkaSection, *, seconds: float) -> Iterator[CauseCollector]:
    """A deadline around calls of aiokafka, whose errors come out as `RunnerError` with their causes in words."""
    with CauseCollector(config) as causes:
        try:
            with trio.fail_after(seconds):
                yield causes
        except (KafkaError, OSError, ValueError, aio.LibraryCancelledError) as error:
            raise causes.as_error(error) from error
        except trio.TooSlowError as error:
            raise causes.as_error(error, late_after_seconds=seconds) from error


@asynccontextmanager
async def _open_producer(config: KafkaSection, *, seconds: float) -> AsyncIterator[AIOKafkaProducer]:
    options = await connection_options(config, seconds=seconds)
    # Making it does not wait; a cancellation now would leave one behind that nobody stops.
    with trio.CancelScope(shield=True):
        producer = await aio.call(_make_producer, options)
    try:
        await aio.call(producer.start)
        yield producer
    finally:
        # Without stop() the producer's finaliser crashes the loop, also when start() failed.
        await aio.close(producer.stop, seconds=STOP_SECONDS)  # noqa: ASYNC102 - close shields and bounds


async def _make_producer(options: dict[str, Any]) -> AIOKafkaProducer:
    """asyncio-flavoured: aiokafka's constructor needs the running loop."""
    return AIOKafkaProducer(**options, acks="all", enable_idempotence=False, retry_backoff_ms=100, linger_ms=0)


async def _find_topic(producer: AIOKafkaProducer, topic: str, causes: CauseCollector) -> None:
    """Wait until it is there and has a leader, which takes its moment where the broker creates it."""
    causes.forget()
    await aio.call(producer.partitions_for, topic)
    cluster = producer.client.cluster
    while not cluster.available_partitions_for_topic(topic):
        causes.hear(LeaderNotAvailableError())
        await aio.call(producer.client.force_metadata_update)
        await trio.sleep(0.05)
    causes.forget()


async def _ask_to_write(producer: AIOKafkaProducer, topic: str) -> None:
    """asyncio-flavoured; raises what the broker answers, unless it is that there is no such partition."""
    batch = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=0,
    )
    batch.append(0, timestamp=0, key=None, value=b"", headers=[])
    request = ProduceRequest(
        transactional_id=None, required_acks=-1, timeout=1000, topics=[(topic, [(NO_PARTITION, bytes(batch.build()))])]
    )
    cluster = producer.client.cluster
    partition = min(cluster.available_partitions_for_topic(topic))
    leader = cluster.leader_for_partition(TopicPartition(topic, partition))
    response = await producer.client.send(leader, request)
    for _, answers in response.topics:
        for _, code, *_ in answers:
            error = for_code(code)
            if error not in (NoError, UnknownTopicOrPartitionError):
                raise error


def _is_no_request(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Request to ")

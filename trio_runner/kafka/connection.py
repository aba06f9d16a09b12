"""The connection to Kafka: how a client of ours connects, how one record is sent, and whether one could be."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import trio
from aiokafka import TopicPartition
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.errors import (
    KafkaConnectionError,
    KafkaError,
    LeaderNotAvailableError,
    NodeNotReadyError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.partitioner import DefaultPartitioner
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.default_records import DefaultRecordBatchBuilder

from trio_runner.base import aio
from trio_runner.config.credentials import read_secret, tls_context
from trio_runner.kafka.errors import CauseCollector, Target
from trio_runner.kafka.produce_errors import produce_error

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from aiokafka.cluster import ClusterMetadata

    from trio_runner.config.sections import KafkaSection

STOP_SECONDS: Final = 2.0
BACKOFF_SECONDS: Final = 0.1
NO_PARTITION: Final = 2**31 - 1
"""The highest number that a partition could have. No partition has it."""


async def send(
    config: KafkaSection,
    topic: str,
    key: bytes,
    value: bytes,
    headers: list[tuple[str, bytes]],
    *,
    topic_key: str = "kafka.retry_topic",
) -> None:
    """Send one record and wait until the broker has it, within `publish_timeout_seconds` and 2 s to close.

    Until then the record is sent again whenever its leader goes away, changes, or answers with a retriable error. A
    leader that is only slow is waited for, because it would append a second copy. After a resend the topic may hold the
    record more than once: consumers know a repeated event by its id. aiokafka's producer is not used. It gives a record
    up after the time that one request may take. If the broker freezes, an idempotent producer never stops by itself,
    and the next producer doubles its record all the same (measured by `benchmarks/producer.py`).

    Args:
        config: Where the brokers are, and how long this may take.
        topic: Where the record is sent.
        key: The record's key, which chooses the partition as Kafka's own clients do.
        value: The record's body.
        headers: The record's headers.
        topic_key: The config key that names `topic`, for errors.

    Raises:
        RunnerError: one of `kafka_*`, naming the cause, or `credential_unreadable`; the record may still arrive.
    """
    seconds = config.publish_timeout_seconds
    causes = CauseCollector(Target(config, {topic: topic_key}, "WRITE"))
    with named_errors(causes, seconds=seconds):
        async with _open_client(causes, seconds=seconds) as client:
            partitions = await _find_topic(client, topic, causes)
            partition = DefaultPartitioner()(key, partitions, partitions)
            batch = _batch(key, value, headers)
            while error := await aio.call(
                _ask_leader, client, TopicPartition(topic, partition), partition, batch, _seconds_left()
            ):
                if not error.retriable:
                    raise error
                causes.add(error)
                await aio.call(client.force_metadata_update)
                await trio.sleep(BACKOFF_SECONDS)


async def check_broker(config: KafkaSection) -> None:
    """Check within `connect_timeout_seconds`, and 2 s to close, that a retry event could be sent now.

    Three things are checked. A broker answers, and accepts our user or certificate. The retry topic exists, or this
    question has created it. We may write to it: the broker is sent a record for a partition that does not exist. Apache
    Kafka (`KafkaApis.handleProduceRequest`) checks the right first and the partition afterwards, so no record is left.
    Not checked: the size that the topic takes, and whether enough of its replicas are in sync. librdkafka's mock
    cluster grants every right to everybody.

    Raises:
        RunnerError: one of `kafka_*`, naming the cause, or `credential_unreadable`.
    """
    seconds, topic = config.connect_timeout_seconds, config.retry_topic
    causes = CauseCollector(Target(config, {topic: "kafka.retry_topic"}, "WRITE"))
    with named_errors(causes, seconds=seconds):
        async with _open_client(causes, seconds=seconds) as client:
            partition, *_ = await _find_topic(client, topic, causes)
            batch = _batch(None, b"", [])
            error = await aio.call(
                _ask_leader, client, TopicPartition(topic, partition), NO_PARTITION, batch, _seconds_left()
            )
            if error is not None and not isinstance(error, UnknownTopicOrPartitionError):
                raise error


async def connection_options(config: KafkaSection, *, seconds: float) -> dict[str, Any]:
    """The options that every client of aiokafka is given: where the brokers are, and how to connect to them.

    Args:
        config: The addresses, the security protocol and the user.
        seconds: How long connecting may take in all. Each broker of the list gets its share of this time, for
            connecting and for each request that is not `_ask_leader`'s.

    Raises:
        RunnerError: `credential_unreadable`.
    """
    brokers = config.brokers.split(",")
    each = min(config.connect_timeout_seconds, seconds / len(brokers))
    options: dict[str, Any] = {
        "bootstrap_servers": brokers,
        "client_id": "trio-runner",
        "request_timeout_ms": max(1, int(each * 1000)),
        "retry_backoff_ms": int(BACKOFF_SECONDS * 1000),
        "security_protocol": config.security_protocol,
    }
    if config.security_protocol in ("SSL", "SASL_SSL"):
        options["ssl_context"] = await tls_context(config, "kafka")
    if config.security_protocol in ("SASL_PLAINTEXT", "SASL_SSL"):
        options["sasl_mechanism"] = config.sasl_mechanism
        options["sasl_plain_username"] = config.username
        options["sasl_plain_password"] = await read_secret(config.password_file, "kafka.password_file")
        # aiokafka logs whole requests at DEBUG. Those of the mechanism PLAIN hold the password.
        logging.getLogger("aiokafka.conn").addFilter(_is_no_request)
    return options


@contextmanager
def named_errors(causes: CauseCollector, *, seconds: float) -> Iterator[None]:
    """Give calls of aiokafka a deadline, and raise their errors as `RunnerError` with the causes in words."""
    with causes.collecting():
        try:
            with trio.fail_after(seconds):
                yield
        except (KafkaError, OSError, ValueError, aio.LibraryCancelledError) as error:
            raise causes.as_error(error) from error
        except trio.TooSlowError as error:
            raise causes.as_error(error, late_after_seconds=seconds) from error


@asynccontextmanager
async def _open_client(causes: CauseCollector, *, seconds: float) -> AsyncIterator[AIOKafkaClient]:
    config = causes.target.config
    options = await connection_options(config, seconds=seconds)
    # While `_ask_leader` waits for a leader that may have failed, the next refresh shows the partition's new leader.
    options["metadata_max_age_ms"] = int(config.connect_timeout_seconds * 1000)
    # Making the client does not wait. If it were cancelled, nobody would close the client.
    with trio.CancelScope(shield=True):
        client = await aio.call(_make_client, options)
    try:
        await _bootstrap(client, causes)
        yield client
    finally:
        await aio.close(client.close, seconds=STOP_SECONDS)  # noqa: ASYNC102 - close shields and bounds


async def _make_client(options: dict[str, Any]) -> AIOKafkaClient:
    """asyncio-flavoured: aiokafka's constructor needs the running loop."""
    return AIOKafkaClient(**options)


async def _bootstrap(client: AIOKafkaClient, causes: CauseCollector) -> None:
    """Ask the brokers of the list in turn until one answers, and once more those that did not answer in time.

    Every other failure is an answer and ends this at once: where all brokers refuse the connection, the address is
    wrong or the cluster is down.
    """
    while True:
        try:
            await aio.call(client.bootstrap)
        except KafkaConnectionError:
            if not causes.unanswered:
                raise
        else:
            return
        await trio.sleep(BACKOFF_SECONDS)


async def _find_topic(client: AIOKafkaClient, topic: str, causes: CauseCollector) -> list[int]:
    """Wait until the topic exists and has a leader, and return its partitions in order.

    A broker that creates the topic because of this question takes a moment. If brokers still answer after
    `connect_timeout_seconds` that there is no such topic, none of them creates it.

    Raises:
        KafkaError: This user may not use the topic, or there is none.
    """
    causes.forget()
    cluster = client.cluster
    give_up_at = trio.current_time() + causes.target.config.connect_timeout_seconds
    await aio.call(client.add_topic, topic)
    while not cluster.available_partitions_for_topic(topic):
        answered = await aio.call(client.force_metadata_update)
        if topic in cluster.unauthorized_topics:
            raise TopicAuthorizationFailedError(topic)
        if cluster.partitions_for_topic(topic):
            causes.add(LeaderNotAvailableError(topic))
        elif answered and trio.current_time() >= give_up_at:
            raise UnknownTopicOrPartitionError(topic)
        await trio.sleep(BACKOFF_SECONDS)
    causes.forget()
    return sorted(cluster.partitions_for_topic(topic))


def _seconds_left() -> float:
    return max(0.0, trio.current_effective_deadline() - trio.current_time())


def _batch(key: bytes | None, value: bytes, headers: list[tuple[str, bytes]]) -> bytes:
    """A batch of one record, as a produce request holds it."""
    batch = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=0,
        is_transactional=0,
        producer_id=-1,
        producer_epoch=-1,
        base_sequence=-1,
        batch_size=0,
    )
    batch.append(0, timestamp=None, key=key, value=value, headers=headers)
    return bytes(batch.build())


async def _ask_leader(
    client: AIOKafkaClient, led: TopicPartition, partition: int, batch: bytes, seconds: float
) -> KafkaError | None:
    """asyncio-flavoured: ask the leader of `led` to append `batch`, and return why that was not done.

    The leader answers once every replica in sync has the record.

    Args:
        client: Knows the leader.
        led: The partition whose leader is asked.
        partition: The partition of the same topic that the request names.
        batch: The record.
        seconds: How long the leader may take. The client's own time for a request is only a broker's share.
    """
    leader = client.cluster.leader_for_partition(led)
    if leader is None or leader == -1:
        return LeaderNotAvailableError(led.topic)
    # A connection of its own: a broker answers the requests of one connection in order, so metadata would wait too.
    group = ConnectionGroup.COORDINATION
    connection = await client._get_conn(leader, group=group)  # noqa: SLF001 - aiokafka has no timeout per request
    if connection is None:
        return NodeNotReadyError(f"broker {leader}")
    connection._request_timeout = seconds  # noqa: SLF001 - aiokafka has no timeout per request

    def close_if_leader_changed(cluster: ClusterMetadata) -> None:
        if cluster.leader_for_partition(led) != leader:
            connection.close()

    request = ProduceRequest(
        transactional_id=None,
        required_acks=-1,
        timeout=max(1, int(seconds * 1000)),
        topics=[(led.topic, [(partition, batch)])],
    )
    client.cluster.add_listener(close_if_leader_changed)
    try:
        response = await client.send(leader, request, group=group)
    except KafkaError as error:
        return error
    finally:
        client.cluster.remove_listener(close_if_leader_changed)
    ((_, ((_, code, *_),)),) = response.topics
    return produce_error(code, led.topic)


def _is_no_request(record: logging.LogRecord) -> bool:
    return not str(record.msg).startswith("Request to ")

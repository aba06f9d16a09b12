"""A record whose leader answers late, moves, or answers with an error."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import trio
from aiokafka.client import AIOKafkaClient
from aiokafka.protocol.produce import ProduceRequest

from tests.kafka.test_kafka_errors import call_first
from tests.kafka.test_retry import make_event
from tests.support.harness import PATIENCE_SECONDS, read_topic
from tests.support.mock_kafka import mock_kafka
from trio_runner.base import aio
from trio_runner.config.sections import KafkaSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.kafka import retry_event as retry

TOPIC = "runner.retry"


@pytest.fixture
async def loop() -> AsyncIterator[None]:
    async with aio.open_loop():
        yield


@pytest.mark.parametrize("brokers", [1, 10])
async def test_an_acknowledgement_may_take_longer_than_connecting(
    loop: None, monkeypatch: pytest.MonkeyPatch, brokers: int
) -> None:
    """A request that is given up early is sent again, and then the topic holds a second copy."""
    told: list[int] = []
    send = AIOKafkaClient.send

    async def record_timeout(client: Any, node: Any, request: Any, **options: Any) -> Any:
        if isinstance(request, ProduceRequest):
            told.append(request._timeout)
        return await send(client, node, request, **options)

    monkeypatch.setattr(AIOKafkaClient, "send", record_timeout)
    with mock_kafka() as cluster:
        cluster.create_topic(TOPIC)
        cluster.answer_produce([(0, 4.0)] * 50)
        config = KafkaSection(
            brokers=",".join([cluster.addresses] * brokers),
            connect_timeout_seconds=1.0,
            publish_timeout_seconds=PATIENCE_SECONDS,
        )
        await retry.publish(config, make_event())
        assert len(await read_topic(cluster.addresses, TOPIC)) == 1
    assert told[-1] > 4_000


async def test_a_record_whose_silent_leader_is_replaced_goes_to_the_new_leader(
    loop: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old leader's answer would come long after the deadline."""
    with mock_kafka(brokers=2) as cluster:
        cluster.create_topic(TOPIC, leader=1)
        cluster.answer_produce([(0, 10 * PATIENCE_SECONDS)] * 50, broker=1)
        config = KafkaSection(
            brokers=cluster.addresses,
            connect_timeout_seconds=1.0,
            publish_timeout_seconds=PATIENCE_SECONDS,
        )
        # The client has asked who leads before, so its request still goes to the old leader.
        call_first(monkeypatch, "_ask_leader", lambda: cluster.set_leader(TOPIC, 2))
        await retry.publish(config, make_event())
        assert len(await read_topic(cluster.addresses, TOPIC)) == 1


async def test_an_error_that_kafka_calls_retriable_is_answered_by_sending_again(loop: None) -> None:
    with mock_kafka() as cluster:
        cluster.create_topic(TOPIC)
        # CORRUPT_MESSAGE, REPLICA_NOT_AVAILABLE, NETWORK_EXCEPTION, KAFKA_STORAGE_ERROR, and two about leader epochs
        cluster.answer_produce([(code, 0.0) for code in (2, 9, 13, 56, 74, 75)])
        config = KafkaSection(brokers=cluster.addresses, publish_timeout_seconds=PATIENCE_SECONDS)
        await retry.publish(config, make_event())
        assert len(await read_topic(cluster.addresses, TOPIC)) == 1


@pytest.mark.parametrize(
    ("code", "named"),
    [(87, "87 (INVALID_RECORD)"), (-1, "-1 (UNKNOWN_SERVER_ERROR)"), (44, "44 (POLICY_VIOLATION)"), (999, "999")],
)
async def test_a_refused_record_is_named_with_the_code_and_not_called_unreachable(
    loop: None, code: int, named: str
) -> None:
    with mock_kafka() as cluster:
        cluster.create_topic(TOPIC)
        cluster.answer_produce([(code, 0.0)] * 50)
        config = KafkaSection(brokers=cluster.addresses)
        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RunnerError) as caught:
            await retry.publish(config, make_event())
        assert caught.value.code is ErrorCode.KAFKA_TOPIC
        assert caught.value.message == (
            f"Kafka at {cluster.addresses}: refused the record for topic '{TOPIC}' with error {named}. "
            "See the broker's log, and the topic's configuration"
        )

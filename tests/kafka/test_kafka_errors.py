"""What the door makes of aiokafka's errors; those that a real broker gives by itself are in test_kafka_secure.py."""

from __future__ import annotations

import json
import logging
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Any

import pytest
import trio
from aiokafka import errors

from tests.kafka.test_retry import DOORS, make_event
from tests.support.certificates import Authority
from tests.support.harness import PATIENCE_SECONDS, Servers, full_backlog
from trio_runner.base import aio
from trio_runner.config.sections import KafkaSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.kafka import connection as kafka
from trio_runner.kafka import retry_event as retry
from trio_runner.kafka.errors import CauseCollector, explain
from trio_runner.kafka.record import Record
from trio_runner.kafka.topic import open_topic

PLAIN = KafkaSection(brokers="one:9092")
TWO = KafkaSection(brokers="one:9092,two:9092")


def named(config: KafkaSection, lines: list[tuple[Any, ...]], error: BaseException, **late: float) -> RunnerError:
    with CauseCollector(config) as causes:
        for line in lines:
            logging.getLogger("aiokafka").error(*line)
        return causes.as_error(error, **late)


BOOTSTRAP = 'Unable connect to "%s:%s": %s'
NOTHING = errors.KafkaConnectionError("Unable to bootstrap from [...]")
REFUSED = (BOOTSTRAP, "one", 9092, ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 9092)"))
WRONG_PASSWORD = (BOOTSTRAP, "two", 9092, errors.SaslAuthenticationFailed("no"))


def test_all_causes_are_told_and_the_remedies_of_the_most_telling() -> None:
    error = named(TWO, [REFUSED, WRONG_PASSWORD], NOTHING)
    assert error.code is ErrorCode.KAFKA_AUTH
    assert error.message == (
        "Kafka at one:9092,two:9092: (one:9092) refused the connection; (two:9092) does not accept the name or the "
        "password of user '' (SCRAM-SHA-512). Check kafka.username, kafka.password_file and kafka.sasl_mechanism"
    )


def test_the_most_telling_is_what_was_reached_last() -> None:
    expired = ssl.SSLCertVerificationError(1, "certificate verify failed")
    expired.verify_code, expired.verify_message = 10, "certificate has expired"
    lines = [
        REFUSED,
        (BOOTSTRAP, "two", 9092, expired),
        WRONG_PASSWORD,
        ("Topic %s is not authorized for this client", "runner.retry"),
    ]
    codes = [ErrorCode.KAFKA_UNREACHABLE, ErrorCode.KAFKA_TLS, ErrorCode.KAFKA_AUTH, ErrorCode.KAFKA_TOPIC]
    assert [named(TWO, lines[: reached + 1], NOTHING).code for reached in range(4)] == codes
    assert [named(TWO, lines[reached::-1], NOTHING).code for reached in range(4)] == codes


def test_a_cause_that_comes_again_and_again_is_told_once() -> None:
    error = named(PLAIN, [REFUSED] * 100, NOTHING)
    assert error.message == "Kafka at one:9092: refused the connection. Check kafka.brokers, and whether it runs"


def test_a_broker_that_advertises_an_address_where_nobody_is() -> None:
    node = ("Unable connect to node with id %s: %s", 3, ConnectionRefusedError(111, "Connect call failed"))
    error = named(PLAIN, [node], errors.NodeNotReadyError("Attempt to send a request"))
    assert error.code is ErrorCode.KAFKA_UNREACHABLE
    assert "(broker 3, at the address it advertises) refused the connection" in error.message


def test_what_was_overcome_is_forgotten() -> None:
    with CauseCollector(PLAIN) as causes:
        logging.getLogger("aiokafka").error(*REFUSED)
        logging.getLogger("aiokafka.cluster").error("Topic %s not found in cluster metadata", "runner.retry")
        causes.forget()
        error = causes.as_error(errors.RequestTimedOutError())
    assert error.message == "Kafka at one:9092: did not answer in time. Check kafka.brokers, and whether it runs"


def test_nothing_is_heard_after_the_end() -> None:
    with CauseCollector(PLAIN) as causes:
        pass
    logging.getLogger("aiokafka").error(*REFUSED)
    assert "refused" not in causes.as_error(NOTHING).message


def test_lines_about_no_error_are_no_causes() -> None:
    lines = [("Sending username and password in the clear",), ("Unable to update metadata from %s", [1])]
    assert named(PLAIN, [*lines, REFUSED], NOTHING).message.startswith("Kafka at one:9092: refused the connection. ")
    assert "cannot be used: KafkaConnectionError: Unable to bootstrap" in named(PLAIN, lines, NOTHING).message


def test_being_late_is_told_beside_what_was_heard() -> None:
    error = named(TWO, [REFUSED], trio.TooSlowError(), late_after_seconds=5.0)
    assert error.code is ErrorCode.KAFKA_UNREACHABLE
    assert "(one:9092) refused the connection; did not answer within 5 s. Check kafka.brokers" in error.message
    alone = named(PLAIN, [], trio.TooSlowError(), late_after_seconds=5.0)
    assert alone.message == "Kafka at one:9092: did not answer within 5 s. Check kafka.brokers, and whether it runs"


def test_waiting_for_a_topic_in_vain_is_about_the_topic() -> None:
    line = ("Topic %s not found in cluster metadata", "runner.retry")
    for error in (
        named(PLAIN, [line] * 3, trio.TooSlowError(), late_after_seconds=5.0),
        named(PLAIN, [line] * 3, errors.UnknownTopicOrPartitionError()),
    ):
        assert error.code is ErrorCode.KAFKA_TOPIC
        assert error.message == (
            "Kafka at one:9092: has no topic 'runner.retry', and does not create it. "
            "Create it, or correct kafka.retry_topic"
        )


def test_a_broker_that_goes_while_a_topic_is_waited_for_is_not_about_the_topic() -> None:
    """That is what aiokafka raises, UnknownTopicOrPartitionError, whatever kept it from the metadata."""
    error = named(PLAIN, [REFUSED], errors.UnknownTopicOrPartitionError())
    assert error.code is ErrorCode.KAFKA_UNREACHABLE


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (
            errors.NotEnoughReplicasError(),
            ErrorCode.KAFKA_TOPIC,
            "has too few replicas of topic 'runner.retry' in sync",
        ),
        (errors.NotEnoughReplicasAfterAppendError(), ErrorCode.KAFKA_TOPIC, "too few replicas"),
        (errors.LeaderNotAvailableError(), ErrorCode.KAFKA_TOPIC, "has no leader for topic 'runner.retry'"),
        (errors.RecordListTooLargeError(), ErrorCode.KAFKA_TOPIC, "does not take a record of this size"),
        (errors.ClusterAuthorizationFailedError(), ErrorCode.KAFKA_TOPIC, "does not let this client use topic"),
        (errors.KafkaTimeoutError(), ErrorCode.KAFKA_UNREACHABLE, "did not answer in time"),
        (TimeoutError(), ErrorCode.KAFKA_UNREACHABLE, "did not answer in time"),
        (ConnectionResetError(), ErrorCode.KAFKA_UNREACHABLE, "hung up"),
        (EOFError(), ErrorCode.KAFKA_UNREACHABLE, "hung up"),
        (OSError(113, "No route to host"), ErrorCode.KAFKA_UNREACHABLE, "cannot be used: [Errno 113] No route to host"),
        (socket.gaierror(-3, "Try again"), ErrorCode.KAFKA_UNREACHABLE, "cannot be resolved: Try again"),
        (errors.CorrelationIdError("7"), ErrorCode.KAFKA_UNREACHABLE, "cannot be used: CorrelationIdError: 7"),
        (aio.LibraryCancelledError("start cancelled itself"), ErrorCode.KAFKA_UNREACHABLE, "start cancelled itself"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_what_a_test_broker_does_not_do(error: Exception, code: ErrorCode, words: str) -> None:
    cause = explain(error, PLAIN)
    assert cause.code is code
    assert words in cause.what
    assert cause.remedy


# the door, with the embedded broker


@pytest.fixture
async def loop() -> AsyncIterator[None]:
    async with aio.open_loop():
        yield


@pytest.mark.parametrize("turn", range(4))
async def test_a_broker_that_takes_nobody_leaves_the_other_its_time(
    loop: None, servers: Servers, topic: str, turn: int
) -> None:
    """Which of the two is asked first, aiokafka draws by lot."""
    async with full_backlog() as silent:
        config = KafkaSection(
            brokers=f"{silent},{servers.brokers}",
            retry_topic=topic,
            connect_timeout_seconds=4.0,
            publish_timeout_seconds=4.0,
        )
        with trio.fail_after(PATIENCE_SECONDS):
            await retry.check_broker(config)
            await retry.publish(config, make_event())


async def test_records_of_any_bytes_arrive_as_they_are(loop: None, servers: Servers, topic: str) -> None:
    config = KafkaSection(brokers=servers.brokers, retry_topic="not this one")
    headers = [("ce_id", b"\x00\xff"), ("ce_id", b""), ("\N{SNOWMAN}", b"x")]
    with trio.fail_after(PATIENCE_SECONDS):
        await kafka.send(config, topic, b"\xff\x00", b"\x00" * 1000, headers)
        await kafka.send(config, topic, b"\xff\x00", b"second", [])
        found: list[Record] = []
        async with open_topic(KafkaSection(brokers=servers.brokers, retry_topic=topic)) as reader:
            while len(found) < 2:
                found += await reader.read(wait_seconds=0.1)
    assert [(one.key, one.value, list(one.raw_headers)) for one in found] == [
        (b"\xff\x00", b"\x00" * 1000, headers),
        (b"\xff\x00", b"second", []),
    ]


@pytest.fixture
def freezing_broker() -> Iterator[tuple[str, int]]:
    """A broker that a test may stop: its address and its process."""
    command = [sys.executable, "-m", "trio_runner.embedded.broker", "--tied"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            port = json.loads(process.stdout.readline())["port"]
            yield f"127.0.0.1:{port}", process.pid
        finally:
            process.kill()


async def test_a_broker_that_freezes_between_metadata_and_record(
    loop: None, freezing_broker: tuple[str, int], topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, pid = freezing_broker
    find_topic = kafka._find_topic

    async def find_and_freeze(*arguments: Any) -> None:
        await find_topic(*arguments)
        os.kill(pid, signal.SIGSTOP)
        await trio.to_thread.run_sync(lambda: os.waitid(os.P_PID, pid, os.WSTOPPED))

    monkeypatch.setattr(kafka, "_find_topic", find_and_freeze)
    try:
        for number, door in enumerate(DOORS):
            config = KafkaSection(
                brokers=address,
                # New, so that it is created first, which a line of aiokafka's log calls an error.
                retry_topic=f"{topic}.{number}",
                connect_timeout_seconds=2.0,
                publish_timeout_seconds=10.0,
            )
            with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RunnerError) as caught:
                await door(config)
            assert caught.value.code is ErrorCode.KAFKA_UNREACHABLE
            assert "did not answer" in caught.value.message
            os.kill(pid, signal.SIGCONT)
    finally:
        os.kill(pid, signal.SIGCONT)


class TopicWithoutLeader:
    """As much of a producer as the wait for a topic needs, whose topic nobody leads."""

    def __init__(self) -> None:
        self.client = self.cluster = self

    async def partitions_for(self, _: str) -> set[int]:
        return {0}

    def available_partitions_for_topic(self, _: str) -> set[int]:
        return set()

    async def force_metadata_update(self) -> None:
        pass


async def test_a_topic_that_nobody_leads(loop: None) -> None:
    with pytest.raises(RunnerError) as caught, kafka.named_errors(PLAIN, seconds=0.2) as causes:
        await kafka._find_topic(TopicWithoutLeader(), "runner.retry", causes)
    assert caught.value.code is ErrorCode.KAFKA_TOPIC
    assert caught.value.message.startswith("Kafka at one:9092: has no leader for topic 'runner.retry'. ")


# TLS with peers that do what Apache Kafka does not


async def hang_up(stream: trio.SSLStream[trio.SocketStream]) -> None:
    await stream.do_handshake()
    await stream.transport_stream.aclose()


async def speak_http(stream: trio.SSLStream[trio.SocketStream]) -> None:
    await stream.transport_stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await trio.sleep_forever()


@pytest.mark.parametrize(
    ("behave", "words"),
    [(hang_up, "hung up during the TLS handshake"), (speak_http, "is kafka.brokers a port that speaks TLS?")],
    ids=["hangs up after the handshake", "speaks HTTP"],
)
async def test_a_peer_that_breaks_tls_off(loop: None, tmp_path: Any, behave: Callable[..., Any], words: str) -> None:
    ca = Authority(tmp_path)
    context: ssl.SSLContext = ca.issue("127.0.0.1").server_context()

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await behave(trio.SSLStream(stream, context, server_side=True))

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        address = f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        config = KafkaSection(brokers=address, security_protocol="SSL", ca_file=str(ca.ca_file))
        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RunnerError) as caught:
            await retry.check_broker(config)
        nursery.cancel_scope.cancel()
    assert caught.value.code is ErrorCode.KAFKA_TLS
    assert words in caught.value.message

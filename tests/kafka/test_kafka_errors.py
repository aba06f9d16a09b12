"""The messages for aiokafka's errors; those that a real broker gives by itself are in test_kafka_secure.py."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import pytest
import trio
from aiokafka import errors

from tests.kafka.test_retry import CALLS, make_event
from tests.support.certificates import Authority
from tests.support.harness import PATIENCE_SECONDS, Servers, full_backlog, read_topic
from tests.support.proxy import Breakdown, Way, open_proxy
from trio_runner.base import aio
from trio_runner.config.sections import KafkaSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.kafka import connection
from trio_runner.kafka import retry_event as retry
from trio_runner.kafka.connection import check_broker, named_errors, send
from trio_runner.kafka.errors import CauseCollector, Target, explain
from trio_runner.kafka.record import Record
from trio_runner.kafka.topic import open_topic

RETRY_TOPIC = {"runner.retry": "kafka.retry_topic"}
PLAIN = Target(KafkaSection(brokers="one:9092"), RETRY_TOPIC, "WRITE")
TWO = Target(KafkaSection(brokers="one:9092,two:9092"), RETRY_TOPIC, "WRITE")
MEMBER = Target(PLAIN.config, RETRY_TOPIC | {"runner.commands": "orchestrator.command_topic"}, "READ", "orchestrators")


def named(target: Target, lines: list[tuple[Any, ...]], error: BaseException, **late: float) -> RunnerError:
    causes = CauseCollector(target)
    with causes.collecting():
        for line in lines:
            logging.getLogger("aiokafka").error(*line)
    return causes.as_error(error, **late)


BOOTSTRAP = 'Unable connect to "%s:%s": %s'
NOTHING = errors.KafkaConnectionError("Unable to bootstrap from [...]")
REFUSED = (BOOTSTRAP, "one", 9092, ConnectionRefusedError(111, "Connect call failed ('10.0.0.1', 9092)"))
WRONG_PASSWORD = (BOOTSTRAP, "two", 9092, errors.SaslAuthenticationFailed("no"))


def test_all_causes_are_named_and_the_remedies_of_the_most_specific() -> None:
    error = named(TWO, [REFUSED, WRONG_PASSWORD], NOTHING)
    assert error.code is ErrorCode.KAFKA_AUTH
    assert error.message == (
        "Kafka at one:9092,two:9092: (one:9092) refused the connection; (two:9092) does not accept the name or the "
        "password of user '' (SCRAM-SHA-512). Check kafka.username, kafka.password_file and kafka.sasl_mechanism"
    )


def test_the_most_specific_is_what_was_reached_last() -> None:
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


def test_a_cause_that_comes_again_and_again_is_named_once() -> None:
    error = named(PLAIN, [REFUSED] * 100, NOTHING)
    assert error.message == "Kafka at one:9092: refused the connection. Check kafka.brokers, and whether it runs"


def test_a_broker_that_advertises_an_address_where_nobody_is() -> None:
    node = ("Unable connect to node with id %s: %s", 3, ConnectionRefusedError(111, "Connect call failed"))
    error = named(PLAIN, [node], errors.NodeNotReadyError("Attempt to send a request"))
    assert error.code is ErrorCode.KAFKA_UNREACHABLE
    assert "(broker 3, at the address it advertises) refused the connection" in error.message


def test_what_was_overcome_is_forgotten() -> None:
    causes = CauseCollector(PLAIN)
    with causes.collecting():
        logging.getLogger("aiokafka").error(*REFUSED)
        logging.getLogger("aiokafka.cluster").error("Topic %s not found in cluster metadata", "runner.retry")
        causes.forget()
        error = causes.as_error(errors.RequestTimedOutError())
    assert error.message == "Kafka at one:9092: did not answer in time. Check kafka.brokers, and whether it runs"


def test_only_lines_of_the_call_under_way_are_collected() -> None:
    causes = CauseCollector(PLAIN)
    with causes.collecting():
        logging.getLogger("aiokafka").error(*WRONG_PASSWORD)
    with causes.collecting():
        pass
    logging.getLogger("aiokafka").error(*REFUSED)
    assert named(PLAIN, [], NOTHING).message == causes.as_error(NOTHING).message


def test_lines_about_no_error_are_no_causes() -> None:
    lines = [("Sending username and password in the clear",), ("Unable to update metadata from %s", [1])]
    assert named(PLAIN, [*lines, REFUSED], NOTHING).message.startswith("Kafka at one:9092: refused the connection. ")
    assert "cannot be used: KafkaConnectionError: Unable to bootstrap" in named(PLAIN, lines, NOTHING).message


def test_being_late_is_named_beside_the_collected_causes() -> None:
    error = named(TWO, [REFUSED], trio.TooSlowError(), late_after_seconds=5.0)
    assert error.code is ErrorCode.KAFKA_UNREACHABLE
    assert "(one:9092) refused the connection; did not answer within 5 s. Check kafka.brokers" in error.message
    alone = named(PLAIN, [], trio.TooSlowError(), late_after_seconds=5.0)
    assert alone.message == "Kafka at one:9092: did not answer within 5 s. Check kafka.brokers, and whether it runs"
    attempt = (BOOTSTRAP, "one", 9092, TimeoutError())
    assert named(PLAIN, [attempt], trio.TooSlowError(), late_after_seconds=5.0).message == alone.message


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
    ("error", "message"),
    [
        (
            errors.TopicAuthorizationFailedError("runner.commands"),
            (
                "does not let this client use topic 'runner.commands', or create it. "
                "Grant this client READ on it, or correct orchestrator.command_topic"
            ),
        ),
        (
            errors.TopicAuthorizationFailedError({"runner.retry"}),
            (
                "does not let this client use topic 'runner.retry', or create it. "
                "Grant this client READ on it, or correct kafka.retry_topic"
            ),
        ),
        (
            errors.TopicAuthorizationFailedError(),
            (
                "does not let this client use topic 'runner.retry' or 'runner.commands', or create it. "
                "Grant this client READ on it, or correct kafka.retry_topic or orchestrator.command_topic"
            ),
        ),
        (
            errors.InvalidTopicError("runner.commands"),
            "does not take 'runner.commands' for a topic's name. Correct orchestrator.command_topic",
        ),
    ],
)
def test_an_error_names_its_topic_and_the_key_that_names_the_topic(error: Exception, message: str) -> None:
    assert named(MEMBER, [], error).message == f"Kafka at one:9092: {message}"


def test_a_group_that_this_user_may_not_join_is_named_with_its_key() -> None:
    error = named(MEMBER, [], errors.GroupAuthorizationFailedError("orchestrators"))
    assert error.code is ErrorCode.KAFKA_AUTH
    assert error.message == (
        "Kafka at one:9092: does not let this client read as a member of the consumer group 'orchestrators'. "
        "Grant this client READ on this group, or correct orchestrator.group"
    )


@pytest.mark.parametrize(
    ("error", "code", "message"),
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
def test_what_a_test_broker_does_not_do(error: Exception, code: ErrorCode, message: str) -> None:
    cause = explain(error, PLAIN)
    assert cause.code is code
    assert message in cause.what
    assert cause.remedy


# the connection, with the embedded broker


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
            await check_broker(config)
            await retry.publish(config, make_event())


async def test_records_of_any_bytes_arrive_as_they_are(loop: None, servers: Servers, topic: str) -> None:
    config = KafkaSection(brokers=servers.brokers, retry_topic="not this one")
    headers = [("ce_id", b"\x00\xff"), ("ce_id", b""), ("\N{SNOWMAN}", b"x")]
    with trio.fail_after(PATIENCE_SECONDS):
        await send(config, topic, b"\xff\x00", b"\x00" * 1000, headers)
        await send(config, topic, b"\xff\x00", b"second", [])
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


@contextmanager
def frozen(pid: int) -> Iterator[None]:
    """The process stands still within this block."""
    os.kill(pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, pid, os.WSTOPPED)
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.parametrize("after", [0, 1, 100])
@pytest.mark.parametrize("how", Breakdown)
async def test_a_broker_whose_connections_break_down(
    loop: None, servers: Servers, topic: str, how: Breakdown, after: int
) -> None:
    """Before the first byte, or when so many bytes have come from the broker."""
    host, _, port = servers.brokers.rpartition(":")
    # A broker sends its clients to the address that it gives itself.
    own = host.encode() + struct.pack(">i", int(port))
    named: list[bytes] = []
    for call in CALLS:
        with trio.fail_after(PATIENCE_SECONDS):
            async with open_proxy(
                host, int(port), rewrite=lambda data: data.replace(own, (named or [own])[-1])
            ) as proxy:
                named.append(b"127.0.0.1" + struct.pack(">i", proxy.port))
                if after:
                    proxy.arm(partial(proxy.break_down, how), Way.TO_CLIENT, after=after)
                else:
                    proxy.break_down(how)
                config = KafkaSection(
                    brokers=proxy.address, retry_topic=topic, connect_timeout_seconds=0.5, publish_timeout_seconds=0.5
                )
                with pytest.raises(RunnerError) as caught:
                    await call(config)
        assert caught.value.code is ErrorCode.KAFKA_UNREACHABLE


def call_first(monkeypatch: pytest.MonkeyPatch, moment: str, act: Callable[[], object]) -> None:
    """Before the function of `kafka.connection` that is called `moment` is called for the first time, `act`."""
    function = getattr(connection, moment)
    begun: list[object] = []

    async def act_and_call(*arguments: Any) -> Any:
        if not begun:
            begun.append(act())
        return await function(*arguments)

    monkeypatch.setattr(connection, moment, act_and_call)


async def test_a_broker_that_freezes_between_metadata_and_record(
    loop: None, freezing_broker: tuple[str, int], topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    address, pid = freezing_broker
    for number, call in enumerate(CALLS):
        with monkeypatch.context() as patch, ExitStack() as freeze:
            call_first(patch, "_ask_leader", lambda: freeze.enter_context(frozen(pid)))
            config = KafkaSection(
                brokers=address,
                # New, so that it is created first, which a line of aiokafka's log calls an error.
                retry_topic=f"{topic}.{number}",
                connect_timeout_seconds=2.0,
                publish_timeout_seconds=3.0,
            )
            with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RunnerError) as caught:
                await call(config)
        assert caught.value.code is ErrorCode.KAFKA_UNREACHABLE
        assert "did not answer" in caught.value.message


@pytest.mark.parametrize("moment", ["_bootstrap", "_find_topic", "_ask_leader"])
@pytest.mark.parametrize("brokers", [1, 10])
async def test_a_broker_that_is_away_for_longer_than_one_request_may_take_still_gets_the_record(
    loop: None,
    freezing_broker: tuple[str, int],
    topic: str,
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
    brokers: int,
) -> None:
    """Wherever it is away: `publish_timeout_seconds` is the time for the record, and not that for one request."""
    address, pid = freezing_broker
    config = KafkaSection(
        brokers=",".join([address] * brokers),
        retry_topic=topic,
        connect_timeout_seconds=0.5,
        publish_timeout_seconds=PATIENCE_SECONDS,
    )
    with trio.fail_after(PATIENCE_SECONDS), ExitStack() as freeze:
        away = trio.Event()

        def go_away() -> None:
            freeze.enter_context(frozen(pid))
            away.set()

        call_first(monkeypatch, moment, go_away)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(retry.publish, config, make_event())
            await away.wait()
            await trio.sleep(4 * config.connect_timeout_seconds)
            freeze.close()
    assert await read_topic(address, topic)


@pytest.mark.slow
async def test_by_default_a_broker_may_be_away_for_seven_seconds(
    loop: None, freezing_broker: tuple[str, int], topic: str
) -> None:
    """As long as the failover of a leader takes; connecting may take 5 s."""
    address, pid = freezing_broker
    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as nursery:
            with frozen(pid):
                nursery.start_soon(retry.publish, KafkaSection(brokers=address, retry_topic=topic), make_event())
                await trio.sleep(7.0)
    assert await read_topic(address, topic)


async def test_of_two_calls_at_the_same_time_each_is_given_its_own_cause(loop: None) -> None:
    """Both are under way before either peer misbehaves."""
    connected = {"PLAINTEXT": trio.Event(), "SSL": trio.Event()}
    caught: dict[str, RunnerError] = {}

    async def misbehave(protocol: str, stream: trio.SocketStream) -> None:
        async with stream:
            connected[protocol].set()
            for event in connected.values():
                await event.wait()
            if protocol == "SSL":
                await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async def fail(protocol: Any, address: str) -> None:
        with pytest.raises(RunnerError) as error:
            await retry.publish(KafkaSection(brokers=address, security_protocol=protocol), make_event())
        caught[protocol] = error.value

    with trio.fail_after(PATIENCE_SECONDS):
        async with trio.open_nursery() as peers:
            async with trio.open_nursery() as calls:
                for protocol in connected:
                    serve = partial(trio.serve_tcp, partial(misbehave, protocol), 0, host="127.0.0.1")
                    (listener,) = await peers.start(serve)
                    calls.start_soon(fail, protocol, f"127.0.0.1:{listener.socket.getsockname()[1]}")
            peers.cancel_scope.cancel()
    plain, tls = caught["PLAINTEXT"], caught["SSL"]
    assert (plain.code, tls.code) == (ErrorCode.KAFKA_UNREACHABLE, ErrorCode.KAFKA_TLS)
    assert "hung up" in plain.message
    assert "TLS" not in plain.message
    assert "is kafka.brokers a port that speaks TLS?" in tls.message
    assert "hung up" not in tls.message


async def test_a_line_of_a_background_task_belongs_to_the_client_that_started_the_task(loop: None) -> None:
    mine, other = CauseCollector(PLAIN), CauseCollector(PLAIN)
    log = asyncio.Event()

    async def start() -> asyncio.Task[None]:
        async def background() -> None:
            await log.wait()
            logging.getLogger("aiokafka").error(*REFUSED)

        return asyncio.get_running_loop().create_task(background())

    async def finish(task: asyncio.Task[None]) -> None:
        log.set()
        await task

    with mine.collecting():
        task = await aio.call(start)
    with mine.collecting(), other.collecting():
        await aio.call(finish, task)
    assert "refused the connection" in mine.as_error(NOTHING).message
    assert "refused the connection" not in other.as_error(NOTHING).message


class TopicWithoutLeader:
    """As much of a client as the wait for a topic needs, whose topic nobody leads."""

    def __init__(self) -> None:
        self.cluster = self
        self.unauthorized_topics: set[str] = set()

    async def add_topic(self, _: str) -> None:
        pass

    def partitions_for_topic(self, _: str) -> set[int]:
        return {0}

    def available_partitions_for_topic(self, _: str) -> set[int]:
        return set()

    async def force_metadata_update(self) -> bool:
        return True


async def test_a_topic_that_nobody_leads(loop: None) -> None:
    causes = CauseCollector(PLAIN)
    with pytest.raises(RunnerError) as caught, named_errors(causes, seconds=0.2):
        await connection._find_topic(TopicWithoutLeader(), "runner.retry", causes)
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
    ("behave", "message"),
    [(hang_up, "hung up during the TLS handshake"), (speak_http, "is kafka.brokers a port that speaks TLS?")],
    ids=["hangs up after the handshake", "speaks HTTP"],
)
async def test_a_peer_that_breaks_tls_off(loop: None, tmp_path: Any, behave: Callable[..., Any], message: str) -> None:
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
            await check_broker(config)
        nursery.cancel_scope.cancel()
    assert caught.value.code is ErrorCode.KAFKA_TLS
    assert message in caught.value.message

"""The connection to Apache Kafka itself: which clients it accepts, which not, and how the errors are named.

`tests/support/apache_kafka.sh` starts it for this module, unless TRIO_RUNNER_TEST_KAFKA_DIRECTORY names one that runs.
Skipped where Java or Maven is missing.
"""

from __future__ import annotations

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import confluent_kafka.admin
import msgspec
import psutil
import pytest
import trio

from tests.kafka.test_retry import make_event
from tests.support.harness import PATIENCE_SECONDS, REPOSITORY, free_port, read_topic, until
from trio_runner.base import aio
from trio_runner.config.load import Config
from trio_runner.config.sections import KafkaSection
from trio_runner.database.backlog import GivenUp
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.kafka import connection
from trio_runner.kafka import retry_event as retry
from trio_runner.kafka.connection import check_broker
from trio_runner.kafka.inbox import open_inbox
from trio_runner.kafka.record import Record
from trio_runner.kafka.topic import open_topic
from trio_runner.orchestrator.dead_letters import publish_given_up

pytestmark = pytest.mark.slow

# It exports its names in a way that mypy does not take for it.
admin: Any = confluent_kafka.admin

SCRIPT = REPOSITORY / "tests" / "support" / "apache_kafka.sh"
WRONG_PASSWORD = "this-is-not-it-4711"


@dataclass(frozen=True, kw_only=True)
class ApacheKafka:
    """A node that `apache_kafka.sh` started, and the ways to it."""

    directory: Path
    addresses: dict[str, str]

    def at(self, listener: str, **keys: Any) -> KafkaSection:
        """A section for this listener's address, and nothing else but `keys`."""
        keys.setdefault("brokers", self.addresses[f"TRIO_RUNNER_TEST_KAFKA_{listener.upper()}"])
        return KafkaSection(**keys)

    def tls(self, listener: str = "tls", **keys: Any) -> KafkaSection:
        keys.setdefault("ca_file", self.certificate("ca.pem"))
        return self.at(listener, security_protocol="SSL", **keys)

    def mtls(self, **keys: Any) -> KafkaSection:
        return self.tls(
            "mtls",
            certificate_file=self.certificate("client.example.chain.pem"),
            key_file=self.certificate("client.example.key.pem"),
            **keys,
        )

    def sasl(self, user: str = "runner", mechanism: str = "SCRAM-SHA-512", **keys: Any) -> KafkaSection:
        """As a user, over TLS."""
        keys.setdefault("password_file", str(self.directory / f"{user}.password"))
        keys.setdefault("ca_file", self.certificate("ca.pem"))
        return self.at("sasl_tls", security_protocol="SASL_SSL", username=user, sasl_mechanism=mechanism, **keys)

    def sasl_plaintext(
        self, mechanism: str = "SCRAM-SHA-256", listener: str = "sasl_plain", **keys: Any
    ) -> KafkaSection:
        return self.at(
            listener,
            security_protocol="SASL_PLAINTEXT",
            username="runner",
            sasl_mechanism=mechanism,
            password_file=str(self.directory / "runner.password"),
            **keys,
        )

    def certificate(self, name: str) -> str:
        return str(self.directory / "certificates" / name)

    def secrets(self) -> list[str]:
        """Every password there is, and the wrong one."""
        return [path.read_text() for path in self.directory.glob("*.password")] + [WRONG_PASSWORD]


def start(directory: Path, *properties: str) -> ApacheKafka:
    """Start a node, or skip the test with the script's reason."""
    ended = subprocess.run(
        [SCRIPT, "start", directory, *properties],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if ended.returncode == 75:
        pytest.skip(ended.stdout.strip().rpartition("\n")[2])
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return running(directory)


def running(directory: Path) -> ApacheKafka:
    lines = shlex.split((directory / "addresses.env").read_text())
    return ApacheKafka(directory=directory, addresses=dict(line.split("=", 1) for line in lines))


def stop(directory: Path) -> None:
    subprocess.run([SCRIPT, "stop", directory], timeout=60, check=True)


@pytest.fixture(scope="module")
def apache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApacheKafka]:
    """The node that runs already, or one for this module."""
    if given := os.environ.get("TRIO_RUNNER_TEST_KAFKA_DIRECTORY"):
        yield running(Path(given))
        return
    directory = tmp_path_factory.mktemp("kafka") / "node"
    try:
        yield start(directory)
    finally:
        stop(directory)


@pytest.fixture(scope="module")
def wrong_password(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("password") / "wrong.password"
    path.write_text(WRONG_PASSWORD)
    return str(path)


@pytest.fixture
async def loop() -> Any:
    async with aio.open_loop():
        yield


Way = Callable[[ApacheKafka, str], KafkaSection]


@pytest.mark.parametrize(
    "way",
    [
        pytest.param(lambda apache, topic: apache.at("plain", retry_topic=topic), id="plaintext"),
        pytest.param(lambda apache, topic: apache.tls(retry_topic=topic), id="TLS"),
        pytest.param(lambda apache, topic: apache.mtls(retry_topic=topic), id="mTLS"),
        pytest.param(lambda apache, topic: apache.sasl(retry_topic=topic), id="SCRAM-SHA-512"),
        pytest.param(
            lambda apache, topic: apache.sasl("runner", "SCRAM-SHA-256", retry_topic=topic), id="SCRAM-SHA-256"
        ),
        pytest.param(lambda apache, topic: apache.sasl("runner", "PLAIN", retry_topic=topic), id="PLAIN"),
        pytest.param(lambda apache, topic: apache.sasl_plaintext(retry_topic=topic), id="SCRAM over plaintext"),
        pytest.param(
            lambda apache, topic: apache.sasl_plaintext("PLAIN", retry_topic=topic), id="PLAIN over plaintext"
        ),
    ],
)
async def test_a_client_with_the_right_credentials_is_accepted(
    loop: None, apache: ApacheKafka, topic: str, way: Way, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    config = way(apache, topic)
    event = make_event()
    with trio.fail_after(PATIENCE_SECONDS):
        await check_broker(config)
        await retry.publish(config, event)
        async with open_topic(config) as reader:
            found: list[Record] = []
            while not found or not await reader.at_end():
                found += await reader.read(wait_seconds=0.1)
    # And nothing but the event is there: checking leaves no record behind.
    assert [(record.offset, retry.event_of(record)) for record in found] == [(0, event)]
    assert not [secret for secret in apache.secrets() if secret in caplog.text]


Call = Callable[[KafkaSection], Awaitable[None]]


async def read_something(config: KafkaSection) -> None:
    async with open_topic(config) as reader:
        await reader.read(wait_seconds=0.1)


CALLS: list[Any] = [
    pytest.param(check_broker, id="check_broker"),
    pytest.param(lambda config: retry.publish(config, make_event()), id="publish"),
    pytest.param(read_something, id="open_topic"),
]
WRITING_CALLS = CALLS[:2]


async def refusal(
    apache: ApacheKafka, call: Call, config: KafkaSection, caplog: pytest.LogCaptureFixture
) -> RunnerError:
    """The error with which the call ends; no secret is in it, nor in what lies below it, nor in any log."""
    caplog.set_level(logging.DEBUG)
    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RunnerError) as caught:
        await call(config)
    shown = f"{caught.value} {caught.getrepr(style='long', showlocals=False)} {caught.value.__cause__!r} {caplog.text}"
    assert not [secret for secret in apache.secrets() if secret in shown]
    assert caught.value.message.startswith(f"Kafka at {config.brokers}: ")
    return caught.value


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize(
    ("way", "code", "cause", "remedy"),
    [
        pytest.param(
            lambda apache, _: apache.tls(ca_file=apache.certificate("unknown/ca.pem")),
            ErrorCode.KAFKA_TLS,
            "its certificate is not accepted",
            "set kafka.ca_file",
            id="unknown CA",
        ),
        pytest.param(
            lambda apache, _: apache.tls(ca_file=""),
            ErrorCode.KAFKA_TLS,
            "its certificate is not accepted",
            "set kafka.ca_file",
            id="a CA that the system does not know",
        ),
        pytest.param(
            lambda apache, _: apache.tls("other_name"),
            ErrorCode.KAFKA_TLS,
            "certificate is not valid for '127.0.0.1'",
            "write the host in kafka.brokers as the certificate names it",
            id="wrong name",
        ),
        pytest.param(
            lambda apache, _: apache.tls("expired"),
            ErrorCode.KAFKA_TLS,
            "certificate has expired",
            "let it be renewed",
            id="expired",
        ),
        pytest.param(
            lambda apache, _: apache.tls("mtls"),
            ErrorCode.KAFKA_TLS,
            "wants a client certificate",
            "kafka.certificate_file",
            id="no client certificate",
        ),
        pytest.param(
            lambda apache, _: apache.at("tls"),
            ErrorCode.KAFKA_TLS,
            "speaks TLS, and kafka.security_protocol is PLAINTEXT",
            'Set kafka.security_protocol to "SSL"',
            id="plaintext to a TLS port",
        ),
        pytest.param(
            lambda apache, _: apache.tls("plain"),
            ErrorCode.KAFKA_TLS,
            "hung up during the TLS handshake: it does not speak TLS",
            "Check kafka.security_protocol",
            id="TLS to a plaintext port",
        ),
        pytest.param(
            lambda apache, wrong: apache.sasl(password_file=wrong),
            ErrorCode.KAFKA_AUTH,
            "does not accept the name or the password of user 'runner' (SCRAM-SHA-512)",
            "Check kafka.username, kafka.password_file",
            id="wrong password, SCRAM",
        ),
        pytest.param(
            lambda apache, wrong: apache.sasl("runner", "PLAIN", password_file=wrong),
            ErrorCode.KAFKA_AUTH,
            "does not accept the name or the password of user 'runner' (PLAIN)",
            "Check kafka.username, kafka.password_file",
            id="wrong password, PLAIN",
        ),
        pytest.param(
            lambda apache, wrong: apache.sasl("nobody", password_file=wrong),
            ErrorCode.KAFKA_AUTH,
            "does not accept the name or the password of user 'nobody'",
            "Check kafka.username, kafka.password_file",
            id="unknown user",
        ),
        pytest.param(
            lambda apache, _: apache.sasl_plaintext("SCRAM-SHA-512"),
            ErrorCode.KAFKA_AUTH,
            "has the mechanism SCRAM-SHA-512 not enabled",
            "Set kafka.sasl_mechanism",
            id="mechanism not enabled",
        ),
        pytest.param(
            lambda apache, _: apache.at("sasl_plain"),
            ErrorCode.KAFKA_AUTH,
            "it probably wants a user",
            'Set kafka.security_protocol to "SASL_SSL"',
            id="no user",
        ),
        pytest.param(
            lambda apache, _: apache.sasl_plaintext(listener="plain"),
            ErrorCode.KAFKA_AUTH,
            "takes no user there",
            "write the port for SASL into kafka.brokers",
            id="a user where none is asked for",
        ),
        pytest.param(
            lambda apache, _: apache.at("plain", brokers=f"127.0.0.1:{free_port()}"),
            ErrorCode.KAFKA_UNREACHABLE,
            "refused the connection",
            "Check kafka.brokers",
            id="refused",
        ),
        pytest.param(
            lambda apache, _: apache.at("plain", brokers="kafka.invalid:9092"),
            ErrorCode.KAFKA_UNREACHABLE,
            "has a name that cannot be resolved",
            "Correct kafka.brokers",
            id="name that does not resolve",
        ),
    ],
)
async def test_a_client_that_is_refused_gets_the_cause_and_the_remedy(
    loop: None,
    apache: ApacheKafka,
    wrong_password: str,
    call: Call,
    way: Way,
    code: ErrorCode,
    cause: str,
    remedy: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    error = await refusal(apache, call, way(apache, wrong_password), caplog)
    assert error.code is code
    assert cause in error.message
    assert remedy in error.message


@pytest.mark.parametrize("call", CALLS)
async def test_of_several_brokers_every_cause_is_named_and_the_most_specific_gives_the_code(
    loop: None, apache: ApacheKafka, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    refusing, other = f"127.0.0.1:{free_port()}", apache.tls("expired").brokers
    error = await refusal(apache, call, apache.tls(brokers=f"{refusing},{other}"), caplog)
    assert error.code is ErrorCode.KAFKA_TLS
    assert f"({refusing}) refused the connection" in error.message
    assert f"({other}) its certificate is not accepted: certificate has expired" in error.message


@pytest.mark.parametrize("call", WRITING_CALLS)
async def test_a_broker_that_does_not_serve_does_not_hide_one_that_does(
    loop: None, apache: ApacheKafka, topic: str, call: Call
) -> None:
    brokers = f"127.0.0.1:{free_port()},{apache.at('plain').brokers},kafka.invalid:9092"
    with trio.fail_after(PATIENCE_SECONDS):
        await call(apache.at("plain", brokers=brokers, retry_topic=topic))


# topics


def grant(apache: ApacheKafka, user: str, name: str, operation: str, kind: Any = admin.ResourceType.TOPIC) -> None:
    client = admin.AdminClient({"bootstrap.servers": apache.at("plain").brokers})
    binding = admin.AclBinding(
        kind,
        name,
        admin.ResourcePatternType.LITERAL,
        f"User:{user}",
        "*",
        admin.AclOperation[operation],
        admin.AclPermissionType.ALLOW,
    )
    for future in client.create_acls([binding]).values():
        future.result(PATIENCE_SECONDS)


GIVEN_UP = GivenUp(scenario_id=7, epoch=3, video_path="/v.mp4", failures=3, frames_stored=0, error={})
NOT_AUTHORISED = "does not let user {!r} use topic {!r}, or create it. Grant user {!r} WRITE on it"


@pytest.mark.parametrize("call", WRITING_CALLS)
@pytest.mark.parametrize("created_by", ["plain", ""], ids=["topic", "no topic"])
async def test_a_user_without_rights_is_not_authorised(
    loop: None,
    apache: ApacheKafka,
    topic: str,
    call: Call,
    created_by: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if created_by:
        await check_broker(apache.at(created_by, retry_topic=topic))
    error = await refusal(apache, call, apache.sasl("stranger", retry_topic=topic), caplog)
    assert error.code is ErrorCode.KAFKA_TOPIC
    assert NOT_AUTHORISED.format("stranger", topic, "stranger") in error.message


@pytest.mark.parametrize("call", WRITING_CALLS)
async def test_a_user_that_may_only_read_is_not_authorised(
    loop: None, apache: ApacheKafka, topic: str, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    """A user that may read also sees the topic, so only a check of the right to write finds this out."""
    await check_broker(apache.at("plain", retry_topic=topic))
    grant(apache, "stranger", topic, "READ")
    config = apache.sasl("stranger", retry_topic=topic)
    error = await refusal(apache, call, config, caplog)
    assert error.code is ErrorCode.KAFKA_TOPIC
    assert NOT_AUTHORISED.format("stranger", topic, "stranger") in error.message
    await read_something(config)


async def test_the_right_to_write_is_all_that_a_runner_needs(loop: None, apache: ApacheKafka, topic: str) -> None:
    plain = apache.at("plain", retry_topic=topic)
    await check_broker(plain)
    grant(apache, "writer", topic, "WRITE")
    config = apache.sasl("writer", retry_topic=topic)
    with trio.fail_after(PATIENCE_SECONDS):
        await check_broker(config)
        assert await read_topic(plain.brokers, topic) == []
        await retry.publish(config, make_event())
    assert len(await read_topic(plain.brokers, topic)) == 1


@pytest.mark.parametrize("user", ["writer", "stranger"])
async def test_a_user_that_may_not_read_is_not_authorised(
    loop: None, apache: ApacheKafka, topic: str, user: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Not that there are no events, which is what aiokafka makes of a topic that one may not see."""
    await retry.publish(apache.at("plain", retry_topic=topic), make_event())
    grant(apache, "writer", topic, "WRITE")

    async def read_to_the_end(config: KafkaSection) -> None:
        async with open_topic(config) as reader:
            while not await reader.at_end():
                await reader.read(wait_seconds=0.1)

    error = await refusal(apache, read_to_the_end, apache.sasl(user, retry_topic=topic), caplog)
    assert error.code is ErrorCode.KAFKA_TOPIC
    assert error.message.endswith(f"Grant user {user!r} READ on it, or correct kafka.retry_topic")


@pytest.mark.parametrize("call", WRITING_CALLS)
async def test_a_name_that_no_topic_may_have(
    loop: None, apache: ApacheKafka, call: Call, caplog: pytest.LogCaptureFixture
) -> None:
    config = apache.at("plain", retry_topic="..", connect_timeout_seconds=2.0)
    error = await refusal(apache, call, config, caplog)
    assert error.code is ErrorCode.KAFKA_TOPIC
    assert error.message.endswith("does not take '..' for a topic's name. Correct kafka.retry_topic")


async def test_a_record_for_the_dead_letter_topic_that_is_refused_names_that_topic_and_its_key(
    loop: None, apache: ApacheKafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    def publish(section: KafkaSection) -> Awaitable[None]:
        config = Config().replace(orchestrator={"dead_letter_topic": f"{topic}.other"})
        return publish_given_up(msgspec.structs.replace(config, kafka=section), GIVEN_UP)

    error = await refusal(apache, publish, apache.sasl("stranger", retry_topic=topic), caplog)
    assert error.code is ErrorCode.KAFKA_TOPIC
    assert error.message.endswith(
        f"{NOT_AUTHORISED.format('stranger', f'{topic}.other', 'stranger')}, or correct orchestrator.dead_letter_topic"
    )


async def receive_something(config: KafkaSection, group: str) -> None:
    topics = {config.retry_topic: "kafka.retry_topic", f"{config.retry_topic}.c": "orchestrator.command_topic"}
    async with open_inbox(config, topics, group) as inbox:
        while not await inbox.receive(wait_seconds=0.1, limit=1):
            pass


async def test_a_command_topic_that_may_not_be_read_is_named_with_its_key(
    loop: None, apache: ApacheKafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (topic, f"{topic}.c"):
        await check_broker(apache.at("plain", retry_topic=name))
    grant(apache, "stranger", topic, "READ")
    grant(apache, "stranger", f"{topic}.c", "DESCRIBE")
    grant(apache, "stranger", topic, "READ", admin.ResourceType.GROUP)
    receive = partial(receive_something, group=topic)
    error = await refusal(apache, receive, apache.sasl("stranger", retry_topic=topic), caplog)
    assert error.code is ErrorCode.KAFKA_TOPIC
    assert error.message.endswith(
        f"does not let user 'stranger' use topic '{topic}.c', or create it. "
        "Grant user 'stranger' READ on it, or correct orchestrator.command_topic"
    )


async def test_a_group_that_may_not_be_joined_is_named_with_its_key(
    loop: None, apache: ApacheKafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    for name in (topic, f"{topic}.c"):
        await check_broker(apache.at("plain", retry_topic=name))
        grant(apache, "stranger", name, "READ")
    receive = partial(receive_something, group=topic)
    error = await refusal(apache, receive, apache.sasl("stranger", retry_topic=topic), caplog)
    assert error.code is ErrorCode.KAFKA_AUTH
    assert error.message.endswith(
        f"does not let user 'stranger' read as a member of the consumer group {topic!r}. "
        "Grant user 'stranger' READ on this group, or correct orchestrator.group"
    )


@pytest.mark.parametrize("call", WRITING_CALLS)
async def test_a_broker_that_freezes_after_it_has_created_the_topic(
    loop: None,
    apache: ApacheKafka,
    topic: str,
    call: Call,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """That the topic was not there at first is logged like an error, and is none."""
    process = psutil.Process(int((apache.directory / "pid").read_text()))
    find_topic = connection._find_topic

    async def is_stopped() -> bool:
        return process.status() == psutil.STATUS_STOPPED

    async def find_and_freeze(*arguments: Any) -> list[int]:
        partitions = await find_topic(*arguments)
        process.suspend()
        await until(is_stopped, described="the broker is stopped")
        return partitions

    monkeypatch.setattr(connection, "_find_topic", find_and_freeze)
    try:
        error = await refusal(apache, call, apache.at("plain", retry_topic=topic, connect_timeout_seconds=3.0), caplog)
    finally:
        process.resume()
    assert error.code is ErrorCode.KAFKA_UNREACHABLE
    assert "did not answer" in error.message


async def test_a_topic_that_takes_no_record_of_this_size(
    loop: None, apache: ApacheKafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = apache.at("plain", retry_topic=topic)
    await check_broker(config)
    limit = admin.ConfigEntry("max.message.bytes", "100", incremental_operation=admin.AlterConfigOpType.SET)
    resource = admin.ConfigResource(admin.ConfigResource.Type.TOPIC, topic, incremental_configs=[limit])
    client = admin.AdminClient({"bootstrap.servers": config.brokers})
    for future in client.incremental_alter_configs([resource]).values():
        future.result(PATIENCE_SECONDS)
    error = await refusal(apache, lambda section: retry.publish(section, make_event()), config, caplog)
    assert error.code is ErrorCode.KAFKA_TOPIC
    assert f"does not take a record of this size on topic {topic!r}" in error.message
    assert "max.message.bytes" in error.message


@pytest.fixture
def strict_apache(apache: ApacheKafka, tmp_path: Path) -> Iterator[ApacheKafka]:
    """One that creates no topic by itself."""
    directory = tmp_path / "strict"
    try:
        yield start(directory, "auto.create.topics.enable=false")
    finally:
        stop(directory)


async def test_a_topic_that_is_not_there_and_is_not_created(
    loop: None, strict_apache: ApacheKafka, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    config = strict_apache.at("plain", retry_topic=topic, connect_timeout_seconds=3.0)
    for call in (check_broker, lambda section: retry.publish(section, make_event())):
        error = await refusal(strict_apache, call, config, caplog)
        assert error.code is ErrorCode.KAFKA_TOPIC
        remedy = "Create it, or correct kafka.retry_topic"
        assert error.message == f"Kafka at {config.brokers}: has no topic {topic!r}, and does not create it. {remedy}"
    await read_something(config)

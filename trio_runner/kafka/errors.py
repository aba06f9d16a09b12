"""Explains aiokafka's errors and log lines: a code of ours, the cause in words, and the remedy."""

from __future__ import annotations

import logging
import socket
import ssl
from contextlib import contextmanager
from contextvars import ContextVar
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, Literal, NamedTuple

from aiokafka import errors
from aiokafka.errors import KafkaError

from trio_runner.config.tls import tls_problem
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.kafka.produce_errors import RecordRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trio_runner.config.sections import KafkaSection

MOST_TELLING_FIRST: Final = (
    ErrorCode.KAFKA_TOPIC,
    ErrorCode.KAFKA_AUTH,
    ErrorCode.KAFKA_TLS,
    ErrorCode.KAFKA_UNREACHABLE,
)
TOPIC_LINES: Final = MappingProxyType(
    {
        "Topic %s not found in cluster metadata": errors.UnknownTopicOrPartitionError,
        "Topic %s is not authorized for this client": errors.TopicAuthorizationFailedError,
        "'%s' is not a valid topic name": errors.InvalidTopicError,
        "Topic %s is not available during auto-create initialization": errors.LeaderNotAvailableError,
    }
)
"""Log lines of `aiokafka.cluster` that stand for an error. aiokafka raises that error late, or never."""

SAYS_NOTHING: Final = (errors.KafkaConnectionError, errors.NodeNotReadyError, errors.UnknownTopicOrPartitionError)
"""aiokafka raises these whichever of the logged causes has led to them."""

TLS_ALERT: Final = 0x1503
"""A TLS alert's first two bytes (RFC 8446 §5.1). A client that takes them for Kafka's length waits for 350 MB."""

NO_ANSWER: Final = "did not answer in time"


class Target(NamedTuple):
    """The brokers, topics and group that a client uses, with the config keys by which an error names them."""

    config: KafkaSection
    topics: Mapping[str, str]
    """The config key that names each topic, by the topic's name."""
    access: Literal["READ", "WRITE"]
    """The right that this client needs on the topics."""
    group: str = ""
    """The consumer group, named by `orchestrator.group`; empty where the client is in none."""


class Cause(NamedTuple):
    """One reason: `what` the broker does, and the `remedy`, a sentence; empty where `what` says it already."""

    code: ErrorCode
    what: str
    remedy: str


_calling: Final[ContextVar[CauseCollector | None]] = ContextVar("calling", default=None)
"""The collector of the call under way. asyncio tasks that a client starts inherit it, so their log lines carry it."""


class CauseCollector(logging.Handler):
    """Collects causes from aiokafka's log: aiokafka raises one error for nearly every reason and only logs the reason.

    One collector serves one client of ours. Within `collecting` it keeps the lines that this client's calls and
    background tasks log, and no line of another client in the process.
    """

    def __init__(self, target: Target) -> None:
        """Start without causes; `target` is what the client was asked to use."""
        super().__init__(logging.WARNING)
        self.target = target
        self._causes: dict[Cause, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the error that the log line is about, if there is one and this client logged it."""
        error = _error_of(record)
        if error is not None and _calling.get() is self:
            # The metadata request is the first one after the broker has said which versions it speaks.
            connected = str(record.msg).startswith("Unable to request metadata")
            self.add(error, place=self._place(record), connected=connected)

    def add(self, error: BaseException, *, place: str = "", connected: bool = False) -> None:
        """Keep the cause that `error` stands for."""
        cause = explain(error, self.target, connected=connected)
        self._causes[cause._replace(what=f"{place}{cause.what}")] = None

    def forget(self) -> None:
        """Drop all causes: they were overcome, because another broker answered or the topic has been created."""
        self._causes.clear()

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Forget the causes of the call before, and collect those of the call that this block makes."""
        self.forget()
        token = _calling.set(self)
        logging.getLogger("aiokafka").addHandler(self)
        try:
            yield
        finally:
            logging.getLogger("aiokafka").removeHandler(self)
            _calling.reset(token)

    @property
    def topic_at_fault(self) -> bool:
        """Whether a broker has answered that something is wrong with a topic."""
        return any(cause.code is ErrorCode.KAFKA_TOPIC for cause in self._causes)

    @property
    def unanswered(self) -> bool:
        """Whether a broker did not answer in time, so that it may answer later."""
        return any(cause.what.endswith(NO_ANSWER) for cause in self._causes)

    def as_error(self, error: BaseException, *, late_after_seconds: float | None = None) -> RunnerError:
        """All collected causes, and `error`, as one error: with the code of the most telling cause."""
        causes = list(self._causes)
        if late_after_seconds is not None:
            if not self.topic_at_fault:
                causes = [cause for cause in causes if cause.what != NO_ANSWER]
                remedy = "" if causes else explain(TimeoutError(), self.target).remedy
                late = f"did not answer within {late_after_seconds:g} s"
                causes.append(Cause(ErrorCode.KAFKA_UNREACHABLE, late, remedy))
        elif not causes or not isinstance(error, SAYS_NOTHING):
            causes.append(explain(error, self.target))
        code = min((cause.code for cause in causes), key=MOST_TELLING_FIRST.index)
        whats = dict.fromkeys(cause.what for cause in causes)
        remedies = dict.fromkeys(cause.remedy for cause in causes if cause.code is code and cause.remedy)
        return RunnerError(code, ". ".join([f"Kafka at {self.target.config.brokers}: {'; '.join(whats)}", *remedies]))

    def _place(self, record: logging.LogRecord) -> str:
        match record.args:
            case (str(host), int(port), BaseException()) if "," in self.target.config.brokers:
                return f"({host}:{port}) "
            case (int(node), BaseException()):
                return f"(broker {node}, at the address it advertises) "
            case _:
                return ""


def _error_of(record: logging.LogRecord) -> BaseException | None:
    arguments = record.args if isinstance(record.args, tuple) else ()
    known: type[KafkaError] | None = TOPIC_LINES.get(str(record.msg))
    if known is not None:
        error: BaseException = known(*arguments)
        return error
    for argument in arguments:
        if isinstance(argument, type) and issubclass(argument, KafkaError):
            return argument()  # type: ignore[no-any-return]  # aiokafka has no types
        if isinstance(argument, BaseException):
            return argument
    return record.exc_info[1] if record.exc_info else None


def explain(error: BaseException, target: Target, *, connected: bool = False) -> Cause:
    """The cause that `error` stands for.

    Args:
        error: What aiokafka raised or logged, or what lies below it.
        target: What the client was asked to use.
        connected: Whether the broker had answered on this connection before.
    """
    if isinstance(error, errors.KafkaConnectionError) and error.__cause__ is not None:
        error = error.__cause__
    for explained in (_tls, _authentication, _topic):
        if cause := explained(error, target, connected=connected):
            return cause
    return _network(error)


def _tls(error: BaseException, target: Target, *, connected: bool) -> Cause | None:
    config, what, remedy = target.config, "", ""
    ours = config.security_protocol in ("SSL", "SASL_SSL")
    match error:
        case ssl.SSLError(reason=str(reason)) if "ALERT" in reason and not config.certificate_file:
            what = f"wants a client certificate ({reason.lower().replace('_', ' ')})"
            remedy = "Set kafka.certificate_file and kafka.key_file to one of an authority that it trusts"
        case ssl.SSLError() if problem := tls_problem(error, "kafka", address="brokers"):
            what = problem
        case EOFError() if not ours and getattr(error, "expected", 0) >> 16 == TLS_ALERT:
            what = f"speaks TLS, and kafka.security_protocol is {config.security_protocol}"
            remedy = 'Set kafka.security_protocol to "SSL" or "SASL_SSL"'
        case ssl.SSLError() | EOFError() | ConnectionResetError() | BrokenPipeError() if ours and not connected:
            what = "hung up during the TLS handshake: it does not speak TLS there, or wants a client certificate"
            remedy = "Check kafka.security_protocol, the port in kafka.brokers, and kafka.certificate_file"
    return Cause(ErrorCode.KAFKA_TLS, what, remedy) if what else None


def _authentication(error: BaseException, target: Target, *, connected: bool) -> Cause | None:
    config, what, remedy = target.config, "", ""
    match error:
        case errors.SaslAuthenticationFailed():
            what = f"does not accept the name or the password of user {config.username!r} ({config.sasl_mechanism})"
            remedy = "Check kafka.username, kafka.password_file and kafka.sasl_mechanism"
        case errors.UnsupportedSaslMechanismError():
            what = f"has the mechanism {config.sasl_mechanism} not enabled"
            remedy = "Set kafka.sasl_mechanism to one that it has"
        case errors.IllegalSaslStateError():
            what = f"takes no user there, and kafka.security_protocol is {config.security_protocol}"
            remedy = 'Set kafka.security_protocol to "SSL", or write the port for SASL into kafka.brokers'
        case EOFError() | ConnectionError() if connected and not config.security_protocol.startswith("SASL"):
            what = "answered, and hung up at the first request: it probably wants a user"
            remedy = 'Set kafka.security_protocol to "SASL_SSL", kafka.username and kafka.password_file'
        case errors.GroupAuthorizationFailedError():
            who = _user(config)
            what = f"does not let {who} read as a member of the consumer group {target.group!r}"
            remedy = f"Grant {who} READ on this group, or correct orchestrator.group"
    return Cause(ErrorCode.KAFKA_AUTH, what, remedy) if what else None


def _topic(error: BaseException, target: Target, *, connected: bool) -> Cause | None:  # noqa: ARG001 - one of three
    what = remedy = ""
    names = _topics_of(error, target)
    topic = f"topic {' or '.join(map(repr, names))}"
    keys = " or ".join(target.topics[name] for name in names)
    match error:
        case errors.TopicAuthorizationFailedError() | errors.ClusterAuthorizationFailedError():
            who = _user(target.config)
            what = f"does not let {who} use {topic}, or create it"
            remedy = f"Grant {who} {target.access} on it, or correct {keys}"
        case errors.UnknownTopicOrPartitionError():
            what = f"has no {topic}, and does not create it"
            remedy = f"Create it, or correct {keys}"
        case errors.InvalidTopicError():
            what = f"does not take {' or '.join(map(repr, names))} for a topic's name"
            remedy = f"Correct {keys}"
        case errors.MessageSizeTooLargeError() | errors.RecordListTooLargeError():
            what = f"does not take a record of this size on {topic}"
            remedy = "Raise the topic's max.message.bytes to 32768 or more"
        case errors.LeaderNotAvailableError() | errors.NotLeaderForPartitionError():
            what = f"has no leader for {topic}"
            remedy = "See to the brokers that hold it"
        case errors.NotEnoughReplicasError() | errors.NotEnoughReplicasAfterAppendError():
            what = f"has too few replicas of {topic} in sync"
            remedy = "See to the brokers that hold it; its min.insync.replicas says how many are needed"
        case RecordRefusedError(answer=answer):
            what = f"refused the record for {topic} with error {answer}"
            remedy = "See the broker's log, and the topic's configuration"
    return Cause(ErrorCode.KAFKA_TOPIC, what, remedy) if what else None


def _topics_of(error: BaseException, target: Target) -> list[str]:
    """Those of the target's topics that `error` names; all of them where it names none."""
    named: set[object] = set()
    for argument in error.args:
        several = isinstance(argument, set | frozenset | list | tuple)
        named.update(map(str, argument) if several else [argument] if isinstance(argument, str) else [])
    return [topic for topic in target.topics if topic in named] or list(target.topics)


def _user(config: KafkaSection) -> str:
    return f"user {config.username!r}" if config.security_protocol.startswith("SASL") else "this client"


def _network(error: BaseException) -> Cause:
    remedy = "Check kafka.brokers, and whether it runs"
    match error:
        case ConnectionRefusedError():
            what = "refused the connection"
        case socket.gaierror():
            what = f"has a name that cannot be resolved: {error.strerror}"
            remedy = "Correct kafka.brokers"
        case TimeoutError() | errors.RequestTimedOutError() | errors.KafkaTimeoutError():
            what = NO_ANSWER
        case EOFError() | ConnectionError():
            what = "hung up"
            remedy = "Check whether kafka.brokers names a Kafka broker"
        case _:
            what = f"cannot be used: {error or type(error).__name__}"
    return Cause(ErrorCode.KAFKA_UNREACHABLE, what, remedy)

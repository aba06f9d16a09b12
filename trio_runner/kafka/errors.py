"""What aiokafka's errors and log lines mean: a code of ours, the cause in words, and the remedy."""

from __future__ import annotations

import logging
import socket
import ssl
from types import MappingProxyType
from typing import TYPE_CHECKING, Final, NamedTuple, Self

from aiokafka import errors
from aiokafka.errors import KafkaError

from trio_runner.config.tls import tls_problem
from trio_runner.errors import ErrorCode, RunnerError

if TYPE_CHECKING:
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
"""Lines of `aiokafka.cluster` that stand for an error which is not raised, or only when the time is up."""

SAYS_NOTHING: Final = (errors.KafkaConnectionError, errors.NodeNotReadyError, errors.UnknownTopicOrPartitionError)
"""What is raised when any of the causes that were logged has led to it."""

TLS_ALERT: Final = 0x1503
"""A TLS alert's first two bytes (RFC 8446 §5.1): who takes them for Kafka's length waits for 350 MB."""


class Cause(NamedTuple):
    """One reason: `what` the broker does, and the `remedy`, a sentence; empty where `what` says it already."""

    code: ErrorCode
    what: str
    remedy: str


class CauseCollector(logging.Handler):
    """Listens to aiokafka, which raises one error for nearly every reason and tells the reason to its logger only."""

    def __init__(self, config: KafkaSection) -> None:
        """Collect between `__enter__` and `__exit__`; `config` says what was asked for."""
        super().__init__(logging.WARNING)
        self._config = config
        self._causes: dict[Cause, None] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Keep what the line is about, if it is about an error."""
        error = _error_of(record)
        if error is not None:
            # The first request, which follows once the broker has said which versions it speaks.
            connected = str(record.msg).startswith("Unable to request metadata")
            self.hear(error, place=self._place(record), connected=connected)

    def hear(self, error: BaseException, *, place: str = "", connected: bool = False) -> None:
        """Keep what `error` stands for."""
        cause = explain(error, self._config, connected=connected)
        self._causes[cause._replace(what=f"{place}{cause.what}")] = None

    def forget(self) -> None:
        """What went wrong before did not matter: another broker answered, the topic has been created."""
        self._causes.clear()

    def as_error(self, error: BaseException, *, late_after_seconds: float | None = None) -> RunnerError:
        """Everything that was heard, and `error`, as one error: with the code of the most telling cause."""
        causes = list(self._causes)
        if late_after_seconds is not None:
            if not any(cause.code is ErrorCode.KAFKA_TOPIC for cause in causes):
                remedy = "" if causes else explain(TimeoutError(), self._config).remedy
                late = f"did not answer within {late_after_seconds:g} s"
                causes.append(Cause(ErrorCode.KAFKA_UNREACHABLE, late, remedy))
        elif not causes or not isinstance(error, SAYS_NOTHING):
            causes.append(explain(error, self._config))
        code = min((cause.code for cause in causes), key=MOST_TELLING_FIRST.index)
        whats = dict.fromkeys(cause.what for cause in causes)
        remedies = dict.fromkeys(cause.remedy for cause in causes if cause.code is code and cause.remedy)
        return RunnerError(code, ". ".join([f"Kafka at {self._config.brokers}: {'; '.join(whats)}", *remedies]))

    def _place(self, record: logging.LogRecord) -> str:
        match record.args:
            case (str(host), int(port), BaseException()) if "," in self._config.brokers:
                return f"({host}:{port}) "
            case (int(node), BaseException()):
                return f"(broker {node}, at the address it advertises) "
            case _:
                return ""

    def __enter__(self) -> Self:
        logging.getLogger("aiokafka").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("aiokafka").removeHandler(self)


def _error_of(record: logging.LogRecord) -> BaseException | None:
    arguments = record.args if isinstance(record.args, tuple) else ()
    for said in (TOPIC_LINES.get(str(record.msg)), *arguments):
        error = said() if isinstance(said, type) and issubclass(said, KafkaError) else said
        if isinstance(error, BaseException):
            return error
    return record.exc_info[1] if record.exc_info else None


def explain(error: BaseException, config: KafkaSection, *, connected: bool = False) -> Cause:
    """The cause that `error` stands for.

    Args:
        error: What aiokafka raised or logged, or what lies below it.
        config: What was asked for.
        connected: The broker had answered on this connection before.
    """
    if isinstance(error, errors.KafkaConnectionError) and error.__cause__ is not None:
        error = error.__cause__
    for explained in (_tls, _authentication, _topic):
        if cause := explained(error, config, connected=connected):
            return cause
    return _network(error)


def _tls(error: BaseException, config: KafkaSection, *, connected: bool) -> Cause | None:
    what = remedy = ""
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


def _authentication(error: BaseException, config: KafkaSection, *, connected: bool) -> Cause | None:
    what = remedy = ""
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
    return Cause(ErrorCode.KAFKA_AUTH, what, remedy) if what else None


def _topic(error: BaseException, config: KafkaSection, *, connected: bool) -> Cause | None:  # noqa: ARG001 - one of three
    what = remedy = ""
    topic = f"topic {config.retry_topic!r}"
    who = f"user {config.username!r}" if config.security_protocol.startswith("SASL") else "this client"
    match error:
        case errors.TopicAuthorizationFailedError() | errors.ClusterAuthorizationFailedError():
            what = f"does not let {who} use {topic}, or create it"
            remedy = f"Grant {who} WRITE on it (READ for `trio-runner events`), or correct kafka.retry_topic"
        case errors.UnknownTopicOrPartitionError():
            what = f"has no {topic}, and does not create it"
            remedy = "Create it, or correct kafka.retry_topic"
        case errors.InvalidTopicError():
            what = f"does not take {config.retry_topic!r} for a topic's name"
            remedy = "Correct kafka.retry_topic"
        case errors.MessageSizeTooLargeError() | errors.RecordListTooLargeError():
            what = f"does not take a record of this size on {topic}"
            remedy = "Raise the topic's max.message.bytes to 32768 or more"
        case errors.LeaderNotAvailableError():
            what = f"has no leader for {topic}"
            remedy = "See to the brokers that hold it"
        case errors.NotEnoughReplicasError() | errors.NotEnoughReplicasAfterAppendError():
            what = f"has too few replicas of {topic} in sync"
            remedy = "See to the brokers that hold it; its min.insync.replicas says how many are needed"
    return Cause(ErrorCode.KAFKA_TOPIC, what, remedy) if what else None


def _network(error: BaseException) -> Cause:
    remedy = "Check kafka.brokers, and whether it runs"
    match error:
        case ConnectionRefusedError():
            what = "refused the connection"
        case socket.gaierror():
            what = f"has a name that cannot be resolved: {error.strerror}"
            remedy = "Correct kafka.brokers"
        case TimeoutError() | errors.RequestTimedOutError() | errors.KafkaTimeoutError():
            what = "did not answer in time"
        case EOFError() | ConnectionError():
            what = "hung up"
            remedy = "Check whether kafka.brokers names a Kafka broker"
        case _:
            what = f"cannot be used: {error or type(error).__name__}"
    return Cause(ErrorCode.KAFKA_UNREACHABLE, what, remedy)

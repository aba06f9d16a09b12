"""The retry event: its content, how it is published, and how a record is recognised as one."""

from __future__ import annotations

import os
import re
import socket
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

import msgspec
from msgspec import Meta

from trio_runner import __version__
from trio_runner.base.strict_json import refuse_repeated_keys
from trio_runner.errors import ErrorClass, ErrorCode, Stage
from trio_runner.kafka.connection import send
from trio_runner.kafka.record import BadEventError
from trio_runner.model import Claim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.config.sections import KafkaSection
    from trio_runner.kafka.record import Record
    from trio_runner.model import Failure, Progress

EVENT_TYPE: Final = "trio-runner.died.v1"
EVENT_SCHEMA: Final = "urn:trio-runner:retry-event:1"
MAX_EVENT_BYTES: Final = 16 * 1024
_NAMESPACE: Final = uuid.UUID("6d1f2f0e-5a53-5d0a-9a5e-7c1f0d6f4b21")
_INVOCATION_ID: Final = r"^[0-9a-f]{32}\Z"

# `decode` checks these; they are the same in `schemas/retry_event.json`. A line end is the only control character that
# a text may have: any other would reach a terminal, or PostgreSQL would refuse it.
_PRINTABLE: Final = r"^[^\x00-\x09\x0b-\x1f\x7f-\x9f]*\Z"
Text = Annotated[str, Meta(max_length=2048, pattern=_PRINTABLE)]
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=_PRINTABLE)]
Count = Annotated[int, Meta(ge=0, le=2**63 - 1)]


class EventCause(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An earlier error that led to the error."""

    type: Name
    message: Text


class EventError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """The error: its code from the closed list, its class, and details for people; empty fields are left out."""

    code: ErrorCode
    error_class: ErrorClass = msgspec.field(name="class")
    type: Name
    message: Text
    stack: Annotated[tuple[Text, ...], Meta(min_length=1, max_length=20)] = ()
    causes: Annotated[tuple[EventCause, ...], Meta(min_length=1, max_length=4)] = ()
    suppressed: Annotated[int, Meta(ge=1, le=2**63 - 1)] = 0
    retry_after_seconds: Annotated[float, Meta(ge=0, le=300)] | None = None


class EventProgress(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How far the attempt had come. This is a hint; the ledger decides."""

    next_frame: Count
    frames_stored: Count
    declared_frames: Count | None


class RetryEvent(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One death of one attempt at one scenario; `epoch` is 0 if the runner died before its claim."""

    scenario_id: Annotated[int, Meta(ge=1, le=2**63 - 1)]
    runner_id: Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._:@-]+\Z")]
    epoch: Count
    reason: Annotated[str, Meta(min_length=1, max_length=512, pattern=_PRINTABLE)]
    timestamp: Annotated[str, Meta(pattern=r"^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\.[0-9]{3}Z\Z")]
    stage: Stage
    error: EventError
    progress: EventProgress
    reporter: Name
    instance_id: Annotated[str, Meta(pattern=r"^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z")]
    invocation_id: Annotated[str, Meta(pattern=_INVOCATION_ID)] | None
    host: Annotated[str, Meta(max_length=255, pattern=_PRINTABLE)]
    pid: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None
    uptime_seconds: Annotated[float, Meta(ge=0)] | None
    version: Annotated[str, Meta(min_length=1, max_length=100, pattern=_PRINTABLE)]

    @property
    def claim(self) -> Claim:
        """The claim of the attempt that died, with the progress that it had made."""
        return Claim(
            scenario_id=self.scenario_id,
            epoch=self.epoch,
            instance_id=self.instance_id,
            next_frame=self.progress.next_frame,
            frames_stored=self.progress.frames_stored,
        )

    @property
    def id(self) -> str:
        """The id of this death: every report of it carries the same one, whoever sends the report and however often."""
        return event_id(self.scenario_id, self.epoch, self.instance_id)


def event_id(scenario_id: int, epoch: int, instance_id: str) -> str:
    """UUIDv5 of scenario and epoch; of scenario and instance if there was no epoch yet."""
    return str(uuid.uuid5(_NAMESPACE, f"{scenario_id}:{epoch}" if epoch else f"{scenario_id}:unclaimed:{instance_id}"))


def build_event(
    failure: Failure,
    *,
    claim: Claim,
    runner_id: str,
    progress: Progress,
    reporter: str,
    uptime_seconds: float | None = None,
) -> RetryEvent:
    """The event about the death of the attempt `claim`.

    Args:
        failure: Why it died.
        claim: The attempt.
        runner_id: The runner that made the attempt.
        progress: How far the attempt had come.
        reporter: Who reports the death: `runner`, `takeover`, `stop-post`, `reaper` or `orchestrator`.
        uptime_seconds: How long the process had run, by its own clock.
    """
    own = reporter in {"runner", "stop-post"}
    invocation_id = os.environ.get("INVOCATION_ID", "") if own else ""
    return RetryEvent(
        scenario_id=claim.scenario_id,
        runner_id=runner_id,
        epoch=claim.epoch,
        reason=f"{failure.code}: {failure.message}"[:512].replace("\n", " "),
        timestamp=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        stage=failure.code.stage,
        error=EventError(
            code=failure.code,
            error_class=failure.code.error_class,
            type=failure.type,
            message=failure.message,
            stack=failure.stack,
            causes=tuple(EventCause(type=kind, message=message) for kind, message in failure.causes),
            suppressed=failure.suppressed,
            retry_after_seconds=failure.retry_after_seconds,
        ),
        progress=EventProgress(
            next_frame=progress.next_frame,
            frames_stored=progress.frames_stored_before + progress.frames_stored,
            declared_frames=progress.declared_frames,
        ),
        reporter=reporter,
        instance_id=claim.instance_id,
        invocation_id=invocation_id if re.search(_INVOCATION_ID, invocation_id) else None,
        host=socket.gethostname(),
        pid=os.getpid() if reporter == "runner" else None,
        uptime_seconds=uptime_seconds,
        version=__version__,
    )


def encode(event: RetryEvent) -> bytes:
    """JSON of at most 16 KiB. A longer event loses its stack, then its causes, then the end of its message."""
    body = msgspec.json.encode(event)
    for shorter in ({"stack": ()}, {"causes": ()}, {"message": event.error.message[:512]}):
        if len(body) <= MAX_EVENT_BYTES:
            break
        event = msgspec.structs.replace(event, error=msgspec.structs.replace(event.error, **shorter))
        body = msgspec.json.encode(event)
    return body


def headers(event: RetryEvent) -> list[tuple[str, bytes]]:
    """CloudEvents 1.0 in Kafka's binary mode: consumers can route by these headers without reading the body."""
    attributes = {
        "ce_specversion": "1.0",
        "ce_id": event.id,
        "ce_source": f"/trio-runner/scenarios/{event.scenario_id}",
        "ce_type": EVENT_TYPE,
        "ce_subject": str(event.scenario_id),
        "ce_time": event.timestamp,
        "ce_dataschema": EVENT_SCHEMA,
        "ce_partitionkey": str(event.scenario_id),
        "ce_epoch": str(event.epoch),
        "content-type": "application/json",
    }
    return [(name, value.encode()) for name, value in attributes.items()]


def decode(key: bytes | None, value: bytes | None, headers_given: Sequence[tuple[str, bytes | None]]) -> RetryEvent:
    """The event in a record of the retry topic, if the record is one in every respect.

    The body must follow the schema and have no key twice. Stage and class must be those of the code. The record's key
    and its attributes, `ce_id` among them, must be those that `headers` makes of this body. Further headers, such as
    those of a trace, are allowed.

    Raises:
        BadEventError: The record is something else, or an event of another version.
    """
    given = dict(headers_given)
    if len(given) < len(headers_given):
        raise BadEventError("a header is there twice")
    if given.get("ce_type") != EVENT_TYPE.encode():
        raise BadEventError(f"ce_type is {_quoted(given.get('ce_type'))}, not {EVENT_TYPE}")
    if value is None or len(value) > MAX_EVENT_BYTES:
        raise BadEventError("there is no body" if value is None else f"the body has more than {MAX_EVENT_BYTES} bytes")
    try:
        event = msgspec.json.decode(value, type=RetryEvent)
        # A body that has this type is not nested too deeply for the second reading.
        refuse_repeated_keys(value)
        datetime.fromisoformat(event.timestamp)
    except (msgspec.DecodeError, ValueError) as error:
        raise BadEventError(f"the body is no retry event: {error}") from error
    if (event.stage, event.error.error_class) != (event.error.code.stage, event.error.code.error_class):
        raise BadEventError(f"stage and class are not those of {event.error.code}")
    if key != _key(event):
        raise BadEventError(f"the key is {_quoted(key)}, and the body is about scenario {event.scenario_id}")
    for name, expected in headers(event):
        if given.get(name) != expected:
            raise BadEventError(
                f"{name} is {_quoted(given.get(name))}, and by the body it should be {expected.decode()}"
            )
    return event


def event_of(record: Record) -> RetryEvent:
    """The retry event in the record; raises BadEventError if it holds none, or one of another version."""
    return decode(record.key, record.value, record.raw_headers)


def _quoted(value: bytes | None) -> str:
    return "absent" if value is None else repr(value[:60])[1:]


def _key(event: RetryEvent) -> bytes:
    return str(event.scenario_id).encode()


async def publish(config: KafkaSection, event: RetryEvent) -> None:
    """Send the event and wait until the broker has it, within `publish_timeout_seconds`.

    Raises:
        RunnerError: one of `kafka_*`, naming the cause, or `credential_unreadable`; the event may still arrive.
    """
    await send(config, config.retry_topic, _key(event), encode(event), headers(event))

"""The retry event: what it says, and the door to Kafka through which it leaves."""

from __future__ import annotations

import logging
import os
import socket
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self

import msgspec
import trio
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from trio_runner import __version__, aio
from trio_runner.model import ErrorCode, RunnerError

if TYPE_CHECKING:
    from trio_runner.config import KafkaSection
    from trio_runner.model import Claim, Failure, Progress

EVENT_TYPE: Final = "trio-runner.died.v1"
EVENT_SCHEMA: Final = "urn:trio-runner:retry-event:1"
MAX_EVENT_BYTES: Final = 16 * 1024
STOP_SECONDS: Final = 2.0
_NAMESPACE: Final = uuid.UUID("6d1f2f0e-5a53-5d0a-9a5e-7c1f0d6f4b21")


class EventError(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What went wrong: a code from the closed list, its class, and what a person needs to see."""

    code: str
    error_class: str = msgspec.field(name="class")
    type: str
    message: str
    stack: tuple[str, ...] = ()
    causes: tuple[dict[str, str], ...] = ()
    suppressed: int = 0
    retry_after_seconds: float | None = None


class EventProgress(msgspec.Struct, frozen=True, kw_only=True):
    """How far the attempt had come; a hint, the ledger decides."""

    next_frame: int
    frames_stored: int
    declared_frames: int | None


class RetryEvent(msgspec.Struct, frozen=True, kw_only=True):
    """One death of one attempt at one scenario; `epoch` 0 where it died before it could claim."""

    scenario_id: int
    runner_id: str
    epoch: int
    reason: str
    timestamp: str
    stage: str
    error: EventError
    progress: EventProgress
    reporter: str
    instance_id: str
    host: str
    pid: int | None
    version: str

    @property
    def id(self) -> str:
        """Every report of one death carries the same id, whoever sends it and however often."""
        return event_id(self.scenario_id, self.epoch, self.instance_id)


def event_id(scenario_id: int, epoch: int, instance_id: str) -> str:
    """UUIDv5 of scenario and epoch; of the process itself where there was no epoch yet."""
    return str(uuid.uuid5(_NAMESPACE, f"{scenario_id}:{epoch}" if epoch else f"{scenario_id}:unclaimed:{instance_id}"))


def build_event(failure: Failure, *, claim: Claim, runner_id: str, progress: Progress, reporter: str) -> RetryEvent:
    """Say what happened to the attempt `claim`."""
    return RetryEvent(
        scenario_id=claim.scenario_id,
        runner_id=runner_id,
        epoch=claim.epoch,
        reason=f"{failure.code}: {failure.message}"[:512],
        timestamp=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        stage=failure.code.stage,
        error=EventError(
            code=failure.code,
            error_class=failure.code.error_class,
            type=failure.type,
            message=failure.message,
            stack=failure.stack,
            causes=tuple({"type": kind, "message": message} for kind, message in failure.causes),
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
        host=socket.gethostname(),
        pid=os.getpid(),
        version=__version__,
    )


def encode(event: RetryEvent) -> bytes:
    """JSON of at most 16 KiB: the stack goes first, then the causes, then the message is cut; it never fails to fit."""
    body = msgspec.json.encode(event)
    for shorter in ({"stack": ()}, {"causes": ()}, {"message": event.error.message[:512]}):
        if len(body) <= MAX_EVENT_BYTES:
            break
        event = msgspec.structs.replace(event, error=msgspec.structs.replace(event.error, **shorter))
        body = msgspec.json.encode(event)
    return body


def headers(event: RetryEvent) -> list[tuple[str, bytes]]:
    """CloudEvents 1.0 in Kafka's binary mode: consumers route on these and need not open the body."""
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


async def publish(config: KafkaSection, event: RetryEvent) -> None:
    """Send the event and wait until the broker has it, within `publish_timeout_seconds`.

    A producer of its own, made now: one that idled through the run would add states and save nothing. Not
    idempotent, since aiokafka never expires an idempotent producer's batch (aiokafka #1101) and consumers know a
    repeated event by its id.

    Raises:
        RunnerError: `kafka_unreachable`, naming the cause; the event may still arrive.
    """
    await _with_producer(config, event, seconds=config.publish_timeout_seconds)


async def check_broker(config: KafkaSection) -> None:
    """Raise `kafka_unreachable` unless a broker answers within `connect_timeout_seconds`."""
    await _with_producer(config, None, seconds=config.connect_timeout_seconds)


async def _with_producer(config: KafkaSection, event: RetryEvent | None, *, seconds: float) -> None:
    with CauseCollector() as causes:
        try:
            with trio.fail_after(seconds):
                # Making it does not wait; a cancellation now would leave one behind that nobody stops.
                with trio.CancelScope(shield=True):
                    producer = await aio.call(_make_producer, config)
                try:
                    await aio.call(producer.start)
                    if event is not None:
                        await aio.call(
                            producer.send_and_wait,
                            config.retry_topic,
                            encode(event),
                            str(event.scenario_id).encode(),
                            headers=headers(event),
                        )
                finally:
                    # Without stop() the producer's finaliser crashes the loop, also when start() failed.
                    await aio.close(producer.stop, seconds=STOP_SECONDS)  # noqa: ASYNC102 - close shields and bounds
        except (KafkaError, OSError, ValueError, aio.LibraryCancelledError) as error:
            raise RunnerError(
                ErrorCode.KAFKA_UNREACHABLE, f"Kafka at {config.brokers}: {causes.last or error}"
            ) from error
        except trio.TooSlowError as error:
            detail = f" ({causes.last})" if causes.last else ""
            raise RunnerError(
                ErrorCode.KAFKA_UNREACHABLE,
                f"Kafka at {config.brokers} did not answer within {seconds:g} s{detail}",
            ) from error


async def _make_producer(config: KafkaSection) -> AIOKafkaProducer:
    """asyncio-flavoured: aiokafka's constructor needs the running loop."""
    return AIOKafkaProducer(
        bootstrap_servers=config.brokers.split(","),
        client_id="trio-runner",
        acks="all",
        enable_idempotence=False,
        request_timeout_ms=int(config.connect_timeout_seconds * 1000),
        retry_backoff_ms=100,
        linger_ms=0,
    )


class CauseCollector(logging.Handler):
    """aiokafka raises one and the same error for every reason and tells the reason only to its logger."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.last = ""

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the message."""
        self.last = record.getMessage()

    def __enter__(self) -> Self:
        logging.getLogger("aiokafka").addHandler(self)
        return self

    def __exit__(self, *_: object) -> None:
        logging.getLogger("aiokafka").removeHandler(self)

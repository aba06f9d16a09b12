from __future__ import annotations

import gc
import json
import logging
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib import resources
from typing import Any

import aiokafka
import jsonschema
import msgspec
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st
from trio.testing import wait_all_tasks_blocked

import trio_runner
from tests.support.harness import PATIENCE_SECONDS, Servers, free_port, full_backlog
from tests.support.makers import make_claim
from trio_runner.base import aio
from trio_runner.base.logs import set_up_logging
from trio_runner.config.sections import KafkaSection
from trio_runner.errors import ErrorClass, ErrorCode, RunnerError, Stage
from trio_runner.kafka import retry_event as retry
from trio_runner.kafka.connection import check_broker
from trio_runner.model import Claim, Failure, Progress

SCHEMA = json.loads(resources.files("trio_runner").joinpath("kafka/schemas/retry_event.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def make_event(failure: Failure | None = None, *, scenario_id: int = 7, epoch: int = 3) -> retry.RetryEvent:
    return retry.build_event(
        failure or Failure(code=ErrorCode.STORE_LOST, type="RunnerError", message="the cable"),
        claim=make_claim(scenario_id, epoch=epoch),
        runner_id="runner_1",
        progress=Progress(next_frame=30, frames_stored=10, frames_stored_before=20, declared_frames=100),
        reporter="runner",
        uptime_seconds=12.5,
    )


# identity


def test_every_report_of_one_death_has_the_same_id() -> None:
    one, other = make_event(), make_event(Failure(code=ErrorCode.INTERNAL, type="X", message="seen by another"))
    assert one.instance_id != other.instance_id
    assert one.id == other.id == str(uuid.UUID(one.id))


@given(st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1), st.integers(1, 2**63 - 1))
@example(1, 11, 11, 1)
@example(1, 23, 12, 3)
def test_other_deaths_have_other_ids(scenario: int, epoch: int, other_scenario: int, other_epoch: int) -> None:
    same = (scenario, epoch) == (other_scenario, other_epoch)
    assert (retry.event_id(scenario, epoch, "a") == retry.event_id(other_scenario, other_epoch, "b")) is same


def test_the_id_never_changes_between_versions() -> None:
    """Consumers of one version must know a repeated event of another."""
    assert retry.event_id(7, 3, "x") == str(uuid.uuid5(uuid.UUID("6d1f2f0e-5a53-5d0a-9a5e-7c1f0d6f4b21"), "7:3"))


def test_deaths_before_a_claim_differ_by_process() -> None:
    assert retry.event_id(7, 0, "a") == retry.event_id(7, 0, "a")
    assert len({retry.event_id(7, 0, "a"), retry.event_id(7, 0, "b"), retry.event_id(7, 1, "a")}) == 3


# content


def test_the_body_describes_the_death() -> None:
    failure = Failure(
        code=ErrorCode.INFERENCE_UNAVAILABLE,
        type="RunnerError",
        message="answered 503",
        stack=("a.py:1:f", "b.py:2:g"),
        causes=(("OSError", "reset"),),
        suppressed=2,
        retry_after_seconds=7.0,
    )
    event = make_event(failure)
    body = json.loads(retry.encode(event))
    timestamp = body.pop("timestamp")
    assert timestamp == event.timestamp
    assert body == {
        "scenario_id": 7,
        "runner_id": "runner_1",
        "epoch": 3,
        "reason": "inference_unavailable: answered 503",
        "stage": "inference",
        "error": {
            "code": "inference_unavailable",
            "class": "retriable",
            "type": "RunnerError",
            "message": "answered 503",
            "stack": ["a.py:1:f", "b.py:2:g"],
            "causes": [{"type": "OSError", "message": "reset"}],
            "suppressed": 2,
            "retry_after_seconds": 7.0,
        },
        "progress": {"next_frame": 30, "frames_stored": 30, "declared_frames": 100},
        "reporter": "runner",
        "instance_id": event.instance_id,
        "invocation_id": event.invocation_id,
        "host": socket.gethostname(),
        "pid": event.pid,
        "uptime_seconds": 12.5,
        "version": trio_runner.__version__,
    }


def test_the_reason_is_one_line() -> None:
    event = make_event(Failure(code=ErrorCode.INTERNAL, type="X", message="one\ntwo" + "." * 600))
    assert event.reason.startswith("internal: one two...")
    assert len(event.reason) == 512


def test_the_headers_are_a_cloudevents() -> None:
    event = make_event()
    assert dict(retry.headers(event)) == {
        "ce_specversion": b"1.0",
        "ce_id": event.id.encode(),
        "ce_source": b"/trio-runner/scenarios/7",
        "ce_type": b"trio-runner.died.v1",
        "ce_subject": b"7",
        "ce_time": event.timestamp.encode(),
        "ce_dataschema": SCHEMA["$id"].encode(),
        "ce_partitionkey": b"7",
        "ce_epoch": b"3",
        "content-type": b"application/json",
    }


# the schema

sayable = st.text(st.characters(exclude_categories=["Cc", "Cs"]), max_size=2_048)
failures = st.builds(
    Failure,
    code=st.sampled_from(ErrorCode),
    type=st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,60}", fullmatch=True),
    message=sayable,
    stack=st.lists(sayable, max_size=20).map(tuple),
    causes=st.lists(st.tuples(st.just("OSError"), sayable), max_size=4).map(tuple),
    suppressed=st.integers(0, 1_000),
    retry_after_seconds=st.none() | st.floats(0, 300),
)
claims = st.builds(
    Claim,
    scenario_id=st.integers(1, 2**63 - 1),
    epoch=st.integers(0, 2**63 - 1),
    instance_id=st.uuids().map(str),
    next_frame=st.integers(0, 2**63 - 1),
    frames_stored=st.integers(0, 2**63 - 1),
)
progresses = st.builds(
    Progress,
    next_frame=st.integers(0, 2**62),
    frames_stored=st.integers(0, 2**62 - 1),
    frames_stored_before=st.integers(0, 2**62),
    declared_frames=st.none() | st.integers(0, 2**62),
)
runner_ids = st.from_regex(r"[A-Za-z0-9._:@-]{1,200}", fullmatch=True)

MONSTROUS = Failure(
    code=ErrorCode.INTERNAL,
    type="E" * 200,
    message="\N{GRINNING FACE}" * 2_048,
    stack=("\N{GRINNING FACE}" * 2_048,) * 20,
    causes=(("OSError", '"\\' * 1_024),) * 4,
)


@given(failures, claims, progresses, runner_ids)
@example(MONSTROUS, make_claim(2**63 - 1, epoch=2**63 - 1), Progress(), "r" * 200)
def test_every_event_fits_the_schema_and_16_kib(
    failure: Failure, claim: Claim, progress: Progress, runner_id: str
) -> None:
    event = retry.build_event(failure, claim=claim, runner_id=runner_id, progress=progress, reporter="runner")
    body = retry.encode(event)
    assert len(body) <= retry.MAX_EVENT_BYTES
    VALIDATOR.validate(json.loads(body))
    kept = json.loads(body)["error"]
    assert (kept["code"], kept["class"]) == (failure.code, failure.code.error_class)
    assert failure.message.startswith(kept["message"])
    assert len(kept["message"]) >= min(512, len(failure.message))


def test_what_fits_is_sent_whole() -> None:
    failure = Failure(code=ErrorCode.INTERNAL, type="X", message="m" * 2_048, stack=("s" * 500,) * 20)
    body = json.loads(retry.encode(make_event(failure)))
    assert body["error"]["stack"] == list(failure.stack)
    assert body["error"]["message"] == failure.message


def test_the_stack_goes_first_then_the_causes_then_the_message() -> None:
    def kept(**parts: Any) -> set[str]:
        error = json.loads(retry.encode(make_event(Failure(code=ErrorCode.INTERNAL, type="X", **parts))))["error"]
        return {name for name in ("stack", "causes") if name in error} | {f"message {len(error['message'])}"}

    large = "\N{GRINNING FACE}" * 2_048
    long_stack = ("s" * 2_000,) * 20
    assert kept(message="m", stack=long_stack, causes=(("E", "c"),)) == {"causes", "message 1"}
    assert kept(message="m" * 2_048, stack=long_stack, causes=(("E", large),) * 4) == {"message 2048"}
    assert kept(message="m" * 100_000, stack=long_stack, causes=(("E", "c"),)) == {"message 512"}


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    assert SCHEMA["$id"] == retry.EVENT_SCHEMA


def test_the_schema_lists_the_codes_classes_and_stages_there_are() -> None:
    error = SCHEMA["$defs"]["error"]["properties"]
    assert error["code"]["enum"] == list(ErrorCode)
    assert error["class"]["enum"] == list(ErrorClass)
    assert SCHEMA["properties"]["stage"]["enum"] == list(Stage)


# Every object it describes: the path to it in an event, and its schema.
PARTS: list[tuple[tuple[str, ...], dict[str, Any]]] = [
    ((), SCHEMA),
    (("error",), SCHEMA["$defs"]["error"]),
    (("progress",), SCHEMA["$defs"]["progress"]),
    (("error", "causes"), SCHEMA["$defs"]["error"]["properties"]["causes"]["items"]),
]


def at(body: Any, path: tuple[str, ...]) -> dict[str, Any]:
    for step in path:
        body = body[step]
    return body[0] if isinstance(body, list) else body  # type: ignore[no-any-return]


def full_body() -> Any:
    failure = Failure(
        code=ErrorCode.INTERNAL,
        type="X",
        message="m",
        stack=("a:1:f",),
        causes=(("E", "c"),),
        suppressed=1,
        retry_after_seconds=1.0,
    )
    return json.loads(retry.encode(make_event(failure)))


@pytest.mark.parametrize(("path", "part"), PARTS, ids=["body", "error", "progress", "causes"])
def test_the_schema_describes_every_field_and_no_other(path: tuple[str, ...], part: dict[str, Any]) -> None:
    assert set(part["properties"]) == set(at(full_body(), path))
    for name, described in part["properties"].items():
        assert described.get("description") or "$ref" in described, name
    assert part["additionalProperties"] is False


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, part in PARTS for name in part["required"]])
def test_a_missing_field_is_refused(path: tuple[str, ...], name: str) -> None:
    body = full_body()
    VALIDATOR.validate(body)
    del at(body, path)[name]
    with pytest.raises(jsonschema.ValidationError, match=f"'{name}' is a required property"):
        VALIDATOR.validate(body)


@pytest.mark.parametrize("path", [path for path, _ in PARTS])
def test_an_unknown_field_is_refused(path: tuple[str, ...]) -> None:
    body = full_body()
    at(body, path)["shoe_size"] = 44
    with pytest.raises(jsonschema.ValidationError, match="shoe_size"):
        VALIDATOR.validate(body)


@pytest.mark.parametrize(("path", "name"), [(path, name) for path, part in PARTS for name in part["properties"]])
def test_a_value_of_another_type_is_refused(path: tuple[str, ...], name: str) -> None:
    body = full_body()
    at(body, path)[name] = True
    with pytest.raises(jsonschema.ValidationError):
        VALIDATOR.validate(body)


# the connection


@pytest.fixture
async def loop() -> AsyncIterator[None]:
    async with aio.open_loop():
        yield


@pytest.fixture
def kafka(servers: Servers, topic: str) -> KafkaSection:
    return KafkaSection(brokers=servers.brokers, retry_topic=topic)


async def everything_on(config: KafkaSection, count: int) -> list[Any]:
    """The first `count` records of the topic, read with aiokafka itself."""

    async def read() -> list[Any]:
        consumer = aiokafka.AIOKafkaConsumer(
            config.retry_topic, bootstrap_servers=config.brokers, auto_offset_reset="earliest"
        )
        async with consumer:
            return [await consumer.getone() for _ in range(count)]

    with trio.fail_after(PATIENCE_SECONDS):
        return await aio.call(read)


@pytest.mark.kafka
async def test_what_is_published_is_on_the_topic(loop: None, kafka: KafkaSection) -> None:
    event = make_event()
    await retry.publish(kafka, event)
    (record,) = await everything_on(kafka, 1)
    assert record.key == b"7"
    assert record.value == retry.encode(event)
    assert list(record.headers) == retry.headers(event)
    VALIDATOR.validate(json.loads(record.value))


@pytest.mark.kafka
async def test_the_largest_event_goes_through(loop: None, kafka: KafkaSection) -> None:
    failure = Failure(code=ErrorCode.INTERNAL, type="X", message="\N{GRINNING FACE}" * 2_048, stack=("s" * 250,) * 20)
    event = make_event(failure)
    assert len(retry.encode(event)) > retry.MAX_EVENT_BYTES * 3 // 4
    await retry.publish(kafka, event)
    (record,) = await everything_on(kafka, 1)
    assert record.value == retry.encode(event)


@pytest.mark.kafka
async def test_check_broker_is_content_with_a_broker_and_sends_nothing(loop: None, kafka: KafkaSection) -> None:
    await check_broker(kafka)
    event = make_event()
    await retry.publish(kafka, event)
    (record,) = await everything_on(kafka, 1)
    assert record.offset == 0


@pytest.mark.kafka
async def test_one_of_several_brokers_is_enough(loop: None, kafka: KafkaSection) -> None:
    both = msgspec.structs.replace(kafka, brokers=f"127.0.0.1:{free_port()},{kafka.brokers}")
    await retry.publish(both, make_event())
    assert len(await everything_on(kafka, 1)) == 1


Call = Callable[[KafkaSection], Awaitable[None]]
CALLS: list[Call] = [check_broker, lambda config: retry.publish(config, make_event())]


async def say_nothing(stream: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def hang_up(stream: trio.SocketStream) -> None:
    await stream.aclose()


async def speak_http(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 10)
    await trio.sleep_forever()


@asynccontextmanager
async def peer_that(behaves: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """Accepts connections, and then does something else than a broker."""

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            await behaves(stream)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield f"127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("call", CALLS, ids=["check_broker", "publish"])
@pytest.mark.parametrize(
    "peer",
    [partial(peer_that, say_nothing), partial(peer_that, hang_up), partial(peer_that, speak_http), full_backlog],
    ids=["says nothing", "hangs up", "speaks HTTP", "accepts nobody"],
)
async def test_whatever_is_wrong_with_the_broker_ends_in_time_with_its_name(
    loop: None, call: Call, peer: Callable[[], Any]
) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with peer() as address:
            config = KafkaSection(brokers=address, connect_timeout_seconds=0.5, publish_timeout_seconds=1.0)
            with pytest.raises(RunnerError) as caught:
                await call(config)
    assert caught.value.code is ErrorCode.KAFKA_UNREACHABLE
    assert address in caught.value.message


@pytest.mark.parametrize("call", CALLS, ids=["check_broker", "publish"])
async def test_a_closed_port_is_named_with_its_cause(loop: None, call: Call) -> None:
    address = f"127.0.0.1:{free_port()}"
    with pytest.raises(RunnerError) as caught:
        await call(KafkaSection(brokers=address))
    assert caught.value.code is ErrorCode.KAFKA_UNREACHABLE
    assert address in caught.value.message
    assert "refused the connection" in caught.value.message
    assert "Check kafka.brokers" in caught.value.message


async def test_the_cause_is_named_also_when_the_command_line_has_set_up_logging(loop: None) -> None:
    root, kafka, http = (logging.getLogger(name) for name in ("", "aiokafka", "httpx"))
    handlers, level, propagate = root.handlers[:], root.level, kafka.propagate
    try:
        set_up_logging(level="info", form="auto")
        with pytest.raises(RunnerError) as caught:
            await check_broker(KafkaSection(brokers=f"127.0.0.1:{free_port()}"))
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
        http.setLevel(logging.NOTSET)
        kafka.propagate = propagate
    assert "refused the connection" in caught.value.message


async def test_a_cancelled_publish_leaves_nothing_behind(loop: None) -> None:
    """A connection that is not closed warns when it is collected, which fails the test."""
    with trio.fail_after(PATIENCE_SECONDS):
        async with peer_that(say_nothing) as address:
            with trio.move_on_after(0.2) as scope:
                await retry.publish(KafkaSection(brokers=address), make_event())
            assert scope.cancelled_caught
    gc.collect()
    await wait_all_tasks_blocked(0.01)

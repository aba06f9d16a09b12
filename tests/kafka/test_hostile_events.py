from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from functools import partial
from importlib import resources
from typing import Any

import jsonschema
import msgspec
import pytest
import trio
from hypothesis import example, given
from hypothesis import strategies as st

from tests.kafka.test_retry import MONSTROUS, claims, failures, progresses, runner_ids
from tests.support import hostile_events
from tests.support.harness import PATIENCE_SECONDS, Servers
from tests.support.hostile_events import Hostile, Sent
from tests.support.makers import make_claim
from trio_runner.base import aio
from trio_runner.config.sections import KafkaSection
from trio_runner.kafka import connection as kafka
from trio_runner.kafka import retry_event as retry
from trio_runner.kafka.record import BadEventError, Record
from trio_runner.kafka.topic import open_topic
from trio_runner.model import Claim, Failure, Progress

CORPUS = hostile_events.every()
SCHEMA = json.loads(resources.files("trio_runner").joinpath("kafka/schemas/retry_event.json").read_text())
VALIDATOR = jsonschema.Draft202012Validator(SCHEMA)


def test_the_corpus_is_large_and_no_case_stands_for_another() -> None:
    assert len({hostile.name for hostile in CORPUS}) == len({hostile.sent for hostile in CORPUS}) == len(CORPUS)
    assert len(CORPUS) >= 50


def test_what_the_corpus_is_made_from_is_an_event() -> None:
    good = hostile_events.valid()
    event = good.decode()
    assert retry.encode(event) == good.value
    assert tuple(retry.headers(event)) == good.headers


def refusal(sent: Sent) -> str:
    with pytest.raises(BadEventError) as caught:
        sent.decode()
    return str(caught.value)


@pytest.mark.parametrize("hostile", CORPUS, ids=lambda hostile: hostile.name)
def test_a_hostile_event_is_refused_with_its_reason(hostile: Hostile) -> None:
    reason = refusal(hostile.sent)
    assert hostile.because in reason
    assert len(reason) <= 300
    assert reason.isprintable()


def test_further_headers_and_any_order_are_welcome() -> None:
    good = hostile_events.valid()
    traced = replace(good, headers=(("traceparent", b"00-1-1-01"), *reversed(good.headers), ("ce_traceparent", None)))
    assert traced.decode() == good.decode()


def test_any_way_of_writing_the_same_body_is_the_same_event() -> None:
    good = hostile_events.valid()
    body = json.loads(good.value or b"")
    spread = replace(good, value=json.dumps(dict(reversed(body.items())), indent=2, ensure_ascii=True).encode())
    assert spread.decode() == good.decode()


@given(failures, claims, progresses, runner_ids, st.none() | st.floats(0, 1e9))
@example(MONSTROUS, make_claim(2**63 - 1, epoch=2**63 - 1), Progress(), "r" * 200, 0.0)
def test_every_event_that_is_sent_comes_back_as_it_was(
    failure: Failure, claim: Claim, progress: Progress, runner_id: str, uptime: float | None
) -> None:
    build = partial(retry.build_event, failure, claim=claim, runner_id=runner_id, progress=progress)
    event = build(reporter="runner", uptime_seconds=uptime)
    value = retry.encode(event)
    decoded = retry.decode(str(event.scenario_id).encode(), value, retry.headers(event))
    assert retry.encode(decoded) == value
    assert decoded.id == event.id


some_headers = st.lists(st.tuples(st.text(max_size=20), st.none() | st.binary(max_size=50)), max_size=5)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=20), inner, max_size=4),
    max_leaves=20,
)


@given(st.none() | st.binary(), st.none() | st.binary(), some_headers)
def test_arbitrary_bytes_are_refused(key: bytes | None, value: bytes | None, given_headers: list[Any]) -> None:
    assert refusal(Sent(key=key, value=value, headers=tuple(given_headers)))
    good = hostile_events.valid()
    assert refusal(replace(good, value=value))


@given(json_values)
def test_arbitrary_json_is_refused(body: Any) -> None:
    assert refusal(replace(hostile_events.valid(), value=json.dumps(body).encode()))


def places(body: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths to every value of a body."""
    items = body.items() if isinstance(body, dict) else enumerate(body) if isinstance(body, list) else ()
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


GOOD = hostile_events.valid()
PLACES = places(json.loads(GOOD.value or b""))[1:]


@given(st.sampled_from(PLACES), json_values)
@example(("error", "stack"), [])
@example(("error", "suppressed"), 0)
@example(("progress", "next_frame"), 30.0)
def test_with_another_value_anywhere_it_is_refused_or_fits_the_schema(path: tuple[Any, ...], value: Any) -> None:
    body = json.loads(GOOD.value or b"")
    inner = body
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    changed = replace(GOOD, value=json.dumps(body).encode())
    try:
        event = changed.decode()
    except BadEventError:
        return
    VALIDATOR.validate(body)
    assert msgspec.to_builtins(event)["scenario_id"] == 7


@given(st.data())
def test_with_other_bytes_anywhere_nothing_but_a_refusal_is_raised(data: st.DataObject) -> None:
    value = bytearray(GOOD.value or b"")
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(value) - 1))
        value[at : at + data.draw(st.integers(0, 8))] = data.draw(st.binary(max_size=8))
    with suppress(BadEventError):
        replace(GOOD, value=bytes(value)).decode()


def test_a_service_manager_is_named_only_by_what_can_be_its_id(monkeypatch: pytest.MonkeyPatch) -> None:
    def invocation_id(reporter: str = "runner") -> str | None:
        return retry.build_event(
            MONSTROUS, claim=make_claim(7), runner_id="r", progress=Progress(), reporter=reporter
        ).invocation_id

    monkeypatch.delenv("INVOCATION_ID", raising=False)
    assert invocation_id() is None
    monkeypatch.setenv("INVOCATION_ID", "0123456789abcdef0123456789abcdef")
    assert invocation_id() == "0123456789abcdef0123456789abcdef"
    assert invocation_id("takeover") is None
    monkeypatch.setenv("INVOCATION_ID", "0123456789abcdef0123456789abcdef\n")
    assert invocation_id() is None


async def test_a_topic_of_hostile_events_is_read_to_its_end(servers: Servers, topic: str) -> None:
    config = KafkaSection(brokers=servers.brokers, retry_topic=topic)
    # One of 1 MB is more than a topic takes; no key and no body are what an empty one is.
    sent = [*(hostile.sent for hostile in CORPUS if len(hostile.sent.value or b"") < 10**6), GOOD]
    sent = [one for one in sent if len(one.key or b"") < 10**6]
    found: list[Record] = []
    with trio.fail_after(PATIENCE_SECONDS):
        async with aio.open_loop():
            for one in sent:
                headers: Any = list(one.headers)
                await kafka.send(config, topic, one.key or b"", one.value or b"", headers)
            async with open_topic(config) as reader:
                while len(found) < len(sent) or not await reader.at_end():
                    found += await reader.read(wait_seconds=0.1)
    assert len(found) == len(sent)
    assert [retry.event_of(record) for record in found if is_event(record)] == [GOOD.decode()]
    for record in found:
        assert all(isinstance(value, str) for value in record.headers.values())
    assert [record.body["scenario_id"] for record in found if is_event(record)] == [7]


def is_event(record: Record) -> bool:
    try:
        retry.event_of(record)
    except BadEventError:
        return False
    return True

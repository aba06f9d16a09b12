"""The outbox: every recorded death is published or handed back, whatever the spool, Kafka or a cancellation does."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio

from tests.support.database_server import DatabaseServer
from tests.support.makers import attempt
from trio_runner.base import aio
from trio_runner.cli import upkeep
from trio_runner.config.load import Config
from trio_runner.config.sections import KafkaSection
from trio_runner.database.store import Store, open_store
from trio_runner.errors import ErrorCode, ExitCode, RunnerError
from trio_runner.failure import outbox
from trio_runner.failure.failure import flatten
from trio_runner.failure.outbox import OUTBOX_BATCH, TRIES, flush, publish_outbox
from trio_runner.failure.spool import SpooledRecord, spool_of
from trio_runner.kafka import connection, retry_event
from trio_runner.model import Claim, Progress

LOST = flatten(RunnerError(ErrorCode.STORE_LOST, "lost"))
RETIRED = RunnerError(ErrorCode.KAFKA_TOPIC, "no such topic")


@pytest.fixture
def config(server: DatabaseServer, tmp_path: Path) -> Config:
    return Config().replace(
        database=server.section(),
        kafka={"brokers": "127.0.0.1:1", "spool_dir": str(tmp_path / "spool")},
        runner={"data_dir": str(tmp_path)},
        scenario={"id": 1},
    )


@pytest.fixture
async def store(config: Config) -> AsyncIterator[Store]:
    async with aio.open_loop(), open_store(config.database, application_name="test_outbox") as opened:
        await opened.create_schema()
        await opened.fetch_all("TRUNCATE scenarios, commands CASCADE")
        yield opened


async def record_deaths(store: Store, count: int) -> None:
    """Deaths of the scenarios 1 to `count`, whose events are due in this order."""
    for scenario_id in range(1, count + 1):
        claim = await store.claim(attempt(scenario_id))
        event = retry_event.build_event(
            LOST, claim=claim, runner_id="r", progress=Progress(), reporter="runner", uptime_seconds=1.0
        )
        await store.fail(
            claim,
            event_id=event.id,
            reporter=event.reporter,
            error_class="retriable",
            body=retry_event.encode(event),
            retry_after_seconds=0.0,
        )
        await store.hand_over([(scenario_id, 1)])


async def due(store: Store) -> list[int]:
    """The scenarios whose events any process may publish now, in the order in which they would be given out."""
    rows = await store.fetch_all(
        "SELECT scenario_id FROM unpublished_events WHERE publish_due <= clock_timestamp() ORDER BY publish_due"
    )
    return [row["scenario_id"] for row in rows]


def replace_send(monkeypatch: pytest.MonkeyPatch, refuses: Callable[[str, int], bool]) -> list[int]:
    """Send nothing, and raise where `refuses` says so of a topic and a scenario; returns the scenarios asked for."""
    asked: list[int] = []

    async def send(_: KafkaSection, topic: str, key: bytes, *__: object) -> None:
        await trio.lowlevel.checkpoint()
        asked.append(int(key))
        if refuses(topic, int(key)):
            raise RETIRED

    monkeypatch.setattr(connection, "send", send)
    monkeypatch.setattr(retry_event, "send", send)
    return asked


async def spool_event_of_retired_topic(config: Config) -> None:
    spool = spool_of(config)
    await spool.put(SpooledRecord(id=str(uuid.uuid4()), topic="retired", key="77", headers=(), value="{}"))


async def test_everything_due_is_published_in_one_call(
    config: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = OUTBOX_BATCH + 2
    await record_deaths(store, count)
    asked = replace_send(monkeypatch, lambda _, __: False)
    assert len(await publish_outbox(config, store)) == count
    assert sorted(asked) == list(range(1, count + 1))
    assert await store.count_unpublished() == 0


async def test_a_limit_leaves_the_rest_due(config: Config, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    await record_deaths(store, 3)
    replace_send(monkeypatch, lambda _, __: False)
    assert len(await publish_outbox(config, store, limit=2)) == 2
    assert len(await due(store)) == 1


async def test_refused_events_are_handed_back_behind_those_that_were_not_tried(
    config: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record_deaths(store, 6)
    # Kafka takes the second one, so the refusal before it does not count as one of so many in a row.
    asked = replace_send(monkeypatch, lambda _, scenario_id: scenario_id not in {2, 6})
    reports = await publish_outbox(config, store)
    assert asked == [1, 2, 3, 4, 5]
    assert len(reports) == TRIES + 2
    assert (await due(store))[0] == 6
    assert sorted(await due(store)) == [1, 3, 4, 5, 6]


async def test_a_cancelled_call_hands_back_what_it_took(
    config: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    await record_deaths(store, 3)

    async def send(*_: object) -> None:
        scope.cancel()
        await trio.sleep_forever()

    monkeypatch.setattr(retry_event, "send", send)
    with trio.CancelScope() as scope:
        await publish_outbox(config, store)
    assert scope.cancelled_caught
    assert sorted(await due(store)) == [1, 2, 3]


async def test_a_call_that_is_cancelled_with_its_loop_hands_back_what_it_took(
    config: Config, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As SIGTERM does it to `flush-spool`."""
    await record_deaths(store, 3)

    async def send(*_: object) -> None:
        scope.cancel()
        await trio.sleep_forever()

    monkeypatch.setattr(retry_event, "send", send)
    with trio.CancelScope() as scope:
        await upkeep.flush_spool(config)
    assert scope.cancelled_caught
    assert sorted(await due(store)) == [1, 2, 3]


async def test_handing_back_is_bounded(
    config: Config, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await record_deaths(store, 1)
    replace_send(monkeypatch, lambda _, __: True)

    async def hand_over(*_: object) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(store, "hand_over", hand_over)
    monkeypatch.setattr(outbox, "MARK_SECONDS", 0.1)
    with trio.fail_after(30.0):
        assert len(await publish_outbox(config, store)) == 1
    assert "no answer within 0.1 s" in caplog.text


async def test_a_spooled_event_that_cannot_be_sent_does_not_hold_up_the_outbox(
    config: Config, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    await spool_event_of_retired_topic(config)
    await record_deaths(store, 2)
    replace_send(monkeypatch, lambda topic, _: topic == "retired")
    await flush(config, spool_of(config), store)
    assert await due(store) == [2], "the config's own scenario is published, no other"
    assert "retry events wait to be published: kafka_topic: no such topic" in caplog.text


async def test_flush_spool_publishes_the_outbox_before_it_fails_for_a_spooled_event(
    config: Config, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    await spool_event_of_retired_topic(config)
    await record_deaths(store, 2)
    replace_send(monkeypatch, lambda topic, _: topic == "retired")
    with pytest.RaisesGroup(pytest.RaisesExc(RunnerError, match="no such topic")):
        await upkeep.flush_spool(config)
    assert "retry events published: 2, still waiting: 1" in capsys.readouterr().out
    assert await store.count_unpublished() == 0


async def test_flush_spool_counts_events_that_another_process_has_taken(
    config: Config, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    await record_deaths(store, 2)
    assert len(await store.unpublished(10, lease_seconds=60.0)) == 2
    assert await upkeep.flush_spool(config) is ExitCode.UNCONFIRMED
    assert "retry events published: 0, still waiting: 2" in capsys.readouterr().out
    for scenario_id in (1, 2):
        await store.mark_published(scenario_id, 1)
    assert await upkeep.flush_spool(config) is ExitCode.OK


async def test_the_warning_about_a_spooled_event_names_the_whole_command(
    config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    claim = Claim(scenario_id=1, epoch=1, instance_id=str(uuid.uuid4()), next_frame=0, frames_stored=0)
    event = retry_event.build_event(LOST, claim=claim, runner_id="r", progress=Progress(), reporter="runner")
    assert await outbox.keep(config, spool_of(config), event)
    assert "trio-runner flush-spool CONFIG" in caplog.text

"""The orchestrator's sessions on a real PostgreSQL, with a spawner that notes each start and starts no process."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import trio

from tests.database.test_backlog import begin, fail, state, submit
from tests.support.database_server import DatabaseServer
from tests.support.harness import Ledger, Servers, until
from tests.support.makers import attempt, expire, make_result
from trio_runner.base import aio
from trio_runner.config.load import Config
from trio_runner.database.backlog import Backlog, Work
from trio_runner.database.store import Store, open_store
from trio_runner.orchestrator.daemon import Orchestrator
from trio_runner.orchestrator.policy import BREAKER_WINDOW
from trio_runner.orchestrator.spawners.spawner import Ended, SpawnRefusedError

NODE = "node_1"


@pytest.fixture
def config(server: DatabaseServer) -> Config:
    return Config().replace(database=server.section(), kafka={"brokers": "127.0.0.1:9"})


@pytest.fixture
def ledger(server: DatabaseServer, servers: Servers) -> Iterator[Ledger]:
    with Ledger(server.servers(servers)) as kept:
        yield kept


@pytest.fixture
async def store(config: Config) -> AsyncIterator[Store]:
    async with aio.open_loop(), open_store(config.database, application_name="test_handing_out") as opened:
        await opened.create_schema()
        await opened.fetch_all("TRUNCATE scenarios, commands CASCADE")
        yield opened


@pytest.fixture
def backlog(store: Store) -> Backlog:
    return Backlog(store)


@dataclass
class Notes:
    """A spawner whose runners live until the test removes them from `living`."""

    refuses: str = ""
    asked: int = 0
    """How often `count` was read: once in each turn of the orchestrator's loop."""
    living: set[int] = field(default_factory=set)
    started: list[tuple[int, int]] = field(default_factory=list)
    stopped: set[tuple[int, int]] = field(default_factory=set)

    @property
    def count(self) -> int:
        self.asked += 1
        return len(self.living)

    async def start(self, work: Work) -> None:
        await trio.lowlevel.checkpoint()
        if self.refuses:
            raise SpawnRefusedError(self.refuses)
        self.started.append((work.scenario_id, work.epoch))
        self.living.add(work.scenario_id)

    async def stop(self, scenario_id: int, epoch: int) -> None:
        await trio.lowlevel.checkpoint()
        self.stopped.add((scenario_id, epoch))

    async def turns(self, more: int = 3) -> None:
        """Wait for so many turns of the loop."""
        wanted = self.asked + more
        await self.until(lambda: self.asked >= wanted)

    async def until(self, condition: Callable[[], bool]) -> None:
        async def met() -> bool:
            return condition()

        await until(met, described=f"in {self}")


def orchestrator_of(config: Config, **changes: Any) -> Orchestrator:
    """An orchestrator with settings that no config file may have, such as a `poll_seconds` of an hour."""
    quick = msgspec.structs.replace(config.orchestrator, **{"poll_seconds": 0.02, "starts_per_second": 100.0} | changes)
    given = msgspec.structs.replace(config, orchestrator=quick)
    return Orchestrator(given, given, NODE)


@asynccontextmanager
async def working(*sessions: Callable[[], Awaitable[None]]) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        for session in sessions:
            nursery.start_soon(session)
        yield
        nursery.cancel_scope.cancel()


async def test_no_more_are_started_than_the_budget_has(config: Config, backlog: Backlog) -> None:
    for each in (1, 2, 3):
        await submit(backlog, each)
    orchestrator, spawner = orchestrator_of(config, starts_per_second=0.001), Notes()
    async with working(lambda: orchestrator.work(spawner)):
        await spawner.turns()
    # A new connection brings no new budget.
    async with working(lambda: orchestrator.work(spawner)):
        await spawner.turns()
    assert len(spawner.started) == 1


async def test_a_runner_counts_until_its_process_has_ended(config: Config, backlog: Backlog, store: Store) -> None:
    for each in (1, 2):
        await submit(backlog, each)
    orchestrator, spawner = orchestrator_of(config, max_runners=1), Notes()
    async with working(lambda: orchestrator.work(spawner)):
        await spawner.turns()
        assert spawner.started == [(1, 1)]
        claim = await store.claim(attempt(1, epoch=1))
        await store.store(claim, 0, [make_result(0)])
        await store.finish(claim, 1, "active")
        await spawner.turns()
        assert spawner.started == [(1, 1)]
        spawner.living.clear()
        await spawner.until(lambda: spawner.started == [(1, 1), (2, 1)])


async def test_a_claim_counts_where_the_spawner_counts_nothing(config: Config, backlog: Backlog, store: Store) -> None:
    for each in (1, 2, 3):
        await submit(backlog, each)
    await begin(backlog, store, 1)
    orchestrator, spawner = orchestrator_of(config, max_runners=2), Notes()
    async with working(lambda: orchestrator.work(spawner)):
        await spawner.turns()
    assert spawner.started == [(2, 1)]


async def test_a_refused_start_waits_longer_each_time_until_one_succeeds(
    config: Config, backlog: Backlog, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.random", lambda: 1.0)
    await submit(backlog, 7)
    orchestrator, spawner = orchestrator_of(config), Notes(refuses="no room")

    async def waits() -> float:
        """How long the attempt has to wait after its refusal, in seconds; afterwards it is due again."""

        async def refused() -> float:
            (row,) = await store.fetch_all(
                "SELECT extract(epoch FROM not_before - updated_at)::float8 AS waits FROM scenarios"
                " WHERE last_error ->> 'message' = 'no room' AND not_before > updated_at"
            ) or [{"waits": 0.0}]
            return float(row["waits"])

        found = await until(refused, described="it waits")
        await store.fetch_all("UPDATE scenarios SET not_before = now() - interval '1 s', last_error = NULL")
        return round(found)

    async with working(lambda: orchestrator.work(spawner)):
        assert [await waits() for _ in range(3)] == [2, 4, 8]
        spawner.refuses = ""
        await spawner.until(lambda: spawner.started == [(7, 1)])
        # As if its runner had ended without a claim.
        spawner.refuses = "no room"
        await store.fetch_all("UPDATE scenarios SET spawn_until = NULL")
        assert await waits() == 2
    row = await state(store, 7)
    assert (row["epoch"], row["failures"]) == (1, 0)


async def test_the_end_of_a_runner_and_of_a_lease_let_it_look_at_once(
    config: Config, backlog: Backlog, store: Store, ledger: Ledger
) -> None:
    await submit(backlog, 7)
    orchestrator, spawner = orchestrator_of(config, poll_seconds=3600.0, reap_seconds=0.05), Notes()
    async with working(lambda: orchestrator.work(spawner), orchestrator.reap):
        await spawner.until(lambda: spawner.started == [(7, 1)])
        await store.claim(attempt(7, epoch=1))
        so_far = spawner.asked
        await expire(ledger, 7)
        await spawner.until(lambda: spawner.asked > so_far)
        so_far = spawner.asked
        await orchestrator.on_ended(Ended(scenario_id=7, epoch=1, failure=None, detail="signal KILL"))
        await spawner.until(lambda: spawner.asked > so_far)
    assert (await state(store, 7))["epoch"] == 2


async def test_a_runner_whose_scenario_is_stopped_is_asked_to_drain(
    config: Config, backlog: Backlog, store: Store
) -> None:
    await submit(backlog, 7)
    await begin(backlog, store, 7)
    await backlog.stop(7)
    orchestrator, spawner = orchestrator_of(config), Notes()
    async with working(lambda: orchestrator.work(spawner)):
        await spawner.until(lambda: spawner.stopped == {(7, 1)})


async def test_while_the_breaker_is_open_one_is_tried_and_its_progress_closes_it(
    config: Config, backlog: Backlog, store: Store
) -> None:
    ids = range(1, BREAKER_WINDOW // 2 + 1)
    for each in ids:
        await submit(backlog, each)
        await fail(store, await begin(backlog, store, each), code="inference_timeout")
    await store.fetch_all("UPDATE scenarios SET not_before = now() - interval '1 s'")
    orchestrator, spawner = orchestrator_of(config, max_runners=100), Notes()
    async with working(lambda: orchestrator.work(spawner), orchestrator.reap):
        await spawner.until(lambda: len(spawner.started) > 0 and "held back" in orchestrator.status_line)
        await spawner.turns()
        ((scenario_id, epoch),) = spawner.started
        claim = await store.claim(attempt(scenario_id, epoch=epoch))
        await spawner.turns()
        assert len(spawner.started) == 1
        assert orchestrator.status_line.endswith(", held back by inference_timeout")
        await store.store(claim, 0, [make_result(0)])
        await spawner.until(lambda: {started for started, _ in spawner.started} == set(ids))
    assert "held back" not in orchestrator.status_line


async def test_it_is_ready_once_it_has_asked_the_ledger_and_its_status_counts_the_whole_fleet(
    config: Config, backlog: Backlog, store: Store
) -> None:
    for each in range(1, 7):
        await submit(backlog, each)
    await begin(backlog, store, 1)
    await store.fetch_all("UPDATE scenarios SET not_before = now() + interval '1 h' WHERE id > 3")
    orchestrator, spawner = orchestrator_of(config, max_runners=1), Notes()
    assert orchestrator.status_line == "starting"
    async with working(orchestrator.reap):
        await spawner.until(lambda: orchestrator.status_line == "1 running, 2 due, 3 backing off")
        assert not orchestrator.ready.is_set()
    async with working(lambda: orchestrator.work(spawner)):
        await spawner.until(orchestrator.ready.is_set)


async def test_an_attempt_whose_runner_ended_before_it_claimed_is_freed_and_no_other(
    config: Config, backlog: Backlog, store: Store
) -> None:
    for each in (7, 8):
        await submit(backlog, each)
    await begin(backlog, store, 8)
    await backlog.due(NODE, room=9, limit=9, lease_seconds=3600)
    orchestrator = orchestrator_of(config)
    for each in (7, 8):
        await orchestrator.on_ended(Ended(scenario_id=each, epoch=1, failure=None, detail="exit code 0"))
    free, begun = await state(store, 7), await state(store, 8)
    assert (free["spawn_until"], begun["last_error"]) == (None, None)
    assert "before it had claimed: exit code 0" in json.loads(free["last_error"])["message"]

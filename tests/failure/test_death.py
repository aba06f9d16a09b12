"""Reports of a death when the reply that mattered was lost."""

from __future__ import annotations

import os
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from tests.support.harness import PATIENCE_SECONDS, Ledger, Servers, WriteConfig, read_topic
from tests.support.makers import make_result
from trio_runner.base import aio
from trio_runner.config.credentials import secrets_of
from trio_runner.config.load import Config, load_config
from trio_runner.database.store import Attempt, open_store
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.failure import report as death
from trio_runner.failure.failure import flatten
from trio_runner.failure.publication import Publication
from trio_runner.failure.report import report_death
from trio_runner.failure.spool import spool_of
from trio_runner.failure.unreported import report_invocation
from trio_runner.kafka import retry_event as retry
from trio_runner.model import Progress

LOST = flatten(RunnerError(ErrorCode.STORE_LOST, "the connection to PostgreSQL was lost"))


@pytest.fixture
async def config(write_config: WriteConfig) -> AsyncIterator[Config]:
    async with aio.open_loop():
        yield load_config(write_config())


@pytest.fixture
def attempt(config: Config, scenario_id: int) -> Attempt:
    return Attempt(
        scenario_id=scenario_id,
        epoch=0,
        video_path=config.video.path,
        runner_id="runner_1",
        instance_id=str(uuid.uuid4()),
        max_failures=5,
    )


@pytest.mark.kafka
async def test_a_claim_whose_reply_was_lost_is_still_ours_to_report(
    config: Config, attempt: Attempt, servers: Servers, ledger: Ledger, topic: str
) -> None:
    async with open_store(config.database, application_name="test") as store:
        claim = await store.claim(attempt)
        assert await store.claim(attempt) == claim
    report = await report_death(config, spool_of(config), attempt, None, LOST, Progress())
    assert (report.claim, report.event) == (claim, Publication.PUBLISHED)
    assert (await ledger.existing(attempt.scenario_id))["instance_id"] is None
    assert [event.body["epoch"] for event in await read_topic(servers.brokers, topic)] == [1]


@pytest.mark.kafka
async def test_an_end_whose_reply_was_lost_is_an_end(
    config: Config, attempt: Attempt, servers: Servers, topic: str
) -> None:
    async with open_store(config.database, application_name="test") as store:
        claim = await store.claim(attempt)
        await store.store(claim, 0, [make_result(0)])
        await store.finish(claim, 1, "active")
    report = await report_death(config, spool_of(config), attempt, claim, LOST, Progress())
    assert report.event is Publication.COMPLETED
    assert await read_topic(servers.brokers, topic) == []


@pytest.mark.kafka
async def test_a_ledger_of_another_version_is_left_as_it_is(
    config: Config, attempt: Attempt, servers: Servers, ledger: Ledger, topic: str
) -> None:
    refused = flatten(RunnerError(ErrorCode.STORE_SCHEMA, "a later version made it"))
    report = await report_death(config, spool_of(config), attempt, None, refused, Progress())
    assert (report.claim.epoch, report.event) == (0, Publication.PUBLISHED)
    assert await ledger.scenario(attempt.scenario_id) is None
    assert [event.body["error"]["code"] for event in await read_topic(servers.brokers, topic)] == ["store_schema"]


KILLED = {"SERVICE_RESULT": "watchdog", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL", "INVOCATION_ID": "0" * 31 + "1"}


async def test_an_id_that_the_process_may_not_have_had_claims_nothing(config: Config, ledger: Ledger) -> None:
    """A shell inherits the id of a unit's start; before version 248 systemd did not say whose it is."""
    assert await report_invocation(config, spool_of(config), KILLED) is None
    assert await ledger.scenario(config.scenario.id) is None


async def test_a_lease_that_has_ended_under_another_id_is_left_to_a_reaper(
    config: Config, attempt: Attempt, ledger: Ledger
) -> None:
    """A wrapper started the runner, which claimed under an id of its own: one death is not to count as two."""
    async with open_store(config.database, application_name="test") as store:
        await store.claim(attempt)
        await store.fetch_all(
            "UPDATE scenarios SET lease_until = now() - interval '1 s' WHERE id = $1", attempt.scenario_id
        )
    own = KILLED | {"SYSTEMD_EXEC_PID": str(os.getpid())}
    assert await report_invocation(config, spool_of(config), own) is None
    row = await ledger.existing(attempt.scenario_id)
    assert (row["epoch"], row["failures"]) == (1, 0)


async def test_a_password_file_that_never_ends_is_not_waited_for(config: Config, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    config = config.replace(database={"password_file": str(tmp_path / "fifo")}, inference={"token_file": ""})
    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RunnerError, match="it is not a regular file"):
        async with open_store(config.database, application_name="test"):
            pytest.fail("it opened")
    assert await secrets_of(config) == frozenset()


@pytest.mark.parametrize("broken", ["open_store", "kafka"])
@pytest.mark.kafka
async def test_a_bug_in_one_rung_does_not_take_the_others_away(
    config: Config,
    attempt: Attempt,
    scenario_id: int,
    servers: Servers,
    topic: str,
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def bug(*_: object, **__: object) -> None:
        raise AttributeError("a bug in a library")

    spool = spool_of(config)
    async with open_store(config.database, application_name="test") as store:
        claim = await store.claim(attempt)
    if broken == "kafka":
        monkeypatch.setattr(retry, "publish", bug)
    else:
        monkeypatch.setattr(death, "open_store", bug)
    report = await report_death(config, spool, attempt, claim, LOST, Progress())
    assert report.event is (Publication.RECORDED if broken == "kafka" else Publication.PUBLISHED)
    assert len(await read_topic(servers.brokers, topic)) == (0 if broken == "kafka" else 1)

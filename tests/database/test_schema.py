"""The schema in a database of its own: made once, whoever comes, and complete or refused by name."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

import asyncpg
import pytest
import trio

from tests.support.harness import PATIENCE_SECONDS, Ledger, Servers
from tests.support.makers import attempt
from trio_runner.base import aio
from trio_runner.config.sections import DatabaseSection
from trio_runner.database import reading
from trio_runner.database.store import open_store
from trio_runner.errors import ErrorCode, RunnerError

FILES = ["0001_tables.sql", "0002_verbs.sql", "0003_roles.sql", "0004_reports.sql", "0005_outbox.sql", "0006_work.sql"]


@pytest.fixture
async def empty_database(servers: Servers, ledger: Ledger) -> AsyncIterator[DatabaseSection]:
    (rights,) = await ledger.query("SELECT rolcreatedb FROM pg_roles WHERE rolname = current_user")
    if not rights["rolcreatedb"]:
        pytest.skip("the database user given may not create databases")
    name = f"trio_runner_test_{uuid.uuid4().hex}"
    await ledger.query(f"CREATE DATABASE {name}")
    try:
        parts = urlsplit(servers.database_url)
        yield DatabaseSection(**servers.database | {"url": f"{parts.scheme}://{parts.netloc}/{name}"})
    finally:
        with trio.move_on_after(PATIENCE_SECONDS, shield=True):
            await trio.to_thread.run_sync(lambda: asyncio.run(_drop(servers, name)))


async def _drop(servers: Servers, name: str) -> None:
    connection = await asyncpg.connect(servers.database_url, password=servers.password or None)
    await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    await connection.close()


async def test_an_empty_database_is_told_from_a_ready_one(empty_database: DatabaseSection, scenario_id: int) -> None:
    async with aio.open_loop(), open_store(empty_database, application_name="x") as store:
        for verb in (store.check_schema(), store.claim(attempt(scenario_id)), reading.scenarios(store)):
            with pytest.raises(RunnerError, match="init-db") as caught:
                await verb
            assert caught.value.code is ErrorCode.STORE_SCHEMA
        assert await store.create_schema() == FILES
        await store.check_schema()
        assert await store.create_schema() == []
        assert await reading.scenarios(store) == []
        assert await reading.retry_events(store) == []


async def test_a_database_that_lacks_a_file_says_which(empty_database: DatabaseSection) -> None:
    async with aio.open_loop(), open_store(empty_database, application_name="x") as store:
        await store.create_schema()
        await store.fetch_all("DELETE FROM schema_migrations WHERE name = '0002_verbs.sql'")
        with pytest.raises(RunnerError, match=r"lacks 0002_verbs\.sql"):
            await store.check_schema()


async def test_many_runners_on_an_empty_database_make_its_schema_once(empty_database: DatabaseSection) -> None:
    applied: list[list[str]] = []

    async def create() -> None:
        async with open_store(empty_database, application_name="x") as store:
            applied.append(await store.create_schema())
            await store.check_schema()

    async with aio.open_loop(), trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(create)
    assert sorted(applied) == [[], [], [], [], FILES]

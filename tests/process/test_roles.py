"""A runner's role can do what a runner does, and nothing else: a whole run under it, and everything it is refused."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.database_server import OWNER, DatabaseServer
from tests.support.fake_inference import open_fake
from tests.support.harness import Ledger, Servers
from tests.support.makers import attempt, make_result, report
from tests.support.scene import Scene
from trio_runner.base import aio
from trio_runner.config.sections import DatabaseSection
from trio_runner.database import reading, schema
from trio_runner.database.backlog import Backlog
from trio_runner.database.rights import ORCHESTRATOR_VERBS, RUNNER_VERBS
from trio_runner.database.store import open_store
from trio_runner.errors import ErrorCode, RunnerError

RUNNER = 'Runner\'s "role" é'
"""A name that breaks whatever is not quoted."""
QUOTED = '"Runner\'s ""role"" é"'
IN_URL = "Runner%27s%20%22role%22%20%C3%A9"
PASSWORD = "c4n4ry-runner"
TABLES = ["scenarios", "predictions", "attempts", "retry_events", "commands"]
ORCHESTRATOR = "orchestrators"


@pytest.fixture
async def owner(server: DatabaseServer) -> DatabaseSection:
    """What a DBA does once, and may do again: the schema by its owner, the role by the superuser, its rights."""
    section = DatabaseSection(**server.section())
    name = QUOTED.replace("'", "''")
    make = f"CREATE ROLE {QUOTED} LOGIN PASSWORD '{PASSWORD}'"
    await server.as_superuser(f"DO $$ BEGIN IF to_regrole('{name}') IS NULL THEN {make}; END IF; END $$")
    make = f"CREATE ROLE {ORCHESTRATOR} LOGIN PASSWORD '{PASSWORD}'"
    await server.as_superuser(f"DO $$ BEGIN IF to_regrole('{ORCHESTRATOR}') IS NULL THEN {make}; END IF; END $$")
    await server.as_superuser(f"CREATE SCHEMA IF NOT EXISTS evil AUTHORIZATION {QUOTED}")
    async with aio.open_loop(), open_store(section, application_name="x") as store:
        await store.create_schema()
        await store.grant(RUNNER)
        await store.grant(ORCHESTRATOR, ORCHESTRATOR_VERBS)
    return section


@pytest.fixture
def runner(server: DatabaseServer, owner: DatabaseSection, tmp_path: Path) -> dict[str, Any]:
    """The keys of a runner's `[database]` section."""
    (tmp_path / "runner-password").write_text(PASSWORD)
    return server.section(
        url=f"postgresql://{IN_URL}@localhost:{server.port}/{server.database}",
        password_file=str(tmp_path / "runner-password"),
    )


@pytest.fixture
def orchestrator(server: DatabaseServer, owner: DatabaseSection, tmp_path: Path) -> dict[str, Any]:
    """The keys of an orchestrator's `[database]` section."""
    (tmp_path / "orchestrator-password").write_text(PASSWORD)
    return server.section(
        url=f"postgresql://{ORCHESTRATOR}@localhost:{server.port}/{server.database}",
        password_file=str(tmp_path / "orchestrator-password"),
    )


@pytest.fixture
def raw(server: DatabaseServer, servers: Servers, runner: dict[str, Any]) -> Ledger:
    """The database as a client with the runner's password sees it."""
    return Ledger(server.servers(servers, role=IN_URL, password_file=Path(runner["password_file"])))


@pytest.fixture
def scene(scene: Scene, server: DatabaseServer, servers: Servers) -> Iterator[Scene]:
    """As everywhere, but its ledger is in this database, read by its owner."""
    mine = server.servers(servers)
    with Ledger(mine) as ledger:
        yield dataclasses.replace(scene, servers=mine, ledger=ledger)


# what a runner does


async def test_a_whole_run_under_the_role(scene: Scene, runner: dict[str, Any], clip: Path) -> None:
    async with open_fake() as fake:
        config = scene.write_config(
            video={"path": str(clip)},
            inference={"url": fake.url},
            database=runner | {"create_schema": True},
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 0, done.err
    assert (await scene.ledger.existing(scene.scenario_id))["outcome"] == "completed"
    await scene.check_rows(60)
    await scene.ledger.check_invariants(scene.scenario_id)
    assert "1 frame-0 in 1 frames" in done.out


async def test_a_death_and_a_takeover_under_the_role(
    scene: Scene, runner: dict[str, Any], new_scenario_id: Callable[[], int]
) -> None:
    first, second = scene.scenario_id, new_scenario_id()
    async with aio.open_loop(), open_store(DatabaseSection(**runner), application_name="x") as store:
        await store.check_schema()
        assert await store.create_schema() == []
        claim = await store.claim(attempt(first))
        await store.store(claim, 0, [make_result(0, labels=("dog",))])
        await store.heartbeat(claim)
        assert await report(store, claim)
        claim = await store.claim(attempt(first))
        await store.finish(claim, 1, "active")
        assert await store.is_completed(claim)
        assert await reading.label_counts(store, first) == [{"label": "dog", "detections": 1, "frames": 1}]
        lost = await store.claim(attempt(second))
        assert await store.expired_claim(second) is None
        await scene.ledger.query("UPDATE scenarios SET lease_until = now() - interval '1 s' WHERE id = $1", second)
        found = await store.expired_claim(second)
        assert found is not None
        assert found[0] == lost


async def test_an_orchestrators_work_under_its_role(
    scene: Scene, orchestrator: dict[str, Any], new_scenario_id: Callable[[], int]
) -> None:
    """And what is reported in a dead runner's place; the scenarios of other tests of this file may be there."""
    first, second = scene.scenario_id, new_scenario_id()
    limits = {"max_failures": 1, "max_epochs": 50}
    async with aio.open_loop(), open_store(DatabaseSection(**orchestrator), application_name="x") as store:
        await store.check_schema()
        backlog = Backlog(store)
        assert await backlog.submit(0, "/a.mp4", {}, **limits) > 0
        assert await backlog.submit(first, "/a.mp4", {}, **limits) == first
        assert await backlog.apply("command", "start", second, "/a.mp4", {}, **limits)
        works = {work.scenario_id: work for work in await backlog.due("n", room=99, limit=99, lease_seconds=60)}
        assert works.keys() >= {first, second}
        assert await backlog.postpone(second, 1, "n", delay_seconds=0, why="x")
        claim = await store.claim(attempt(first, epoch=1, video="/a.mp4"))
        holder = await backlog.holder_of(first, 1)
        assert holder is not None
        assert holder.claim is not None
        assert holder.claim.instance_id == claim.instance_id
        assert (await backlog.counts()).running >= 1
        await backlog.stop(first)
        assert (first, 1) in await backlog.shutdowns()
        assert await report(store, claim)
        assert len(await backlog.recent_attempts(1)) == 1
        (letter,) = [each for each in await backlog.dead_letters(99, lease_seconds=60) if each.scenario_id == first]
        await backlog.mark_dead_letter_published(letter)
        assert await backlog.retry(first, max_epochs=50) == 2
        assert {first, second} <= {row["id"] for row in await backlog.overview()}


# what it is refused

FORBIDDEN = [
    *(f"TABLE {table}" for table in TABLES),
    *(f"TABLE {table} LIMIT 0" for table in TABLES),
    *(f"DELETE {''}FROM {table}" for table in TABLES),
    *(f"TRUNCATE {table} CASCADE" for table in TABLES),
    *(f"COPY {table} TO STDOUT" for table in TABLES),
    *(f"DROP TABLE {table} CASCADE" for table in TABLES),
    *(f"ALTER TABLE {table} DISABLE TRIGGER ALL" for table in TABLES),
    *(f"DO 'BEGIN LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE; END'" for table in TABLES),
    *(f"CREATE TRIGGER t BEFORE UPDATE ON {table} FOR EACH ROW EXECUTE FUNCTION guard_scenario()" for table in TABLES),
    "SELECT * FROM detections",
    "INSERT INTO scenarios (id, video_path) VALUES (1, 'x')",
    "INSERT INTO predictions VALUES (1, 0, 1, 0, 2, 2, '[]', 0)",
    (
        "INSERT INTO attempts (scenario_id, epoch, runner_id, instance_id, host, first_frame)"
        " VALUES (1, 1, 'x', gen_random_uuid(), 'x', 0)"
    ),
    "INSERT INTO retry_events VALUES (1, 1, gen_random_uuid(), 'x', '{}')",
    "UPDATE scenarios SET epoch = 99",
    "UPDATE predictions SET detections = '[]'",
    "UPDATE attempts SET outcome = 'completed'",
    "UPDATE retry_events SET body = '{}'",
    "SELECT 1 FROM scenarios FOR UPDATE",
    "INSERT INTO commands VALUES ('x', 1, 'stop')",
    "SELECT nextval('scenario_ids')",
    "SELECT setval('scenario_ids', 1)",
    "SELECT * FROM scenario_ids",
    "INSERT INTO schema_files VALUES ('functions/mine.sql', 'x', 1)",
    "UPDATE schema_files SET revision = 99",
    "DELETE FROM schema_files",
    "TRUNCATE schema_files",
    "CREATE TABLE trio_runner.mine ()",
    "CREATE FUNCTION trio_runner.claim(text) RETURNS void LANGUAGE sql AS ''",
    "CREATE OR REPLACE FUNCTION refuse(bigint, bigint, uuid) RETURNS void LANGUAGE sql AS ''",
    "CREATE SCHEMA mine",
    "CREATE TABLE public.mine ()",
    "CREATE ROLE mine",
    "CREATE DATABASE mine",
    "DROP SCHEMA trio_runner CASCADE",
    "DROP FUNCTION store",
    "ALTER FUNCTION store SECURITY INVOKER",
    "ALTER FUNCTION store RESET search_path",
    "GRANT EXECUTE ON FUNCTION refuse TO PUBLIC",
    "SELECT refuse(1, 1, gen_random_uuid())",
    "SELECT 1 WHERE guard_scenario() IS NULL",
    f"SET ROLE {OWNER}",
    "SET ROLE postgres",
    f"SET SESSION AUTHORIZATION {OWNER}",
    "ALTER ROLE CURRENT_USER SUPERUSER",
    "COPY (SELECT 1) TO PROGRAM 'true'",
    "COPY (SELECT 1) TO '/tmp/trio-runner-test'",
    "SELECT pg_read_file('PG_VERSION')",
    "SELECT pg_ls_dir('.')",
    "SELECT lo_import('/etc/passwd')",
    "SELECT rolpassword FROM pg_authid",
    "SELECT pg_reload_conf()",
    "ALTER SYSTEM SET fsync = off",
    "SET session_replication_role = replica",
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename IS NULL",
]


OF_AN_ORCHESTRATOR = [
    "SELECT submit(1, 'x', '{}', 5, 50)",
    "SELECT stop(1)",
    "SELECT retry(1, 50)",
    "SELECT apply_command('x', 'start', 1, 'x', '{}', 5, 50)",
    "SELECT * FROM due('x', 1, 1, '1 s')",
    "SELECT postpone(1, 1, 'x', '1 s', 'x')",
    "SELECT * FROM shutdowns()",
    "SELECT * FROM claim_of(1, 1)",
    "SELECT * FROM dead_letters(1, '1 s')",
    "SELECT mark_dead_letter_published(1, 1)",
    "SELECT * FROM recent_attempts(1)",
    "SELECT * FROM backlog()",
    "SELECT unproven()",
    "SELECT * FROM reconcile('{}', '{}', '{}')",
    "SELECT * FROM overview()",
]


def test_every_verb_that_a_runner_has_not_is_tried() -> None:
    verbs = set(ORCHESTRATOR_VERBS) - set(RUNNER_VERBS)
    assert verbs == {
        statement.rpartition("FROM ")[2].removeprefix("SELECT ").partition("(")[0] for statement in OF_AN_ORCHESTRATOR
    }


@pytest.mark.parametrize(
    ("role", "statements"),
    [("runner", [*FORBIDDEN, *OF_AN_ORCHESTRATOR]), ("orchestrator", FORBIDDEN)],
    ids=["runner", "orchestrator"],
)
async def test_everything_else_is_refused(
    runner: dict[str, Any], orchestrator: dict[str, Any], role: str, statements: list[str]
) -> None:
    endings: dict[str, str] = {}
    section = DatabaseSection(**{"runner": runner, "orchestrator": orchestrator}[role])
    async with aio.open_loop(), open_store(section, application_name="x") as store:
        for statement in statements:
            try:
                await store.fetch_all(statement)
                endings[statement] = "done"
            except RunnerError as error:
                if error.code is not ErrorCode.STORE_AUTH:
                    endings[statement] = str(error)
    assert endings == {}


@pytest.mark.parametrize("verbs", [RUNNER_VERBS, ORCHESTRATOR_VERBS], ids=["runner", "orchestrator"])
async def test_what_the_role_may_do_is_exactly_this(
    server: DatabaseServer, servers: Servers, raw: Ledger, orchestrator: dict[str, Any], verbs: tuple[str, ...]
) -> None:
    """No table, no column, no sequence, no further function: also not one of a schema file still to be written."""
    if verbs is ORCHESTRATOR_VERBS:
        raw = Ledger(server.servers(servers, role=ORCHESTRATOR, password_file=Path(orchestrator["password_file"])))
    functions = await raw.query(
        "SELECT proname AS name, prosecdef AS definer, coalesce(array_to_string(proconfig, ' '), '') AS settings,"
        " has_function_privilege(oid, 'EXECUTE') AS mine,"
        " proacl IS NULL OR EXISTS (SELECT FROM aclexplode(proacl) WHERE grantee = 0) AS everybodys"
        " FROM pg_proc WHERE pronamespace = 'trio_runner'::regnamespace"
    )
    assert sorted(row["name"] for row in functions if row["mine"]) == sorted(verbs)
    assert [row["name"] for row in functions if row["everybodys"]] == []
    assert {row["name"] for row in functions if row["definer"]} == set(ORCHESTRATOR_VERBS)
    assert {row["settings"] for row in functions} == {"search_path=trio_runner, pg_temp"}
    relations = await raw.query(
        "SELECT relname AS name FROM pg_class"
        " WHERE relnamespace = 'trio_runner'::regnamespace AND relkind IN ('r', 'v', 'm')"
        " AND (has_table_privilege(oid, 'SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER')"
        "      OR has_any_column_privilege(oid, 'SELECT, INSERT, UPDATE, REFERENCES'))"
    )
    assert [row["name"] for row in relations] == ["schema_files"]
    (sequence,) = await raw.query("SELECT has_sequence_privilege('scenario_ids', 'USAGE, SELECT, UPDATE') AS uses")
    assert not sequence["uses"]
    (rights,) = await raw.query(
        "SELECT has_schema_privilege('trio_runner', 'USAGE') AS uses,"
        " has_schema_privilege('trio_runner', 'CREATE') AS makes"
    )
    assert (rights["uses"], rights["makes"]) == (True, False)


@pytest.mark.parametrize("path", ["trio_runner", "pg_temp, pg_catalog, trio_runner", "evil, pg_catalog, trio_runner"])
async def test_what_the_caller_puts_in_front_of_the_tables_is_not_looked_at(
    scene: Scene, runner: dict[str, Any], path: str
) -> None:
    """Tables, views, types and functions called as ours are the way into a careless SECURITY DEFINER."""
    async with aio.open_loop(), open_store(DatabaseSection(**runner), application_name="x") as store:
        forged = [
            "CREATE TEMP TABLE predictions (LIKE pg_class)",
            "CREATE TEMP TABLE attempts (LIKE pg_class)",
            "CREATE TEMP TABLE retry_events (x int)",
            "CREATE TEMP TABLE scenarios (id bigint, epoch bigint, outcome text, lease_until timestamptz)",
            "CREATE TEMP VIEW detections AS SELECT 1 AS scenario_id, 'forged' AS label, 1 AS frame_index",
            *(
                f"CREATE OR REPLACE FUNCTION {place}.{function} LANGUAGE plpgsql AS"
                " $$ BEGIN RAISE EXCEPTION 'forged, ran as %', current_user; END $$"
                for place in ("pg_temp", "evil")
                for function in (
                    "refuse(bigint, bigint, uuid) RETURNS void",
                    "cardinality(anyarray) RETURNS integer",
                    "clock_timestamp() RETURNS timestamptz",
                )
            ),
        ]
        for statement in [*forged, f"SET search_path = {path}"]:
            await store.fetch_all(statement)
        claim = await store.claim(attempt(scene.scenario_id))
        await store.store(claim, 0, [make_result(0, labels=("dog",))])
        await store.heartbeat(claim)
        stranger = dataclasses.replace(claim, instance_id=str(uuid.uuid4()))
        with pytest.raises(RunnerError) as caught:
            await store.heartbeat(stranger)
        assert caught.value.code is ErrorCode.SUPERSEDED
        assert await reading.label_counts(store, scene.scenario_id) == [{"label": "dog", "detections": 1, "frames": 1}]
        assert await store.expired_claim(scene.scenario_id) is None
        await store.finish(claim, 1, "active")
        assert await store.is_completed(claim)
        (counted,) = await store.fetch_all("SELECT count(*) FROM pg_temp.predictions")
        assert counted["count"] == 0
    await scene.ledger.check_invariants(scene.scenario_id)
    assert (await scene.ledger.existing(scene.scenario_id))["outcome"] == "completed"


# getting there


@pytest.fixture
async def nobody(server: DatabaseServer, owner: DatabaseSection, tmp_path: Path) -> AsyncIterator[DatabaseSection]:
    """A role that was made and got nothing."""
    await server.as_superuser(f"CREATE ROLE nobody LOGIN PASSWORD '{PASSWORD}'")
    (tmp_path / "nobody-password").write_text(PASSWORD)
    section = server.section(
        url=f"postgresql://nobody@localhost:{server.port}/{server.database}",
        password_file=str(tmp_path / "nobody-password"),
    )
    yield DatabaseSection(**section)
    await server.as_superuser("DROP OWNED BY nobody", "DROP ROLE nobody")


async def test_a_role_without_the_rights_learns_how_to_get_them(nobody: DatabaseSection, scenario_id: int) -> None:
    async with aio.open_loop(), open_store(nobody, application_name="x") as store:
        for verb in (store.check_schema(), store.create_schema()):
            with pytest.raises(RunnerError, match="init-db CONFIG --grant ROLE") as caught:
                await verb
            assert caught.value.code is ErrorCode.STORE_AUTH


async def test_a_runner_does_not_complete_the_schema(
    runner: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one of a newer version, on the database of an older one."""
    newer = schema.files() | {"changes/0009_newer.sql": "ALTER TABLE attempts ADD COLUMN note text"}
    monkeypatch.setattr(schema, "files", lambda: newer)
    async with aio.open_loop(), open_store(DatabaseSection(**runner), application_name="x") as store:
        with pytest.raises(RunnerError, match=r"out of date in changes/0009_newer\.sql.*owner.*init-db") as caught:
            await store.create_schema()
    assert caught.value.code is ErrorCode.STORE_SCHEMA


@pytest.mark.parametrize("role", ["no such role", "public", "PUBLIC", 'x"; DROP SCHEMA trio_runner CASCADE; --', ""])
async def test_a_role_that_does_not_exist_gets_nothing(owner: DatabaseSection, role: str) -> None:
    async with aio.open_loop(), open_store(owner, application_name="x") as store:
        with pytest.raises(RunnerError, match="there is no role") as caught:
            await store.grant(role)
        await store.check_schema()
    assert caught.value.code is ErrorCode.STORE_AUTH


async def test_who_has_the_rights_cannot_give_them_on(runner: dict[str, Any], nobody: DatabaseSection) -> None:
    async with aio.open_loop(), open_store(DatabaseSection(**runner), application_name="x") as store:
        with pytest.raises(RunnerError) as caught:
            await store.grant("nobody")
    assert caught.value.code is ErrorCode.STORE_AUTH


async def test_the_superuser_is_not_needed_to_grant(owner: DatabaseSection, nobody: DatabaseSection) -> None:
    async with aio.open_loop():
        async with open_store(owner, application_name="x") as store:
            await store.grant("nobody")
        async with open_store(nobody, application_name="x") as store:
            assert await store.create_schema() == []

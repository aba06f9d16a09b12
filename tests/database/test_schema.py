"""The schema in a database of its own: made once, brought to this version, or refused by name."""

from __future__ import annotations

import shutil
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support.database_server import OWNER, OWNER_PASSWORD, DatabaseServer
from tests.support.harness import PATIENCE_SECONDS
from tests.support.makers import attempt, make_result, report
from trio_runner.base import aio
from trio_runner.config.sections import DatabaseSection
from trio_runner.database import reading, schema
from trio_runner.database.rights import ORCHESTRATOR_VERBS, RUNNER_VERBS
from trio_runner.database.store import Store, open_store
from trio_runner.errors import ErrorCode, RunnerError

FILES = [name for name in schema.files() if not name.startswith("changes/")]
"""A new database gets these; the tables in them have every change."""
CHANGES = [name for name in schema.files() if name.startswith("changes/")]

IN_URL = "the%20%22owner%22%20%C3%A9"

RELEASED: dict[int, str] = {}
"""By REVISION: `schema.digest` of the files of each release, all in one. A release adds its own line."""


@pytest.fixture
async def empty_database(server: DatabaseServer) -> AsyncIterator[DatabaseSection]:
    name = f"test_{uuid.uuid4().hex}"
    await server.as_superuser(f"CREATE DATABASE {name} OWNER {OWNER}")
    try:
        yield DatabaseSection(**server.section(database=name))
    finally:
        with trio.move_on_after(PATIENCE_SECONDS, shield=True):
            await server.as_superuser(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def store(empty_database: DatabaseSection) -> AsyncIterator[Store]:
    async with aio.open_loop(), open_store(empty_database, application_name="test_schema") as opened:
        yield opened


@pytest.fixture
def sql(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The SQL files of this version, as a copy to change: what the next version has."""
    copy = tmp_path / "sql"
    shutil.copytree(Path(str(schema.directory())), copy)
    (copy / "changes").mkdir(exist_ok=True)
    monkeypatch.setattr(schema, "directory", lambda: copy)
    return copy


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


async def functions(store: Store, *names: str) -> list[dict[str, Any]]:
    return await store.fetch_all(
        "SELECT oid::regprocedure::text AS signature, prosecdef AS definer, prosrc AS body,"
        " array_to_string(proconfig, ' ') AS settings, has_function_privilege('public', oid, 'EXECUTE') AS everybodys"
        " FROM pg_proc WHERE pronamespace = 'trio_runner'::regnamespace AND proname = ANY($1) ORDER BY proname",
        names,
    )


async def tables(store: Store) -> list[dict[str, Any]]:
    return await store.fetch_all(
        "SELECT table_name, column_name, data_type, is_nullable, column_default FROM information_schema.columns"
        " WHERE table_schema = 'trio_runner' ORDER BY table_name, column_name"
    )


# a new database


async def test_an_empty_database_is_distinguished_from_a_ready_one(store: Store, scenario_id: int) -> None:
    for verb in (store.check_schema(), store.claim(attempt(scenario_id)), reading.scenarios(store)):
        with pytest.raises(RunnerError, match="init-db") as caught:
            await verb
        assert caught.value.code is ErrorCode.STORE_SCHEMA
    assert await store.create_schema() == FILES
    await store.check_schema()
    assert await store.create_schema() == []
    assert await reading.scenarios(store) == []
    assert await reading.retry_events(store) == []


async def test_a_database_that_lacks_a_file_names_it(store: Store) -> None:
    with pytest.raises(RunnerError, match=r"missing or out of date in tables\.sql, 32 functions;"):
        await store.check_schema()
    await store.create_schema()
    await store.fetch_all("DELETE FROM schema_files WHERE name = 'functions/store.sql'")
    with pytest.raises(RunnerError, match=r"out of date in functions/store\.sql;"):
        await store.check_schema()


@pytest.mark.parametrize("isolation", ["read committed", "serializable"])
async def test_many_runners_on_an_empty_database_make_its_schema_once(
    empty_database: DatabaseSection, server: DatabaseServer, isolation: str
) -> None:
    applied: list[list[str]] = []
    name = empty_database.url.rpartition("/")[2]
    await server.as_superuser(f"ALTER DATABASE {name} SET default_transaction_isolation = '{isolation}'")

    async def create() -> None:
        async with open_store(empty_database, application_name="x") as store:
            applied.append(await store.create_schema())
            await store.check_schema()

    async with aio.open_loop(), trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(create)
    assert sorted(applied) == [[], [], [], [], FILES]


def test_a_file_holds_the_function_that_it_is_named_after_and_no_rights() -> None:
    texts = {
        name.removeprefix("functions/").removesuffix(".sql"): text
        for name, text in schema.files().items()
        if name.startswith("functions/")
    }
    assert texts.keys() == {*ORCHESTRATOR_VERBS, "refuse", "guard_scenario"}
    for name, text in texts.items():
        assert text.count("FUNCTION ") - text.count("EXECUTE FUNCTION ") == 1
        assert f"CREATE OR REPLACE FUNCTION {name}(" in text
        assert not {"SECURITY", "SET search_path", "GRANT", "REVOKE"} & {word for word in text.split("\n") if word}


def test_a_release_that_changes_the_files_raises_the_revision() -> None:
    texts = "".join(f"{name}\n{text}\n" for name, text in schema.files().items())
    assert RELEASED.get(schema.REVISION) in {None, schema.digest(texts)}
    assert max(RELEASED, default=1) <= schema.REVISION


# functions of another text


async def test_a_function_whose_text_differs_is_applied_again_and_no_other(store: Store, sql: Path) -> None:
    await store.create_schema()
    edit(sql / "functions" / "unproven.sql", "count(*)", "count(1)")
    with pytest.raises(RunnerError, match=r"out of date in functions/unproven\.sql; run: trio-runner init-db"):
        await store.check_schema()
    assert await store.create_schema() == ["functions/unproven.sql"]
    (function,) = await functions(store, "unproven")
    assert "count(1)" in function["body"]
    assert (function["definer"], function["everybodys"]) == (True, False)
    assert function["settings"] == "search_path=trio_runner, pg_temp"
    assert await store.create_schema() == []


async def test_a_comment_that_is_reworded_is_no_change(store: Store, sql: Path) -> None:
    await store.create_schema()
    for path in (sql / "tables.sql", sql / "functions" / "store.sql"):
        path.write_text("-- Other words.\n\n" + path.read_text().replace("-- ", "-- Well: "))
    assert await store.create_schema() == []
    await store.check_schema()


@pytest.mark.parametrize(
    ("old", "new", "signature"),
    [
        ("stop(p_id bigint) RETURNS text", "stop(p_id bigint, p_by text) RETURNS text", "stop(bigint,text)"),
        ("stop(p_id bigint)", "stop(p_id integer)", "stop(integer)"),
        ("p_id", "p_scenario", "stop(bigint)"),
        ("RETURNS text", "RETURNS varchar", "stop(bigint)"),
    ],
    ids=["one argument more", "another type", "another name", "another result"],
)
async def test_a_function_of_another_signature_takes_the_place_of_the_old_one(
    store: Store, sql: Path, old: str, new: str, signature: str
) -> None:
    await store.create_schema()
    edit(sql / "functions" / "stop.sql", old, new)
    assert await store.create_schema() == ["functions/stop.sql"]
    (function,) = await functions(store, "stop")
    assert function["signature"] == signature
    assert (function["definer"], function["everybodys"]) == (True, False)


async def test_a_function_that_no_file_defines_any_more_is_dropped(store: Store, sql: Path) -> None:
    await store.create_schema()
    await store.fetch_all("CREATE FUNCTION of_an_operator() RETURNS void LANGUAGE sql AS ''")
    (sql / "functions" / "overview.sql").unlink()
    assert await store.create_schema() == ["functions/overview.sql"]
    assert await functions(store, "overview") == []
    assert len(await functions(store, "of_an_operator")) == 1
    assert await store.create_schema() == []


async def test_a_text_that_postgresql_refuses_leaves_everything_as_it_was(store: Store, sql: Path) -> None:
    await store.create_schema()
    before = await functions(store, "due", "stop")
    edit(sql / "functions" / "due.sql", "FOR UPDATE SKIP LOCKED", "")
    edit(sql / "functions" / "stop.sql", "BEGIN", "BEGUN")
    with pytest.raises(RunnerError, match="syntax error") as caught:
        await store.create_schema()
    assert caught.value.code is ErrorCode.STORE_REJECTED
    assert await functions(store, "due", "stop") == before


async def test_roles_keep_their_rights_and_get_what_is_new_for_them(
    server: DatabaseServer, store: Store, sql: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function that was granted by hand is granted again too, and the ones that were not are not."""
    roles = ['Runner\'s "role" é', "an_orchestrator", "a_monitor"]
    quoted = ['"Runner\'s ""role"" é"', *roles[1:]]
    await server.as_superuser(*(f"CREATE ROLE {role}" for role in quoted))
    try:
        await store.create_schema()
        await store.grant(roles[0])
        await store.grant(roles[1], ORCHESTRATOR_VERBS)
        await store.fetch_all("GRANT EXECUTE ON FUNCTION overview TO a_monitor")
        # One result, one name and one text are new, and a function for runners.
        edit(sql / "functions" / "overview.sql", "frames_per_second double precision", "frames_per_second real")
        edit(sql / "functions" / "overview.sql", "))::float8\n", "))::real\n")
        edit(sql / "functions" / "heartbeat.sql", "p_lease", "p_for")
        edit(sql / "functions" / "unproven.sql", "count(*)", "count(1)")
        (sql / "functions" / "pause.sql").write_text(
            "CREATE OR REPLACE FUNCTION pause(p_id bigint) RETURNS void LANGUAGE sql AS ''"
        )
        for name, verbs in (("RUNNER_VERBS", RUNNER_VERBS), ("ORCHESTRATOR_VERBS", ORCHESTRATOR_VERBS)):
            monkeypatch.setattr(f"trio_runner.database.rights.{name}", (*verbs, "pause"))
        assert len(await store.create_schema()) == 4
        may_call = {}
        for role in roles:
            rows = await store.fetch_all(
                "SELECT proname FROM pg_proc WHERE pronamespace = 'trio_runner'::regnamespace"
                " AND has_function_privilege($1, oid, 'EXECUTE')",
                role,
            )
            may_call[role] = {row["proname"] for row in rows}
        assert may_call == {
            roles[0]: {*RUNNER_VERBS, "pause"},
            roles[1]: {*ORCHESTRATOR_VERBS, "pause"},
            roles[2]: {"overview"},
        }
    finally:
        with trio.CancelScope(shield=True):
            await store.fetch_all("DROP SCHEMA trio_runner CASCADE")
            name = (await store.fetch_all("SELECT current_database() AS name"))[0]["name"]
            for role in quoted[:2]:
                await server.as_superuser(f"REVOKE ALL ON DATABASE {name} FROM {role}")
            await server.as_superuser(*(f"DROP ROLE {role}" for role in quoted))


@pytest.mark.parametrize("rights", ["SUPERUSER", 'IN ROLE "the ""owner"" é"'], ids=["superuser", "member"])
async def test_what_another_role_adds_to_the_schema_belongs_to_its_owner(
    server: DatabaseServer, empty_database: DatabaseSection, sql: Path, rights: str
) -> None:
    """A superuser, or a member of the owner's role, upgrades the ledger and grants; the owner goes on working."""
    database = empty_database.url.rpartition("/")[2]
    quoted = '"the ""owner"" é"'
    password = f"LOGIN PASSWORD '{OWNER_PASSWORD}'"
    await server.as_superuser(
        f"CREATE ROLE {quoted} {password}",
        f"CREATE ROLE administrator {password} {rights}",
        "CREATE ROLE a_runner",
        f"GRANT CREATE ON DATABASE {database} TO {quoted}",
    )
    urls = [f"postgresql://{user}@localhost:{server.port}/{database}" for user in (IN_URL, "administrator")]
    sections = [DatabaseSection(**server.section(url=url)) for url in urls]
    try:
        async with (
            aio.open_loop(),
            open_store(sections[0], application_name="owner") as owner,
            open_store(sections[1], application_name="administrator") as administrator,
        ):
            await owner.create_schema()
            await owner.fetch_all("DROP FUNCTION heartbeat")
            await owner.fetch_all("DELETE FROM schema_files WHERE name = 'functions/heartbeat.sql'")
            (sql / "changes" / "9001_notes.sql").write_text("CREATE TABLE notes (id bigint PRIMARY KEY);")
            assert await administrator.create_schema() == ["changes/9001_notes.sql", "functions/heartbeat.sql"]
            await administrator.grant("a_runner")

            await owner.check_rights(verbs=ORCHESTRATOR_VERBS)
            assert await owner.fetch_all("SELECT * FROM notes") == []
            owners = await owner.fetch_all(
                "SELECT proowner::regrole::text AS name FROM pg_proc WHERE pronamespace = 'trio_runner'::regnamespace"
                " UNION SELECT relowner::regrole::text FROM pg_class"
                " WHERE relnamespace = 'trio_runner'::regnamespace"
            )
            assert owners == [{"name": quoted}]
            allowed = "SELECT has_function_privilege('a_runner', 'heartbeat'::regproc, 'EXECUTE') AS heartbeat"
            assert await owner.fetch_all(allowed) == [{"heartbeat": True}]
            # The role of the transaction ended with it.
            assert await administrator.fetch_all("SELECT current_user::text AS name") == [{"name": "administrator"}]

            # The first files go into the owner's empty schema in the same way.
            await owner.fetch_all("DROP SCHEMA trio_runner CASCADE")
            await owner.fetch_all("CREATE SCHEMA trio_runner")
            assert await administrator.create_schema() == FILES
            await owner.check_rights(verbs=ORCHESTRATOR_VERBS)
            assert await reading.scenarios(owner) == []
    finally:
        with trio.CancelScope(shield=True):
            async with aio.open_loop(), open_store(empty_database, application_name="x") as store:
                await server.as_superuser(f"GRANT {quoted} TO {OWNER}")
                await store.fetch_all(f"DROP OWNED BY {quoted} CASCADE")
            await server.as_superuser(
                f"REVOKE ALL ON DATABASE {database} FROM {quoted}, administrator, a_runner",
                f"DROP ROLE administrator, a_runner, {quoted}",
            )


# changes to tables


async def test_a_change_reaches_every_database_once(store: Store, server: DatabaseServer, sql: Path) -> None:
    """A ledger in use gets the numbered files that it lacks, in order; a new one has them from the start."""
    await store.create_schema()
    claim = await store.claim(attempt(7))
    await store.store(claim, 0, [make_result(0)])

    edit(sql / "tables.sql", "    error       jsonb,\n", "    error       jsonb,\n    note        varchar(9),\n")
    # In the wrong order the second would fail.
    (sql / "changes" / "9001_note.sql").write_text("ALTER TABLE attempts ADD COLUMN note text;")
    (sql / "changes" / "9002_short_note.sql").write_text("ALTER TABLE attempts ALTER COLUMN note TYPE varchar(9);")
    with pytest.raises(RunnerError, match=r"out of date in changes/9001_note\.sql, changes/9002_short_note\.sql;"):
        await store.check_schema()
    assert await store.create_schema() == ["changes/9001_note.sql", "changes/9002_short_note.sql"]
    assert await store.create_schema() == []
    await store.check_schema()
    assert len(await reading.attempts(store, 7)) == 1

    edit(
        sql / "tables.sql",
        "    error       jsonb,\n    note",
        "    error       jsonb,\n    more        text,\n    note",
    )
    (sql / "changes" / "9003_more.sql").write_text("ALTER TABLE attempts ADD COLUMN more text;")
    edit(sql / "functions" / "unproven.sql", "count(*)", "count(1)")
    assert await store.create_schema() == ["changes/9003_more.sql", "functions/unproven.sql"]
    grown = await tables(store)

    await store.fetch_all("DROP SCHEMA trio_runner CASCADE")
    assert await store.create_schema() == FILES
    assert await store.create_schema() == []
    assert await tables(store) == grown
    names = [row["name"] for row in await store.fetch_all("SELECT name FROM schema_files ORDER BY applied_at, name")]
    assert [name for name in names if name.startswith("changes/9")] == [
        "changes/9001_note.sql",
        "changes/9002_short_note.sql",
        "changes/9003_more.sql",
    ]


BEFORE_NOT_INFERRED = (
    (
        "    detections   jsonb CHECK (jsonb_typeof(detections) = 'array'),\n",
        "    detections   jsonb NOT NULL CHECK (jsonb_typeof(detections) = 'array'),\n",
    ),
    ("    error        text CHECK (length(error) BETWEEN 1 AND 1000),\n", ""),
    ("index),\n    CHECK ((detections IS NULL) = (error IS NOT NULL))\n", "index)\n"),
    ("CREATE INDEX predictions_not_inferred ON predictions (scenario_id) WHERE error IS NOT NULL;\n", ""),
    (
        ", (d.value ->> 'class_id')::bigint AS class_id,\n       coalesce(d.value -> 'attributes', '{}') AS attributes",
        "",
    ),
    (
        (
            "CREATE VIEW frames AS\n"
            "SELECT p.scenario_id, p.frame_index, p.pts_seconds, p.width, p.height, p.error IS NULL AS inferred,"
            " p.error,\n"
            "       jsonb_array_length(p.detections) AS detections, p.inference_ms\n"
            "  FROM predictions p;\n"
        ),
        "",
    ),
)
"""Edits of tables.sql that lead from the tables of revision 2 back to those of revision 1."""


async def definitions(store: Store) -> list[dict[str, Any]]:
    """Constraints, indexes and views as PostgreSQL understands them."""
    return await store.fetch_all(
        "SELECT conname::text AS name, pg_get_constraintdef(oid) AS text FROM pg_constraint"
        " WHERE connamespace = 'trio_runner'::regnamespace"
        " UNION ALL SELECT indexname::text, indexdef FROM pg_indexes WHERE schemaname = 'trio_runner'"
        " UNION ALL SELECT viewname::text, definition FROM pg_views WHERE schemaname = 'trio_runner' ORDER BY 1, 2"
    )


async def test_a_ledger_of_revision_1_becomes_what_a_new_one_is(
    store: Store, sql: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are stored already stay as they are, and count as inferred."""
    mine = sql.with_name("mine")
    shutil.copytree(sql, mine)
    for old, new in BEFORE_NOT_INFERRED:
        edit(sql / "tables.sql", old, new)
    for name in CHANGES:
        (sql / name).unlink()
    monkeypatch.setattr(schema, "REVISION", 1)
    # The functions of revision 2 are made on the tables of revision 1, where PostgreSQL would miss a column.
    await store.fetch_all("SET check_function_bodies = off")
    await store.create_schema()
    await store.fetch_all("INSERT INTO scenarios (id, video_path) VALUES (7, '/a.mp4')")
    await store.fetch_all(
        "INSERT INTO predictions (scenario_id, frame_index, epoch, pts_seconds, width, height, inference_ms,"
        " detections)"
        """ VALUES (7, 0, 1, 0, 640, 480, 1, '[{"label": "dog", "confidence": null, "bbox": [1, 2, 3, 4]}]')"""
    )

    monkeypatch.setattr(schema, "directory", lambda: mine)
    monkeypatch.setattr(schema, "REVISION", 2)
    assert await store.create_schema() == CHANGES
    await store.check_schema()
    carried_over = await tables(store), await definitions(store)
    (frame,) = await store.fetch_all("SELECT * FROM frames")
    assert (frame["inferred"], frame["error"], frame["detections"]) == (True, None, 1)
    (detection,) = await store.fetch_all("SELECT * FROM detections")
    assert (detection["label"], detection["class_id"], detection["attributes"]) == ("dog", None, "{}")

    await store.fetch_all("DROP SCHEMA trio_runner CASCADE")
    assert await store.create_schema() == FILES
    assert (await tables(store), await definitions(store)) == carried_over


async def test_a_change_that_fails_leaves_everything_as_it_was(store: Store, sql: Path) -> None:
    await store.create_schema()
    before = await tables(store), await store.fetch_all("SELECT * FROM schema_files ORDER BY name")
    (sql / "changes" / "9001_good.sql").write_text("ALTER TABLE attempts ADD COLUMN note text;")
    (sql / "changes" / "9002_bad.sql").write_text("ALTER TABLE attempts ADD COLUMN note text;")
    with pytest.raises(RunnerError, match="already exists"):
        await store.create_schema()
    assert (await tables(store), await store.fetch_all("SELECT * FROM schema_files ORDER BY name")) == before


async def test_a_change_may_take_longer_than_a_command(empty_database: DatabaseSection, sql: Path) -> None:
    """Neither the time of a command nor what the session allows a statement or a lock ends it."""
    hurried = DatabaseSection(
        **{name: getattr(empty_database, name) for name in empty_database.__struct_fields__}
        | {"command_timeout_seconds": 3.0}
    )
    async with (
        aio.open_loop(),
        open_store(empty_database, application_name="reader") as reader,
        open_store(hurried, application_name="x") as store,
    ):
        await reader.create_schema()
        await store.fetch_all("SET lock_timeout = '100ms'")
        (sql / "changes" / "9001_slow.sql").write_text("SELECT pg_sleep(4); ALTER TABLE attempts ADD COLUMN note text;")

        async def read_for_long() -> None:
            await reader.fetch_all("SELECT pg_sleep(6) FROM (SELECT count(*) FROM attempts) a")

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read_for_long)
            assert await store.create_schema() == ["changes/9001_slow.sql"]
        with pytest.raises(RunnerError, match=r"within 3 s|statement timeout"):
            await store.fetch_all("SELECT pg_sleep(60)")


async def test_a_change_is_bounded_all_the_same(
    empty_database: DatabaseSection, sql: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with aio.open_loop():
        async with open_store(empty_database, application_name="x") as store:
            await store.create_schema()
            (sql / "changes" / "9001_endless.sql").write_text("SELECT pg_sleep(1000);")
            monkeypatch.setattr(schema, "MIGRATION_SECONDS", 0.3)
            with pytest.raises(RunnerError) as caught:
                await store.create_schema()
        assert caught.value.code is ErrorCode.STORE_TIMEOUT
        async with open_store(empty_database, application_name="x") as store:
            with pytest.raises(RunnerError, match=r"out of date in changes/9001_endless\.sql"):
                await store.check_schema()


# two versions, and ledgers of no version


async def test_an_older_program_leaves_a_newer_database_alone(
    store: Store, sql: Path, scenario_id: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two versions that start in turn do not replace each other's functions; the older one works with the newer's."""
    older, mine = schema.directory(), schema.REVISION
    newer = sql.with_name("newer")
    shutil.copytree(sql, newer)
    edit(newer / "functions" / "unproven.sql", "count(*)", "count(1)")
    edit(newer / "tables.sql", "    error       jsonb,\n", "    error       jsonb,\n    note        text,\n")
    (newer / "changes" / "9001_note.sql").write_text("ALTER TABLE attempts ADD COLUMN note text;")
    await store.create_schema()

    monkeypatch.setattr(schema, "directory", lambda: newer)
    monkeypatch.setattr(schema, "REVISION", mine + 1)
    assert await store.create_schema() == ["changes/9001_note.sql", "functions/unproven.sql"]
    after = await functions(store, *ORCHESTRATOR_VERBS)

    monkeypatch.setattr(schema, "directory", lambda: older)
    monkeypatch.setattr(schema, "REVISION", mine)
    for _ in range(2):
        assert await store.create_schema() == []
        await store.check_schema()
        await store.check_rights(verbs=ORCHESTRATOR_VERBS)
    assert await functions(store, *ORCHESTRATOR_VERBS) == after
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0)])
    assert await report(store, claim)

    (newer / "functions" / "label_counts.sql").unlink()
    monkeypatch.setattr(schema, "directory", lambda: newer)
    monkeypatch.setattr(schema, "REVISION", mine + 2)
    await store.create_schema()
    monkeypatch.setattr(schema, "directory", lambda: older)
    monkeypatch.setattr(schema, "REVISION", mine)
    with pytest.raises(RunnerError, match=r"no function label_counts.*upgrade") as caught:
        await store.check_rights()
    assert caught.value.code is ErrorCode.STORE_SCHEMA
    assert await store.create_schema() == []


OLD_LEDGER = """
    CREATE SCHEMA trio_runner;
    CREATE TABLE trio_runner.schema_migrations
        (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now());
    INSERT INTO schema_migrations (name) VALUES ('0001_tables.sql'), ('0002_verbs.sql'), ('0003_roles.sql'),
        ('0004_reports.sql'), ('0005_outbox.sql'), ('0006_work.sql');
    CREATE TABLE scenarios (id bigint PRIMARY KEY, video_path text NOT NULL, status text NOT NULL, sampling text);
    INSERT INTO scenarios VALUES (7, '/a.mp4', 'init_startup', 'stride 1, max_fps 0.0');
    CREATE FUNCTION claim(bigint, text, bigint, uuid, text, text, interval, integer, text, text)
        RETURNS TABLE (claimed_epoch bigint) LANGUAGE sql AS 'SELECT 1::bigint'
"""


async def test_a_ledger_of_a_version_before_the_first_release_is_refused(store: Store) -> None:
    """As it was made until then: other names of files, the sampling in words, a claim() of other arguments."""
    for statement in OLD_LEDGER.split(";"):
        await store.fetch_all(statement)
    for verb in (
        store.create_schema(),
        store.check_schema(),
        store.check_rights(),
        store.check_rights(may_create=True, verbs=ORCHESTRATOR_VERBS),
    ):
        with pytest.raises(RunnerError) as caught:
            await verb
        assert caught.value.code is ErrorCode.STORE_SCHEMA
        assert str(caught.value) == (
            "store_schema: this ledger was made by a version before 0.1.0, which cannot be carried over; finish its"
            " scenarios with that version, or DROP SCHEMA trio_runner CASCADE and run: trio-runner init-db CONFIG"
        )
    (kept,) = await reading.scenarios(store)
    assert kept["sampling"] == "stride 1, max_fps 0.0"
    await store.fetch_all("DROP SCHEMA trio_runner CASCADE")
    assert await store.create_schema() == FILES


async def test_a_ledger_with_tables_of_another_build_is_refused(store: Store, sql: Path) -> None:
    await store.create_schema()
    edit(sql / "tables.sql", "    error       jsonb,\n", "    error       jsonb,\n    note        text,\n")
    for verb in (store.create_schema(), store.check_schema()):
        with pytest.raises(RunnerError, match=r"tables\.sql differs.*DROP SCHEMA") as caught:
            await verb
        assert caught.value.code is ErrorCode.STORE_SCHEMA


@pytest.mark.parametrize(
    "loss",
    ["DROP TABLE schema_files", "TRUNCATE schema_files", "DELETE FROM schema_files WHERE name = 'tables.sql'"],
    ids=["no table", "no row", "no row of the tables"],
)
async def test_a_ledger_without_its_record_of_files_is_refused_with_the_remedy(store: Store, loss: str) -> None:
    await store.create_schema()
    await store.fetch_all(loss)
    for verb in (store.create_schema(), store.check_schema(), store.check_rights(may_create=True)):
        with pytest.raises(RunnerError) as caught:
            await verb
        assert str(caught.value) == (
            "store_schema: this ledger has tables, but trio_runner.schema_files does not record which files made them;"
            " restore that table from a backup, or DROP SCHEMA trio_runner CASCADE and run: trio-runner init-db CONFIG"
        )
    assert await reading.scenarios(store) == []

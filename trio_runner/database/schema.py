"""The ledger's schema: the SQL files of this version, what a database lacks of them, and how they are applied.

`sql/tables.sql` makes the tables of a new database. From 0.1.0 on each change to them is also a numbered file,
`sql/changes/0001_what.sql`, which existing databases get in order and once; a new database has them all from the
start. `sql/functions/NAME.sql` is the one text of the function NAME, which is applied again wherever it differs.

Programs of two versions may work on one database while a fleet is upgraded or set back. REVISION orders them: a
program applies nothing to a database of a higher revision. It goes on with the newer functions, as the runners do that
were started before the upgrade, and is refused where a function that it calls is no longer there. So two versions that
start in turn do not replace each other's functions. A release that changes a file of `sql/` raises REVISION.
"""

from __future__ import annotations

import hashlib
import re
from importlib import resources
from typing import TYPE_CHECKING, Final, NamedTuple

import asyncpg

from trio_runner.database import rights
from trio_runner.database.connection import SCHEMA, SCHEMA_LOCK
from trio_runner.errors import ErrorCode, RunnerError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from importlib.resources.abc import Traversable

REVISION: Final = 2
"""Of the files in `sql/`; higher in each release that changes one of them."""

MIGRATION_SECONDS: Final = 3600.0
"""How long all changes together may take, locks included. A large table takes minutes to get a column or an index."""

_TABLES: Final = "tables.sql"
_CHANGES, _FUNCTIONS = "changes/", "functions/"
_MANY: Final = 3


class _Applied(NamedTuple):
    sha256: str
    revision: int


def directory() -> Traversable:
    """Where the SQL files of this version lie."""
    return resources.files("trio_runner").joinpath("database/sql")


def files() -> dict[str, str]:
    """The SQL files of this version by name, in the order in which they are applied."""
    texts = {_TABLES: directory().joinpath(_TABLES).read_text(encoding="utf-8")}
    for prefix in (_CHANGES, _FUNCTIONS):
        folder = directory().joinpath(prefix.rstrip("/"))
        paths = [path for path in folder.iterdir() if path.name.endswith(".sql")] if folder.is_dir() else []
        for path in sorted(paths, key=lambda path: path.name):
            texts[prefix + path.name] = path.read_text(encoding="utf-8")
    return texts


def digest(text: str) -> str:
    """SHA-256 of the text; a comment that is reworded, or an empty line, is no change."""
    lines = (re.sub(r"\s*--.*", "", line).rstrip() for line in text.splitlines())
    return hashlib.sha256("\n".join(filter(None, lines)).encode()).hexdigest()


async def missing(connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    """asyncio-flavoured. The names of the files that this database lacks or has in an older text, in order.

    Raises:
        RunnerError: `store_schema`: the database cannot be brought to this version.
    """
    return _differing(await _applied(connection), files())


def summary(names: Sequence[str]) -> str:
    """These files in a few words."""
    functions = [name for name in names if name.startswith(_FUNCTIONS)]
    others = [name for name in names if name not in functions]
    few = functions if len(functions) <= _MANY else [f"{len(functions)} functions"]
    return ", ".join([*others, *few])


async def create(connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    """asyncio-flavoured. Apply what is missing in one transaction and return its names; needs no right if nothing is.

    Runners that start at the same time on an empty database take turns by the advisory lock. Neither the connection's
    command_timeout nor the session's timeouts apply, only MIGRATION_SECONDS.

    Raises:
        RunnerError: `store_schema`: this role may not do that, or the database cannot be brought to this version.
    """
    lacking = await missing(connection)
    if not lacking:
        return []
    milliseconds = int(MIGRATION_SECONDS * 1000)
    try:
        # At a stricter isolation level, `_applied` would not see what another runner did while this one waited.
        async with connection.transaction(isolation="read_committed"):
            await connection.execute(
                f"SET LOCAL statement_timeout = {milliseconds}; SET LOCAL lock_timeout = {milliseconds}"
            )
            await _execute(connection, f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK})")
            await rights.become_owner(connection)
            return await _apply(connection)
    except asyncpg.InsufficientPrivilegeError as error:
        raise _lacks(lacking, f", and this role may not change it ({error})", owner=True) from error


async def check_rights(
    connection: asyncpg.Connection[asyncpg.Record],
    may_create: bool,  # noqa: FBT001 - handed through
    verbs: Sequence[str],
) -> None:
    """asyncio-flavoured. Check that this role, who calls these verbs, could work here.

    Raises:
        RunnerError: `store_schema`, `store_auth` or `store_rejected`, with the remedy.
    """
    lacking = await missing(connection)
    if lacking and not may_create:
        raise _lacks(lacking)
    if lacking and not await connection.fetchval("SELECT has_database_privilege(current_database(), 'CREATE')"):
        raise _lacks(lacking, owner=True)
    if not lacking:
        allowed = await rights.callable_verbs(connection, verbs)
        if gone := [verb for verb in verbs if verb not in allowed]:
            what = f"the database has no function {', '.join(gone)}, although it is not older than this program"
            raise RunnerError(ErrorCode.STORE_SCHEMA, f"{what}; upgrade the program")
        if not all(allowed.values()):
            runner = verbs == rights.RUNNER_VERBS
            who, option = ("runner", "--grant") if runner else ("orchestrator", "--grant-orchestrator")
            remedy = f"as the schema's owner: trio-runner init-db CONFIG {option} ROLE"
            raise RunnerError(ErrorCode.STORE_AUTH, f"this role may not call the {who}'s functions; {remedy}")
    if await connection.fetchval("SELECT current_setting('transaction_read_only') = 'on'"):
        why = "PostgreSQL takes no writes here: a standby, or default_transaction_read_only is on"
        raise RunnerError(ErrorCode.STORE_REJECTED, why)


async def check_complete(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """asyncio-flavoured. Raise `store_schema` unless the database has every file of this version, or a newer one's."""
    if lacking := await missing(connection):
        raise _lacks(lacking)


def _lacks(names: Sequence[str], also: str = "", *, owner: bool = False) -> RunnerError:
    run = "run as the schema's owner" if owner else "run"
    what = f"the schema is missing or out of date in {summary(names)}{also}"
    return RunnerError(ErrorCode.STORE_SCHEMA, f"{what}; {run}: trio-runner init-db CONFIG")


async def _applied(connection: asyncpg.Connection[asyncpg.Record]) -> dict[str, _Applied]:
    """What the database records of the files; nothing where it has no schema.

    Raises:
        RunnerError: `store_schema`: it has the schema of a version before 0.1.0, whose files had other names; or its
            tables exist without a record of the files that made them.
    """
    relations = await connection.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = to_regnamespace($1)"
        " AND relname IN ('schema_files', 'schema_migrations', 'scenarios')",
        SCHEMA,
    )
    found = {row["relname"] for row in relations}
    applied: dict[str, _Applied] = {}
    if "schema_files" in found:
        rows = await connection.fetch("SELECT name, sha256, revision FROM trio_runner.schema_files")
        applied = {row["name"]: _Applied(row["sha256"], row["revision"]) for row in rows}
    elif "schema_migrations" in found:
        raise _foreign("a version before 0.1.0")
    if found and _TABLES not in applied:
        raise _unrecorded()
    return applied


def _foreign(maker: str) -> RunnerError:
    remedy = (
        f"finish its scenarios with that version, or DROP SCHEMA {SCHEMA} CASCADE and run: trio-runner init-db CONFIG"
    )
    return RunnerError(
        ErrorCode.STORE_SCHEMA, f"this ledger was made by {maker}, which cannot be carried over; {remedy}"
    )


def _unrecorded() -> RunnerError:
    what = f"this ledger has tables, but {SCHEMA}.schema_files does not record which files made them"
    remedy = f"restore that table from a backup, or DROP SCHEMA {SCHEMA} CASCADE and run: trio-runner init-db CONFIG"
    return RunnerError(ErrorCode.STORE_SCHEMA, f"{what}; {remedy}")


def _differing(applied: Mapping[str, _Applied], texts: Mapping[str, str]) -> list[str]:
    """The names of files to apply, and of functions to drop because no file defines them any more."""
    if not applied:
        # tables.sql has every change in it.
        return [name for name in texts if not name.startswith(_CHANGES)]
    if max(row.revision for row in applied.values()) > REVISION:
        return []
    changes = [name for name in texts if name.startswith(_CHANGES) and name not in applied]
    if not changes and applied[_TABLES].sha256 != digest(texts[_TABLES]):
        # Only a build between two releases can have made it: from one release to the next there is a change file.
        raise _foreign(f"another build, with other tables ({_TABLES} differs)")
    functions = [
        name
        for name, text in texts.items()
        if name.startswith(_FUNCTIONS) and (name not in applied or applied[name].sha256 != digest(text))
    ]
    stale = [name for name in applied if name.startswith(_FUNCTIONS) and name not in texts]
    return changes + functions + stale


async def _apply(connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    """Within the transaction: apply what is still missing, and return its names."""
    texts, applied = files(), await _applied(connection)
    names = _differing(applied, texts)
    if not names:
        return []
    if not applied:
        # IF NOT EXISTS would ask for the right to create schemas also where there is nothing to create.
        if await connection.fetchval("SELECT to_regnamespace($1) IS NULL", SCHEMA):
            await _execute(connection, f"CREATE SCHEMA {SCHEMA}")
        await _execute(
            connection,
            f"CREATE TABLE {SCHEMA}.schema_files (name text PRIMARY KEY, sha256 text NOT NULL,"
            " revision integer NOT NULL, applied_at timestamptz NOT NULL DEFAULT now())",
        )
    before = await rights.functions_and_grants(connection)
    for name in names:
        if name.startswith(_FUNCTIONS):
            await _replace_function(connection, _function_of(name), texts.get(name))
        else:
            await _execute(connection, texts[name])
    functions = [_function_of(name) for name in texts if name.startswith(_FUNCTIONS)]
    for statement in (rights.securing(functions), *rights.restoring_grants(before, functions)):
        await _execute(connection, statement)
    await _record(connection, texts)
    return names


async def _replace_function(connection: asyncpg.Connection[asyncpg.Record], name: str, text: str | None) -> None:
    """Bring the function to this text, whatever its arguments and results were; without a text, drop it."""
    old = await _signatures(connection, name)
    if text is not None:
        try:
            async with connection.transaction():
                await _execute(connection, text)
        except asyncpg.InvalidFunctionDefinitionError:
            # CREATE OR REPLACE cannot change what a function returns, nor the names of its arguments.
            await _drop(connection, old)
            await _execute(connection, text)
            return
        if set(await _signatures(connection, name)) == set(old):
            return
    await _drop(connection, old)


async def _signatures(connection: asyncpg.Connection[asyncpg.Record], name: str) -> list[str]:
    query = "SELECT oid::regprocedure::text FROM pg_proc WHERE pronamespace = to_regnamespace($1) AND proname = $2"
    return [row[0] for row in await connection.fetch(query, SCHEMA, name)]


async def _drop(connection: asyncpg.Connection[asyncpg.Record], signatures: Iterable[str]) -> None:
    for signature in signatures:
        await _execute(connection, f"DROP FUNCTION {signature}")


async def _record(connection: asyncpg.Connection[asyncpg.Record], texts: Mapping[str, str]) -> None:
    """Note every file of this version with its text; every row gets this revision, also where the text is the same."""
    await _execute(
        connection,
        "DELETE FROM trio_runner.schema_files WHERE name LIKE 'functions/%' AND name <> ALL($1)",
        list(texts),
    )
    await _execute(
        connection,
        "INSERT INTO trio_runner.schema_files AS f (name, sha256, revision)"
        " SELECT name, sha256, $3 FROM unnest($1::text[], $2::text[]) AS u(name, sha256)"
        " ON CONFLICT (name) DO UPDATE SET sha256 = excluded.sha256, revision = excluded.revision,"
        " applied_at = CASE WHEN f.sha256 = excluded.sha256 THEN f.applied_at ELSE excluded.applied_at END",
        list(texts),
        [digest(text) for text in texts.values()],
        REVISION,
    )


async def _execute(connection: asyncpg.Connection[asyncpg.Record], sql: str, *args: object) -> None:
    await connection.execute(sql, *args, timeout=MIGRATION_SECONDS)


def _function_of(name: str) -> str:
    return name.removeprefix(_FUNCTIONS).removesuffix(".sql")

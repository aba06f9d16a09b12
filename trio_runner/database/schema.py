"""The ledger's schema: which of its files a database lacks, how they are applied, and what a runner's role gets."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Final

import asyncpg

from trio_runner.database.connection import SCHEMA
from trio_runner.errors import ErrorCode, RunnerError

if TYPE_CHECKING:
    from collections.abc import Sequence
    from importlib.resources.abc import Traversable

RUNNER_VERBS: Final = (
    "claim",
    "store",
    "heartbeat",
    "finish",
    "fail",
    "expired_claim",
    "expired_claims",
    "attempt_of",
    "unpublished_event",
    "mark_published",
    "hand_over",
    "unpublished",
    "is_completed",
    "label_counts",
)
"""The functions that a runner calls; each runs with the rights of the schema's owner."""

ORCHESTRATOR_VERBS: Final = (
    *RUNNER_VERBS,
    "submit",
    "stop",
    "retry",
    "apply_command",
    "due",
    "postpone",
    "shutdowns",
    "reconcile",
    "claim_of",
    "dead_letters",
    "mark_dead_letter_published",
    "recent_attempts",
    "unproven",
    "backlog",
    "overview",
)
"""The functions that an orchestrator calls, and those who submit, stop and retry."""

_LOCK: Final = 0x7472_696F


def files() -> list[Traversable]:
    """The schema files of this version, in the order in which they are applied."""
    directory = resources.files("trio_runner").joinpath("database/sql")
    return sorted((path for path in directory.iterdir() if path.name.endswith(".sql")), key=lambda path: path.name)


async def missing(connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    """asyncio-flavoured. The names of the files that this database lacks."""
    try:
        rows = await connection.fetch("SELECT name FROM trio_runner.schema_migrations")
    except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
        rows = []
    applied = {row["name"] for row in rows}
    return [path.name for path in files() if path.name not in applied]


async def create(connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    """asyncio-flavoured. Apply what is missing in one transaction and return its names; needs no right if nothing is.

    Two runners on an empty database take turns by the advisory lock.

    Raises:
        RunnerError: `store_schema`: this role may not do that.
    """
    lacking = await missing(connection)
    if not lacking:
        return []
    try:
        async with connection.transaction():
            await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
            return await _apply(connection)
    except asyncpg.InsufficientPrivilegeError as error:
        raise RunnerError(
            ErrorCode.STORE_SCHEMA,
            f"the database lacks {', '.join(lacking)}, and this role may not create it ({error}); "
            "run as the schema's owner: trio-runner init-db CONFIG",
        ) from error


async def check_rights(
    connection: asyncpg.Connection[asyncpg.Record],
    may_create: bool,  # noqa: FBT001 - handed through
    verbs: Sequence[str],
) -> None:
    """asyncio-flavoured. Whether who calls these verbs could work here, as this role.

    Raises:
        RunnerError: `store_schema`, `store_auth` or `store_rejected`, with the remedy.
    """
    lacking = await missing(connection)
    if lacking and not may_create:
        remedy = "run: trio-runner init-db CONFIG"
        raise RunnerError(ErrorCode.STORE_SCHEMA, f"the database lacks {', '.join(lacking)}; {remedy}")
    if lacking and not await connection.fetchval("SELECT has_database_privilege(current_database(), 'CREATE')"):
        remedy = "run as the schema's owner: trio-runner init-db CONFIG"
        raise RunnerError(ErrorCode.STORE_SCHEMA, f"the database lacks {', '.join(lacking)}; {remedy}")
    allowed = await connection.fetchval(
        "SELECT bool_and(has_function_privilege(oid, 'EXECUTE')) FROM pg_proc"
        " WHERE pronamespace = to_regnamespace($1) AND proname = ANY($2)",
        SCHEMA,
        list(verbs),
    )
    if not lacking and not allowed:
        who, option = ("runner", "--grant") if verbs == RUNNER_VERBS else ("orchestrator", "--grant-orchestrator")
        remedy = f"as the schema's owner: trio-runner init-db CONFIG {option} ROLE"
        raise RunnerError(ErrorCode.STORE_AUTH, f"this role may not call the {who}'s functions; {remedy}")
    if await connection.fetchval("SELECT current_setting('transaction_read_only') = 'on'"):
        why = "PostgreSQL takes no writes here: a standby, or default_transaction_read_only is on"
        raise RunnerError(ErrorCode.STORE_REJECTED, why)


async def _apply(connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    # IF NOT EXISTS would ask for the right to create schemas also where there is nothing to create.
    if await connection.fetchval("SELECT to_regnamespace($1) IS NULL", SCHEMA):
        await connection.execute(f"CREATE SCHEMA {SCHEMA}")
    await connection.execute(
        f"CREATE TABLE IF NOT EXISTS {SCHEMA}.schema_migrations"
        " (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
    )
    lacking = await missing(connection)
    for path in files():
        if path.name in lacking:
            await connection.execute(path.read_text())
            await connection.execute("INSERT INTO trio_runner.schema_migrations (name) VALUES ($1)", path.name)
    return lacking


async def grant(connection: asyncpg.Connection[asyncpg.Record], role: str, verbs: Sequence[str]) -> None:
    """asyncio-flavoured. Let the role call these verbs, and do nothing else; it must exist.

    Raises:
        RunnerError: `store_auth`: there is no such role, or whoever is logged in may not grant this.
    """
    names = await connection.fetchrow(
        "SELECT quote_ident(rolname) AS role, quote_ident(current_database()) AS database"
        " FROM pg_roles WHERE rolname = $1",
        role,
    )
    if names is None:
        remedy = "make it first: CREATE ROLE name LOGIN PASSWORD '...'"
        raise RunnerError(ErrorCode.STORE_AUTH, f"there is no role {role!r}; {remedy}")
    async with connection.transaction():
        await connection.execute(
            f"GRANT CONNECT ON DATABASE {names['database']} TO {names['role']};"
            f"GRANT USAGE ON SCHEMA {SCHEMA} TO {names['role']};"
            f"GRANT SELECT ON {SCHEMA}.schema_migrations TO {names['role']};"
            f"GRANT EXECUTE ON FUNCTION {', '.join(f'{SCHEMA}.{verb}' for verb in verbs)} TO {names['role']}"
        )
        # Whoever has a right without having it to give gets no more than a warning.
        given = await connection.fetchval(
            "SELECT bool_and(has_function_privilege($1, oid, 'EXECUTE')) AND has_schema_privilege($1, $2, 'USAGE')"
            " FROM pg_proc WHERE pronamespace = to_regnamespace($2) AND proname = ANY($3)",
            role,
            SCHEMA,
            list(verbs),
        )
    if not given:
        raise RunnerError(ErrorCode.STORE_AUTH, f"only the owner of the schema {SCHEMA} can grant these rights")

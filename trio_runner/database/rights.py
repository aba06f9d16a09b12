"""Who may call which of the ledger's functions: a runner's role, an orchestrator's, and nobody else."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trio_runner.database.connection import SCHEMA, SCHEMA_LOCK
from trio_runner.errors import ErrorCode, RunnerError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    import asyncpg

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
    "count_unpublished",
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
"""The functions that an orchestrator calls, and the verbs that submit, stop and retry scenarios."""


async def become_owner(connection: asyncpg.Connection[asyncpg.Record]) -> None:
    """asyncio-flavoured. Until the transaction ends, act as the role that owns the ledger, if this role is its member.

    A superuser is a member of every role. A function that a superuser creates under its own name could not be called
    by the owner, and the owner's functions could not reach a table that a superuser creates.
    """
    # The owner of a schema may let another role create the ledger in it. The tables then belong to that other role.
    owner = await connection.fetchval(
        "SELECT quote_ident(pg_get_userbyid(o.owner)) FROM (SELECT coalesce("
        "(SELECT relowner FROM pg_class WHERE relnamespace = to_regnamespace($1) AND relname = 'schema_files'),"
        "(SELECT nspowner FROM pg_namespace WHERE nspname = $1)) AS owner) o"
        " WHERE pg_get_userbyid(o.owner) <> current_user AND pg_has_role(o.owner, 'MEMBER')",
        SCHEMA,
    )
    if owner is not None:
        await connection.execute(f"SET LOCAL ROLE {owner}")


async def grant(connection: asyncpg.Connection[asyncpg.Record], role: str, verbs: Sequence[str]) -> None:
    """asyncio-flavoured. Let the role call these functions, and do nothing else; the role must exist.

    Raises:
        RunnerError: `store_auth`: there is no such role, or the role that is logged in may not grant this.
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
            f"SELECT pg_advisory_xact_lock({SCHEMA_LOCK});"
            f"GRANT CONNECT ON DATABASE {names['database']} TO {names['role']};"
            f"GRANT USAGE ON SCHEMA {SCHEMA} TO {names['role']};"
            f"GRANT SELECT ON {SCHEMA}.schema_files TO {names['role']};"
            f"{_grant_execute(names['role'], verbs)}"
        )
        # PostgreSQL only warns where the role that is logged in has a right without being allowed to grant it.
        granted = await connection.fetchval(
            "SELECT bool_and(has_function_privilege($1, oid, 'EXECUTE')) AND has_schema_privilege($1, $2, 'USAGE')"
            " FROM pg_proc WHERE pronamespace = to_regnamespace($2) AND proname = ANY($3)",
            role,
            SCHEMA,
            list(verbs),
        )
    if not granted:
        raise RunnerError(ErrorCode.STORE_AUTH, f"only the owner of the schema {SCHEMA} can grant these rights")


async def callable_verbs(connection: asyncpg.Connection[asyncpg.Record], verbs: Sequence[str]) -> dict[str, bool]:
    """asyncio-flavoured. Those of these functions that exist, and whether the role that is logged in may call each."""
    rows = await connection.fetch(
        "SELECT proname, has_function_privilege(oid, 'EXECUTE') AS allowed FROM pg_proc"
        " WHERE pronamespace = to_regnamespace($1) AND proname = ANY($2)",
        SCHEMA,
        list(verbs),
    )
    return {row["proname"]: row["allowed"] for row in rows}


async def functions_and_grants(
    connection: asyncpg.Connection[asyncpg.Record],
) -> tuple[frozenset[str], dict[str, frozenset[str]]]:
    """asyncio-flavoured. The schema's functions; and by role, quoted, which of them each was granted."""
    rows = await connection.fetch(
        "SELECT p.proname AS name, g.grantee::regrole::text AS role FROM pg_proc p"
        " LEFT JOIN LATERAL aclexplode(p.proacl) g ON g.privilege_type = 'EXECUTE' AND g.grantee NOT IN (0, p.proowner)"
        " WHERE p.pronamespace = to_regnamespace($1)",
        SCHEMA,
    )
    grants: dict[str, set[str]] = {}
    for row in rows:
        if row["role"] is not None:
            grants.setdefault(row["role"], set()).add(row["name"])
    return frozenset(row["name"] for row in rows), {role: frozenset(names) for role, names in grants.items()}


def securing(functions: Sequence[str]) -> str:
    """The SQL that gives each of these functions its rights; CREATE FUNCTION leaves PostgreSQL's defaults.

    A verb runs as the owner of the schema, because the roles that call verbs have no right to any table. The other
    functions are called by verbs and triggers alone. The search path is fixed, because a caller may have set another
    one, and names pg_temp last, because a temporary table of the same name would otherwise come first.
    """
    return "".join(
        f"ALTER FUNCTION {SCHEMA}.{name} SECURITY {'DEFINER' if name in ORCHESTRATOR_VERBS else 'INVOKER'}"
        f" SET search_path = {SCHEMA}, pg_temp;"
        f"REVOKE EXECUTE ON FUNCTION {SCHEMA}.{name} FROM PUBLIC;"
        for name in functions
    )


def restoring_grants(
    before: tuple[frozenset[str], Mapping[str, frozenset[str]]], functions: Sequence[str]
) -> Iterator[str]:
    """The SQL statements that grant again what roles had been granted before functions were replaced.

    A role that could call each verb of a runner, or of an orchestrator, also gets the verbs that are new.
    """
    existed, grants = before
    for role, held in grants.items():
        names = set(held)
        for verbs in (RUNNER_VERBS, ORCHESTRATOR_VERBS):
            known = existed & set(verbs)
            if known and known <= held:
                names.update(verbs)
        if granted := sorted(names & set(functions)):
            yield _grant_execute(role, granted)


def _grant_execute(role: str, functions: Sequence[str]) -> str:
    return f"GRANT EXECUTE ON FUNCTION {', '.join(f'{SCHEMA}.{name}' for name in functions)} TO {role}"

"""What people ask of the ledger: scenarios, attempts, deaths, and what was found; these functions change nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trio_runner.database.store import Store


async def scenarios(store: Store, scenario_id: int | None = None) -> list[dict[str, Any]]:
    """All scenarios in the order of their ids, or just the one."""
    return await store.fetch_all("SELECT * FROM scenarios WHERE $1::bigint IS NULL OR id = $1 ORDER BY id", scenario_id)


async def attempts(store: Store, scenario_id: int) -> list[dict[str, Any]]:
    """The attempts of one scenario, in the order of their epochs."""
    return await store.fetch_all("SELECT * FROM attempts WHERE scenario_id = $1 ORDER BY epoch", scenario_id)


async def first_stored_at(store: Store, scenario_id: int) -> float | None:
    """When the scenario's first prediction was stored, in seconds since 1970; None where nothing is stored."""
    row = await store.fetch_one(
        "SELECT extract(epoch FROM min(created_at))::float8 AS at FROM predictions WHERE scenario_id = $1", scenario_id
    )
    return row["at"] if row else None


async def label_counts(store: Store, scenario_id: int) -> list[dict[str, Any]]:
    """Label, number of boxes, and number of frames with at least one such box; most boxes first."""
    return await store.fetch_all("SELECT * FROM label_counts($1)", scenario_id)


async def retry_events(store: Store) -> list[dict[str, Any]]:
    """Every recorded death with its retry event, oldest first."""
    return await store.fetch_all("SELECT * FROM retry_events ORDER BY received_at")

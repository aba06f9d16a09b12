"""Queries of the ledger for people: scenarios, attempts, deaths, detections, frames; none of them changes anything."""

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
    """Label, number of detections, and number of frames with at least one of them; most detections first."""
    return await store.fetch_all("SELECT * FROM label_counts($1)", scenario_id)


async def frame_counts(store: Store, scenario_id: int) -> dict[str, int]:
    """How many stored frames have detections, have none, and were not inferred."""
    row = await store.fetch_one(
        "SELECT count(*) FILTER (WHERE detections > 0) AS with_detections,"
        " count(*) FILTER (WHERE detections = 0) AS without_detections,"
        " count(*) FILTER (WHERE NOT inferred) AS not_inferred FROM frames WHERE scenario_id = $1",
        scenario_id,
    )
    return dict(row) if row else {}


async def not_inferred(store: Store, scenario_id: int, limit: int) -> list[dict[str, Any]]:
    """Index, presentation time and reason of the first frames that were not inferred, in the order of the video."""
    return await store.fetch_all(
        "SELECT frame_index, pts_seconds, error AS reason FROM frames WHERE scenario_id = $1 AND NOT inferred"
        " ORDER BY frame_index LIMIT $2",
        scenario_id,
        limit,
    )


async def retry_events(store: Store) -> list[dict[str, Any]]:
    """Every recorded death with its retry event, oldest first."""
    return await store.fetch_all("SELECT * FROM retry_events ORDER BY received_at")

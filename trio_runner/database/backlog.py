"""The calls of an orchestrator, and of those who submit work: what is submitted, due, to be stopped, or given up."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec

from trio_runner.base.text import printable
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import Claim

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_runner.database.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """An attempt that is due: its number, its video, and by section the keys that its runner's config is to have."""

    scenario_id: int
    epoch: int
    video_path: str
    settings: dict[str, dict[str, Any]]
    failures: int = 0
    last_code: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RecentAttempt:
    """How one of the last attempts ended, or goes on: the error code, if any, and whether it has stored anything."""

    code: str | None
    progressed: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A scenario's video, and the claim on one of its epochs: None where there is none."""

    video_path: str
    claim: Claim | None
    runner_id: str
    ended: bool
    """Whether the end of that attempt is recorded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many scenarios are in each condition; `unproven` ones were started and have yet to store something."""

    due: int
    backing_off: int
    unproven: int
    running: int
    stopping: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GivenUp:
    """A scenario that was given up, with its last attempt and the error of that attempt, as in a retry event."""

    scenario_id: int
    epoch: int
    video_path: str
    failures: int
    frames_stored: int
    error: dict[str, Any]


class Backlog:
    """The scenarios of a fleet, over the connection of a `Store`."""

    def __init__(self, store: Store) -> None:
        """The caller, who opened `store`, closes it."""
        self._store = store

    async def submit(
        self, scenario_id: int, video_path: str, settings: Mapping[str, Any], *, max_failures: int, max_epochs: int
    ) -> int:
        """Ask for a scenario to be processed; an id of 0 asks for a new one. Returns the id.

        Raises:
            ClaimRefusedError: the scenario is completed, given up, or another video's.
        """
        row = await self._one(
            "SELECT submit($1, $2, $3, $4, $5) AS id",
            scenario_id,
            printable(video_path),
            _as_json(settings),
            max_failures,
            max_epochs,
        )
        return int(row["id"])

    async def stop(self, scenario_id: int) -> str:
        """Ask for a scenario to be stopped; returns its new status. Raises ClaimRefusedError where there is none."""
        return str((await self._one("SELECT stop($1) AS status", scenario_id))["status"])

    async def retry(self, scenario_id: int, *, max_epochs: int) -> int:
        """Try a scenario again now that was given up, was stopped, or waits. Returns the attempt's number.

        Raises:
            ClaimRefusedError: the scenario is completed, or a runner works on it.
        """
        return int((await self._one("SELECT retry($1, $2) AS epoch", scenario_id, max_epochs))["epoch"])

    async def apply(
        self,
        command_id: str,
        action: str,
        scenario_id: int,
        video_path: str,
        settings: Mapping[str, Any],
        *,
        max_failures: int,
        max_epochs: int,
    ) -> bool:
        """Apply a command, `start` or `stop`; False where it was applied before."""
        row = await self._one(
            "SELECT apply_command($1, $2, $3, $4, $5, $6, $7) AS first",
            command_id,
            action,
            scenario_id,
            printable(video_path),
            _as_json(settings),
            max_failures,
            max_epochs,
        )
        return bool(row["first"])

    async def due(self, node: str, *, room: int, limit: int, lease_seconds: float) -> list[Work]:
        """The attempts that this node is to start now; for `lease_seconds` no other node gets them."""
        rows = await self._store.fetch_all(
            "SELECT * FROM due($1, $2, $3, $4)", node, room, limit, timedelta(seconds=lease_seconds)
        )
        return [Work(**row | {"settings": _settings_of(row["settings"])}) for row in rows]

    async def postpone(self, scenario_id: int, epoch: int, node: str, *, delay_seconds: float, why: str) -> bool:
        """Make an attempt due again later, because its runner did not claim it; False where it was claimed."""
        row = await self._one(
            "SELECT postpone($1, $2, $3, $4, $5) AS done",
            scenario_id,
            epoch,
            node,
            timedelta(seconds=delay_seconds),
            why,
        )
        return bool(row["done"])

    async def shutdowns(self) -> list[tuple[int, int]]:
        """Scenario and epoch of all runners to be stopped; scenarios to be stopped without a runner become inactive."""
        rows = await self._store.fetch_all("SELECT * FROM shutdowns()")
        return [(row["scenario_id"], row["epoch"]) for row in rows]

    async def holder_of(self, scenario_id: int, epoch: int) -> Holder | None:
        """The claim on that epoch, if there is one; None where there is no such scenario."""
        row = await self._store.fetch_one("SELECT * FROM claim_of($1, $2)", scenario_id, epoch)
        if row is None:
            return None
        claim = None
        if row["instance_id"] is not None:
            claim = Claim(
                scenario_id=scenario_id,
                epoch=epoch,
                instance_id=str(row["instance_id"]),
                next_frame=row["next_frame"],
                frames_stored=row["frames_stored"],
            )
        return Holder(
            video_path=row["video_path"], claim=claim, runner_id=row["runner_id"] or "", ended=bool(row["ended"])
        )

    async def reconcile(self, claims: Sequence[Claim]) -> set[tuple[int, int]]:
        """Note that Kafka has these deaths; returns scenario and epoch of those that the ledger has yet to record."""
        rows = await self._store.fetch_all(
            "SELECT * FROM reconcile($1, $2, $3)",
            [claim.scenario_id for claim in claims],
            [claim.epoch for claim in claims],
            [UUID(claim.instance_id) for claim in claims],
        )
        return {(row["scenario_id"], row["epoch"]) for row in rows}

    async def dead_letters(self, limit: int, *, lease_seconds: float) -> list[GivenUp]:
        """The scenarios given up that the dead-letter topic lacks; for this caller alone until the lease ends."""
        rows = await self._store.fetch_all(
            "SELECT * FROM dead_letters($1, $2)", limit, timedelta(seconds=lease_seconds)
        )
        return [GivenUp(**row | {"error": msgspec.json.decode(row["error"] or "{}")}) for row in rows]

    async def mark_dead_letter_published(self, given_up: GivenUp) -> None:
        """Note that the dead-letter topic has this scenario."""
        await self._store.fetch_one("SELECT mark_dead_letter_published($1, $2)", given_up.scenario_id, given_up.epoch)

    async def recent_attempts(self, limit: int) -> list[RecentAttempt]:
        """The attempts of the whole fleet that began last, the newest first."""
        rows = await self._store.fetch_all("SELECT * FROM recent_attempts($1)", limit)
        return [RecentAttempt(**row) for row in rows]

    async def unproven(self) -> int:
        """How many scenarios of the whole fleet were started and have yet to store something."""
        return int((await self._one("SELECT unproven() AS n"))["n"])

    async def counts(self) -> Counts:
        """How many scenarios of the whole fleet are in each condition."""
        return Counts(**await self._one("SELECT * FROM backlog()"))

    async def overview(self) -> list[dict[str, Any]]:
        """Every scenario with its last attempt, in the order of their ids."""
        return await self._store.fetch_all("SELECT * FROM overview()")

    async def _one(self, sql: str, *args: object) -> Mapping[str, Any]:
        row = await self._store.fetch_one(sql, *args)
        if row is None:
            raise RunnerError(ErrorCode.STORE_REJECTED, f"no row from: {sql}")
        return row


def _settings_of(text: str) -> dict[str, dict[str, Any]]:
    """PostgreSQL takes numbers of any size; one of 20 digits or more becomes infinity, which no key takes."""
    settings: dict[str, dict[str, Any]] = json.loads(
        text,
        parse_int=lambda digits: int(digits) if len(digits) < 20 else math.inf,  # noqa: PLR2004 - 64 bits
    )
    return settings


def _as_json(settings: Mapping[str, Any]) -> str:
    return msgspec.json.encode(settings).decode()

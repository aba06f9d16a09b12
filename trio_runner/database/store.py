"""A runner's calls to PostgreSQL on one asyncpg connection, each with a deadline and errors with a code."""

from __future__ import annotations

import logging
import socket
import uuid
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

import trio

from trio_runner.base import aio
from trio_runner.base.text import printable
from trio_runner.database import rights, schema
from trio_runner.database.connection import LIBRARY_ERRORS, connect, named_error
from trio_runner.database.stored_form import detections_json, error_line
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import Claim

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    import asyncpg

    from trio_runner.config.sections import DatabaseSection
    from trio_runner.model import FrameResult

T = TypeVar("T")

logger = logging.getLogger(__name__)

CLOSE_SECONDS = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """A request for a claim: the scenario, the epoch (0: whichever is free) and the process that would work on it."""

    scenario_id: int
    epoch: int
    video_path: str
    runner_id: str
    instance_id: str
    max_failures: int
    video_identity: str | None = None
    sampling: str | None = None
    """A JSON object."""
    retry_topic: str | None = None
    """The topic on which this attempt's death is to be published."""


class Store:
    """One connection to the ledger, made by `open_store`. Several tasks may call its methods at the same time."""

    def __init__(
        self, connection: asyncpg.Connection[asyncpg.Record], config: DatabaseSection, secrets: frozenset[str]
    ) -> None:
        """Take the connection over; `open_store` closes it."""
        self._connection = connection
        self._config = config
        self._secrets = secrets
        # asyncpg refuses a second operation while one is under way; the heartbeat and the writer share this connection.
        self._turn = trio.Lock()

    async def claim(self, attempt: Attempt) -> Claim:
        """Take the scenario; a missing row is created when no epoch is named.

        Raises:
            ScenarioCompletedError, ClaimRefusedError, SupersededError: this runner may not take it.
        """
        row = await self.fetch_one(
            "SELECT * FROM claim($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            attempt.scenario_id,
            printable(attempt.video_path),
            attempt.epoch,
            uuid.UUID(attempt.instance_id),
            attempt.runner_id,
            socket.gethostname(),
            self._lease,
            attempt.max_failures,
            attempt.video_identity,
            attempt.sampling,
            attempt.retry_topic,
        )
        if row is None:
            raise RunnerError(ErrorCode.STORE_REJECTED, "claim() gave no row")
        return Claim(
            scenario_id=attempt.scenario_id,
            epoch=row["claimed_epoch"],
            instance_id=attempt.instance_id,
            next_frame=row["claimed_next_frame"],
            frames_stored=row["claimed_frames_stored"],
            video_identity=row["claimed_identity"],
            sampling=row["claimed_sampling"],
            last_pts_seconds=row["claimed_last_pts"],
            frames_not_inferred=row["claimed_frames_not_inferred"],
        )

    async def expired_claim(self, scenario_id: int) -> tuple[Claim, str, str] | None:
        """The claim on this scenario if its lease has ended, with the runner's id and host."""
        row = await self.fetch_one("SELECT $1::bigint AS scenario_id, c.* FROM expired_claim($1) c", scenario_id)
        return (_claim_of(row), row["runner_id"], row["host"]) if row else None

    async def expired_claims(self, limit: int) -> list[tuple[Claim, str, str]]:
        """The claims whose leases have ended, each with the runner's id and host."""
        rows = await self.fetch_all("SELECT * FROM expired_claims($1)", limit)
        return [(_claim_of(row), row["runner_id"], row["host"]) for row in rows]

    async def attempt_of(self, instance_id: str) -> tuple[Claim, bool] | None:
        """The last claim of that process, and whether the end of that attempt is recorded; None: it never claimed."""
        row = await self.fetch_one("SELECT $1::uuid AS instance_id, a.* FROM attempt_of($1) a", uuid.UUID(instance_id))
        return (_claim_of(row), row["ended"]) if row else None

    async def unpublished_event(self, scenario_id: int, epoch: int) -> tuple[str, str | None] | None:
        """The event's JSON and its topic, if this attempt's death is recorded and Kafka has not acknowledged it."""
        row = await self.fetch_one("SELECT * FROM unpublished_event($1, $2)", scenario_id, epoch)
        return (row["body"], row["retry_topic"]) if row else None

    async def mark_published(self, scenario_id: int, epoch: int) -> None:
        """Note that Kafka has the event of this death."""
        await self.fetch_one("SELECT mark_published($1, $2)", scenario_id, epoch)

    async def hand_over(self, deaths: Sequence[tuple[int, int]]) -> None:
        """Note that the caller will not publish these events, by scenario and epoch: any process may, from now on."""
        ids, epochs = [scenario_id for scenario_id, _ in deaths], [epoch for _, epoch in deaths]
        await self.fetch_one("SELECT hand_over($1, $2)", ids, epochs)

    async def unpublished(
        self, limit: int, *, lease_seconds: float, scenario_id: int | None = None
    ) -> list[tuple[int, int]]:
        """Scenario and epoch of events due to be published, of one scenario or of all.

        No other process gets them until the lease ends.
        """
        lease = timedelta(seconds=lease_seconds)
        rows = await self.fetch_all("SELECT * FROM unpublished($1, $2, $3)", limit, lease, scenario_id)
        return [(row["scenario_id"], row["epoch"]) for row in rows]

    async def count_unpublished(self) -> int:
        """How many events Kafka has not acknowledged, of all scenarios; also those that another process has taken."""
        row = await self.fetch_one("SELECT count_unpublished() AS n")
        return int(row["n"]) if row else 0

    async def store(self, claim: Claim, expected_frame: int, results: Sequence[FrameResult]) -> None:
        """Store predictions, progress, lease and status in one fenced statement; `results` in frame order, not empty.

        Raises:
            SupersededError: another runner has the claim now; nothing was written.
        """
        await self.fetch_one(
            "SELECT store($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
            *self._fence(claim),
            self._lease,
            expected_frame,
            [result.index for result in results],
            [result.pts_seconds for result in results],
            [result.width for result in results],
            [result.height for result in results],
            [detections_json(result) for result in results],
            [result.inference_ms for result in results],
            [error_line(result, self._secrets) for result in results],
        )

    async def heartbeat(self, claim: Claim) -> None:
        """Renew the lease; raises SupersededError where the claim is lost."""
        await self.fetch_one("SELECT heartbeat($1, $2, $3, $4)", *self._fence(claim), self._lease)

    async def finish(self, claim: Claim, total_frames: int, status: str) -> None:
        """Complete the scenario; PostgreSQL refuses unless exactly `total_frames` rows are stored."""
        await self.fetch_one("SELECT finish($1, $2, $3, $4, $5)", *self._fence(claim), total_frames, status)

    async def fail(
        self,
        claim: Claim,
        *,
        event_id: str,
        reporter: str,
        error_class: str,
        body: bytes,
        retry_after_seconds: float,
    ) -> bool:
        """Record the death and release the claim; False where another report of this death was first."""
        row = await self.fetch_one(
            "SELECT fail($1, $2, $3, $4, $5, $6, $7, $8) AS recorded",
            *self._fence(claim),
            uuid.UUID(event_id),
            reporter,
            error_class,
            body.decode(),
            timedelta(seconds=retry_after_seconds),
        )
        return bool(row and row["recorded"])

    async def is_completed(self, claim: Claim) -> bool:
        """Whether this very claim completed its scenario; asked where the reply to `finish` may have been lost."""
        row = await self.fetch_one("SELECT is_completed($1, $2) AS done", claim.scenario_id, claim.epoch)
        return bool(row and row["done"])

    async def create_schema(self) -> list[str]:
        """Apply the schema files that this database lacks, in one transaction, and return their names.

        The changes are bounded by `schema.MIGRATION_SECONDS` and not by `command_timeout_seconds`.

        Raises:
            RunnerError: `store_schema`: something is missing, and this role may not create it; or the database has a
                schema that cannot be brought to this version.
        """
        if not await self._run(schema.missing, self._connection):
            return []
        applied = await self._run(schema.create, self._connection, seconds=schema.MIGRATION_SECONDS)
        if applied:
            logger.info("the schema was brought to this version: %s", schema.summary(applied))
        return applied

    async def check_rights(self, *, may_create: bool = False, verbs: Sequence[str] = rights.RUNNER_VERBS) -> None:
        """Raise RunnerError unless this role may call these verbs.

        The schema must be complete, unless this role `may_create` what it lacks.
        """
        await self._run(schema.check_rights, self._connection, may_create, verbs)

    async def check_schema(self) -> None:
        """Raise `store_schema` unless every schema file of this version has been applied, or a newer one's."""
        await self._run(schema.check_complete, self._connection)

    async def grant(self, role: str, verbs: Sequence[str] = rights.RUNNER_VERBS) -> None:
        """Let `role` call these functions, and do nothing else.

        Raises:
            RunnerError: `store_auth`: there is no such role, or the role that is logged in may not grant this.
        """
        await self._run(rights.grant, self._connection, role, verbs)

    @property
    def _lease(self) -> timedelta:
        return timedelta(seconds=self._config.lease_seconds)

    @staticmethod
    def _fence(claim: Claim) -> tuple[int, int, uuid.UUID]:
        return claim.scenario_id, claim.epoch, uuid.UUID(claim.instance_id)

    async def fetch_one(self, sql: str, *args: object) -> Mapping[str, Any] | None:
        """The first row of one statement, within `command_timeout_seconds`; raises RunnerError."""
        return await self._run(self._connection.fetchrow, sql, *args)

    async def fetch_all(self, sql: str, *args: object) -> list[dict[str, Any]]:
        """The rows of one statement, within `command_timeout_seconds`; raises RunnerError."""
        return [dict(row) for row in await self._run(self._connection.fetch, sql, *args)]

    async def _run(self, function: Callable[..., Awaitable[T]], *args: object, seconds: float | None = None) -> T:
        seconds = seconds or self._config.command_timeout_seconds
        async with self._turn:
            try:
                with trio.fail_after(seconds):
                    return await aio.call(function, *args)
            except trio.TooSlowError as error:
                raise RunnerError(ErrorCode.STORE_TIMEOUT, f"PostgreSQL did not answer within {seconds:g} s") from error
            except aio.LibraryCancelledError as error:
                raise RunnerError(ErrorCode.STORE_LOST, "the connection to PostgreSQL was lost") from error
            except LIBRARY_ERRORS as error:
                raise named_error(error) from error


@asynccontextmanager
async def open_store(
    config: DatabaseSection,
    *,
    application_name: str,
    close_seconds: float = CLOSE_SECONDS,
    secrets: frozenset[str] = frozenset(),
) -> AsyncIterator[Store]:
    """Connect within `connect_timeout_seconds`. After an error the connection is cut off, otherwise closed in order.

    Closing in order takes at most `close_seconds`. The values in `secrets` are masked in the errors of frames, because
    an inference service may repeat what was sent to it.

    Raises:
        RunnerError: `store_unreachable`, `store_tls`, `store_auth` or `credential_unreadable`, naming the cause.
    """
    connection = await connect(config, application_name=application_name)
    clean = False
    try:
        yield Store(connection, config, secrets)
        clean = True
    finally:
        # close() waits for the server; on an error path the server may be the error, so the socket is just dropped.
        if not (clean and close_seconds and await aio.close(connection.close, seconds=close_seconds)):  # noqa: ASYNC102 - close shields and bounds
            connection.terminate()


def _claim_of(row: Mapping[str, Any]) -> Claim:
    return Claim(
        scenario_id=row["scenario_id"],
        epoch=row["epoch"],
        instance_id=str(row["instance_id"]),
        next_frame=row["next_frame"],
        frames_stored=row["frames_stored"],
    )

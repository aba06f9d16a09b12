"""The door to PostgreSQL: whole verbs on one plain asyncpg connection, each with a deadline and named errors."""

from __future__ import annotations

import os
import socket
import stat
import uuid
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from importlib import resources
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import asyncpg
import msgspec
import trio

from trio_runner import aio
from trio_runner.model import (
    Claim,
    ClaimRefusedError,
    ErrorCode,
    RunnerError,
    ScenarioCompletedError,
    SupersededError,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

    from trio_runner.config import DatabaseSection
    from trio_runner.model import FrameResult

T = TypeVar("T")

SCHEMA = "trio_runner"
CLOSE_SECONDS = 2.0
PASSWORD_SECONDS = 2.0
MAX_PASSWORD_BYTES = 4096
LIBRARY_ERRORS = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    aio.LibraryCancelledError,
    OSError,
)
"""What asyncpg raises; a connection that was cut shows as any but the first."""
_SCHEMA_LOCK = 0x7472_696F
_SESSION = {
    "search_path": SCHEMA,
    "lock_timeout": "5s",
    "idle_in_transaction_session_timeout": "15s",
    "tcp_keepalives_idle": "30",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """Who asks for a claim: the scenario, the epoch (0: whichever is free) and the process that would work on it."""

    scenario_id: int
    epoch: int
    video_path: str
    runner_id: str
    instance_id: str
    max_failures: int


class Store:
    """One connection to the ledger; made by `open_store`. Its verbs may be called from several tasks."""

    def __init__(self, connection: asyncpg.Connection[asyncpg.Record], config: DatabaseSection) -> None:
        """Take the connection over; `open_store` closes it."""
        self._connection = connection
        self._config = config
        # asyncpg refuses a second operation while one is under way; the heartbeat and the writer share this door.
        self._turn = trio.Lock()
        self._encoder = msgspec.json.Encoder()

    async def claim(self, attempt: Attempt) -> Claim:
        """Take the scenario; creates a missing row when no epoch is named.

        Raises:
            ScenarioCompletedError, ClaimRefusedError, SupersededError: it is not this runner's to take.
        """
        row = await self._fetch_one(
            "SELECT * FROM claim($1, $2, $3, $4, $5, $6, $7, $8)",
            attempt.scenario_id,
            attempt.video_path,
            attempt.epoch,
            uuid.UUID(attempt.instance_id),
            attempt.runner_id,
            socket.gethostname(),
            self._lease,
            attempt.max_failures,
        )
        if row is None:
            raise RunnerError(ErrorCode.STORE_REJECTED, "claim() gave no row")
        return Claim(
            scenario_id=attempt.scenario_id,
            epoch=row["claimed_epoch"],
            instance_id=attempt.instance_id,
            next_frame=row["claimed_next_frame"],
            frames_stored=row["claimed_frames_stored"],
        )

    async def expired_claim(self, scenario_id: int) -> tuple[Claim, str, str] | None:
        """The claim of a runner that was not heard of until its lease ended, with that runner's id and host."""
        row = await self._fetch_one(
            "SELECT s.epoch, s.instance_id, s.next_frame, s.frames_stored, a.runner_id, a.host"
            " FROM scenarios s JOIN attempts a ON a.scenario_id = s.id AND a.epoch = s.epoch"
            " WHERE s.id = $1 AND s.lease_until < clock_timestamp()",
            scenario_id,
        )
        if row is None:
            return None
        claim = Claim(
            scenario_id=scenario_id,
            epoch=row["epoch"],
            instance_id=str(row["instance_id"]),
            next_frame=row["next_frame"],
            frames_stored=row["frames_stored"],
        )
        return claim, row["runner_id"], row["host"]

    async def store(self, claim: Claim, expected_frame: int, results: Sequence[FrameResult]) -> None:
        """Predictions, progress, lease and status in one fenced statement; `results` in frame order, not empty.

        Raises:
            SupersededError: the claim is another runner's now; nothing was written.
        """
        await self._fetch_one(
            "SELECT store($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            *self._fence(claim),
            self._lease,
            expected_frame,
            [result.index for result in results],
            [result.pts_seconds for result in results],
            [self._encoder.encode(result.detections).decode() for result in results],
            [result.inference_ms for result in results],
        )

    async def heartbeat(self, claim: Claim) -> None:
        """Renew the lease; raises SupersededError where the claim is lost."""
        await self._fetch_one("SELECT heartbeat($1, $2, $3, $4)", *self._fence(claim), self._lease)

    async def finish(self, claim: Claim, total_frames: int, status: str) -> None:
        """Complete the scenario; refused unless exactly `total_frames` rows are stored."""
        await self._fetch_one("SELECT finish($1, $2, $3, $4, $5)", *self._fence(claim), total_frames, status)

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
        """Record the death and release the claim; False where somebody else's report stands already."""
        row = await self._fetch_one(
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
        """Whether this very claim completed its scenario: the reply to `finish` may have been lost."""
        row = await self._fetch_one(
            "SELECT 1 FROM scenarios WHERE id = $1 AND epoch = $2 AND outcome = 'completed'",
            claim.scenario_id,
            claim.epoch,
        )
        return row is not None

    async def scenarios(self, scenario_id: int | None = None) -> list[dict[str, Any]]:
        """All scenarios in the order of their ids, or just the one."""
        return await self._fetch_all(
            "SELECT * FROM scenarios WHERE $1::bigint IS NULL OR id = $1 ORDER BY id", scenario_id
        )

    async def attempts(self, scenario_id: int) -> list[dict[str, Any]]:
        """The attempts of one scenario in order."""
        return await self._fetch_all("SELECT * FROM attempts WHERE scenario_id = $1 ORDER BY epoch", scenario_id)

    async def first_stored_at(self, scenario_id: int) -> float | None:
        """When its first prediction was stored, in seconds since 1970."""
        row = await self._fetch_one(
            "SELECT extract(epoch FROM min(created_at))::float8 AS at FROM predictions WHERE scenario_id = $1",
            scenario_id,
        )
        return row["at"] if row else None

    async def label_counts(self, scenario_id: int) -> list[dict[str, Any]]:
        """Label, boxes and frames with at least one such box, most boxes first."""
        return await self._fetch_all(
            "SELECT label, count(*) AS boxes, count(DISTINCT frame_index) AS frames FROM detections"
            " WHERE scenario_id = $1 GROUP BY label ORDER BY boxes DESC, label",
            scenario_id,
        )

    async def retry_events(self) -> list[dict[str, Any]]:
        """The ledger's own record of every death, oldest first."""
        return await self._fetch_all("SELECT * FROM retry_events ORDER BY received_at")

    async def create_schema(self) -> list[str]:
        """Apply the schema files that this database lacks, in order, in one transaction; returns their names."""
        return await self._run(_create_schema, self._connection)

    async def check_schema(self) -> None:
        """Raise `store_schema` unless every schema file of this version has been applied."""
        rows = await self._fetch_all("SELECT name FROM schema_migrations")
        missing = [path.name for path in _schema_files() if path.name not in {row["name"] for row in rows}]
        if missing:
            raise RunnerError(
                ErrorCode.STORE_SCHEMA,
                f"the database lacks {', '.join(missing)}; run: trio-runner init-db CONFIG",
            )

    @property
    def _lease(self) -> timedelta:
        return timedelta(seconds=self._config.lease_seconds)

    @staticmethod
    def _fence(claim: Claim) -> tuple[int, int, uuid.UUID]:
        return claim.scenario_id, claim.epoch, uuid.UUID(claim.instance_id)

    async def _fetch_one(self, sql: str, *args: object) -> Mapping[str, Any] | None:
        return await self._run(self._connection.fetchrow, sql, *args)

    async def _fetch_all(self, sql: str, *args: object) -> list[dict[str, Any]]:
        return [dict(row) for row in await self._run(self._connection.fetch, sql, *args)]

    async def _run(self, function: Callable[..., Awaitable[T]], *args: object) -> T:
        seconds = self._config.command_timeout_seconds
        async with self._turn:
            try:
                with trio.fail_after(seconds):
                    return await aio.call(function, *args)
            except trio.TooSlowError as error:
                raise RunnerError(ErrorCode.STORE_TIMEOUT, f"PostgreSQL did not answer within {seconds:g} s") from error
            except aio.LibraryCancelledError as error:
                raise RunnerError(ErrorCode.STORE_LOST, "the connection to PostgreSQL was lost") from error
            except LIBRARY_ERRORS as error:
                raise _named(error) from error


@asynccontextmanager
async def open_store(config: DatabaseSection, *, application_name: str) -> AsyncIterator[Store]:
    """Connect within `connect_timeout_seconds`; closed politely after a clean end, cut off after any other.

    Raises:
        RunnerError: `store_unreachable`, naming host and cause.
    """
    where = urlsplit(config.url)
    address = f"{where.hostname or 'local socket'}:{where.port or 5432}"
    password = await _read_password(config.password_file) if config.password_file else None
    try:
        with trio.fail_after(config.connect_timeout_seconds):
            connection = await aio.call(
                asyncpg.connect,
                config.url,
                password=password,
                timeout=config.connect_timeout_seconds,
                command_timeout=config.command_timeout_seconds,
                server_settings=_SESSION
                | {
                    "application_name": application_name[:63],
                    "statement_timeout": str(int(config.command_timeout_seconds * 1000)),
                },
            )
    except (trio.TooSlowError, TimeoutError) as error:
        raise RunnerError(
            ErrorCode.STORE_UNREACHABLE,
            f"PostgreSQL at {address} did not answer within {config.connect_timeout_seconds:g} s",
        ) from error
    except (*LIBRARY_ERRORS, ValueError) as error:
        raise RunnerError(ErrorCode.STORE_UNREACHABLE, f"PostgreSQL at {address}: {error}") from error
    clean = False
    try:
        yield Store(connection, config)
        clean = True
    finally:
        # close() waits for the server; on an error path the server may be the error, so the socket is just dropped.
        if not (clean and await aio.close(connection.close, seconds=CLOSE_SECONDS)):  # noqa: ASYNC102 - close shields and bounds
            connection.terminate()


async def secrets_of(config: DatabaseSection) -> frozenset[str]:
    """What must not appear in anything that is said about this database; a password that cannot be read cannot leak."""
    with suppress(RunnerError):
        return frozenset({await _read_password(config.password_file)} if config.password_file else ())
    return frozenset()


async def _read_password(path: str) -> str:
    """In a thread that a deadline leaves behind: a file may lie on storage that does not answer."""
    try:
        with trio.fail_after(PASSWORD_SECONDS):
            return await trio.to_thread.run_sync(_read_small_file, path, abandon_on_cancel=True)
    except (OSError, UnicodeDecodeError, trio.TooSlowError) as error:
        why = "it is not UTF-8 text" if isinstance(error, UnicodeDecodeError) else "it could not be read in time"
        if isinstance(error, OSError):
            why = error.strerror or str(error)
        raise RunnerError(ErrorCode.STORE_UNREACHABLE, f"cannot read database.password_file {path}: {why}") from error


def _read_small_file(path: str) -> str:
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError("it is not a file")
        return file.read(MAX_PASSWORD_BYTES).decode().rstrip("\r\n")


def _named(error: Exception) -> RunnerError:
    """The named error behind what asyncpg raised; whatever is no data error means that the connection is lost."""
    state = getattr(error, "sqlstate", None) or ""
    message = str(error) or type(error).__name__
    if state == "RN002":
        return ScenarioCompletedError(ErrorCode.CLAIM_REFUSED, message)
    if state in {"RN001", "RN003", "RN004", "RN006"}:
        return ClaimRefusedError(ErrorCode.CLAIM_REFUSED, message)
    if state == "RN005":
        return SupersededError(message)
    if state in {"3F000", "42P01", "42883"}:
        code, message = ErrorCode.STORE_SCHEMA, f"{message}; run: trio-runner init-db CONFIG"
    elif state in {"57014", "55P03"} or isinstance(error, TimeoutError):
        code, message = ErrorCode.STORE_TIMEOUT, f"PostgreSQL gave up: {message}"
    elif isinstance(error, asyncpg.DataError):
        code, message = ErrorCode.STORE_REJECTED, f"a value does not fit its column: {message}"
    elif not isinstance(error, asyncpg.PostgresError) or not state or state[:2] in {"08", "57"}:
        code, message = ErrorCode.STORE_LOST, f"the connection to PostgreSQL was lost: {message}"
    else:
        code, message = ErrorCode.STORE_REJECTED, f"PostgreSQL refused: {message} (SQLSTATE {state})"
    return RunnerError(code, message)


def _schema_files() -> list[Any]:
    return sorted(
        (path for path in resources.files("trio_runner").joinpath("sql").iterdir() if path.name.endswith(".sql")),
        key=lambda path: path.name,
    )


async def _create_schema(connection: asyncpg.Connection[asyncpg.Record]) -> list[str]:
    """asyncio-flavoured. Two runners on an empty database take turns by the advisory lock."""
    applied = []
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _SCHEMA_LOCK)
        await connection.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS schema_migrations"
            " (name text PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())"
        )
        known = {row["name"] for row in await connection.fetch("SELECT name FROM schema_migrations")}
        for path in _schema_files():
            if path.name not in known:
                await connection.execute(path.read_text())
                await connection.execute("INSERT INTO schema_migrations (name) VALUES ($1)", path.name)
                applied.append(path.name)
    return applied

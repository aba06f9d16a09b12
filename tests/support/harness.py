"""What the end-to-end tests share: live addresses, the command line as a real process, ledger and topic read raw.

Ledger and topic are read with asyncpg and aiokafka themselves and not through the package's own clients. A client that
writes and reads the same wrong thing would hide the fault.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import sys
import threading
import tomllib
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar
from urllib.parse import urlsplit

import aiokafka
import asyncpg
import psutil
import tomli_w
import trio

import trio_runner
from tests.support.forking import ForkedProcess, ForkServer
from tests.support.server_files import free_ports

T = TypeVar("T")

REPOSITORY = Path(__file__).resolve().parents[2]
PATIENCE_SECONDS = 120.0
"""Bounds every wait; no test is about how long anything takes, and a machine may be slow or stand still for a while."""


@dataclass(frozen=True, kw_only=True)
class Servers:
    """Where the session's servers answer."""

    database_url: str
    password_file: Path | None
    brokers: str
    inference_url: str
    inference_token_file: Path | None = None

    @property
    def inference(self) -> dict[str, Any]:
        """The keys of an `[inference]` section that reaches it."""
        token_file = str(self.inference_token_file or "")
        return {"url": self.inference_url, "token_file": token_file, "allow_plaintext_token": True}

    @property
    def database(self) -> dict[str, Any]:
        """The keys of a `[database]` section that reaches it."""
        return {
            "url": self.database_url,
            "password_file": str(self.password_file or ""),
            "sslmode": "disable",
            "allow_plaintext_password": True,
        }

    @property
    def password(self) -> str:
        """The database's password: it must never turn up in any output."""
        return self.password_file.read_text().strip() if self.password_file else ""


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A process that has ended: exit code (minus the signal), and what it wrote."""

    code: int
    out: str
    err: str

    def log(self) -> list[dict[str, Any]]:
        """The JSON log lines on stderr."""
        return [json.loads(line) for line in self.err.splitlines() if line.startswith("{")]


class Running:
    """A `trio-runner` process under way."""

    def __init__(self, process: trio.Process | ForkedProcess, out: Path, err: Path) -> None:
        self._process, self._out, self._err = process, out, err
        self.pid = process.pid

    def send_signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def out(self) -> str:
        return self._out.read_text()

    def err(self) -> str:
        return self._err.read_text()

    def exited(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._process.poll() is not None

    async def wait(self) -> Finished:
        """Wait for its end, bounded."""
        with trio.move_on_after(PATIENCE_SECONDS):
            code = await self._process.wait()
            return Finished(code=code, out=self.out(), err=self.err())
        raise AssertionError(f"still runs after {PATIENCE_SECONDS:g} s:\n{self.out()}\n{self.err()}")

    def decoder(self) -> psutil.Process | None:
        """The decoder child, if there is one right now."""
        for child in psutil.Process(self.pid).children():
            if "trio_runner.video.decoder" in child.cmdline():
                return child
        return None

    def family(self) -> list[psutil.Process]:
        """Every living process of the session it leads: itself, and what it started or left behind."""
        members = []
        # Cheaper than `psutil.process_iter`, which reads of every process on the machine when it was started.
        for pid in psutil.pids():
            with suppress(ProcessLookupError, psutil.NoSuchProcess):
                if os.getsid(pid) == self.pid:
                    process = psutil.Process(pid)
                    if process.status() != psutil.STATUS_ZOMBIE:
                        members.append(process)
        return members


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trio_runner", *arguments]


AS_INVOCATION = ("/bin/sh", "-c", 'SYSTEMD_EXEC_PID=$$ exec "$@"', "sh")
"""Before a program: sets SYSTEMD_EXEC_PID as systemd does, which names the process that INVOCATION_ID is for."""

MAIN = "import sys\nfrom trio_runner.cli.main import main\nsys.exit(main())"


def environment() -> dict[str, str]:
    """Children run the package that the tests import, from whatever directory."""
    paths = [str(Path(trio_runner.__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "COLUMNS": "200"}


class Cli:
    """Runs `trio-runner` as its users do; output goes to files, so that no pipe can fill up."""

    def __init__(self, directory: Path, canaries: set[str], fork_server: ForkServer) -> None:
        self._directory, self.canaries, self._fork_server = directory, canaries, fork_server
        self._count = 0

    async def __call__(self, *arguments: str | Path, cwd: Path | None = None, executed: bool = False) -> Finished:
        """Run to the end."""
        async with self.started(*arguments, cwd=cwd, executed=executed) as running:
            return await running.wait()

    @asynccontextmanager
    async def started(
        self,
        *arguments: str | Path,
        cwd: Path | None = None,
        program: Sequence[str] = (),
        patch: str = "",
        variables: Mapping[str, str] | None = None,
        invocation: str = "",
        executed: bool = False,
    ) -> AsyncIterator[Running]:
        """Start it, or another `program`; whatever of it still lives when the block ends is killed.

        `patch` is Python that changes the program before it starts. The fork server starts the process, unless it is
        to be `executed` as a shell would. `invocation` is the name that a service manager would give to this start.
        """
        self._count += 1
        out, err = (self._directory / f"cli-{self._count}.{kind}" for kind in ("out", "err"))
        texts = [*map(str, arguments)]
        place = cwd or self._directory
        given = {**environment(), **(variables or {}), **({"INVOCATION_ID": invocation} if invocation else {})}
        with out.open("wb") as out_file, err.open("wb") as err_file:
            process: trio.Process | ForkedProcess
            if program or executed:
                patched = [sys.executable, "-c", f"{patch}\n{MAIN}"] if patch else command()
                process = await trio.lowlevel.open_process(
                    [*(AS_INVOCATION if invocation else ()), *(program or patched), *texts],
                    stdin=None,
                    stdout=out_file,
                    stderr=err_file,
                    cwd=place,
                    env=given,
                    start_new_session=True,
                )
            else:
                process = await self._fork_server.start(
                    texts,
                    out=out_file,
                    err=err_file,
                    cwd=place,
                    environment=given,
                    patch=patch,
                )
        running = Running(process, out, err)
        try:
            yield running
        finally:
            for member in running.family():
                # One may have gone along with the one before.
                with suppress(psutil.NoSuchProcess):
                    member.kill()
            # One that the fork server has only just started leads no session yet.
            process.send_signal(signal.SIGKILL)
            with trio.CancelScope(shield=True), trio.fail_after(PATIENCE_SECONDS):
                await process.wait()
            for text in (running.out(), running.err()):
                assert not any(canary in text for canary in self.canaries), "a secret was printed or logged"


class WriteConfig(Protocol):
    """Writes a config file into the test's directory; `scenario={"id": 7}` sets a key, None leaves one out."""

    def __call__(self, name: str = "runner.toml", **sections: dict[str, Any]) -> Path:
        """Return the file's path."""
        ...


class ServiceManager:
    """What systemd is to a unit of `Type=notify`: it receives the notified states, and keeps them."""

    def __init__(self, name: str) -> None:
        self.variables = {"NOTIFY_SOCKET": f"@{name}"}
        """What it puts into a service's environment: an abstract address, since a path may be too long."""
        self.states: list[str] = []
        self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._name = f"\0{name}"

    async def listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        with self._socket:
            await self._socket.bind(self._name)
            task_status.started()
            while True:
                self.states += (await self._socket.recv(65536)).decode().splitlines()

    async def wait_for(self, state: str) -> None:
        """Wait until the service has notified `state`, for instance READY=1."""

        async def is_there() -> bool:
            return state in self.states

        await until(is_there, described=f"{state} in {self.states}")


@asynccontextmanager
async def open_service_manager() -> AsyncIterator[ServiceManager]:
    """A service manager that listens as long as the block lasts."""
    async with trio.open_nursery() as nursery:
        manager = ServiceManager(f"trio-runner-tests-{uuid.uuid4()}")
        await nursery.start(manager.listen)
        yield manager
        nursery.cancel_scope.cancel()


class Ledger:
    """The database, read raw.

    Each query connects, unless the ledger is entered as a context manager: then one connection is kept for its block.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        self._kept: KeptConnection | None = None

    def __enter__(self) -> Self:
        self._kept = KeptConnection(self._servers)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._kept
        kept, self._kept = self._kept, None
        # In a thread of its own, because trio-asyncio lets no other asyncio loop run in the thread of Trio.
        closing = threading.Thread(target=kept.close)
        closing.start()
        closing.join(2 * PATIENCE_SECONDS)

    async def query(self, sql: str, *args: object) -> list[dict[str, Any]]:
        """Rows of one statement; jsonb comes parsed."""
        query = self._kept.query if self._kept else partial(_query_once, self._servers)
        return await trio.to_thread.run_sync(query, sql, args)

    async def scenario(self, scenario_id: int) -> dict[str, Any] | None:
        rows = await self.query("SELECT * FROM scenarios WHERE id = $1", scenario_id)
        return rows[0] if rows else None

    async def existing(self, scenario_id: int) -> dict[str, Any]:
        row = await self.scenario(scenario_id)
        assert row is not None, f"there is no scenario {scenario_id}"
        return row

    async def predictions(self, scenario_id: int) -> list[dict[str, Any]]:
        return await self.query("SELECT * FROM predictions WHERE scenario_id = $1 ORDER BY frame_index", scenario_id)

    async def attempts(self, scenario_id: int) -> list[dict[str, Any]]:
        return await self.query("SELECT * FROM attempts WHERE scenario_id = $1 ORDER BY epoch", scenario_id)

    async def retry_events(self, scenario_id: int) -> list[dict[str, Any]]:
        return await self.query("SELECT * FROM retry_events WHERE scenario_id = $1 ORDER BY epoch", scenario_id)

    async def check_invariants(self, scenario_id: int) -> None:
        """What holds for every scenario that no runner works on, whatever happened to the runners before."""
        scenario = await self.existing(scenario_id)
        rows = await self.predictions(scenario_id)
        attempts = {row["epoch"]: row for row in await self.attempts(scenario_id)}
        deaths = await self.retry_events(scenario_id)
        assert scenario["instance_id"] is None, "nobody works on it, but it is claimed"
        assert len(rows) == scenario["frames_stored"]
        assert (rows[-1]["frame_index"] + 1 if rows else 0) == scenario["next_frame"]
        epochs = [row["epoch"] for row in rows]
        assert epochs == sorted(epochs), "an earlier attempt wrote behind a later one"
        assert len(deaths) == scenario["epoch"] - 1, "each death raises the epoch by one, and nothing else does"
        assert all(attempt["outcome"] for attempt in attempts.values())
        for row in rows:
            attempt = attempts[row["epoch"]]
            assert attempt["first_frame"] <= row["frame_index"] < attempt["end_frame"], "written after its own death"
        if scenario["outcome"] == "completed":
            assert scenario["frames_stored"] == scenario["total_frames"]


@asynccontextmanager
async def new_database(servers: Servers, name: str) -> AsyncIterator[Servers]:
    """`servers` with another database, which has no tables, for as long as the block lasts."""
    ledger = Ledger(servers)
    await ledger.query(f"CREATE DATABASE {name}")
    try:
        yield replace(servers, database_url=urlsplit(servers.database_url)._replace(path=f"/{name}").geturl())
    finally:
        with trio.move_on_after(PATIENCE_SECONDS, shield=True):
            await ledger.query(f"DROP DATABASE {name} WITH (FORCE)")


class KeptConnection:
    """A connection for many queries, which costs a tenth of one connection for each.

    The asyncio loop it belongs to runs only while there is a query, in whatever thread that is made.
    """

    def __init__(self, servers: Servers) -> None:
        self._servers = servers
        # Not asyncio's policy, which trio-asyncio replaces.
        self._loop = asyncio.SelectorEventLoop()
        self._idle = threading.Lock()
        self._connection: asyncpg.Connection[asyncpg.Record] | None = None

    def query(self, sql: str, args: tuple[object, ...]) -> list[dict[str, Any]]:
        """Rows of one statement, which is executed again where the server has closed the connection meanwhile."""
        if not self._idle.acquire(blocking=False):
            # Another task's query is under way, and may wait for a lock that only this one's effect releases.
            return _query_once(self._servers, sql, args)
        try:
            return self._loop.run_until_complete(self._query(sql, args))
        finally:
            self._idle.release()

    async def _query(self, sql: str, args: tuple[object, ...]) -> list[dict[str, Any]]:
        if self._connection is not None and not self._connection.is_closed():
            with suppress(asyncpg.ConnectionDoesNotExistError, asyncpg.AdminShutdownError, asyncpg.CrashShutdownError):
                return await _fetch(self._connection, sql, args)
        self._connection = await _connect(self._servers)
        return await _fetch(self._connection, sql, args)

    def close(self) -> None:
        """Close the connection, if there is one."""
        if self._connection is not None:
            self._loop.run_until_complete(self._connection.close(timeout=PATIENCE_SECONDS))
        self._loop.close()


def _query_once(servers: Servers, sql: str, args: tuple[object, ...]) -> list[dict[str, Any]]:
    """Rows of one statement, over a connection of its own."""

    async def query() -> list[dict[str, Any]]:
        connection = await _connect(servers)
        try:
            return await _fetch(connection, sql, args)
        finally:
            await connection.close(timeout=PATIENCE_SECONDS)  # noqa: ASYNC102 - asyncio code, and bounded

    return asyncio.run(query())


async def _connect(servers: Servers) -> asyncpg.Connection[asyncpg.Record]:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
        servers.database_url,
        password=servers.password or None,
        timeout=PATIENCE_SECONDS,
        command_timeout=PATIENCE_SECONDS,
        # A prepared statement would go stale when a test changes the schema.
        statement_cache_size=0,
        server_settings={"search_path": "trio_runner", "application_name": "the tests"},
    )
    await connection.set_type_codec("jsonb", schema="pg_catalog", encoder=json.dumps, decoder=json.loads)
    return connection


async def _fetch(
    connection: asyncpg.Connection[asyncpg.Record], sql: str, args: tuple[object, ...]
) -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(sql, *args)]


@dataclass(frozen=True, kw_only=True)
class Event:
    """A record of the retry topic."""

    key: str
    headers: dict[str, str]
    body: Any
    raw: bytes


async def read_topic(brokers: str, topic: str) -> list[Event]:
    """Everything on the topic now, in order of time; nothing where there is no such topic."""
    return await read_on(brokers, topic, {})


async def read_on(brokers: str, topic: str, offsets: dict[aiokafka.TopicPartition, int]) -> list[Event]:
    """The same from `offsets` on, which are moved up."""
    records = await trio.to_thread.run_sync(lambda: asyncio.run(_read(brokers, topic.__eq__, offsets)))
    return [
        Event(
            key=record.key.decode(),
            headers={name: value.decode() for name, value in record.headers},
            body=json.loads(record.value),
            raw=record.value,
        )
        for record in records
    ]


async def _read(brokers: str, wanted: Callable[[str], bool], offsets: dict[aiokafka.TopicPartition, int]) -> list[Any]:
    """Every record of the wanted topics from `offsets` on, in order of time."""
    consumer = aiokafka.AIOKafkaConsumer(
        bootstrap_servers=brokers, enable_auto_commit=False, auto_offset_reset="earliest"
    )
    records: list[Any] = []
    async with asyncio.timeout(PATIENCE_SECONDS):
        await consumer.start()
        try:
            topics = list(filter(wanted, await consumer.topics()))
            if not topics:
                return []
            # Without a group a subscription is an assignment of every partition, once they are known.
            consumer.subscribe(topics)
            while not consumer.assignment():  # noqa: ASYNC110 - aiokafka has no event for it
                await asyncio.sleep(0.01)
            for partition in consumer.assignment() & offsets.keys():
                consumer.seek(partition, offsets[partition])
            ends = await consumer.end_offsets(list(consumer.assignment()))
            # Counted, a newer record of one partition would be taken for an older one of another.
            while any([await consumer.position(partition) < end for partition, end in ends.items()]):
                for batch in (await consumer.getmany(timeout_ms=1000)).values():
                    records += batch
            offsets |= {partition: await consumer.position(partition) for partition in ends}
        finally:
            await consumer.stop()  # noqa: ASYNC102 - the same
    return sorted(records, key=lambda record: record.timestamp)


async def check_what_is_stored(servers: Servers, canaries: set[str]) -> None:
    """No secret of the session is in the ledger, in the database's list of sessions, or on a topic."""
    ledger = Ledger(servers)
    records = await trio.to_thread.run_sync(
        lambda: asyncio.run(_read(servers.brokers, lambda name: "retry" in name, {}))
    )
    texts = [repr((record.key, record.value, record.headers)) for record in records]
    for table in ["scenarios", "attempts", "retry_events", "pg_stat_activity"]:
        texts += [row["text"] for row in await ledger.query(f"SELECT t::text AS text FROM {table} t")]  # noqa: S608 - ours
    assert not any(canary in text for text in texts for canary in canaries), "a secret was stored or sent"


@asynccontextmanager
async def full_backlog() -> AsyncIterator[str]:
    """Takes no connection and refuses none."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        waiting = [socket.socket() for _ in range(4)]
        try:
            for client in waiting:
                client.settimeout(0)
                client.connect_ex(listener.getsockname())
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            for client in waiting:
                client.close()


async def until(condition: Callable[[], Awaitable[T]], *, described: str, seconds: float = PATIENCE_SECONDS) -> T:
    """The first true value of `condition`; the test fails where there is none in time.

    The longer it has waited, the less often it asks: that takes time from what is waited for.
    """
    started = trio.current_time()
    with trio.move_on_after(seconds):
        while True:
            if value := await condition():
                return value
            await trio.sleep(min(max(0.02, (trio.current_time() - started) / 10), 0.5))
    raise AssertionError(f"not within {seconds:g} s: {described}")


def as_toml(sections: Mapping[str, Mapping[str, Any]]) -> str:
    return tomli_w.dumps(sections)


def from_toml(text: str) -> dict[str, Any]:
    return tomllib.loads(text)


def free_port() -> int:
    """A port of the loopback on which nobody listens."""
    (port,) = free_ports(1)
    return port

"""What all runs of a campaign share: servers that can be restarted, ledger, topic, a reaper, proxies in between."""

from __future__ import annotations

import asyncio
import signal
import struct
import subprocess
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import aiokafka
import asyncpg
import trio

from tests.support.fake_inference import Fake, open_fake
from tests.support.forking import ForkServer, open_fork_server
from tests.support.harness import (
    PATIENCE_SECONDS,
    Cli,
    Event,
    Ledger,
    Servers,
    as_toml,
    command,
    environment,
    from_toml,
    read_on,
    until,
)
from tests.support.proxy import Breakdown, Proxy, open_proxy

TOPIC = "runner.retry.campaign"
NOWHERE: dict[str, dict[str, Any]] = {
    "database": {"url": "postgresql://nobody@127.0.0.1:1/nothing", "sslmode": "disable"},
    "kafka": {"brokers": "127.0.0.1:1"},
    "inference": {"url": "http://127.0.0.1:1"},
}


class Host:
    """A `trio-runner embedded` process that hosts one server, and can be killed and started again on the same data."""

    def __init__(self, directory: Path, service: str) -> None:
        self.service = service
        self._directory = directory / service
        self._directory.mkdir()
        self._config = self._directory / "host.toml"
        others = {name: keys for name, keys in NOWHERE.items() if name != service}
        self._config.write_text(as_toml({"runner": {"data_dir": "data"}, **others}))
        self._process: subprocess.Popen[bytes] | None = None
        self.address: dict[str, Any] = {}

    async def start(self) -> None:
        """Start it and wait for its address."""
        out = self._directory / "out"
        with out.open("wb") as out_file, (self._directory / "err").open("ab") as err_file:
            self._process = subprocess.Popen(  # noqa: ASYNC220 - a thread would not know its children
                command("embedded", str(self._config)),
                stdout=out_file,
                stderr=err_file,
                env=environment(),
                start_new_session=True,
            )

        async def answers() -> bool:
            return "# until Ctrl-C" in out.read_text()

        await until(answers, described=f"the address of the {self.service}, see {self._directory}")
        self.address = from_toml(out.read_text())[self.service]

    async def kill(self) -> None:
        """Power off: the server dies with its host."""
        assert self._process is not None
        self._process.kill()
        await trio.to_thread.run_sync(self._process.wait)

    def close(self) -> None:
        """End it politely."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(PATIENCE_SECONDS)


@dataclass(eq=False, kw_only=True)
class Stand:
    """What stands around one process: proxies before its peers, a service of its own, and its config file."""

    database: Proxy
    kafka: Proxy
    fake: Fake
    config: Path
    broker_names: list[bytes]
    ledger_restarted: bool = False

    def aim(self, servers: Servers) -> None:
        """Lead to the servers where they are now."""
        self.database._target = _host_and_port(servers.database_url)
        self.kafka._target = _host_and_port(servers.brokers)
        self.broker_names[0] = _as_broker(*self.kafka._target)


class World:
    """Servers, ledger, topic and reaper of one campaign; made by `open_world`."""

    def __init__(self, directory: Path, patch: str, fork_server: ForkServer) -> None:
        self.directory = directory
        self.patch = patch
        """Python that breaks something in the program before it starts."""
        self.fork_server = fork_server
        self.hosts = {service: Host(directory, service) for service in ("database", "kafka")}
        self.restarts: Counter[str] = Counter()
        self.events: dict[int, list[Event]] = defaultdict(list)
        """Everything that was ever on the topic, by scenario."""
        self.ledger = WorldLedger(self)
        self.up = trio.Event()
        self.reaps = 0
        self._stands: set[Stand] = set()
        self._offsets: dict[aiokafka.TopicPartition, int] = {}
        self._reaping = trio.Lock()
        self._topic = trio.Lock()
        """Who reads it, writes to it, or takes a server away."""
        self._cli = Cli(directory, set(), fork_server)

    @property
    def servers(self) -> Servers:
        database = self.hosts["database"].address
        return Servers(
            database_url=database["url"],
            password_file=Path(database["password_file"]),
            brokers=self.hosts["kafka"].address["brokers"],
            inference_url="",
        )

    async def start(self) -> None:
        async with trio.open_nursery() as nursery:
            for host in self.hosts.values():
                nursery.start_soon(host.start)
        self.up.set()
        done = await self._cli("init-db", self._own_config("init.toml"))
        assert done.code == 0, done.err

    def _own_config(self, name: str) -> Path:
        path = self.directory / name
        path.write_text(
            as_toml(
                {
                    "runner": {"id": "reaper", "data_dir": "reaper"},
                    "inference": NOWHERE["inference"],
                    "database": self.servers.database,
                    "kafka": {"brokers": self.servers.brokers, "retry_topic": TOPIC},
                }
            )
        )
        return path

    async def reap(self) -> None:
        """Have every lease that has ended by now reaped; who asks while another reaper works shares the next one."""
        wanted = self.reaps + 1
        async with self._reaping:
            if self.reaps >= wanted:
                return
            self.reaps += 1
            await self.up.wait()
            async with self._cli.started("reap", self._own_config("reap.toml"), patch=self.patch) as running:
                await running.wait()

    async def restart(self, service: str) -> None:
        """Kill that server and start it again; what the broker held is read before, for its memory is all it has."""
        async with self._topic:
            self.up = trio.Event()
            for stand in self._stands:
                stand.kafka.break_down(Breakdown.CUT)
                stand.ledger_restarted |= service == "database"
            if service == "kafka":
                await self._read_events()
                self._offsets = {}
            await self.hosts[service].kill()
            await self.hosts[service].start()
            self.restarts[service] += 1
            for stand in self._stands:
                stand.aim(self.servers)
                stand.kafka.recover()
            self.up.set()

    async def read_events(self) -> None:
        """Add what is new on the topic to `events`."""
        async with self._topic:
            await self._read_events()

    async def _read_events(self) -> None:
        for event in await read_on(self.servers.brokers, TOPIC, self._offsets):
            self.events[int(event.key)].append(event)

    async def publish(self, events: Sequence[Event]) -> None:
        """Put copies of these on the topic, in this order."""
        async with self._topic:
            brokers = self.servers.brokers
            await trio.to_thread.run_sync(lambda: asyncio.run(_publish(brokers, events)))

    @asynccontextmanager
    async def stand(self, config: Path, sections: dict[str, dict[str, Any]], fake: Fake) -> AsyncIterator[Stand]:
        """Peers for one process, and its config at `config`; `fake` decides how the service behaves."""
        async with AsyncExitStack() as stack:
            names = [b""]
            database = await stack.enter_async_context(open_proxy("127.0.0.1", 1))
            kafka = await stack.enter_async_context(open_proxy("127.0.0.1", 1, rewrite=partial(_rename_broker, names)))
            names.append(_as_broker("127.0.0.1", kafka.port))
            live = await stack.enter_async_context(open_fake(plan=fake.plan, delay=fake.delay))
            stand = Stand(database=database, kafka=kafka, fake=live, config=config, broker_names=names)
            # Nothing is awaited from here on until it is one of `_stands`, which a restart aims anew.
            stand.ledger_restarted = not self.up.is_set()
            servers = self.servers
            stand.aim(servers)
            host, port = _host_and_port(servers.database_url)
            url = servers.database_url.replace(f"{host}:{port}", database.address)
            peers: dict[str, dict[str, Any]] = {
                "database": servers.database | {"url": url},
                "kafka": {"brokers": kafka.address, "retry_topic": TOPIC},
                "inference": {"url": live.url},
            }
            merged = {name: peers.get(name, {}) | sections.get(name, {}) for name in {*peers, *sections}}
            config.write_text(as_toml(merged))  # noqa: ASYNC240 - a small file
            self._stands.add(stand)
            try:
                yield stand
            finally:
                self._stands.discard(stand)


class WorldLedger(Ledger):
    """The database, read raw, whenever it is there."""

    def __init__(self, world: World) -> None:
        self._world = world

    async def query(self, sql: str, *args: object) -> list[dict[str, Any]]:
        """Rows of one statement, which may be executed twice if the database is restarted meanwhile."""
        with trio.fail_after(PATIENCE_SECONDS):
            while True:
                await self._world.up.wait()
                restarts = self._world.restarts["database"]
                try:
                    return await Ledger(self._world.servers).query(sql, *args)
                except (OSError, asyncpg.InterfaceError, asyncpg.InternalClientError, asyncpg.PostgresConnectionError):
                    if self._world.up.is_set() and restarts == self._world.restarts["database"]:
                        raise


@asynccontextmanager
async def open_world(directory: Path, *, patch: str, sql: str) -> AsyncIterator[World]:
    """Servers of their own for one campaign; `patch` (Python) and `sql` break the program and the schema on purpose."""
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - nobody else is there yet
    with open_fork_server(environment()) as fork_server:
        world = World(directory, patch, fork_server)
        try:
            await world.start()
            if sql:
                # One transaction of several statements: asyncpg's `fetch` takes but one.
                servers = world.servers
                await trio.to_thread.run_sync(lambda: asyncio.run(_execute(servers, sql)))
            yield world
        finally:
            for host in world.hosts.values():
                host.close()


async def _execute(servers: Servers, sql: str) -> None:
    connection = await asyncpg.connect(
        servers.database_url, password=servers.password, server_settings={"search_path": "trio_runner"}
    )
    try:
        await connection.execute(sql)
    finally:
        await connection.close()  # noqa: ASYNC102 - asyncio code, of a test


async def _publish(brokers: str, events: Sequence[Event]) -> None:
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=brokers)
    async with asyncio.timeout(PATIENCE_SECONDS), producer:
        for event in events:
            headers = [(name, value.encode()) for name, value in event.headers.items()]
            await producer.send_and_wait(TOPIC, event.raw, key=event.key.encode(), headers=headers)


def _host_and_port(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition("@")[2].partition("/")[0].rpartition(":")
    return host, int(port)


def _as_broker(host: str, port: int) -> bytes:
    """A broker sends its clients to the address that it gives itself."""
    return host.encode() + struct.pack(">i", port)


def _rename_broker(names: list[bytes], data: bytes) -> bytes:
    return data.replace(names[0], names[-1])

"""A fleet under test: orchestrators as real processes on a database, topics and a consumer group of one test's own."""

from __future__ import annotations

import asyncio
import json
import sys
import uuid
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiokafka
import psutil
import trio

from tests.support.database_server import OWNER, DatabaseServer
from tests.support.harness import PATIENCE_SECONDS, Cli, Ledger, Running, Servers, _read, as_toml, until
from trio_runner.base import aio
from trio_runner.config.sections import DatabaseSection
from trio_runner.config.settings import parse_settings
from trio_runner.database.store import open_store
from trio_runner.kafka.command import START, STOP

DYING = """\
import os, signal, sys
from functools import wraps
from importlib import import_module
from trio_runner.cli.main import main

module, kind, method, when, wanted = sys.argv.pop(1).split(":")
owner = getattr(import_module(module), kind)
function = getattr(owner, method)

@wraps(function)
async def dying(*args, **kwargs):
    if when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    result = await function(*args, **kwargs)
    if result or not wanted:
        os.kill(os.getpid(), signal.SIGKILL)
    return result

setattr(owner, method, dying)
sys.exit(main())
"""
"""`trio-runner` that kills itself before or after a call; given `wanted`, after a call that returns something true."""


@dataclass(frozen=True, kw_only=True)
class Message:
    """A record of a topic."""

    key: bytes | None
    value: bytes
    headers: dict[str, str]


@dataclass(kw_only=True)
class Fleet:
    """Everything that one test's orchestrators share."""

    name: str
    servers: Servers
    section: dict[str, Any]
    ledger: Ledger
    cli: Cli
    directory: Path
    inference_url: str
    common: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def retry_topic(self) -> str:
        return f"retry.{self.name}"

    @property
    def command_topic(self) -> str:
        return f"commands.{self.name}"

    @property
    def dead_letter_topic(self) -> str:
        return f"dead-letters.{self.name}"

    def config(self, node: str = "node_1", **sections: dict[str, Any]) -> Path:
        """Write a config for an orchestrator, with shorter times than the defaults, and JSON logs."""
        base: dict[str, dict[str, Any]] = {
            "runner": {"data_dir": f"{node}.data", "drain_seconds": 5.0},
            "log": {"format": "json"},
            # On a busy machine an answer is held back for long, and a heartbeat may be late.
            "inference": {"url": self.inference_url, "timeout_seconds": 60.0},
            "database": self.section | {"batch_frames": 4, "lease_seconds": 60.0},
            "pipeline": {"max_buffered_frames": 8},
            "kafka": {"brokers": self.servers.brokers, "retry_topic": self.retry_topic},
            "orchestrator": {
                "node": node,
                "group": f"group.{self.name}",
                "command_topic": self.command_topic,
                "dead_letter_topic": self.dead_letter_topic,
                "starts_per_second": 20.0,
                "start_timeout_seconds": 8.0,
                "poll_seconds": 0.1,
                "reap_seconds": 0.5,
                "stop_timeout_seconds": 20.0,
            },
        }
        for name in {*self.common, *sections}:
            base[name] = base.get(name, {}) | self.common.get(name, {}) | sections.get(name, {})
        path = self.directory / f"{node}.toml"
        path.write_text(as_toml(base))
        return path

    @asynccontextmanager
    async def orchestrator(
        self, node: str = "node_1", *, dying: str = "", config: Path | None = None, **sections: dict[str, Any]
    ) -> AsyncIterator[Running]:
        """Start an orchestrator; `dying` names the call at which it kills itself."""
        program: list[str] = []
        if dying:
            (self.directory / "dying.py").write_text(DYING)
            program = [sys.executable, str(self.directory / "dying.py"), dying]
        path = config or self.config(node, **sections)
        async with self.cli.started("orchestrate", path, program=program) as running:
            yield running

    async def submit(self, video: Path, scenario_id: int = 0, *settings: str) -> int:
        """Do what the verb `submit` does, without a process."""
        sections = parse_settings(settings)
        failures = sections.get("scenario", {}).get("max_failures", 5)
        (row,) = await self.ledger.query(
            "SELECT submit($1, $2, $3, $4, 50) AS id", scenario_id, str(video), sections, failures
        )
        return int(row["id"])

    async def insert(self, video: Path, ids: Collection[int], settings: Mapping[str, Any] | None = None) -> None:
        """Insert rows, as the API of another system may."""
        await self.ledger.query(
            "INSERT INTO scenarios (id, video_path, settings) SELECT unnest($1::bigint[]), $2, $3",
            list(ids),
            str(video),
            settings or {},
        )

    async def command(self, kind: str, scenario_id: int, command_id: str = "", **body: Any) -> None:
        await self.send(
            (
                self.command_topic,
                str(scenario_id).encode(),
                json.dumps({"scenario_id": scenario_id, **body}).encode(),
                [
                    ("ce_id", (command_id or str(uuid.uuid4())).encode()),
                    ("ce_type", {"start": START, "stop": STOP}[kind].encode()),
                ],
            )
        )

    async def send(self, *records: tuple[str, bytes | None, bytes | None, Sequence[tuple[str, bytes]]]) -> None:
        """Records as they are: topic, key, value, headers."""
        await trio.to_thread.run_sync(lambda: asyncio.run(_send(self.servers.brokers, records)))

    async def messages(self, topic: str) -> list[Message]:
        records = await trio.to_thread.run_sync(lambda: asyncio.run(_read(self.servers.brokers, topic.__eq__, {})))
        return [
            Message(
                key=record.key, value=record.value, headers={name: value.decode() for name, value in record.headers}
            )
            for record in records
        ]

    async def lag(self, topic: str) -> int:
        """How many records of the topic the group has yet to commit."""
        group = f"group.{self.name}"
        return await trio.to_thread.run_sync(lambda: asyncio.run(_lag(self.servers.brokers, topic, group)))

    async def ended(self, ids: Collection[int], *, hurry: bool = True) -> dict[int, str]:
        """Wait until each scenario has an outcome; in a `hurry` none backs off for long."""

        async def outcomes() -> dict[int, str]:
            if hurry:
                await self.hurry()
            rows = await self.ledger.query("SELECT id, outcome FROM scenarios WHERE id = ANY($1)", list(ids))
            found = {row["id"]: row["outcome"] for row in rows}
            return found if found.keys() == set(ids) and all(found.values()) else {}

        return await until(outcomes, described=f"outcomes of {sorted(ids)}: {await self.rows(ids)}")

    async def hurry(self) -> None:
        await self.ledger.query(
            "UPDATE scenarios SET not_before = now() WHERE status = 'init_startup' AND not_before > now()"
        )

    async def rows(self, ids: Collection[int]) -> list[dict[str, Any]]:
        return await self.ledger.query("SELECT * FROM scenarios WHERE id = ANY($1) ORDER BY id", list(ids))

    async def has(self, condition: str, *args: object) -> dict[str, Any]:
        """Wait for a scenario that meets the SQL condition; returns its row."""

        async def found() -> dict[str, Any]:
            rows = await self.ledger.query(f"SELECT * FROM scenarios WHERE {condition} ORDER BY id LIMIT 1", *args)  # noqa: S608 - ours
            return rows[0] if rows else {}

        return await until(found, described=condition)

    async def completed(self, ids: Collection[int], frames: int = 60) -> None:
        """Wait until all scenarios are completed; each frame must be stored once."""
        assert await self.ended(ids) == dict.fromkeys(ids, "completed"), await self.rows(ids)
        for each in ids:
            await self.ledger.check_invariants(each)
            indices = [row["frame_index"] for row in await self.ledger.predictions(each)]
            assert indices == list(range(frames))

    def runners(self) -> list[psutil.Process]:
        """The living runners of this test, of all its orchestrators."""
        return [process for process in psutil.process_iter() if self._is_ours(process)]

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            command = process.cmdline()
            mine = any(str(self.directory) in argument and argument.endswith(".toml") for argument in command)
            # The state is asked for last: of every process on the machine it would take longer than all the rest.
            return mine and "run" in command and "-m" in command and process.status() != psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return False

    async def runner(self, scenario_id: int) -> psutil.Process:
        """Wait for the scenario's runner; the leash, which becomes the runner, does not count."""

        async def found() -> list[psutil.Process]:
            for process in self.runners():
                try:
                    command = process.cmdline()
                except psutil.NoSuchProcess:
                    continue
                leashed = any("leash" in argument for argument in command)
                # A process that is about to end has no command line.
                if command and f"/runners/{scenario_id}/" in command[-1] and not leashed:
                    return [process]
            return []

        (runner,) = await until(found, described=f"a runner of scenario {scenario_id}")
        return runner

    async def no_runners(self) -> None:
        async def none() -> bool:
            return not self.runners()

        await until(none, described="no runners")

    async def clean_up(self) -> None:
        """Kill the runners of this test that still live."""
        for process in self.runners():
            with suppress(psutil.NoSuchProcess):
                process.kill()
        await self.no_runners()


async def prepare(server: DatabaseServer) -> None:
    """Make the database of which each fleet gets a copy."""
    async with aio.open_loop(), open_store(DatabaseSection(**server.section()), application_name="fleet") as store:
        await store.create_schema()


@asynccontextmanager
async def open_fleet(
    server: DatabaseServer, servers: Servers, cli: Cli, directory: Path, inference_url: str
) -> AsyncIterator[Fleet]:
    """A fleet with a database of its own."""
    name = uuid.uuid4().hex[:12]
    await server.as_superuser(f"CREATE DATABASE fleet_{name} TEMPLATE {server.database} OWNER {OWNER}")
    mine = Servers(
        database_url=f"postgresql://{OWNER}@127.0.0.1:{server.port}/fleet_{name}",
        password_file=server.password_file,
        brokers=servers.brokers,
        inference_url=servers.inference_url,
    )
    with Ledger(mine) as ledger:
        fleet = Fleet(
            name=name,
            servers=mine,
            section=server.section(host="127.0.0.1", database=f"fleet_{name}"),
            ledger=ledger,
            cli=cli,
            directory=directory,
            inference_url=inference_url,
        )
        try:
            yield fleet
        finally:
            with trio.move_on_after(PATIENCE_SECONDS, shield=True):
                await fleet.clean_up()


async def _send(brokers: str, records: Sequence[Any]) -> None:
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=brokers)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await producer.start()
        try:
            for topic, key, value, headers in records:
                await producer.send_and_wait(topic, value, key, headers=list(headers))
        finally:
            await producer.stop()  # noqa: ASYNC102 - asyncio code, and a timeout bounds it


async def _lag(brokers: str, topic: str, group: str) -> int:
    consumer = aiokafka.AIOKafkaConsumer(bootstrap_servers=brokers, group_id=group, enable_auto_commit=False)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await consumer.start()
        try:
            await consumer.topics()
            partitions = [
                aiokafka.TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()
            ]
            ends = await consumer.end_offsets(partitions)
            return sum([end - (await consumer.committed(partition) or 0) for partition, end in ends.items()])
        finally:
            await consumer.stop()  # noqa: ASYNC102 - the same

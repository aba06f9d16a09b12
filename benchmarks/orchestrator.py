"""Measures an orchestrator with child processes from the outside: storm, events/s, memory, persistence.

    python benchmarks/orchestrator.py [storm] [events] [memory] [progress]

Starts the embedded database and broker and a fake inference service, then a real `trio-runner orchestrate`. Each part
has a ledger of its own. Times are wall-clock of this machine: compare them within one run of this script. Needs the
development dependencies.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import trio
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.campaign.world import Host  # noqa: E402
from tests.support import clips  # noqa: E402 - the tests' clips, service and servers
from tests.support.fake_inference import Fake, once, open_fake  # noqa: E402
from tests.support.harness import Ledger, Servers, as_toml, command, environment, until  # noqa: E402
from trio_runner.base import aio  # noqa: E402
from trio_runner.config.load import load_config  # noqa: E402
from trio_runner.config.settings import parse_settings  # noqa: E402
from trio_runner.database.backlog import Backlog  # noqa: E402
from trio_runner.database.store import Attempt, open_store  # noqa: E402
from trio_runner.errors import ErrorCode  # noqa: E402
from trio_runner.kafka import retry_event as retry  # noqa: E402
from trio_runner.model import Failure, Progress  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence
    from typing import Any

    from trio_runner.config.load import Config

PATIENCE_SECONDS = 1500.0


class Bench:
    """Servers, a clip, and a config for one orchestrator."""

    def __init__(self, directory: Path, servers: Servers, fake: Fake) -> None:
        """`directory` is new."""
        self.directory, self.servers, self.fake = directory, servers, fake
        self.ledger = Ledger(servers)
        self.config = directory / "orchestrator.toml"

    def write(self, *, sections: Mapping[str, dict[str, Any]] | None = None, **orchestrator: object) -> None:
        """The config, with these keys in its section; `sections` are further ones, or replace those of their names."""
        both: dict[str, dict[str, Any]] = {
            "runner": {"data_dir": str(self.directory / "data")},
            "log": {"format": "json"},
            "inference": {"url": self.fake.url},
            "database": self.servers.database | {"batch_frames": 4},
            "kafka": {"brokers": self.servers.brokers},
            "orchestrator": {"node": "here", **orchestrator},
        }
        self.config.write_text(as_toml(both | dict(sections or {})))

    async def submit(self, scenarios: int, video: Path, *settings: str, max_failures: int = 1000) -> None:
        """So many, under new numbers."""
        async with (
            aio.open_loop(),
            open_store(load_config(self.config).database, application_name="bench") as store,
        ):
            await store.create_schema()
            for _ in range(scenarios):
                await Backlog(store).submit(
                    0, str(video), parse_settings(settings), max_failures=max_failures, max_epochs=1000
                )

    @asynccontextmanager
    async def orchestrating(self) -> AsyncIterator[psutil.Process]:
        """The process, stopped politely at the end."""
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(  # noqa: ASYNC220 - here and now
                command("orchestrate", str(self.config)), stdout=log, stderr=log, env=environment()
            )
        try:
            yield psutil.Process(process.pid)
        finally:
            process.send_signal(signal.SIGTERM)
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(process.wait, 120)

    async def count(self, condition: str) -> int:
        """How many scenarios are so."""
        (row,) = await self.ledger.query(f"SELECT count(*) AS n FROM scenarios WHERE {condition}")  # noqa: S608 - ours
        return int(row["n"])

    async def all_done(self, scenarios: int) -> None:
        """Wait until so many are completed."""

        async def done() -> bool:
            await trio.sleep(0.5)
            assert not await self.count("outcome = 'failed'"), "one was given up"
            return await self.count("outcome = 'completed'") >= scenarios

        await until(done, described="everything completed", seconds=PATIENCE_SECONDS)


@asynccontextmanager
async def opened(name: str) -> AsyncIterator[Bench]:
    """Servers and a service of its own for one part."""
    with tempfile.TemporaryDirectory(prefix=f"trio-runner-{name}-") as temporary:
        directory = Path(temporary)
        hosts = {service: Host(directory, service) for service in ("database", "kafka")}
        for host in hosts.values():
            await host.start()
        try:
            async with open_fake() as fake:
                database = hosts["database"].address
                servers = Servers(
                    database_url=database["url"],
                    password_file=Path(database["password_file"]),
                    brokers=hosts["kafka"].address["brokers"],
                    inference_url=fake.url,
                )
                yield Bench(directory, servers, fake)
        finally:
            for host in hosts.values():
                host.close()


async def storm(options: argparse.Namespace) -> None:
    """Everything is due, the inference service is dead; then it comes back."""
    async with opened("storm") as bench:
        bench.write(max_runners=options.room)
        text = bench.config.read_text()
        bench.config.write_text(text.replace(bench.fake.url, "http://127.0.0.1:9"))
        video = clips.pixel_coded(bench.directory / "clip.mp4", frames=10)
        await bench.submit(options.scenarios, video)
        async with bench.orchestrating():
            await trio.sleep(options.dead)
        started = await bench.ledger.query(
            "SELECT floor(extract(epoch FROM started_at)) AS second, count(*) AS n FROM attempts GROUP BY 1"
        )
        attempts = sum(row["n"] for row in started)
        most = max(row["n"] for row in started)
        due = f"{options.dead:g} s of a dead service with {options.scenarios} due"
        print(f"{due}: {attempts} attempts, {most} in a second")
        bench.config.write_text(text)
        back = time.monotonic()
        async with bench.orchestrating():
            await bench.all_done(options.scenarios)
        took = time.monotonic() - back
        print(
            f"all {options.scenarios} completed {took:.0f} s after it is back: {options.scenarios / took:.1f} a second"
        )


async def events(options: argparse.Namespace) -> None:
    """A topic full of retry events that the ledger knows already; how fast an orchestrator takes note of them."""
    async with opened("events") as bench:
        bench.write(max_runners=1)
        await bench.submit(1, Path("/nowhere.mp4"))
        config = load_config(bench.config)
        event = await _died(config)
        await trio.to_thread.run_sync(lambda: asyncio.run(_publish(config, event, options.events)))
        async with bench.orchestrating():
            seen: list[tuple[float, int]] = []
            while not seen or seen[-1][1] < options.events:
                handled = await trio.to_thread.run_sync(lambda: asyncio.run(_committed(config)))
                if handled:
                    seen.append((time.monotonic(), handled))
                await trio.sleep(0.1)
        (began, first), (ended, last) = seen[0], seen[-1]
        print(f"retry events that the ledger knows: {(last - first) / (ended - began):.0f} a second")


async def _died(config: Config) -> retry.RetryEvent:
    """The event of a death that the ledger has."""
    attempt = Attempt(
        scenario_id=1,
        epoch=1,
        video_path="/nowhere.mp4",
        runner_id="x",
        instance_id=str(uuid.uuid4()),
        max_failures=5,
    )
    failure = Failure(code=ErrorCode.STORE_LOST, type="X", message="a benchmark's")
    async with aio.open_loop(), open_store(config.database, application_name="bench") as store:
        claim = await store.claim(attempt)
        event = retry.build_event(failure, claim=claim, runner_id="x", progress=Progress(), reporter="runner")
        await store.fail(
            claim,
            event_id=event.id,
            reporter="runner",
            error_class="permanent",
            body=retry.encode(event),
            retry_after_seconds=0.0,
        )
    return event


async def _publish(config: Config, event: retry.RetryEvent, times: int) -> None:
    """asyncio-flavoured: in batches of hundreds, as they lie on a broker that many have written to."""
    producer = AIOKafkaProducer(bootstrap_servers=config.kafka.brokers, linger_ms=100, max_batch_size=2**18)
    await producer.start()
    try:
        body, headers = retry.encode(event), retry.headers(event)
        for _ in range(times):
            await producer.send(config.kafka.retry_topic, body, key=b"1", headers=headers)
        await producer.flush()
    finally:
        await producer.stop()  # noqa: ASYNC102 - asyncio code, and a benchmark


async def _committed(config: Config) -> int:
    """asyncio-flavoured: up to where the group has read the retry topic."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=config.kafka.brokers, group_id=config.orchestrator.group, enable_auto_commit=False
    )
    await consumer.start()
    try:
        # So many as the embedded broker makes of a topic.
        partitions = [TopicPartition(config.kafka.retry_topic, number) for number in range(4)]
        return sum([await consumer.committed(partition) or 0 for partition in partitions])
    finally:
        await consumer.stop()  # noqa: ASYNC102 - the same


async def memory(_: argparse.Namespace) -> None:
    """What an orchestrator weighs with a thousand scenarios waiting."""
    async with opened("memory") as bench:
        bench.write(max_runners=4)
        bench.fake.delay = lambda _: 0.2
        video = clips.pixel_coded(bench.directory / "clip.mp4", frames=60)
        sizes = {}
        for scenarios in (1, 1000):
            await bench.submit(scenarios, video)
            async with bench.orchestrating() as process:
                await trio.sleep(10)
                sizes[scenarios] = process.memory_info().rss / 2**20
        print("resident: " + ", ".join(f"{size:.0f} MiB with {count} scenarios" for count, size in sizes.items()))


async def progress(options: argparse.Namespace) -> None:
    """A scenario that may not fail once without having stored something, and whose service fails again and again."""
    async with opened("progress") as bench:
        bench.write(max_runners=1)
        # Eight apart, for a batch of four to be stored in between.
        frames = 8 * options.failures + 8
        bench.fake.plan = once(*range(7, frames - 1, 8))
        video = clips.pixel_coded(bench.directory / "clip.mp4", frames=frames)
        await bench.submit(1, video, "inference.in_flight=1", max_failures=1)
        began = time.monotonic()
        async with bench.orchestrating():
            await bench.all_done(1)
        took = time.monotonic() - began
        (tried,) = await bench.ledger.query("SELECT count(*) FILTER (WHERE outcome = 'failed') AS n FROM attempts")
        (stored,) = await bench.ledger.query(
            "SELECT count(DISTINCT frame_index) AS n, count(*) AS rows FROM predictions"
        )
        print(f"{tried['n']} failures, then completed: {stored['n']} frames in {stored['rows']} rows, {took:.0f} s")


def percentiles(values: Sequence[float]) -> str:
    """The median and what 99 of 100 are not above; `values` are seconds, sorted."""
    p99 = values[min(len(values) - 1, int(len(values) * 0.99))]
    return f"p50 {statistics.median(values):.2f} s, p99 {p99:.2f} s of {len(values)}"


def main() -> int:
    """Run the parts asked for, or all."""
    parts = {"storm": storm, "events": events, "memory": memory, "progress": progress}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*parts, []], help="default: all of them")
    parser.add_argument("--scenarios", type=int, default=500, help="of the storm")
    parser.add_argument("--room", type=int, default=8, help="runners at once in the storm")
    parser.add_argument("--dead", type=float, default=60.0, help="seconds that the service is dead")
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--failures", type=int, default=40, help="of a scenario that makes progress")
    options = parser.parse_args()
    for name in options.parts or parts:
        trio.run(parts[name], options)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""One scenario under test: everything that can be looked at after a death, and what has to be true of it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import jsonschema
import psutil
import trio

import trio_runner
from tests.support.fake_inference import Fake, Fault, at_frame, open_fake, stored_for
from tests.support.harness import (
    PATIENCE_SECONDS,
    Cli,
    Event,
    Finished,
    Ledger,
    Running,
    Servers,
    ServiceManager,
    WriteConfig,
    from_toml,
    open_service_manager,
    read_topic,
    until,
)
from tests.support.proxy import Breakdown, open_proxy
from trio_runner.base import aio

SCHEMA_FILE = Path(trio_runner.__file__).parent / "kafka" / "schemas" / "retry_event.json"

SMALL_WINDOW: dict[str, dict[str, Any]] = {
    "pipeline": {"max_buffered_frames": 8},
    "database": {"batch_frames": 4},
}
"""So few frames under way that of the big clip most are still in the decoder's hands when the service holds frame 5,
and that frame 20 of any is asked about only when some are stored."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a test of this file works with: this test's scenario, and all that can be looked at after a death."""

    scenario_id: int
    topic: str
    servers: Servers
    ledger: Ledger
    cli: Cli
    write_config: WriteConfig
    directory: Path

    async def events(self, brokers: str | None = None) -> list[Event]:
        """This scenario's events on its topic, where there may be those of others."""
        events = await read_topic(brokers or self.servers.brokers, self.topic)
        return [event for event in events if event.key == str(self.scenario_id)]

    async def the_event(self, brokers: str | None = None) -> Event:
        """The one event on this test's topic, once it is proven well-formed."""
        events = await self.events(brokers)
        assert len(events) == 1
        (event,) = events
        schema = json.loads(SCHEMA_FILE.read_text())
        jsonschema.validate(event.body, schema, format_checker=jsonschema.FormatChecker())
        attributes = {
            "ce_specversion": "1.0",
            "ce_source": f"/trio-runner/scenarios/{self.scenario_id}",
            "ce_subject": str(self.scenario_id),
            "ce_partitionkey": str(self.scenario_id),
            "ce_time": event.body["timestamp"],
            "ce_epoch": str(event.body["epoch"]),
            "content-type": "application/json",
        }
        assert attributes.items() <= event.headers.items()
        assert {"ce_id", "ce_type", "ce_dataschema"} <= event.headers.keys()
        assert event.key == str(self.scenario_id)
        assert (event.body["scenario_id"], event.body["runner_id"]) == (self.scenario_id, "runner_under_test")
        assert len(event.raw) <= 16 * 1024
        return event

    async def check_death(
        self, done: Finished, code: str, *, named: str, error_class: str = "retriable", published: bool = True
    ) -> dict[str, Any]:
        """Ledger, topic, stderr and output after the first attempt died; returns the event as the ledger has it."""
        scenario = await self.ledger.existing(self.scenario_id)
        assert scenario["last_error"]["code"] == code, done.err
        assert scenario["last_error"]["class"] == error_class
        given_up = error_class == "permanent"
        assert scenario["status"] == ("inactive" if given_up else "init_startup")
        assert scenario["outcome"] == ("failed" if given_up else None)
        assert (scenario["epoch"], scenario["instance_id"], scenario["lease_until"]) == (2, None, None)
        counts = error_class != "interrupted" and scenario["next_frame"] == 0
        assert scenario["failures"] == (1 if counts else 0), "only a failure without progress counts"

        (attempt,) = await self.ledger.attempts(self.scenario_id)
        assert attempt["outcome"] == ("interrupted" if error_class == "interrupted" else "failed")
        assert attempt["error"]["code"] == code
        assert (attempt["first_frame"], attempt["end_frame"]) == (0, scenario["next_frame"])
        assert scenario["not_before"] - attempt["ended_at"] <= timedelta(seconds=300)

        (record,) = await self.ledger.retry_events(self.scenario_id)
        assert (record["reporter"], record["epoch"]) == ("runner", 1)
        body: dict[str, Any] = record["body"]
        assert body["error"]["code"] == code
        assert named in body["error"]["message"]
        # The runner may have been cut off between a commit and its reply: only the ledger knows for certain.
        assert body["progress"]["next_frame"] <= scenario["next_frame"]
        if published:
            event = await self.the_event()
            assert event.headers["ce_id"] == str(record["event_id"])
            assert event.body == body
        else:
            assert await self.events() == []

        level = "info" if error_class == "interrupted" else "error"
        assert any(line["level"] == level and named in line["event"] for line in done.log()), done.err
        self.check_secrets(done.out, done.err, json.dumps(body))
        await self.ledger.check_invariants(self.scenario_id)
        return body

    def check_secrets(self, *texts: str) -> None:
        """No text holds the database's password."""
        password = self.servers.password
        assert not password or not any(password in text for text in texts)

    async def stored(self) -> int:
        """How many frames the ledger has, from the first on."""
        frames: int = (await self.ledger.existing(self.scenario_id))["next_frame"]
        return frames

    async def run_to_the_end(self, config: Path) -> Finished:
        """Run the process, which must leave nothing behind."""
        async with self.cli.started("run", config) as running:
            done = await running.wait()
            assert running.family() == [], "a child outlived the runner"
        return done

    async def check_rows(self, count: int, size: tuple[int, int] = (320, 240)) -> None:
        """The first `count` frames are stored, each once, with its own content and its size, and no others."""
        rows = await self.ledger.predictions(self.scenario_id)
        assert [row["frame_index"] for row in rows] == list(range(count))
        for row in rows:
            assert row["detections"] == stored_for(row["frame_index"], *size)
            assert (row["width"], row["height"]) == size

    async def check_resume(
        self, *, frames: int, size: tuple[int, int] = (320, 240), **sections: dict[str, Any]
    ) -> None:
        """A second run, with a service that is well, completes the scenario and asks only for what is not stored."""
        stored = await self.stored()
        async with open_fake() as fake:
            config = self.write_config("second.toml", inference={"url": fake.url}, **sections)
            done = await self.run_to_the_end(config)
        assert done.code == 0, done.err
        assert sorted(fake.numbers) == list(range(stored, frames))
        await self.check_rows(frames, size)
        scenario = await self.ledger.existing(self.scenario_id)
        assert (scenario["status"], scenario["outcome"], scenario["epoch"]) == ("active", "completed", 2)
        assert (scenario["failures"], scenario["last_error"]) == (0, None)
        assert [row["outcome"] for row in await self.ledger.attempts(self.scenario_id)][-1] == "completed"
        assert len(await self.ledger.retry_events(self.scenario_id)) == 1
        await self.ledger.check_invariants(self.scenario_id)


@dataclass(frozen=True, kw_only=True)
class Held:
    """A run of the big clip in its middle: some frames are stored, the service keeps the answers from frame 5 on."""

    running: Running
    fake: Fake
    manager: ServiceManager


@asynccontextmanager
async def held_run(
    scene: Scene, big_clip: Path, *, executed: bool = False, invocation: str = "", **sections: dict[str, Any]
) -> AsyncIterator[Held]:
    async with open_fake(held=lambda number: number >= 5) as fake, open_service_manager() as manager:
        merged: dict[str, dict[str, Any]] = {
            name: SMALL_WINDOW.get(name, {}) | sections.get(name, {}) for name in {*SMALL_WINDOW, *sections}
        }
        merged["video"] = {"path": str(big_clip)} | merged.get("video", {})
        # On a busy machine a held frame is held for long.
        merged["inference"] = {"url": fake.url, "timeout_seconds": 60.0} | merged.get("inference", {})
        config = scene.write_config("runner.toml", **merged)
        async with scene.cli.started(
            "run", config, variables=manager.variables, invocation=invocation, executed=executed
        ) as running:
            # A runner that is ready has claimed its scenario, so the scenario has a row.
            await manager.wait_for("READY=1")

            async def is_held() -> bool:
                row = await scene.ledger.existing(scene.scenario_id)
                return row["status"] == "active" and any(map(fake.held, fake.numbers))

            await until(is_held, described="active, and a frame is under way")
            yield Held(running=running, fake=fake, manager=manager)


@asynccontextmanager
async def own_broker(scene: Scene) -> AsyncIterator[tuple[dict[str, Any], psutil.Process]]:
    """An embedded broker of this test alone: its `[kafka]` section, and its process, to be stopped and continued."""
    config = scene.write_config("broker.toml", runner={"data_dir": "broker"}, kafka={"brokers": "embedded"})
    async with scene.cli.started("embedded", config) as host:

        async def addresses() -> str:
            return host.out() if "# until Ctrl-C" in host.out() else ""

        live = from_toml(await until(addresses, described="the broker's address"))
        (server,) = (p for p in psutil.Process(host.pid).children() if "trio_runner.embedded.broker" in p.cmdline())
        yield live["kafka"], server


Deceased = tuple[Finished, dict[str, Any], psutil.Process]
"""How a run ended, its broker's `[kafka]` section with short timeouts, and the broker's process."""


@asynccontextmanager
async def death_without_kafka(scene: Scene, clip: Path, *, database: bool = True) -> AsyncIterator[Deceased]:
    """A run that fails at frame 20 when its broker, which answered the preflight, is frozen; later it is well again.

    Without `database` PostgreSQL is out of the runner's reach by then, too.
    """
    url = urlsplit(scene.servers.database_url)
    async with (
        own_broker(scene) as (kafka, server),
        open_proxy(url.hostname or "127.0.0.1", url.port or 5432) as proxy,
        open_service_manager() as manager,
        open_fake(plan=at_frame(20, Fault.STATUS_500), held=lambda number: number >= 5) as fake,
    ):
        kafka |= {"publish_timeout_seconds": 1.0, "connect_timeout_seconds": 2.0}
        through_proxy = url._replace(netloc=f"{url.username}@{proxy.address}").geturl()
        config = scene.write_config(
            video={"path": str(clip)},
            inference={"url": fake.url},
            database={"batch_frames": 4, "url": through_proxy},
            kafka=kafka,
        )
        async with scene.cli.started("run", config, variables=manager.variables) as running:
            await manager.wait_for("READY=1")
            server.suspend()
            if not database:
                proxy.break_down(Breakdown.REFUSE)
            fake.gate.set()
            done = await running.wait()
            assert running.family() == []
        server.resume()
        assert done.code == 74, done.err
        if database:
            await scene.check_death(done, "inference_unavailable", named=fake.url, published=False)
        yield done, kafka, server


@asynccontextmanager
async def locked(scene: Scene, statement: str) -> AsyncIterator[None]:
    """Somebody holds what this statement locks: for a migration, perhaps."""
    settings = {"search_path": "trio_runner"}
    async with aio.open_loop():
        with trio.fail_after(PATIENCE_SECONDS):
            connection = await aio.call(
                asyncpg.connect,
                scene.servers.database_url,
                password=scene.servers.password or None,
                server_settings=settings,
            )
        try:
            with trio.fail_after(PATIENCE_SECONDS):
                await aio.call(connection.execute, f"BEGIN; {statement}")
            yield
        finally:
            connection.terminate()

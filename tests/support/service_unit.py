"""An instance of the unit under a service manager: what a test does to it, and what it leaves in ledger and topic."""

from __future__ import annotations

import shlex
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import trio

from tests.support import clips
from tests.support.fake_inference import Fake, open_fake
from tests.support.harness import Event, read_topic, until
from tests.support.scene import SMALL_WINDOW, Scene
from tests.support.service_manager import Manager, Output

FRAMES, SIZE = 80, clips.LARGE_SIZE
"""Of the clip; its JPEGs, 20 kB each, do not all fit between decoder and daemon: both live while one is held."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """What the service manager knows of a unit's last ending."""

    result: str
    how: str
    status: str


@dataclass(frozen=True, kw_only=True)
class Unit:
    """An instance of the unit for this test's scenario."""

    scene: Scene
    manager: Manager
    name: str
    base: dict[str, dict[str, Any]]
    """Of its config: what is the same in every test."""

    def configure(self, inference_url: str, **sections: dict[str, Any]) -> None:
        """Write its config."""
        base: dict[str, dict[str, Any]] = {
            **SMALL_WINDOW,
            **self.base,
            # On a busy machine a held frame is held for long.
            "inference": {"url": inference_url, "timeout_seconds": 60.0},
        }
        merged = {name: base.get(name, {}) | sections.get(name, {}) for name in {*base, *sections}}
        written = self.scene.write_config("unit.toml", **merged)
        (self.manager.configs / f"{self.scene.scenario_id}.toml").write_text(written.read_text())

    async def start(self, *options: str) -> Output:
        return await self.manager.systemctl("start", *options, self.name)

    async def stop(self) -> None:
        """Stop it, as `systemctl stop` does: when this returns it has ended."""
        done = await self.manager.systemctl("stop", self.name)
        assert done.code == 0, done.text

    async def run_program(self, source: str, *lines: str) -> None:
        """From now on the unit runs this Python program, with these further lines."""
        (self.manager.configs / f"{self.scene.scenario_id}.py").write_text(source)
        program, config = (self.manager.configs_inside / f"{self.scene.scenario_id}.{kind}" for kind in ("py", "toml"))
        command = shlex.join([self.manager.interpreter, str(program), "run", str(config)])
        await self.drop_in("ExecStart=", f"ExecStart={command}", *lines)

    async def drop_in(self, *lines: str) -> None:
        await self.manager.drop_in(self.name, *lines)

    async def signal_main(self, number: signal.Signals) -> None:
        done = await self.manager.systemctl("kill", "--kill-who=main", f"--signal={number.name}", self.name)
        assert done.code == 0, done.text

    async def active(self) -> None:
        """Wait until predictions are stored."""

        async def is_active() -> bool:
            status: str = (await self.scene.ledger.existing(self.scene.scenario_id))["status"]
            return status == "active"

        await until(is_active, described="active")

    async def ended(self) -> Ending:
        """Wait for its end, which includes that of ExecStopPost=; nobody of it is left."""

        async def is_over() -> dict[str, str]:
            await trio.sleep(0.1)
            shown = await self.manager.show(self.name)
            return shown if shown["ActiveState"] in {"inactive", "failed"} else {}

        shown = await until(is_over, described="the unit has ended")
        assert self.manager.processes(self.name) == [], "somebody is left in the cgroup"
        how = {"1": "exited", "2": "killed", "3": "dumped"}.get(shown["ExecMainCode"], "")
        return Ending(result=shown["Result"], how=how, status=shown["ExecMainStatus"])

    def decoder(self) -> psutil.Process:
        (process,) = (p for p in self.manager.processes(self.name) if "trio_runner.video.decoder" in p.cmdline())
        return process

    def kernel_statuses(self) -> list[set[str]]:
        """The kernel's status lines of each process (proc_pid_status(5))."""
        processes = self.manager.processes(self.name)
        return [set(Path(f"/proc/{process.pid}/status").read_text().splitlines()) for process in processes]

    async def reported(self, code: str, *, by: str) -> Event:
        """One event is on the topic; ledger, topic and scenario agree on this death."""
        event = await self.scene.the_event()
        assert (event.body["error"]["code"], event.body["reporter"]) == (code, by)
        (record,) = await self.scene.ledger.retry_events(self.scene.scenario_id)
        assert (str(record["event_id"]), record["body"]) == (event.headers["ce_id"], event.body)
        assert record["reporter"] == by
        (attempt,) = await self.scene.ledger.attempts(self.scene.scenario_id)
        assert attempt["error"]["code"] == code
        own_outcome = "interrupted" if code == "interrupted" else "failed"
        assert attempt["outcome"] == (own_outcome if by == "runner" else "lost")
        scenario = await self.scene.ledger.existing(self.scene.scenario_id)
        assert scenario["last_error"]["code"] == code
        await self.scene.ledger.check_invariants(self.scene.scenario_id)
        return event

    async def completes(self) -> None:
        """The unit as shipped, started again, goes on from what is stored; each frame is there once."""
        row = await self.scene.ledger.scenario(self.scene.scenario_id)
        stored = row["next_frame"] if row else 0
        await self.drop_in()
        async with open_fake() as fake:
            self.configure(fake.url)
            done = await self.start()
            assert done.code == 0, done.text + self.log()
            assert await self.ended() == Ending(result="success", how="exited", status="0")
        assert sorted(fake.numbers) == list(range(stored, FRAMES))
        await self.scene.check_rows(FRAMES, SIZE)
        assert (await self.scene.ledger.existing(self.scene.scenario_id))["outcome"] == "completed"
        ids = {event.headers["ce_id"] for event in await read_topic(self.scene.servers.brokers, self.scene.topic)}
        assert len(ids) == 1
        await self.scene.ledger.check_invariants(self.scene.scenario_id)
        assert not any(canary in self.log() for canary in self.scene.cli.canaries), "a secret was logged"

    def log(self) -> str:
        return self.manager.log(self.name)


@asynccontextmanager
async def open_unit(manager: Manager, scene: Scene, base: dict[str, dict[str, Any]]) -> AsyncIterator[Unit]:
    """The instance for this test's scenario; what a failed test left of it ends with the block."""
    name, keep = f"trio-runner@{scene.scenario_id}.service", f"keep@{scene.scenario_id}.target"
    done = await manager.systemctl("start", keep)
    assert done.code == 0, done.text
    yield Unit(scene=scene, manager=manager, name=name, base=base)
    await manager.systemctl("kill", "--signal=KILL", name)
    await manager.systemctl("stop", keep, name)


@asynccontextmanager
async def at_work(unit: Unit, **sections: dict[str, Any]) -> AsyncIterator[Fake]:
    """The unit in the middle of its work: some frames are stored, the service keeps the answers from frame 5 on."""
    async with open_fake(held=lambda number: number >= 5) as fake:
        unit.configure(fake.url, **sections)
        done = await unit.start()
        assert done.code == 0, done.text + unit.log()
        await unit.active()
        yield fake

"""The shipped orchestrator's unit under a service manager, with a database of its own."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tests.support.fake_inference import Fake, open_fake
from tests.support.harness import Ledger, until
from tests.support.scene import SMALL_WINDOW, Scene
from tests.support.service_manager import Manager

NAME = "trio-runner-orchestrator.service"


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """An orchestrator that runs as a unit, and the scenarios of its database."""

    scene: Scene
    manager: Manager
    fake: Fake
    """Its runners' inference service, which holds back the answers from frame 5 on until its gate is set."""
    config: Path

    async def submit(self, video: Path, scenario_id: int | None = None) -> int:
        """As `trio-runner submit` does."""
        scenario_id = scenario_id or self.scene.scenario_id
        await self.scene.ledger.query("SELECT submit($1, $2, '{}', 5, 50)", scenario_id, str(video))
        return scenario_id

    async def stop(self, scenario_id: int) -> None:
        """As `trio-runner stop` does."""
        await self.scene.ledger.query("SELECT stop($1)", scenario_id)

    async def status(self, scenario_id: int) -> dict[str, Any]:
        """The scenario's row in the output of `trio-runner status`."""
        done = await self.scene.cli("status", self.config, "--json")
        (row,) = (row for row in json.loads(done.out) if row["id"] == scenario_id)
        return dict(row)

    async def at_work(self, scenario_id: int) -> None:
        """Wait until a runner of the scenario lives and has stored something."""

        async def stored() -> bool:
            row = await self.scene.ledger.existing(scenario_id)
            return row["status"] == "active" and row["instance_id"] is not None

        await self._until(stored, scenario_id, "is at work")

    async def drained(self, scenario_id: int) -> None:
        """Wait until the scenario is stopped, and its runner has reported that itself."""

        async def is_inactive() -> bool:
            return bool((await self.scene.ledger.existing(scenario_id))["status"] == "inactive")

        await self._until(is_inactive, scenario_id, "is inactive")
        assert await self.reporters(scenario_id) == [("interrupted", "runner")]
        await self.scene.ledger.check_invariants(scenario_id)

    async def refused(self, scenario_id: int) -> str:
        """Wait until `status` shows why the scenario is not started."""

        async def why() -> str:
            error = (await self.status(scenario_id))["last_error"]
            return str(error["message"]) if error and error["code"] == "not_started" else ""

        return await until(why, described=f"scenario {scenario_id} is not started")

    async def without_config(self, scenario_id: int) -> None:
        """Wait until the config of the scenario's runner is removed."""

        async def is_removed() -> bool:
            return not (self.manager.configs / f"{scenario_id}.toml").exists()

        await until(is_removed, described="its config is removed")

    async def completed(self, scenario_id: int) -> list[dict[str, Any]]:
        """Wait until the scenario is completed; returns its attempts."""

        async def is_completed() -> bool:
            return bool((await self.scene.ledger.existing(scenario_id))["outcome"] == "completed")

        await self._until(is_completed, scenario_id, "is completed")
        await self.scene.ledger.check_invariants(scenario_id)
        return await self.scene.ledger.attempts(scenario_id)

    async def reporters(self, scenario_id: int) -> list[tuple[str, str]]:
        """Code and reporter of each death."""
        events = await self.scene.ledger.retry_events(scenario_id)
        return [(event["body"]["error"]["code"], event["reporter"]) for event in events]

    async def gone(self, unit: str) -> None:
        """Wait until the unit has ended."""

        async def is_gone() -> bool:
            return (await self.manager.show(unit))["ActiveState"] in {"inactive", "failed"}

        await until(is_gone, described=f"{unit} has ended")

    async def logged(self, text: str) -> None:
        """Wait until the text is in the orchestrator's log."""

        async def is_logged() -> bool:
            return text in self.log()

        await until(is_logged, described=text)

    async def kill(self, unit: str = NAME, number: signal.Signals = signal.SIGKILL) -> None:
        """Signal the unit's main process, and no other."""
        done = await self.manager.systemctl("kill", "--kill-who=main", f"--signal={number.name}", unit)
        assert done.code == 0, done.text

    async def _until(self, condition: Callable[[], Awaitable[bool]], scenario_id: int, described: str) -> None:
        try:
            await until(condition, described=f"scenario {scenario_id} {described}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()}") from None

    def log(self) -> str:
        return self.manager.log(NAME)


def unit_of(scenario_id: int) -> str:
    return f"trio-runner@{scenario_id}.service"


@asynccontextmanager
async def open_fleet(
    manager: Manager, scene: Scene, spawner: str, **sections: dict[str, dict[str, Any]]
) -> AsyncIterator[Fleet]:
    """An orchestrator that is ready; it and its runners are ended with the block.

    `orchestrator` and `runner` are further sections of their configs.
    """
    name = f"fleet_{scene.scenario_id}"
    await scene.ledger.query(f"CREATE DATABASE {name}")
    servers = replace(scene.servers, database_url=f"{scene.servers.database_url.rpartition('/')[0]}/{name}")
    scene = replace(scene, servers=servers, ledger=Ledger(servers))
    async with open_fake(held=lambda number: number >= 5) as fake:
        both: dict[str, dict[str, Any]] = {
            **SMALL_WINDOW,
            "database": SMALL_WINDOW["database"] | servers.database,
            # On a busy machine an answer is held back for long.
            "inference": {"url": fake.url, "timeout_seconds": 60.0},
        }
        data = scene.directory / "data"
        orchestrator: dict[str, dict[str, Any]] = {
            "runner": {"data_dir": str(data)},
            "systemd": {"manager": "user", "config_dir": str(manager.configs_inside)},
            "orchestrator": {
                "spawner": spawner,
                "runner_config": "runner.toml" if spawner == "systemd" else "",
                "node": "here",
                "poll_seconds": 0.1,
                "group": name,
                "command_topic": f"runner.commands.{scene.scenario_id}",
                "dead_letter_topic": f"runner.dead-letter.{scene.scenario_id}",
            },
        }
        runner = {"runner": {"data_dir": str(data / "runners"), "drain_seconds": 0.5}}
        for path, tables in {
            "runner.toml": _merged(both, runner, sections.get("runner", {})),
            "orchestrator.toml": _merged(both, runner, orchestrator, sections.get("orchestrator", {})),
        }.items():
            written = scene.write_config(path, **tables)
            (manager.configs / path).write_text(written.read_text())
        fleet = Fleet(scene=scene, manager=manager, fake=fake, config=scene.directory / "orchestrator.toml")
        (manager.directory / f"{NAME}.log").unlink(missing_ok=True)
        done = await manager.systemctl("start", NAME)
        assert done.code == 0, done.text + fleet.log()
        try:
            yield fleet
        finally:
            await manager.systemctl("kill", "--signal=KILL", "trio-runner@*.service")  # noqa: ASYNC102 - it is bounded
            await manager.systemctl("stop", NAME, "trio-runner@*.service")  # noqa: ASYNC102 - the same


def _merged(*configs: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    merged: dict[str, dict[str, Any]] = {}
    for config in configs:
        for section, keys in config.items():
            merged[section] = merged.get(section, {}) | keys
    return merged

"""Measures what a killed runner costs with each spawner: from SIGKILL until the next attempt has stored a frame.

    python benchmarks/spawners.py [process] [systemd] [kubernetes] [--kills 30]

Starts the embedded database and broker and a fake inference service, then a real `trio-runner orchestrate`: with child
processes; under a systemd of this script's own (needs root), as the shipped unit; with Jobs, on the cluster of
`tests/deployment/kubernetes.sh start DIRECTORY --node`. Times are wall-clock of this
machine: compare them within one run. Part of each is the backoff after an attempt that stored something, random up to a
second, 0.2 s for an answer, and a wait for a place, since others are due. Needs the development dependencies.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import trio

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from orchestrator import Bench, opened, percentiles

from tests.support import clips, service_manager
from tests.support import cluster as cluster_of_tests
from tests.support.orchestrator_unit import NAME

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    ScenarioOf = Callable[[list[str]], int | None]
    """Whose runner a process is, by its command line; None for every other process."""
    World = Callable[[Bench, Path], AbstractAsyncContextManager[tuple[Path, ScenarioOf]]]
    """Runs an orchestrator on a video; gives the video's path for the runners, once it may be submitted."""

ANSWER_SECONDS = 0.2
FRAMES = 60
ROOM = 2


@asynccontextmanager
async def process(bench: Bench, video: Path) -> AsyncIterator[tuple[Path, ScenarioOf]]:
    """Runners are its children, each with a config in a directory of its own."""
    bench.write(max_runners=ROOM)
    data = str(bench.directory / "data")

    def scenario_of(arguments: list[str]) -> int | None:
        return int(Path(arguments[-1]).parent.name) if "run" in arguments and arguments[-1].startswith(data) else None

    async with bench.orchestrating():
        yield video, scenario_of


@asynccontextmanager
async def systemd(bench: Bench, video: Path) -> AsyncIterator[tuple[Path, ScenarioOf]]:
    """Runners and orchestrator are units as shipped, as far as a user's manager goes with them."""
    if why_not := service_manager.why_not():
        raise SystemExit(f"no systemd here: {why_not}")
    with service_manager.open_manager() as manager:
        bench.write(
            max_runners=ROOM,
            spawner="systemd",
            runner_config="runner.toml",
            sections={"systemd": {"manager": "user", "config_dir": str(manager.configs_inside)}},
        )
        shutil.copy(bench.config, manager.configs / "orchestrator.toml")
        bench.write(sections={"runner": {"data_dir": str(bench.directory / "data" / "runners")}})
        shutil.copy(bench.config, manager.configs / "runner.toml")
        configs = str(manager.configs_inside)

        def scenario_of(arguments: list[str]) -> int | None:
            return int(Path(arguments[-1]).stem) if "run" in arguments and arguments[-1].startswith(configs) else None

        done = await manager.systemctl("start", NAME)
        assert done.code == 0, done.text + manager.log(NAME)
        yield video, scenario_of
        await manager.systemctl("stop", NAME, "trio-runner@*.service")


@asynccontextmanager
async def kubernetes(bench: Bench, video: Path) -> AsyncIterator[tuple[Path, ScenarioOf]]:
    """Runners are pods that a kubelet starts from an image of this tree, on the host's network."""
    if why_not := cluster_of_tests.why_not():
        raise SystemExit(f"no cluster here: {why_not}")
    async with cluster_of_tests.open_pods() as cluster:
        password = {"password_file": cluster_of_tests.PASSWORD_FILE}
        bench.write(sections={"runner": {}, "database": bench.servers.database | {"batch_frames": 4} | password})
        await cluster.give(bench.config.read_text(), bench.servers.password)
        bench.write(
            max_runners=ROOM,
            spawner="kubernetes",
            sections={"kubernetes": cluster.section(bench.directory, video.parent)},
        )

        def scenario_of(arguments: list[str]) -> int | None:
            named = [
                argument.removeprefix("scenario.id=") for argument in arguments if argument.startswith("scenario.id=")
            ]
            return int(named[0]) if named else None

        async with bench.orchestrating():
            yield Path("/videos") / video.name, scenario_of


async def kill(name: str, world: World, kills: int) -> None:
    """Kill the runner of each scenario once, at a moment of its own, when it has stored something."""
    async with opened(name) as bench:
        bench.fake.delay = lambda _: ANSWER_SECONDS
        # Pods run as somebody else.
        bench.directory.chmod(0o755)
        videos = bench.directory / "videos"
        videos.mkdir(mode=0o755)
        video = clips.pixel_coded(videos / "clip.mp4", frames=FRAMES)
        dice = random.Random(1)  # noqa: S311 - a benchmark
        killed: dict[int, float] = {}
        async with world(bench, video) as (path, scenario_of):
            await bench.submit(kills, path)
            while await bench.count("outcome IS NOT NULL") < kills:
                for runner in psutil.process_iter():
                    scenario = _scenario(runner, scenario_of)
                    if scenario and scenario not in killed and dice.random() < 0.5:
                        (row,) = await bench.ledger.query("SELECT * FROM scenarios WHERE id = $1", scenario)
                        if row["status"] == "active" and row["outcome"] is None:
                            with suppress(psutil.NoSuchProcess):
                                runner.kill()
                                killed[scenario] = time.time()
                await trio.sleep(0.1)
        rows = await bench.ledger.query(
            "SELECT dead.scenario_id AS id, extract(epoch FROM dead.ended_at)::float8 AS reported,"
            " extract(epoch FROM next.started_at)::float8 AS claimed,"
            " (SELECT extract(epoch FROM min(created_at))::float8 FROM predictions p"
            "   WHERE p.scenario_id = next.scenario_id AND p.epoch = 2) AS stored"
            " FROM attempts dead JOIN attempts next ON next.scenario_id = dead.scenario_id AND next.epoch = 2"
            " WHERE dead.epoch = 1 AND dead.outcome = 'lost'"
        )
        completed = await bench.count("outcome = 'completed'")
        print(f"{name}: {len(killed)} killed, {completed} of {kills} completed")
        for step in ("reported", "claimed", "stored"):
            later = sorted(row[step] - killed[row["id"]] for row in rows if row[step] and row["id"] in killed)
            print(f"  SIGKILL to {step}: {percentiles(later)}")


def _scenario(runner: psutil.Process, scenario_of: ScenarioOf) -> int | None:
    try:
        arguments = runner.cmdline()
    except psutil.Error:
        return None
    return scenario_of(arguments) if arguments else None


def main() -> int:
    """Run with the spawners asked for, or with all."""
    worlds: dict[str, World] = {"process": process, "systemd": systemd, "kubernetes": kubernetes}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("spawners", nargs="*", choices=[*worlds, []], help="default: all of them")
    parser.add_argument("--kills", type=int, default=30)
    options = parser.parse_args()
    for name in options.spawners or worlds:
        trio.run(kill, name, worlds[name], options.kills)
    return 0


if __name__ == "__main__":
    sys.exit(main())

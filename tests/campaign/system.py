"""The whole system on this machine, with runners killed at random, and the proof: `make system`.

Embedded PostgreSQL, broker and inference service, an orchestrator with child processes, a few scenarios. At the end
plain SQL shows whether every frame is stored once and every death reported, and what was retried and why.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import trio
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trio_runner.base import aio
from trio_runner.cli.show import overview_table
from trio_runner.config.load import load_config
from trio_runner.database.backlog import Backlog
from trio_runner.database.store import Store, open_store
from trio_runner.embedded.addresses import open_addresses
from trio_runner.embedded.hosting import Service

ROOT = Path(__file__).resolve().parents[2]
VIDEO = ROOT / "test_videos" / "test_video.mp4"
START_SECONDS = 60.0
FINISH_SECONDS = 300.0
STOP_SECONDS = 90.0

CONFIG = """\
[runner]
data_dir = "data"
[orchestrator]
node = "here"
max_runners = {scenarios}
starts_per_second = 5.0
"""

EVERY_FRAME_ONCE = """
SELECT s.id, s.outcome, s.total_frames, count(p.frame_index) AS rows, count(DISTINCT p.frame_index) AS frames,
       max(p.frame_index) + 1 AS span, (SELECT count(*) FROM attempts a WHERE a.scenario_id = s.id) AS attempts
  FROM scenarios s LEFT JOIN predictions p ON p.scenario_id = s.id GROUP BY s.id ORDER BY s.id
"""

EVERY_DEATH_REPORTED = """
SELECT a.scenario_id, a.epoch, a.outcome, a.error ->> 'code' AS code, e.reporter,
       e.published_at IS NOT NULL AS published, a.end_frame - a.first_frame AS frames,
       round(extract(epoch FROM n.started_at - a.ended_at)::numeric, 1) AS later
  FROM attempts a
  LEFT JOIN retry_events e ON e.scenario_id = a.scenario_id AND e.epoch = a.epoch
  LEFT JOIN attempts n ON n.scenario_id = a.scenario_id AND n.epoch = a.epoch + 1
 WHERE a.outcome <> 'completed' ORDER BY a.ended_at
"""


class Killer:
    """Kills runners of one orchestrator, and remembers whom."""

    def __init__(self, orchestrator: int, dice: random.Random) -> None:
        """`orchestrator` is its process id."""
        self._orchestrator, self._dice = orchestrator, dice
        self.killed: Counter[int] = Counter()

    async def rage(self, seconds: float, pause_seconds: float) -> None:
        """SIGKILL for one of the runners that are at work, again and again."""
        with trio.move_on_after(seconds):
            while True:
                await trio.sleep(self._dice.uniform(0.5, 1.5) * pause_seconds)
                if runners := _runners_of(self._orchestrator):
                    scenario_id = self._dice.choice(sorted(runners))
                    # It may have ended by itself meanwhile.
                    with suppress(ProcessLookupError):
                        os.kill(runners[scenario_id], signal.SIGKILL)
                        self.killed[scenario_id] += 1


def _runners_of(orchestrator: int) -> dict[int, int]:
    """By scenario the child that runs it; the embedded servers are children, too."""
    runners: dict[int, int] = {}
    for child in Path(f"/proc/{orchestrator}/task/{orchestrator}/children").read_text().split():
        # Some are gone by now.
        with suppress(OSError):
            command = Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")
            if b"run" in command:
                # runners/ID/runner.toml, and the end of the last argument.
                runners[int(Path(command[-2].decode()).parent.name)] = int(child)
    return runners


@asynccontextmanager
async def _orchestrator(directory: Path) -> AsyncIterator[subprocess.Popen[bytes]]:
    with (directory / "orchestrator.log").open("wb") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - here and now
            [sys.executable, "-m", "trio_runner", "orchestrate", "system.toml"],
            cwd=directory,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C is for this program, which then stops the orchestrator.
            start_new_session=True,
        )
    try:
        yield process
    finally:
        process.terminate()
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(process.wait, STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()


async def _submit(directory: Path, options: argparse.Namespace, process: subprocess.Popen[bytes]) -> None:
    """By the command line, as a user would, as soon as the database is up."""
    frames = [f"--set=video.max_frames={options.frames}"] if options.frames else []
    for number in range(1, options.scenarios + 1):
        command = [sys.executable, "-m", "trio_runner", "submit", "system.toml", "--video", str(VIDEO), *frames]
        with trio.fail_after(START_SECONDS):
            while True:
                assert process.poll() is None, (directory / "orchestrator.log").read_text()
                done = await trio.run_process(
                    [*command, "--id", str(number)],
                    cwd=directory,
                    check=False,
                    capture_stdout=True,
                    capture_stderr=True,
                )
                if done.returncode == 0:
                    break
                await trio.sleep(0.5)


async def _watch(backlog: Backlog, killer: Killer, console: Console) -> None:
    """Draw the table until every scenario is completed or given up; off a terminal only the last one is."""
    with Live(console=console, auto_refresh=False, transient=False) as live, trio.fail_after(FINISH_SECONDS):
        while True:
            rows = await backlog.overview()
            live.update(
                Group(overview_table(rows), Text(f"runners killed so far: {killer.killed.total()}")), refresh=True
            )
            if all(row["outcome"] for row in rows):
                return
            await trio.sleep(1.0)


async def _prove(store: Store, killed: Counter[int], console: Console) -> list[str]:
    """Print the contents of the ledger; returns the mistakes in them."""
    wrong = []
    frames = await store.fetch_all(EVERY_FRAME_ONCE)
    proof = _table("scenario", "outcome", "attempts", "frames expected", "rows stored", "different frames")
    for row in frames:
        proof.add_row(
            *map(str, (row[name] for name in ("id", "outcome", "attempts", "total_frames", "rows", "frames")))
        )
        if row["outcome"] != "completed" or len({row["total_frames"], row["rows"], row["frames"], row["span"]}) > 1:
            wrong.append(f"scenario {row['id']}: not every frame once: {row}")
    console.print(Text("\nEvery frame stored once:"), proof)

    deaths = await store.fetch_all(EVERY_DEATH_REPORTED)
    retried = _table("scenario", "attempt", "died of", "reporter", "in Kafka", "frames", "next after")
    for row in deaths:
        later = "" if row["later"] is None else f"{row['later']} s"
        published = "yes" if row["published"] else "NO"
        cells = (row["scenario_id"], row["epoch"], row["code"], row["reporter"], published, row["frames"], later)
        retried.add_row(*map(str, cells))
        if row["reporter"] is None or not row["published"]:
            wrong.append(f"scenario {row['scenario_id']}: the death of attempt {row['epoch']} was not reported")
    console.print(Text("Every death reported; what was retried, and why:"), retried)
    reported = Counter(row["scenario_id"] for row in deaths if row["code"] == "runner_killed")
    for scenario_id, kills in killed.items():
        # The last one may have come when everything was stored.
        if kills - reported[scenario_id] == 1:
            console.print(Text(f"scenario {scenario_id}: the last kill came after its end"))
        elif kills != reported[scenario_id]:
            wrong.append(f"scenario {scenario_id}: {kills} kills, {reported[scenario_id]} such deaths are recorded")
    return wrong


def _table(*columns: str) -> Table:
    table = Table(*columns, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for column in table.columns:
        column.no_wrap = True
    return table


async def run(options: argparse.Namespace, directory: Path, console: Console) -> int:
    """Start everything, kill, watch, prove; 1 where something was lost, doubled or not reported."""
    console.print(Text(f"seed {options.seed}; the orchestrator's log is {directory / 'orchestrator.log'}"))
    config = load_config(directory / "system.toml")
    async with _orchestrator(directory) as process:
        await _submit(directory, options, process)
        killer = Killer(process.pid, random.Random(options.seed))
        async with (
            aio.open_loop(),
            open_addresses(config, frozenset({Service.DATABASE}), published=False) as live,
            open_store(live.database, application_name="make system") as store,
        ):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(killer.rage, options.seconds, options.pause)
                await _watch(Backlog(store), killer, console)
                nursery.cancel_scope.cancel()
            wrong = await _prove(store, killer.killed, console)
    for each in wrong:
        console.print(Text(each))
    verdict = "NOT as it must be" if wrong else "nothing lost, nothing doubled, no death unreported"
    console.print(Text(f"{killer.killed.total()} runners killed: {verdict}"))
    return 1 if wrong else 0


def main() -> int:
    """Parse the options and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", type=int, default=4)
    parser.add_argument("--frames", type=int, default=0, help="of each scenario; 0: the whole video")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long runners are killed")
    parser.add_argument("--pause", type=float, default=4.0, help="between two kills, on average, in seconds")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--directory", type=Path, default=ROOT / ".trio-runner" / "system", help="made anew")
    options = parser.parse_args()
    directory: Path = options.directory.absolute()
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    (directory / "system.toml").write_text(CONFIG.format(scenarios=options.scenarios))
    return trio.run(run, options, directory, Console())


if __name__ == "__main__":
    sys.exit(main())

"""Seeded campaigns of faults against real runner processes: `python -m tests.campaign --runs N --seed S`.

Each run is one scenario that must be completed whatever happens to its runners; then its rows, events and processes are
held against `campaign_invariants`. Run i has the seed S + i, so a run is replayed by its own seed and `--runs 1`.
`--mutant NAME` breaks the program on purpose; `--teeth` does so with every mutant and fails if one survives.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import trio

from tests.campaign.figures import Tally, report
from tests.campaign.mutants import MUTANTS, Mutant
from tests.campaign.play import Play
from tests.campaign.schedule import plan_of
from tests.campaign.world import open_world
from tests.support import clips

TEETH_RUNS = 40
"""So many runs a mutant may survive."""


def make_clips(directory: Path) -> Path:
    """The clips of `campaign_schedule.FRAMES`."""
    directory.mkdir(parents=True, exist_ok=True)
    clips.pixel_coded(directory / "short.mp4", frames=60)
    clips.pixel_coded(directory / "long.mp4", frames=120)
    clips.pixel_coded(directory / "irregular.mkv", pts_ms=clips.IRREGULAR_MS)
    return directory


async def campaign(
    seeds: Sequence[int],
    tally: Tally,
    *,
    jobs: int,
    directory: Path,
    mutant: Mutant | None = None,
    until_caught: bool = False,
) -> list[str]:
    """Play every seed, `jobs` at a time, and count in `tally`; returns of each run that went wrong what did."""
    wrong: list[str] = []
    clip_directory = make_clips(directory / "clips")
    due = iter(seeds)
    patch = mutant.python if mutant else ""
    sql = mutant.schema_patch() if mutant else ""
    async with open_world(directory / "world", patch=patch, sql=sql) as world, trio.open_nursery() as nursery:

        async def play_on() -> None:
            for seed in due:
                started = time.monotonic()
                own = directory / f"seed-{seed}"
                own.mkdir()
                # The seeds are one apart, so each run has a scenario of its own.
                plan = plan_of(seed, mutant.faults if mutant else ())
                play = Play(plan, world, clip_directory, own, tally, 1 + seed - seeds[0])
                await play.run()
                kinds = ", ".join(fault.kind for fault in plan.faults)
                verdict = "; ".join(play.violations)
                if play.violations:
                    wrong.append(verdict)
                    verdict += f"\n    see {own}/history.jsonl"
                if until_caught:
                    # A broken program prints long messages.
                    verdict = verdict.partition("\n")[0]
                show(f"seed {seed}: {time.monotonic() - started:5.1f} s  [{kinds}]  {verdict or 'ok'}")
                if until_caught and mutant and caught_by(mutant, wrong):
                    nursery.cancel_scope.cancel()

        for _ in range(jobs):
            nursery.start_soon(play_on)
    return wrong


def caught_by(mutant: Mutant, wrong: Sequence[str]) -> list[str]:
    """The violations that this mutant was expected to cause."""
    return [
        violation for each in wrong for violation in each.split("; ") if violation.partition(":")[0] in mutant.caught_by
    ]


def show(text: str) -> None:
    """Print a line and flush it, for a person who watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def survivors(names: Sequence[str], *, seed: int, jobs: int, directory: Path) -> list[str]:
    """Run each mutant until it is caught; returns those that were not."""
    left = []
    for number, name in enumerate(names):
        tally = Tally()
        play = partial(
            campaign,
            range(seed, seed + TEETH_RUNS),
            tally,
            jobs=jobs,
            directory=directory / f"mutant-{number}",
            mutant=MUTANTS[name],
            until_caught=True,
        )
        if caught := caught_by(MUTANTS[name], trio.run(play)):
            show(f"MUTANT {name}: caught in run {tally.runs}, by {caught[0]}")
        else:
            left.append(name)
            show(f"MUTANT {name}: SURVIVED {tally.runs} runs")
    return left


def main() -> int:
    """Play the runs and print the figures; 1 where anything was violated or a mutant survived."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first run; default: the time")
    parser.add_argument("--jobs", type=int, default=4, help="runs at the same time")
    parser.add_argument("--directory", type=Path, help="a new one, where the history of what goes wrong is left")
    parser.add_argument("--mutant", choices=MUTANTS, help="break the program in this way")
    parser.add_argument("--teeth", action="store_true", help="run each mutant (or the one) until it is caught")
    options = parser.parse_args()
    # SIGTERM, which `timeout` sends, ends the servers too; so does SIGINT, even where a shell has it ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    directory = (options.directory or Path(tempfile.mkdtemp(prefix="trio-runner-campaign-"))).absolute()
    show(f"seed {options.seed}, {options.jobs} at a time; what goes wrong is left in {directory}")
    if options.teeth:
        names = [options.mutant] if options.mutant else list(MUTANTS)
        return 1 if survivors(names, seed=options.seed, jobs=options.jobs, directory=directory) else 0
    started = time.monotonic()
    seeds = range(options.seed, options.seed + options.runs)
    mutant = MUTANTS[options.mutant] if options.mutant else None
    tally = Tally()
    try:
        trio.run(partial(campaign, seeds, tally, jobs=options.jobs, directory=directory, mutant=mutant))
    finally:
        # Also when it was cut short: what was played counts.
        show(report(tally, time.monotonic() - started))
    return 1 if tally.violations else 0


if __name__ == "__main__":
    sys.exit(main())

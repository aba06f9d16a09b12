"""From one machine to a hundred thousand scenarios: what the ledger's verbs cost there, and how a fleet recovers.

`python benchmarks/scaling.py --scenarios 10000` first measures every verb on a real PostgreSQL whose tables hold a
fleet of that size. Then it plays that in simulated time: scenarios, nodes, leases, reapers, the program's start budget,
the jitter of `fail`; a statement costs what was measured. A third of the nodes is lost on the way. What it prints
is for judging orders of magnitude.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from trio_runner.base import aio
from trio_runner.config.load import Config
from trio_runner.database.backlog import Backlog
from trio_runner.database.store import Attempt, Store, open_store
from trio_runner.embedded.addresses import open_addresses
from trio_runner.embedded.hosting import Service
from trio_runner.model import Claim, FrameResult
from trio_runner.orchestrator.policy import StartBudget

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

REPEATS = 50

FILL = """
INSERT INTO scenarios (id, video_path, status, epoch, instance_id, lease_until, node, next_frame, frames_stored)
SELECT n, '/srv/videos/' || n || '.mp4', CASE WHEN n % 2 = 0 THEN 'active' ELSE 'init_startup' END, 1,
       CASE WHEN n % 2 = 0 THEN gen_random_uuid() END,
       CASE WHEN n % 2 = 0 THEN now() + interval '1 hour' END, CASE WHEN n % 2 = 0 THEN 'node-' || n % 100 END, 0, 0
  FROM generate_series(1, $1::bigint) n
"""
ATTEMPTS = """
INSERT INTO attempts (scenario_id, epoch, runner_id, instance_id, host, first_frame)
SELECT id, epoch, 'runner', instance_id, 'host', 0 FROM scenarios WHERE instance_id IS NOT NULL
"""


@dataclass(kw_only=True)
class Costs:
    """What one statement takes, in milliseconds: the median on tables of that size."""

    milliseconds: dict[str, float] = field(default_factory=dict)

    def __getitem__(self, verb: str) -> float:
        """In seconds."""
        return self.milliseconds[verb] / 1000


async def measure(config: Config, scenarios: int) -> Costs:
    """Fill the ledger, half of it running, and time every verb there."""
    costs = Costs()
    async with open_store(config.database, application_name="scaling") as store:
        await store.create_schema()
        # The client's own connection has no deadline, unlike the verbs that a runner calls.
        await aio.call(store._connection.execute, FILL.replace("$1", str(scenarios)), timeout=600)  # noqa: SLF001
        await aio.call(store._connection.execute, ATTEMPTS, timeout=600)  # noqa: SLF001
        await aio.call(store._connection.execute, "ANALYZE", timeout=600)  # noqa: SLF001
        await _measure_verbs(store, costs)
    return costs


async def _measure_verbs(store: Store, costs: Costs) -> None:
    backlog = Backlog(store)
    node = "bench"

    async def timed(verb: str, call: Callable[[], Awaitable[Any]]) -> Any:
        started = time.perf_counter()
        result = await call()
        taken.setdefault(verb, []).append((time.perf_counter() - started) * 1000)
        return result

    taken: dict[str, list[float]] = {}
    for number in range(REPEATS):
        works = await timed("due", partial(backlog.due, node, room=10**6, limit=5, lease_seconds=600))
        attempt = Attempt(
            scenario_id=works[0].scenario_id,
            epoch=works[0].epoch,
            video_path=works[0].video_path,
            runner_id="bench",
            instance_id=str(uuid.uuid4()),
            max_failures=5,
        )
        claim: Claim = await timed("claim", partial(store.claim, attempt))
        first = claim.next_frame
        results = [
            FrameResult(
                sequence=i,
                index=first + i,
                pts_seconds=i / 25,
                width=1920,
                height=1080,
                detections=(),
                inference_ms=1.0,
            )
            for i in range(16)
        ]
        await timed("store", partial(store.store, claim, first, results))
        await timed("heartbeat", partial(store.heartbeat, claim))
        if number % 2:
            await timed("finish", partial(store.finish, claim, first + 16, "active"))
        else:
            await timed(
                "fail",
                partial(
                    store.fail,
                    claim,
                    event_id=str(uuid.uuid4()),
                    reporter="runner",
                    error_class="retriable",
                    body=b'{"error": {"code": "store_lost"}}',
                    retry_after_seconds=0.0,
                ),
            )
        await timed("expired_claims", partial(store.expired_claims, 1000))
        await timed("shutdowns", backlog.shutdowns)
        await timed("recent_attempts", partial(backlog.recent_attempts, 20))
        if number < 5:
            await timed("backlog", backlog.counts)
            await timed("overview", backlog.overview)
    costs.milliseconds = {verb: statistics.median(values) for verb, values in taken.items()}


@dataclass(order=True)
class _Event:
    at: float
    number: int
    what: Callable[[float], None] = field(compare=False)


@dataclass
class _Node:
    name: int
    budget: StartBudget
    alive: bool = True
    running: set[int] = field(default_factory=set)


class Fleet:
    """A fleet in simulated time, on the program's own policy."""

    def __init__(self, options: argparse.Namespace, costs: Costs) -> None:
        """Everything is due at the beginning."""
        self._options, self._costs = options, costs
        self._dice = random.Random(options.seed)  # noqa: S311 - a simulation
        self._queue: list[_Event] = []
        self._numbers = itertools.count()
        self.now = 0.0
        self.nodes = [_Node(number, StartBudget(options.rate, 0.0)) for number in range(options.nodes)]
        # As `due` orders them: first what lost its runner, then what was never begun.
        self._due: list[tuple[int, float, int]] = [(1, 0.0, number) for number in range(options.scenarios)]
        self._progress = [0.0] * options.scenarios
        self._epoch = [1] * options.scenarios
        self._expired: list[tuple[float, int]] = []
        self.done = 0
        self.events: Counter[int] = Counter()
        self.starts: Counter[int] = Counter()
        self.statements: dict[int, float] = defaultdict(float)
        self.busy: dict[int, float] = defaultdict(float)
        """Milliseconds that connections wait for the ledger, by second."""
        self.lost_at: dict[int, float] = {}
        self.moved: list[float] = []

    def run(self) -> None:
        """Until everything is done."""
        for node in self.nodes:
            self._at(self._dice.random() * self._options.poll, partial(self._tick, node))
            self._at(self._dice.random() * self._options.reap, partial(self._reap, node))
        self._at(self._options.lose_at, self._lose)
        while self.done < self._options.scenarios:
            event = heapq.heappop(self._queue)
            self.now = event.at
            event.what(event.at)

    def _at(self, at: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self._queue, _Event(at, next(self._numbers), what))

    def _spend(self, verb: str, times: float = 1) -> None:
        self._charge(int(self.now), verb, times)

    def _charge(self, second: int, verb: str, times: float) -> None:
        self.statements[second] += times
        self.busy[second] += self._costs.milliseconds[verb] * times

    def _tick(self, node: _Node, at: float) -> None:
        if not node.alive:
            return
        for verb in ("shutdowns", "recent_attempts"):
            self._spend(verb)
        limit = min(node.budget.available(at), self._options.room - len(node.running))
        if limit > 0:
            self._spend("due")
            started = 0
            while started < limit and self._due and self._due[0][1] <= at:
                _, _, scenario = heapq.heappop(self._due)
                self._begin(node, scenario, at)
                started += 1
            node.budget.spend(started)
        self._at(at + self._options.poll, partial(self._tick, node))

    def _begin(self, node: _Node, scenario: int, at: float) -> None:
        node.running.add(scenario)
        self.starts[int(at)] += 1
        self._spend("claim")
        epoch = self._epoch[scenario]
        if scenario in self.lost_at:
            self.moved.append(at + self._options.boot - self.lost_at.pop(scenario))
        left = self._options.boot + self._options.seconds - self._progress[scenario]
        dies = self._dice.expovariate(1 / self._options.mtbf) if self._options.mtbf else float("inf")
        end = min(left, dies)
        # A batch of 16 frames each so often, and a heartbeat where no batch is.
        for second in range(int(end)):
            self._charge(int(at) + second, "store", self._options.batches)
        self._at(at + end, partial(self._ended, node, scenario, epoch, dies < left, end))

    def _ended(self, node: _Node, scenario: int, epoch: int, died: bool, seconds: float, at: float) -> None:  # noqa: FBT001
        if self._epoch[scenario] != epoch or not node.alive:
            return
        node.running.discard(scenario)
        if not died:
            self._spend("finish")
            self.done += 1
            return
        self._progress[scenario] += max(0.0, seconds - self._options.boot)
        self._spend("fail")
        self._again(scenario, at)

    def _again(self, scenario: int, at: float) -> None:
        """As `fail`: no failure counted since there was progress, so a random part of one second."""
        self.events[int(at)] += 1
        self._epoch[scenario] += 1
        heapq.heappush(self._due, (0, at + self._dice.random(), scenario))

    def _lose(self, at: float) -> None:
        for node in self.nodes[: len(self.nodes) // 3]:
            node.alive = False
            for scenario in node.running:
                self.lost_at[scenario] = at
                self._progress[scenario] += 1.0
                # The lease was renewed at some moment in the last third of it.
                heapq.heappush(self._expired, (at + self._options.lease * (1 - self._dice.random() / 3), scenario))

    def _reap(self, node: _Node, at: float) -> None:
        """One reaper records one death after the other; what another has recorded it is refused."""
        if not node.alive:
            return
        self._spend("expired_claims")
        self._spend("backlog", self._options.reap / 15.0)
        spent = 0.0
        while self._expired and self._expired[0][0] <= at:
            _, scenario = heapq.heappop(self._expired)
            spent += self._costs["fail"]
            self._spend("fail")
            self._at(at + spent, partial(self._recorded, scenario))
        self._at(at + max(self._options.reap, spent), partial(self._reap, node))

    def _recorded(self, scenario: int, at: float) -> None:
        self._again(scenario, at)


def report(fleet: Fleet, options: argparse.Namespace) -> str:
    """Events and statements at the worst second, and how long the lost third took."""
    moved = sorted(fleet.moved)
    busy = sorted(fleet.busy.values())
    durations = sorted(fleet.statements.values())
    size = f"{options.scenarios} scenarios of {options.seconds:g} s, {options.nodes} nodes with room for {options.room}"
    median, most = _share(durations, 0.5), durations[-1]
    lines = [
        f"simulated: {size} each, done after {fleet.now:.0f} s",
        f"  retry events: {max(fleet.events.values(), default=0)} in the worst second, {fleet.events.total()} in all",
        f"  starts: {max(fleet.starts.values())} in the worst second",
        f"  statements: {median:.0f} a second at the median, {most:.0f} in the worst second",
        f"  connections busy: {_share(busy, 0.5) / 1000:.1f} at the median, {busy[-1] / 1000:.1f} in the worst second",
        f"  a third of the nodes lost at {options.lose_at:g} s, {len(moved)} runners; the next attempt had claimed",
        f"  after p50 {_share(moved, 0.5):.1f} s, p99 {_share(moved, 0.99):.1f} s, at most {moved[-1]:.1f} s",
    ]
    return "\n".join(lines)


def _share(values: Sequence[float], share: float) -> float:
    return values[min(len(values) - 1, int(len(values) * share))]


async def _measured(scenarios: int, directory: Path) -> Costs:
    config = Config().replace(runner={"data_dir": str(directory)}, database={"command_timeout_seconds": 120.0})
    async with aio.open_loop(), open_addresses(config, frozenset({Service.DATABASE}), published=False) as live:
        return await measure(live, scenarios)


def main() -> int:
    """Measure, then simulate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", type=int, default=10_000)
    parser.add_argument("--nodes", type=int, default=30)
    parser.add_argument("--room", type=int, default=600, help="runners on each node")
    parser.add_argument("--seconds", type=float, default=300.0, help="of work in a scenario")
    parser.add_argument("--boot", type=float, default=1.0, help="seconds from a start to the claim")
    parser.add_argument("--batches", type=float, default=0.5, help="stored a second by each runner")
    parser.add_argument("--mtbf", type=float, default=3600.0, help="seconds between deaths of one runner; 0: none")
    parser.add_argument("--lease", type=float, default=30.0)
    parser.add_argument("--poll", type=float, default=0.5)
    parser.add_argument("--reap", type=float, default=5.0)
    parser.add_argument("--rate", type=float, default=5.0, help="orchestrator.starts_per_second")
    parser.add_argument("--lose-at", type=float, default=150.0, help="when a third of the nodes is lost")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trio-runner-scaling-") as directory:
        costs = trio.run(_measured, options.scenarios, Path(directory))
    print(f"measured with {options.scenarios} scenarios, half of them running, median ms on one connection:")
    print("  " + ", ".join(f"{verb} {value:.2f}" for verb, value in costs.milliseconds.items()))
    fleet = Fleet(options, costs)
    fleet.run()
    print(report(fleet, options))
    return 0


if __name__ == "__main__":
    sys.exit(main())

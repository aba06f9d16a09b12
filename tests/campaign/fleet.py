"""Three machines, one ledger: `python -m tests.campaign.fleet --scenarios N`, which takes root.

Each machine is a network namespace with an orchestrator and its runners. While the work goes on one is cut off, one is
killed with all that runs on it, one is frozen past its leases. Afterwards every scenario is held against the same
invariants as in a campaign, no machine had more runners than it has room for, and what had run on a machine when its
fault came had its next attempt elsewhere within 45 s.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.campaign.fleet_network import Machine, open_machines, why_not
from tests.campaign.invariants import Evidence, violations
from tests.campaign.world import Host
from tests.support import clips
from tests.support.fake_inference import Fake, open_fake, random_delays
from tests.support.harness import Event, Ledger, Servers, as_toml, command, read_topic, until
from trio_runner.base import aio
from trio_runner.config.load import load_config
from trio_runner.database.backlog import Backlog
from trio_runner.database.store import open_store

NAMES = ("cut", "killed", "frozen")
TOPIC = "runner.retry"
FRAMES, SIZE = 30, (320, 240)
SKIPPED = 75
FINISH_SECONDS = 900.0


@dataclass(kw_only=True)
class Fleet:
    """What is known of one run."""

    servers: Servers
    ledger: Ledger
    machines: list[Machine]
    scenarios: int
    room: int
    faults: list[tuple[str, float]] = field(default_factory=list)
    """Which machine, and when, in seconds since 1970."""

    async def count(self, condition: str) -> int:
        """How many scenarios are so."""
        (row,) = await self.ledger.query(f"SELECT count(*) AS n FROM scenarios WHERE {condition}")  # noqa: S608 - ours
        return int(row["n"])

    async def at_least(self, number: int, condition: str) -> None:
        """Wait until so many scenarios are so."""

        async def so() -> bool:
            return await self.count(condition) >= number

        await until(so, described=f"{number} scenarios with {condition}", seconds=FINISH_SECONDS)


def _config(name: str, servers: Servers, directory: Path, options: argparse.Namespace) -> str:
    return as_toml(
        {
            "runner": {"id": name, "data_dir": str(directory / name)},
            "inference": servers.inference,
            "database": servers.database | {"lease_seconds": options.lease, "batch_frames": 4},
            "kafka": {"brokers": servers.brokers, "retry_topic": TOPIC},
            "orchestrator": {"node": name, "max_runners": options.room},
        }
    )


async def _break(fleet: Fleet, lease_seconds: float) -> None:
    """One machine after the other, each while it has work."""
    for machine in fleet.machines:
        await fleet.at_least(1, f"node = '{machine.fate}' AND status = 'active' AND outcome IS NULL")
        fleet.faults.append((machine.fate, time.time()))
        show(f"{machine.fate}: now, with {await fleet.count('outcome IS NOT NULL')} scenarios done")
        if machine.fate == "cut":
            machine.plug("down")
            await trio.sleep(2 * lease_seconds)
            machine.plug("up")
        elif machine.fate == "killed":
            machine.signal_all(signal.SIGKILL)
        else:
            machine.signal_all(signal.SIGSTOP)
            await trio.sleep(2 * lease_seconds)
            machine.signal_all(signal.SIGCONT)


async def _wrong(fleet: Fleet, clip: Path) -> list[str]:
    events: dict[str, list[Event]] = {}
    for event in await read_topic(fleet.servers.brokers, TOPIC):
        events.setdefault(event.key, []).append(event)
    truth = list(range(FRAMES))
    wrong = []
    for scenario in await fleet.ledger.query("SELECT * FROM scenarios ORDER BY id"):
        found = scenario["id"]
        if scenario["outcome"] != "completed":
            wrong.append(f"scenario {found} is {scenario['status']}, {scenario['outcome']}: {scenario['last_error']}")
        evidence = Evidence(
            scenario=scenario,
            predictions=await fleet.ledger.predictions(found),
            attempts=await fleet.ledger.attempts(found),
            deaths=await fleet.ledger.retry_events(found),
            # A runner that could not reach the ledger may publish the death of an attempt that the ledger completed.
            events=[event for event in events.get(str(found), []) if event.body["epoch"] < scenario["epoch"]],
            spooled=set(),
            traces=[],
            truth=truth,
            size=SIZE,
            most_repeated=FRAMES,
        )
        wrong += [f"scenario {found}: {violation}" for violation in violations(evidence)]
    return wrong


async def _count_runners(machines: Sequence[Machine]) -> None:
    while True:
        for machine in machines:
            machine.most_runners = max(machine.most_runners, machine.runners())
        await trio.sleep(0.2)


async def _moves(fleet: Fleet) -> list[float]:
    """Seconds from a fault to the next attempt of each scenario that ran on that machine."""
    seconds = []
    for name, at in fleet.faults:
        rows = await fleet.ledger.query(
            "SELECT extract(epoch FROM n.started_at)::float8 - $2 AS later FROM attempts a"
            " JOIN attempts n ON n.scenario_id = a.scenario_id AND n.epoch = a.epoch + 1"
            " WHERE a.runner_id LIKE $1 AND a.started_at <= to_timestamp($2) AND a.ended_at > to_timestamp($2)",
            f"{name}-%",
            at,
        )
        seconds += [row["later"] for row in rows]
    return sorted(seconds)


async def _play(options: argparse.Namespace, directory: Path, clip: Path) -> int:
    hosts = {service: Host(directory, service) for service in ("database", "kafka")}
    async with trio.open_nursery() as nursery:
        for host in hosts.values():
            nursery.start_soon(host.start)
    try:
        async with open_fake(delay=random_delays(options.seed, options.delay)) as fake:
            return await _with_servers(options, directory, clip, _servers(hosts, fake))
    finally:
        for host in hosts.values():
            host.close()


def _servers(hosts: dict[str, Host], fake: Fake) -> Servers:
    database: dict[str, Any] = hosts["database"].address
    return Servers(
        database_url=database["url"],
        password_file=Path(database["password_file"]),
        brokers=hosts["kafka"].address["brokers"],
        inference_url=fake.url,
    )


async def _with_servers(options: argparse.Namespace, directory: Path, clip: Path, servers: Servers) -> int:
    ports = [
        int(address.partition("/")[0].rpartition(":")[2])
        for address in (
            servers.database_url.partition("@")[2],
            servers.brokers,
            servers.inference_url.partition("//")[2],
        )
    ]
    async with open_machines(NAMES, ports, directory) as machines:
        fleet = Fleet(
            servers=servers, ledger=Ledger(servers), machines=machines, scenarios=options.scenarios, room=options.room
        )
        for machine, name in zip(machines, NAMES, strict=True):
            machine.fate = name
            path = directory / f"{name}.toml"
            path.write_text(_config(name, servers, directory, options))
            if machine is machines[0]:
                await _submit(path, options.scenarios, clip)
        started = time.monotonic()
        for machine in machines:
            machine.start(
                command("orchestrate", str(directory / f"{machine.fate}.toml")), directory / f"{machine.fate}.log"
            )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_count_runners, machines)
            await _break(fleet, options.lease)
            await fleet.at_least(options.scenarios, "outcome IS NOT NULL")
            nursery.cancel_scope.cancel()
        took = time.monotonic() - started
        await _all_published(fleet)
        wrong = await _wrong(fleet, clip)
        moves = await _moves(fleet)
        if not moves or moves[-1] > options.move:
            wrong.append(f"time to move: {_percentiles(moves)}")
        wrong += [
            f"{machine.fate} had {machine.most_runners} runners"
            for machine in machines
            if machine.most_runners > fleet.room
        ]
        (counts,) = await fleet.ledger.query(
            "SELECT count(*) AS attempts, count(*) FILTER (WHERE outcome <> 'completed') AS deaths FROM attempts"
        )
    for each in wrong:
        show(each)
    show(
        f"{options.scenarios} scenarios, {counts['attempts']} attempts, {counts['deaths']} deaths, {took:.0f} s;"
        f" time to move with a lease of {options.lease:g} s: {_percentiles(moves)}; violations {len(wrong)}"
    )
    return 1 if wrong else 0


async def _submit(config: Path, scenarios: int, clip: Path) -> None:
    live = load_config(config)
    async with aio.open_loop(), open_store(live.database, application_name="fleet") as store:
        await store.create_schema()
        for number in range(1, scenarios + 1):
            await Backlog(store).submit(number, str(clip), {}, max_failures=5, max_epochs=50)


async def _all_published(fleet: Fleet) -> None:
    """A death whose reporter was killed between the ledger and Kafka is published by a reaper, a minute later."""

    async def published() -> bool:
        (row,) = await fleet.ledger.query("SELECT count(*) AS n FROM unpublished_events WHERE reporter <> 'takeover'")
        return not row["n"]

    await until(published, described="every recorded death is published", seconds=150)


def _percentiles(seconds: Sequence[float]) -> str:
    if not seconds:
        return "nothing moved"
    p50, p99 = (seconds[min(len(seconds) - 1, int(len(seconds) * share))] for share in (0.5, 0.99))
    return f"p50 {p50:.1f} s, p99 {p99:.1f} s of {len(seconds)}"


def show(text: str) -> None:
    """Print a line and flush it, for a person who watches."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> int:
    """Run a fleet; 1 where something was violated, 75 where this machine cannot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenarios", type=int, default=200)
    parser.add_argument("--room", type=int, default=4, help="runners on each machine")
    parser.add_argument("--lease", type=float, default=30.0, help="database.lease_seconds")
    parser.add_argument("--move", type=float, default=45.0, help="seconds until the next attempt, at most")
    parser.add_argument("--delay", type=float, default=0.3, help="of an answer, at most, in seconds")
    parser.add_argument("--seed", type=int, default=1, help="of the delays")
    parser.add_argument("--directory", type=Path, help="a new one, where the logs are left")
    options = parser.parse_args()
    if missing := why_not():
        show(missing)
        return SKIPPED
    # SIGTERM, which `timeout` sends, ends the machines and servers too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGTERM, lambda *_: signal.raise_signal(signal.SIGINT))
    directory: Path = (options.directory or Path(tempfile.mkdtemp(prefix="trio-runner-fleet-"))).absolute()
    directory.mkdir(parents=True, exist_ok=True)
    clip = clips.pixel_coded(directory / "clip.mp4", frames=FRAMES, size=SIZE)
    return trio.run(partial(_play, options, directory, clip))


if __name__ == "__main__":
    sys.exit(main())

"""One run of a campaign: a small orchestrator that starts runners until its scenario is completed, come what may."""

from __future__ import annotations

import json
import shutil
import signal
import time
import traceback
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import trio

from tests.campaign.actors import Actor, proxy_of, strike
from tests.campaign.crew import BATCH_FRAMES, WINDOW_FRAMES, Crew, Violated, rng_of
from tests.campaign.figures import Tally
from tests.campaign.inbox import Inbox
from tests.campaign.invariants import REPORTED, Evidence, repeated_frames, unpublished, unreported, violations
from tests.campaign.schedule import PERMANENT, Fault, Plan
from tests.campaign.world import World
from tests.support.harness import until
from tests.support.proxy import Proxy

SIZE = (320, 240)
ATTEMPTS_IN_PEACE = 5
"""So many attempts to which nothing is done may fail before the scenario counts as one that does not complete."""
STOPS = ("pause", "store in transit")
"""Faults that stop a process for longer than its lease."""
DUE_SECONDS = 3.0
"""The longest wait for a backoff. A runner that is started by hand does not wait for it either."""


class Play:
    """The run of one plan."""

    def __init__(self, plan: Plan, world: World, clips: Path, directory: Path, tally: Tally, scenario_id: int) -> None:
        self.plan, self.world, self.tally, self.directory = plan, world, tally, directory
        self.history: list[dict[str, Any]] = []
        self.violations: list[str] = []
        self._id, self._clip = scenario_id, clips / plan.clip
        self._rng = rng_of(plan)
        self._crew = Crew(plan, world, self._clip, directory, tally, scenario_id, self._note)
        self._inbox = Inbox(world, scenario_id, self._rng, self._note)
        self._by_hand = False

    async def run(self) -> None:
        """To the end; what is wrong is in `violations`, and then the history lies beside the processes' output."""
        self._note("plan", plan=asdict(self.plan))
        try:
            async with trio.open_nursery() as nursery, self._crew.stack:
                await self._orchestrate(nursery)
            await self._judge()
        except Exception as error:  # noqa: BLE001 - any error is printed with the run's history
            self.violations += _messages(error)
        self.tally.runs += 1
        self.tally.violations += len(self.violations)
        if self.violations:
            self._note("violations", violations=self.violations)
            lines = [json.dumps(line, default=str) + "\n" for line in self.history]
            (self.directory / "history.jsonl").write_text("".join(lines))
        else:
            shutil.rmtree(self.directory)

    def _note(self, action: str, **more: Any) -> None:
        self.history.append({"time": time.time(), "action": action, **more})

    async def _row(self) -> dict[str, Any] | None:
        return await self.world.ledger.scenario(self._id)

    async def _orchestrate(self, nursery: trio.Nursery) -> None:
        if self._rng.random() < 0.8:
            await self.world.ledger.query(
                "INSERT INTO scenarios (id, video_path) VALUES ($1, $2) ON CONFLICT DO NOTHING",
                self._id,
                str(self._clip),
            )
        planned = iter(zip(self.plan.faults, self.plan.by, strict=True))
        in_peace = 0
        while (row := await self._row()) is None or row["outcome"] != "completed":
            await self._set_back(row)
            fault, by = next(planned, (None, "report"))
            in_peace += fault is None
            if in_peace > ATTEMPTS_IN_PEACE:
                raise Violated(f"liveness: not completed although {ATTEMPTS_IN_PEACE} attempts were left in peace")
            restarts = self.world.restarts.total()
            actor = await self._attempt(nursery, fault, by)
            self.tally.attempts += 1
            if fault is None and actor.trace.code != 0 and restarts == self.world.restarts.total():
                self.tally.unprovoked += 1
                self._note("unprovoked", who=actor.trace.runner_id, code=actor.trace.code)
        # Processes that are still stopped continue now.
        for actor in self._crew.actors:
            await self._crew.thaw(actor)
            await self._crew.ended(actor)
        handed_over = (
            "SELECT FROM retry_events WHERE scenario_id = $1 AND publish_due <= now() AND published_at IS NULL"
        )
        if list(self._crew.spool.glob("*.json")) or await self.world.ledger.query(handed_over, self._id):
            await self._crew.flush()

    async def _set_back(self, row: dict[str, Any] | None) -> None:
        """Somebody puts right what was permanent."""
        if row is None or row["outcome"] != "failed":
            return
        self._note("given up", last_error=row["last_error"])
        if not any(fault.kind == "inference" and fault.answer in PERMANENT for fault in self.plan.faults):
            raise Violated(f"liveness: given up after {row['last_error']['code']}")
        await self.world.ledger.query(
            "UPDATE scenarios SET status = 'init_startup', outcome = NULL, failures = 0 WHERE id = $1", self._id
        )

    async def _attempt(self, nursery: trio.Nursery, fault: Fault | None, by: str) -> Actor:
        row = await self._row()
        if row is not None and row["instance_id"] is None:
            await trio.sleep(min(DUE_SECONDS, max(0.0, row["not_before"].timestamp() - time.time())))
        by_hand = self._by_hand or row is None or self._rng.random() < 0.25
        epoch = 0 if by_hand or row is None else row["epoch"]
        self._by_hand = False
        actor = await self._crew.start(nursery, epoch, fault)
        if fault is not None:
            if fault.kind == "double start":
                actor.struck.set()
                await self._crew.ended(await self._crew.start(nursery, epoch, None))
            await self._wait_for_fault(actor, fault)
            if actor.struck.is_set():
                await self._follow(nursery, actor, fault)
        if (
            fault is not None
            and fault.kind in ("pause", "store in transit")
            and actor.struck.is_set()
            and not actor.over.is_set()
        ):
            await self._bury_alive(nursery, actor, fault, by)
        else:
            await self._bury(actor, by)
        return actor

    async def _wait_for_fault(self, actor: Actor, fault: Fault) -> None:
        """Until it has struck, or the process has ended before."""
        async with trio.open_nursery() as waiting:

            async def first(event: trio.Event) -> None:
                await event.wait()
                waiting.cancel_scope.cancel()

            waiting.start_soon(first, actor.struck)
            waiting.start_soon(first, actor.over)
            if fault.at.kind == "seconds":
                await trio.sleep(fault.at.seconds)
                strike(actor, fault)
        if actor.struck.is_set():
            self.tally.faults[f"inference: {fault.answer}" if fault.kind == "inference" else fault.kind] += 1
        else:
            self.tally.missed += 1
        self._note("struck" if actor.struck.is_set() else "missed", who=actor.trace.runner_id, fault=fault.kind)

    async def _follow(self, nursery: trio.Nursery, actor: Actor, fault: Fault) -> None:
        """The part of a fault that comes after its stroke."""
        match fault.kind:
            case "term" | "term on the way out" if fault.twice:
                await trio.sleep(self._rng.uniform(0, 0.3))
                actor.send_signal(signal.SIGTERM)
            case "short pause":
                await trio.sleep(fault.seconds)
                await self._crew.thaw(actor)
            case "stale start":
                await self._start_stale(nursery)
            case "old news":
                await self._inbox.consume(again=True)
            case "database restart" | "kafka restart":
                await self.world.restart(fault.kind.partition(" ")[0])
            case _ if fault.kind.startswith(("database", "kafka")) and fault.seconds:
                nursery.start_soon(_recover, proxy_of(actor, fault), fault.seconds)

    async def _start_stale(self, nursery: trio.Nursery) -> None:
        """A message of yesterday: a runner for an attempt that is over."""
        row = await self._row()
        if row is None or row["epoch"] == 1:
            return
        code = await self._crew.ended(await self._crew.start(nursery, self._rng.randint(1, row["epoch"] - 1), None))
        completed = (await self._row() or {}).get("outcome") == "completed"
        if code != 79 and not (completed and code == 0):
            raise Violated(f"superseded: a runner for an attempt that is over ended with {code}")

    async def _bury(self, actor: Actor, by: str) -> None:
        """See to it that its death is known, in the way that was drawn."""
        code = await self._crew.ended(actor)
        if by == "report" and (code not in REPORTED or self._rng.random() < 0.2):
            if self._rng.random() < 0.2:
                self.tally.faults["report-death killed"] += 1
                self._note("report-death killed")
                with trio.move_on_after(self._rng.uniform(0, 1.5)):
                    await self._crew.report(actor, code)
            await self._crew.report(actor, code)
            if self._rng.random() < 0.3:
                await self._crew.report(actor, code)
        if by == "report" and not actor.trace.ledger_cut and await self._holds_claim(actor):
            raise Violated(f"report: the death of {actor.trace.runner_id}, which ended with {code}, is not recorded")
        if self._rng.random() < 0.25:
            await self._inbox.consume()
        await self._release(by)
        await self._measure_death(actor)

    async def _release(self, by: str) -> None:
        """Wait for the lease of a claim that a dead runner still holds: then a reaper finds it, or the next runner."""
        row = await self._row()
        if row is None or row["instance_id"] is None:
            return
        self._note("orphaned", by=by, epoch=row["epoch"])

        async def expired() -> bool:
            return bool(
                await self.world.ledger.query(
                    "SELECT FROM scenarios WHERE id = $1 AND lease_until < clock_timestamp()", self._id
                )
            )

        async def free() -> bool:
            await self.world.reap()
            now = await self._row()
            return now is not None and (now["instance_id"] is None or now["epoch"] != row["epoch"])

        await trio.sleep(max(0.0, row["lease_until"].timestamp() - time.time()))
        self._by_hand = by == "takeover"
        if self._by_hand:
            await until(expired, described="the lease ends")
        else:
            await until(free, described="a reaper finds it")

    async def _bury_alive(self, nursery: trio.Nursery, actor: Actor, fault: Fault, by: str) -> None:
        """It is stopped; if it holds the claim its lease ends, a successor is called, and then it comes back."""
        if not await self._holds_claim(actor):
            await self._crew.thaw(actor)
            await self._bury(actor, by)
            return
        await self._release(by)
        actor.trace.frozen_over = True
        self.tally.frozen += 1
        if fault.until == "record" and by != "takeover":
            await self._crew.thaw(actor)
        elif fault.until != "end":
            nursery.start_soon(self._thaw_when_succeeded, actor, len(self._crew.actors))

    async def _holds_claim(self, actor: Actor) -> bool:
        rows = await self.world.ledger.query(
            "SELECT FROM attempts WHERE scenario_id = $1 AND runner_id = $2 AND outcome IS NULL",
            self._id,
            actor.trace.runner_id,
        )
        return bool(rows)

    async def _thaw_when_succeeded(self, actor: Actor, number: int) -> None:
        async def works() -> bool:
            return any(other.trace.asked for other in self._crew.actors[number:])

        with suppress(AssertionError):
            await until(works, described="a successor works")
        await self._crew.thaw(actor)

    async def _measure_death(self, actor: Actor) -> None:
        """From a SIGKILL to the record of the death, and to the moment from which the next attempt may start."""
        if actor.killed_at is None:
            return
        for row in await self.world.ledger.query(
            "SELECT d.reporter, extract(epoch FROM d.received_at)::float8 AS recorded,"
            " extract(epoch FROM s.not_before)::float8 AS due"
            " FROM retry_events d JOIN scenarios s ON s.id = d.scenario_id AND s.epoch = d.epoch + 1"
            " WHERE d.scenario_id = $1 AND d.body ->> 'runner_id' = $2",
            self._id,
            actor.trace.runner_id,
        ):
            self.tally.count_death(row, actor.killed_at, self.plan.lease_seconds)

    async def _judge(self) -> None:
        await self.world.read_events()
        ledger = self.world.ledger
        evidence = Evidence(
            scenario=await ledger.existing(self._id),
            predictions=await ledger.predictions(self._id),
            attempts=await ledger.attempts(self._id),
            deaths=await ledger.retry_events(self._id),
            events=self.world.events[self._id],
            spooled={path.stem for path in self._crew.spool.glob("*.json")},
            traces=self._crew.traces,
            truth=self.plan.truth,
            size=SIZE,
            most_repeated=WINDOW_FRAMES + BATCH_FRAMES,
        )
        self.violations += violations(evidence)
        self.tally.published_later += len(unpublished(evidence))
        if unpublished(evidence):
            await self._publish_the_rest()
            evidence.events = self.world.events[self._id]
            self.violations += [
                f"I9: a reaper has not published the death of epoch {row['epoch']}" for row in unpublished(evidence)
            ]
        self.tally.unreported += len(unreported(evidence))
        self.tally.repeated_frames += repeated_frames(evidence)
        for row in evidence.deaths:
            self.tally.reporters[row["reporter"]] += 1
        for name in ("scenario", "attempts", "deaths", "spooled"):
            self._note(name, rows=getattr(evidence, name))
        self._note("predictions", frames=[(row["frame_index"], row["epoch"]) for row in evidence.predictions])
        self._note("events", events=[(event.headers["ce_id"], event.body) for event in evidence.events])
        self._note("processes", traces=[asdict(trace) for trace in self._crew.traces])

    async def _publish_the_rest(self) -> None:
        """A reaper gives a reporter a minute; where Kafka does not answer it leaves the rest to the next reaper."""
        await self.world.ledger.query("UPDATE retry_events SET publish_due = now() WHERE scenario_id = $1", self._id)

        async def published() -> bool:
            await self.world.reap()
            return not await self.world.ledger.query(
                "SELECT FROM retry_events WHERE scenario_id = $1 AND published_at IS NULL AND reporter <> 'takeover'",
                self._id,
            )

        await until(published, described="a reaper has published to Kafka")
        await self.world.read_events()


async def _recover(proxy: Proxy, seconds: float) -> None:
    await trio.sleep(seconds)
    proxy.recover()


def _messages(error: BaseException) -> list[str]:
    """The violations in nested groups; any other error is the campaign's own failure, with its whole traceback."""
    if isinstance(error, BaseExceptionGroup):
        return [message for each in error.exceptions for message in _messages(each)]
    if isinstance(error, Violated):
        return [str(error)]
    return ["campaign: " + "".join(traceback.format_exception(error))]

"""The processes of one run: started with peers of their own, waited for, and reported as a service manager would."""

from __future__ import annotations

import random
import signal
import time
import uuid
from contextlib import AsyncExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import trio

from tests.campaign.actors import Actor, arm
from tests.campaign.figures import Tally
from tests.campaign.invariants import Trace
from tests.campaign.schedule import Fault, Plan
from tests.campaign.world import Stand, World
from tests.support.fake_inference import Fake, random_delays
from tests.support.fake_inference import Fault as Answer
from tests.support.harness import PATIENCE_SECONDS, Cli, Finished

BATCH_FRAMES = 4
WINDOW_FRAMES = 12
IN_TRANSIT_SECONDS = 0.1


class Violated(Exception):  # noqa: N818 - reads well where it is raised
    """An invariant was violated; the message names it."""


class Note(Protocol):
    """Writes a line of the run's history."""

    def __call__(self, action: str, **more: Any) -> None:
        """Note `action` with further values."""
        ...


class Crew:
    """All runner processes of one run."""

    def __init__(
        self, plan: Plan, world: World, clip: Path, directory: Path, tally: Tally, scenario_id: int, note: Note
    ) -> None:
        self.actors: list[Actor] = []
        self.traces: list[Trace] = []
        self.stack = AsyncExitStack()
        """Closes what stands around the processes."""
        self.spool = directory / "data" / "spool"
        self._plan, self._world, self._clip, self._directory = plan, world, clip, directory
        self._tally, self._id, self._note = tally, scenario_id, note
        self._cli = Cli(directory, set(), world.fork_server)

    async def start(self, nursery: trio.Nursery, epoch: int, fault: Fault | None) -> Actor:
        """A runner for this epoch (0: whichever is free), to which `fault` will happen."""
        await self._world.up.wait()
        number = len(self.traces) + 1
        trace = Trace(runner_id=f"r{self._plan.seed}.{number}", epoch=epoch)
        self.traces.append(trace)
        actors: list[Actor] = []

        def answer(request: int, frame: int) -> Answer | None:
            """Do what belongs to this question; what is answered, if it is not the truth."""
            trace.asked.append(frame)
            for index, act in actors[0].answers if actors else ():
                if index == request + 1:
                    act()
            if fault is None:
                return None
            if request + 1 == fault.provoked_at:
                return Answer.STATUS_500
            return fault.answer if fault.kind == "inference" and request + 1 == fault.at.count else None

        fake = Fake(plan=answer, delay=random_delays(self._plan.seed + number, self._plan.longest_answer_seconds))
        stand = await self._stand(f"r{number}.toml", fake, **self._sections(trace))
        actor = await nursery.start(partial(self._live, trace, stand))
        assert isinstance(actor, Actor)
        actors.append(actor)
        self.actors.append(actor)
        self._note("started", who=trace.runner_id, epoch=epoch, pid=actor.running.pid, fault=fault and fault.kind)
        if fault is not None:
            arm(actor, fault)
        return actor

    def _sections(self, trace: Trace) -> dict[str, dict[str, Any]]:
        """Deadlines short enough that every one is met in a run, and long enough for a busy machine."""
        return {
            "runner": {"id": trace.runner_id, "drain_seconds": 3.0},
            "scenario": {"id": self._id, "epoch": trace.epoch},
            "video": {"path": str(self._clip), "frame_timeout_seconds": 3.0, **self._plan.video},
            # Longer than a lease: a runner that was stopped for one comes back in the middle of its questions.
            "inference": {"timeout_seconds": 5.0},
            "pipeline": {"max_buffered_frames": WINDOW_FRAMES},
            "database": {
                "batch_frames": BATCH_FRAMES,
                "lease_seconds": self._plan.lease_seconds,
                "connect_timeout_seconds": 3.0,
                "command_timeout_seconds": 2.0,
                "create_schema": False,
            },
            "kafka": {"connect_timeout_seconds": 3.0, "publish_timeout_seconds": 3.0},
        }

    async def _stand(self, name: str, fake: Fake, **sections: dict[str, Any]) -> Stand:
        runner = {"data_dir": str(self._directory / "data")} | sections.pop("runner", {})
        return await self.stack.enter_async_context(
            self._world.stand(self._directory / name, sections | {"runner": runner}, fake)
        )

    async def _live(self, trace: Trace, stand: Stand, *, task_status: trio.TaskStatus[Actor]) -> None:
        invocation = uuid.uuid4().hex
        async with self._cli.started("run", stand.config, patch=self._world.patch, invocation=invocation) as running:
            actor = Actor(trace=trace, stand=stand, running=running, invocation=invocation)
            task_status.started(actor)
            stops = -1
            # Patience begins anew when it is continued, and does not end while it is stopped.
            while actor.done is None and (stops != actor.stops or actor.stops % 2):
                stops = actor.stops
                with suppress(AssertionError):
                    actor.done = await running.wait()
        trace.ledger_cut |= stand.ledger_restarted
        if actor.done is not None:
            trace.code = actor.done.code
            self._tally.codes[actor.done.code] += 1
            if actor.terminated_at is not None and actor.killed_at is None:
                self._tally.term_to_exit.append(time.time() - actor.terminated_at)
        self._note("ended", who=trace.runner_id, code=trace.code)
        actor.over.set()

    async def ended(self, actor: Actor) -> int:
        """Wait for its end; how it ended."""
        with trio.move_on_after(2 * PATIENCE_SECONDS):
            await actor.over.wait()
        if actor.done is None:
            raise Violated(f"liveness: {actor.trace.runner_id} does not end")
        return actor.done.code

    async def thaw(self, actor: Actor) -> None:
        """Let it go on, if it was stopped, once what it had sent before is where it was sent."""
        if actor.frozen_in_transit:
            actor.frozen_in_transit = False
            actor.stand.database.recover()
            await trio.sleep(IN_TRANSIT_SECONDS)
        actor.send_signal(signal.SIGCONT)
        self._note("continued", who=actor.trace.runner_id)
        await trio.lowlevel.checkpoint()

    async def report(self, actor: Actor, code: int) -> None:
        """`report-death`, as a service manager runs it after every end."""
        if code < 0:
            name = signal.Signals(-code).name.removeprefix("SIG")
            seen = {
                "SERVICE_RESULT": "success" if name == "TERM" else "signal",
                "EXIT_CODE": "killed",
                "EXIT_STATUS": name,
            }
        else:
            seen = {
                "SERVICE_RESULT": "exit-code" if code else "success",
                "EXIT_CODE": "exited",
                "EXIT_STATUS": str(code),
            }
        await self._world.up.wait()
        done = await self._run("report-death", actor.stand.config, {**seen, "INVOCATION_ID": actor.invocation})
        actor.trace.report_death = True
        actor.trace.ledger_cut |= actor.stand.ledger_restarted
        if done.code not in (0, 74):
            raise Violated(f"exit: report-death ended with {done.code}: {done.err}")

    async def flush(self) -> None:
        """Kafka is well again: the events that wait in the spool and in the database are published."""
        stand = await self._stand("flush.toml", Fake())
        await self._world.up.wait()
        await self._run("flush-spool", stand.config, {})

    async def _run(self, verb: str, config: Path, variables: dict[str, str]) -> Finished:
        async with self._cli.started(verb, config, patch=self._world.patch, variables=variables) as running:
            done = await running.wait()
        self._note(verb, code=done.code, out=done.out)
        return done


def rng_of(plan: Plan) -> random.Random:
    """For what is decided on the way."""
    return random.Random(f"{plan.seed}: on the way")

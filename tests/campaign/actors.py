"""One runner process of a campaign, and what befalls it at its moment: signals, broken connections, a dead decoder."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import psutil
import trio

from tests.campaign.invariants import Trace
from tests.campaign.schedule import Fault, Moment
from tests.campaign.world import Stand
from tests.support.harness import Finished, Running
from tests.support.proxy import Breakdown, Proxy, Way

VERBS = {
    "claim": b"FROM claim(",
    "store": b"SELECT store(",
    "later store": b"SELECT store(",
    "finish": b"SELECT finish(",
    "fail": b"SELECT fail(",
}
STATEMENT = b"__asyncpg_stmt_"
"""A statement that was prepared before is sent by its name."""
HAVE_ROW = b"s\0\0\0\4"
"""PortalSuspended: the one row that was asked for is there, so the function has run and its changes are committed."""
DIED = b"trio-runner.died"


@dataclass(eq=False, kw_only=True)
class Actor:
    """One runner process."""

    trace: Trace
    stand: Stand
    running: Running
    invocation: str
    """The service manager's name for its start."""
    struck: trio.Event = field(default_factory=trio.Event)
    """The fault has struck."""
    over: trio.Event = field(default_factory=trio.Event)
    stops: int = 0
    """How often it was stopped or continued; odd: it is stopped."""
    killed_at: float | None = None
    terminated_at: float | None = None
    done: Finished | None = None
    answers: list[tuple[int, Callable[[], None]]] = field(default_factory=list)
    """What happens at which question to the service."""
    frozen_in_transit: bool = False
    """What it has sent to the ledger is held back."""

    def send_signal(self, number: signal.Signals) -> None:
        """If it still lives."""
        if self.over.is_set():
            return
        with suppress(ProcessLookupError):
            os.kill(self.running.pid, number)
            if number is not signal.SIGCONT:
                self.trace.signals.append(number.name)
            self.stops += number is signal.SIGSTOP or (number is signal.SIGCONT and self.stops % 2)
            if number is signal.SIGKILL:
                self.killed_at = time.time()
            if number is signal.SIGTERM:
                self.terminated_at = self.terminated_at or time.time()


def arm(actor: Actor, fault: Fault) -> None:
    """Have the fault strike at its moment, unless that is a matter of time."""
    act, at = partial(strike, actor, fault), fault.at
    match at.kind:
        case "asked":
            actor.answers.append((at.count, act))
        case "call":
            later = at.count if at.verb == "later store" else 0
            _arm_at(actor.stand.database, VERBS[at.verb], at, act, later=later)
        case "event":
            _arm_at(actor.stand.kafka, DIED, at, act, later=0)
        case "seconds" if fault.kind == "kafka at the start":
            act()


def strike(actor: Actor, fault: Fault) -> None:
    """The fault itself, in one step: whatever passes a proxy at this moment waits for it."""
    if actor.struck.is_set() or actor.over.is_set():
        return
    actor.struck.set()
    if fault.kind == "decoder":
        with suppress(psutil.NoSuchProcess):
            decoder = actor.running.decoder()
            if decoder is not None:
                decoder.send_signal(fault.signal)
    elif fault.kind == "store in transit":
        # It is on its way, and arrives when the runner's death has long been recorded.
        actor.frozen_in_transit = True
        actor.stand.database.break_down(Breakdown.FREEZE, ways=(Way.TO_SERVER,), lasting=False)
        actor.send_signal(fault.signal)
    elif fault.kind.startswith(("kill", "term")) or fault.kind.endswith("pause"):
        actor.send_signal(fault.signal)
        if fault.signal is signal.SIGKILL:
            # Bytes that the process has just sent do not arrive any more.
            for proxy in (actor.stand.database, actor.stand.kafka):
                proxy.break_down(Breakdown.RESET, lasting=False)
    elif fault.kind.startswith(("database", "kafka")) and "restart" not in fault.kind:
        actor.trace.ledger_cut |= fault.kind.startswith("database")
        lasting = fault.seconds > 0 or fault.how is Breakdown.REFUSE
        proxy_of(actor, fault).break_down(fault.how, lasting=lasting)


def proxy_of(actor: Actor, fault: Fault) -> Proxy:
    """The one that the fault breaks."""
    return actor.stand.database if fault.kind.startswith("database") else actor.stand.kafka


def _arm_at(proxy: Proxy, statement: bytes, at: Moment, act: Callable[[], None], *, later: int) -> None:
    """Call `act` when the process sends `statement`, or `later` statements after it.

    `at.place` chooses between before the statement, just after it, and before its answer.
    """

    def last() -> None:
        act_at = STATEMENT if later else statement
        if at.place == "before":
            proxy.arm(act, Way.TO_SERVER, at=act_at)
        elif at.place == "reply":
            answer = HAVE_ROW if statement != DIED else b""
            proxy.arm(partial(proxy.arm, act, Way.TO_CLIENT, at=answer), Way.TO_SERVER, at=act_at, passing=True)
        elif statement == DIED or later:
            proxy.arm(act, Way.TO_SERVER, at=act_at, passing=True)
        else:
            # First it is only prepared; what comes next runs it.
            run = partial(proxy.arm, act, Way.TO_SERVER, after=1, passing=True)
            proxy.arm(run, Way.TO_SERVER, at=statement, passing=True)

    def count_down(left: int) -> None:
        """Answers and not statements: before the first array is sent, asyncpg asks what such arrays are."""
        if left == 0:
            last()
        else:
            proxy.arm(partial(count_down, left - 1), Way.TO_CLIENT, at=HAVE_ROW, passing=True)

    if later:
        proxy.arm(partial(count_down, later), Way.TO_SERVER, at=statement, passing=True)
    else:
        last()

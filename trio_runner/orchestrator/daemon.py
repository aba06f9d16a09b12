"""The orchestrator's process: it listens, reaps, publishes and starts what is due, until it is asked to stop."""

from __future__ import annotations

import logging
import os
import random
import socket
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from trio_runner.base import aio
from trio_runner.base.logs import about
from trio_runner.base.notify import Notifier
from trio_runner.base.stopping import until_signal
from trio_runner.database.backlog import Backlog, Counts
from trio_runner.database.rights import ORCHESTRATOR_VERBS
from trio_runner.database.store import open_store
from trio_runner.embedded.addresses import open_addresses
from trio_runner.errors import RunnerError
from trio_runner.failure.outbox import publish_outbox
from trio_runner.failure.reaper import record_expired
from trio_runner.failure.spool import open_spool
from trio_runner.failure.unreported import report_ended
from trio_runner.orchestrator.dead_letters import publish_given_up
from trio_runner.orchestrator.listener import APPLICATION, Listener
from trio_runner.orchestrator.policy import BREAKER_WINDOW, StartBudget, allowed_starts, breaker_code, delay_seconds
from trio_runner.orchestrator.spawners.choice import choose_spawner
from trio_runner.orchestrator.spawners.runner_config import load_template
from trio_runner.orchestrator.spawners.spawner import SpawnRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_runner.config.load import Config
    from trio_runner.database.backlog import Work
    from trio_runner.orchestrator.spawners.spawner import Ended, Spawner

logger = logging.getLogger(__name__)

OUTBOX_PASS: Final = 1000
"""How many retry events are published at most before the dead letters have their turn."""

DEAD_LETTERS: Final = 100
DEAD_LETTER_LEASE_SECONDS: Final = 60.0
COUNT_SECONDS: Final = 15.0
"""How often the backlog is counted: on a ledger of 100,000 scenarios that takes a tenth of a second."""

MAX_PAUSE_SECONDS: Final = 30.0
UNCLAIMED_REFUSALS: Final = 2
"""An attempt whose runner ended before it claimed is due again as after so many refused starts in a row: in 4 s at the
latest."""


async def orchestrate(config: Config) -> None:
    """Start runners for what is due, until SIGTERM or SIGINT; then let them drain, which a second one cuts short.

    Raises:
        ConfigError: The config, or the runners' config that it names, cannot be used; nothing was opened.
        RunnerError: The ledger cannot be used at the start. A peer that goes away later is waited for.
    """
    open_spawner = choose_spawner(config)
    template = await load_template(config)
    notifier = Notifier(os.environ)
    node = config.orchestrator.node or socket.gethostname()
    async with until_signal() as second_signal, aio.open_loop(), open_addresses(config) as live:
        async with open_store(live.database, application_name=APPLICATION) as store:
            if live.database.create_schema:
                await store.create_schema()
            await store.check_rights(verbs=ORCHESTRATOR_VERBS)
        orchestrator = Orchestrator(live, template or live, node)
        listener = Listener(live, template or live, orchestrator.look_again)
        async with (
            # Around the spawner: the service manager is notified for as long as runners drain.
            _notified(orchestrator, notifier),
            open_spawner(live, template or live, node, orchestrator.on_ended, second_signal) as spawner,
            trio.open_nursery() as nursery,
        ):
            for what, session in {
                "Kafka": listener.listen,
                "reaping": orchestrator.reap,
                "publishing": orchestrator.publish,
                "starting": lambda: orchestrator.work(spawner),
            }.items():
                nursery.start_soon(_keep, what, session)


async def _keep(what: str, session: Callable[[], Awaitable[None]]) -> NoReturn:
    """Run `session` again each time that it ends with a RunnerError, for a peer that is away need not end any runner.

    Every other exception is a bug, and ends the orchestrator.
    """
    failures = 0
    while True:
        began = trio.current_time()
        try:
            await session()
        except RunnerError as error:
            failures = 0 if trio.current_time() - began > MAX_PAUSE_SECONDS else failures + 1
            pause = min(MAX_PAUSE_SECONDS, 2.0 ** min(failures, 10) / 2)
            logger.warning("%s: %s. It is tried again in %g s", what, error, pause)
            await trio.sleep(pause)


@asynccontextmanager
async def _notified(orchestrator: Orchestrator, notifier: Notifier) -> AsyncIterator[None]:
    """Keep the service manager notified until the block has ended, also while it is cancelled and runners drain."""
    notifying = trio.CancelScope(shield=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_notify_manager, orchestrator, notifier, notifying)
        try:
            yield
        finally:
            notifier.stopping()
            notifying.cancel()


async def _notify_manager(orchestrator: Orchestrator, notifier: Notifier, notifying: trio.CancelScope) -> None:
    """Send READY once the ledger has answered, and then STATUS and WATCHDOG."""
    with notifying:
        await orchestrator.ready.wait()
        notifier.ready()
        await notifier.keep_notified(status=lambda: orchestrator.status_line)


class Orchestrator:
    """One of a fleet's orchestrators, which share nothing but the ledger and Kafka's consumer group."""

    def __init__(self, config: Config, template: Config, node: str) -> None:
        """`config` has live addresses, `template` is the config that runners are given, `node` this machine's name."""
        self._config, self._template, self._node = config, template, node
        self._wake = trio.Event()
        # Kept here and not in the session: a database that comes and goes is no reason to start more.
        self._budget = StartBudget(config.orchestrator.starts_per_second, trio.current_time())
        self._breaker: str | None = None
        self._refusals: Counter[int] = Counter()
        """Refused starts in a row, by scenario: the delay of one scenario does not depend on another's refusals."""
        self._counts: Counts | None = None
        self.ready = trio.Event()

    @property
    def status_line(self) -> str:
        """What `systemctl status` shows."""
        if self._counts is None:
            return "starting"
        counts = self._counts
        held = f", held back by {self._breaker}" if self._breaker else ""
        return f"{counts.running} running, {counts.due} due, {counts.backing_off} backing off{held}"

    def look_again(self) -> None:
        """Let `work` ask the ledger now, and not after `poll_seconds`."""
        self._wake.set()

    async def reap(self) -> None:
        """Record the deaths of runners whose leases have ended, and count the backlog now and then."""
        count_at = trio.current_time()
        while True:
            if lost := await record_expired(self._config):
                logger.warning("the leases of %d runners ended without a renewal", lost)
                self.look_again()
            if trio.current_time() >= count_at:
                await self._count()
                count_at = trio.current_time() + COUNT_SECONDS
            await trio.sleep(self._config.orchestrator.reap_seconds)

    async def _count(self) -> None:
        async with open_store(self._config.database, application_name=APPLICATION) as store:
            counts = await Backlog(store).counts()
        if counts != self._counts:
            logger.info(
                "backlog: due=%d, backing_off=%d, without_progress=%d, running=%d, stopping=%d",
                counts.due,
                counts.backing_off,
                counts.unproven,
                counts.running,
                counts.stopping,
            )
        self._counts = counts

    async def publish(self) -> None:
        """Publish recorded deaths that nobody has published, and scenarios that were given up.

        This is a session of its own, so that no start waits for Kafka.
        """
        while True:
            async with open_store(self._config.database, application_name=APPLICATION) as store:
                for report in await publish_outbox(self._config, store, limit=OUTBOX_PASS):
                    with about(scenario_id=report.claim.scenario_id, epoch=report.claim.epoch):
                        logger.info(
                            "the retry event of a recorded death is %s, not by its reporter", report.event.value
                        )
                await self._publish_dead_letters(Backlog(store))
            await trio.sleep(self._config.orchestrator.reap_seconds)

    async def _publish_dead_letters(self, backlog: Backlog) -> None:
        for given_up in await backlog.dead_letters(DEAD_LETTERS, lease_seconds=DEAD_LETTER_LEASE_SECONDS):
            await publish_given_up(self._config, given_up)
            await backlog.mark_dead_letter_published(given_up)
            with about(scenario_id=given_up.scenario_id, epoch=given_up.epoch, code=given_up.error.get("code")):
                logger.error("given up: %s", given_up.error.get("message"))

    async def work(self, spawner: Spawner) -> None:
        """Stop what is to be stopped and start what is due: every `poll_seconds`, and at each `look_again`."""
        settings = self._config.orchestrator
        async with open_store(self._config.database, application_name=APPLICATION) as store:
            backlog = Backlog(store)
            while True:
                self._wake = trio.Event()
                to_stop = await backlog.shutdowns()
                # READY comes before any call of the spawner, which a service manager or an API server may hold up.
                self.ready.set()
                for scenario_id, epoch in to_stop:
                    with about(scenario_id=scenario_id, epoch=epoch):
                        await spawner.stop(scenario_id, epoch)
                # A runner that has stored everything counts until its process has ended.
                free = settings.max_runners - spawner.count
                if limit := await self._limit(backlog, min(free, self._budget.available(trio.current_time()))):
                    works = await backlog.due(
                        self._node,
                        room=settings.max_runners,
                        limit=limit,
                        # A runner may wait for its service before it claims.
                        lease_seconds=settings.start_timeout_seconds + self._config.inference.ready_timeout_seconds,
                    )
                    self._budget.spend(len(works))
                    for work in works:
                        with about(scenario_id=work.scenario_id, epoch=work.epoch):
                            await self._start(spawner, backlog, work)
                with trio.move_on_after(settings.poll_seconds):
                    await self._wake.wait()

    async def _limit(self, backlog: Backlog, available: int) -> int:
        """How many may be started now. The ledger is not asked for more than can be started."""
        if available <= 0:
            return 0
        recent = await backlog.recent_attempts(BREAKER_WINDOW)
        code = breaker_code(recent)
        if code != self._breaker:
            with about(code=code or self._breaker):
                logger.warning("the breaker is %s", "open" if code else "closed")
        self._breaker = code
        unproven = await backlog.unproven() if code else 0
        return allowed_starts(available, recent, unproven)

    async def _start(self, spawner: Spawner, backlog: Backlog, work: Work) -> None:
        details = {"failures": work.failures, "why": "submitted" if work.epoch == 1 else f"after {work.last_code}"}
        try:
            await spawner.start(work)
        except SpawnRefusedError as error:
            self._refusals[work.scenario_id] += 1
            delay = delay_seconds(self._refusals[work.scenario_id], random.random())  # noqa: S311 - jitter
            await backlog.postpone(work.scenario_id, work.epoch, self._node, delay_seconds=delay, why=str(error))
            with about(**details):
                logger.warning("not started: %s. It is tried again in %.1f s", error, delay)
        else:
            del self._refusals[work.scenario_id]
            with about(**details):
                logger.info("started")

    async def on_ended(self, ended: Ended) -> None:
        """Report the death of a runner that has ended, if nobody else has, and look again at what is due.

        Raises:
            RunnerError: The ledger could not take the report.
        """
        with about(scenario_id=ended.scenario_id, epoch=ended.epoch):
            logger.info("ended: %s", ended.detail)
            if ended.failure is not None:
                async with open_spool(self._template) as spool:
                    await report_ended(self._config, spool, ended.scenario_id, ended.epoch, ended.failure)
            elif await self._free_unclaimed(ended):
                logger.warning("the runner ended before it had claimed: %s", ended.detail)
        self.look_again()

    async def _free_unclaimed(self, ended: Ended) -> bool:
        """Make the attempt due again soon if its runner had not claimed, and not after `start_timeout_seconds`."""
        delay = delay_seconds(UNCLAIMED_REFUSALS, random.random())  # noqa: S311 - jitter
        why = f"its runner ended before it had claimed: {ended.detail}"
        async with open_store(self._config.database, application_name=APPLICATION) as store:
            return await Backlog(store).postpone(
                ended.scenario_id, ended.epoch, self._node, delay_seconds=delay, why=why
            )

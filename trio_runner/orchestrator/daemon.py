"""The orchestrator's process: it listens, reaps, and starts what is due, until it is told to stop."""

from __future__ import annotations

import dataclasses
import logging
import os
import random
import socket
from collections import Counter
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NoReturn

import trio

from trio_runner.base import aio
from trio_runner.base.notify import Notifier
from trio_runner.base.stopping import until_signal
from trio_runner.database.backlog import Backlog, Counts
from trio_runner.database.schema import ORCHESTRATOR_VERBS
from trio_runner.database.store import Store, open_store
from trio_runner.embedded.addresses import open_addresses
from trio_runner.errors import ClaimRefusedError, RunnerError
from trio_runner.failure.report import record_death
from trio_runner.failure.spool import spool_of
from trio_runner.failure.unreported import publish_unpublished, record_expired, report_ended
from trio_runner.kafka.command import StartCommand, decode_command
from trio_runner.kafka.inbox import open_inbox
from trio_runner.kafka.record import BadEventError
from trio_runner.kafka.retry_event import event_of
from trio_runner.orchestrator.dead_letters import publish_given_up, publish_refused
from trio_runner.orchestrator.policy import BREAKER_WINDOW, StartBudget, allowed_starts, breaker_code, delay_seconds
from trio_runner.orchestrator.spawners.choice import open_spawner
from trio_runner.orchestrator.spawners.runner_config import load_template
from trio_runner.orchestrator.spawners.spawner import SpawnRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

    from trio_runner.config.load import Config
    from trio_runner.database.backlog import Work
    from trio_runner.kafka.record import Record
    from trio_runner.kafka.retry_event import RetryEvent
    from trio_runner.model import Failure
    from trio_runner.orchestrator.spawners.spawner import Ended, Spawner

logger = logging.getLogger(__name__)

APPLICATION: Final = "trio-runner orchestrate"
RECEIVE_SECONDS: Final = 1.0
RECEIVE_RECORDS: Final = 500
DEAD_LETTERS: Final = 100
DEAD_LETTER_LEASE_SECONDS: Final = 60.0
COUNT_SECONDS: Final = 15.0
"""How often the fleet is counted: on a ledger of 100,000 scenarios that takes a tenth of a second."""

MAX_PAUSE_SECONDS: Final = 30.0
UNBEGUN_REFUSALS: Final = 2
"""A runner that left before it had begun is tried again as if its start had been refused so often: within 4 s."""


async def orchestrate(config: Config) -> None:
    """Start runners for what is due, until SIGTERM or SIGINT; then let them drain, which a second one cuts short.

    Raises:
        ConfigError: the runners' config cannot be used.
        RunnerError: the ledger cannot be used at the start. Later on a peer that is away is waited for.
    """
    notifier = Notifier(os.environ)
    node = config.orchestrator.node or socket.gethostname()
    async with until_signal() as second_signal, aio.open_loop(), open_addresses(config) as live:
        template = load_template(live)
        async with open_store(live.database, application_name=APPLICATION) as store:
            if live.database.create_schema:
                await store.create_schema()
            await store.check_rights(verbs=ORCHESTRATOR_VERBS)
        orchestrator = Orchestrator(live, template, node)
        async with (
            # Around the spawner: the manager hears of us as long as runners drain.
            _heard(orchestrator, notifier),
            open_spawner(live, template, node, orchestrator.on_ended, second_signal) as spawner,
            trio.open_nursery() as nursery,
        ):
            for what, session in {
                "Kafka": orchestrator.listen,
                "reaping": orchestrator.sweep,
                "telling": orchestrator.tell,
                "starting": lambda: orchestrator.work(spawner),
            }.items():
                nursery.start_soon(_keep, what, session)


async def _keep(what: str, session: Callable[[], Awaitable[None]]) -> NoReturn:
    """A peer that is away ends a session and not the orchestrator: what it is for can wait, its runners need not die.

    Whatever is no named error is a bug, and ends it.
    """
    failures = 0
    while True:
        began = trio.current_time()
        try:
            await session()
        except RunnerError as error:
            failures = 0 if trio.current_time() - began > MAX_PAUSE_SECONDS else failures + 1
            pause = min(MAX_PAUSE_SECONDS, 2.0 ** min(failures, 10) / 2)
            logger.warning("%s: %s", what, error, extra={"again_in_seconds": pause})
            await trio.sleep(pause)


@asynccontextmanager
async def _heard(orchestrator: Orchestrator, notifier: Notifier) -> AsyncIterator[None]:
    # What ends everything else does not end it: runners drain then.
    telling = trio.CancelScope(shield=True)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_notify_manager, orchestrator, notifier, telling)
        try:
            yield
        finally:
            notifier.stopping()
            telling.cancel()


async def _notify_manager(orchestrator: Orchestrator, notifier: Notifier, telling: trio.CancelScope) -> None:
    """READY once the ledger has answered."""
    with telling:
        await orchestrator.ready.wait()
        notifier.ready()
        await notifier.keep_notified(status=lambda: orchestrator.status_line)


class Orchestrator:
    """One of a fleet's orchestrators, which know of each other by the ledger and Kafka's consumer group alone."""

    def __init__(self, config: Config, template: Config, node: str) -> None:
        """`config` has live addresses, `template` is what runners are given, `node` this machine's name."""
        self._config, self._template, self._node = config, template, node
        self._wake = trio.Event()
        # Not the session's: a database that comes and goes is no reason to start more.
        self._budget = StartBudget(config.orchestrator.starts_per_second, trio.current_time())
        self._breaker: str | None = None
        self._refusals: Counter[int] = Counter()
        """In a row, by scenario: another's bad row or frozen runner is no reason to wait longer."""
        self._counts: Counts | None = None
        self.ready = trio.Event()

    @property
    def status_line(self) -> str:
        """One line on what is going on."""
        if self._counts is None:
            return "starting"
        counts = self._counts
        held = f", held back by {self._breaker}" if self._breaker else ""
        return f"{counts.running} running, {counts.due} due, {counts.backing_off} backing off{held}"

    async def listen(self) -> None:
        """Obey commands, take note of retry events; offsets are committed after the ledger has it all."""
        config = self._config
        topics = [config.kafka.retry_topic, config.orchestrator.command_topic]
        async with (
            open_store(config.database, application_name=APPLICATION) as store,
            open_inbox(config.kafka, topics, config.orchestrator.group) as inbox,
        ):
            while True:
                records = await inbox.receive(wait_seconds=RECEIVE_SECONDS, limit=RECEIVE_RECORDS)
                deaths = []
                takes = True
                for record in records:
                    try:
                        if record.topic == config.kafka.retry_topic:
                            deaths.append(event_of(record))
                        else:
                            await self._apply(store, record)
                    except (BadEventError, ClaimRefusedError) as error:
                        # One that is not taken has cost its time; the group waits for no member that long again.
                        takes = await self._put_aside(record, str(error), publish=takes)
                if records:
                    await self._reconcile(store, deaths)
                    await inbox.commit()
                    self._wake.set()

    async def _put_aside(self, record: Record, why: str, *, publish: bool) -> bool:
        """Whether the dead-letter topic takes such messages; without it they stay where they are, and are logged."""
        place = {"topic": record.topic, "partition": record.partition, "offset": record.offset}
        logger.warning("a message is put aside: %s", why, extra=place)
        try:
            if publish:
                await publish_refused(self._config, record, why)
        except RunnerError as error:
            logger.warning("it stays on its topic alone: %s", error, extra=place)
            return False
        return publish

    async def _reconcile(self, store: Store, events: Sequence[RetryEvent]) -> None:
        """The ledger knows of nearly every death first; where its runner could not reach it, it hears of it now."""
        news = await Backlog(store).reconcile([event.claim for event in events])
        for event in events:
            if (event.scenario_id, event.epoch) not in news:
                continue
            recorded = await record_death(store, event.claim, event)
            await store.mark_published(event.scenario_id, event.epoch)
            logger.info("the ledger hears of a death by its event", extra=_of(event) | {"recorded": recorded})

    async def _apply(self, store: Store, record: Record) -> None:
        command_id, command = decode_command(record, self._template)
        start = isinstance(command, StartCommand)
        settings = command.settings if isinstance(command, StartCommand) else {}
        first = await Backlog(store).apply(
            command_id,
            "start" if start else "stop",
            command.scenario_id,
            command.video_path if isinstance(command, StartCommand) else "",
            settings,
            max_failures=settings.get("scenario", {}).get("max_failures", self._template.scenario.max_failures),
            max_epochs=self._config.orchestrator.max_epochs,
        )
        logger.info(
            "told to %s" if first else "told to %s once more, which changes nothing",
            "start" if start else "stop",
            extra={"scenario_id": command.scenario_id, "command": command_id},
        )

    async def sweep(self) -> None:
        """Record who was not heard of, and look at what is waiting."""
        look_again = trio.current_time()
        while True:
            if lost := await record_expired(self._config):
                logger.warning("%d runners were not heard of until their leases ended", lost)
                self._wake.set()
            if trio.current_time() >= look_again:
                await self._look()
                look_again = trio.current_time() + COUNT_SECONDS
            await trio.sleep(self._config.orchestrator.reap_seconds)

    async def _look(self) -> None:
        async with open_store(self._config.database, application_name=APPLICATION) as store:
            counts = await Backlog(store).counts()
        if counts != self._counts:
            logger.info("what there is to do", extra=dataclasses.asdict(counts))
        self._counts = counts

    async def tell(self) -> None:
        """Publish the deaths that nobody has told, and who was given up; what is due does not wait for Kafka."""
        while True:
            for report in await publish_unpublished(self._config):
                told = {"scenario_id": report.claim.scenario_id, "epoch": report.claim.epoch}
                logger.info("a death was told in its reporter's place", extra=told)
            async with open_store(self._config.database, application_name=APPLICATION) as store:
                await self._bury(Backlog(store))
            await trio.sleep(self._config.orchestrator.reap_seconds)

    async def _bury(self, backlog: Backlog) -> None:
        for given_up in await backlog.dead_letters(DEAD_LETTERS, lease_seconds=DEAD_LETTER_LEASE_SECONDS):
            await publish_given_up(self._config, given_up)
            await backlog.mark_dead_letter_published(given_up)
            logger.error(
                "given up: %s",
                given_up.error.get("message"),
                extra={
                    "scenario_id": given_up.scenario_id,
                    "epoch": given_up.epoch,
                    "code": given_up.error.get("code"),
                },
            )

    async def work(self, spawner: Spawner) -> None:
        """Stop what is to be stopped, start what is due: every `poll_seconds`, or as soon as something came."""
        settings = self._config.orchestrator
        async with open_store(self._config.database, application_name=APPLICATION) as store:
            backlog = Backlog(store)
            while True:
                self._wake = trio.Event()
                leaving = await backlog.shutdowns()
                # Whatever the spawner asks may take long to answer, or never do.
                self.ready.set()
                for scenario_id, epoch in leaving:
                    await spawner.stop(scenario_id, epoch)
                # One that has stored everything takes its place until its process has ended.
                free = settings.max_runners - spawner.count
                if limit := await self._limit(backlog, min(free, self._budget.available(trio.current_time()))):
                    works = await backlog.due(
                        self._node,
                        room=settings.max_runners,
                        limit=limit,
                        lease_seconds=settings.start_timeout_seconds,
                    )
                    self._budget.spend(len(works))
                    for work in works:
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
            logger.warning("the breaker is %s", "open" if code else "closed", extra={"code": code or self._breaker})
        self._breaker = code
        unproven = await backlog.unproven() if code else 0
        return allowed_starts(available, recent, unproven)

    async def _start(self, spawner: Spawner, backlog: Backlog, work: Work) -> None:
        why = "submitted" if work.epoch == 1 else f"after {work.last_code}"
        extra = {"scenario_id": work.scenario_id, "epoch": work.epoch, "failures": work.failures, "why": why}
        try:
            await spawner.start(work)
        except SpawnRefusedError as error:
            self._refusals[work.scenario_id] += 1
            delay = delay_seconds(self._refusals[work.scenario_id], random.random())  # noqa: S311 - jitter
            await backlog.postpone(work.scenario_id, work.epoch, self._node, delay_seconds=delay, why=str(error))
            logger.warning("not started: %s", error, extra=extra | {"again_in_seconds": round(delay, 1)})
        else:
            del self._refusals[work.scenario_id]
            logger.info("started", extra=extra)

    async def on_ended(self, ended: Ended) -> None:
        """A runner has ended: whatever nobody has reported is reported, and what is due is looked at again.

        Raises:
            RunnerError: the ledger does not know of it yet.
        """
        extra = {"scenario_id": ended.scenario_id, "epoch": ended.epoch}
        logger.info("ended: %s", ended.detail, extra=extra)
        if ended.failure is not None:
            await self._report(ended, ended.failure)
        elif await self._set_free(ended):
            logger.warning("it had not begun: %s", ended.detail, extra=extra)
        self._wake.set()

    async def _report(self, ended: Ended, failure: Failure) -> None:
        spool = spool_of(self._template)
        try:
            await report_ended(self._config, spool, ended.scenario_id, ended.epoch, failure)
        finally:
            spool.close()

    async def _set_free(self, ended: Ended) -> bool:
        """Where it was told to leave before it had claimed, nothing else would say so until `start_timeout_seconds`."""
        delay = delay_seconds(UNBEGUN_REFUSALS, random.random())  # noqa: S311 - jitter
        why = f"its runner ended before it had claimed: {ended.detail}"
        async with open_store(self._config.database, application_name=APPLICATION) as store:
            return await Backlog(store).postpone(
                ended.scenario_id, ended.epoch, self._node, delay_seconds=delay, why=why
            )


def _of(event: RetryEvent) -> dict[str, object]:
    return {"scenario_id": event.scenario_id, "epoch": event.epoch, "code": str(event.error.code)}

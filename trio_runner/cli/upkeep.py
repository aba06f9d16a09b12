"""The verbs that put things in order: the database's schema, waiting events, unreported deaths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from trio_runner.base import aio
from trio_runner.base.stopping import until_signal
from trio_runner.cli.output import identify_attempt, say
from trio_runner.database.rights import ORCHESTRATOR_VERBS, RUNNER_VERBS
from trio_runner.database.store import open_store
from trio_runner.embedded.addresses import embedded_services, open_addresses
from trio_runner.embedded.data_directory import is_hosted
from trio_runner.embedded.hosting import Service
from trio_runner.errors import ExitCode
from trio_runner.failure import reaper
from trio_runner.failure.outbox import flush, publish_outbox, publish_spooled
from trio_runner.failure.spool import spool_of
from trio_runner.failure.unreported import report_invocation

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.config.load import Config
    from trio_runner.errors import RunnerError
    from trio_runner.failure.publication import Report


async def init_db(config: Config, *, grant: str | None, grant_orchestrator: str | None) -> ExitCode:
    """Apply the schema files that the database lacks, and give roles the rights of a runner or an orchestrator."""
    granted = {
        "a runner": (grant, RUNNER_VERBS),
        "an orchestrator": (grant_orchestrator, ORCHESTRATOR_VERBS),
    }
    async with (
        aio.open_loop(),
        open_addresses(config, frozenset({Service.DATABASE}), published=False) as live,
        open_store(live.database, application_name="trio-runner init-db") as store,
    ):
        applied = await store.create_schema()
        for role, verbs in granted.values():
            if role is not None:
                await store.grant(role, verbs)
    for name in applied:
        say(f"applied {name}")
    say("the schema is complete")
    for who, (role, _) in granted.items():
        if role is not None:
            say(f"{role} may do what {who} does")
    return ExitCode.OK


async def flush_spool(config: Config) -> ExitCode:
    """Publish the retry events that wait in the spool and in the database; 74 where some still wait.

    Also counted are events in the database that another process is publishing now.

    Raises:
        ExceptionGroup: with a RunnerError: Kafka or PostgreSQL cannot be used; or, after all other events, why one in
            the spool was passed over.
    """
    # 74 remains where a signal cancels the work and the process survives it, because its parent had it ignored.
    code = ExitCode.UNCONFIRMED
    async with until_signal(die=True):
        code = await _flush_spool(config)
    return code  # noqa: RET504 - a block that was cancelled has assigned nothing


async def _flush_spool(config: Config) -> ExitCode:
    spool = spool_of(config)
    problem: RunnerError | None = None
    if Service.KAFKA in embedded_services(config) and not is_hosted(Path(config.runner.data_dir)):
        published, left = 0, len(await spool.waiting())
        say("the embedded broker is not running, and it keeps nothing when it ends")
    else:
        services = frozenset({Service.DATABASE, Service.KAFKA})
        async with aio.open_loop(), open_addresses(config, services, published=False) as live:
            spooled = await publish_spooled(live, spool)
            problem = spooled.problem
            async with open_store(live.database, application_name="trio-runner flush-spool") as store:
                reports = await publish_outbox(live, store)
                left = spooled.waiting + await store.count_unpublished()
        published = spooled.sent + sum(not report.event.is_due for report in reports)
    say(f"retry events published: {published}, still waiting: {left}")
    if problem is not None:
        raise problem
    return ExitCode.UNCONFIRMED if left else ExitCode.OK


async def report_death(config: Config, *, scenario: int | None) -> ExitCode:
    """Report how the scenario's attempt ended, where its process did not; 74 where Kafka does not have it yet."""
    if scenario is not None:
        config = config.replace(scenario={"id": scenario})
    identify_attempt(config)
    spool = spool_of(config)
    try:
        async with (
            aio.open_loop(),
            open_addresses(config, frozenset({Service.DATABASE, Service.KAFKA}), published=False) as live,
        ):
            try:
                report = await report_invocation(live, spool, os.environ)
            finally:
                # An attempt that ended with 74 may have left its event in the spool; this is the second try.
                await flush(live, spool)  # noqa: ASYNC102 - after Ctrl-C nothing is sent, which is right
    finally:
        spool.close()
    return _say_reports([] if report is None else [report])


async def reap(config: Config) -> ExitCode:
    """Report every runner whose lease has ended, and publish deaths that Kafka lacks; 74 where it still lacks some."""
    # As in `flush_spool`.
    code = ExitCode.UNCONFIRMED
    async with (
        until_signal(die=True),
        aio.open_loop(),
        open_addresses(config, frozenset({Service.DATABASE, Service.KAFKA}), published=False) as live,
    ):
        code = _say_reports(await reaper.reap(live))
    return code  # noqa: RET504 - the same


def _say_reports(reports: Sequence[Report]) -> ExitCode:
    for report in reports:
        attempt = f"scenario {report.claim.scenario_id}, attempt {report.claim.epoch}"
        say(f"{attempt}: the retry event is {report.event.value}")
    if not reports:
        say("nothing to report")
    return ExitCode.UNCONFIRMED if any(report.event.is_due for report in reports) else ExitCode.OK

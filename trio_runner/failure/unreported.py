"""Reports the deaths that the dead did not report: what a service manager saw, and leases that have ended."""

from __future__ import annotations

import logging
import random
import uuid
from typing import TYPE_CHECKING, Final

import trio

from trio_runner.database.backlog import Backlog
from trio_runner.database.store import Attempt, open_store
from trio_runner.errors import REPORTED, ClaimRefusedError, ErrorCode, RunnerError, SupersededError
from trio_runner.failure import marker
from trio_runner.failure.report import Report, publish_recorded, record_lost, report_death
from trio_runner.model import Claim, Failure, Progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_runner.config.load import Config
    from trio_runner.failure.marker import Marker
    from trio_runner.failure.spool import Spool

logger = logging.getLogger(__name__)

REAP_BATCH: Final = 1000

PUBLISH_GRACE_SECONDS: Final = 60.0

TRIES: Final = 3
"""A topic may refuse one event; where so many in a row are not taken it is Kafka that does not answer."""


_UNKNOWN: Final = Failure(code=ErrorCode.RUNNER_KILLED, type="Ended", message="ended unreported: nobody says how")


def cause_of_death(environ: Mapping[str, str]) -> Failure | None:
    """What systemd's SERVICE_RESULT, EXIT_CODE and EXIT_STATUS say (systemd.exec(5)); None: it has reported itself.

    `success` alone does not: a process that SIGTERM killed before it could handle it ended so, too. A spawner without
    systemd may set the three variables as well, or none of them.
    """
    result, how, status = (environ.get(name, "") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"))
    if how == "exited" and status in map(str, REPORTED):
        return None
    told = f"ended unreported: {result or 'nobody says how'}" + (f" ({how} {status})" if how else "")
    if result == "oom-kill":
        code = ErrorCode.RUNNER_OUT_OF_MEMORY
    elif result in {"watchdog", "timeout"}:
        code = ErrorCode.RUNNER_HUNG
    elif how == "exited":
        code = ErrorCode.INTERNAL
    elif status == "TERM":
        code = ErrorCode.INTERRUPTED
    else:
        code = ErrorCode.RUNNER_KILLED
    return Failure(code=code, type="Ended", message=told)


async def report_dead_processes(config: Config, spool: Spool, environ: Mapping[str, str]) -> list[Report]:
    """Report every attempt at the config's scenario that was marked by a process which is gone, and was not reported.

    Where a service's process is gone before it had marked anything, that is reported as an attempt, too.

    Returns:
        One report for each that was this call's to make.
    """
    failure = cause_of_death(environ)
    unmarked = None if failure is None else marker.of_unmarked_process(config, environ)
    try:
        # The room that the dead process kept is free for its event, on a disk that is full.
        await spool.reserve()
    except RunnerError as error:
        logger.warning("%s", error)
    reports = []
    with marker.of_dead_processes(marker.directory_of(config, environ), config.scenario.id) as marked:
        for found in [unmarked] if unmarked else marked:
            # A process that has reported itself has removed its marker: whose this is, nobody has told how it ended.
            report = await _report(config, spool, found.marker, failure or _UNKNOWN)
            if report is not None:
                reports.append(report)
            if report is None or report.settled:
                found.remove()
    return reports


async def _report(config: Config, spool: Spool, found: Marker, failure: Failure) -> Report | None:
    """None where it was reported already, or the scenario is not this attempt's to fail."""
    attempt = Attempt(
        scenario_id=found.scenario_id,
        epoch=found.epoch,
        video_path=found.video_path,
        runner_id=config.runner.id,
        instance_id=found.instance_id,
        max_failures=config.scenario.max_failures,
    )
    claim, ended = _claim_of(found), False
    try:
        async with open_store(config.database, application_name="trio-runner report-death") as store:
            known = await store.attempt_of(found.scenario_id, found.instance_id)
            if known is not None:
                claim, ended = known
                if ended:
                    # It may have died before it told Kafka.
                    body = await store.unpublished_event(claim.scenario_id, claim.epoch)
                    if body is None:
                        return None
                    return await publish_recorded(config, store, claim.scenario_id, claim.epoch, body, spool=spool)
    except RunnerError as error:
        logger.warning("the ledger cannot be asked about this death: %s", error)
        if claim is not None and ended:
            return Report(claim=claim)
    return await _report_attempt(config, spool, attempt, claim, failure, reporter="stop-post")


async def _report_attempt(
    config: Config, spool: Spool, attempt: Attempt, claim: Claim | None, failure: Failure, *, reporter: str
) -> Report | None:
    """In the place of a process that is gone; None where the scenario is not this attempt's to fail."""
    progress = Progress(
        started=trio.current_time(),
        next_frame=claim.next_frame if claim else 0,
        frames_stored_before=claim.frames_stored if claim else 0,
    )
    try:
        return await report_death(config, spool, attempt, claim, failure, progress, reporter=reporter)
    except (ClaimRefusedError, SupersededError) as error:
        logger.info("nothing to report: %s", error)
        return None


def _claim_of(found: Marker) -> Claim | None:
    """What the process knew; the ledger, where it can be asked, knows better."""
    if not found.claimed:
        return None
    return Claim(
        scenario_id=found.scenario_id,
        epoch=found.claimed,
        instance_id=found.instance_id,
        next_frame=0,
        frames_stored=0,
    )


async def reap(config: Config) -> list[Report]:
    """Report the death of every runner that was not heard of until its lease ended, whichever scenario it had.

    So is each death that was recorded and not told: its reporter died in between. Any number of reapers may run: the
    ledger takes the first report of a death, and none of a runner that came back. What Kafka does not take stays in the
    ledger for the next one.

    Raises:
        RunnerError: the ledger cannot be asked.
    """
    problem: RunnerError | None = None
    try:
        await record_expired(config)
    except RunnerError as error:
        problem = error
    reports = await publish_unpublished(config)
    if problem is not None:
        raise problem
    return reports


async def record_expired(config: Config) -> int:
    """Record the death of every runner whose lease has ended: its scenario is due again. Returns how many there were.

    Raises:
        RunnerError: the ledger cannot be asked, or did not take one of them; the others are recorded all the same.
    """
    recorded = 0
    async with open_store(config.database, application_name="trio-runner reap") as store:
        while True:
            problem: RunnerError | None = None
            expired = await store.expired_claims(REAP_BATCH)
            # Several reapers are given the same ones: in an order of its own each is of use to the others.
            random.shuffle(expired)
            for claim, runner_id, host in expired:
                try:
                    recorded += await record_lost(store, claim, runner_id=runner_id, host=host)
                except RunnerError as error:
                    # One row that is locked, or worse, is no reason to leave out the others.
                    logger.warning("scenario %d: %s", claim.scenario_id, error)
                    problem = problem or error
            if problem is not None:
                raise problem
            if len(expired) < REAP_BATCH:
                return recorded


async def publish_unpublished(config: Config) -> list[Report]:
    """Publish the deaths that are recorded and not told, so far as Kafka takes them.

    Raises:
        RunnerError: the ledger cannot be asked.
    """
    reports: list[Report] = []
    in_vain = 0
    async with open_store(config.database, application_name="trio-runner reap") as store:
        for scenario_id, epoch in await store.unpublished(_publish_grace_seconds(config), REAP_BATCH):
            # Another reaper may have told it by now.
            body = await store.unpublished_event(scenario_id, epoch)
            report = await publish_recorded(config, store, scenario_id, epoch, body) if body is not None else None
            if report is None:
                continue
            reports.append(report)
            in_vain = 0 if report.event_confirmed else in_vain + 1
            if in_vain == TRIES:
                break
    return reports


async def report_ended(config: Config, spool: Spool, scenario_id: int, epoch: int, failure: Failure) -> Report | None:
    """Report the attempt whose process is known to have ended, and how; None where that is known already.

    Raises:
        RunnerError: the ledger cannot be asked; its lease will tell.
    """
    async with open_store(config.database, application_name="trio-runner orchestrate") as store:
        holder = await Backlog(store).holder_of(scenario_id, epoch)
    if holder is None or holder.ended:
        return None
    claim = holder.claim
    attempt = Attempt(
        scenario_id=scenario_id,
        epoch=epoch,
        video_path=holder.video_path,
        runner_id=holder.runner_id or config.runner.id,
        instance_id=claim.instance_id if claim else str(uuid.uuid4()),
        max_failures=config.scenario.max_failures,
    )
    return await _report_attempt(config, spool, attempt, claim, failure, reporter="orchestrator")


def _publish_grace_seconds(config: Config) -> float:
    """How long who has recorded a death is given to tell Kafka: twice what it may take, or else it is dead."""
    return max(PUBLISH_GRACE_SECONDS, 2 * (config.kafka.publish_timeout_seconds + 15.0))

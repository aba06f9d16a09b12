"""Reports the death of a process that did not report it: what a service manager or a spawner saw of its end."""

from __future__ import annotations

import logging
import os
import re
import uuid
from typing import TYPE_CHECKING

import trio

from trio_runner.base.text import printable
from trio_runner.database.backlog import Backlog
from trio_runner.database.store import Attempt, open_store
from trio_runner.errors import REPORTED, ClaimRefusedError, ErrorCode, ExitCode, SupersededError
from trio_runner.failure.outbox import publish_recorded
from trio_runner.failure.publication import Publication, Report
from trio_runner.failure.report import report_death
from trio_runner.model import Failure, Progress

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_runner.config.load import Config
    from trio_runner.database.store import Store
    from trio_runner.failure.spool import Spool
    from trio_runner.model import Claim

logger = logging.getLogger(__name__)


def own_instance_id(environ: Mapping[str, str], pid: int) -> str | None:
    """The id that the service manager gave to this very process, as a UUID; None where it gave none.

    systemd names a unit's start by INVOCATION_ID, and by SYSTEMD_EXEC_PID (since version 248) the process that it
    started. A shell or a service below a unit inherits both variables, and its pid differs: two processes never take
    one id. The leash sets both for the runners of the spawner `process`.
    """
    if environ.get("SYSTEMD_EXEC_PID") != str(pid):
        return None
    return _instance_id(environ)


def _instance_id(environ: Mapping[str, str]) -> str | None:
    invocation = environ.get("INVOCATION_ID", "")
    return str(uuid.UUID(invocation)) if re.fullmatch(r"[0-9a-f]{32}", invocation) else None


def cause_of_death(environ: Mapping[str, str]) -> Failure | None:
    """The failure that SERVICE_RESULT, EXIT_CODE and EXIT_STATUS stand for (systemd.exec(5)); None: it was reported.

    A result of `success` is no proof: a process that SIGTERM killed before it could handle the signal has that result
    too. A spawner without systemd may set the three variables as well, or none of them.
    """
    result, how, status = (environ.get(name, "") for name in ("SERVICE_RESULT", "EXIT_CODE", "EXIT_STATUS"))
    if how == "exited" and status in map(str, REPORTED):
        return None
    message = f"ended unreported: {result or 'the cause is not known'}" + (f" ({how} {status})" if how else "")
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
    return Failure(code=code, type="Ended", message=message)


async def report_invocation(config: Config, spool: Spool, environ: Mapping[str, str]) -> Report | None:
    """Report the death of the process that INVOCATION_ID names, unless it has reported itself.

    `environ` is what systemd gives to ExecStopPost=, or what a spawner made alike: INVOCATION_ID as the process had it,
    and what `cause_of_death` reads. An id that no attempt has stands for a process that died before it could claim:
    its death is reported if the config names the epoch, or if nothing else can be meant (`_may_have_another_id`).

    Returns:
        None where there is nothing to report.

    Raises:
        RunnerError: PostgreSQL cannot be asked which attempt the process had; a reaper finds its death by its lease.
    """
    failure, instance_id = cause_of_death(environ), _instance_id(environ)
    if failure is None:
        return None
    if instance_id is None:
        logger.warning(
            "which process ended is not known: INVOCATION_ID is not set. A reaper reports the death when its lease ends"
        )
        return None
    attempt = Attempt(
        scenario_id=config.scenario.id,
        epoch=config.scenario.epoch,
        video_path=printable(config.video.path),
        runner_id=config.runner.id,
        instance_id=instance_id,
        max_failures=config.scenario.max_failures,
        retry_topic=config.kafka.retry_topic,
    )
    claim: Claim | None = None
    async with open_store(config.database, application_name="trio-runner report-death") as store:
        known = await store.attempt_of(instance_id)
        if known is not None:
            claim, ended = known
            if ended:
                # Where another process recorded the death, that one publishes it.
                return await publish_recorded(config, store, claim.scenario_id, claim.epoch, recorded_by="runner")
        elif not attempt.epoch and await _may_have_another_id(store, attempt, environ):
            logger.warning(
                "which attempt ended is not known. If it had claimed, a reaper reports the death when its lease ends"
            )
            return None
    if claim is None and environ.get("EXIT_STATUS") == str(int(ExitCode.UNCONFIRMED)):
        # The process has run its failure path: what it could not record lies in the spool.
        return None
    return await _report_attempt(config, spool, attempt, claim, failure, reporter="stop-post")


async def _may_have_another_id(store: Store, attempt: Attempt, environ: Mapping[str, str]) -> bool:
    """Whether the process that ended may have claimed under an id of its own, although no attempt has the given id.

    A service manager that names the process of this very report has named the runner's too, unless another program
    started the runner. A lease that has ended may be the lease of such a runner.
    """
    if own_instance_id(environ, os.getpid()) is None:
        return True
    return await store.expired_claim(attempt.scenario_id) is not None


async def report_ended(config: Config, spool: Spool, scenario_id: int, epoch: int, failure: Failure) -> Report | None:
    """Report the attempt at `epoch`, whose process is known to have ended; None where its end is recorded already.

    Raises:
        RunnerError: PostgreSQL cannot be asked; a reaper finds the death when the attempt's lease ends.
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
        retry_topic=config.kafka.retry_topic,
    )
    return await _report_attempt(config, spool, attempt, claim, failure, reporter="orchestrator")


async def _report_attempt(
    config: Config, spool: Spool, attempt: Attempt, claim: Claim | None, failure: Failure, *, reporter: str
) -> Report | None:
    """Report in the place of a process that is gone; None where the scenario is not this attempt's to fail."""
    progress = Progress(
        started=trio.current_time(),
        next_frame=claim.next_frame if claim else 0,
        frames_stored_before=claim.frames_stored if claim else 0,
    )
    try:
        report = await report_death(config, spool, attempt, claim, failure, progress, reporter=reporter)
    except (ClaimRefusedError, SupersededError) as error:
        logger.info("nothing to report: %s", error)
        return None
    return None if report.event in (Publication.SUPERSEDED, Publication.COMPLETED) else report

"""The spawner `kubernetes`: a Job for each attempt; one that has ended is told once, and kept for people to look at."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from trio_runner.config.errors import ConfigError
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.orchestrator.spawners.kubernetes_job import (
    EPOCH,
    OF_RUNNERS,
    ORCHESTRATOR,
    REPORTED_LABEL,
    SCENARIO,
    KubernetesError,
    attempt_of,
    how_it_ended,
    is_over,
    job,
    job_name,
    label_of,
    why_waiting,
)
from trio_runner.orchestrator.spawners.spawner import Ended, SpawnRefusedError, report_end, unusable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_runner.config.load import Config
    from trio_runner.database.backlog import Work
    from trio_runner.orchestrator.spawners.kubernetes_api import KubernetesApi
    from trio_runner.orchestrator.spawners.kubernetes_job import Object
    from trio_runner.orchestrator.spawners.spawner import Spawner

logger = logging.getLogger(__name__)

POLL_SECONDS: Final = 1.0
MAX_POLL_SECONDS: Final = 30.0
"""While the API server does not answer."""

ORPHAN_SECONDS: Final = 30.0
"""A Job that ended so long ago, and that its orchestrator has not told of, is told of by any other of the fleet."""

WAITING_SECONDS: Final = 60.0
"""How long a Job may have nothing that runs before that is logged, and how often then."""

PAGE: Final = 500
REPORTERS: Final = 8

NOT_FOUND: Final = 404
CONFLICT: Final = 409


@asynccontextmanager
async def open_kubernetes(
    config: Config, node: str, on_ended: Callable[[Ended], Awaitable[None]]
) -> AsyncIterator[Spawner]:
    """Start Jobs as `[kubernetes]` says; they outlive the block, and its next opener is told how they ended.

    `on_ended` is called for each Job once; again where it raised RunnerError, or where the block ended meanwhile.

    Raises:
        RunnerError: `config_invalid`, where kr8s is not installed.
    """
    try:
        from trio_runner.orchestrator.spawners.kubernetes_api import open_api  # noqa: PLC0415 - needs the extra
    except ImportError as error:
        message = (
            f'orchestrator.spawner = "kubernetes" needs a package that is not here: {error}. Install the extra:'
            " pip install 'trio_runner[kubernetes]'"
        )
        raise RunnerError(ErrorCode.CONFIG_INVALID, message) from None
    async with open_api(config.kubernetes) as api, trio.open_nursery() as nursery:
        spawner = _Kubernetes(config, node, api, nursery, on_ended)
        nursery.start_soon(spawner.watch)
        yield spawner
        nursery.cancel_scope.cancel()


class _Kubernetes:
    def __init__(
        self,
        config: Config,
        node: str,
        api: KubernetesApi,
        nursery: trio.Nursery,
        on_ended: Callable[[Ended], Awaitable[None]],
    ) -> None:
        self._settings, self._node, self._api = config.kubernetes, node, api
        self._nursery, self._on_ended = nursery, on_ended
        self._asked: set[str] = set()
        self._reporting: set[str] = set()
        self._reported: set[str] = set()
        """By their uids: a list may be older than the label that says so."""
        self._reporters = trio.CapacityLimiter(REPORTERS)
        self._running: dict[str, Object] = {}
        """This orchestrator's Jobs that had not ended when they were last looked at."""
        self._unreported: dict[str, float] = {}
        """When another orchestrator's Job, which has ended, was first seen untold."""
        self._waiting: dict[str, float] = {}
        """Since when a Job has nothing that runs, or when that was last logged."""

    @property
    def count(self) -> int:
        """Room is the cluster's affair: what has a claim counts, by the ledger."""
        return 0

    async def start(self, work: Work) -> None:
        try:
            wanted = job(self._settings, self._node, work)
        except ConfigError as error:
            self._nursery.start_soon(report_end, self._on_ended, unusable(work, error))
            return
        name = wanted["metadata"]["name"]
        if not (await self._create(wanted) or await self._is_under_way(name) or await self._create(wanted)):
            raise SpawnRefusedError(f"{name} is being removed. It is tried again")

    async def _create(self, wanted: Object) -> bool:
        """Make the Job; False: there is one of its name."""
        try:
            await self._api.call("POST", "jobs", body=wanted)
        except KubernetesError as error:
            if error.status == CONFLICT:
                return False
            raise
        logger.debug("%s is made", wanted["metadata"]["name"])
        return True

    async def _is_under_way(self, name: str) -> bool:
        """Whether the Job of that name will still do its work; one that has ended without having claimed makes room.

        Raises:
            SpawnRefusedError: not yet, for it has to be told of first, or its pod still drains.
        """
        try:
            found = await self._api.call("GET", f"jobs/{name}")
        except KubernetesError as error:
            if error.status == NOT_FOUND:
                return False
            raise
        if "deletionTimestamp" in found["metadata"]:
            raise SpawnRefusedError(f"{name} is being removed, and its pod drains. It is tried again")
        if not is_over(found):
            logger.info("%s is there already", name)
            return True
        if REPORTED_LABEL not in found["metadata"]["labels"]:
            raise SpawnRefusedError(f"{name} has ended, which has yet to be reported. It is tried again")
        await self._delete(name, "Background", uid=found["metadata"]["uid"])
        return False

    async def stop(self, scenario_id: int, epoch: int) -> None:
        name = job_name(scenario_id, epoch)
        if name in self._asked:
            return
        try:
            # Its pod is told SIGTERM and drains; the Job is there until it has.
            if await self._delete(name, "Foreground"):
                logger.info("%s is asked to drain", name)
            self._asked.add(name)
        except KubernetesError as error:
            logger.warning("%s cannot be asked to drain: %s", name, error)

    async def _delete(self, name: str, propagation: str, **preconditions: str) -> bool:
        """Whether there was one."""
        options = {"propagationPolicy": propagation} | ({"preconditions": preconditions} if preconditions else {})
        try:
            await self._api.call("DELETE", f"jobs/{name}", body=options)
        except KubernetesError as error:
            if error.status in {NOT_FOUND, CONFLICT}:
                return False
            raise
        return True

    async def watch(self) -> None:
        """Look at the Jobs for ever, whatever the API server says."""
        pause_seconds = POLL_SECONDS
        while True:
            try:
                await self._look()
                pause_seconds = POLL_SECONDS
            except KubernetesError as error:
                pause_seconds = min(2 * pause_seconds, MAX_POLL_SECONDS)
                logger.warning("Jobs are looked at again in %g s: %s", pause_seconds, error)
            await trio.sleep(pause_seconds)

    async def _look(self) -> None:
        jobs = {
            each["metadata"]["name"]: each
            for each in await self._all("jobs", "batch/v1", f"{OF_RUNNERS},{SCENARIO},{EPOCH},!{REPORTED_LABEL}")
        }
        self._asked &= jobs.keys()
        self._reported &= {each["metadata"]["uid"] for each in jobs.values()}
        ended = [each for each in jobs.values() if is_over(each) and each["metadata"]["uid"] not in self._reported]
        running = {name: each for name, each in jobs.items() if not is_over(each) and self._is_own(each)}
        gone = [each for name, each in self._running.items() if name not in jobs]
        self._running = running
        self._unreported = {
            name: self._unreported.get(name, trio.current_time()) for name in (_name(each) for each in ended)
        }
        for each in ended:
            if self._is_own(each) or trio.current_time() - self._unreported[_name(each)] >= ORPHAN_SECONDS:
                self._start_reporting(each, self._report)
        for each in gone:
            self._start_reporting(each, self._report_deleted)
        await self._log_what_waits()

    def _is_own(self, found: Object) -> bool:
        return bool(found["metadata"]["labels"].get(ORCHESTRATOR) == label_of(self._node))

    async def _all(self, resource: str, version: str, selector: str) -> list[Object]:
        found: list[Object] = []
        parameters = {"labelSelector": selector, "limit": str(PAGE)}
        while True:
            page = await self._api.call("GET", resource, version=version, parameters=parameters)
            found += page["items"]
            if not (more := page["metadata"].get("continue")):
                return found
            parameters["continue"] = more

    async def _pods_of(self, found: Object) -> list[Object]:
        return await self._all("pods", "v1", f"batch.kubernetes.io/job-name={_name(found)}")

    def _start_reporting(self, found: Object, report: Callable[[Object], Awaitable[None]]) -> None:
        """In a task of its own: telling may wait for a ledger or for Kafka, and the next look should not."""
        name = _name(found)
        if name in self._reporting:
            return
        self._reporting.add(name)

        async def reporting() -> None:
            try:
                async with self._reporters:
                    await report(found)
            except (KubernetesError, RunnerError) as error:
                logger.warning("how %s ended is told again: %s", name, error, extra=_of(found))
            finally:
                self._reporting.discard(name)

        self._nursery.start_soon(reporting)

    async def _report(self, found: Object) -> None:
        await self._on_ended(how_it_ended(found, await self._pods_of(found)))
        await self._api.call("PATCH", f"jobs/{_name(found)}", body={"metadata": {"labels": {REPORTED_LABEL: "yes"}}})
        self._reported.add(found["metadata"]["uid"])

    async def _report_deleted(self, found: Object) -> None:
        """Its runner was told SIGTERM and speaks for itself, or else its lease does."""
        scenario_id, epoch = attempt_of(found)
        try:
            await self._on_ended(
                Ended(scenario_id=scenario_id, epoch=epoch, failure=None, detail="its Job was deleted")
            )
        except RunnerError:
            self._running[_name(found)] = found
            raise

    async def _log_what_waits(self) -> None:
        now = trio.current_time()
        idle = [each for each in self._running.values() if not each.get("status", {}).get("ready")]
        self._waiting = {name: self._waiting.get(name, now) for name in map(_name, idle)}
        for each in idle:
            if now - self._waiting[_name(each)] >= WAITING_SECONDS:
                self._waiting[_name(each)] = now
                why = why_waiting(each, await self._pods_of(each))
                logger.warning("%s is not at work yet: %s", _name(each), why, extra=_of(each))


def _of(found: Object) -> dict[str, object]:
    scenario_id, epoch = attempt_of(found)
    return {"scenario_id": scenario_id, "epoch": epoch}


def _name(found: Object) -> str:
    return str(found["metadata"]["name"])

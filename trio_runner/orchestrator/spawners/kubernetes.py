"""The spawner `kubernetes`: a Job for each attempt. A Job that has ended is reported once, and kept for people."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import trio

from trio_runner.base.logs import about
from trio_runner.config.errors import ConfigError
from trio_runner.errors import RunnerError
from trio_runner.orchestrator.spawners.kubernetes_api import KubernetesError, open_api
from trio_runner.orchestrator.spawners.kubernetes_job import (
    EPOCH,
    OF_RUNNERS,
    ORCHESTRATOR,
    REPORTED_LABEL,
    SCENARIO,
    job,
    job_name,
    label_of,
)
from trio_runner.orchestrator.spawners.kubernetes_outcome import attempt_of, how_it_ended, is_over, why_waiting
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
"""The longest pause while the API server does not answer."""

ORPHAN_SECONDS: Final = 30.0
"""A Job that ended this long ago, and that its own orchestrator has not reported, is reported by any other one."""

WAITING_SECONDS: Final = 60.0
"""How long a Job may have no container that runs before that is logged, and how often it is logged then."""

PAGE: Final = 500
REPORTERS: Final = 8

NOT_FOUND: Final = 404
CONFLICT: Final = 409


@asynccontextmanager
async def open_kubernetes(
    config: Config, node: str, on_ended: Callable[[Ended], Awaitable[None]]
) -> AsyncIterator[Spawner]:
    """Start Jobs as `[kubernetes]` says. They outlive the block, and the next block reports those that end in between.

    `on_ended` is called once for each Job. It is called again if it raised RunnerError or was cancelled.
    """
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
        """The uids of Jobs that are reported. A list of Jobs may be older than the label that marks them so."""
        self._reporters = trio.CapacityLimiter(REPORTERS)
        self._running: dict[str, Object] = {}
        """This orchestrator's Jobs that had not ended at the last look, by name."""
        self._unreported: dict[str, float] = {}
        """When a Job that had ended was first seen without the label `REPORTED_LABEL`, by name."""
        self._waiting: dict[str, float] = {}
        """Since when a Job has no container that runs, or when that was last logged, by name."""

    @property
    def count(self) -> int:
        """Always 0: the ledger counts the runners that have a claim, and the cluster limits the others."""
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
        """Create the Job; False: a Job of its name exists."""
        try:
            await self._api.call("POST", "jobs", body=wanted)
        except KubernetesError as error:
            if error.status == CONFLICT:
                return False
            raise
        logger.debug("%s is created", wanted["metadata"]["name"])
        return True

    async def _is_under_way(self, name: str) -> bool:
        """Whether the Job of that name still does its work; a Job that has ended and is reported is deleted.

        A Job that has ended is found here only if its runner never claimed the attempt, which is due again then.

        Raises:
            SpawnRefusedError: The Job has ended and is not reported yet, or its pod still drains.
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
            logger.info("%s exists already", name)
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
            # The pod gets SIGTERM and drains. "Foreground" keeps the Job until the pod has ended.
            if await self._delete(name, "Foreground"):
                logger.info("%s is asked to drain", name)
            self._asked.add(name)
        except KubernetesError as error:
            logger.warning("%s cannot be asked to drain: %s", name, error)

    async def _delete(self, name: str, propagation: str, **preconditions: str) -> bool:
        """Whether the Job existed."""
        options = {"propagationPolicy": propagation} | ({"preconditions": preconditions} if preconditions else {})
        try:
            await self._api.call("DELETE", f"jobs/{name}", body=options)
        except KubernetesError as error:
            if error.status in {NOT_FOUND, CONFLICT}:
                return False
            raise
        return True

    async def watch(self) -> None:
        """Look at the Jobs for ever; an error of the API server makes the pauses longer."""
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
        """Start to report the Jobs that have ended or were deleted, and log those that wait."""
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
        await self._log_waiting()

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
        """Call `report` in a task of its own: it may wait for the ledger or Kafka, and the next look need not."""
        name = _name(found)
        if name in self._reporting:
            return
        self._reporting.add(name)

        async def reporting() -> None:
            scenario_id, epoch = attempt_of(found)
            with about(scenario_id=scenario_id, epoch=epoch):
                try:
                    async with self._reporters:
                        await report(found)
                except (KubernetesError, RunnerError) as error:
                    logger.warning("the end of %s is not reported yet, and is tried again: %s", name, error)
                finally:
                    self._reporting.discard(name)

        self._nursery.start_soon(reporting)

    async def _report(self, found: Object) -> None:
        await self._on_ended(how_it_ended(found, await self._pods_of(found)))
        await self._api.call("PATCH", f"jobs/{_name(found)}", body={"metadata": {"labels": {REPORTED_LABEL: "yes"}}})
        self._reported.add(found["metadata"]["uid"])

    async def _report_deleted(self, found: Object) -> None:
        """The runner got SIGTERM and reports itself. If it does not, its lease ends."""
        scenario_id, epoch = attempt_of(found)
        try:
            await self._on_ended(
                Ended(scenario_id=scenario_id, epoch=epoch, failure=None, detail="its Job was deleted")
            )
        except RunnerError:
            self._running[_name(found)] = found
            raise

    async def _log_waiting(self) -> None:
        now = trio.current_time()
        idle = [each for each in self._running.values() if not each.get("status", {}).get("ready")]
        self._waiting = {name: self._waiting.get(name, now) for name in map(_name, idle)}
        for each in idle:
            if now - self._waiting[_name(each)] >= WAITING_SECONDS:
                self._waiting[_name(each)] = now
                why = why_waiting(each, await self._pods_of(each))
                scenario_id, epoch = attempt_of(each)
                with about(scenario_id=scenario_id, epoch=epoch):
                    logger.warning("%s is not at work yet: %s", _name(each), why)


def _name(found: Object) -> str:
    return str(found["metadata"]["name"])

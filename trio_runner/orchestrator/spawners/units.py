"""Runners as systemd units: they outlive the orchestrator, and each unit reports its runner's death itself."""

from __future__ import annotations

import dataclasses
import errno
import logging
import signal
import threading
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from trio_runner.base.files import write_private
from trio_runner.base.logs import about
from trio_runner.base.threads import bounded
from trio_runner.config.errors import ConfigError
from trio_runner.config.load import load_config
from trio_runner.errors import REPORTED, ErrorCode, ExitCode
from trio_runner.failure.unreported import cause_of_death
from trio_runner.model import Failure
from trio_runner.orchestrator.spawners.runner_config import as_toml, runner_config
from trio_runner.orchestrator.spawners.spawner import Ended, SpawnRefusedError, report_end, unusable
from trio_runner.orchestrator.spawners.systemctl import systemctl

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_runner.config.load import Config
    from trio_runner.database.backlog import Work

logger = logging.getLogger(__name__)

T = TypeVar("T")

REFUSED_SECONDS: Final = 5.0
"""The shortest pause after the service manager has refused an answer."""

FILE_SECONDS: Final = 5.0

WRITTEN_BY: Final = "# Written by trio-runner orchestrate, and removed when the runner has ended."
"""The first line of a config. A file without it was written by a person, and its unit is not the orchestrator's."""

PROPERTIES: Final = "Id,ActiveState,Job,Result,ExecMainCode,ExecMainStatus"


@asynccontextmanager
async def open_units(
    config: Config, template: Config, node: str, on_ended: Callable[[Ended], Awaitable[None]]
) -> AsyncIterator[UnitSpawner]:
    """A spawner whose runners outlive the block; the next orchestrator on this machine finds them again."""
    async with trio.open_nursery() as nursery:
        spawner = UnitSpawner(config, template, node, nursery, on_ended)
        nursery.start_soon(spawner.watch)
        yield spawner
        nursery.cancel_scope.cancel()


class UnitSpawner:
    """The instances of the unit template whose configs an orchestrator wrote; made by `open_units`.

    The service manager is asked by `systemctl` and not over D-Bus. It finds the system's and the user's
    manager, needs no bus as root, says in words why it refuses something, and shows all units in 10 ms.
    """

    def __init__(
        self,
        config: Config,
        template: Config,
        node: str,
        nursery: trio.Nursery,
        on_ended: Callable[[Ended], Awaitable[None]],
    ) -> None:
        """Each end of a runner is reported in a task of its own in `nursery`."""
        self._settings, self._poll_seconds = config.systemd, config.orchestrator.poll_seconds
        self._directory = Path(config.systemd.config_dir)
        self._template, self._node = template, node
        self._nursery, self._on_ended = nursery, on_ended
        # One task at a time: a unit that starts while the manager lists the living ones would seem to have ended.
        self._lock = trio.Lock()
        self._disk = threading.Lock()
        self._epochs: dict[int, int] | None = None
        """The epoch of each living runner, by scenario; None until the configs on the disk were read."""
        self._seen: dict[int, dict[str, str]] = {}
        """The properties of each unit at the last look."""
        self._next: dict[int, Work] = {}
        """The attempts that wait for an earlier attempt's runner to end."""
        self._asked: set[tuple[int, int]] = set()

    @property
    def count(self) -> int:
        """How many units live, as far as is known."""
        return len(self._epochs or ())

    async def start(self, work: Work) -> None:
        """Start a runner now, or as soon as an earlier attempt's runner, which still drains, has ended."""
        async with self._lock:
            epochs = await self._known()
            epoch = epochs.get(work.scenario_id)
            if epoch is None:
                await self._start(epochs, work)
            elif epoch != work.epoch:
                self._next[work.scenario_id] = work

    async def stop(self, scenario_id: int, epoch: int) -> None:
        """Run `systemctl stop` for the attempt's unit, once."""
        async with self._lock:
            self._next.pop(scenario_id, None)
            if (scenario_id, epoch) in self._asked:
                return
            try:
                if (await self._known()).get(scenario_id) != epoch:
                    return
                await systemctl(self._settings.manager, "stop", "--no-block", self._unit(scenario_id))
            except SpawnRefusedError as error:
                logger.warning("the runner cannot be asked to drain: %s", error)
            else:
                self._asked.add((scenario_id, epoch))

    async def watch(self) -> None:
        """Ask the manager again and again which units live, and report each end."""
        while True:
            pause = self._poll_seconds
            try:
                async with self._lock:
                    await self._look(await self._known())
            except SpawnRefusedError as error:
                pause = max(pause, REFUSED_SECONDS)
                logger.warning("it is not known which runners live: %s. It is tried again in %g s", error, pause)
            await trio.sleep(pause)

    async def _known(self) -> dict[int, int]:
        """The epochs of the runners that live here. At the first call they are read from the configs on the disk."""
        if self._epochs is None:
            living = await self._living()
            found = await self._on_disk(lambda: _epochs_in(self._directory))
            self._epochs = {scenario_id: epoch for scenario_id, epoch in found.items() if scenario_id in living}
            for scenario_id in found.keys() - living.keys():
                # This runner ended while no orchestrator watched. If it had a claim, its unit has reported the end, or
                # its lease ends.
                await self._remove(scenario_id)
            if self._epochs:
                scenarios = ", ".join(map(str, sorted(self._epochs)))
                logger.info("runners of a former orchestrator go on, of the scenarios %s", scenarios)
        return self._epochs

    async def _look(self, epochs: dict[int, int]) -> None:
        """Report the runners that have ended since the last look, and start the attempts that waited for that."""
        if not epochs:
            return
        living = await self._living()
        before, self._seen = self._seen, living
        for scenario_id in epochs.keys() - living.keys():
            epoch = epochs.pop(scenario_id)
            self._asked.discard((scenario_id, epoch))
            failure, detail = _how_it_ended(self._unit(scenario_id), before.get(scenario_id, {}))
            ended = Ended(scenario_id=scenario_id, epoch=epoch, failure=failure if epoch else None, detail=detail)
            self._nursery.start_soon(report_end, self._on_ended, ended)
            work = self._next.pop(scenario_id, None)
            if work is None:
                await self._remove(scenario_id)
                continue
            with about(scenario_id=scenario_id, epoch=work.epoch):
                try:
                    await self._start(epochs, work)
                except SpawnRefusedError as error:
                    # The caller of `start` has returned long ago. The attempt is due again after
                    # `orchestrator.start_timeout_seconds`.
                    logger.warning("not started: %s", error)

    async def _start(self, epochs: dict[int, int], work: Work) -> None:
        place = Path(self._template.runner.data_dir) / str(work.scenario_id)
        path = self._path(work.scenario_id)
        try:
            text = as_toml(runner_config(self._template, work, data_dir=place, node=self._node))
        except ConfigError as error:
            self._nursery.start_soon(report_end, self._on_ended, unusable(work, error))
            return
        if await self._on_disk(lambda: path.exists() and not _is_ours(path)):
            raise SpawnRefusedError(f"{path} was written by hand; move it away, or submit the video under another id")
        await self._on_disk(lambda: write_private(path, f"{WRITTEN_BY}\n{text}".encode()))
        try:
            await systemctl(self._settings.manager, "start", "--no-block", self._unit(work.scenario_id))
        except SpawnRefusedError:
            await self._remove(work.scenario_id)  # noqa: ASYNC120 - a caller that is cancelled here starts nothing more
            raise
        epochs[work.scenario_id] = work.epoch

    async def _living(self) -> dict[int, dict[str, str]]:
        """The properties of each instance that runs, or is about to, by scenario."""
        pattern = f"{self._settings.unit}*.service"
        shown = await systemctl(self._settings.manager, "show", f"--property={PROPERTIES}", pattern)
        living = {}
        for paragraph in shown.split("\n\n"):
            unit = dict(line.split("=", 1) for line in paragraph.splitlines())
            instance = unit.get("Id", "").removeprefix(self._settings.unit).removesuffix(".service")
            if instance.isdecimal() and (unit["ActiveState"] not in {"inactive", "failed"} or "Job" in unit):
                living[int(instance)] = unit
        return living

    async def _remove(self, scenario_id: int) -> None:
        path = self._path(scenario_id)
        try:
            await self._on_disk(lambda: path.unlink(missing_ok=True))
        except SpawnRefusedError as error:
            logger.warning("the config of a runner that has ended stays: %s", error)

    async def _on_disk(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread, for at most `FILE_SECONDS`; raises SpawnRefusedError where that fails."""

        def alone() -> T:
            # A call that was left behind at its deadline still changes files when the disk answers at last. No later
            # call begins before that.
            if not self._disk.acquire(blocking=False):
                raise OSError(errno.EBUSY, "the disk has not answered an earlier call yet")
            try:
                return function()
            finally:
                self._disk.release()

        try:
            return await bounded(alone, seconds=FILE_SECONDS)
        except OSError as error:
            remedy = "let the orchestrator's user write there, or change systemd.config_dir"
            raise SpawnRefusedError(f"{self._directory}: {error.strerror or error}; {remedy}") from error

    def _unit(self, scenario_id: int) -> str:
        return f"{self._settings.unit}{scenario_id}.service"

    def _path(self, scenario_id: int) -> Path:
        return self._directory / f"{scenario_id}.toml"


def _epochs_in(directory: Path) -> dict[int, int]:
    files = [path for path in directory.glob("[1-9]*.toml") if path.stem.isdecimal()]
    return {int(path.stem): _epoch_of(path) for path in files if _is_ours(path)}


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline(200).rstrip() == WRITTEN_BY.encode()


def _epoch_of(path: Path) -> int:
    try:
        return load_config(path, None).scenario.epoch
    except ConfigError as error:
        # Another version may have written the file, and its unit counts all the same. No attempt has the number 0.
        logger.warning("%s: %s", path, error)
        return 0


def _how_it_ended(unit: str, seen: dict[str, str]) -> tuple[Failure | None, str]:
    """The failure to report, if nobody has reported this end yet, and the end in words.

    A unit reports its own runner's death, and `report_ended` looks whether it has. The units that cannot are those that
    could not even start, or not read their config. Their exit code is known only if the manager was asked while the
    unit ended: the manager forgets it a moment later (CollectMode=).
    """
    how, status = {"1": "exited", "2": "killed", "3": "dumped"}.get(seen.get("ExecMainCode", ""), ""), ""
    if how:
        status = seen["ExecMainStatus"]
    detail = f"{how} {status}" if how else "gone"
    if how == "exited" and status in map(str, REPORTED - {ExitCode.CONFIG}):
        return None, detail
    if how == "killed" and status == str(signal.SIGTERM.value):
        # `cause_of_death` expects a name, as in the environment of ExecStopPost=.
        status = "TERM"
    failure = cause_of_death({"SERVICE_RESULT": seen.get("Result", ""), "EXIT_CODE": how, "EXIT_STATUS": status})
    # 78: the runner could not use a config that the orchestrator could use, so the fault is this machine's.
    failure = failure or Failure(code=ErrorCode.INTERNAL, type="Ended", message="could not use its config")
    return dataclasses.replace(failure, message=f"{failure.message}; journalctl --unit={unit} says more"), detail

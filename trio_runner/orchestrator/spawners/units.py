"""Runners as units of systemd: they outlive the orchestrator, and their deaths are reported by their own unit file."""

from __future__ import annotations

import dataclasses
import logging
import os
import signal
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from trio_runner.base.files import write_private
from trio_runner.config.errors import ConfigError
from trio_runner.config.load import load_config
from trio_runner.errors import REPORTED, ErrorCode, ExitCode
from trio_runner.failure.unreported import cause_of_death
from trio_runner.model import Failure
from trio_runner.orchestrator.spawners.runner_config import as_toml, runner_config
from trio_runner.orchestrator.spawners.spawner import Ended, SpawnRefusedError, report_end, unusable

if TYPE_CHECKING:
    import subprocess
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_runner.config.load import Config
    from trio_runner.database.backlog import Work

logger = logging.getLogger(__name__)

T = TypeVar("T")

MANAGER_SECONDS: Final = 10.0
"""How long the manager is given for an answer. Nothing that is asked of it here waits for a unit."""

REFUSED_SECONDS: Final = 5.0
FILE_SECONDS: Final = 5.0

WRITTEN_BY: Final = "# Written by trio-runner orchestrate, and removed when the runner has ended."
"""The first line of a config. A file without it is somebody's own, and so is its unit."""

PROPERTIES: Final = "Id,ActiveState,Job,Result,ExecMainCode,ExecMainStatus"

NOT_ALLOWED, NOT_INSTALLED = 4, 5
"""What `systemctl` exits with, by the codes of LSB; where polkit would ask for a password it is 1, and words say so."""

ADVICE: Final = {
    NOT_ALLOWED: "install systemd/trio-runner-orchestrator.rules into /etc/polkit-1/rules.d, or run as root",
    NOT_INSTALLED: "install systemd/trio-runner@.service into /etc/systemd/system and run `systemctl daemon-reload`, "
    "or change systemd.unit",
}


@asynccontextmanager
async def open_units(
    config: Config, template: Config, node: str, on_ended: Callable[[Ended], Awaitable[None]]
) -> AsyncIterator[UnitSpawner]:
    """A spawner whose runners go on when the block ends; the next orchestrator on this machine finds them again."""
    async with trio.open_nursery() as nursery:
        spawner = UnitSpawner(config, template, node, nursery, on_ended)
        nursery.start_soon(spawner.watch)
        yield spawner
        nursery.cancel_scope.cancel()


class UnitSpawner:
    """The instances of the template whose configs an orchestrator wrote; made by `open_units`.

    By way of `systemctl` and not of D-Bus: it finds the system's and the user's manager, needs no bus where it runs as
    root, and says in words what is refused. Asking for all units takes it 10 ms.
    """

    def __init__(
        self,
        config: Config,
        template: Config,
        node: str,
        nursery: trio.Nursery,
        on_ended: Callable[[Ended], Awaitable[None]],
    ) -> None:
        """What ends is told in a task of its own in `nursery`."""
        self._settings, self._poll_seconds = config.systemd, config.orchestrator.poll_seconds
        self._directory = Path(config.systemd.config_dir)
        self._template, self._node = template, node
        self._nursery, self._on_ended = nursery, on_ended
        # A unit that was started after the manager was asked would be missing in the answer: one task at a time.
        self._lock = trio.Lock()
        self._epochs: dict[int, int] | None = None
        self._seen: dict[int, dict[str, str]] = {}
        self._next: dict[int, Work] = {}
        self._asked: set[tuple[int, int]] = set()

    @property
    def count(self) -> int:
        """How many units are known to live."""
        return len(self._epochs or ())

    async def start(self, work: Work) -> None:
        """Start a runner; where an earlier attempt's is still leaving, as soon as that has left."""
        async with self._lock:
            epochs = await self._known()
            epoch = epochs.get(work.scenario_id)
            if epoch is None:
                await self._start(epochs, work)
            elif epoch != work.epoch:
                self._next[work.scenario_id] = work

    async def stop(self, scenario_id: int, epoch: int) -> None:
        """`systemctl stop`, once."""
        async with self._lock:
            self._next.pop(scenario_id, None)
            if (scenario_id, epoch) in self._asked:
                return
            try:
                if (await self._known()).get(scenario_id) != epoch:
                    return
                await self._systemctl("stop", "--no-block", self._unit(scenario_id))
            except SpawnRefusedError as error:
                logger.warning("not asked to leave: %s", error, extra={"scenario_id": scenario_id, "epoch": epoch})
            else:
                self._asked.add((scenario_id, epoch))

    async def watch(self) -> None:
        """Ask the manager again and again which units live; tell of each that does not any more."""
        while True:
            pause = self._poll_seconds
            try:
                async with self._lock:
                    await self._look(await self._known())
            except SpawnRefusedError as error:
                pause = max(pause, REFUSED_SECONDS)
                logger.warning("which runners live is not known: %s", error, extra={"again_in_seconds": pause})
            await trio.sleep(pause)

    async def _known(self) -> dict[int, int]:
        """The epoch of each runner that an orchestrator has started here and that has not been seen to end."""
        if self._epochs is None:
            living = await self._living()
            files = self._directory.glob("[1-9]*.toml")
            found = await self._on_disk(
                lambda: {int(path.stem): _epoch_of(path) for path in files if path.stem.isdecimal() and _is_ours(path)}
            )
            self._epochs = {scenario_id: epoch for scenario_id, epoch in found.items() if scenario_id in living}
            for scenario_id in found.keys() - living.keys():
                # It ended while nobody watched. Its unit has reported it, or its lease tells, or nobody has claimed it.
                await self._remove(scenario_id)
            if self._epochs:
                logger.info("runners of a former orchestrator go on", extra={"scenarios": sorted(self._epochs)})
        return self._epochs

    async def _look(self, epochs: dict[int, int]) -> None:
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
            try:
                await self._start(epochs, work)
            except SpawnRefusedError as error:
                # Nobody is left to be told; it is due once more when the time for its start is over.
                logger.warning("not started: %s", error, extra={"scenario_id": scenario_id, "epoch": work.epoch})

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
            await self._systemctl("start", "--no-block", self._unit(work.scenario_id))
        except SpawnRefusedError:
            await self._remove(work.scenario_id)  # noqa: ASYNC120 - whoever is cancelled here starts nothing more
            raise
        epochs[work.scenario_id] = work.epoch

    async def _living(self) -> dict[int, dict[str, str]]:
        """What the manager knows of each instance that runs, or is about to."""
        pattern = f"{self._settings.unit}*.service"
        said = await self._systemctl("show", f"--property={PROPERTIES}", pattern)
        living = {}
        for paragraph in said.split("\n\n"):
            unit = dict(line.split("=", 1) for line in paragraph.splitlines())
            instance = unit.get("Id", "").removeprefix(self._settings.unit).removesuffix(".service")
            if instance.isdecimal() and (unit["ActiveState"] not in {"inactive", "failed"} or "Job" in unit):
                living[int(instance)] = unit
        return living

    async def _systemctl(self, *arguments: str) -> str:
        manager = f"--{self._settings.manager}"
        # What it says is recognised by its words; and it is not the one from whom the manager wants to hear.
        environ = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"} | {"LC_ALL": "C"}
        try:
            with trio.fail_after(MANAGER_SECONDS):
                done = await trio.run_process(
                    ["systemctl", manager, "--no-ask-password", "--no-pager", *arguments],
                    capture_stdout=True,
                    capture_stderr=True,
                    check=False,
                    env=environ,
                )
        except trio.TooSlowError:
            raise SpawnRefusedError(f"systemctl {manager} has not answered within {MANAGER_SECONDS:g} s") from None
        except OSError as error:
            remedy = 'install systemd, or change orchestrator.spawner to "process"'
            raise SpawnRefusedError(f"systemctl cannot be run: {error.strerror}; {remedy}") from error
        if done.returncode:
            raise SpawnRefusedError(_refusal(done))
        return done.stdout.decode(errors="replace")

    async def _remove(self, scenario_id: int) -> None:
        path = self._path(scenario_id)
        try:
            await self._on_disk(lambda: path.unlink(missing_ok=True))
        except SpawnRefusedError as error:
            logger.warning("left behind: %s", error)

    async def _on_disk(self, function: Callable[[], T]) -> T:
        try:
            with trio.fail_after(FILE_SECONDS):
                return await trio.to_thread.run_sync(function, abandon_on_cancel=True)
        except (OSError, trio.TooSlowError) as error:
            why = getattr(error, "strerror", None) or "the disk does not answer"
            remedy = "let the orchestrator's user write there, or change systemd.config_dir"
            raise SpawnRefusedError(f"{self._directory}: {why}; {remedy}") from error

    def _unit(self, scenario_id: int) -> str:
        return f"{self._settings.unit}{scenario_id}.service"

    def _path(self, scenario_id: int) -> Path:
        return self._directory / f"{scenario_id}.toml"


def _is_ours(path: Path) -> bool:
    with path.open("rb") as file:
        return file.readline(200).rstrip() == WRITTEN_BY.encode()


def _epoch_of(path: Path) -> int:
    try:
        return load_config(path, None).scenario.epoch
    except ConfigError as error:
        # Of another version, perhaps. Its unit is there all the same; 0 is no attempt's number.
        logger.warning("%s: %s", path, error)
        return 0


def _how_it_ended(unit: str, seen: dict[str, str]) -> tuple[Failure | None, str]:
    """What the ledger is told where nobody else has told it, and in words what was seen.

    A unit reports its own runner's death, and whoever takes this failure looks whether it has. What is left over is a
    unit that could not even start, or read its config. What such a one ended with is seen only where the manager was
    asked while it was ending; a moment later it is forgotten (CollectMode=).
    """
    how, status = {"1": "exited", "2": "killed", "3": "dumped"}.get(seen.get("ExecMainCode", ""), ""), ""
    if how:
        status = seen["ExecMainStatus"]
    detail = f"{how} {status}" if how else "gone"
    if how == "exited" and status in map(str, REPORTED - {ExitCode.CONFIG}):
        return None, detail
    if how == "killed" and status == str(signal.SIGTERM.value):
        # The environment of ExecStopPost= has signals by their names.
        status = "TERM"
    failure = cause_of_death({"SERVICE_RESULT": seen.get("Result", ""), "EXIT_CODE": how, "EXIT_STATUS": status})
    # 78: it could not use a config that the orchestrator could, which says something of this machine.
    failure = failure or Failure(code=ErrorCode.INTERNAL, type="Ended", message="could not use its config")
    return dataclasses.replace(failure, message=f"{failure.message}; journalctl --unit={unit} says more"), detail


def _refusal(done: subprocess.CompletedProcess[bytes]) -> str:
    said = " ".join(done.stderr.decode(errors="replace").split()) or f"systemctl exits with {done.returncode}"
    advice = ADVICE.get(done.returncode, "")
    if "authentication required" in said:
        advice = ADVICE[NOT_ALLOWED]
    elif "connect to bus" in said:
        advice = "is systemd running, and systemd.manager right?"
    return f"{said.rstrip('.')}; {advice}" if advice else said

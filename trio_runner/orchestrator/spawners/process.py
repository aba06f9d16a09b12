"""Runners as child processes: each with a config of its own, its death reported, and none left behind."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from trio_runner.base import leash
from trio_runner.base.files import write_private
from trio_runner.base.text import signal_name
from trio_runner.config.errors import ConfigError
from trio_runner.config.load import load_config
from trio_runner.errors import ErrorCode, ExitCode, RunnerError
from trio_runner.failure.marker import begun_of
from trio_runner.failure.spool import spool_of
from trio_runner.failure.unreported import cause_of_death, report_dead_processes
from trio_runner.model import Failure
from trio_runner.orchestrator.spawners.runner_config import as_toml, runner_config
from trio_runner.orchestrator.spawners.spawner import Ended, SpawnRefusedError, report_end, unusable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_runner.config.load import Config
    from trio_runner.database.backlog import Work

logger = logging.getLogger(__name__)

REPORT_SECONDS: Final = 45.0
"""How long reporting one death may take: connecting 5, the ledger 3 and 10, Kafka 15 and 2, the spool 3."""

ABORT_SECONDS: Final = 10.0
"""How long a runner that is told to end at once has for its report, before it is killed and reported in its place."""

KILL_SECONDS: Final = 5.0
FILE_SECONDS: Final = 5.0
LOCKED_SECONDS: Final = 2.0
"""How long a directory that somebody has is left alone before it is tried again."""


@asynccontextmanager
async def open_processes(
    config: Config,
    template: Config,
    node: str,
    on_ended: Callable[[Ended], Awaitable[None]],
    second_signal: trio.Event | None = None,
) -> AsyncIterator[ProcessSpawner]:
    """A spawner whose runners drain when the block ends, and are killed if they have not after `stop_timeout_seconds`.

    Once `second_signal` is set, runners that drain are told to end at once, and killed after `ABORT_SECONDS`.

    When the orchestrator dies in whatever way, the kernel sends its runners SIGTERM: they drain, report themselves as
    interrupted, and any orchestrator goes on from their last frame. So nothing has to be adopted. What was killed
    together with its orchestrator is reported by the next one that starts on this data directory.
    """
    directory = Path(config.runner.data_dir) / "runners"
    async with _alone_in(directory), trio.open_nursery() as nursery:
        spawner = ProcessSpawner(directory, template, node, nursery, on_ended)
        nursery.start_soon(spawner.report_left_behind)
        try:
            yield spawner
        finally:
            # The tasks that wait for the runners are not cancelled: each has a death to report.
            with trio.move_on_after(config.orchestrator.stop_timeout_seconds, shield=True) as patience:
                spawner.stop_all(signal.SIGTERM)
                async with trio.open_nursery() as draining:
                    if second_signal is not None:
                        draining.start_soon(_abort_when, second_signal, spawner, patience)
                    await spawner.all_ended()
                    draining.cancel_scope.cancel()
            if patience.cancelled_caught and spawner.count:
                logger.warning("%d runners did not leave and are killed", spawner.count)
                with trio.move_on_after(KILL_SECONDS + REPORT_SECONDS, shield=True):
                    spawner.stop_all(signal.SIGKILL)
                    await spawner.all_ended()
            spawner.give_up()
            nursery.cancel_scope.cancel()


async def _abort_when(second_signal: trio.Event, spawner: ProcessSpawner, patience: trio.CancelScope) -> None:
    await second_signal.wait()
    logger.warning("a second signal: %d runners are told to end at once", spawner.count)
    patience.deadline = min(patience.deadline, trio.current_time() + ABORT_SECONDS)
    spawner.abort_all()


@asynccontextmanager
async def _alone_in(directory: Path) -> AsyncIterator[None]:
    """Wait for a lock on the directory: two orchestrators in one would overwrite each other's runners' configs.

    One that waits takes no work that another could do, and does not get READY.
    """
    held: list[int] = []

    def lock() -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(directory, os.O_RDONLY | os.O_CLOEXEC)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(descriptor)
            raise
        # Not by a returned value: where the disk was slow nobody waits for that any more.
        held.append(descriptor)

    try:
        while not held:
            try:
                with trio.fail_after(FILE_SECONDS):
                    await trio.to_thread.run_sync(lock, abandon_on_cancel=True)
            except (OSError, trio.TooSlowError) as error:
                why = str(error) or "the disk does not answer"
                if isinstance(error, BlockingIOError):
                    why = "another orchestrator's runners live there; give each a runner.data_dir of its own"
                logger.warning("nothing is started before %s can be had: %s", directory, why)
                await trio.sleep(LOCKED_SECONDS)
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)


class ProcessSpawner:
    """The children of this process; made by `open_processes`."""

    def __init__(
        self,
        directory: Path,
        template: Config,
        node: str,
        nursery: trio.Nursery,
        on_ended: Callable[[Ended], Awaitable[None]],
    ) -> None:
        """Every runner has a directory of its own in `directory`; its waiting task lives in `nursery`."""
        self._directory, self._template, self._node = directory, template, node
        self._nursery, self._on_ended = nursery, on_ended
        self._processes: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}
        self._asked: set[int] = set()
        self._starting: set[int] = set()
        self._left_behind: set[int] = set()
        self._shields: set[trio.CancelScope] = set()
        self._changed = trio.Event()

    @property
    def count(self) -> int:
        """How many runners live, or are being reported."""
        return len(self._processes)

    async def start(self, work: Work) -> None:
        """Start a runner, unless one of this scenario still lives here."""
        if work.scenario_id in self._processes:
            epoch, process = self._processes[work.scenario_id]
            if epoch != work.epoch:
                # Its death is in the ledger already: it was frozen, perhaps, and would never find out.
                process.kill()
            raise SpawnRefusedError(f"a runner of scenario {work.scenario_id} still lives on {self._node}")
        if work.scenario_id in self._left_behind:
            raise SpawnRefusedError(f"the last runner of scenario {work.scenario_id} on {self._node} is being reported")
        place = self._directory / str(work.scenario_id)
        try:
            config = runner_config(self._template, work, data_dir=place, node=self._node)
        except ConfigError as error:
            self._nursery.start_soon(report_end, self._on_ended, unusable(work, error))
            return
        # From here on the directory is this runner's: whoever reports what was left behind would remove it.
        self._starting.add(work.scenario_id)
        try:
            with trio.fail_after(FILE_SECONDS):
                path = await trio.to_thread.run_sync(_write_config, config, place, abandon_on_cancel=True)
            invocation = uuid.uuid4()
            process = self._popen(path, place, invocation.hex)
        except (OSError, trio.TooSlowError) as error:
            raise SpawnRefusedError(f"{place}: {error or 'the disk does not answer'}") from error
        finally:
            self._starting.discard(work.scenario_id)
        self._processes[work.scenario_id] = (work.epoch, process)
        self._nursery.start_soon(self._wait, work, config, process, invocation.hex)

    async def stop(self, scenario_id: int, epoch: int) -> None:
        """SIGTERM, once: a second one would cut the draining short."""
        of_epoch, process = self._processes.get(scenario_id, (0, None))
        if process is not None and of_epoch == epoch and process.pid not in self._asked:
            self._asked.add(process.pid)
            process.terminate()

    def stop_all(self, number: signal.Signals) -> None:
        """Signal every runner."""
        for _, process in self._processes.values():
            if number is not signal.SIGTERM or process.pid not in self._asked:
                self._asked.add(process.pid)
                process.send_signal(number)

    def abort_all(self) -> None:
        """SIGTERM once more: a runner that drains ends at once, and reports that."""
        for _, process in self._processes.values():
            process.terminate()

    async def all_ended(self) -> None:
        """Wait until no runner is left, and each end is told."""
        while self._processes or self._shields:
            await self._changed.wait()

    def give_up(self) -> None:
        """Wait no longer for what ought to have ended and been reported by now."""
        for shield in self._shields:
            shield.cancel()

    async def report_left_behind(self) -> None:
        """Report the runners that a former orchestrator on this directory left dead."""
        for path in sorted(self._directory.glob("*/runner.toml")):
            if path.parent.name in map(str, self._processes.keys() | self._starting):
                continue
            try:
                config = load_config(path)
            except ConfigError as error:
                logger.warning("%s is no runner's config: %s", path, error)
                continue
            self._left_behind.add(config.scenario.id)
            try:
                # Nobody saw it end. One that lives keeps its marker locked, and reports itself.
                await self._report(config, {"RUNTIME_DIRECTORY": str(path.parent)})
                if not any(path.parent.glob("attempt-*")):
                    await trio.to_thread.run_sync(partial(shutil.rmtree, path.parent, ignore_errors=True))
            finally:
                self._left_behind.discard(config.scenario.id)

    def _popen(self, path: Path, place: Path, invocation: str) -> subprocess.Popen[bytes]:
        environ = {name: value for name, value in os.environ.items() if name not in _OF_A_SERVICE}
        # On the thread that runs Trio, and not by Trio's own means: the kernel ties a leash to the thread that spawned.
        return subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(Path(leash.__file__)), "--signal", "TERM", "--"),
                *(sys.executable, "-m", "trio_runner", "run", str(path)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # Ctrl-C in a terminal is for the orchestrator, which lets its runners drain.
            start_new_session=True,
            env=environ | {"RUNTIME_DIRECTORY": str(place), "INVOCATION_ID": invocation},
        )

    async def _wait(self, work: Work, config: Config, process: subprocess.Popen[bytes], invocation: str) -> None:
        # Shielded: when the orchestrator ends, its runners do, and each end is reported. `give_up` bounds it.
        with trio.CancelScope(shield=True) as shield:
            self._shields.add(shield)
            try:
                await self._until_reported(work, config, process, invocation)
            finally:
                self._shields.discard(shield)
                self._changed.set()
                self._changed = trio.Event()

    async def _until_reported(
        self, work: Work, config: Config, process: subprocess.Popen[bytes], invocation: str
    ) -> None:
        descriptor = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        detail, seen = _how_it_ended(process.wait())
        seen |= {"RUNTIME_DIRECTORY": str(config.runner.data_dir), "INVOCATION_ID": invocation}
        if cause_of_death(seen) is not None:
            await self._report(config, seen)
        # It could not even read where to report to.
        failure = _UNREADABLE if seen["EXIT_STATUS"] == str(ExitCode.CONFIG) else None
        if failure is None:
            await trio.to_thread.run_sync(partial(shutil.rmtree, config.runner.data_dir, ignore_errors=True))
        self._asked.discard(process.pid)
        del self._processes[work.scenario_id]
        await report_end(
            self._on_ended, Ended(scenario_id=work.scenario_id, epoch=work.epoch, failure=failure, detail=detail)
        )

    async def _report(self, config: Config, seen: dict[str, str]) -> None:
        spool = spool_of(config)
        try:
            with trio.fail_after(REPORT_SECONDS):
                await report_dead_processes(config, spool, seen)
        except (RunnerError, trio.TooSlowError) as error:
            logger.warning("scenario %d: its lease will tell of it: %s", config.scenario.id, error)
        finally:
            spool.close()


_OF_A_SERVICE: Final = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "RUNTIME_DIRECTORY", "INVOCATION_ID"}
)
"""What a service manager tells the orchestrator about itself."""

_UNREADABLE: Final = Failure(
    code=ErrorCode.CONFIG_INVALID, type="ConfigError", message="the runner could not use its config; its log says why"
)


def _write_config(config: Config, place: Path) -> Path:
    """Readable by this user alone, as its directory is."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    begun_of(place, config.scenario.id).unlink(missing_ok=True)
    path = place / "runner.toml"
    write_private(path, as_toml(config).encode())
    return path


def _how_it_ended(code: int) -> tuple[str, dict[str, str]]:
    """In words, and as systemd would put it into the environment of ExecStopPost= (systemd.exec(5))."""
    if code < 0:
        name = signal_name(-code)
        return f"signal {name}", {"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": name}
    result = "exit-code" if code else "success"
    return f"exit code {code}", {"SERVICE_RESULT": result, "EXIT_CODE": "exited", "EXIT_STATUS": str(code)}

"""Runners as child processes: each has a config of its own, and each death is reported."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import uuid
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from trio_runner.base import leash
from trio_runner.base.logs import about
from trio_runner.base.text import signal_name
from trio_runner.config.errors import ConfigError
from trio_runner.errors import ErrorCode, ExitCode, RunnerError
from trio_runner.failure.spool import open_spool
from trio_runner.failure.unreported import cause_of_death, report_invocation
from trio_runner.model import Failure
from trio_runner.orchestrator.spawners.runner_config import runner_config
from trio_runner.orchestrator.spawners.runner_directories import RunnerDirectories
from trio_runner.orchestrator.spawners.spawner import Ended, SpawnRefusedError, report_end, unusable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_runner.config.load import Config
    from trio_runner.database.backlog import Work

logger = logging.getLogger(__name__)

REPORT_SECONDS: Final = 45.0
"""How long the report of one death may take: connecting 5, the ledger 3 and 10, Kafka 15 and 2, the spool 3."""

ABORT_SECONDS: Final = 10.0
"""How long a runner has for its own report after the second SIGTERM, before it is killed and reported in its place."""

KILL_SECONDS: Final = 5.0


@asynccontextmanager
async def open_processes(
    config: Config,
    template: Config,
    node: str,
    on_ended: Callable[[Ended], Awaitable[None]],
    second_signal: trio.Event | None = None,
) -> AsyncIterator[ProcessSpawner]:
    """A spawner whose runners drain when the block ends. Those that need longer than `stop_timeout_seconds` are killed.

    Once `second_signal` is set, runners that drain end at once, and are killed after `ABORT_SECONDS`.

    However the orchestrator dies, the kernel sends its runners SIGTERM. They drain and report themselves as
    interrupted, and any orchestrator goes on from their last frame, so no orchestrator adopts another's runners.
    Runners that were killed together with their orchestrator are reported by the next one on this data directory.
    """
    directories = RunnerDirectories(Path(config.runner.data_dir) / "runners")
    async with directories.locked(), trio.open_nursery() as nursery:
        spawner = ProcessSpawner(directories, template, node, nursery, on_ended)
        await nursery.start(spawner.report_left_behind)
        try:
            yield spawner
        finally:
            # The tasks that wait for the runners are not cancelled, because each reports a death.
            with trio.move_on_after(config.orchestrator.stop_timeout_seconds, shield=True) as patience:
                spawner.stop_all(signal.SIGTERM)
                async with trio.open_nursery() as draining:
                    if second_signal is not None:
                        draining.start_soon(_abort_when, second_signal, spawner, patience)
                    await spawner.all_ended()
                    draining.cancel_scope.cancel()
            if patience.cancelled_caught and spawner.count:
                logger.warning("%d runners did not drain in time and are killed", spawner.count)
                with trio.move_on_after(KILL_SECONDS + REPORT_SECONDS, shield=True):
                    spawner.stop_all(signal.SIGKILL)
                    await spawner.all_ended()
            spawner.give_up()
            nursery.cancel_scope.cancel()


async def _abort_when(second_signal: trio.Event, spawner: ProcessSpawner, patience: trio.CancelScope) -> None:
    await second_signal.wait()
    logger.warning("a second signal: %d runners end at once", spawner.count)
    patience.deadline = min(patience.deadline, trio.current_time() + ABORT_SECONDS)
    spawner.abort_all()


class ProcessSpawner:
    """The children of this process; made by `open_processes`."""

    def __init__(
        self,
        directories: RunnerDirectories,
        template: Config,
        node: str,
        nursery: trio.Nursery,
        on_ended: Callable[[Ended], Awaitable[None]],
    ) -> None:
        """A task in `nursery` waits for the end of each runner."""
        self._directories, self._template, self._node = directories, template, node
        self._nursery, self._on_ended = nursery, on_ended
        self._processes: dict[int, tuple[int, subprocess.Popen[bytes]]] = {}
        self._asked: set[int] = set()
        """The processes that got SIGTERM."""
        self._left_behind: set[int] = set()
        """The scenarios of an earlier orchestrator's runners that have yet to be reported."""
        self._shields: set[trio.CancelScope] = set()
        self._changed = trio.Event()

    @property
    def count(self) -> int:
        """How many runners live, or have yet to be reported."""
        return len(self._processes)

    async def start(self, work: Work) -> None:
        """Start a runner, unless one of this scenario still lives here."""
        if work.scenario_id in self._processes:
            epoch, process = self._processes[work.scenario_id]
            if epoch != work.epoch:
                # The ledger has recorded that attempt's death. A frozen runner would never find that out.
                process.kill()
            raise SpawnRefusedError(f"a runner of scenario {work.scenario_id} still lives on {self._node}")
        if work.scenario_id in self._left_behind:
            raise SpawnRefusedError(f"the last runner of scenario {work.scenario_id} on {self._node} is being reported")
        place = self._directories.of(work.scenario_id)
        try:
            config = runner_config(self._template, work, data_dir=place, node=self._node)
        except ConfigError as error:
            self._nursery.start_soon(report_end, self._on_ended, unusable(work, error))
            return
        invocation = uuid.uuid4().hex
        try:
            path, locked = await self._directories.write(config, invocation)
            try:
                process = self._popen(path, locked, invocation)
            except OSError:
                await self._directories.withdraw(path, locked)  # noqa: ASYNC120 - it is shielded and bounded
                raise
            os.close(locked)
        except OSError as error:
            raise SpawnRefusedError(f"{place}: {error.strerror or error}") from error
        self._processes[work.scenario_id] = (work.epoch, process)
        self._nursery.start_soon(self._wait, work, config, process, invocation)

    async def stop(self, scenario_id: int, epoch: int) -> None:
        """Send SIGTERM once: a second one would cut the draining short."""
        of_epoch, process = self._processes.get(scenario_id, (0, None))
        if process is not None and of_epoch == epoch and process.pid not in self._asked:
            self._asked.add(process.pid)
            process.terminate()

    def stop_all(self, number: signal.Signals) -> None:
        """Send every runner the signal, but SIGTERM only to those that did not get it before."""
        for _, process in self._processes.values():
            if number is not signal.SIGTERM or process.pid not in self._asked:
                self._asked.add(process.pid)
                process.send_signal(number)

    def abort_all(self) -> None:
        """Send SIGTERM once more, at which a runner that drains ends at once, and reports that."""
        for _, process in self._processes.values():
            process.terminate()

    async def all_ended(self) -> None:
        """Wait until no runner lives and each end is reported."""
        while self._processes or self._shields:
            await self._changed.wait()

    def give_up(self) -> None:
        """Cancel the tasks that still wait for a runner's end, or report one."""
        for shield in self._shields:
            shield.cancel()

    async def report_left_behind(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Report the runners that a former orchestrator on this directory left dead.

        The task has started once it knows their scenarios. From then on `start` refuses those until they are reported.
        """
        try:
            left_behind = await self._directories.left_behind()
        except OSError as error:
            logger.warning("the runners that a former orchestrator left are not reported: %s", error.strerror or error)
            left_behind = []
        self._left_behind.update(left.config.scenario.id for left in left_behind)
        task_status.started()
        for config, invocation in left_behind:
            scenario_id = config.scenario.id
            with about(scenario_id=scenario_id, epoch=config.scenario.epoch):
                # Nobody saw how it ended.
                await self._report(config, {"INVOCATION_ID": invocation})
                await self._directories.remove(scenario_id)
            self._left_behind.discard(scenario_id)

    def _popen(self, path: Path, locked: int, invocation: str) -> subprocess.Popen[bytes]:
        """Start a runner with the config at `path`; it inherits the lock on that file, which `locked` holds."""
        # Not in another thread, as Trio would: PR_SET_PDEATHSIG fires when the thread that spawned the child ends.
        return subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(Path(leash.__file__))),
                *("--signal", "TERM", "--invocation", invocation, "--"),
                *(sys.executable, "-m", "trio_runner", "run", str(path)),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            # A session of its own: Ctrl-C in a terminal reaches the orchestrator alone, which lets its runners drain.
            start_new_session=True,
            pass_fds=(locked,),
            env={name: value for name, value in os.environ.items() if name not in _OF_A_SERVICE},
        )

    async def _wait(self, work: Work, config: Config, process: subprocess.Popen[bytes], invocation: str) -> None:
        # Shielded: an orchestrator that ends waits for its runners and reports each end. `give_up` bounds that.
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
        if cause_of_death(seen) is not None:
            await self._report(config, seen | {"INVOCATION_ID": invocation})
        # A runner that could not use its config did not know whom to report to.
        failure = _UNREADABLE if seen["EXIT_STATUS"] == str(ExitCode.CONFIG) else None
        if failure is None:
            await self._directories.remove(work.scenario_id)
        self._asked.discard(process.pid)
        del self._processes[work.scenario_id]
        await report_end(
            self._on_ended, Ended(scenario_id=work.scenario_id, epoch=work.epoch, failure=failure, detail=detail)
        )

    async def _report(self, config: Config, seen: dict[str, str]) -> None:
        try:
            async with open_spool(config) as spool:
                with trio.fail_after(REPORT_SECONDS):
                    await report_invocation(config, spool, seen)
        except (RunnerError, trio.TooSlowError) as error:
            logger.warning("the death is not reported, so the lease has to end first: %s", error)


_OF_A_SERVICE: Final = frozenset(
    {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID", "RUNTIME_DIRECTORY", "INVOCATION_ID", "SYSTEMD_EXEC_PID"}
)
"""The variables that a service manager sets for the orchestrator and not for its children."""

_UNREADABLE: Final = Failure(
    code=ErrorCode.CONFIG_INVALID, type="ConfigError", message="the runner could not use its config; its log says why"
)


def _how_it_ended(code: int) -> tuple[str, dict[str, str]]:
    """The end in words, and as the variables that systemd would set for ExecStopPost= (systemd.exec(5))."""
    if code < 0:
        name = signal_name(-code)
        return f"signal {name}", {"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": name}
    result = "exit-code" if code else "success"
    return f"exit code {code}", {"SERVICE_RESULT": result, "EXIT_CODE": "exited", "EXIT_STATUS": str(code)}

"""The directories of child processes: one orchestrator's at a time, every access in a thread under a deadline."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import trio

from trio_runner.base.directory_lock import DirectoryLock
from trio_runner.base.files import write_private
from trio_runner.base.threads import bounded
from trio_runner.config.errors import ConfigError
from trio_runner.config.load import load_config
from trio_runner.orchestrator.spawners.runner_config import as_toml

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    from trio_runner.config.load import Config

logger = logging.getLogger(__name__)

T = TypeVar("T")

FILE_SECONDS: Final = 5.0
LOCKED_SECONDS: Final = 2.0
"""The pause between two attempts to lock the directory."""


class LeftBehind(NamedTuple):
    """A runner of a former orchestrator that does not live any more: its config, and the name of its start."""

    config: Config
    invocation: str


class RunnerDirectories:
    """A directory with one directory for each runner, named after the scenario; its config is named after its start.

    A runner inherits a lock on its config, so a config that nobody has locked is that of a runner that has ended.
    """

    def __init__(self, root: Path) -> None:
        """Touch nothing yet."""
        self._root = root
        self._busy: set[int] = set()
        """The scenarios in whose directories a thread is at work, perhaps one that was left behind at its deadline."""

    def of(self, scenario_id: int) -> Path:
        """Where the scenario's runner lives."""
        return self._root / str(scenario_id)

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Wait for a lock on the directory, for two orchestrators in it would overwrite each other's configs.

        An orchestrator that waits takes no work from the ledger, and does not send READY.
        """
        lock = DirectoryLock(self._root, seconds=FILE_SECONDS)
        try:
            while True:
                why = "another orchestrator's runners live there; give each a runner.data_dir of its own"
                try:
                    await bounded(self._make_root, seconds=FILE_SECONDS)
                    if await lock.take():
                        break
                except OSError as error:
                    why = error.strerror or str(error)
                logger.warning("no runner is started before this orchestrator can lock %s: %s", self._root, why)
                await trio.sleep(LOCKED_SECONDS)
            yield
        finally:
            await lock.release()  # noqa: ASYNC102 - it is shielded and bounded

    async def left_behind(self) -> list[LeftBehind]:
        """The runners that have ended and whose configs are still there, as far as they can be read; raises OSError."""
        return await bounded(self._find_left_behind, seconds=FILE_SECONDS)

    async def write(self, config: Config, invocation: str) -> tuple[Path, int]:
        """Write a runner's config, which this user alone can read, as its directory; raises OSError.

        Returns:
            The config's path, and a descriptor that holds a lock on it: for the runner to inherit, and then to close.
        """
        return await self._change(config.scenario.id, lambda: self._write(config, invocation), late=_withdraw)

    async def withdraw(self, path: Path, locked: int) -> None:
        """Remove what `write` made, for a runner that could not be started: it would look like one that has died."""
        with trio.CancelScope(shield=True), suppress(OSError):
            await bounded(lambda: _withdraw((path, locked)), seconds=FILE_SECONDS)

    async def remove(self, scenario_id: int) -> None:
        """Remove a runner's directory, unless another runner lives in it: a former orchestrator's may still drain."""
        place = self.of(scenario_id)

        def remove() -> None:
            if not any(map(_is_locked, place.glob("*.toml"))):
                shutil.rmtree(place, ignore_errors=True)

        try:
            await self._change(scenario_id, remove)
        except OSError as error:
            logger.warning("the directory of a runner that has ended stays: %s: %s", place, error.strerror or error)

    async def _change(
        self, scenario_id: int, function: Callable[[], T], *, late: Callable[[T], None] | None = None
    ) -> T:
        """Call `function`, which changes the scenario's directory; `late` undoes it if it comes after the deadline."""
        if scenario_id in self._busy:
            raise OSError(errno.EBUSY, "the disk has not answered an earlier call yet")

        def alone() -> T:
            # A call that was left behind at its deadline still changes files when the disk answers at last. No later
            # call for the same directory begins before that.
            self._busy.add(scenario_id)
            try:
                return function()
            finally:
                self._busy.discard(scenario_id)

        return await bounded(alone, seconds=FILE_SECONDS, late=late)

    def _make_root(self) -> None:
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _find_left_behind(self) -> list[LeftBehind]:
        found = []
        for path in sorted(self._root.glob("*/*.toml")):
            try:
                if not _is_locked(path):
                    found.append(LeftBehind(load_config(path), invocation=path.stem))
            except (ConfigError, OSError) as error:
                logger.warning("%s is no runner's config: %s", path, error)
        return found

    def _write(self, config: Config, invocation: str) -> tuple[Path, int]:
        path = self.of(config.scenario.id) / f"{invocation}.toml"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_private(path, as_toml(config).encode())
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return path, descriptor


def _withdraw(written: tuple[Path, int]) -> None:
    path, locked = written
    # Before the lock is given back, so that nobody finds a config without one.
    path.unlink(missing_ok=True)
    os.close(locked)


def _is_locked(path: Path) -> bool:
    """Whether the runner that was started with this config lives."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False

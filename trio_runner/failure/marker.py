"""A file that says which attempt a process works on, locked while it lives, for whoever finds the process dead."""

from __future__ import annotations

import fcntl
import logging
import os
import threading
import uuid
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from trio_runner.base.text import printable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from trio_runner.config.load import Config

logger = logging.getLogger(__name__)

STEP_SECONDS: Final = 1.0


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """What an attempt's process says of itself."""

    scenario_id: int
    instance_id: str
    epoch: int
    """The attempt it was started for; 0: whichever was free."""
    claimed: int = 0
    """The attempt it has; 0: it had not claimed."""
    video_path: str


class OwnMarker:
    """This process's marker: written before the claim, removed once the attempt's end is reported.

    Where the file system does not take it in time the lease alone will tell of a death; that ends no runner.
    """

    def __init__(self, directory: Path, marker: Marker) -> None:
        """Touch nothing yet."""
        self._path = directory / f"attempt-{marker.scenario_id}-{marker.instance_id}.json"
        self._marker = marker
        self._descriptor: int | None = None
        # A thread that was given up on may come late: it must not undo what was done since.
        self._turn = threading.Lock()
        self._over = False

    async def write(self) -> None:
        """Make it, locked: who can take the lock knows that this process is gone."""
        await self._in_time(self._write)

    async def claimed(self, epoch: int) -> None:
        """Add which attempt was claimed."""
        self._marker = msgspec.structs.replace(self._marker, claimed=epoch)
        await self._in_time(self._put)

    async def remove(self) -> None:
        """The attempt's end is reported, or it did not begin."""
        await self._in_time(self._remove)

    def close(self) -> None:
        """Whoever finds it from now on may report what it names."""
        self._over = True
        # A thread that hangs in there holds the descriptor until the process ends.
        if self._turn.acquire(blocking=False):
            try:
                if self._descriptor is not None:
                    os.close(self._descriptor)
                    self._descriptor = None
            finally:
                self._turn.release()

    def _write(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")
        self._descriptor = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        self._put()
        temporary.rename(self._path)
        begun_of(self._path.parent, self._marker.scenario_id).touch()

    def _remove(self) -> None:
        self._over = True
        self._path.unlink(missing_ok=True)

    def _put(self) -> None:
        # It only grows: no reader sees the end of an older text.
        if self._descriptor is not None:
            os.pwrite(self._descriptor, msgspec.json.encode(self._marker), 0)

    async def _in_time(self, function: Callable[[], None]) -> None:
        try:
            with trio.fail_after(STEP_SECONDS):
                await trio.to_thread.run_sync(self._in_turn, function, abandon_on_cancel=True)
        except (OSError, RuntimeError, trio.TooSlowError) as error:
            # RuntimeError: no thread can be started.
            logger.warning("%s: %s", self._path, error or "no answer in time")

    def _in_turn(self, function: Callable[[], None]) -> None:
        with self._turn:
            if not self._over:
                function()


class FoundMarker:
    """The marker of a process that is gone."""

    def __init__(self, path: Path | None, marker: Marker) -> None:
        """`path` is None where there is no file, since the process died before it wrote one."""
        self._path = path
        self.marker = marker

    def remove(self) -> None:
        """Its attempt is reported."""
        try:
            if self._path is not None:
                self._path.unlink(missing_ok=True)
        except OSError as error:
            logger.warning("%s: %s", self._path, error)


def begun_of(directory: Path, scenario_id: int) -> Path:
    """Lies beside the markers and stays: a process came as far as marking its attempt."""
    return directory / f"begun-{scenario_id}"


def directory_of(config: Config, environ: Mapping[str, str]) -> Path:
    """The service manager's runtime directory, or else the data directory."""
    runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(runtime or config.runner.data_dir)


@contextmanager
def of_dead_processes(directory: Path, scenario_id: int) -> Iterator[list[FoundMarker]]:
    """The markers of that scenario whose processes are gone, the oldest first; what is no marker is passed over.

    Until the block ends they are locked, so that one of several that look for them reports them.
    """
    locks: list[int] = []
    found: list[tuple[int, FoundMarker]] = []
    try:
        for path in directory.glob(f"attempt-{scenario_id}-*.json"):
            try:
                lock = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
                locks.append(lock)
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                marker = msgspec.json.decode(os.read(lock, 64 * 1024), type=Marker)
                if os.path.samestat(path.stat(), os.fstat(lock)):
                    found.append((os.fstat(lock).st_mtime_ns, FoundMarker(path, marker)))
            except (BlockingIOError, FileNotFoundError):
                # Its process lives, or another has reported it this moment.
                continue
            except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
                logger.warning("%s is no marker: %s", path, error)
        yield [each for _, each in sorted(found, key=lambda pair: pair[0])]
    finally:
        for lock in locks:
            os.close(lock)


def of_unmarked_process(config: Config, environ: Mapping[str, str]) -> FoundMarker | None:
    """What stands for the marker of a service that died before it wrote one: while it was imported, for instance.

    Only a runtime directory can tell, which is new with each start; the service manager's id of that start is the
    attempt's (systemd.exec(5)). (Where it could not write there, its death may be counted twice.)
    """
    runtime, invocation = environ.get("RUNTIME_DIRECTORY", ""), environ.get("INVOCATION_ID", "")
    if not (runtime and invocation and "SERVICE_RESULT" in environ):
        return None
    if begun_of(Path(runtime.partition(":")[0]), config.scenario.id).exists():
        return None
    marker = Marker(
        scenario_id=config.scenario.id,
        instance_id=str(uuid.UUID(invocation)),
        epoch=config.scenario.epoch,
        video_path=printable(config.video.path),
    )
    return FoundMarker(None, marker)

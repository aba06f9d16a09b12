"""Decides by file locks which process on a data directory hosts the servers, and lets the others attach."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio

from trio_runner.base.files import write_private
from trio_runner.embedded.child import ServerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

WAIT_SECONDS = 30.0
"""How long to wait for another process that is starting, stopping, or uses the directory only briefly."""
_POLL_SECONDS = 0.05


class DataDirectory:
    """The directory with the servers' state.

    The host holds `lock` exclusively, the processes attached to it share `users`, and the servers themselves hold
    `remains` (see `Child`). The kernel releases each lock however its holder ends, so none can be left behind.
    `servers.json` holds the servers' ports; it exists while the host lets other processes attach.
    """

    def __init__(self, path: Path) -> None:
        """Create the directory, for this user alone, if it does not exist; raises ServerError if that fails."""
        self.path = path.resolve()
        self._servers = self.path / "servers.json"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.path.mkdir(mode=0o700, exist_ok=True)
            if not any(self.path.iterdir()):
                # Only in an empty directory: any other may have a .gitignore of its own.
                (self.path / ".gitignore").write_text("*\n", encoding="utf-8")
            (self.path / "logs").mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            problem = f"cannot keep servers in {path}: {error.strerror}"
            raise ServerError(f"{problem}. Choose another runner.data_dir") from error

    def new_log(self, name: str) -> Path:
        """The path of a new log; the log of the previous start is kept beside it."""
        log = self.path / "logs" / f"{name}.log"
        with contextlib.suppress(FileNotFoundError):
            log.replace(log.with_suffix(".log.1"))
        return log

    @contextlib.asynccontextmanager
    async def entered(self) -> AsyncIterator[dict[str, Any] | None]:
        """Yield the servers that the host published, as one of their users; or None: this process is now the host.

        Raises:
            ServerError: Another process kept the directory to itself for `WAIT_SECONDS`.
        """
        with self._open("lock") as lock, self._open("users") as users:
            with trio.move_on_after(WAIT_SECONDS) as patience:
                servers = await self._enter(lock, users)
            if patience.cancelled_caught:
                raise ServerError(
                    f"another process keeps {self.path} to itself and has not let go of it within "
                    f"{WAIT_SECONDS:g} s. End it, or choose another runner.data_dir"
                )
            if servers is None:
                self._servers.unlink(missing_ok=True)
            yield servers

    async def _enter(self, lock: int, users: int) -> dict[str, Any] | None:
        while not _locked(lock, fcntl.LOCK_EX):
            servers = self._published()
            # The host removes servers.json only while nobody holds `users`. If the file is unchanged after we got that
            # lock, the host waits for us. A file that a killed host has left behind names ports where nobody answers.
            if servers is not None and _locked(users, fcntl.LOCK_SH):
                if self._published() == servers and await _all_answer(servers):
                    return servers
                fcntl.flock(users, fcntl.LOCK_UN)
            await trio.sleep(_POLL_SECONDS)
        return None

    @contextlib.asynccontextmanager
    async def remains(self) -> AsyncIterator[int]:
        """Wait until no server of an earlier host is left; yield the descriptor that this host's servers inherit."""
        with self._open("remains") as descriptor:
            with trio.move_on_after(WAIT_SECONDS) as patience:
                await _lock(descriptor, fcntl.LOCK_EX)
            if patience.cancelled_caught:
                raise ServerError(
                    f"servers of an earlier process still run on {self.path} after {WAIT_SECONDS:g} s. "
                    f"Find them with `fuser {self.path / 'remains'}` and end them"
                )
            yield descriptor

    @contextlib.asynccontextmanager
    async def published(self, servers: dict[str, Any], on_wait: Callable[[str], None]) -> AsyncIterator[None]:
        """Let other processes attach; on leaving, wait until the last of them is gone, unless cancelled."""
        write_private(self._servers, json.dumps(servers).encode())
        async with contextlib.AsyncExitStack() as leaving:
            users = leaving.enter_context(self._open("users"))
            leaving.callback(self._servers.unlink, missing_ok=True)
            leaving.push_async_callback(self._nobody_attached, users, on_wait)
            yield

    async def _nobody_attached(self, users: int, on_wait: Callable[[str], None]) -> None:
        """Wait until no process is attached, and lock `users`, so that none can attach any more."""
        if _locked(users, fcntl.LOCK_EX):
            return
        count = _holders(users)
        on_wait(f"waiting for {count} other process{'es' * (count > 1)} using the servers in {self.path}")
        await _lock(users, fcntl.LOCK_EX)

    def _published(self) -> dict[str, Any] | None:
        try:
            servers: dict[str, Any] = json.loads(self._servers.read_bytes())
        except (FileNotFoundError, ValueError):
            return None
        return servers

    @contextlib.contextmanager
    def _open(self, name: str) -> Iterator[int]:
        try:
            descriptor = os.open(self.path / name, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            problem = f"cannot open {self.path / name}: {error.strerror}"
            raise ServerError(f"{problem}. Choose another runner.data_dir") from error
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def is_hosted(path: Path) -> bool:
    """Whether a process hosts the servers of this data directory right now; does not create the directory."""
    try:
        with (path / "lock").open("rb") as lock:
            return not _locked(lock.fileno(), fcntl.LOCK_SH)
    except FileNotFoundError:
        return False


async def _lock(descriptor: int, kind: int) -> None:
    while not _locked(descriptor, kind):  # noqa: ASYNC110 - another process' lock has no event to wait for
        await trio.sleep(_POLL_SECONDS)


def _locked(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holders(descriptor: int) -> int:
    """How many processes hold a lock on this file, as far as /proc/locks shows them (proc(5)); at least 1."""
    inode = os.fstat(descriptor).st_ino
    held = re.compile(rf"^\d+: FLOCK .*:{inode} 0 EOF$", re.MULTILINE)
    return max(1, len(held.findall(Path("/proc/locks").read_text(encoding="ascii"))))


async def _all_answer(servers: dict[str, Any]) -> bool:
    try:
        with trio.fail_after(2):
            for port in servers["ports"].values():
                await (await trio.open_tcp_stream("127.0.0.1", port)).aclose()
    except (OSError, trio.TooSlowError):
        return False
    return True

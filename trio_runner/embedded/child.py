"""Runs one server as a child process: starts it, waits until it answers, explains its death, and stops it."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import signal
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trio_runner.base.text import signal_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Mapping

START_SECONDS = 60.0
"""How long a server may take to its first answer; recovery after a power cut is the long case."""
STOP_SECONDS = 8.0
"""How long a server may take to end after `stop_signal`; PostgreSQL writes its last checkpoint then."""
KILL_SECONDS = 2.0
"""How long to wait for the kernel to end a server that did not end by itself."""
_LOG_LINES = 15


class ServerError(Exception):
    """An embedded server could not be started, or ended: which one, why, and the end of its log."""


@dataclass(frozen=True, kw_only=True)
class Child:
    """A program to run as a server, or as a step towards one.

    The child and its own children inherit the descriptor `remains`. It carries a file lock, which the kernel releases
    when the last of them is gone, in whatever order they were killed.
    """

    name: str
    command: tuple[str, ...]
    log: Path
    remains: int
    environment: Mapping[str, str]
    stop_signal: signal.Signals = signal.SIGTERM
    lifetime: trio.CancelScope = field(default_factory=lambda: trio.CancelScope(shield=True))
    """Cancelled when the server is no longer needed. No other cancellation of the host reaches the server, because a
    runner that is cancelled still has to report that to the database and the broker."""
    on_death: Callable[[ServerError], None] | None = None
    """Called when a server that was up ends by itself. Without it the error is raised, and ends the other servers."""

    def died(self, process: subprocess.Popen[bytes]) -> ServerError:
        """The error for the end of this child, which must have been reaped."""
        code = process.returncode
        how = f"was killed by signal {signal_name(-code)}" if code < 0 else f"ended with exit code {code}"
        who = f"the embedded {self.name} server (process {process.pid})"
        return ServerError(f"{who} {how}; {self.last_words()}")

    def last_words(self) -> str:
        """The last lines of the log, introduced by its path."""
        with contextlib.suppress(OSError), self.log.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - 8192))
            if lines := log.read().decode(errors="replace").strip().splitlines()[-_LOG_LINES:]:
                return "\n  ".join((f"the end of {self.log}:", *lines))
        return f"{self.log} is empty"


def find_package(name: str, *, for_the: str, key: str) -> Path:
    """The directory of an installed package, without importing it. Raises ServerError with the remedy."""
    spec = importlib.util.find_spec(name.replace("-", "_"))
    if spec is None or not spec.submodule_search_locations:
        raise ServerError(
            f"the embedded {for_the} server needs the package {name}, which is not installed. "
            f"Install trio_runner[embedded], or name a server in {key}"
        )
    return Path(spec.submodule_search_locations[0])


async def serve(
    child: Child,
    ready: Callable[[subprocess.Popen[bytes]], Awaitable[int]],
    *,
    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the server until cancelled, and report the port that `ready` finds once it answers.

    Raises:
        ServerError: It did not come up in time (in a group, as from any nursery), or it ended by itself and the child
            has no `on_death`.
    """
    async with _running(child, stdin=subprocess.DEVNULL) as process:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_raise_when_it_ends, child, process)
            with trio.move_on_after(START_SECONDS) as patience:
                port = await ready(process)
            if patience.cancelled_caught:
                late = f"did not answer within {START_SECONDS:g} s"
                raise ServerError(f"the embedded {child.name} server {late}; {child.last_words()}")
            nursery.cancel_scope.cancel()
        with child.lifetime:
            task_status.started(port)
            await _end(process)
            if child.on_death is None:
                raise child.died(process)
            child.on_death(child.died(process))


async def run_to_end(child: Child, *, stdin: bytes = b"") -> None:
    """Run the program to its end, with up to 64 KiB (a pipe) of input; raises ServerError if it fails."""
    async with _running(child, stdin=subprocess.PIPE) as process:
        assert process.stdin is not None  # noqa: S101
        with contextlib.suppress(BrokenPipeError), process.stdin as pipe:
            pipe.write(stdin)
        with trio.move_on_after(START_SECONDS):
            await _end(process)
        if process.returncode is None:
            raise ServerError(f"{child.name} did not end within {START_SECONDS:g} s; {child.last_words()}")
        if process.returncode != 0:
            raise child.died(process)


async def read_port(process: subprocess.Popen[bytes]) -> int:
    """The port in the one line `{"port": N}` that our own servers print once they answer."""
    assert process.stdout is not None  # noqa: S101
    line = b""
    async with trio.lowlevel.FdStream(os.dup(process.stdout.fileno())) as stream:
        while not line.endswith(b"\n"):
            chunk = await stream.receive_some(1024)
            if not chunk:
                # The server has ended. The task that waits for its end raises the error.
                await trio.sleep_forever()
            line += chunk
    return int(json.loads(line)["port"])


@contextlib.asynccontextmanager
async def _running(child: Child, *, stdin: int) -> AsyncIterator[subprocess.Popen[bytes]]:
    # The child gets a session of its own, because Ctrl-C in the terminal is for the host, which drains first and stops
    # its servers last. It is spawned with Popen on the thread that runs Trio. The leash ties it to the thread that
    # spawned it, and Trio would spawn it in a worker thread, which may end at any time.
    with child.log.open("ab") as log:
        process = subprocess.Popen(  # noqa: ASYNC220 - as the comment says
            child.command,
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=log,
            start_new_session=True,
            pass_fds=(child.remains,),
            env=child.environment,
        )
    try:
        yield process
    finally:
        with trio.move_on_after(STOP_SECONDS + KILL_SECONDS, shield=True):
            await _stop(process, child.stop_signal)
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


async def _raise_when_it_ends(child: Child, process: subprocess.Popen[bytes]) -> None:
    await _end(process)
    raise child.died(process)


async def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait for the process and reap it; its return code is then known."""
    if process.poll() is None:
        descriptor = os.pidfd_open(process.pid)
        try:
            await trio.lowlevel.wait_readable(descriptor)
        finally:
            os.close(descriptor)
        process.wait()


async def _stop(process: subprocess.Popen[bytes], polite: signal.Signals) -> None:
    process.send_signal(polite)
    with trio.move_on_after(STOP_SECONDS):
        await _end(process)
    process.send_signal(signal.SIGKILL)
    await _end(process)

"""A child of this package: a Python process with one pipe to it, one from it, and its standard error in memory."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

import trio

from trio_runner.base.text import signal_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

END_SECONDS: Final = 3.0
"""How long a child may take to end after it was killed or has closed its pipe."""

READ_BYTES: Final = 2**18
STDERR_TAIL_BYTES: Final = 4096
STDERR_TAIL_LINES: Final = 6

INHERITED_ENVIRONMENT: Final = ("PATH", "HOME", "TMPDIR", "LANG", "LC_", "LD_LIBRARY_PATH", "PYTHON", "COVERAGE_")
"""Prefixes of the environment variables that a child inherits. It reads hostile input, so it is given no secret."""


class Child:
    """A child and its pipes; raises OSError if it cannot be started.

    Args:
        module: What `python -m` runs, and its arguments.
        environment: Variables beside those that are inherited.
        pipe_bytes: How much the child may write before anybody reads. The kernel may refuse the size.
    """

    def __init__(
        self, module: Sequence[str], *, environment: Mapping[str, str] | None = None, pipe_bytes: int | None = None
    ) -> None:
        with ExitStack() as ours:
            with ExitStack() as theirs:
                stdin, self._commands = _pipe(theirs, ours)
                records, stdout = _pipe(ours, theirs)
                # Standard error is a file in memory. Nobody has to drain it, and this process can still read it after
                # the child's death.
                self._stderr = os.memfd_create("child-stderr")
                ours.callback(os.close, self._stderr)
                if pipe_bytes is not None:
                    with suppress(OSError):
                        fcntl.fcntl(records, fcntl.F_SETPIPE_SZ, pipe_bytes)
                self._process = _spawn(module, environment or {}, stdin, stdout, self._stderr)
            # With the child's ends of the pipes closed, a descriptor is free again for this one.
            self._pidfd = os.pidfd_open(self._process.pid)
            ours.pop_all()
        self._records = trio.lowlevel.FdStream(records)
        self._buffer = bytearray()

    def send(self, line: bytes) -> None:
        """Write a line that fits into an empty pipe. A dead child shows when its records are read."""
        with suppress(BrokenPipeError):
            os.write(self._commands, line)

    async def read(self, count: int) -> bytes:
        """`count` bytes, or none if the pipe ends before."""
        while len(self._buffer) < count:
            if not await self._receive(max(READ_BYTES, count - len(self._buffer))):
                return b""
        with memoryview(self._buffer) as view:
            taken = bytes(view[:count])
        del self._buffer[:count]
        return taken

    async def read_line(self, most: int) -> bytes:
        """The bytes up to a line feed; none if the pipe ends before, or more than `most` bytes come without one."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > most or not await self._receive(most):
                return b""
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        return line

    async def _receive(self, most: int) -> bool:
        chunk = await self._records.receive_some(most)
        self._buffer += chunk
        return bool(chunk)

    async def wait(self) -> int | None:
        """The exit status, or minus the signal, of a child about to end; None if it had to be killed."""
        with trio.move_on_after(END_SECONDS):
            await trio.lowlevel.wait_readable(self._pidfd)
        if self._process.poll() is None:
            await self.kill()
            return None
        return self._process.returncode

    async def kill(self) -> None:
        """Kill and reap the child if it still runs; bounded, and shielded from cancellation."""
        if self._process.poll() is None:
            self._process.kill()
            with trio.move_on_after(END_SECONDS, shield=True):
                await trio.lowlevel.wait_readable(self._pidfd)
            self._process.poll()

    def last_output(self) -> str:
        """A colon and the last lines that the child wrote to standard error, joined into one; empty for none."""
        size = os.fstat(self._stderr).st_size
        tail = os.pread(self._stderr, STDERR_TAIL_BYTES, max(0, size - STDERR_TAIL_BYTES))
        text = tail.decode(errors="replace")
        # A traceback's lines of ^^^^ and ~~~~ underline the failing expression, and are of no use here.
        lines = [line.strip() for line in text.splitlines() if line.strip(" ^~")]
        return f": {' | '.join(lines[-STDERR_TAIL_LINES:])}" if lines else ""

    async def aclose(self) -> None:
        """End the child and close everything."""
        try:
            await self.kill()
        finally:
            for fd in (self._commands, self._pidfd, self._stderr):
                os.close(fd)
            await trio.aclose_forcefully(self._records)


@asynccontextmanager
async def closing(child: Child) -> AsyncIterator[Child]:
    """End the child when the block ends; bounded, and shielded from cancellation."""
    try:
        yield child
    finally:
        with trio.move_on_after(2 * END_SECONDS, shield=True):
            await child.aclose()


def ending(status: int | None) -> str:
    """How a child ended that should not have, from its exit status, as `Child.wait` gives it."""
    if status is None:
        return "closed its pipe and lived on"
    if status < 0:
        return f"was killed by signal {signal_name(-status)}"
    return f"ended early with exit code {status}"


def _pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Both ends of a pipe, each closed with its stack."""
    read_end, write_end = os.pipe()
    reader.callback(os.close, read_end)
    writer.callback(os.close, write_end)
    return read_end, write_end


def _spawn(
    module: Sequence[str], environment: Mapping[str, str], stdin: int, stdout: int, stderr: int
) -> subprocess.Popen[bytes]:
    inherited = {name: value for name, value in os.environ.items() if name.startswith(INHERITED_ENVIRONMENT)}
    # Ctrl-C and systemd signal the whole process group, but the daemon decides when the child ends: it may still want
    # what the child is about to send. A signal that is blocked here stays blocked in the child, from its first
    # instruction on.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        return subprocess.Popen(
            [sys.executable or "", "-X", "faulthandler", "-m", *module],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=inherited | dict(environment),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

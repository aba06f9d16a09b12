"""The client of the fork server: real processes of the program, without the half second that importing it takes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import trio

START_SECONDS = 120.0
"""Bounds the wait for the fork server, which must first have imported the program."""


class ForkedProcess:
    """A process that the fork server started: of `trio.Process`, what the tests use."""

    def __init__(self, pid: int, reply: trio.socket.SocketType) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._reply = reply
        self._ended = trio.Lock()

    def poll(self) -> int | None:
        """The exit code (minus the signal), or None while it runs."""
        if self.returncode is None:
            try:
                self._take(os.read(self._reply.fileno(), 64))
            except BlockingIOError:
                return None
        return self.returncode

    async def wait(self) -> int:
        """Wait for its end; returns the exit code."""
        async with self._ended:
            while self.returncode is None:
                await trio.lowlevel.wait_readable(self._reply)
                self.poll()
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def _take(self, answer: bytes) -> None:
        assert answer, "the fork server has ended"
        self.returncode = int(answer)
        self._reply.close()


class ForkServer:
    """Starts `trio-runner` by forking a process that has imported it."""

    def __init__(self, requests: socket.socket) -> None:
        self._requests = requests

    async def start(
        self,
        arguments: Sequence[str],
        *,
        out: BinaryIO,
        err: BinaryIO,
        cwd: Path,
        environment: Mapping[str, str],
        patch: str = "",
    ) -> ForkedProcess:
        """Start `trio-runner` with these arguments, in a session of its own; `patch` is Python that is run before."""
        request = {"arguments": arguments, "cwd": str(cwd), "environment": dict(environment), "patch": patch}
        ours, theirs = trio.socket.socketpair()
        with theirs:
            descriptors = [out.fileno(), err.fileno(), theirs.fileno()]
            socket.send_fds(self._requests, [json.dumps(request).encode()], descriptors)
        # From here on there may be a process: nothing may cancel us before its pid is known.
        with trio.CancelScope(shield=True), trio.fail_after(START_SECONDS):
            pid = b""
            while not pid.endswith(b"\n"):
                # One byte at a time: what follows the pid is the exit code.
                byte = await ours.recv(1)
                assert byte, "the fork server has ended"
                pid += byte
        return ForkedProcess(int(pid), ours)


@contextmanager
def open_fork_server(environment: Mapping[str, str]) -> Iterator[ForkServer]:
    """A fork server for as long as the block lasts; it imports the program while the caller goes on."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        with theirs:
            # In a session of its own: Ctrl-C is for the tests.
            process = subprocess.Popen(
                [sys.executable, "-m", "tests.support.fork_server", str(theirs.fileno())],
                stdout=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=environment,
                start_new_session=True,
            )
        try:
            yield ForkServer(ours)
        finally:
            ours.close()
            try:
                assert process.wait(10) == 0, "the fork server did not end well"
            finally:
                process.kill()
                process.wait()

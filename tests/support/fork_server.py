"""A process that has imported the program and forks for each start, so that the imports (0.5 s of CPU) are paid once.

`python -m tests.support.fork_server DESCRIPTOR` serves requests on the Unix socket DESCRIPTOR until its other end is
closed. A request is one JSON object, with three descriptors beside it: stdout, stderr and the socket of the reply. The
reply is the pid and, once the process has ended, its exit code, each on a line. `tests.support.forking` is the client.

A forked process differs from an executed one in what `/proc/PID/cmdline` and `/proc/PID/environ` show, and in nothing
else that the program can see: it has its own pid, session, descriptors, directory, environment and arguments. To make
that so, this server has one thread, no event loop and no files, and leaves every signal as Python sets it up.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import pkgutil
import random
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import trio_runner

UNWANTED = (
    "trio_runner.__main__",
    "trio_runner.embedded.detector",
    "trio_runner.embedded.inference",
    "trio_runner.inference.protocols.oip",
    "trio_runner.orchestrator.spawners.kubernetes",
    "trio_runner.video.decoder",
)
"""Modules, by the beginnings of their names, that run something or import libraries that start threads (OpenBLAS)."""


def main() -> int:
    """Serve; in a forked process, run the program and return its exit code."""
    # Under nohup this process inherits that SIGHUP is ignored, and so would every process that it forks.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    requests = socket.socket(fileno=int(sys.argv[1]))
    for name in _wanted(trio_runner.__path__, "trio_runner."):
        importlib.import_module(name)
    # Trio shuffles its tasks with a generator of its own, which would be in the same state in every forked process.
    generators = [each for each in gc.get_objects() if isinstance(each, random.Random)]
    threads = list(Path("/proc/self/task").iterdir())
    assert len(threads) == 1, "an import has started a thread, which a forked process would lack"
    # Memory that the garbage collector does not visit stays shared.
    gc.collect()
    gc.freeze()
    request = _serve(requests)
    if request is None:
        return 0
    for generator in generators:
        generator.seed()
    return _run(request)


def _wanted(path: Any, prefix: str) -> list[str]:
    names = []
    for module in pkgutil.iter_modules(path, prefix):
        if not module.name.startswith(UNWANTED):
            names.append(module.name)
            if module.ispkg:
                names += _wanted(importlib.import_module(module.name).__path__, f"{module.name}.")
    return names


def _serve(requests: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; returns the request in the forked process, and None here when the client is gone."""
    poll = select.poll()
    poll.register(requests, select.POLLIN)
    children: dict[int, tuple[int, int]] = {}
    while True:
        for descriptor, _ in poll.poll():
            if descriptor in children:
                poll.unregister(descriptor)
                pid, reply = children.pop(descriptor)
                _, status = os.waitpid(pid, 0)
                _say(reply, os.waitstatus_to_exitcode(status))
                os.close(descriptor)
                os.close(reply)
                continue
            message, descriptors, _, _ = socket.recv_fds(requests, 1 << 20, 3)
            if not message:
                return None
            out, err, reply = descriptors
            pid = os.fork()
            if pid == 0:
                os.setsid()
                os.dup2(out, 1)
                os.dup2(err, 2)
                requests.close()
                # All others are plain numbers here: no object is left that would close one of them again.
                os.closerange(3, os.sysconf("SC_OPEN_MAX"))
                request: dict[str, Any] = json.loads(message)
                return request
            os.close(out)
            os.close(err)
            _say(reply, pid)
            ended = os.pidfd_open(pid)
            children[ended] = pid, reply
            poll.register(ended, select.POLLIN)


def _say(reply: int, number: int) -> None:
    try:
        os.write(reply, f"{number}\n".encode())
    except BrokenPipeError:
        # The test that asked has been cancelled; whether its process is gone, the session's end shows.
        return


def _run(request: dict[str, Any]) -> int:
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["environment"])
    if "INVOCATION_ID" in os.environ:
        # As a service manager does for the process that it starts.
        os.environ["SYSTEMD_EXEC_PID"] = str(os.getpid())
    time.tzset()
    patch: str = request["patch"]
    sys.argv = ["-c" if patch else str(Path(trio_runner.__file__).with_name("__main__.py")), *request["arguments"]]
    if patch:
        # A patch takes effect before the modules that import what it replaces.
        for name in [name for name in sys.modules if name.partition(".")[0] == "trio_runner"]:
            del sys.modules[name]
        exec(compile(patch, "<patch>", "exec"), {"__name__": "__main__"})  # noqa: S102 - a test's own text
    from trio_runner.cli.main import main as program  # noqa: PLC0415 - only now it is patched

    return program()


if __name__ == "__main__":
    sys.exit(main())

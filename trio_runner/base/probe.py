"""For a probe in a container: whether the process that notifies NOTIFY_SOCKET is alive.

    NOTIFY_SOCKET=/run/trio-runner/notify python -I -m trio_runner.base.probe

Kubernetes has no watchdog, but runs commands. This command takes the service manager's place for a moment and listens
at the socket. A runner sends WATCHDOG=1 to it once a second while it makes progress (sd_notify(3)), an orchestrator
while its event loop runs. The command ends with 0 as soon as one arrives, else with a reason. It starts often, so it
imports the standard library only.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

WITHIN_SECONDS: Final = 5.0


def is_alive(path: Path, within_seconds: float) -> bool:
    """Create this socket for at most `within_seconds`, and return whether a sign of life arrives at it.

    Raises:
        OSError: It cannot be created; EADDRINUSE: another process listens there already.
    """
    deadline = time.monotonic() + within_seconds
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        _bind(listener, path)
        try:
            while (left := deadline - time.monotonic()) > 0:
                listener.settimeout(left)
                if b"WATCHDOG=1" in listener.recv(4096).splitlines():
                    return True
        except TimeoutError:
            pass
        finally:
            path.unlink(missing_ok=True)
    return False


def _bind(listener: socket.socket, path: Path) -> None:
    try:
        listener.bind(str(path))
    except OSError as error:
        if error.errno != errno.EADDRINUSE or _has_a_listener(path):
            raise
        # A probe that was killed has left its socket behind.
        path.unlink(missing_ok=True)
        listener.bind(str(path))


def _has_a_listener(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as caller:
        try:
            caller.connect(str(path))
        except ConnectionRefusedError:
            return False
    return True


def main(environ: Mapping[str, str]) -> str | None:
    """Why the process is not known to be alive, in words; None if it is."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith("/"):
        return "NOTIFY_SOCKET is not set to the path that the process under test notifies"
    try:
        if not is_alive(Path(address), WITHIN_SECONDS):
            return f"no sign of life within {WITHIN_SECONDS:g} s"
    except OSError as error:
        return f"{address}: {error.strerror}"
    return None


if __name__ == "__main__":
    sys.exit(main(os.environ))

"""For a probe in a container: whether the process that NOTIFY_SOCKET is told of is alive.

    NOTIFY_SOCKET=/run/trio-runner/notify python -I -m trio_runner.base.probe

Kubernetes has no watchdog, but asks commands. This one stands for the service manager for a moment: it listens where
WATCHDOG=1 is sent once a second (sd_notify(3)), by a runner as long as it makes progress, by an orchestrator as long as
its event loop turns, and ends with 0 as soon as it has heard one, or with a reason. It imports the standard library
only, for it starts often.
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


def heard(path: Path, within_seconds: float) -> bool:
    """Whether a sign of life arrives at this socket, which is made for that long.

    Raises:
        OSError: it cannot be made; EADDRINUSE: somebody listens there already.
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
        # What a probe left that was killed.
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
    """What is wrong, in words; None where nothing is."""
    address = environ.get("NOTIFY_SOCKET", "")
    if not address.startswith("/"):
        return "NOTIFY_SOCKET is not set to a path, where the process under test sends to"
    try:
        if not heard(Path(address), WITHIN_SECONDS):
            return f"no sign of life within {WITHIN_SECONDS:g} s"
    except OSError as error:
        return f"{address}: {error.strerror}"
    return None


if __name__ == "__main__":
    sys.exit(main(os.environ))

"""What whoever writes a server's files needs: ports that are free, and files that hold secrets."""

from __future__ import annotations

import socket
from contextlib import ExitStack
from pathlib import Path


def free_ports(count: int) -> list[int]:
    """Ports of the loopback on which nobody listens."""
    with ExitStack() as stack:
        reservations = [stack.enter_context(socket.socket()) for _ in range(count)]
        for reservation in reservations:
            reservation.bind(("127.0.0.1", 0))
        return [reservation.getsockname()[1] for reservation in reservations]


def write_secret(path: Path, text: str) -> None:
    """A file that only its owner reads."""
    path.touch(mode=0o600)
    path.write_text(text)

"""Helpers to write a server's files: free ports, and files that hold secrets."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack, suppress
from pathlib import Path

PRIVILEGED_PORTS = 1024


def free_ports(count: int) -> list[int]:
    """Ports of the loopback on which nobody listens, of those that the kernel gives to nobody who names none.

    One of the others may be somebody's a moment later: tests run beside each other, and each opens many.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    ports: list[int] = []
    with ExitStack() as stack:
        while len(ports) < count:
            # If the kernel hands out nearly all ports, there is no choice.
            port = random.SystemRandom().randrange(lowest // 2, lowest) if lowest > 2 * PRIVILEGED_PORTS else 0
            reservation = stack.enter_context(socket.socket())
            with suppress(OSError):
                reservation.bind(("127.0.0.1", port))
                ports.append(reservation.getsockname()[1])
    return ports


def write_secret(path: Path, text: str) -> None:
    """A file that only its owner reads."""
    path.touch(mode=0o600)
    path.write_text(text)

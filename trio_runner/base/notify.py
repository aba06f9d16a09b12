"""READY, STATUS, WATCHDOG and STOPPING over NOTIFY_SOCKET (sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


logger = logging.getLogger(__name__)


class Notifier:
    """Tells the service manager about this process; silent where none listens."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC (microseconds) and WATCHDOG_PID."""
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        watched = bool(self._address) and usec.isdecimal() and pid in {"", str(os.getpid())}
        self.watchdog_seconds = int(usec) / 1e6 if watched else None

    def ready(self) -> None:
        """The claim is held: work begins."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def watchdog(self) -> None:
        """Still making progress."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # Never wait for the manager: a full queue loses one status line, not the event loop.
            sender.settimeout(0)
            try:
                sender.sendto(message.encode(), self._address)
            except OSError as error:
                # Nothing depends on being heard: a manager that went away cannot be told so.
                logger.debug("the service manager did not take %s: %s", message, error)

"""READY, STATUS, WATCHDOG and STOPPING over NOTIFY_SOCKET (sd_notify(3))."""

from __future__ import annotations

import logging
import os
import socket
from typing import TYPE_CHECKING, NoReturn

import trio

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping


logger = logging.getLogger(__name__)


class Notifier:
    """Notifies the service manager of this process's states; silent where no manager listens."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC (microseconds) and WATCHDOG_PID."""
        address = environ.get("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID", "")
        watched = bool(self._address) and usec.isdecimal() and pid in {"", str(os.getpid())}
        self.watchdog_seconds = int(usec) / 1e6 if watched else None

    def ready(self) -> None:
        """The work has begun."""
        self._send("READY=1")

    def status(self, text: str) -> None:
        """One line for `systemctl status`."""
        self._send(f"STATUS={text}")

    def extend_timeout(self, seconds: float) -> None:
        """The start, or the stop, goes on for at least so long: its own limit counts no more, unless this one ends."""
        self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def watchdog(self) -> None:
        """Still making progress."""
        self._send("WATCHDOG=1")

    def stopping(self) -> None:
        """The end has begun."""
        self._send("STOPPING=1")

    async def keep_notified(
        self, *, status: Callable[[], str], is_alive: Callable[[], bool] = lambda: True
    ) -> NoReturn:
        """Send STATUS, and WATCHDOG while `is_alive`, three times in a watchdog's period and at least every second."""
        interval_seconds = min(1.0, (self.watchdog_seconds or 3.0) / 3)
        while True:
            if is_alive():
                self.watchdog()
            self.status(status())
            await trio.sleep(interval_seconds)

    def _send(self, message: str) -> None:
        if not self._address:
            return
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
            # Never wait for the manager: a full queue loses one status line, not the event loop.
            sender.settimeout(0)
            try:
                sender.sendto(message.encode(), self._address)
            except OSError as error:
                # No work depends on the manager, which may have gone away.
                logger.debug("the service manager did not take %s: %s", message, error)

"""Ends a process whose failure path overruns: the last rung, a thread that needs nothing of the event loop."""

from __future__ import annotations

import faulthandler
import os
import threading
from typing import Final

EXIT_CODE: Final = 74
"""Failed, and nobody can say that Kafka has the event."""


class LastResort:
    """A timer that is armed by the first failure; one that holds the GIL is left to the service manager's watchdog."""

    def __init__(self, seconds: float) -> None:
        """`seconds` from arming to the end; more than the failure path's own deadlines add up to."""
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def arm(self) -> None:
        """Start counting; when it counts already, that goes on."""
        if self._timer is None:
            self._timer = threading.Timer(self._seconds, self._end)
            self._timer.daemon = True
            self._timer.start()

    def disarm(self) -> None:
        """The failure has been dealt with."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        # Written past Python's streams and logging, whose locks a stuck thread may hold.
        os.write(2, f"the failure path took more than {self._seconds:g} s; ending without it\n".encode())
        faulthandler.dump_traceback(file=2)
        os._exit(EXIT_CODE)

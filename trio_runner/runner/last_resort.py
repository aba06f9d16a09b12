"""Ends a process whose failure path overruns: the last rung, a thread that needs nothing of the event loop."""

from __future__ import annotations

import faulthandler
import os
import threading
from typing import Final

from trio_runner.errors import ExitCode

STEP_SECONDS: Final = 0.5
SAYING_SECONDS: Final = 1.0


class LastResort:
    """A timer that is armed by the first failure; one that holds the GIL is left to the service manager's watchdog."""

    def __init__(self, seconds: float) -> None:
        """`seconds` from arming to the end; more than the failure path's own deadlines add up to."""
        self._seconds = seconds
        self._disarmed: threading.Event | None = None

    def arm(self) -> None:
        """Start counting; when it counts already, that goes on."""
        if self._disarmed is None:
            self._disarmed = threading.Event()
            threading.Thread(target=self._count, args=(self._disarmed,), daemon=True).start()

    @property
    def armed(self) -> bool:
        """Whether it counts."""
        return self._disarmed is not None

    def disarm(self) -> None:
        """The failure has been dealt with."""
        if self._disarmed is not None:
            self._disarmed.set()
            self._disarmed = None

    def _count(self, disarmed: threading.Event) -> None:
        # In steps: a process that was stopped for a while has not had that time for its failure path.
        left = self._seconds
        while left > 0:
            if disarmed.wait(min(STEP_SECONDS, left)):
                return
            left -= STEP_SECONDS
        self._end()

    def _end(self) -> None:
        # Whoever should read standard error may be gone, or be what everything waits for.
        saying = threading.Thread(target=self._say_why, daemon=True)
        try:
            saying.start()
            saying.join(SAYING_SECONDS)
        finally:
            os._exit(ExitCode.UNCONFIRMED)

    def _say_why(self) -> None:
        """Past Python's streams and logging, whose locks a stuck thread may hold."""
        os.write(2, f"the failure path took more than {self._seconds:g} s; ending without it\n".encode())
        faulthandler.dump_traceback(file=2)

"""Ends a process whose failure path overruns, by a thread that does not need the event loop."""

from __future__ import annotations

import faulthandler
import os
import threading
from typing import Final

from trio_runner.errors import ExitCode

STEP_SECONDS: Final = 0.5
MESSAGE_SECONDS: Final = 1.0


class LastResort:
    """A timer that the first failure arms. A thread that holds the GIL stops it too; the watchdog ends that process."""

    def __init__(self, seconds: float) -> None:
        """Wait `seconds` from arming to the end, which is longer than the sum of the failure path's own deadlines."""
        self._seconds = seconds
        self._disarmed: threading.Event | None = None

    def arm(self) -> None:
        """Start the timer; a timer that runs already goes on."""
        if self._disarmed is None:
            self._disarmed = threading.Event()
            threading.Thread(target=self._count, args=(self._disarmed,), daemon=True).start()

    @property
    def armed(self) -> bool:
        """Whether the timer runs."""
        return self._disarmed is not None

    def disarm(self) -> None:
        """Stop the timer: the failure path has come to its end."""
        if self._disarmed is not None:
            self._disarmed.set()
            self._disarmed = None

    def _count(self, disarmed: threading.Event) -> None:
        # In steps, because the failure path of a process that is stopped (SIGSTOP) does not run either.
        left = self._seconds
        while left > 0:
            if disarmed.wait(min(STEP_SECONDS, left)):
                return
            left -= STEP_SECONDS
        self._end()

    def _end(self) -> None:
        # A reader of standard error that reads no more would block the write, so another thread writes.
        writing = threading.Thread(target=self._write_why, daemon=True)
        try:
            writing.start()
            writing.join(MESSAGE_SECONDS)
        finally:
            os._exit(ExitCode.UNCONFIRMED)

    def _write_why(self) -> None:
        """Write the reason and all stacks to the descriptor: a stuck thread may hold the locks of the streams."""
        os.write(2, f"the failure path took more than {self._seconds:g} s; ending without it\n".encode())
        faulthandler.dump_traceback(file=2)

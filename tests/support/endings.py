"""How units end, in both notations of systemd, and the error code of each ending."""

from __future__ import annotations

import signal
from typing import NamedTuple

from trio_runner.errors import ErrorCode


class Ending(NamedTuple):
    """The end of a unit's main process; without `how`, systemd knows of no process."""

    result: str
    how: str
    status: str
    """An exit code, or the name of a signal without SIG."""
    code: ErrorCode | None
    """None: the process has reported its end itself."""

    def variables(self) -> dict[str, str]:
        """What `ExecStopPost=` finds in its environment (systemd.exec(5))."""
        return {"SERVICE_RESULT": self.result, "EXIT_CODE": self.how, "EXIT_STATUS": self.status}

    def properties(self) -> dict[str, str]:
        """What `systemctl show` prints: the codes of waitid(2), and numbers in the place of names."""
        how = {"": 0, "exited": 1, "killed": 2, "dumped": 3}[self.how]
        status = self.status or "0"
        number = int(status) if status.isdecimal() else signal.Signals[f"SIG{status}"].value
        return {"Result": self.result or "success", "ExecMainCode": str(how), "ExecMainStatus": str(number)}


ENDINGS = [
    Ending("success", "exited", "0", None),
    Ending("exit-code", "exited", "75", None),
    Ending("exit-code", "exited", "65", None),
    Ending("exit-code", "exited", "79", None),
    Ending("exit-code", "exited", "74", ErrorCode.INTERNAL),
    Ending("exit-code", "exited", "1", ErrorCode.INTERNAL),
    Ending("exit-code", "exited", "203", ErrorCode.INTERNAL),
    Ending("success", "killed", "TERM", ErrorCode.INTERRUPTED),
    Ending("signal", "killed", "TERM", ErrorCode.INTERRUPTED),
    Ending("signal", "killed", "KILL", ErrorCode.RUNNER_KILLED),
    Ending("signal", "killed", "SEGV", ErrorCode.RUNNER_KILLED),
    Ending("core-dump", "dumped", "ABRT", ErrorCode.RUNNER_KILLED),
    Ending("watchdog", "killed", "ABRT", ErrorCode.RUNNER_HUNG),
    Ending("watchdog", "dumped", "ABRT", ErrorCode.RUNNER_HUNG),
    Ending("watchdog", "killed", "KILL", ErrorCode.RUNNER_HUNG),
    Ending("timeout", "killed", "TERM", ErrorCode.RUNNER_HUNG),
    Ending("oom-kill", "killed", "KILL", ErrorCode.RUNNER_OUT_OF_MEMORY),
    Ending("", "", "", ErrorCode.RUNNER_KILLED),
]
"""Those that have one code, whoever asks."""

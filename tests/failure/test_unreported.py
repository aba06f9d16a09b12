"""How a process ended, by a service manager's variables, has an error code."""

from __future__ import annotations

import pytest

from trio_runner.errors import ErrorCode
from trio_runner.failure.unreported import cause_of_death


@pytest.mark.parametrize(
    ("result", "how", "status", "code"),
    [
        ("exit-code", "exited", "75", None),
        ("success", "exited", "0", None),
        ("exit-code", "exited", "65", None),
        ("exit-code", "exited", "78", None),
        ("exit-code", "exited", "79", None),
        ("exit-code", "exited", "74", ErrorCode.INTERNAL),
        ("exit-code", "exited", "1", ErrorCode.INTERNAL),
        ("success", "killed", "TERM", ErrorCode.INTERRUPTED),
        ("signal", "killed", "KILL", ErrorCode.RUNNER_KILLED),
        ("signal", "killed", "SEGV", ErrorCode.RUNNER_KILLED),
        ("core-dump", "dumped", "ABRT", ErrorCode.RUNNER_KILLED),
        ("watchdog", "killed", "ABRT", ErrorCode.RUNNER_HUNG),
        ("watchdog", "killed", "KILL", ErrorCode.RUNNER_HUNG),
        ("timeout", "killed", "TERM", ErrorCode.RUNNER_HUNG),
        ("oom-kill", "killed", "KILL", ErrorCode.RUNNER_OUT_OF_MEMORY),
        ("", "", "", ErrorCode.RUNNER_KILLED),
    ],
)
def test_a_service_managers_result_has_an_error_code(
    result: str, how: str, status: str, code: ErrorCode | None
) -> None:
    failure = cause_of_death({"SERVICE_RESULT": result, "EXIT_CODE": how, "EXIT_STATUS": status})
    assert (failure and failure.code) == code

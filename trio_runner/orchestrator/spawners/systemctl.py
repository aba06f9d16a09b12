"""Calls of `systemctl`: each under a deadline, each refusal with its remedy."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

import trio

from trio_runner.orchestrator.spawners.spawner import SpawnRefusedError

if TYPE_CHECKING:
    import subprocess

MANAGER_SECONDS: Final = 10.0
"""How long the service manager has for an answer. No request here waits for a unit to start or stop."""

NOT_ALLOWED, NOT_INSTALLED = 4, 5
"""LSB's exit codes of `systemctl`. Where polkit wants a password the exit code is 1, and only stderr says why."""

ADVICE: Final = {
    NOT_ALLOWED: "install systemd/trio-runner-orchestrator.rules into /etc/polkit-1/rules.d, or run as root",
    NOT_INSTALLED: "install systemd/trio-runner@.service into /etc/systemd/system and run `systemctl daemon-reload`, "
    "or change systemd.unit",
}


async def systemctl(manager: str, *arguments: str) -> str:
    """Run `systemctl` for the manager "system" or "user"; returns what it prints.

    Raises:
        SpawnRefusedError: The manager refuses, does not answer within `MANAGER_SECONDS`, or there is no `systemctl`.
    """
    # LC_ALL: `_refusal` recognises English messages. NOTIFY_SOCKET is for messages of the orchestrator alone.
    environ = {name: value for name, value in os.environ.items() if name != "NOTIFY_SOCKET"} | {"LC_ALL": "C"}
    try:
        with trio.fail_after(MANAGER_SECONDS):
            done = await trio.run_process(
                ["systemctl", f"--{manager}", "--no-ask-password", "--no-pager", *arguments],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=environ,
            )
    except trio.TooSlowError:
        raise SpawnRefusedError(f"systemctl --{manager} has not answered within {MANAGER_SECONDS:g} s") from None
    except OSError as error:
        remedy = 'install systemd, or change orchestrator.spawner to "process"'
        raise SpawnRefusedError(f"systemctl cannot be run: {error.strerror}; {remedy}") from error
    if done.returncode:
        raise SpawnRefusedError(_refusal(done))
    return done.stdout.decode(errors="replace")


def _refusal(done: subprocess.CompletedProcess[bytes]) -> str:
    message = " ".join(done.stderr.decode(errors="replace").split()) or f"systemctl exits with {done.returncode}"
    advice = ADVICE.get(done.returncode, "")
    if "authentication required" in message:
        advice = ADVICE[NOT_ALLOWED]
    elif "connect to bus" in message:
        advice = "is systemd running, and systemd.manager right?"
    return f"{message.rstrip('.')}; {advice}" if advice else message

"""A file that says which attempt a process works on, for whoever finds the process dead."""

from __future__ import annotations

import logging
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_runner.config import Config

logger = logging.getLogger(__name__)

WRITE_SECONDS: Final = 1.0

BEGUN: Final = "begun"
"""Lies beside the markers and stays: a process came as far as marking its attempt."""


class Marker(msgspec.Struct, frozen=True, kw_only=True):
    """Written before the claim and removed once the attempt's end is reported; its process may have died in between."""

    scenario_id: int
    instance_id: str
    pid: int
    pid_started: int
    """In the kernel's own ticks since boot: another process may have the number by now."""
    boot: str


def directory_of(config: Config, environ: Mapping[str, str]) -> Path:
    """The service manager's runtime directory, or else the data directory."""
    runtime = environ.get("RUNTIME_DIRECTORY", "").partition(":")[0]
    return Path(runtime or config.runner.data_dir)


def path_of(directory: Path, scenario_id: int, instance_id: str) -> Path:
    """Where the marker of that attempt lies."""
    return directory / f"attempt-{scenario_id}-{instance_id}.json"


async def write(directory: Path, scenario_id: int, instance_id: str) -> None:
    """Mark this process's attempt; where that cannot be done in time, the lease alone will tell of its death."""
    marker = Marker(
        scenario_id=scenario_id,
        instance_id=instance_id,
        pid=os.getpid(),
        pid_started=_started(os.getpid()) or 0,
        boot=_boot(),
    )
    path = path_of(directory, scenario_id, instance_id)

    def put() -> None:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        temporary = path.with_suffix(".tmp")
        temporary.write_bytes(msgspec.json.encode(marker))
        temporary.rename(path)
        (directory / BEGUN).touch()

    try:
        with trio.fail_after(WRITE_SECONDS):
            await trio.to_thread.run_sync(put, abandon_on_cancel=True)
    except (OSError, trio.TooSlowError) as error:
        logger.warning("%s cannot be written: %s", path, error or "no answer in time")


def remove(directory: Path, scenario_id: int, instance_id: str) -> None:
    """The attempt's end is reported."""
    path_of(directory, scenario_id, instance_id).unlink(missing_ok=True)


def of_dead_processes(directory: Path, scenario_id: int) -> list[Marker]:
    """The markers of that scenario whose processes are gone, the oldest first; what is no marker is passed over."""
    found = []
    for path in sorted(directory.glob(f"attempt-{scenario_id}-*.json"), key=lambda path: path.stat().st_mtime_ns):
        try:
            marker = msgspec.json.decode(path.read_bytes(), type=Marker)
        except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
            logger.warning("%s is no marker: %s", path, error)
            continue
        if marker.boot != _boot() or marker.pid_started != _started(marker.pid):
            found.append(marker)
    return found


def of_unmarked_process(scenario_id: int, environ: Mapping[str, str]) -> Marker | None:
    """What stands for the marker of a service that died before it wrote one: while it was imported, for instance.

    Only a runtime directory can tell, which is new with each start; the service manager's id of that start is the
    attempt's (systemd.exec(5)).
    """
    runtime, invocation = environ.get("RUNTIME_DIRECTORY", ""), environ.get("INVOCATION_ID", "")
    if not (runtime and invocation and "SERVICE_RESULT" in environ):
        return None
    if (Path(runtime.partition(":")[0]) / BEGUN).exists():
        return None
    return Marker(scenario_id=scenario_id, instance_id=str(uuid.UUID(invocation)), pid=0, pid_started=0, boot="")


def _started(pid: int) -> int | None:
    """When that process started; None: there is none, or it is a zombie."""
    try:
        # The program's name, in parentheses, may hold anything.
        state, *fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if state == "Z" else int(fields[18])


def _boot() -> str:
    """The kernel's id of this boot; none where the sandbox hides it, and there the runtime directory ends with it."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""

"""The last rung: a failure path that overruns ends with the process, whatever the event loop does."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.harness import PATIENCE_SECONDS, command, environment
from trio_runner.config.load import Config
from trio_runner.errors import ExitCode
from trio_runner.runner import daemon
from trio_runner.runner.last_resort import LastResort


def test_it_counts_from_the_first_failure_and_a_death_in_time_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = threading.Event()
    monkeypatch.setattr(LastResort, "_end", lambda _: ended.set())
    resort = LastResort(PATIENCE_SECONDS)
    resort.disarm()
    others = threading.enumerate()
    resort.arm()
    resort.arm()
    assert resort.armed
    (counting,) = [thread for thread in threading.enumerate() if thread not in others]
    resort.disarm()
    counting.join(PATIENCE_SECONDS / 2)
    assert (counting.is_alive(), ended.is_set()) == (False, False)
    resort._seconds = 0.2
    resort.arm()
    assert ended.wait(PATIENCE_SECONDS)


@pytest.mark.parametrize("kind", ["closed", "full"])
def test_nobody_who_reads_standard_error_can_hold_it_up(kind: str) -> None:
    script = """
import os, sys, time
from trio_runner.runner.last_resort import LastResort
reading, writing = os.pipe()
if sys.argv[1] == "closed":
    os.close(reading)
else:
    os.set_blocking(writing, False)
    try:
        while True:
            os.write(writing, bytes(65536))
    except BlockingIOError:
        os.set_blocking(writing, True)
os.dup2(writing, 2)
LastResort(0.05).arm()
time.sleep(60)
"""
    done = subprocess.run([command()[0], "-c", script, kind], env=environment(), timeout=PATIENCE_SECONDS, check=False)
    assert done.returncode == ExitCode.UNCONFIRMED


def test_draining_and_the_longest_death_fit_into_what_the_service_manager_grants() -> None:
    unit = (Path(__file__).parents[2] / "systemd" / "trio-runner@.service").read_text()
    granted = float(next(line for line in unit.splitlines() if line.startswith("TimeoutStopSec=")).partition("=")[2])
    config = Config()
    longest = daemon.FAILURE_SECONDS + config.kafka.publish_timeout_seconds + daemon.LAST_RESORT_MARGIN_SECONDS
    assert config.runner.drain_seconds + longest < granted

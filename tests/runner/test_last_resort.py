"""The last rung: a failure path that overruns ends with the process, whatever the event loop does."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from tests.support.fake_inference import Fault, at_frame, open_fake
from tests.support.harness import PATIENCE_SECONDS, command, environment, until
from tests.support.scene import Scene
from trio_runner.config.load import Config
from trio_runner.errors import ExitCode
from trio_runner.runner import daemon
from trio_runner.runner.last_resort import LastResort

PATCHED = """
import sys, time, trio
from trio_runner.cli.main import main
from trio_runner.failure import report as death
from trio_runner.runner import daemon

daemon.FAILURE_SECONDS = 1.0
daemon.LAST_RESORT_MARGIN_SECONDS = 0.5
{fault}
"""
"""The real program with a bug put into its failure path, and less patience."""

LOOP_BLOCKED = """
async def stuck(*args):
    time.sleep(600)
death.record_death = stuck
"""

CANCELLATION_IGNORED = """
async def stuck(*args):
    while True:
        with trio.CancelScope(shield=True):
            await trio.sleep(600)
death.record_death = stuck
"""


@pytest.mark.parametrize("fault", [LOOP_BLOCKED, CANCELLATION_IGNORED], ids=["blocked loop", "ignored cancellation"])
async def test_a_failure_path_that_overruns_ends_in_74(scene: Scene, clip: Path, fault: str) -> None:
    async with open_fake(plan=at_frame(20, Fault.STATUS_500)) as fake:
        config = scene.write_config(
            video={"path": str(clip)}, inference={"url": fake.url}, kafka={"publish_timeout_seconds": 0.5}
        )
        async with scene.cli.started("run", config, patch=PATCHED.format(fault=fault)) as running:
            done = await running.wait()

            async def nobody_left() -> bool:
                return running.family() == []

            await until(nobody_left, described="the decoder goes with it")
    assert done.code == ExitCode.UNCONFIRMED, done.err
    assert "took more than 2 s" in done.err
    assert "in main" in done.err, "it says where every thread was"
    scene.check_secrets(done.out, done.err)


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

"""A failure path that overruns ends with the real process."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fake_inference import Fault, at_frame, open_fake
from tests.support.harness import until
from tests.support.scene import Scene
from trio_runner.errors import ExitCode

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
    assert "in main" in done.err, "the traceback of every thread is printed"
    scene.check_secrets(done.out, done.err)

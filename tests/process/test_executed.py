"""Each verb once as a shell starts it, in an interpreter that has imported nothing; elsewhere the fork server does it.

`embedded` hosts the session's servers in this way, and the tests of systemd run `orchestrate`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.fake_inference import Fault, at_frame, open_fake
from tests.support.harness import Finished
from tests.support.scene import Scene


async def execute(scene: Scene, *arguments: str | Path) -> Finished:
    async with scene.cli.started(*arguments, executed=True) as running:
        done = await running.wait()
        assert running.family() == []
    assert "Traceback" not in done.err
    return done


@pytest.mark.kafka
async def test_every_verb_that_ends_by_itself(scene: Scene, clip: Path, new_scenario_id: Callable[[], int]) -> None:
    submitted = str(new_scenario_id())
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        # The session's database may hold other tests' events, which flush-spool would count.
        await scene.ledger.query("UPDATE retry_events SET published_at = now() WHERE published_at IS NULL")
        for code, verb, *options in [
            (0, "validate"),
            (0, "init-db"),
            (0, "check"),
            (0, "run"),
            (0, "show", str(scene.scenario_id)),
            (0, "events", "--json"),
            (0, "flush-spool"),
            (0, "report-death"),
            (0, "reap"),
            (0, "submit", "--video", str(clip), "--id", submitted),
            (0, "stop", submitted),
            # Nobody has died.
            (1, "retry", submitted),
            (0, "status"),
        ]:
            done = await execute(scene, str(verb), config, *map(str, options))
            assert done.code == code, f"{verb}: {done.out}{done.err}"
    await scene.check_rows(60)


async def test_a_run_that_dies_and_one_that_goes_on(scene: Scene, clip: Path) -> None:
    async with open_fake(plan=at_frame(20, Fault.STATUS_500)) as fake:
        config = scene.write_config(
            video={"path": str(clip)}, inference={"url": fake.url}, database={"batch_frames": 4}
        )
        done = await execute(scene, "run", config)
    assert done.code == 75, done.err
    await scene.check_death(done, "inference_unavailable", named=fake.url)
    await scene.check_resume(frames=60, video={"path": str(clip)})

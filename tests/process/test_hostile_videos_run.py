"""Hostile videos end the real process by their names; tests/video/test_hostile_videos.py has the whole corpus."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.support.fake_inference import open_fake
from tests.support.hostile_videos import CASES
from tests.support.scene import Scene

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", [
    "a JPEG of 16000 x 16000 among small ones",
    "an HLS playlist",
    "a link out of the root",
    "a root that is not there",
])  # fmt: skip
async def test_a_hostile_video_ends_the_real_process_by_its_name(name: str, scene: Scene, tmp_path: Path) -> None:
    case, directory = CASES[name], tmp_path / "video"
    await trio.Path(directory).mkdir()
    path = case.make(directory)
    options = case.options | {"root": case.options.get("root", "").format(directory=directory), "path": str(path)}
    async with open_fake() as fake:
        done = await scene.run_to_the_end(scene.write_config(video=options, inference={"url": fake.url}))
    assert done.code == 65, done.err
    scenario = await scene.ledger.existing(scene.scenario_id)
    code = scenario["last_error"]["code"]
    assert code in case.codes
    await scene.check_death(done, code, named=str(path), error_class="permanent")
    assert scenario["outcome"] == "failed"

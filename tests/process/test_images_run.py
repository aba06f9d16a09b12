"""Directories and zip archives of images, and `inspect`, with the real program."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from tests.support import clips, stills
from tests.support.harness import Cli, until
from tests.support.scene import Scene, held_run

IMAGES = {f"img{number}.png": stills.numbered(number) for number in range(60)}


@pytest.mark.parametrize("make", [stills.directory_of, stills.zip_of])
async def test_a_run_of_images_that_is_killed_goes_on_at_the_next_image(
    scene: Scene, tmp_path: Path, make: Callable[[Path, Mapping[str, bytes]], Path]
) -> None:
    path = make(tmp_path / "images", IMAGES)
    video = {"path": str(path), "fps": 25.0}
    invocation = f"{scene.scenario_id:032x}"
    async with held_run(scene, path, invocation=invocation, video=video) as held:
        held.running.send_signal(signal.SIGKILL)
        assert (await held.running.wait()).code == -signal.SIGKILL

        async def nobody_left() -> bool:
            return held.running.family() == []

        await until(nobody_left, described="the children are gone")
    assert 0 < await scene.stored() < 60
    variables = {"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL", "INVOCATION_ID": invocation}
    config = scene.directory / "runner.toml"
    async with scene.cli.started("report-death", config, variables=variables) as running:
        assert (await running.wait()).code == 0
    await scene.check_resume(frames=60, video=video)
    rows = await scene.ledger.predictions(scene.scenario_id)
    assert [row["pts_seconds"] for row in rows] == [number / 25 for number in range(60)]


async def test_inspect_as_a_shell_starts_it(cli: Cli, tmp_path: Path) -> None:
    video = clips.pixel_coded(tmp_path / "clip.mp4")
    sheet = tmp_path / "sheet.png"
    async with cli.started("inspect", video, "--frames", "0,9", "-o", sheet, "--json", executed=True) as running:
        done = await running.wait()
        assert running.family() == []
    assert (done.code, done.err) == (0, "")
    assert json.loads(done.out)["measured"]["frames"] == 60
    assert sheet.read_bytes().startswith(b"\x89PNG")

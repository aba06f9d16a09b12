"""The example of the README, run as it stands there."""

from __future__ import annotations

import json
import re
import socket
import sys
from pathlib import Path

import pytest

from tests.support import clips
from tests.support.fake_inference import open_fake
from tests.support.harness import (
    REPOSITORY,
    Cli,
)


def taken(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


async def test_the_readme_example_word_for_word(cli: Cli, tmp_path: Path) -> None:
    examples = re.findall(r"^```python\n(.*?)^```$", (REPOSITORY / "README.md").read_text(), re.DOTALL | re.MULTILINE)
    (example,) = (text for text in examples if "from trio_runner import Runner" in text)
    if taken(8001):
        pytest.skip("port 8001, which the example names, is taken on this machine")
    (tmp_path / "test_videos").mkdir()
    clips.pixel_coded(tmp_path / "test_videos" / "test_video.mp4", frames=30)
    (tmp_path / "example.py").write_text(example)
    async with (
        open_fake(port=8001) as fake,
        cli.started("example.py", program=[sys.executable, "-W", "error"]) as running,
    ):
        done = await running.wait()
    assert (done.code, done.out) == (0, "active\n"), done.err
    assert sorted(fake.numbers) == list(range(30))
    (tmp_path / "runner.toml").touch()
    shown = await cli("show", "runner.toml", "1", "--json")
    scenario = json.loads(shown.out)
    assert (scenario["status"], scenario["outcome"], scenario["frames_stored"]) == ("active", "completed", 30)


async def test_the_readme_shows_what_inspect_prints(cli: Cli) -> None:
    done = await cli("inspect", REPOSITORY / "test_videos" / "test_video.mp4")
    assert done.code == 0, done.err
    printed = done.out.replace(str(REPOSITORY), "/home/you/trio_runner")
    expected = "\n".join(f"    {line}".rstrip() for line in printed.splitlines())
    assert expected in (REPOSITORY / "README.md").read_text()

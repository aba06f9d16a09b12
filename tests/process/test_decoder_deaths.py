"""The ways in which the decoder child can fail, on the real process: each is named, recorded, published and resumed."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.support import clips
from tests.support.fake_inference import open_fake
from tests.support.scene import Scene, held_run

pytestmark = pytest.mark.slow


def interpreter(directory: Path, script: str, mode: int = 0o755) -> str:
    """A patch after which a script runs the program's children instead of Python."""
    path = directory / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(mode)
    return f"import sys\nsys.executable = {str(path)!r}"


# Root is above the limit on processes, so it is another user for as long as a start takes.
NO_MORE_PROCESSES = """
import os, resource, subprocess

class Starved(subprocess.Popen):
    def __init__(self, *arguments, **options):
        soft, hard = resource.getrlimit(resource.RLIMIT_NPROC)
        users = os.getresuid()
        resource.setrlimit(resource.RLIMIT_NPROC, (0, hard))
        if users[1] == 0:
            os.setresuid(54321, 54321, 0)
        try:
            super().__init__(*arguments, **options)
        finally:
            os.setresuid(*users)
            resource.setrlimit(resource.RLIMIT_NPROC, (soft, hard))

subprocess.Popen = Starved
"""

# tests/video has the messages of a decoder, and the other limits.
WAYS: dict[str, tuple[Callable[[Path], str], str]] = {
    "Python is gone": (
        lambda directory: f"import sys\nsys.executable = {str(directory / 'gone')!r}",
        "cannot be started with",
    ),
    "nobody knows where Python is": (lambda _: "import sys\nsys.executable = None", "cannot be started with no Python"),
    "Python may not be run": (partial(interpreter, script="", mode=0o644), "Permission denied"),
    "too many processes": (lambda _: NO_MORE_PROCESSES, "Resource temporarily unavailable"),
    "the package is gone": (
        partial(interpreter, script=f"exec {sys.executable} -I -S -m trio_runner.video.decoder"),
        "No module named 'trio_runner'",
    ),
    "it says nothing and ends well": (partial(interpreter, script="exit 0"), "exit code 0"),
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_decoder_that_is_no_use(way: str, scene: Scene, clip: Path) -> None:
    make, part = WAYS[way]
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        async with scene.cli.started("run", config, patch=make(scene.directory)) as running:
            done = await running.wait()
            assert running.family() == [], "a child outlived the runner"
    assert done.code == 75, done.err
    assert fake.numbers == []
    await scene.check_death(done, "decoder_failed", named=part)
    await scene.check_resume(frames=60, video={"path": str(clip)})


async def test_a_video_that_does_not_fit_into_memory(scene: Scene, clip: Path, tmp_path: Path) -> None:
    path = await trio.to_thread.run_sync(lambda: clips.pixel_coded(tmp_path / "huge.mp4", frames=2, size=(8000, 8000)))
    limits = {"limit_width": 8192, "limit_height": 8192, "limit_memory_mib": 256}
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(path), **limits}, inference={"url": fake.url})
        done = await scene.run_to_the_end(config)
    assert done.code == 75, done.err
    await scene.check_death(done, "decoder_failed", named="video.limit_memory_mib = 256")
    await trio.Path(path).write_bytes(await trio.Path(clip).read_bytes())
    await scene.check_resume(frames=60, video={"path": str(path)})


@pytest.mark.parametrize(("number", "code"), [
    (signal.SIGSEGV, "decoder_killed"),
    (signal.SIGKILL, "decoder_killed"),
    (signal.SIGSTOP, "decoder_stalled"),
])  # fmt: skip
async def test_a_decoder_that_ends_or_stands_still_at_work(
    scene: Scene, big_clip: Path, number: signal.Signals, code: str
) -> None:
    async with held_run(scene, big_clip, video={"frame_timeout_seconds": 3.0}) as held:
        decoder = held.running.decoder()
        assert decoder is not None
        os.kill(decoder.pid, number)
        held.fake.gate.set()
        done = await held.running.wait()
        assert held.running.family() == []
    assert done.code == 75, done.err
    body = await scene.check_death(done, code, named=str(big_clip))
    assert code == "decoder_stalled" or number.name.removeprefix("SIG") in body["error"]["message"]
    await scene.check_resume(frames=120, size=clips.LARGE_SIZE, video={"path": str(big_clip)})

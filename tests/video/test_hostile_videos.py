"""Every hostile video through the real child, and a dozen through the real process: named, in time, within bounds."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
import trio

from tests.support import clips
from tests.support.hostile_videos import CASES, Case, UnavailableError
from tests.support.watching import Showing
from trio_runner.config.sections import VideoSection
from trio_runner.errors import RunnerError
from trio_runner.model import Frame
from trio_runner.video.child import Video, spawn_decoder

pytestmark = pytest.mark.slow

AT_ONCE = 3
BATCH = 1 if "PYTEST_XDIST_WORKER" in os.environ else 24
"""How many videos are read along with the one that a test asks for. Another worker may have the tests of the others."""

WORST_SECONDS = 15.0
GROWTH_MIB = 256
"""How much more memory than for a normal clip a child may take."""

SAMPLE_SECONDS = 0.005
"""How often memory is looked at: what is touched in between is 20 MiB at the most, and a peak does not fall again."""


@dataclass
class Seen:
    """How reading one of the videos went."""

    showing: Showing = field(default_factory=Showing)
    unavailable: str = ""
    seconds: float = 0.0
    peak_mib: int = 0
    left_behind: bool = False


async def see(case: Case, directory: Path) -> Seen:
    """Make the video and read it to its end through the real `Video` and the real child."""
    seen = Seen()
    await trio.Path(directory).mkdir()
    try:
        path = await trio.to_thread.run_sync(case.make, directory)
    except UnavailableError as error:
        return Seen(unavailable=str(error))
    options = case.options | {"root": case.options.get("root", "").format(directory=directory), "path": str(path)}
    started = trio.current_time()
    async with spawn_decoder(VideoSection(**options)) as video:
        pid = video._child._process.pid
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch_memory, pid, seen)
            await read(video, case, path, seen.showing)
            nursery.cancel_scope.cancel()
    seen.seconds = trio.current_time() - started
    seen.left_behind = await trio.Path(f"/proc/{pid}").exists()
    return seen


async def read(video: Video, case: Case, path: Path, showing: Showing) -> None:
    try:
        await video.open()
        video.start(0)
        while isinstance(item := await video.receive(), Frame):
            showing.frames.append(item)
            if case.act is not None and len(showing.frames) == 1:
                await trio.to_thread.run_sync(case.act, path)
        showing.end = item
    except RunnerError as error:
        showing.error = error


async def watch_memory(pid: int, seen: Seen) -> None:
    # A process that has ended but is not yet reaped has no memory to report. The kernel answers from memory, so that
    # a thread for it would only take time.
    status = Path(f"/proc/{pid}/status")
    while peak := re.search(r"VmHWM:\s*(\d+)", status.read_text()):  # noqa: ASYNC240
        seen.peak_mib = int(peak[1]) // 1024
        await trio.sleep(SAMPLE_SECONDS)


class Corpus:
    """Reads a case when it is asked for, and the next ones along with it: one by one they would take much longer."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = count()
        self.seen: dict[str, Seen] = {}

    def __getitem__(self, name: str) -> Seen:
        if name not in self.seen:
            names = list(CASES)
            first = names.index(name)
            trio.run(self._see, [name for name in names[first : first + BATCH] if name not in self.seen])
        return self.seen[name]

    async def _see(self, names: list[str]) -> None:
        limit = trio.CapacityLimiter(AT_ONCE)
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(self._see_one, name, limit)
        # A machine may stand still for a while; what hangs hangs again, alone too.
        for name in names:
            if self.seen[name].seconds >= WORST_SECONDS:
                await self._see_one(name, limit)

    async def _see_one(self, name: str, limit: trio.CapacityLimiter) -> None:
        async with limit:
            self.seen[name] = await see(CASES[name], self._directory / str(next(self._numbers)))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return Corpus(tmp_path_factory.mktemp("hostile"))


@pytest.fixture(scope="module")
def normal(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    """A whole clip of the usual kind."""
    case = Case(make=lambda directory: clips.pixel_coded(directory / "clip.mp4"), frames=60)
    seen = trio.run(see, case, tmp_path_factory.mktemp("normal") / "0")
    assert seen.peak_mib > 0
    return seen


@pytest.mark.parametrize("name", CASES)
def test_a_hostile_video(name: str, corpus: Corpus, normal: Seen) -> None:
    case, ending = CASES[name], corpus[name]
    if ending.unavailable:
        pytest.skip(ending.unavailable)
    showing = ending.showing
    if showing.error is None:
        assert showing.end is not None
        assert len(showing.frames) == case.frames, "a video that is not whole passed for one"
    else:
        assert showing.error.code in case.codes, showing.error
    if case.numbered:
        assert showing.numbers == list(range(len(showing.frames)))
    assert showing.indices == list(range(len(showing.frames)))
    assert ending.seconds < WORST_SECONDS
    # A child that ends at once may be gone before it is looked at; `normal` shows that looking works.
    assert ending.peak_mib < normal.peak_mib + GROWTH_MIB
    assert not ending.left_behind


def test_the_corpus_is_large(corpus: Corpus, normal: Seen, capsys: pytest.CaptureFixture[str]) -> None:
    """It also sums up what the tests before it have read in this process."""
    assert len(CASES) >= 200
    read = {name: ending for name, ending in corpus.seen.items() if not ending.unavailable}
    if not read:
        return
    slowest = max(read, key=lambda name: read[name].seconds)
    largest = max(read, key=lambda name: read[name].peak_mib)
    errors = sum(ending.showing.error is not None for ending in read.values())
    with capsys.disabled():
        sys.stdout.write(
            f"\n{len(read)} hostile videos: {errors} ended in a named error, {len(read) - errors} whole; the slowest "
            f"took {read[slowest].seconds:.1f} s ({slowest}), the largest {read[largest].peak_mib} MiB where a normal "
            f"clip takes {normal.peak_mib} ({largest})\n"
        )

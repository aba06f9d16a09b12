"""Files that end too early, and files with changed bytes."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.cases.video import patching
from tests.cases.video.case import Case, steady
from tests.cases.video.mp4 import FRAGMENTED, H264, written
from tests.cases.video.writing import Track, write
from trio_runner.errors import ErrorCode

THIRTY = Track(numbers=range(30))
FRAMES = steady(30)
INDEX_FIRST = {"movflags": "+faststart"}


def _cut(part: float, track: Track = THIRTY, **options: object) -> Callable[[Path], object]:
    return written(track, then=partial(patching.cut, part=part), **options)


def write_flipped(path: Path, *, seed: int) -> None:
    """Write an MP4 with B-frames in which 20 bytes of its media data have changed."""
    write(path, THIRTY, mux=INDEX_FIRST)
    patching.flip(path, 20, seed=seed)


CASES = [
    *(
        Case(
            name=f"cut_{percent}_percent.{suffix}",
            make=_cut(percent / 100, track, mux=INDEX_FIRST if suffix == "mp4" else {}),
            frames=FRAMES,
            code=ErrorCode.VIDEO_TRUNCATED,
        )
        for suffix, track in (("mp4", THIRTY), ("mkv", THIRTY), ("avi", Track(codec="mpeg4", numbers=range(30))))
        for percent in (40, 70, 90)
    ),
    Case(
        name="cut_within_last_frame.mkv",
        make=written(H264, then=patching.cut_last_frame),
        frames=steady(12),
        code=ErrorCode.VIDEO_TRUNCATED,
    ),
    Case(
        name="cut_fragmented.mp4",
        make=_cut(0.7, mux=FRAGMENTED),
        frames=FRAMES,
        code=ErrorCode.VIDEO_TRUNCATED,
    ),
    Case(name="cut_index_lost.mp4", make=_cut(0.7), code=ErrorCode.VIDEO_UNREADABLE),
    *(
        Case(
            name=f"flipped_{seed}.mp4",
            make=partial(write_flipped, seed=seed),
            frames=FRAMES,
            some=True,
            options={"on_corrupt": "skip"},
        )
        for seed in (1, 2, 3)
    ),
    Case(
        name="flipped.mp4",
        make=partial(write_flipped, seed=1),
        frames=FRAMES,
        code=ErrorCode.VIDEO_TRUNCATED,
    ),
]

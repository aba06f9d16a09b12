"""Files that end too early, and files with changed bytes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

from tests.cases.video import patching
from tests.cases.video.case import Case, Shown, steady
from tests.cases.video.mp4 import FRAGMENTED, written
from tests.cases.video.writing import Track, write
from trio_runner.errors import ErrorCode

# Large enough for a cut to go through the pictures, and not through the container's header or index.
LARGE = (192, 128)
THIRTY = Track(numbers=range(30), size=LARGE)
MPEG4 = Track(codec="mpeg4", numbers=range(30), size=LARGE)
FRAMES = steady(30)
INDEX_FIRST = {"movflags": "+faststart"}


def _cut(part: float, track: Track = THIRTY, **options: object) -> Callable[[Path], object]:
    return written(track, then=partial(patching.cut, part=part), **options)


GROUP = 6
"""Each key frame is so many frames after the one before, and no picture refers past one."""


def write_flipped(path: Path, *, packets: Collection[int]) -> None:
    """Write an MP4 with B-frames in which some packets are damaged."""
    write(path, THIRTY, mux=INDEX_FIRST)
    patching.flip(path, packets)


def outside(*packets: int) -> tuple[Shown, ...]:
    """The frames of the groups of pictures that hold none of these packets."""
    damaged = {packet // GROUP for packet in packets}
    return tuple(shown for shown in FRAMES if shown[0] // GROUP not in damaged)


CASES = [
    *(
        Case(
            name=f"cut_{percent}_percent.{suffix}",
            make=_cut(percent / 100, track, mux=INDEX_FIRST if suffix == "mp4" else {}),
            frames=FRAMES,
            size=LARGE,
            code=ErrorCode.VIDEO_TRUNCATED,
        )
        for suffix, track in (("mp4", THIRTY), ("mkv", THIRTY), ("avi", MPEG4))
        for percent in (70, 80, 90)
    ),
    Case(
        name="cut_within_last_frame.mkv",
        make=written(Track(options={"bf": "0"}), then=patching.cut_last_frame),
        frames=steady(12),
        code=ErrorCode.VIDEO_TRUNCATED,
    ),
    Case(
        name="cut_fragmented.mp4",
        make=_cut(0.7, mux=FRAGMENTED),
        frames=FRAMES,
        code=ErrorCode.VIDEO_TRUNCATED,
    ),
    Case(name="cut_index_lost.mp4", make=_cut(0.5), code=ErrorCode.VIDEO_TRUNCATED),
    # A key frame, a frame to which others refer, one to which none refers, and one near the end.
    *(
        Case(
            name=f"flipped_{packet}.mp4",
            make=partial(write_flipped, packets=[packet]),
            frames=FRAMES,
            size=LARGE,
            certain=outside(packet),
            options={"on_corrupt": "skip"},
        )
        for packet in (6, 13, 15, 27)
    ),
    Case(
        name="flipped.mp4",
        make=partial(write_flipped, packets=[13]),
        frames=FRAMES,
        size=LARGE,
        code=ErrorCode.VIDEO_TRUNCATED,
    ),
]

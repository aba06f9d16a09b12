"""Where in a file reading begins: close before the first frame that is wanted, with that frame's exact number.

An attempt that resumes knows the number and the time of the last stored frame, and `video.start_seconds` is a time.
There are two ways there:

- A container with a table of its key frames in order of time: FFmpeg seeks to a key frame before the stored frame, and
  the picture that has the stored time is the stored frame.
- Any other container, and `start_seconds`: the packets before are read but not decoded. Their times, sorted, are the
  frames that are presented, so they number the frame at which decoding begins.

Either way is taken only where it provably gives the frames that decoding from the start gives. Where that proof is
missing, CannotSeekError says why.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Final

import av

from trio_runner.errors import RunnerError
from trio_runner.video.decoder.announced import TABLES, CannotSeekError, check_seekable, demuxer_of, packets_of
from trio_runner.video.decoder.footage import Beginning
from trio_runner.video.decoder.skimming import skim

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from av.video.stream import VideoStream

    from trio_runner.video.decoder.footage import Footage, Picture

STEPS_BACK_SECONDS: Final = (0, 1, 4, 16, 64)
"""How much earlier than wanted a seek is aimed, until it leads to a key frame before the wanted frame."""

MAX_LANDINGS: Final = 2
"""From so many key frames decoding is tried before the file is decoded from its start."""


def resume(open_footage: Callable[[], Footage], index: int, seconds: float) -> tuple[Footage, Iterator[Picture]]:
    """Begin at frame `index`, which is presented at `seconds`; raises CannotSeekError.

    Returns:
        The file, and its pictures from that frame on.
    """
    footage = open_footage()
    check_seekable(footage.container, footage.stream)
    if demuxer_of(footage.container) not in TABLES:
        return skim(open_footage, seconds, index)
    for landed, beginning in _landings(open_footage, footage, footage.clock.raw(seconds)):
        pictures = landed.pictures(beginning)
        if stored := _reaches(pictures, beginning.floor if beginning.is_presented else None, seconds):
            landed.renumber(index + 1)
            return landed, chain([replace(stored, index=index)], pictures)
    raise CannotSeekError(f"no key frame leads to the last stored frame, {index}, at {seconds:.3f} s")


def _landings(open_footage: Callable[[], Footage], footage: Footage, aim: int) -> Iterator[tuple[Footage, Beginning]]:
    """Key frames at or before `aim`, a time in units of the stream, the nearest first; each in a file of its own."""
    seen: set[int] = set()
    for seconds in STEPS_BACK_SECONDS:
        beginning = _land(footage, aim - round(seconds / Fraction(footage.stream.time_base or 1)))
        if beginning is None or beginning.floor is None or beginning.floor > aim or beginning.floor in seen:
            continue
        seen.add(beginning.floor)
        yield footage, beginning
        if len(seen) == MAX_LANDINGS:
            return
        footage = open_footage()


def _land(footage: Footage, aim: int) -> Beginning | None:
    """The key frame to which a seek leads; None where it leads to none."""
    container, stream = footage.container, footage.stream
    # Before the first or after the last frame many demuxers refuse to seek. Another aim may work.
    with suppress(av.error.ArgumentError, av.error.InvalidDataError, av.error.PermissionError, av.error.EOFError):
        container.seek(aim, backward=True, any_frame=False, stream=stream)
        # Recordings that were joined byte by byte begin again at 0. FFmpeg sorts its table by time, so that the places
        # of the key frames in the file are then out of order. In MP4 any order is allowed, and its times are sums.
        if demuxer_of(container) == "matroska" and not _in_order(stream):
            raise CannotSeekError("its time seems to begin again somewhere")
        packets = packets_of(footage)
        for packet in packets:
            if packet.is_keyframe and not packet.is_corrupt:
                if packet.pts is None:
                    return None
                before = 0
                if stream.frames and packet.dts is not None:
                    before = max(0, stream.index_entries.search_timestamp(packet.dts, any_frame=True))
                return Beginning(
                    chain([packet], packets),
                    floor=packet.pts,
                    is_presented=not packet.is_discard,
                    packets_before=before,
                )
    return None


def _in_order(stream: VideoStream) -> bool:
    return all(before.pos <= after.pos for before, after in pairwise(stream.index_entries))


def _reaches(pictures: Iterator[Picture], first: int | None, seconds: float) -> Picture | None:
    """The picture that is whole and presented at exactly `seconds`; `pictures` are taken up to that one.

    Times that go back do not say which picture is which. If the key frame, which is presented at `first`, is not among
    them, then the decoder has to recover first, and may do so step by step.
    """
    last: int | None = None
    try:
        for picture in pictures:
            pts = picture.frame.pts
            if last is None and first is not None and not picture.frame.key_frame:
                return None
            if pts is None or (pts <= last if last is not None else first not in {None, pts}):
                return None
            last = pts
            if picture.pts_seconds >= seconds:
                return picture if picture.whole and picture.pts_seconds == seconds else None
    except RunnerError:
        # The video seems damaged before the stored frame. It was not when that frame was stored.
        return None
    return None

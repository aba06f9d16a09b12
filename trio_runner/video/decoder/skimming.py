"""Reads a file up to a time without decoding: the packets' times, sorted, number the frame that is presented then."""

from __future__ import annotations

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Final

from trio_runner.errors import RunnerError
from trio_runner.video.decoder.announced import (
    PROOF_PACKETS,
    CannotSeekError,
    check_seekable,
    checked,
    packets_of,
    prove_start,
)
from trio_runner.video.decoder.footage import Beginning
from trio_runner.video.decoder.sampling import TIMESTAMP_SLACK_SECONDS
from trio_runner.video.decoder.timing import JOIN_SECONDS, TS_DISCONT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from av.packet import Packet

    from trio_runner.video.decoder.footage import Footage, Picture

HELD_BYTES: Final = 64 * 2**20
"""The packets from the last key frames on are held in memory up to this size."""


@dataclass(slots=True)
class Skimmed:
    """The part of a file that was read and not decoded: the times of its frames, and its last packets."""

    times: array[int] = field(default_factory=lambda: array("q"))
    """Of each frame up to the time that was asked for, in units of the stream, in the order of presentation."""
    packets: int = 0
    groups: deque[list[Packet[Any]]] = field(default_factory=deque)
    """The last packets, one list from each key frame on. The first list may begin at the start of the file."""
    held: int = 0
    """The number of packets in `groups`."""
    held_bytes: int = 0


def skip_to(open_footage: Callable[[], Footage], seconds: float) -> tuple[Footage, Iterator[Picture]]:
    """Begin at the frame before the first one that is presented at or after `seconds`; raises CannotSeekError.

    Returns:
        The file, and its pictures from there on.
    """
    seconds -= 2 * TIMESTAMP_SLACK_SECONDS
    footage, packets, skimmed = _skim(open_footage, seconds)
    # The decoder may give no pictures for the first packets, because these refer to missing ones.
    passed = bisect_left(skimmed.times, prove_start(open_footage()))
    pictures = _checked_pictures(footage, packets, skimmed, passed)
    before: list[Picture] = []
    try:
        for picture in pictures:
            if picture.pts_seconds >= seconds:
                return footage, chain(before, [picture], pictures)
            before = [picture]
    except RunnerError as error:
        raise CannotSeekError("the part before video.start_seconds is damaged") from error
    return footage, iter(())


def resume(open_footage: Callable[[], Footage], index: int, seconds: float) -> tuple[Footage, Iterator[Picture]]:
    """Begin at frame `index`, which is presented at `seconds` and is stored; raises CannotSeekError.

    Returns:
        The file, and its pictures from that frame on.
    """
    footage, packets, skimmed = _skim(open_footage, seconds)
    passed = bisect_left(skimmed.times, footage.clock.raw(seconds)) - index
    pictures = _checked_pictures(footage, packets, skimmed, passed)
    try:
        for picture in pictures if passed >= 0 else ():
            if picture.index >= index and picture.pts_seconds == seconds:
                return footage, chain([picture], pictures)
            if picture.index >= index:
                break
    except RunnerError as error:
        raise CannotSeekError("the part before the last stored frame is damaged") from error
    raise CannotSeekError(f"its frame {index} is not at {seconds:.3f} s")


def _skim(open_footage: Callable[[], Footage], seconds: float) -> tuple[Footage, Iterator[Packet[Any]], Skimmed]:
    """Read the file up to `seconds`; returns it, the packets after that, and what was read."""
    footage = open_footage()
    check_seekable(footage.container, footage.stream)
    packets = packets_of(footage)
    return footage, packets, _read_up_to(footage, packets, footage.clock.raw(seconds))


def _checked_pictures(
    footage: Footage, packets: Iterator[Packet[Any]], skimmed: Skimmed, passed: int
) -> Iterator[Picture]:
    """The pictures of the last packets that were read, and of all after them.

    Args:
        footage: The file.
        packets: Those that have not been read.
        skimmed: Those that have been read.
        passed: How many of the packets, in order of time, give no picture before that of frame 0.

    Raises:
        CannotSeekError: A picture is not that of its packet.
    """
    held = list(chain.from_iterable(skimmed.groups))
    beginning = Beginning(chain(held, packets))
    if len(held) < skimmed.packets:
        floor = held[0].pts or 0
        place = bisect_left(skimmed.times, floor)
        if place == len(skimmed.times):
            raise CannotSeekError("a key frame is presented long after it is decoded")
        beginning = replace(beginning, floor=floor, index=place - passed)
    is_first = beginning.floor is not None
    for picture in footage.pictures(beginning):
        if is_first and not picture.frame.key_frame:
            raise CannotSeekError(f"frame {picture.index} is no key frame, although the container says so")
        is_first = False
        announced = skimmed.times[picture.index + passed : picture.index + passed + 1]
        if announced and picture.frame.pts != announced[0]:
            raise CannotSeekError(f"frame {picture.index} is not the one that its packets announce")
        yield picture


def _read_up_to(footage: Footage, packets: Iterator[Packet[Any]], until: int) -> Skimmed:
    skimmed = Skimmed()
    for pts, packet in checked(packets, footage):
        if not packet.is_discard:
            skimmed.times.append(pts)
        _hold(skimmed, packet)
        # No later packet is presented before it is decoded.
        if packet.dts is not None and packet.dts > until:
            break
    times = sorted(skimmed.times)
    # Of the later frames some may not have been read.
    skimmed.times = array("q", times[: bisect_right(times, until)])
    _check_times(footage, skimmed.times)
    return skimmed


def _hold(skimmed: Skimmed, packet: Packet[Any]) -> None:
    groups = skimmed.groups
    if not groups or (packet.is_keyframe and not packet.is_discard):
        groups.append([])
    groups[-1].append(packet)
    skimmed.packets += 1
    skimmed.held += 1
    skimmed.held_bytes += packet.size
    while len(groups) > 1 and (skimmed.held_bytes > HELD_BYTES or skimmed.held - len(groups[0]) >= PROOF_PACKETS):
        oldest = groups.popleft()
        skimmed.held -= len(oldest)
        skimmed.held_bytes -= sum(packet.size for packet in oldest)
    if skimmed.held_bytes > HELD_BYTES:
        raise CannotSeekError(f"its key frames are more than {HELD_BYTES // 2**20} MiB apart")


def _check_times(footage: Footage, times: array[int]) -> None:
    longest = JOIN_SECONDS / Fraction(footage.stream.time_base or 1)
    joins = footage.container.format.flags & TS_DISCONT
    for before, after in pairwise(times):
        if before == after:
            raise CannotSeekError("two of its frames have the same time")
        if joins and after - before > longest:
            raise CannotSeekError("recordings seem to be joined in it")

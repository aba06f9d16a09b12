"""Reads a file up to a time without decoding: the packets' times, sorted, number the frame that is presented then."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections import deque
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import chain, pairwise
from typing import TYPE_CHECKING, Any, Final

from trio_runner.errors import RunnerError
from trio_runner.video.decoder.announced import (
    PROOF_PACKETS,
    CannotSeekError,
    ParameterSets,
    check_seekable,
    is_picture,
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


def skip_to(open_footage: Callable[[], Footage], seconds: float) -> tuple[Footage, Iterator[Picture]]:
    """Begin at the frame before the first one that is presented at or after `seconds`; raises CannotSeekError.

    Returns:
        The file, and its pictures from there on.
    """
    footage = open_footage()
    check_seekable(footage.container, footage.stream)
    return skim(open_footage, seconds - 2 * TIMESTAMP_SLACK_SECONDS)


@dataclass(slots=True)
class Skimmed:
    """The part of a file that was read and not decoded: the times of its frames, and its last packets."""

    times: array[int] = field(default_factory=lambda: array("q"))
    """Of each frame, in units of the stream, in the order of presentation."""
    packets: int = 0
    groups: deque[list[Packet[Any]]] = field(default_factory=deque)
    """The last packets, one list from each key frame on. The first list may begin at the start of the file."""
    held_bytes: int = 0

    @property
    def held(self) -> int:
        """The number of packets in `groups`."""
        return sum(map(len, self.groups))


def skim(
    open_footage: Callable[[], Footage], seconds: float, index: int | None = None
) -> tuple[Footage, Iterator[Picture]]:
    """Read up to `seconds` without decoding, and decode the last packets to check that they are the frames expected.

    Args:
        open_footage: Opens the file.
        seconds: No frame is wanted that is presented earlier.
        index: The number of the frame that is presented at exactly `seconds` and is not wanted; None where there is no
            such frame.
    """
    footage = open_footage()
    packets = packets_of(footage)
    skimmed = _read_up_to(footage, packets, footage.clock.raw(seconds))
    # The decoder may give no pictures for the first packets, because these refer to missing ones.
    passed = bisect_left(skimmed.times, prove_start(open_footage()))
    held = list(chain.from_iterable(skimmed.groups))
    if len(held) == skimmed.packets:
        beginning = Beginning(chain(held, packets))
    else:
        floor = held[0].pts or 0
        number = bisect_left(skimmed.times, floor) - passed
        beginning = Beginning(chain(held, packets), floor=floor, index=number)
    pictures = footage.pictures(beginning)
    before: list[Picture] = []
    try:
        for picture in pictures:
            if beginning.floor is not None and not (before or picture.frame.key_frame):
                raise CannotSeekError(f"frame {picture.index} is no key frame, although the container says so")
            _check_announced(picture, skimmed.times[picture.index + passed : picture.index + passed + 1])
            if picture.index == index:
                if picture.pts_seconds != seconds:
                    break
                return footage, chain([picture], pictures)
            if picture.pts_seconds >= seconds:
                if index is not None:
                    break
                return footage, chain(before, [picture], pictures)
            before = [picture]
        else:
            if index is None:
                return footage, iter(())
    except RunnerError as error:
        place = "video.start_seconds" if index is None else "the last stored frame"
        raise CannotSeekError(f"the part before {place} is damaged") from error
    raise CannotSeekError(f"its frame {index} is not at {seconds:.3f} s")


def _check_announced(picture: Picture, announced: array[int]) -> None:
    """Raise CannotSeekError if this picture has another time than the frame that was announced for its number."""
    if announced and picture.frame.pts != announced[0]:
        raise CannotSeekError(f"frame {picture.index} is not the one that its packets announce")


def _read_up_to(footage: Footage, packets: Iterator[Packet[Any]], until: int) -> Skimmed:
    skimmed, latest = Skimmed(), None
    extradata = footage.stream.codec_context.extradata or b""
    parameter_sets = ParameterSets(footage.codec, extradata)
    for packet in packets:
        if packet.pts is None:
            raise CannotSeekError(f"frame {skimmed.packets} has no time of its own")
        # Matroska holds no times of decoding, and FFmpeg can compute none for the first packets.
        if packet.dts is not None:
            if latest is not None and packet.dts <= latest:
                raise CannotSeekError(f"time stands still or goes back at frame {skimmed.packets}")
            latest = packet.dts
        if packet.is_corrupt or not is_picture(packet, footage.codec, extradata):
            raise CannotSeekError(f"there may be no picture in the packet of frame {skimmed.packets}")
        parameter_sets.check(packet)
        if not packet.is_discard:
            skimmed.times.append(packet.pts)
        _hold(skimmed, packet)
        # No later packet is presented before it is decoded.
        if latest is not None and latest > until:
            break
    skimmed.times = array("q", sorted(skimmed.times))
    _check_times(footage, skimmed.times)
    return skimmed


def _hold(skimmed: Skimmed, packet: Packet[Any]) -> None:
    groups = skimmed.groups
    if not groups or (packet.is_keyframe and not packet.is_discard):
        groups.append([])
    groups[-1].append(packet)
    skimmed.packets += 1
    skimmed.held_bytes += packet.size
    while len(groups) > 1 and (skimmed.held_bytes > HELD_BYTES or skimmed.held - len(groups[0]) >= PROOF_PACKETS):
        skimmed.held_bytes -= sum(packet.size for packet in groups.popleft())
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

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

from array import array
from bisect import bisect_left
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from itertools import chain, islice, pairwise
from typing import TYPE_CHECKING, Any, Final

import av

from trio_runner.errors import RunnerError
from trio_runner.video.decoder.footage import Beginning
from trio_runner.video.decoder.sampling import TIMESTAMP_SLACK_SECONDS
from trio_runner.video.decoder.timing import JOIN_SECONDS, TS_DISCONT

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    from trio_runner.video.decoder.footage import Footage, Picture

TABLES: Final = frozenset({"mov", "matroska", "avi"})
"""Demuxers of containers that hold a table of their key frames in order of time."""

SEEKABLE: Final = TABLES | {"flv", "asf", "mxf", "mpegts", "mpeg", "ogg", "dv", "ivf"}
"""Demuxers whose key frames can be decoded by themselves, and whose packets have times.

APNG marks each frame as a key frame although it refers to the one before. Streams without a container have no times.
"""

STEPS_BACK_SECONDS: Final = (0, 1, 4, 16, 64)
"""How much earlier than wanted a seek is aimed, until it leads to a key frame before the wanted frame."""

MAX_LANDINGS: Final = 2
"""From so many key frames decoding is tried before the file is decoded from its start."""

PROOF_PACKETS: Final = 32
"""Decoding begins so many packets earlier than necessary: the times of the pictures must be those of the packets."""

HELD_BYTES: Final = 64 * 2**20
"""The packets from the last key frames on are held in memory up to this size."""

SMALLEST_PICTURE_BYTES: Final = 20
"""A shorter packet of MPEG-4 part 2 may say that there is no picture (vop_coded = 0)."""


class CannotSeekError(Exception):
    """Decoding has to begin at the start of the file; the message says why."""


def resume(open_footage: Callable[[], Footage], index: int, seconds: float) -> tuple[Footage, Iterator[Picture]]:
    """Begin at frame `index`, which is presented at `seconds`; raises CannotSeekError.

    Returns:
        The file, and its pictures from that frame on.
    """
    footage = open_footage()
    check_seekable(footage.container, footage.stream)
    if _demuxer(footage.container) not in TABLES:
        return _skim(open_footage, seconds, index)
    for landed, beginning in _landings(open_footage, footage, footage.clock.raw(seconds)):
        pictures = landed.pictures(beginning)
        if stored := _reaches(pictures, beginning.floor if beginning.is_presented else None, seconds):
            landed.renumber(index + 1)
            return landed, chain([replace(stored, index=index)], pictures)
    raise CannotSeekError(f"no key frame leads to the last stored frame, {index}, at {seconds:.3f} s")


def skip_to(open_footage: Callable[[], Footage], seconds: float) -> tuple[Footage, Iterator[Picture]]:
    """Begin at the frame before the first one that is presented at or after `seconds`; raises CannotSeekError.

    Returns:
        The file, and its pictures from there on.
    """
    footage = open_footage()
    check_seekable(footage.container, footage.stream)
    return _skim(open_footage, seconds - 2 * TIMESTAMP_SLACK_SECONDS)


def check_seekable(container: InputContainer, stream: VideoStream) -> None:
    """Raise CannotSeekError if key frames or times of this kind of file cannot be relied on."""
    if _demuxer(container) not in SEEKABLE:
        raise CannotSeekError(f"{container.format.long_name} has no key frames with times of their own")
    if _demuxer(container) == "avi" and stream.codec_context.has_b_frames:
        raise CannotSeekError("AVI holds no times of presentation for reordered frames")
    if container.start_time is None:
        raise CannotSeekError("the container does not say at what time it begins")


def _demuxer(container: InputContainer) -> str:
    return container.format.name.partition(",")[0]


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
        if _demuxer(container) == "matroska" and not _in_order(stream):
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


def packets_of(footage: Footage) -> Iterator[Packet[Any]]:
    """The packets of the file from where it is read on, each with its time of presentation, if the file has it."""
    avi = _demuxer(footage.container) == "avi"
    for packet in footage.demuxed():
        # Without reordered frames, and there are none in an AVI that is read here, both times are the same.
        if avi and packet.pts is None:
            packet.pts = packet.dts
        yield packet


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


def _skim(
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
        raise CannotSeekError(f"it is damaged: {error.message}") from error
    raise CannotSeekError(f"its frame {index} is not at {seconds:.3f} s")


def _check_announced(picture: Picture, announced: array[int]) -> None:
    """Raise CannotSeekError if this picture has another time than the frame that was announced for its number."""
    if announced and picture.frame.pts != announced[0]:
        raise CannotSeekError(f"frame {picture.index} is not the one that its packets announce")


def prove_start(footage: Footage) -> int:
    """Check that the first pictures are the frames that the packets announce, in the order of their times.

    Args:
        footage: The file, of which nothing has been read.

    Returns:
        The time of the first picture, in units of the stream. Packets that are presented earlier give no picture,
        because they refer to missing ones.

    Raises:
        CannotSeekError: A packet may hold a single field, or none or several pictures.
    """
    announced: list[int | None] = []

    def packets() -> Iterator[Packet[Any]]:
        for packet in packets_of(footage):
            if not packet.is_discard:
                announced.append(packet.pts)
            yield packet

    try:
        shown = [picture.frame.pts for picture in islice(footage.pictures(Beginning(packets())), PROOF_PACKETS)]
    except RunnerError as error:
        raise CannotSeekError(f"its beginning is damaged: {error.message}") from error
    first = shown[0] if shown else None
    if first is None or None in announced:
        raise CannotSeekError("its first frames have no times of their own")
    if sorted(pts for pts in announced if pts is not None and pts >= first)[: len(shown)] != shown:
        raise CannotSeekError("its first frames are not those that its packets announce")
    return first


def _read_up_to(footage: Footage, packets: Iterator[Packet[Any]], until: int) -> Skimmed:
    skimmed, latest = Skimmed(), None
    for packet in packets:
        if packet.pts is None:
            raise CannotSeekError(f"frame {skimmed.packets} has no time of its own")
        # Matroska holds no times of decoding, and FFmpeg can compute none for the first packets.
        if packet.dts is not None:
            if latest is not None and packet.dts <= latest:
                raise CannotSeekError(f"time stands still or goes back at frame {skimmed.packets}")
            latest = packet.dts
        if packet.is_corrupt or not is_picture(packet, footage.codec):
            raise CannotSeekError(f"there may be no picture in the packet of frame {skimmed.packets}")
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


def is_picture(packet: Packet[Any], codec: str) -> bool:
    """Whether one picture is presented for this packet, as far as that can be known without decoding it."""
    if codec == "vp8":
        # The first byte's bit 4 is show_frame (RFC 6386 §9.1). Others only refer to a frame without it.
        return bool(memoryview(packet)[0] & 0x10)
    return codec != "mpeg4" or packet.size >= SMALLEST_PICTURE_BYTES

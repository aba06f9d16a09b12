"""Decodes of a video only what the selected frames need.

Packets are read a group at a time: from one key frame up to the next. The times of a group's packets, sorted, are its
frames, so they can be numbered and selected before anything is decoded. Of each group only this is decoded then:

- nothing, if no frame of it is selected, nor one after it that still refers to it;
- otherwise the packets up to the last selected one, without those to which no frame refers.

With `key_frames_only` that leaves the key frame alone. Every picture that comes out is checked against its packet.
Where a group cannot be numbered like this, CannotSeekError is raised, and the video is decoded frame by frame.
"""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from trio_runner.video.decoder.announced import CannotSeekError, checked
from trio_runner.video.decoder.bitstream import is_idr
from trio_runner.video.decoder.skimming import HELD_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.packet import Packet
    from av.video.frame import VideoFrame

    from trio_runner.video.decoder.footage import Footage
    from trio_runner.video.decoder.sampling import Sampler

WITH_UNREFERENCED: Final = frozenset({"h264", "mpeg1video", "mpeg2video"})
"""Codecs that mark the frames to which no other refers. HEVC marks those to which none of the same layer refers."""


class Held(NamedTuple):
    """A packet that waits for the decision whether it is decoded."""

    pts: int
    """When it is presented, in units of the stream."""
    packet: Packet[Any]


class Needed:
    """Chooses the packets of one stream that are decoded, and numbers the pictures that come out.

    Args:
        footage: The file that the packets come from.
        sampler: Decides which frames are selected; its own copy, in the state at the start of the video or, where the
            attempt resumes, after the last stored frame.
        first_time: The time of the first picture that the decoder gives, in units of the stream.
        first_frame: Frames before this one are stored already.
        last_seconds: When the frame before `first_frame` is presented; None where none is stored.
        key_frames_only: Whether only key frames can be selected.
        deinterlaces: Whether interlaced pictures are deinterlaced, for which those around them are needed.
    """

    def __init__(
        self,
        footage: Footage,
        sampler: Sampler,
        *,
        first_time: int,
        first_frame: int,
        last_seconds: float | None,
        key_frames_only: bool,
        deinterlaces: bool,
    ) -> None:
        self._footage, self._sampler, self._first_frame = footage, sampler, first_frame
        self._last_seconds = last_seconds
        self._decoder, self._key_frames_only = footage.stream.codec_context, key_frames_only
        self._needs_neighbours = deinterlaces
        self._seconds = footage.clock.plain
        self._latest = first_time - 1
        self._index = 0
        # The selected frames that have not come out, by their times: number and time in seconds.
        self._awaited: dict[int, tuple[int, float]] = {}
        self._openers: set[int] = set()
        """The times of the key frames at which decoding has begun again."""

    def packets(self, source: Iterator[Packet[Any]]) -> Iterator[Packet[Any]]:
        """The packets that are to be decoded; `source` are those from the start of the file on.

        Raises:
            CannotSeekError: The frames of the video cannot be told from its packets.
        """
        complete: list[Held] = []
        group: list[Held] = []
        size = 0
        for pts, packet in checked(source, self._footage):
            opens = self._opens(packet)
            if complete and (opens or pts > group[0].pts):
                yield from self._settle(complete, group)
                complete, size = [], sum(held.packet.size for held in group)
                if self._sampler.exhausted and not any(held.pts in self._awaited for held in group):
                    return
            if group and opens:
                complete, group = group, []
            group.append(Held(pts, packet))
            size += packet.size
            if size > HELD_BYTES:
                raise CannotSeekError(f"its key frames are more than {HELD_BYTES // 2**20} MiB apart")
        if complete:
            yield from self._settle(complete, group)
        if group:
            yield from self._settle(group, [])
        # Frames that were not decoded count as if they had been.
        if not self._sampler.exhausted:
            self._footage.decoded = self._index

    def number(self, frame: VideoFrame) -> tuple[int, float] | None:
        """Number and time in seconds of a selected picture; None for one that is not selected.

        Raises:
            CannotSeekError: A picture that should have come out before this one has not.
        """
        if frame.interlaced_frame and self._needs_neighbours:
            raise CannotSeekError("interlaced pictures are completed from those before and after them")
        if frame.pts in self._openers and not frame.key_frame:
            # Some AVI files mark all frames as key frames.
            raise CannotSeekError(f"frame {self._index} is no key frame, although the container says so")
        if frame.pts not in self._awaited:
            return None
        if min(self._awaited) != frame.pts:
            raise CannotSeekError(f"no picture came out for frame {min(self._awaited.values())[0]}")
        return self._awaited.pop(frame.pts)

    def check_end(self) -> None:
        """Raise CannotSeekError if a selected picture has not come out by the end of the video."""
        if self._awaited:
            raise CannotSeekError(f"no picture came out for frame {min(self._awaited.values())[0]}")

    def _opens(self, packet: Packet[Any]) -> bool:
        """Whether decoding can begin at this packet."""
        if not packet.is_keyframe or packet.is_discard:
            return False
        if self._footage.codec != "h264" or is_idr(packet, self._decoder.extradata or b""):
            return True
        # Other key frames of H.264 may be the beginning of a gradual recovery.
        if self._key_frames_only:
            raise CannotSeekError(f"the key frame after frame {self._index} is not one that stands by itself")
        return False

    def _settle(self, group: list[Held], following: list[Held]) -> Iterator[Packet[Any]]:
        """Number and select the frames that are presented before the first of `following`, and decode `group`."""
        # Decoded after a key frame, and presented before it.
        leading = [held for held in following if held.pts < following[0].pts]
        # Those of `group` itself were numbered with the group before. In the first group there is none before, and its
        # frames before the first picture give no picture.
        lowest = group[0].pts if self._index else self._latest + 1
        fresh = [held for held in group if held.pts >= lowest] + leading
        times = sorted(held.pts for held in fresh if not held.packet.is_discard)
        border = [following[0].pts] if following else []
        if any(before >= after for before, after in pairwise([self._latest, *times, *border])):
            raise CannotSeekError(f"times repeat themselves or go back after frame {self._index}")
        keys = {held.pts for held in group if held.packet.is_keyframe} if self._key_frames_only else None
        for pts in times:
            self._select(pts, candidate=keys is None or pts in keys)
        self._latest = times[-1] if times else self._latest
        yield from self._decoded(group, whole=bool(leading), at_end=not following)

    def _select(self, pts: int, *, candidate: bool) -> None:
        index, self._index = self._index, self._index + 1
        if index == self._first_frame - 1 and self._last_seconds not in {None, self._seconds(pts)}:
            raise CannotSeekError(f"its frame {index} is not at {self._last_seconds:.3f} s")
        if index < self._first_frame or not candidate:
            return
        seconds = self._seconds(pts)
        if self._sampler.select(index, seconds):
            self._awaited[pts] = (index, seconds)

    def _decoded(self, group: list[Held], *, whole: bool, at_end: bool) -> Iterator[Packet[Any]]:
        if at_end:
            # Where a file was cut often shows only once its last packet is decoded.
            skipped = group[0].pts if self._key_frames_only else None
            group = [held for held in group if skipped is None or held.pts >= skipped]
        last = max((place for place, held in enumerate(group) if held.pts in self._awaited), default=-1)
        # Frames that are presented before the next key frame but decoded after it refer to this group. They are no key
        # frames themselves.
        if at_end or (whole and not self._key_frames_only):
            last = len(group) - 1
        if last >= 0:
            self._openers.add(group[0].pts)
        for pts, packet in group[: last + 1]:
            needed = at_end or pts in self._awaited or self._footage.codec not in WITH_UNREFERENCED
            self._decoder.skip_frame = "DEFAULT" if needed else "NONREF"
            yield packet

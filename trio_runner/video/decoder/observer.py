"""Notes facts about the frames of a video while these are read: rate, key frames, damage, sizes, selection."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from trio_runner.video.report import MAX_LISTED, Measured, Place, Size

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_runner.video.decoder.sampling import Sampler


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """One frame as it was read; `image` makes the picture, and `size` is None where there is none."""

    index: int
    seconds: float
    whole: bool
    size: tuple[int, int] | None
    key_frame: bool
    interlaced: bool
    image: Callable[[], Any]


class Observer:
    """Notes the facts about each frame as it is read."""

    def __init__(self, sampler: Sampler, *, key_frames_only: bool) -> None:
        self._sampler, self._key_frames_only = sampler, key_frames_only
        self._frames = self._key_frames = self._interlaced = self._damaged = 0
        self._first = self._last = 0.0
        self._shortest = self._longest = self._key_gap = 0.0
        self._last_key: float | None = None
        self._places: list[Place] = []
        self._sizes: list[Size] = []

    @property
    def selected(self) -> int:
        """Frames that are selected, so far."""
        return self._sampler.selected

    def see(self, frame: Seen) -> None:
        """Note one frame."""
        index, seconds, size = frame.index, frame.seconds, frame.size
        if self._frames:
            interval = seconds - self._last
            self._shortest = interval if self._frames == 1 else min(self._shortest, interval)
            self._longest = max(self._longest, interval)
        else:
            self._first = seconds
        self._frames, self._last = self._frames + 1, seconds
        if frame.key_frame:
            self._key_frames += 1
            if self._last_key is not None:
                self._key_gap = max(self._key_gap, seconds - self._last_key)
            self._last_key = seconds
        self._interlaced += frame.interlaced
        if not frame.whole:
            self._damaged += 1
            if len(self._places) < MAX_LISTED:
                self._places.append(Place(index, seconds))
        elif (frame.key_frame or not self._key_frames_only) and self._sampler.due(index, seconds):
            self._sampler.take(index, seconds)
        if size and len(self._sizes) < MAX_LISTED:
            before = (self._sizes[-1].width, self._sizes[-1].height) if self._sizes else None
            if size != before:
                self._sizes.append(Size(index, *size))

    def measured(self, lost_packets: int) -> Measured:
        """All that was noted."""
        span = self._last - self._first
        return Measured(
            frames=self._frames,
            fps=round((self._frames - 1) / span, 3) if span > 0 else 0.0,
            shortest_seconds=round(self._shortest, 6),
            longest_seconds=round(self._longest, 6),
            first_seconds=self._first,
            last_seconds=self._last,
            key_frames=self._key_frames,
            key_frame_seconds=round(self._key_gap, 6),
            interlaced=self._interlaced,
            damaged=tuple(self._places),
            damaged_frames=self._damaged,
            lost_packets=lost_packets,
            sizes=tuple(self._sizes),
        )

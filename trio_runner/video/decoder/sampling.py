"""Which decoded frames are selected: every Nth, or at most so many a second, from a start, up to a number."""

from __future__ import annotations

import math
from dataclasses import dataclass

TIMESTAMP_SLACK_SECONDS = 0.0006
"""Matroska rounds presentation times to whole milliseconds: a frame due at 33.37 ms is stamped 33 ms.

Every time is moved up by a little more than half a millisecond before it is compared. That is the same as an
origin which lies earlier by as much: no border is missed by rounding, and the rate stays what it is.
"""


@dataclass(slots=True)
class Sampler:
    """Says of each decoded frame, in order, whether it is selected.

    The answer depends on the frames shown before and on nothing else: an attempt that goes on at frame k shows
    its sampler the frames before k too, and so selects what the first attempt would have.

    Args:
        stride: Every how many source frames one is taken, counted from the first at or after `start_seconds`.
        max_fps: Time from `start_seconds` on is cut into cells of 1/max_fps seconds; the first frame in each cell
            is taken. 0 takes all.
        start_seconds: Frames that are presented earlier are passed over.
        max_frames: After so many selected frames there are no more; 0 sets no limit.
    """

    stride: int = 1
    max_fps: float = 0.0
    start_seconds: float = 0.0
    max_frames: int = 0
    selected: int = 0
    """Frames selected so far, from the start of the video."""
    _first_index: int | None = None
    _last_cell: int = -1

    @property
    def exhausted(self) -> bool:
        """Whether `max_frames` has been reached, so that no further frame can be selected."""
        return 0 < self.max_frames <= self.selected

    def select(self, index: int, pts_seconds: float) -> bool:
        """Whether the frame `index` (0-based, rising), presented at `pts_seconds`, is selected."""
        if self.exhausted:
            return False
        elapsed = pts_seconds + TIMESTAMP_SLACK_SECONDS - self.start_seconds
        if self._first_index is None:
            if elapsed < 0:
                return False
            self._first_index = index
        if (index - self._first_index) % self.stride:
            return False
        if self.max_fps > 0:
            cell = math.floor(elapsed * self.max_fps)
            # Damaged files present frames at times that go back; a cell that is past stays past.
            if cell <= self._last_cell:
                return False
            self._last_cell = cell
        self.selected += 1
        return True

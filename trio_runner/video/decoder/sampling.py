"""Selects decoded frames: every Nth, or at most so many a second, from a start time on, up to a number of frames."""

from __future__ import annotations

import math
from dataclasses import dataclass

TIMESTAMP_SLACK_SECONDS = 0.0006
"""Matroska rounds presentation times to whole milliseconds: a frame due at 33.37 ms is stamped 33 ms.

Before a time is compared, a little more than half a millisecond is added to it. The effect is that of an origin which
lies earlier by as much: rounding moves no frame across a border, and the rate stays the same.
"""


@dataclass(slots=True)
class Sampler:
    """Decides for each decoded frame, in order, whether it is selected.

    The decision depends only on the frames before. An attempt that resumes at frame k passes the frames before k to its
    sampler, too, and so selects the same frames as the first attempt.

    Args:
        stride: One frame in so many is selected, counted from the first at or after `start_seconds`.
        max_fps: Time from `start_seconds` on is divided into cells of 1/max_fps seconds, and the first frame in each
            cell is selected. 0 selects all frames.
        start_seconds: Frames that are presented earlier are not selected.
        max_frames: No frame is selected after so many; 0 sets no limit.
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
            # In a damaged file the presentation times may go back. A cell that is past takes no frame any more.
            if cell <= self._last_cell:
                return False
            self._last_cell = cell
        self.selected += 1
        return True

"""Selects decoded frames: every Nth, or at most so many a second, from a start time on, up to a number of frames."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_runner.config.sections import VideoSection

TIMESTAMP_SLACK_SECONDS = 0.0006
"""Matroska rounds presentation times to whole milliseconds: a frame due at 33.37 ms is stamped 33 ms.

Before a time is compared, a little more than half a millisecond is added to it. The effect is that of an origin which
lies earlier by as much: rounding moves no frame across a border, and the rate stays the same.
"""


@dataclass(slots=True)
class Sampler:
    """Decides for each decoded frame, in order, whether it is selected.

    The decision depends only on the frames that were selected before, and of these only on the last one and on their
    number. An attempt that resumes calls `resume` with both, and so selects the same frames as one whole attempt.

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

    @classmethod
    def of(cls, options: VideoSection) -> Sampler:
        """The sampler that the section `[video]` describes, at the start of the video."""
        return cls(
            stride=options.stride,
            max_fps=options.max_fps,
            start_seconds=options.start_seconds,
            max_frames=options.max_frames,
        )

    @property
    def exhausted(self) -> bool:
        """Whether `max_frames` has been reached, so that no further frame can be selected."""
        return 0 < self.max_frames <= self.selected

    def select(self, index: int, pts_seconds: float) -> bool:
        """Whether the frame `index` (0-based, rising), presented at `pts_seconds`, is selected."""
        if not self.due(index, pts_seconds):
            return False
        self.take(index, pts_seconds)
        return True

    def due(self, index: int, pts_seconds: float) -> bool:
        """Whether this frame is to be selected if it is whole; `take` selects it."""
        if self.exhausted:
            return False
        if self._first_index is None:
            return self._elapsed(pts_seconds) >= 0
        if (index - self._first_index) % self.stride:
            return False
        # In a damaged file the presentation times may go back. A cell that is past takes no frame any more.
        return self.max_fps <= 0 or self._cell(pts_seconds) > self._last_cell

    def take(self, index: int, pts_seconds: float) -> None:
        """Select this frame, which is due."""
        if self._first_index is None:
            self._first_index = index
        self._last_cell = self._cell(pts_seconds)
        self.selected += 1

    def resume(self, index: int, pts_seconds: float, selected: int) -> None:
        """Go on after frame `index`, presented at `pts_seconds`, the last of the `selected` frames so far."""
        # Every selected frame is a whole number of strides after the first one, so this one counts as well as that one.
        self._first_index = index
        self._last_cell = self._cell(pts_seconds)
        self.selected = selected

    def _elapsed(self, pts_seconds: float) -> float:
        return pts_seconds + TIMESTAMP_SLACK_SECONDS - self.start_seconds

    def _cell(self, pts_seconds: float) -> int:
        return math.floor(self._elapsed(pts_seconds) * self.max_fps)

"""Reads a video to its end through the real client and the real child."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from tests.support.clips import Image, read_frame_number
from tests.support.makers import open_video
from trio_runner.config.sections import VideoSection
from trio_runner.errors import RunnerError
from trio_runner.model import Frame, VideoInfo

if TYPE_CHECKING:
    from pathlib import Path

    from trio_runner.model import End


@dataclass
class Showing:
    """What came out of one video, and how it ended: `end`, or else `error`."""

    info: VideoInfo | None = None
    frames: list[Frame] = field(default_factory=list)
    end: End | None = None
    error: RunnerError | None = None

    @property
    def indices(self) -> list[int]:
        """The index of each frame."""
        return [frame.index for frame in self.frames]

    @property
    def numbers(self) -> list[int]:
        """The number that each picture shows."""
        return [read_frame_number(picture(frame)) for frame in self.frames]


def picture(frame: Frame) -> Image:
    """The decoded JPEG."""
    image = cv2.imdecode(np.frombuffer(frame.content, np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(image, np.uint8)


async def watch(
    path: Path, first_frame: int = 0, *, frames_stored: int = 0, last_pts_seconds: float | None = None, **options: Any
) -> Showing:
    """Read the video from `first_frame` on, until it ends or breaks off."""
    showing = Showing()
    try:
        async with open_video(VideoSection(path=str(path), **options)) as video:
            showing.info = video.info
            video.start(first_frame, frames_stored=frames_stored, last_pts_seconds=last_pts_seconds)
            while isinstance(item := await video.receive(), Frame):
                showing.frames.append(item)
            showing.end = item
    except RunnerError as error:
        showing.error = error
    return showing

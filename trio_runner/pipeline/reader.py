"""The reader task: frames from the source onto the frames channel, as fast as the window admits them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import trio

from trio_runner.errors import RunnerError
from trio_runner.model import Frame

if TYPE_CHECKING:
    from trio_runner.model import End, Progress
    from trio_runner.pipeline.window import Window


class FrameSource(Protocol):
    """Where frames come from: the video door, or a fake in tests."""

    async def receive(self) -> Frame | End:
        """The next selected frame, or the end; raises RunnerError where the video breaks off."""
        ...


async def read_frames(
    source: FrameSource, frames: trio.MemorySendChannel[Frame], window: Window, progress: Progress
) -> End | RunnerError:
    """Pass frames on until the source ends; returns how it ended.

    A video that breaks off is returned and not raised: raising would cancel the frames that are already on their
    way, and what was read before the break is good.
    """
    with frames:
        while True:
            try:
                frame = await source.receive()
            except RunnerError as error:
                return error
            if not isinstance(frame, Frame):
                return frame
            progress.frames_read += 1
            progress.last_advance = trio.current_time()
            await window.admit(len(frame.jpeg))
            try:
                await frames.send(frame)
            except trio.BrokenResourceError:
                # Every sender has failed. Their error is on its way, and must not be taken for a bug of ours.
                await trio.sleep_forever()

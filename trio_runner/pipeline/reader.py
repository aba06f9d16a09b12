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
    """Gives frames: an open video, or a fake in tests."""

    async def receive(self) -> Frame | End:
        """The next selected frame, or the end; raises RunnerError if the video breaks off."""
        ...


async def read_frames(
    source: FrameSource, frames: trio.MemorySendChannel[Frame], window: Window, progress: Progress
) -> End | RunnerError:
    """Pass frames on until the source ends, and return how it ended.

    The error of a video that breaks off is returned and not raised. Raising it would cancel the frames under way, and
    the frames before the break are good.
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
            await window.admit(len(frame.content))
            try:
                await frames.send(frame)
            except trio.BrokenResourceError:
                # Every sender has failed, and the nursery is about to raise their error. A BrokenResourceError beside
                # it would look like a bug.
                await trio.sleep_forever()

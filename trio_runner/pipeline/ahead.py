"""A source of frames that looks one frame ahead, so that the last frame is known as such before it is sent."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trio_runner.errors import RunnerError
from trio_runner.model import Frame

if TYPE_CHECKING:
    from trio_runner.model import End
    from trio_runner.pipeline.reader import FrameSource


class LookAhead:
    """Marks the last frame of a source; each frame waits until it is known whether another one follows."""

    def __init__(self, source: FrameSource) -> None:
        self._source = source
        self._held: Frame | None = None
        self._end: End | RunnerError | None = None

    async def receive(self) -> Frame | End:
        """The next frame, or the end; raises RunnerError after the last frame before a video breaks off."""
        while self._end is None:
            item = await self._next()
            if isinstance(item, Frame):
                held, self._held = self._held, item
                if held:
                    return held
            else:
                self._end = item
                if self._held:
                    return replace(self._held, last=True)
        if isinstance(self._end, RunnerError):
            raise self._end
        return self._end

    async def _next(self) -> Frame | End | RunnerError:
        try:
            return await self._source.receive()
        except RunnerError as error:
            return error

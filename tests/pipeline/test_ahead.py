from __future__ import annotations

from collections.abc import Sequence

import pytest

from tests.support.makers import make_frame
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import End, Frame
from trio_runner.pipeline.ahead import LookAhead

END = End(decoded=3, selected=3, skipped_corrupt=0)
BROKEN = RunnerError(ErrorCode.VIDEO_TRUNCATED, "it ends too early")


class Source:
    """Gives these, and then the last of them again."""

    def __init__(self, items: Sequence[Frame | End | RunnerError]) -> None:
        self._items = list(items)

    async def receive(self) -> Frame | End:
        item = self._items.pop(0) if len(self._items) > 1 else self._items[0]
        if isinstance(item, RunnerError):
            raise item
        return item


async def test_the_last_frame_alone_is_marked() -> None:
    ahead = LookAhead(Source([make_frame(0), make_frame(1), make_frame(2), END]))
    received = [await ahead.receive() for _ in range(4)]
    assert [(item.sequence, item.last) for item in received if isinstance(item, Frame)] == [
        (0, False),
        (1, False),
        (2, True),
    ]
    assert received[-1] is END


async def test_a_video_that_breaks_off_still_gives_its_last_frame() -> None:
    ahead = LookAhead(Source([make_frame(0), BROKEN]))
    frame = await ahead.receive()
    assert isinstance(frame, Frame)
    assert frame.last
    with pytest.raises(RunnerError) as caught:
        await ahead.receive()
    assert caught.value is BROKEN


async def test_a_video_without_frames_ends() -> None:
    assert await LookAhead(Source([END])).receive() is END

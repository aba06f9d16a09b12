"""The sender task: frames off their channel, through the inference service, results onto theirs."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Protocol

import trio

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from trio_runner.model import Frame, FrameResult
    from trio_runner.pipeline.window import Window


class Inference(Protocol):
    """Answers frames: the HTTP client, or a fake in tests."""

    @property
    def max_frames(self) -> int:
        """How many frames `infer` takes at once."""
        ...

    async def infer(self, frames: Sequence[Frame]) -> Sequence[FrameResult]:
        """The detections of each frame, or why it was not inferred; bounded in time; raises RunnerError."""
        ...


async def send_frames(
    inference: Inference,
    frames: trio.MemoryReceiveChannel[Frame],
    results: trio.MemorySendChannel[FrameResult],
    window: Window,
) -> None:
    """Send frames to the service until there are no more, those that wait together; several of these tasks run at once.

    The channels are closed without a checkpoint. At a checkpoint a cancellation would replace the error that is being
    raised, and the reader could find its channel broken before it is cancelled.
    """
    with frames, results:
        async for frame in frames:
            batch = [frame, *_waiting(frames, inference.max_frames - 1)]
            answered = await inference.infer(batch)
            if len(batch) > 1 and any(result.failure for result in answered):
                # One of these frames may have spoilt the answer to the others.
                for each in batch:
                    await _forward(await inference.infer([each]), [each], results, window)
            else:
                await _forward(answered, batch, results, window)


async def _forward(
    answered: Iterable[FrameResult],
    frames: Sequence[Frame],
    results: trio.MemorySendChannel[FrameResult],
    window: Window,
) -> None:
    window.release_bytes(sum(len(frame.content) for frame in frames))
    for result in answered:
        await results.send(result)


def _waiting(frames: trio.MemoryReceiveChannel[Frame], most: int) -> Iterator[Frame]:
    """At most so many of the frames that can be received at once."""
    with suppress(trio.WouldBlock, trio.EndOfChannel):
        for _ in range(most):
            yield frames.receive_nowait()

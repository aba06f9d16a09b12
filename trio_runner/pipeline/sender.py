"""The sender task: frames off their channel, through the inference service, results onto theirs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import trio

    from trio_runner.model import Frame, FrameResult
    from trio_runner.pipeline.window import Window


class Inference(Protocol):
    """Answers a frame: the HTTP client, or a fake in tests."""

    async def infer(self, frame: Frame) -> FrameResult:
        """The frame's detections; bounded in time; raises RunnerError."""
        ...


async def send_frames(
    inference: Inference,
    frames: trio.MemoryReceiveChannel[Frame],
    results: trio.MemorySendChannel[FrameResult],
    window: Window,
) -> None:
    """Send one frame at a time to the service until there are no more; several of these tasks run side by side.

    The channels are closed without a checkpoint. At a checkpoint a cancellation would replace the error that is being
    raised, and the reader could find its channel broken before it is cancelled.
    """
    with frames, results:
        async for frame in frames:
            result = await inference.infer(frame)
            window.release_bytes(len(frame.jpeg))
            await results.send(result)

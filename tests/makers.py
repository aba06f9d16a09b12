"""Frames, results, claims and open videos for the tests of single rooms."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from trio_runner.config import VideoSection
from trio_runner.model import Claim, Detection, Frame, FrameResult
from trio_runner.video import Video, spawn_decoder


def make_frame(
    sequence: int = 0,
    *,
    jpeg: bytes = b"\xff\xd8jpeg\xff\xd9",
    size: tuple[int, int] = (640, 480),
    sent: tuple[int, int] | None = None,
) -> Frame:
    sent_width, sent_height = sent or size
    return Frame(
        sequence=sequence,
        index=sequence,
        pts_seconds=sequence / 25,
        width=size[0],
        height=size[1],
        sent_width=sent_width,
        sent_height=sent_height,
        jpeg=jpeg,
    )


def make_result(sequence: int = 0, *, index: int | None = None, labels: tuple[str, ...] = ()) -> FrameResult:
    return FrameResult(
        sequence=sequence,
        index=sequence if index is None else index,
        pts_seconds=sequence / 25,
        detections=tuple(Detection(label, 0.5, (1.0, 2.0, 3.0, 4.5)) for label in labels),
        inference_ms=1.5,
    )


def make_claim(scenario_id: int = 1, *, epoch: int = 1, next_frame: int = 0) -> Claim:
    return Claim(
        scenario_id=scenario_id,
        epoch=epoch,
        instance_id=str(uuid.uuid4()),
        next_frame=next_frame,
        frames_stored=next_frame,
    )


@asynccontextmanager
async def open_video(options: VideoSection, *, on_passed: Callable[[], None] = lambda: None) -> AsyncIterator[Video]:
    """Spawn a decoder and wait until it has the video open; raises RunnerError where it cannot be, or is refused."""
    async with spawn_decoder(options, on_passed=on_passed) as video:
        await video.open()
        yield video

"""Frames, results, attempts, claims and open videos for the tests of single packages."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from tests.support.harness import Ledger
from trio_runner.config.sections import VideoSection
from trio_runner.database.store import Attempt, Store
from trio_runner.model import Claim, Detection, Frame, FrameResult
from trio_runner.video.child import Video, spawn_decoder

VIDEO = "/videos/a.mp4"


def make_frame(
    sequence: int = 0,
    *,
    content: bytes = b"\xff\xd8jpeg\xff\xd9",
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
        content=content,
    )


def make_result(
    sequence: int = 0, *, index: int | None = None, labels: tuple[str, ...] = (), size: tuple[int, int] = (640, 480)
) -> FrameResult:
    return FrameResult(
        sequence=sequence,
        index=sequence if index is None else index,
        pts_seconds=sequence / 25,
        width=size[0],
        height=size[1],
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


def attempt(scenario_id: int, *, epoch: int = 0, video: str = VIDEO, max_failures: int = 5) -> Attempt:
    return Attempt(
        scenario_id=scenario_id,
        epoch=epoch,
        video_path=video,
        runner_id="runner_1",
        instance_id=str(uuid.uuid4()),
        max_failures=max_failures,
    )


async def report(
    store: Store, claim: Claim, error_class: str = "retriable", *, retry_after_seconds: float = 0.0, code: str = "x"
) -> bool:
    return await store.fail(
        claim,
        event_id=str(uuid.uuid4()),
        reporter="runner",
        error_class=error_class,
        body=json.dumps({"error": {"code": code}}).encode(),
        retry_after_seconds=retry_after_seconds,
    )


async def expire(ledger: Ledger, scenario_id: int) -> None:
    """As if the lease had been granted long ago."""
    await ledger.query(
        "UPDATE scenarios SET lease_until = clock_timestamp() - interval '1 s' WHERE id = $1", scenario_id
    )


@asynccontextmanager
async def open_video(options: VideoSection, *, on_passed: Callable[[], None] = lambda: None) -> AsyncIterator[Video]:
    """Spawn a decoder and wait until it has the video open; raises RunnerError where it cannot be, or is refused."""
    async with spawn_decoder(options, on_passed=on_passed) as video:
        await video.open()
        yield video

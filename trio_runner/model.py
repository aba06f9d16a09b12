"""The values that packages pass to each other: frames, detections, results, claims, progress, failures."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from trio_runner.errors import ErrorCode, RunnerError


class VideoInfo(msgspec.Struct, frozen=True, kw_only=True):
    """The properties that the container declares, checked against the limits before the first frame is decoded."""

    codec: str
    width: int
    height: int
    fps: float
    container: str = ""
    stream: int = 0
    """The number of the stream that is decoded, among all streams of the container."""
    video_streams: int = 1
    declared_frames: int | None = None
    duration_seconds: float | None = None
    identity: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One selected frame as it is sent.

    `sequence` counts the frames of this attempt from 0 without gaps; `index` is the 0-based index of the decoded
    source frame; `width` × `height` is the picture as a player shows it, `sent_width` × `sent_height` the one in
    `content`.
    """

    sequence: int
    index: int
    pts_seconds: float
    width: int
    height: int
    sent_width: int
    sent_height: int
    content: bytes
    """A JPEG, or the bytes of a tensor where the protocol wants one."""
    inset: tuple[int, int, int, int] | None = None
    """Left, top, width and height of the picture inside the one that is sent; None where there is no padding."""
    last: bool = False
    """Whether no frame follows in this attempt; known only where the source looks ahead (`pipeline.ahead`)."""


class Detection(msgspec.Struct, frozen=True, omit_defaults=True):
    """One object in one frame, or one label of the whole frame.

    All coordinates are in pixels of the picture as a player shows it, however small a picture was sent.
    `docs/schemas/predictions.json` describes the JSON form, in which `class_id` and `attributes` stand only where they
    are set.
    """

    label: str
    """A class number without a name is `class 0`."""
    confidence: float | None
    """In 0..1; None where the service gives none."""
    bbox: tuple[float, float, float, float] | None
    """x1, y1, x2, y2; None where the answer has no box, as a classification has none."""
    class_id: int | None = None
    """The service's number of the class, within 64 bits."""
    attributes: dict[str, Any] = {}
    """What is no box, by these keys.

    - `keypoints`: [[x, y, confidence or None], …]
    - `mask`: {"polygon": [[x, y], …]} or {"rle": {"size": [height, width], "counts": …}}
    - `track_id`: a whole number or a string
    - `text`: a string
    - `raw`: any JSON, as the service sent it
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameResult:
    """The inference service's answer about one frame; an answer without detections is one, too.

    `width` × `height` is the picture as a player shows it, in whose pixels the boxes of `detections` are. Where `error`
    is set the frame was not inferred: `detections` is then empty and says nothing about the picture.
    """

    sequence: int
    index: int
    pts_seconds: float
    width: int
    height: int
    detections: tuple[Detection, ...]
    inference_ms: float
    error: str | None = None
    """Why the frame was not inferred, in words; None where it was inferred."""
    clipped: int = 0
    """How many boxes of the answer overshot the picture and were clipped at its border."""
    tokens: int = 0
    """How many tokens a language model counted for this frame, prompt and answer together."""
    failure: RunnerError | None = None
    """Raised where a frame with an `error` may not be stored."""
    is_unclear: bool = False
    """Whether the service may be at fault for `error`: then only answers to the frames around blame this frame."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One flattened cause of death, in the form in which the log, the ledger and the retry event give it."""

    code: ErrorCode
    type: str
    message: str
    stack: tuple[str, ...] = ()
    causes: tuple[tuple[str, str], ...] = ()
    suppressed: int = 0
    retry_after_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """The right to work on a scenario: `epoch` is attempt number, fencing token and dedupe key at once."""

    scenario_id: int
    epoch: int
    instance_id: str
    next_frame: int
    frames_stored: int
    video_identity: str | None = None
    sampling: str | None = None
    """A JSON object."""
    last_pts_seconds: float | None = None
    """Presentation time of the last stored frame, exactly as it was stored; None where nothing is stored.

    Only `Store.claim` sets it; a claim that is read for a report of its death has None.
    """
    frames_not_inferred: int = 0
    """How many of the stored frames were not inferred, in all attempts. Only `Store.claim` sets it."""


@dataclass(slots=True)
class Progress:
    """How far this attempt has come; the pipeline's tasks write it, the display and the watchdog read it."""

    next_frame: int = 0
    frames_stored: int = 0
    frames_stored_before: int = 0
    frames_read: int = 0
    declared_frames: int | None = None
    max_frames: int = 0
    """`video.max_frames`: so many frames are selected at most; 0 where there is no limit."""
    detections: int = 0
    frames_not_inferred: int = 0
    """Of the scenario's stored frames, those of earlier attempts included."""
    boxes_clipped: int = 0
    """In the frames that this attempt stored."""
    tokens: int = 0
    """That a language model counted for the frames that this attempt stored."""
    activity: str = ""
    """What is done before the first frame, for people; empty once frames are read."""
    started: float = 0.0
    """`trio.current_time()` when the attempt began."""
    last_advance: float = 0.0
    """`trio.current_time()` when a frame was last read or stored, or the video's local copy last grew. The watchdog
    reads this."""

    @property
    def frames_done(self) -> tuple[int, int | None]:
        """How many frames are done, and of how many at most, None where that is not known.

        These are selected frames where `max_frames` limits their number, and frames of the source otherwise.
        """
        if not self.max_frames:
            return self.next_frame, self.declared_frames
        most = min(self.max_frames, self.declared_frames or self.max_frames)
        return self.frames_stored_before + self.frames_stored, most

    @property
    def position(self) -> str:
        """`frames_done` for people: `30 of 665`, or `30 of at most 60` where `max_frames` limits the number."""
        done, total = self.frames_done
        return f"{done} of {'at most ' if self.max_frames else ''}{total or 'unknown'}"


class End(msgspec.Struct, tag="end", frozen=True):
    """How a whole video ended: frames decoded, selected (from the video's start), and lost to corruption."""

    decoded: int
    selected: int
    skipped_corrupt: int

"""The nouns that travel the pipe, and the closed list of error codes."""

from __future__ import annotations

import enum
import os
from dataclasses import dataclass, field
from typing import Self

import msgspec


class ErrorClass(enum.StrEnum):
    """What a failure means for the next attempt."""

    RETRIABLE = "retriable"
    PERMANENT = "permanent"
    INTERRUPTED = "interrupted"


class Stage(enum.StrEnum):
    """Where in the run a failure arose."""

    CONFIG = "config"
    PREFLIGHT = "preflight"
    CLAIM = "claim"
    VIDEO = "video"
    INFERENCE = "inference"
    STORE = "store"
    KAFKA = "kafka"
    RUN = "run"


class ErrorCode(enum.StrEnum):
    """Every way a run can fail; each code has one stage and one class."""

    stage: Stage
    error_class: ErrorClass

    def __new__(cls, value: str, stage: Stage, error_class: ErrorClass) -> Self:
        """Attach stage and class to the code's own string."""
        member = str.__new__(cls, value)
        member._value_ = value
        member.stage = stage
        member.error_class = error_class
        return member

    CONFIG_INVALID = "config_invalid", Stage.CONFIG, ErrorClass.PERMANENT
    CREDENTIAL_UNREADABLE = "credential_unreadable", Stage.PREFLIGHT, ErrorClass.RETRIABLE
    SPOOL_UNUSABLE = "spool_unusable", Stage.PREFLIGHT, ErrorClass.RETRIABLE
    CLAIM_REFUSED = "claim_refused", Stage.CLAIM, ErrorClass.PERMANENT
    LEASE_EXPIRED = "lease_expired", Stage.CLAIM, ErrorClass.RETRIABLE
    SUPERSEDED = "superseded", Stage.CLAIM, ErrorClass.PERMANENT
    VIDEO_MISSING = "video_missing", Stage.VIDEO, ErrorClass.PERMANENT
    VIDEO_REFUSED = "video_refused", Stage.VIDEO, ErrorClass.PERMANENT
    VIDEO_UNREADABLE = "video_unreadable", Stage.VIDEO, ErrorClass.PERMANENT
    VIDEO_NO_FRAMES = "video_no_frames", Stage.VIDEO, ErrorClass.PERMANENT
    VIDEO_TRUNCATED = "video_truncated", Stage.VIDEO, ErrorClass.PERMANENT
    VIDEO_CHANGED = "video_changed", Stage.VIDEO, ErrorClass.PERMANENT
    SAMPLING_CHANGED = "sampling_changed", Stage.CONFIG, ErrorClass.PERMANENT
    DECODER_FAILED = "decoder_failed", Stage.VIDEO, ErrorClass.RETRIABLE
    DECODER_KILLED = "decoder_killed", Stage.VIDEO, ErrorClass.RETRIABLE
    DECODER_STALLED = "decoder_stalled", Stage.VIDEO, ErrorClass.RETRIABLE
    INFERENCE_UNREACHABLE = "inference_unreachable", Stage.INFERENCE, ErrorClass.RETRIABLE
    INFERENCE_TLS = "inference_tls", Stage.INFERENCE, ErrorClass.RETRIABLE
    INFERENCE_TIMEOUT = "inference_timeout", Stage.INFERENCE, ErrorClass.RETRIABLE
    INFERENCE_UNAVAILABLE = "inference_unavailable", Stage.INFERENCE, ErrorClass.RETRIABLE
    INFERENCE_REJECTED = "inference_rejected", Stage.INFERENCE, ErrorClass.PERMANENT
    INFERENCE_BAD_ANSWER = "inference_bad_answer", Stage.INFERENCE, ErrorClass.RETRIABLE
    STORE_UNREACHABLE = "store_unreachable", Stage.STORE, ErrorClass.RETRIABLE
    STORE_TLS = "store_tls", Stage.STORE, ErrorClass.RETRIABLE
    STORE_AUTH = "store_auth", Stage.STORE, ErrorClass.RETRIABLE
    STORE_LOST = "store_lost", Stage.STORE, ErrorClass.RETRIABLE
    STORE_TIMEOUT = "store_timeout", Stage.STORE, ErrorClass.RETRIABLE
    STORE_REJECTED = "store_rejected", Stage.STORE, ErrorClass.RETRIABLE
    STORE_SCHEMA = "store_schema", Stage.STORE, ErrorClass.PERMANENT
    KAFKA_UNREACHABLE = "kafka_unreachable", Stage.KAFKA, ErrorClass.RETRIABLE
    KAFKA_TLS = "kafka_tls", Stage.KAFKA, ErrorClass.RETRIABLE
    KAFKA_AUTH = "kafka_auth", Stage.KAFKA, ErrorClass.RETRIABLE
    KAFKA_TOPIC = "kafka_topic", Stage.KAFKA, ErrorClass.RETRIABLE
    STALLED = "stalled", Stage.RUN, ErrorClass.RETRIABLE
    RUNNER_KILLED = "runner_killed", Stage.RUN, ErrorClass.RETRIABLE
    RUNNER_OUT_OF_MEMORY = "runner_out_of_memory", Stage.RUN, ErrorClass.RETRIABLE
    RUNNER_HUNG = "runner_hung", Stage.RUN, ErrorClass.RETRIABLE
    INTERRUPTED = "interrupted", Stage.RUN, ErrorClass.INTERRUPTED
    INTERNAL = "internal", Stage.RUN, ErrorClass.RETRIABLE


class RunnerError(Exception):
    """A failure with a name: `code` from the closed list, a message for people, perhaps a hint when to retry."""

    def __init__(self, code: ErrorCode, message: str, *, retry_after_seconds: float | None = None) -> None:
        """Hold the code and the message; neither may contain a secret."""
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after_seconds = retry_after_seconds

    def __str__(self) -> str:
        """The code first, so that one log line can be searched for."""
        return f"{self.code}: {self.message}"


class ClaimRefusedError(RunnerError):
    """The scenario is not this runner's to take: nothing was started, so no event is owed."""


class ScenarioCompletedError(ClaimRefusedError):
    """The scenario was processed to its end before; there is nothing left to do."""


class SupersededError(RunnerError):
    """Another runner owns the scenario now; this one may write and publish nothing any more."""

    def __init__(self, message: str) -> None:
        """The code is always `superseded`."""
        super().__init__(ErrorCode.SUPERSEDED, message)


class VideoInfo(msgspec.Struct, frozen=True, kw_only=True):
    """What the container declares, checked against the limits before the first frame is decoded."""

    codec: str
    width: int
    height: int
    fps: float
    declared_frames: int | None = None
    duration_seconds: float | None = None
    identity: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Frame:
    """One selected frame as JPEG bytes.

    `sequence` counts the frames of this attempt from 0 without gaps; `index` is the 0-based index of the decoded
    source frame; `width` × `height` is the source picture, `sent_width` × `sent_height` the one inside `jpeg`.
    """

    sequence: int
    index: int
    pts_seconds: float
    width: int
    height: int
    sent_width: int
    sent_height: int
    jpeg: bytes


class Detection(msgspec.Struct, frozen=True):
    """One object in one frame: label, confidence in 0..1 (None where the service names none), box in source pixels."""

    label: str
    confidence: float | None
    bbox: tuple[float, float, float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameResult:
    """What the inference service said about one frame; no detections is an answer too."""

    sequence: int
    index: int
    pts_seconds: float
    detections: tuple[Detection, ...]
    inference_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One flattened cause of death: what a log line, the ledger and the retry event say."""

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


@dataclass(slots=True)
class Progress:
    """How far this attempt has come; written by the tasks, read by whoever shows or watches it."""

    next_frame: int = 0
    frames_stored: int = 0
    frames_stored_before: int = 0
    frames_read: int = 0
    declared_frames: int | None = None
    detections: dict[str, int] = field(default_factory=dict)
    started: float = 0.0
    """`trio.current_time()` when the attempt began."""
    last_advance: float = 0.0
    """`trio.current_time()` when a frame was last read or stored: what the watchdog asks."""


def printable(path: str) -> str:
    """A file's name may be any bytes, a text in JSON or in PostgreSQL may not."""
    return os.fsencode(path).decode(errors="backslashreplace")


def harmless(text: str) -> str:
    """What others have written, without what a terminal might obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)

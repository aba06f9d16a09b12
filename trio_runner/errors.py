"""The one place of error codes, their classes and stages, the exceptions that carry them, and the exit codes."""

from __future__ import annotations

import enum
from typing import Final, Self


class ExitCode(enum.IntEnum):
    """The exit codes of a process; docs/contract.md lists them. Numbers from 64 to 78 are those of sysexits.h.

    `str()` of a member is its number, as systemd and a container's status write it.
    """

    OK = 0
    """Completed, already completed, or drained on request."""
    NOTHING = 1
    """A verb that only looks found nothing, or was refused."""
    USAGE = 64
    VIDEO = 65
    """The video is bad; the retry event is confirmed."""
    UNCONFIRMED = 74
    """Failed, and Kafka has not confirmed the retry event. Of a verb that is no run: failed."""
    CONFIRMED = 75
    """Failed; the retry event is confirmed."""
    CONFIG = 78
    SUPERSEDED = 79
    """Superseded or refused: no event is due."""
    INTERRUPTED = 130
    """Ended by Ctrl-C before there was anything to drain."""


REPORTED: Final = frozenset(
    {
        ExitCode.OK,
        ExitCode.USAGE,
        ExitCode.VIDEO,
        ExitCode.CONFIRMED,
        ExitCode.CONFIG,
        ExitCode.SUPERSEDED,
    }
)
"""After these nobody need report the attempt: its event is confirmed, or none is due."""


class ErrorClass(enum.StrEnum):
    """The consequence of a failure for the next attempt."""

    RETRIABLE = "retriable"
    PERMANENT = "permanent"
    INTERRUPTED = "interrupted"


class Stage(enum.StrEnum):
    """The part of the run in which a failure arose."""

    CONFIG = "config"
    PREFLIGHT = "preflight"
    CLAIM = "claim"
    VIDEO = "video"
    INFERENCE = "inference"
    STORE = "store"
    KAFKA = "kafka"
    STORAGE = "storage"
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
    STORAGE_UNREACHABLE = "storage_unreachable", Stage.STORAGE, ErrorClass.RETRIABLE
    STORAGE_TLS = "storage_tls", Stage.STORAGE, ErrorClass.RETRIABLE
    STORAGE_TIMEOUT = "storage_timeout", Stage.STORAGE, ErrorClass.RETRIABLE
    STORAGE_UNAVAILABLE = "storage_unavailable", Stage.STORAGE, ErrorClass.RETRIABLE
    STORAGE_DENIED = "storage_denied", Stage.VIDEO, ErrorClass.RETRIABLE
    STORAGE_MISSING = "storage_missing", Stage.VIDEO, ErrorClass.RETRIABLE
    STORAGE_BAD_ANSWER = "storage_bad_answer", Stage.VIDEO, ErrorClass.RETRIABLE
    CACHE_UNUSABLE = "cache_unusable", Stage.VIDEO, ErrorClass.RETRIABLE
    FETCHER_FAILED = "fetcher_failed", Stage.VIDEO, ErrorClass.RETRIABLE
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
        """The code first, so that a log can be searched for it."""
        return f"{self.code}: {self.message}"


class ClaimRefusedError(RunnerError):
    """This runner may not take the scenario. Nothing was started, so no event is due."""


class ScenarioCompletedError(ClaimRefusedError):
    """The scenario was processed to its end before; there is nothing left to do."""


class SupersededError(RunnerError):
    """Another runner owns the scenario now; this one may no longer write or publish anything."""

    def __init__(self, message: str) -> None:
        """The code is always `superseded`."""
        super().__init__(ErrorCode.SUPERSEDED, message)

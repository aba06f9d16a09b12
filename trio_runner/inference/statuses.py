"""What an HTTP status that is no success means: its error code, whether to send again, and which setting to change."""

from __future__ import annotations

import enum
import re
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import msgspec

from trio_runner.config.address import http_base
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.inference.answer import quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_runner.config.inference import InferenceSection
    from trio_runner.model import Frame

SUCCESSES: Final = frozenset({200, 201})
"""The statuses whose body is the answer; with 201 some services say that they have made a prediction."""
MAX_COMPLAINT_BYTES: Final = 64 * 2**10
"""So much of the body of an error is read."""
MAX_RETRY_AFTER_SECONDS: Final = 300.0
TRANSIENT: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
"""The statuses after which the same request may be answered a little later."""
ABSENT: Final = frozenset({401, 403, 404})
"""The statuses by which a service that is up refuses every such request."""

_UNAVAILABLE: Final = frozenset({408, 425, 429})
_OF_THE_FRAME: Final = frozenset({400, 413, 415, 422})
_SERVER_ERROR: Final = 500
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_COMPLAINT_KEYS: Final = ("error", "message", "detail", "msg", "title", "reason")
_HTML_TITLE: Final = re.compile(r"<title>([^<]*)", re.IGNORECASE)


class Blame(enum.Enum):
    """Which side is at fault for a failed request: the service, or the frame in it."""

    SERVICE = enum.auto()
    """The service, or the configuration."""
    FRAME = enum.auto()
    """The frame: the service was able to answer."""
    UNCLEAR = enum.auto()
    """The frame, if the service answered the frames around it."""


class InferenceError(RunnerError):
    """A request that failed, and what may be done about it."""

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        blame: Blame = Blame.SERVICE,
        transient: bool = False,
        status: int = 0,
        retry_after: float | None = None,
        remedy: str = "",
    ) -> None:
        """Hold why the request failed.

        Args:
            code: One of the `inference_*` codes.
            message: For people, without secrets.
            blame: Which side is at fault.
            transient: Whether the same request may succeed a little later.
            status: The HTTP status; 0 where there is none.
            retry_after: The seconds of the answer's Retry-After.
            remedy: What to change; it is put behind the message.
        """
        hint = None if retry_after is None else min(retry_after, MAX_RETRY_AFTER_SECONDS)
        super().__init__(code, f"{message}: {remedy}" if remedy else message, retry_after_seconds=hint)
        self.without_remedy = message
        self.blame, self.transient, self.status, self.retry_after = blame, transient, status, retry_after

    def with_note(self, note: str) -> InferenceError:
        """The same error with a note behind its message."""
        return InferenceError(
            self.code,
            f"{self.message} {note}",
            blame=self.blame,
            transient=self.transient,
            status=self.status,
            retry_after=self.retry_after,
        )


def status_error(
    config: InferenceSection,
    path: str,
    frames: Sequence[Frame],
    *,
    status: int,
    reason: str,
    headers: Mapping[str, str],
    body: bytes,
    now: datetime | None = None,
) -> InferenceError:
    """The error that an answer with this status is.

    Args:
        config: The service.
        path: The path of the request; a query behind it is not repeated.
        frames: The frames in the request; none where it asked for something else.
        status: Any that is no success.
        reason: The phrase behind the status.
        headers: Of the answer; names count in any case.
        body: The answer's body, or its beginning.
        now: For a Retry-After that is a date, where the answer has no Date; by default this machine's clock.
    """
    answered = f"{config.url} answered {status} {reason}".rstrip()
    if complaint := quoted(_complaint(body)):
        answered += f' "{complaint}"'
    unavailable = status in _UNAVAILABLE or status >= _SERVER_ERROR
    blame = Blame.FRAME if status in _OF_THE_FRAME and frames else Blame.SERVICE
    return InferenceError(
        ErrorCode.INFERENCE_UNAVAILABLE if unavailable else ErrorCode.INFERENCE_REJECTED,
        answered,
        blame=Blame.UNCLEAR if status == _SERVER_ERROR and frames else blame,
        transient=status in TRANSIENT,
        status=status,
        retry_after=_retry_after(headers, now or datetime.now(UTC)) if unavailable else None,
        remedy=_remedy(config, path.partition("?")[0], frames, status),
    )


def _remedy(config: InferenceSection, path: str, frames: Sequence[Frame], status: int) -> str:
    """Which setting to change; empty where none would help."""
    table = f"[inference.{config.protocol}]"
    if status in _REDIRECTS:
        return "redirects are not followed; set inference.url to the target"
    field_keys = {
        "predict": "inference.predict.field, which names the field of the picture",
        "http": "inference.http.image_at, which names the place of the picture, and inference.http.fields",
    }
    settings = f"{table}, video.max_width, video.jpeg_quality"
    retry = "raise" if config.retry_seconds else "set"
    waited = "a service that is starting is waited for with inference.ready_timeout_seconds"
    whole = urlsplit(http_base(config.url)).path + path
    hints = {
        202: "the service answers later, and a later answer is not fetched: have it answer at once (Prefer: wait)",
        401: "check the token in inference.token_file, and inference.header_files",
        403: "check the token in inference.token_file, and inference.header_files",
        404: f"{whole} was asked for: check inference.url, and {_path_settings(config, path)}",
        413: f"{_sizes(frames)}: lower video.max_width or video.jpeg_quality, or raise the proxy's limit",
        422: f"check {field_keys.get(config.protocol, f'inference.url and {table}')}",
        429: f"set inference.requests_per_minute to what the service allows, or {retry} inference.retry_seconds",
        500: f"if every frame is answered so, check what the request is made by: {settings}" if frames else "",
        503: "" if config.ready_timeout_seconds else waited,
    }
    is_unavailable = status >= _SERVER_ERROR or status in _UNAVAILABLE
    return hints.get(status, "" if is_unavailable else f"check inference.url and {table}")


def _path_settings(config: InferenceSection, path: str) -> str:
    """The settings that the path of a request is made of."""
    if path == config.ready_path:
        return "inference.ready_path"
    parts = {"predict": "the path", "oip": "the model and its version"}
    return f"{parts.get(config.protocol, 'the path or the model')} in [inference.{config.protocol}]"


def _sizes(frames: Sequence[Frame]) -> str:
    """The bytes and pixels of the frames in a request."""
    if not frames:
        return "the request is too large"
    size = sum(len(frame.content) for frame in frames)
    pixels = f"{frames[0].sent_width}×{frames[0].sent_height} pixels"
    if len(frames) == 1:
        return f"the frame has {size} bytes and {pixels}"
    return f"the {len(frames)} frames of the request have {size} bytes, each {pixels}"


def _complaint(body: bytes) -> str:
    """The text of the body of an error: its JSON `error`, `message` or `detail`, or its first line of text."""
    try:
        return _first_text(msgspec.json.decode(body))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        text = body.decode(errors="replace").strip()
    if text.startswith("<"):
        title = _HTML_TITLE.search(text)
        return title[1].strip() if title else ""
    return text.partition("\n")[0].strip()


def _first_text(value: Any) -> str:
    """The first text under one of the usual keys, at whatever depth, with its place; a text is itself."""
    if isinstance(value, str):
        return value.partition("\n")[0]
    if isinstance(value, dict):
        text = _first_text([value[key] for key in _COMPLAINT_KEYS if key in value])
        # FastAPI names the field that it refuses beside the text, as ["body", "file"].
        place = value.get("loc")
        if not text or not isinstance(place, list):
            return text
        where = ".".join(str(step) for step in place if isinstance(step, str | int))
        return f"{where}: {text}" if where else text
    return next(filter(None, map(_first_text, value)), "") if isinstance(value, list) else ""


def _retry_after(headers: Mapping[str, str], now: datetime) -> float | None:
    """The seconds of Retry-After; its date form is relative to the answer's own Date, since clocks differ."""
    value = headers.get("Retry-After", "").strip()
    if value.isdecimal():
        return float(value)
    date = _date(value)
    return max(0.0, (date - (_date(headers.get("Date", "")) or now)).total_seconds()) if date else None


def _date(value: str) -> datetime | None:
    try:
        date = parsedate_to_datetime(value)
    except (ValueError, OverflowError, TypeError, IndexError):  # the parser lets all of them out
        return None
    return date if date.tzinfo else date.replace(tzinfo=UTC)

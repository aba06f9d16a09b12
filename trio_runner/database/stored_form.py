"""The form in which the answer about one frame is stored: detections as JSON, or the reason why there are none."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from trio_runner.base.redact import redact
from trio_runner.base.text import harmless

if TYPE_CHECKING:
    from trio_runner.model import FrameResult

MAX_ERROR_CHARACTERS: Final = 1000
"""The reason why a frame was not inferred is cut here; the table takes no longer one."""

_ESCAPED_NUL: Final = re.compile(rb"(?<!\\)((?:\\\\)*)\\u0000")
"""A NUL in JSON, but not `\\u0000`, which is a backslash followed by letters and digits."""


def detections_json(result: FrameResult) -> str | None:
    """The detections as `docs/schemas/predictions.json` describes them; None where the frame was not inferred.

    PostgreSQL's jsonb has no NUL, so a replacement character takes its place.
    """
    if result.error is not None:
        return None
    encoded = msgspec.json.encode(result.detections)
    if b"\\u0000" in encoded:
        encoded = _ESCAPED_NUL.sub(rb"\1\\ufffd", encoded)
    return encoded.decode()


def error_line(result: FrameResult, secrets: frozenset[str]) -> str | None:
    """Why the frame was not inferred, on one line without control characters and without the values in `secrets`."""
    if result.error is None:
        return None
    return harmless(redact(result.error, secrets).replace("\n", " "))[:MAX_ERROR_CHARACTERS]

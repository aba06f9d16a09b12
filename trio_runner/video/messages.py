"""The wire format between the decoder child and the daemon: length-prefixed records of a JSON header and a body."""

from __future__ import annotations

import struct
from typing import TypeAlias

import msgspec

from trio_runner.errors import ErrorCode
from trio_runner.model import End, VideoInfo
from trio_runner.video.report import Report

PREFIX = struct.Struct(">II")
"""Length of the header, length of the body, in bytes."""

MAX_HEADER_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024


class Opened(msgspec.Struct, tag="opened", frozen=True):
    """The file is open and within its limits; the child now waits for `Start` on its stdin."""

    info: VideoInfo


class FrameHeader(msgspec.Struct, tag="frame", frozen=True):
    """A selected frame; the body is its JPEG, or its tensor. The fields are those of `model.Frame`."""

    sequence: int
    index: int
    pts_seconds: float
    width: int
    height: int
    sent_width: int
    sent_height: int
    inset: tuple[int, int, int, int] | None = None


class Passed(msgspec.Struct, tag="passed", frozen=True):
    """A sign of life while no frame is selected: the number of frames decoded so far; 0 before the video is open."""

    decoded: int


class Note(msgspec.Struct, tag="note", frozen=True):
    """A sentence for the daemon's log."""

    message: str


class Fault(msgspec.Struct, tag="fault", frozen=True):
    """The last record of a video that cannot be read, or cannot be read to its declared end."""

    code: ErrorCode
    message: str


class Inspected(msgspec.Struct, tag="inspected", frozen=True):
    """The answer to `Inspect`; the body is the contact sheet, if one was asked for."""

    report: Report


Record: TypeAlias = Opened | FrameHeader | Passed | Note | End | Fault | Inspected


class Start(msgspec.Struct, tag="start", frozen=True):
    """One line of JSON on the child's stdin: emit the selected frames from source frame `first_frame` on.

    The other two describe what is stored already: how many frames were selected before, and when the last of them,
    frame `first_frame - 1`, is presented. If that time is not known, the child reads from the start of the video.
    """

    first_frame: int = 0
    frames_stored: int = 0
    last_pts_seconds: float | None = None


class Inspect(msgspec.Struct, tag="inspect", frozen=True):
    """In place of `Start`, one line of JSON on the child's stdin: read the video, and describe it.

    The frames with the numbers `frames` are drawn on a contact sheet, an image file with this suffix. With `quick` the
    video is read no further than to the last of them, or to its first frame.
    """

    frames: tuple[int, ...] = ()
    suffix: str = ".png"
    quick: bool = False


Command: TypeAlias = Start | Inspect


class BadRecordError(ValueError):
    """The bytes are not a record of this format."""


_decoder = msgspec.json.Decoder(Record)
_encoder = msgspec.json.Encoder()


def pack(record: Record, body: bytes | memoryview = b"") -> bytes:
    """The prefix and the header of `record`; the caller writes `body` itself right after, uncopied."""
    header = _encoder.encode(record)
    return PREFIX.pack(len(header), len(body)) + header


def unpack_prefix(prefix: bytes) -> tuple[int, int]:
    """Lengths of header and body; raises BadRecordError if they are beyond the limits."""
    header_bytes, body_bytes = PREFIX.unpack(prefix)
    if not 0 < header_bytes <= MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
        raise BadRecordError(f"record announces {header_bytes} header and {body_bytes} body bytes")
    return header_bytes, body_bytes


def unpack_header(header: bytes) -> Record:
    """The record in `header`; raises BadRecordError if it holds none."""
    try:
        record: Record = _decoder.decode(header)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise BadRecordError(f"record header is malformed: {error}") from error
    return record

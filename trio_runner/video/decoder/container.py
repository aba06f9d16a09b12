"""The length of a video file: the bytes that its container declares, and the bytes that it has."""

from __future__ import annotations

import os
from dataclasses import dataclass

_MAX_BOXES = 200_000
"""Fragmented MP4 has two boxes a fragment; a hostile file could have one for every eight bytes."""

_SAMPLES = 32
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"skip", b"wide", b"pnot")
_EBML_HEADER = b"\x1a\x45\xdf\xa3"
_EBML_SEGMENT = b"\x18\x53\x80\x67"
_MAX_VINT_BYTES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Extent:
    """How long a file is and how long its container says it is; two that differ mean that the file was written to."""

    kind: str
    size_bytes: int
    declared_bytes: int | None
    modified_ns: int

    @property
    def shortfall(self) -> str:
        """How far the file ends before its container does; empty where it does not."""
        if self.declared_bytes is None or self.size_bytes >= self.declared_bytes:
            return ""
        return f"the file is cut short, it has {self.size_bytes} of {self.declared_bytes} bytes"


def inspect(fd: int) -> Extent:
    """Look at the outermost structure of the file behind `fd`, whose offset stays where it is."""
    status = os.fstat(fd)
    size, start = status.st_size, os.pread(fd, 64, 0)
    declared: int | None
    if start[:4] == _EBML_HEADER:
        kind, declared = "matroska", _ebml_end(start)
    elif start[:4] == b"RIFF" and start[8:12] == b"AVI ":
        kind, declared = "avi", _riff_end(fd, size)
    elif start[4:8] in _FIRST_BOXES:
        kind, declared = "mp4", _boxes_end(fd, size)
    else:
        kind, declared = "unknown", None
    return Extent(
        kind=kind,
        size_bytes=size,
        declared_bytes=declared,
        modified_ns=status.st_mtime_ns,
    )


def _boxes_end(fd: int, size: int) -> int | None:
    """Where the last top-level box of an ISO base media file ends (ISO/IEC 14496-12 §4.2)."""
    position = 0
    for _ in range(_MAX_BOXES):
        if position >= size:
            return position
        header = os.pread(fd, 16, position)
        length, header_bytes = int.from_bytes(header[:4], "big"), 8
        if length == 1:
            length, header_bytes = int.from_bytes(header[8:16], "big"), 16
        # 0 means "to the end of the file"; a length below that of a header means padding.
        if length < header_bytes:
            return None
        position += length
    return None


def _riff_end(fd: int, size: int) -> int | None:
    """Where the last RIFF chunk ends; OpenDML files have one for every gigabyte or so."""
    position = 0
    while position < size:
        header = os.pread(fd, 8, position)
        length = int.from_bytes(header[4:8], "little")
        # A recorder that was cut off leaves the length 0.
        if header[:4] != b"RIFF" or length == 0:
            return position or None
        position += 8 + length + length % 2
    return position


def _ebml_end(start: bytes) -> int | None:
    """Where the Segment ends (RFC 8794 §4, RFC 9559 §4.5); None for a live recording of unknown length."""
    header_size, position = _vint(start, 4)
    if header_size is None:
        return None
    position += header_size
    if start[position : position + 4] != _EBML_SEGMENT:
        return None
    segment_size, position = _vint(start, position + 4)
    return None if segment_size is None else position + segment_size


def _vint(data: bytes, position: int) -> tuple[int | None, int]:
    """The variable-length integer at `position`, None where it is unknown, and the position after it."""
    first = data[position] if position < len(data) else 0
    length = _MAX_VINT_BYTES + 1 - first.bit_length()
    raw = data[position : position + length]
    if length > _MAX_VINT_BYTES or len(raw) < length:
        return None, position
    value = int.from_bytes(raw, "big") & ((1 << 7 * length) - 1)
    return (None if value == (1 << 7 * length) - 1 else value), position + length


def check_readable(fd: int) -> None:
    """Raise OSError if the storage does not give the file's bytes.

    FFmpeg reports the storage's errors by the same numbers as some of a file's own faults.
    """
    size = os.fstat(fd).st_size
    for number in range(_SAMPLES):
        os.pread(fd, 1, max(0, size - 1) * number // (_SAMPLES - 1))

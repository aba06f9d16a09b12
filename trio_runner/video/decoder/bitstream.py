"""Looks into packets before they are decoded: their parameter sets, and whether their pictures are shown."""

from __future__ import annotations

import re
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.packet import Packet

SMALLEST_PICTURE_BYTES: Final = 20
"""A shorter packet of MPEG-4 part 2 may say that there is no picture (vop_coded = 0)."""

IDR: Final = 5
END_OR_BROKEN_LINK: Final = frozenset({16, 17, 18, 36, 37})
RANDOM_ACCESS: Final = frozenset(range(16, 24))
"""Kinds of units of H.264 (ISO/IEC 14496-10, table 7-1), and of HEVC (ITU-T H.265, table 7-1)."""

SLICES: Final = MappingProxyType({"h264": range(1, 6), "hevc": range(32)})
"""The kinds of units that are parts of a picture. Parameter sets stand before the first of them."""

PARAMETER_SETS: Final = MappingProxyType({"h264": range(7, 9), "hevc": range(32, 35)})

START_CODE: Final = re.compile(rb"\0\0\x01")
END_BYTES: Final = 64
"""In HEVC an end of sequence is the last unit of its packet, or the last but one. Each of these has five bytes."""

SUPERFRAME_MARKER, LAST_PROFILE = 0b110, 3
"""The first three bits of the last byte of a superframe of VP9 (annex B), and the profile with a bit more (§6.2)."""


def is_picture(packet: Packet[Any], codec: str, extradata: bytes = b"") -> bool:
    """Whether one picture is presented for this packet, as far as that can be known without decoding it."""
    if codec == "vp8":
        # The first byte's bit 4 is show_frame (RFC 6386 §9.1). Others only refer to a frame without it.
        return bool(memoryview(packet)[0] & 0x10)
    if codec == "vp9":
        return _is_shown_by_vp9(memoryview(packet))
    if codec == "hevc":
        return not any(_withholds(unit) for unit in units(packet, codec, extradata))
    return codec != "mpeg4" or packet.size >= SMALLEST_PICTURE_BYTES


def is_idr(packet: Packet[Any], extradata: bytes) -> bool:
    """Whether an H.264 picture refers to no other and no later one refers past it."""
    kinds = (_kind(unit[0], "h264") for unit in units(packet, "h264", extradata))
    return next((kind for kind in kinds if kind in SLICES["h264"]), None) == IDR


def parameter_sets(packet: Packet[Any], codec: str, extradata: bytes) -> set[bytes]:
    """The contents of the parameter sets in a packet of H.264 or HEVC."""
    kinds = PARAMETER_SETS[codec]
    # Zeros may follow a unit in a stream. They are no part of it.
    return {bytes(unit).rstrip(b"\0") for unit in units(packet, codec, extradata) if _kind(unit[0], codec) in kinds}


def has_lengths(codec: str, extradata: bytes) -> bool:
    """Whether each unit follows its length, as in MP4 (ISO/IEC 14496-15), and not a start code of three bytes."""
    return codec in SLICES and extradata[:1] == b"\x01"


def units(packet: Packet[Any], codec: str, extradata: bytes) -> Iterator[memoryview]:
    """The units of a packet of H.264 or HEVC, each from its header on.

    In a stream with start codes these are the units up to the first part of a picture, which is not searched for its
    end, and, in HEVC, those that begin in the last `END_BYTES` bytes.
    """
    if has_lengths(codec, extradata):
        length_byte = extradata[21:22] if codec == "hevc" else extradata[4:5]
        return _after_lengths(memoryview(packet), (int.from_bytes(length_byte, "big") & 3) + 1)
    return _after_start_codes(memoryview(packet), codec)


def _after_lengths(data: memoryview, width: int) -> Iterator[memoryview]:
    position = 0
    while position + width < len(data):
        end = position + width + int.from_bytes(data[position : position + width], "big")
        if end > position + width:
            yield data[position + width : end]
        position = end


def _after_start_codes(data: memoryview, codec: str) -> Iterator[memoryview]:
    slices, begin = SLICES[codec], len(data)
    for start in START_CODE.finditer(data):
        if begin < start.start():
            yield data[begin : start.start()]
        begin = start.end()
        if begin < len(data) and _kind(data[begin], codec) in slices:
            break
    if begin < len(data):
        yield data[begin:]
    if codec == "hevc":
        for late in START_CODE.finditer(data, max(begin, len(data) - END_BYTES)):
            if late.end() < len(data):
                yield data[late.end() :]


def _is_shown_by_vp9(data: memoryview) -> bool:
    """Whether a frame of VP9 has show_existing_frame or show_frame; a superframe's last one does."""
    if data[-1] >> 5 == SUPERFRAME_MARKER:
        return True
    # frame_marker and the profile come first; profile 3 has one more bit before the two (VP9, §6.2).
    shift = 2 if data[0] >> 4 & 3 == LAST_PROFILE else 3
    return bool(data[0] >> shift & 1 or data[0] >> (shift - 2) & 1)


def _withholds(unit: memoryview) -> bool:
    """Whether this unit of HEVC may keep pictures from being presented.

    After an end of sequence, and after a broken link, the leading pictures of a random access point are not presented.
    A random access point may also discard the pictures before it (no_output_of_prior_pics_flag).
    """
    kind = _kind(unit[0], "hevc")
    return kind in END_OR_BROKEN_LINK or (kind in RANDOM_ACCESS and len(unit) > 2 and bool(unit[2] & 0x40))  # noqa: PLR2004


def _kind(header: int, codec: str) -> int:
    """The kind of the unit whose first byte this is."""
    return header & 31 if codec == "h264" else header >> 1 & 63

"""What a file's packets say about its frames before anything is decoded, and whether they can be relied on."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from trio_runner.errors import RunnerError
from trio_runner.video.decoder.footage import Beginning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    from trio_runner.video.decoder.footage import Footage

TABLES: Final = frozenset({"mov", "matroska"})
"""Demuxers of containers that hold a table of their key frames in order of time.

AVI has one, too, but no times: its chunks are counted, and where damage hides one, the table counts otherwise.
"""

SEEKABLE: Final = TABLES | {"avi", "flv", "asf", "mxf", "mpegts", "mpeg", "ogg", "dv", "ivf"}
"""Demuxers whose key frames can be decoded by themselves, and whose packets have times.

APNG marks each frame as a key frame although it refers to the one before. Streams without a container have no times.
"""

PROOF_PACKETS: Final = 32
"""Decoding begins so many packets earlier than necessary: the times of the pictures must be those of the packets."""

SMALLEST_PICTURE_BYTES: Final = 20
"""A shorter packet of MPEG-4 part 2 may say that there is no picture (vop_coded = 0)."""

END_OR_BROKEN_LINK: Final = frozenset({16, 17, 18, 36, 37})
RANDOM_ACCESS: Final = frozenset(range(16, 24))
HEVC_SETS: Final = range(32, 35)
"""Types of HEVC's units (ITU-T H.265, table 7-1)."""

H264_SETS: Final = range(7, 9)
"""Types of H.264's units that are parameter sets (ISO/IEC 14496-10, table 7-1)."""

START_CODE: Final = b"\0\0\1"

SUPERFRAME_MARKER, LAST_PROFILE = 0b110, 3
"""The first three bits of the last byte of a superframe of VP9 (annex B), and the profile with a bit more (§6.2)."""


class CannotSeekError(Exception):
    """Decoding has to begin at the start of the file; the message says why."""


def check_seekable(container: InputContainer, stream: VideoStream) -> None:
    """Raise CannotSeekError if key frames or times of this kind of file cannot be relied on."""
    if demuxer_of(container) not in SEEKABLE:
        raise CannotSeekError(f"{container.format.long_name} has no key frames with times of their own")
    if demuxer_of(container) == "avi" and stream.codec_context.has_b_frames:
        raise CannotSeekError("AVI holds no times of presentation for reordered frames")
    if container.start_time is None:
        raise CannotSeekError("the container does not say at what time it begins")


def demuxer_of(container: InputContainer) -> str:
    """The first of the names that FFmpeg gives the demuxer, as "mov" of "mov,mp4,m4a"."""
    return container.format.name.partition(",")[0]


def packets_of(footage: Footage) -> Iterator[Packet[Any]]:
    """The packets of the file from where it is read on, each with its time of presentation, if the file has it."""
    avi = demuxer_of(footage.container) == "avi"
    for packet in footage.demuxed():
        # Without reordered frames, and there are none in an AVI that is read here, both times are the same.
        if avi and packet.pts is None:
            packet.pts = packet.dts
        yield packet


def prove_start(footage: Footage) -> int:
    """Check that the first pictures are the frames that the packets announce, in the order of their times.

    Args:
        footage: The file, of which nothing has been read.

    Returns:
        The time of the first picture, in units of the stream. Packets that are presented earlier give no picture,
        because they refer to missing ones.

    Raises:
        CannotSeekError: A packet may hold a single field, or none or several pictures.
    """
    announced: list[int | None] = []

    def packets() -> Iterator[Packet[Any]]:
        for packet in packets_of(footage):
            if not packet.is_discard:
                announced.append(packet.pts)
            yield packet

    try:
        shown = [picture.frame.pts for picture in islice(footage.pictures(Beginning(packets())), PROOF_PACKETS)]
    except RunnerError as error:
        raise CannotSeekError("its beginning is damaged") from error
    first = shown[0] if shown else None
    if first is None or None in announced:
        raise CannotSeekError("its first frames have no times of their own")
    if sorted(pts for pts in announced if pts is not None and pts >= first)[: len(shown)] != shown:
        raise CannotSeekError("its first frames are not those that its packets announce")
    return first


def is_picture(packet: Packet[Any], codec: str, extradata: bytes = b"") -> bool:
    """Whether one picture is presented for this packet, as far as that can be known without decoding it."""
    if codec == "vp8":
        # The first byte's bit 4 is show_frame (RFC 6386 §9.1). Others only refer to a frame without it.
        return bool(memoryview(packet)[0] & 0x10)
    if codec == "vp9":
        return _is_shown_by_vp9(memoryview(packet))
    if codec == "hevc":
        return not any(_withholds(unit) for unit in units(packet, extradata, length_byte=21))
    return codec != "mpeg4" or packet.size >= SMALLEST_PICTURE_BYTES


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
    kind = _kind(unit) if unit else 0
    return kind in END_OR_BROKEN_LINK or (kind in RANDOM_ACCESS and len(unit) > 2 and bool(unit[2] & 0x40))  # noqa: PLR2004


def units(packet: Packet[Any], extradata: bytes, *, length_byte: int) -> Iterator[memoryview]:
    """The units of a packet of H.264 or HEVC, each from its header on; `length_byte` tells how lengths are written."""
    data = memoryview(packet)
    # Containers such as MP4 put a unit's length before it (ISO/IEC 14496-15), streams a start code of three bytes.
    if extradata[:1] == b"\x01":
        width, position = (int.from_bytes(extradata[length_byte : length_byte + 1], "big") & 3) + 1, 0
        while position + width < len(data):
            end = position + width + int.from_bytes(data[position : position + width], "big")
            yield data[position + width : end]
            position = end
        return
    whole = bytes(data)
    start = whole.find(START_CODE)
    while start >= 0 and start + 3 < len(whole):
        following = whole.find(START_CODE, start + 3)
        yield data[start + 3 : following if following >= 0 else len(whole)]
        start = following


class ParameterSets:
    """Checks that packets bring no other parameter sets than those with which a decoder begins.

    Recordings that were joined may bring other ones only once, in a packet that is not decoded. A decoder would then
    take the old ones, and give wrong pictures without any error.
    """

    def __init__(self, codec: str, extradata: bytes) -> None:
        self._codec, self._extradata = codec, extradata
        self._in_band: set[bytes] | None = None
        """Those of the first packet that has any, where the container has none itself."""
        count = extradata[22:23] if codec == "hevc" else extradata[5:6]
        self._only_in_band = not extradata or (extradata[:1] == b"\x01" and count in {b"\xe0", b"\0"})

    def check(self, packet: Packet[Any]) -> None:
        """Raise CannotSeekError if this packet brings a parameter set that is not known."""
        if packet.has_sidedata("new_extradata"):
            raise CannotSeekError("its codec is set up anew within it")
        if self._codec not in {"h264", "hevc"}:
            return
        found = self._sets(packet)
        if found and self._only_in_band and self._in_band is None:
            self._in_band = found
        if not all(map(self._is_known, found)):
            raise CannotSeekError("its parameter sets change within it")

    def _sets(self, packet: Packet[Any]) -> set[bytes]:
        if self._codec == "hevc":
            found = (
                unit for unit in units(packet, self._extradata, length_byte=21) if unit and _kind(unit) in HEVC_SETS
            )
        else:
            found = (
                unit for unit in units(packet, self._extradata, length_byte=4) if unit and unit[0] & 31 in H264_SETS
            )
        # Zeros may follow a unit in a stream. They are no part of it.
        return {bytes(unit).rstrip(b"\0") for unit in found}

    def _is_known(self, content: bytes) -> bool:
        if self._in_band is not None:
            return content in self._in_band
        if self._extradata[:1] == b"\x01":
            return len(content).to_bytes(2, "big") + content in self._extradata
        return START_CODE + content + b"\0\0" in self._extradata + b"\0\0"


def _kind(unit: memoryview) -> int:
    """The type of a unit of HEVC."""
    return unit[0] >> 1 & 63

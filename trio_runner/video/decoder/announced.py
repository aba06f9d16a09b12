"""What a file's packets say about its frames before anything is decoded, and whether they can be relied on."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Any, Final

from trio_runner.errors import RunnerError
from trio_runner.video.decoder.bitstream import SLICES, has_lengths, is_picture, parameter_sets
from trio_runner.video.decoder.footage import Beginning

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    from trio_runner.video.decoder.footage import Footage

SEEKABLE: Final = frozenset({"mov", "matroska", "avi", "flv", "asf", "mxf", "mpegts", "mpeg", "ogg", "dv", "ivf"})
"""Demuxers whose key frames can be decoded by themselves, and whose packets have times.

APNG marks each frame as a key frame although it refers to the one before. Streams without a container have no times.
"""

PROOF_PACKETS: Final = 32
"""Decoding begins so many packets earlier than necessary: the times of the pictures must be those of the packets."""


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


def checked(packets: Iterator[Packet[Any]], footage: Footage) -> Iterator[tuple[int, Packet[Any]]]:
    """The packets, which are those of the file from its start on, each of one picture and with its time.

    Raises:
        CannotSeekError: A packet has no time of presentation, is damaged, may hold no picture, or sets the decoder up
            in another way than those before it.
    """
    extradata = footage.stream.codec_context.extradata or b""
    known, latest = ParameterSets(footage.codec, extradata), None
    for number, packet in enumerate(packets):
        if packet.pts is None:
            raise CannotSeekError(f"packet {number} has no time of its own")
        # Matroska holds no times of decoding, and FFmpeg can compute none for the first packets.
        if packet.dts is not None:
            if latest is not None and packet.dts < latest:
                raise CannotSeekError(f"time goes back at packet {number}")
            latest = packet.dts
        if packet.is_corrupt or not is_picture(packet, footage.codec, extradata):
            raise CannotSeekError(f"there may be no picture in packet {number}")
        known.check(packet)
        yield packet.pts, packet


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


class ParameterSets:
    """Checks that packets bring no other parameter sets than those with which a decoder begins.

    Recordings that were joined may bring other parameter sets only once, in a packet that is not decoded. A decoder
    would then take the old ones, and give wrong pictures without any error.
    """

    def __init__(self, codec: str, extradata: bytes) -> None:
        self._codec, self._extradata = codec, extradata
        self._has_lengths = has_lengths(codec, extradata)
        self._in_band: set[bytes] | None = None
        """Those of the first packet that has any, where the container has none itself."""
        count = extradata[22:23] if codec == "hevc" else extradata[5:6]
        # avcC and hvcC may have no parameter sets.
        self._only_in_band = not extradata or (self._has_lengths and count in {b"\xe0", b"\0"})

    def check(self, packet: Packet[Any]) -> None:
        """Raise CannotSeekError if this packet brings a parameter set that is not known."""
        if packet.has_sidedata("new_extradata"):
            raise CannotSeekError("its codec is set up anew within it")
        if self._codec not in SLICES:
            return
        found = parameter_sets(packet, self._codec, self._extradata)
        if found and self._only_in_band and self._in_band is None:
            self._in_band = found
        if not all(map(self._is_known, found)):
            raise CannotSeekError("its parameter sets change within it")

    def _is_known(self, content: bytes) -> bool:
        if self._in_band is not None:
            return content in self._in_band
        if self._has_lengths:
            return len(content).to_bytes(2, "big") + content in self._extradata
        return b"\0\0\1" + content + b"\0\0" in self._extradata + b"\0\0"

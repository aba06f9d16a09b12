"""Videos that somebody broke, or that never were any: each by the name of what is wrong with it, made by seeded code.

A case names how it may end: with one of the error codes, or, where `frames` is set, whole, with so many frames. Each
frame, also before an error, shows its own number, unless the case is not `numbered`.
"""

from __future__ import annotations

import io
import itertools
import os
import random
import socket
import struct
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache, partial
from pathlib import Path
from typing import Any

import av
import cv2

from tests.support import clips
from trio_runner.errors import ErrorCode

SIZE = (160, 120)
FRAMES = 60
LONG_FRAMES = 300

MISSING, REFUSED = ErrorCode.VIDEO_MISSING, ErrorCode.VIDEO_REFUSED
UNREADABLE, NO_FRAMES, TRUNCATED = ErrorCode.VIDEO_UNREADABLE, ErrorCode.VIDEO_NO_FRAMES, ErrorCode.VIDEO_TRUNCATED
DAMAGED = frozenset({REFUSED, UNREADABLE, NO_FRAMES, TRUNCATED})


class UnavailableError(Exception):
    """This machine has not what a case needs."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """One hostile video and how reading it may end."""

    make: Callable[[Path], Path]
    """Makes it in an empty directory and returns the path to open."""
    codes: frozenset[ErrorCode] = frozenset()
    frames: int | None = None
    numbered: bool = True
    """Whether each picture is held to show its number. No codec here has a checksum: of flipped bits many are as good
    as others, VP9 notices the fewest, and then a wrong picture is decoded without an error."""
    act: Callable[[Path], None] | None = None
    """What happens to the file when the first frame has come."""
    options: dict[str, Any] = field(default_factory=dict)


@cache
def whole(kind: str) -> bytes:
    """The bytes of a whole clip of 60 frames, made once: `kind` is codec and suffix."""
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / f"whole.{kind.rpartition('.')[2]}"
        return clips.pixel_coded(path, frames=FRAMES, size=SIZE, codec=kind.partition(".")[0]).read_bytes()


def written(content: bytes, directory: Path, name: str = "video.mp4") -> Path:
    path = directory / name
    path.write_bytes(content)
    return path


def patched(kind: str, *changes: tuple[int, bytes]) -> bytes:
    """The whole clip with bytes put over it."""
    content = bytearray(whole(kind))
    for position, new in changes:
        content[position : position + len(new)] = new
    return bytes(content)


# Damage anywhere: each kind of container and codec in each of its parts.

KINDS = ("libx264.mp4", "libx264.mkv", "libvpx-vp9.webm", "mjpeg.avi", "mpeg4.mp4")
INDEX_MARKS = {"mp4": b"stbl", "mkv": b"\x1c\x53\xbb\x6b", "webm": b"\x1c\x53\xbb\x6b", "avi": b"idx1"}


def part_of(kind: str, part: str) -> range:
    """Where in the clip a part lies."""
    content = whole(kind)
    size = len(content)
    # The Cues of Matroska are named once before, in its SeekHead.
    index = content.rfind(INDEX_MARKS[kind.rpartition(".")[2]])
    return {
        "header": range(min(300, size)),
        "index": range(index, min(index + 400, size)),
        "data": range(size // 3, 2 * size // 3),
        "tail": range(size - 200, size),
    }[part]


def flipped(directory: Path, *, kind: str, part: str, count: int) -> Path:
    chance = random.Random(f"{kind} {part} {count}")
    content = bytearray(whole(kind))
    for position in chance.sample(part_of(kind, part), min(count, len(part_of(kind, part)))):
        content[position] ^= chance.randrange(1, 256)
    return written(bytes(content), directory)


def cut(directory: Path, *, kind: str, share: float) -> Path:
    content = whole(kind)
    return written(content[: min(int(len(content) * share), len(content) - 1)], directory)


def damaged_everywhere() -> Iterator[tuple[str, Case]]:
    for kind, part, count in itertools.product(KINDS, ("header", "index", "data", "tail"), (3, 40)):
        make = partial(flipped, kind=kind, part=part, count=count)
        case = Case(make=make, codes=DAMAGED, frames=FRAMES, numbered=False)
        yield f"{count} bytes flipped in the {part} of {kind}", case
    for kind, share in itertools.product(KINDS, (0.01, 0.3, 0.9, 1.0)):
        yield (
            f"{kind} cut to {share:.0%}",
            Case(make=partial(cut, kind=kind, share=share), codes=DAMAGED, frames=FRAMES),
        )


# Headers that lie. Positions are those of ISO/IEC 14496-12 and of Microsoft's AVI RIFF reference.


def box(kind: str, name: bytes, offset: int, form: str, *values: float) -> Callable[[Path], Path]:
    """A maker of the clip with values at `offset` from the start of the first box or chunk called `name`."""

    def make(directory: Path) -> Path:
        position = whole(kind).index(name)
        return written(patched(kind, (position + offset, struct.pack(form, *values))), directory)

    return make


MP4, AVI, MKV = "libx264.mp4", "mjpeg.avi", "libx264.mkv"
# FFmpeg leaves out or reorders frames according to their times, so a frame's number may differ from its place.
REORDERED = (
    "stts declares no time between frames",
    "ctts goes back",
    "elst begins in the middle",
    "elst shows a hundredth",
)
# As many frames as FFmpeg's own program presents, because it takes these numbers at their word.
PRESENTED = {
    "stsz declares 10 frames": 10,
    "stts declares no time between frames": 25,
    "stts declares a century between frames": 1,
    "stsc declares 4 billion frames a chunk": 1,
    "ctts goes back": 57,
    "mdhd declares a timescale of 0": 1,
    "mdhd declares a timescale of 1": 1,
    "mdhd declares a timescale of 4 billion": 1,
    "elst begins in the middle": 32,
    "elst shows a hundredth": 1,
}
LIES: dict[str, Callable[[Path], Path]] = {
    "stsz declares 1000 frames": box(MP4, b"stsz", 12, ">I", 1000),
    "stsz declares 4 billion frames": box(MP4, b"stsz", 12, ">I", 2**32 - 1),
    "stsz declares 10 frames": box(MP4, b"stsz", 12, ">I", 10),
    "stsz declares frames of 1 GB": box(MP4, b"stsz", 8, ">I", 2**30),
    "stts declares 1 frame": box(MP4, b"stts", 12, ">I", 1),
    "stts declares no time between frames": box(MP4, b"stts", 16, ">I", 0),
    "stts declares a century between frames": box(MP4, b"stts", 16, ">I", 2**31 - 1),
    "stco points behind the file": box(MP4, b"stco", 12, ">I", 2**31),
    "stco points at the header": box(MP4, b"stco", 12, ">I", 0),
    "stsc declares 4 billion frames a chunk": box(MP4, b"stsc", 16, ">I", 2**32 - 1),
    "ctts goes back": box(MP4, b"ctts", 16, ">iIiIi", -(2**30), 1, 2**30, 1, -5),
    "mdhd declares no duration": box(MP4, b"mdhd", 20, ">I", 0),
    "mdhd declares a duration of centuries": box(MP4, b"mdhd", 20, ">I", 2**32 - 2),
    "mdhd declares a timescale of 0": box(MP4, b"mdhd", 16, ">I", 0),
    "mdhd declares a timescale of 1": box(MP4, b"mdhd", 16, ">I", 1),
    "mdhd declares a timescale of 4 billion": box(MP4, b"mdhd", 16, ">I", 2**32 - 1),
    "mvhd declares a timescale of 0": box(MP4, b"mvhd", 16, ">I", 0),
    "elst begins behind the end": box(MP4, b"elst", 16, ">i", 2**30),
    "elst begins with emptiness": box(MP4, b"elst", 16, ">i", -1),
    "elst begins in the middle": box(MP4, b"elst", 16, ">i", 15360),
    "elst shows a hundredth": box(MP4, b"elst", 12, ">I", 24),
    "moov is empty": box(MP4, b"moov", -4, ">I", 8),
    "moov is longer than the file": box(MP4, b"moov", -4, ">I", 2**31),
    "mdat has no end": box(MP4, b"mdat", -4, ">I", 0),
    "stsd declares 16000 x 16000": box(MP4, b"avc1", 28, ">HH", 16000, 16000),
    "stsd declares 0 x 0": box(MP4, b"avc1", 28, ">HH", 0, 0),
    "stsd declares another codec": box(MP4, b"avc1", 0, "4s", b"hvc1"),  # type: ignore[arg-type]
    "avih and strh declare 1000 frames": box(AVI, b"strh", 36, "<I", 1000),
    "avih declares 10 frames": box(AVI, b"avih", 24, "<I", 10),
    "strh declares 4 billion frames": box(AVI, b"strh", 36, "<I", 2**32 - 1),
    "strh declares a rate of 0": box(AVI, b"strh", 28, "<I", 0),
    "strh declares a scale of 0": box(AVI, b"strh", 24, "<I", 0),
    "strh declares 4 billion frames a second": box(AVI, b"strh", 24, "<II", 1, 2**32 - 1),
    "strf declares 16000 x 16000": box(AVI, b"strf", 12, "<ii", 16000, 16000),
    "strf declares 0 x 0": box(AVI, b"strf", 12, "<ii", 0, 0),
    "strf declares a negative width": box(AVI, b"strf", 12, "<ii", -160, 120),
    "matroska declares 1 ms": box(MKV, b"\x44\x89\x88", 3, ">d", 1.0),
    "matroska declares a century": box(MKV, b"\x44\x89\x88", 3, ">d", 3e12),
    "matroska declares a negative duration": box(MKV, b"\x44\x89\x88", 3, ">d", -1.0),
    "matroska declares no duration at all": box(MKV, b"\x44\x89\x88", 3, ">d", float("nan")),
    "matroska declares a timestamp scale of 1 ns": box(MKV, b"\x2a\xd7\xb1", 4, ">I", 1 << 8),
}


# Streams made packet by packet.


def jpeg(number: int, size: tuple[int, int] = SIZE, declared: tuple[int, int] | None = None) -> bytes:
    """A JPEG that shows its number, and perhaps says another size than it has."""
    _, encoded = cv2.imencode(".jpg", clips.paint(number, size))
    content = bytearray(encoded.tobytes())
    if declared is not None:
        # Start Of Frame: marker, length, precision, then height and width.
        struct.pack_into(">HH", content, content.index(b"\xff\xc0") + 5, *declared[::-1])
    return bytes(content)


def h264(frames: int = 1, size: tuple[int, int] = SIZE, first: int = 0) -> list[bytes]:
    """Packets of a baseline stream, each a key frame with its own parameter sets in front (Annex B)."""
    encoder = av.CodecContext.create("libx264", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = *size, "yuv420p"
    encoder.time_base, encoder.thread_count = Fraction(1, 25), 1
    encoder.options = {"preset": "ultrafast", "profile": "baseline", "g": "1", "x264-params": "repeat-headers=1"}
    packets: list[bytes] = []
    for number in range(frames):
        picture = av.VideoFrame.from_ndarray(clips.paint(first + number, size), format="gray")
        picture.pts = number
        packets += map(bytes, encoder.encode(picture))
    return packets + list(map(bytes, encoder.encode()))


def with_size(packet: bytes, size: tuple[int, int]) -> bytes:
    """The packet with another size in its sequence parameter set (ITU-T H.264 §7.3.2.1.1, baseline profile)."""
    start = packet.index(b"\x00\x00\x01\x67") + 4
    end = packet.index(b"\x00\x00\x01", start)
    bits = "".join(f"{byte:08b}" for byte in packet[start:end])
    position = 24

    def exp_golomb() -> int:
        nonlocal position
        zeros = bits.index("1", position) - position
        position += 2 * zeros + 1
        return int(bits[position - zeros - 1 : position], 2) - 1

    def coded(value: int) -> str:
        digits = f"{value + 1:b}"
        return "0" * (len(digits) - 1) + digits

    _, _, order_type = exp_golomb(), exp_golomb(), exp_golomb()
    if order_type == 0:
        exp_golomb()
    exp_golomb()
    position += 1
    before = position
    exp_golomb()
    exp_golomb()
    bits = bits[:before] + coded(size[0] // 16 - 1) + coded(size[1] // 16 - 1) + bits[position:]
    bits += "0" * (-len(bits) % 8)
    return packet[:start] + int(bits, 2).to_bytes(len(bits) // 8) + packet[end:]


def muxed(
    directory: Path,
    packets: list[bytes] | Callable[[], list[bytes]],
    *,
    codec: str = "mjpeg",
    name: str = "video.avi",
    size: tuple[int, int] = SIZE,
    times: list[int] | None = None,
    rate: int = 25,
) -> Path:
    path = directory / name
    data = packets() if callable(packets) else packets
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        container.start_encoding()
        for number, content in enumerate(data):
            packet = av.Packet(content)
            packet.stream, packet.time_base, packet.is_keyframe = stream, Fraction(1, rate), True
            packet.pts = packet.dts = times[number] if times else number
            container.mux(packet)
    return path


def jpegs(*sizes: tuple[int, int], declared: tuple[int, int] | None = None, at: range = range(0)) -> list[bytes]:
    """Twenty JPEGs of the sizes in turn, those `at` some places with another size declared."""
    chosen = sizes or (SIZE,)
    return [
        jpeg(number, chosen[number * len(chosen) // 20], declared if number in at else None) for number in range(20)
    ]


def two_resolutions(directory: Path) -> Path:
    """H.264 whose second half is larger."""
    return muxed(directory, h264(10) + h264(10, (320, 240), first=10), codec="libx264")


def larger_than_declared(directory: Path, *, size: tuple[int, int], since: int) -> Path:
    packets = h264(20)
    packets[since:] = [with_size(packet, size) for packet in packets[since:]]
    return muxed(directory, packets, codec="libx264")


def remuxed(directory: Path, *, content: bytes = b"", name: str = "video.mp4", shift: int = 0, **options: str) -> Path:
    """The packets of `content`, or of the whole clip, in a container made with `options`, perhaps at other times."""
    path = directory / name
    with av.open(io.BytesIO(content or whole(MP4)), "r") as given, av.open(str(path), "w", options=options) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None and packet.pts is not None:
                packet.dts, packet.pts = packet.dts + shift, packet.pts + shift
                packet.stream = stream
                made.mux(packet)
    return path


def matroska_times(directory: Path, *, change: Callable[[int, int], int]) -> Path:
    """Times of the blocks (RFC 9559 §10.3: id, size, track 1, 16 bits) as `change` makes them of place and time."""
    content = bytearray(whole(MKV))
    position, blocks = content.index(b"\x1f\x43\xb6\x75"), 0
    while (position := content.find(b"\xa3", position + 1)) >= 0:
        first = content[position + 1]
        length = 9 - first.bit_length()
        if 1 <= length <= 3 and content[position + 1 + length] == 0x81:
            at = position + 2 + length
            (time,) = struct.unpack_from(">h", content, at)
            struct.pack_into(">h", content, at, max(-(2**15), min(change(blocks, time), 2**15 - 1)))
            blocks += 1
    assert blocks >= FRAMES
    return written(bytes(content), directory)


def several_tracks(directory: Path, *, kinds: tuple[str, ...], name: str = "video.mp4") -> Path:
    """A track for each of the kinds: a numbered video, a cover (a picture to be shown beside the sound), a tone."""
    path = directory / name
    with av.open(str(path), "w") as container:
        made: list[av.Packet[Any]] = []
        for kind in kinds:
            if kind == "tone":
                sound = container.add_stream("aac", rate=48_000, layout="mono")
                made += tone(sound)
                continue
            codec = "mjpeg" if kind == "cover" else "libx264"
            stream = container.add_stream(codec, rate=25)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = SIZE
            stream.pix_fmt = "yuvj420p" if kind == "cover" else "yuv420p"
            if kind == "cover":
                stream.disposition = av.stream.Disposition.attached_pic
            packets: list[av.Packet[Any]] = []
            for number in range(1 if kind == "cover" else FRAMES):
                picture = av.VideoFrame.from_ndarray(clips.paint(number, SIZE), format="gray")
                picture.pts, picture.time_base = number, Fraction(1, 25)
                packets += stream.encode(picture)
            made += [*packets, *stream.encode()]
        for packet in made:
            container.mux(packet)
    return path


def tone(stream: Any) -> list[av.Packet[Any]]:
    silence = av.AudioFrame(format="fltp", layout="mono", samples=1024)
    silence.sample_rate = 48_000
    for plane in silence.planes:
        plane.update(bytes(plane.buffer_size))
    return [*stream.encode(silence), *stream.encode()]


def fragmented(directory: Path, *, change: bytes = b"") -> Path:
    """An MP4 of fragments, which declares no duration; `change` is put over the number of frames in its second one."""
    path = remuxed(directory, movflags="frag_keyframe+empty_moov+default_base_moof")
    if change:
        content = bytearray(path.read_bytes())
        at = content.index(b"trun", content.index(b"trun") + 1) + 8
        content[at : at + len(change)] = change
        path.write_bytes(content)
    return path


def clip(directory: Path, *, name: str = "video.mp4", **options: Any) -> Path:
    given: dict[str, Any] = {"frames": 20, "size": SIZE} | options
    return clips.pixel_coded(directory / name, **given)


# Files that are no video, whatever their name.


def image(directory: Path, *, suffix: str) -> Path:
    return written(cv2.imencode(suffix, clips.paint(1, SIZE))[1].tobytes(), directory)


def beside_a_clip(directory: Path, *, text: str) -> Path:
    """A text that names another file; that one must not be opened in its place."""
    clip(directory, name="other.mp4")
    return written(text.format(directory=directory).encode(), directory)


LISTS = {
    "an HLS playlist": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nother.mp4\n#EXT-X-ENDLIST\n",
    "an HLS playlist of URLs": "#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nhttp://127.0.0.1:9/x.mp4\n#EXT-X-ENDLIST\n",
    "an ffconcat list": "ffconcat version 1.0\nfile '{directory}/other.mp4'\n",
    "a DASH manifest": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period>'
    "<AdaptationSet><Representation><BaseURL>other.mp4</BaseURL></Representation></AdaptationSet></Period></MPD>",
    "an SDP session": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "a URL": "rtsp://127.0.0.1:9/stream\n",
    "an ASX list": '<asx version="3.0"><entry><ref href="other.mp4"/></entry></asx>',
    "subtitles": "1\n00:00:00,000 --> 00:00:01,000\nHello\n",
    "an AviSynth script": 'DirectShowSource("other.mp4")\n',
}


def zipped(directory: Path) -> Path:
    with zipfile.ZipFile(directory / "video.mp4", "w") as archive:
        archive.writestr("video.mp4", whole(MP4))
    return directory / "video.mp4"


def sparse(directory: Path, *, content: bytes = b"", size: int = 2**40) -> Path:
    path = written(content, directory)
    os.truncate(path, size)
    return path


# Paths that are no file, or lie in the wrong place.


def made_by(make: Callable[[Path], object], directory: Path) -> Path:
    make(directory / "video.mp4")
    return directory / "video.mp4"


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        # An address holds 107 bytes; a relative one always fits.
        directory = os.open(path.parent, os.O_PATH)
        try:
            listener.bind(f"/proc/self/fd/{directory}/{path.name}")
        finally:
            os.close(directory)


def block_device(directory: Path) -> Path:
    for path in Path("/dev").iterdir():
        if path.is_block_device():
            return path
    raise UnavailableError("there is no block device in /dev")


def unreadable(directory: Path) -> Path:
    if os.geteuid() == 0:
        raise UnavailableError("root may read every file")
    path = clip(directory)
    path.chmod(0)
    return path


def linked(directory: Path, *, to: str) -> Path:
    return made_by(lambda path: path.symlink_to(to), directory)


def in_root(directory: Path, *, path: str) -> Path:
    """A root with a video in it, one beside it, and links; `{root}` is its place in the options, too."""
    root = directory / "root"
    (root / "sub").mkdir(parents=True)
    (directory / "root2").mkdir()
    clip(root, name="inside.mp4")
    clip(directory, name="outside.mp4")
    clip(directory / "root2", name="sibling.mp4")
    (root / "to_inside.mp4").symlink_to("inside.mp4")
    (root / "to_outside.mp4").symlink_to(directory / "outside.mp4")
    (root / "sub" / "up").symlink_to("../..")
    (root / "hard.mp4").hardlink_to(directory / "outside.mp4")
    (directory / "to_root").symlink_to(root)
    return directory / path


def rooted(path: str, *, root: str = "root", whole: bool = False) -> Case:
    make, options = partial(in_root, path=path), {"root": f"{{directory}}/{root}"}
    return Case(make=make, options=options, **({"frames": 20} if whole else {"codes": frozenset({REFUSED})}))


def deep(directory: Path) -> Path:
    """A path of nearly 4096 bytes, made from the inside because every call takes only so many at once."""
    path = directory
    while len(str(path)) < 3850:
        path /= "d" * 200
    path.mkdir(parents=True)
    return clip(path)


# A file that changes while it is read.


def long_clip(directory: Path, *, name: str, share: float = 1.0) -> Path:
    """So long that most of it is still to be read when the first frame has come; the rest of it lies beside."""
    path = clip(directory, name=name, frames=LONG_FRAMES, size=(640, 480), codec="mjpeg")
    content = path.read_bytes()
    half = int(len(content) * share)
    written(content[:half], directory, name)
    written(content[half:], directory, "rest")
    return path


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write((path.parent / "rest").read_bytes())


def shrink(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


CLUSTER = b"\x1f\x43\xb6\x75"
"""How each part of a Matroska file begins: where one is missing nothing is torn, and FFmpeg sees nothing wrong."""


def shrink_by_a_cluster(path: Path) -> None:
    os.truncate(path, path.read_bytes().rindex(CLUSTER))


def half_of_a_live_recording(directory: Path) -> Path:
    """Matroska that declares no end, up to where its last cluster will begin."""
    source = clip(directory, name="source.mkv", frames=LONG_FRAMES, size=(640, 480), codec="mjpeg").read_bytes()
    path = remuxed(directory, content=source, name="video.mkv", live="1")
    shrink_by_a_cluster(path)
    return path


def append_nothing(path: Path) -> None:
    """Append an empty element, as if the recording were still going on."""
    with path.open("ab") as file:
        file.write(b"\xec\x80")


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        file.write(random.Random(0).randbytes(path.stat().st_size // 2))


def one_of(*codes: ErrorCode) -> frozenset[ErrorCode]:
    return frozenset(codes)


STALLED = DAMAGED | {ErrorCode.DECODER_STALLED}
IMPATIENT = {"frame_timeout_seconds": 5.0}
REFUSED_ONLY, UNREADABLE_ONLY, TRUNCATED_ONLY = one_of(REFUSED), one_of(UNREADABLE), one_of(TRUNCATED)

CASES: dict[str, Case] = {
    **dict(damaged_everywhere()),
    **{name: Case(make=make, codes=DAMAGED, frames=PRESENTED.get(name, FRAMES), numbered=name not in REORDERED)
       for name, make in LIES.items()},
    **{name: Case(make=partial(beside_a_clip, text=text), codes=UNREADABLE_ONLY) for name, text in LISTS.items()},
    **{f"a {suffix[1:]} image": Case(make=partial(image, suffix=suffix), codes=UNREADABLE_ONLY)
       for suffix in (".png", ".jpg", ".bmp", ".webp", ".tiff")},
    "an animated GIF": Case(make=partial(clip, name="video.gif", codec="gif", pix_fmt="rgb8"), frames=20),
    **{f"the codec {codec}": Case(
        make=partial(clip, name=f"video.{suffix}", codec=codec, pix_fmt=pix_fmt), codes=REFUSED_ONLY)
       for codec, suffix, pix_fmt in [
           ("magicyuv", "avi", "yuv420p"), ("utvideo", "avi", "yuv420p"), ("png", "mov", "rgb24"),
           ("jpeg2000", "mov", "yuv420p"), ("zmbv", "avi", "bgr0"),
       ]},
    "JPEGs of 16000 x 16000": Case(
        make=partial(muxed, packets=partial(jpegs, declared=(16000, 16000), at=range(20)), size=(16000, 16000)),
        codes=REFUSED_ONLY,
    ),
    "a JPEG of 16000 x 16000 among small ones": Case(
        make=partial(muxed, packets=partial(jpegs, declared=(16000, 16000), at=range(10, 11))), codes=TRUNCATED_ONLY
    ),
    "a first JPEG of 16000 x 16000": Case(
        make=partial(muxed, packets=partial(jpegs, declared=(16000, 16000), at=range(1))), codes=DAMAGED
    ),
    "a JPEG of 0 x 0 among others": Case(
        make=partial(muxed, packets=partial(jpegs, declared=(0, 0), at=range(10, 11))), codes=TRUNCATED_ONLY
    ),
    "a JPEG of 65535 x 65535": Case(
        make=partial(muxed, packets=partial(jpegs, declared=(65535, 65535), at=range(10, 11))), codes=TRUNCATED_ONLY
    ),
    "JPEGs that grow": Case(make=partial(muxed, packets=partial(jpegs, SIZE, (320, 240))), frames=20),
    "JPEGs that shrink": Case(
        make=partial(muxed, packets=partial(jpegs, (320, 240), SIZE), size=(320, 240)), frames=20
    ),
    "H.264 that changes its size": Case(make=two_resolutions, codes=DAMAGED, frames=20),
    "H.264 of 16000 x 16000 that is declared smaller": Case(
        make=partial(larger_than_declared, size=(16000, 16000), since=0), codes=DAMAGED
    ),
    "H.264 of 16000 x 16000 from the middle on": Case(
        make=partial(larger_than_declared, size=(16000, 16000), since=10), codes=DAMAGED
    ),
    "H.264 of 4000 x 4000 from the middle on": Case(
        make=partial(larger_than_declared, size=(4000, 4000), since=10), codes=DAMAGED
    ),
    "1 x 1": Case(make=partial(clip, name="video.webm", codec="libvpx-vp9", size=(1, 1)), frames=20, numbered=False),
    "2 x 2": Case(make=partial(clip, size=(2, 2)), frames=20, numbered=False),
    "33 x 17": Case(make=partial(clip, codec="mpeg4", size=(33, 17)), frames=20, numbered=False),
    "8192 x 16": Case(make=partial(clip, size=(8192, 16)), codes=REFUSED_ONLY),
    "1000 frames a second": Case(make=partial(clip, fps=1000), codes=REFUSED_ONLY),
    "60000 frames a second": Case(make=partial(clip, fps=60000), codes=DAMAGED, frames=20),
    "negative times": Case(
        make=partial(remuxed, shift=-20_000, avoid_negative_ts="disabled"), codes=DAMAGED, frames=20, numbered=False
    ),
    "times of next year": Case(make=partial(remuxed, shift=2**40), codes=DAMAGED, frames=FRAMES),
    "times that go back": Case(
        make=partial(matroska_times, change=lambda place, time: time - 500 * (place % 7)), codes=DAMAGED, frames=FRAMES
    ),
    "times that are all the same": Case(
        make=partial(matroska_times, change=lambda *_: 0), codes=DAMAGED, frames=FRAMES
    ),
    "times at random": Case(
        make=partial(matroska_times, change=lambda place, _: random.Random(place).randrange(-(2**15), 2**15)),
        codes=DAMAGED, frames=FRAMES,
    ),
    "fragments": Case(make=fragmented, frames=FRAMES),
    "a fragment of 4 billion frames": Case(make=partial(fragmented, change=b"\xff\xff\xff\xff"), codes=DAMAGED),
    "a fragment that says it has no frame": Case(make=partial(fragmented, change=bytes(4)), frames=48, numbered=False),
    "no frame": Case(make=partial(clip, frames=0), codes=one_of(NO_FRAMES)),
    "sound alone": Case(make=lambda directory: clips.audio_only(directory / "video.mp4"), codes=UNREADABLE_ONLY),
    "two videos": Case(make=partial(several_tracks, kinds=("video", "video")), frames=FRAMES),
    "a cover and sound": Case(make=partial(several_tracks, kinds=("tone", "cover")), codes=UNREADABLE_ONLY),
    "a cover before the video": Case(make=partial(several_tracks, kinds=("cover", "video")), frames=FRAMES),
    "a cover after the video": Case(make=partial(several_tracks, kinds=("video", "cover")), frames=FRAMES),
    "a ZIP archive without an image": Case(make=zipped, codes=one_of(NO_FRAMES)),
    "text": Case(make=partial(written, b"no video\n" * 1000), codes=UNREADABLE_ONLY),
    "random bytes": Case(make=partial(written, random.Random(1).randbytes(100_000)), codes=UNREADABLE_ONLY),
    "an empty file": Case(make=partial(written, b""), codes=UNREADABLE_ONLY),
    "one byte": Case(make=partial(written, b"\x00"), codes=UNREADABLE_ONLY),
    "a terabyte of nothing": Case(make=sparse, codes=UNREADABLE_ONLY),
    "a terabyte of nothing after an MP4": Case(
        make=lambda d: sparse(d, content=whole(MP4)), codes=DAMAGED, frames=FRAMES
    ),
    "a terabyte of nothing after a Matroska file": Case(
        make=lambda d: sparse(d, content=whole(MKV)), codes=STALLED, frames=FRAMES, options=IMPATIENT
    ),
    "a terabyte of nothing after a Matroska header": Case(
        make=lambda d: sparse(d, content=whole(MKV)[:800]), codes=STALLED, options=IMPATIENT
    ),
    "a terabyte of nothing after an AVI header": Case(
        make=lambda d: sparse(d, content=whole(AVI)[:6000]), codes=STALLED, options=IMPATIENT
    ),
    "an empty directory": Case(make=partial(made_by, Path.mkdir), codes=one_of(NO_FRAMES)),
    "a FIFO": Case(make=partial(made_by, os.mkfifo), codes=REFUSED_ONLY),
    "a socket": Case(make=partial(made_by, make_socket), codes=REFUSED_ONLY),
    "a character device": Case(make=lambda _: Path("/dev/zero"), codes=REFUSED_ONLY),
    "a block device": Case(make=block_device, codes=REFUSED_ONLY),
    "a file that may not be read": Case(make=unreadable, codes=one_of(MISSING)),
    "a terminal": Case(make=lambda _: Path("/dev/tty"), codes=REFUSED_ONLY),
    "a link to a device": Case(make=partial(linked, to="/dev/zero"), codes=REFUSED_ONLY),
    "a link to nothing": Case(make=partial(linked, to="nowhere"), codes=one_of(MISSING)),
    "a link to itself": Case(make=partial(linked, to="video.mp4"), codes=one_of(MISSING)),
    "nothing": Case(make=lambda directory: directory / "video.mp4", codes=one_of(MISSING)),
    "a file as a directory": Case(make=lambda d: written(b"x", d) / "video.mp4", codes=one_of(MISSING)),
    "a process's memory": Case(make=lambda _: Path("/proc/self/mem"), codes=UNREADABLE_ONLY),
    "the kernel's log": Case(make=lambda _: Path("/proc/kmsg"), codes=one_of(UNREADABLE, MISSING)),
    "a process's environment": Case(make=lambda _: Path("/proc/self/environ"), codes=UNREADABLE_ONLY),
    "a kernel attribute": Case(make=lambda _: Path("/sys/kernel/uevent_seqnum"), codes=one_of(UNREADABLE, MISSING)),
    "standard input": Case(make=lambda _: Path("/proc/self/fd/0"), codes=REFUSED_ONLY),
    "a name with a newline": Case(make=partial(clip, name="a\nb.mp4"), frames=20),
    "a name that is not UTF-8": Case(
        make=lambda d: clip(d).rename(os.fsdecode(os.fsencode(d) + b"/\xff\xfe.mp4")), frames=20
    ),
    "a missing name that is not UTF-8": Case(make=lambda d: d / os.fsdecode(b"\xff\xfe.mp4"), codes=one_of(MISSING)),
    "a name that is a pattern": Case(make=partial(clip, name="%03d.mp4"), frames=20),
    "a name that is an option": Case(make=partial(clip, name="-i.mp4"), frames=20),
    "a name that is too long": Case(make=lambda d: d / ("n" * 256), codes=one_of(MISSING)),
    "a path that is too long": Case(make=lambda d: d.joinpath(*["d" * 100] * 38), codes=one_of(MISSING)),
    "a path of nearly 4 kB": Case(make=deep, frames=20),
    "inside the root": rooted("root/inside.mp4", whole=True),
    "a link inside the root": rooted("root/to_inside.mp4", whole=True),
    "a hard link, which nobody can detect": rooted("root/hard.mp4", whole=True),
    "the root through a link": rooted("to_root/inside.mp4", whole=True),
    "a root that is a link": rooted("root/inside.mp4", root="to_root", whole=True),
    "up and down again": rooted("root/sub/../../root/inside.mp4", whole=True),
    "the whole disk as the root": rooted("outside.mp4", root="../../../../../../../../../..", whole=True),
    "outside the root": rooted("outside.mp4"),
    "up out of the root": rooted("root/../outside.mp4"),
    "a link out of the root": rooted("root/to_outside.mp4"),
    "a linked directory out of the root": rooted("root/sub/up/outside.mp4"),
    "beside the root under a longer name": rooted("root2/sibling.mp4"),
    "a root that is not there": rooted("root/inside.mp4", root="nowhere"),
    "a root that is a file": rooted("outside.mp4", root="root/inside.mp4"),
    **{f"a file that is removed ({name})": Case(make=partial(long_clip, name=name), frames=LONG_FRAMES, act=Path.unlink)
       for name in ("video.avi", "video.mkv")},
    **{f"a file that is cut ({name})": Case(make=partial(long_clip, name=name), codes=TRUNCATED_ONLY, act=shrink)
       for name in ("video.avi", "video.mkv", "video.mov")},
    "a file that is cut between two clusters": Case(
        make=partial(long_clip, name="video.mkv"), codes=TRUNCATED_ONLY, act=shrink_by_a_cluster
    ),
    "a live recording that goes on": Case(make=half_of_a_live_recording, codes=TRUNCATED_ONLY, act=append_nothing),
    "a live recording that has ended": Case(make=half_of_a_live_recording, frames=LONG_FRAMES - 2),
    **{f"a file that is written over ({name})": Case(
        make=partial(long_clip, name=name), codes=TRUNCATED_ONLY, act=overwrite)
       for name in ("video.avi", "video.mkv")},
    **{f"a file that is still being copied ({name})": Case(
        make=partial(long_clip, name=name, share=0.6), codes=DAMAGED, frames=LONG_FRAMES, act=grow)
       for name in ("video.avi", "video.mkv", "video.mov")},
}  # fmt: skip

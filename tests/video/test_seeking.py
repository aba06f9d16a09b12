"""Reading from the middle of a file gives the frames that reading from its start gives: number, time and picture."""

from __future__ import annotations

import os
import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import pytest

from tests.cases.video import CASES, patching
from tests.cases.video.case import SIZE, Case
from tests.cases.video.writing import Track, write
from tests.support.watching import watch
from trio_runner.config.sections import VideoSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.video.decoder.announced import CannotSeekError, ParameterSets
from trio_runner.video.decoder.bitstream import is_idr, is_picture, units
from trio_runner.video.decoder.footage import Footage, Picture
from trio_runner.video.decoder.formats import open_container
from trio_runner.video.decoder.reading import Reading
from trio_runner.video.decoder.sampling import Sampler
from trio_runner.video.decoder.streams import choose_stream, describe, look
from trio_runner.video.messages import Start

FRAMES = 90
NUMBERS = range(FRAMES)
OPEN_GOP = {"x264-params": "open-gop=1:keyint=12:min-keyint=12:scenecut=0", "bf": "3"}
OPEN_GOP_HEVC = {"x265-params": "log-level=none:bframes=3:keyint=12:min-keyint=12:open-gop=1:pools=1"}
IRREGULAR_MS = tuple(int(33.3 * number + (number * 7919) % 14) for number in NUMBERS)

H264 = Track(numbers=NUMBERS, options={"g": "12"})
OPEN = Track(numbers=NUMBERS, options=OPEN_GOP)
HEVC = Track(numbers=NUMBERS, codec="libx265", options=OPEN_GOP_HEVC)
MPEG2 = Track(numbers=NUMBERS, codec="mpeg2video", options={"g": "12"})
IRREGULAR = Track(numbers=NUMBERS, times=IRREGULAR_MS, time_base=Fraction(1, 1000), rate=1000, options={"g": "12"})
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
REFRESHED = Track(numbers=NUMBERS, options={"x264-params": "intra-refresh=1:keyint=12", "bf": "0"})

Maker = Callable[[Path], object]


def written(track: Track, muxer: str | None = None, mux: dict[str, str] | None = None) -> Maker:
    return lambda path: write(path, track, muxer=muxer, mux=mux)


def cut_between_key_frames(track: Track) -> Maker:
    """As a phone trims a clip: the packets from a key frame on, and an edit list that hides the first of them."""

    def make(path: Path) -> None:
        whole = path.with_name(f"whole_{path.name}")
        write(whole, track)
        with av.open(str(whole)) as given, av.open(str(path), "w") as container:
            source = given.streams.video[0]
            stream = container.add_stream_from_template(source)
            assert source.time_base
            start = round(Fraction(31, 25) / source.time_base)
            given.seek(start, stream=source)
            for packet in given.demux(source):
                if packet.pts is not None and packet.dts is not None:
                    packet.pts, packet.dts, packet.stream = packet.pts - start, packet.dts - start, stream
                    container.mux(packet)

    return make


def joined(suffix: str) -> Maker:
    """Two recordings, one after the other: the times of the second begin again."""

    def make(path: Path) -> None:
        part = path.with_name(f"part{suffix}")
        write(part, H264)
        path.write_bytes(part.read_bytes() * 2)

    return make


def with_other_sets(track: Track, options: Mapping[str, str]) -> Maker:
    """A recording, and another one behind it whose parameter sets differ and stand in its first packet alone."""

    def make(path: Path) -> None:
        # Without reordered frames all times of decoding are those of presentation.
        parts = [path.with_name(f"{number}_{path.stem}.mkv") for number in range(2)]
        write(parts[0], track)
        write(parts[1], replace(track, options={**track.options, **options}))
        with av.open(str(parts[0])) as first, av.open(str(parts[1])) as second, av.open(str(path), "w") as container:
            stream = container.add_stream_from_template(first.streams.video[0])
            known, other = (part.streams.video[0].codec_context.extradata or b"" for part in (first, second))
            assert known != other
            packets = [packet for part in (first, second) for packet in part.demux(video=0) if packet.size]
            for number, packet in enumerate(packets):
                sets = b"".join(with_lengths(other, track.codec)) if number == len(packets) // 2 else b""
                copy = av.Packet(sets + bytes(packet))
                copy.pts = copy.dts = number
                copy.time_base, copy.duration = Fraction(1, 25), 1
                copy.is_keyframe, copy.stream = packet.is_keyframe, stream
                container.mux(copy)

    return make


def joined_flv(track: Track, options: Mapping[str, str]) -> Maker:
    """Two recordings in one FLV file, the second with a sequence header of its own."""

    def make(path: Path) -> None:
        first, second = (path.with_name(f"{number}_{path.name}") for number in range(2))
        write(first, track)
        write(second, replace(track, options={**track.options, **options}))
        # A tag has its size in the bytes from 1 on, and its time in ms from 4 on; the time's highest byte is the last.
        data, position, tags = second.read_bytes(), 13, first.read_bytes()
        while position < len(data):
            end = position + 11 + int.from_bytes(data[position + 1 : position + 4], "big") + 4
            time = int.from_bytes(data[position + 4 : position + 7], "big") + 40 * len(track.numbers)
            if data[position] == 9:
                tags += data[position : position + 4] + time.to_bytes(3, "big") + data[position + 7 : end]
            position = end
        path.write_bytes(tags)

    return make


def with_lengths(extradata: bytes, codec: str) -> Iterator[bytes]:
    """The parameter sets of avcC or hvcC (ISO/IEC 14496-15), each with a length of four bytes before it."""
    arrays, header, position = (extradata[22], 3, 23) if codec == "libx265" else (2, 1, 5)
    for _ in range(arrays):
        count, position = extradata[position + header - 1] & 31, position + header
        for _ in range(count):
            end = position + 2 + int.from_bytes(extradata[position : position + 2], "big")
            yield (end - position - 2).to_bytes(4, "big") + extradata[position + 2 : end]
            position = end


def tuned_in(path: Path) -> None:
    """A transport stream from its middle on: it begins with pictures that refer to missing ones."""
    whole = path.with_name("whole.ts")
    write(whole, OPEN)
    path.write_bytes(whole.read_bytes()[188 * 60 :])


def with_end_of_sequence(path: Path) -> None:
    """HEVC with open groups, and an end of sequence before a late one: its leading pictures are not presented."""
    whole = path.with_name(f"whole_{path.stem}.mp4")
    write(whole, HEVC)
    with av.open(str(whole)) as given, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        packets = [packet for packet in given.demux(video=0) if packet.size]
        late = [number for number, packet in enumerate(packets) if packet.is_keyframe][5]
        for number, packet in enumerate(packets):
            copy: av.Packet[Any] = packet
            if number == late - 1:
                copy = av.Packet(bytes(packet) + b"\0\0\0\2\x48\1")
                copy.pts, copy.dts, copy.time_base = packet.pts, packet.dts, packet.time_base
                copy.duration, copy.is_keyframe = packet.duration, packet.is_keyframe
            copy.stream = stream
            container.mux(copy)


def hidden_late(path: Path) -> None:
    """VP9 in IVF in which, from the 60th packet on, each second packet is one that is not shown."""
    whole = path.with_name("whole.webm")
    write(whole, Track(numbers=NUMBERS, codec="libvpx-vp9", options={"g": "12"}))
    with av.open(str(whole)) as given:
        shown = [bytes(packet) for packet in given.demux(video=0) if packet.size]
    packets: list[tuple[int, bytes]] = []
    for number, data in enumerate(shown):
        packets.append((2 * number, data))
        if number >= 60 and number % 12 == 0:
            # A key frame again, with show_frame (profile 0: bit 1 of the first byte) taken out.
            packets.append((2 * number + 1, bytes([data[0] & ~2]) + data[1:]))
    header = b"DKIF" + struct.pack("<HH4sHHIIII", 0, 32, b"VP90", *SIZE, 50, 1, len(packets), 0)
    path.write_bytes(header + b"".join(struct.pack("<IQ", len(data), time) + data for time, data in packets))


NO_NOTE = None
FROM_THE_START = "every frame is decoded from the video's start on, because "
"""A file that cannot be sought in."""
NOT_BY_THEMSELVES = "is not one that stands by itself"
"""A file of H.264 with key frames before which later ones are presented: `key_frames_only` decodes all of it."""

CLIPS: dict[str, tuple[Maker, str | None]] = {
    "h264.mp4": (written(H264), NO_NOTE),
    "h264.mov": (written(H264), NO_NOTE),
    "long.mp4": (written(Track(numbers=range(300), options={"g": "12"})), NO_NOTE),
    "open_gop.mp4": (written(OPEN), NOT_BY_THEMSELVES),
    "hevc.mp4": (written(HEVC), NO_NOTE),
    "end_of_sequence.mp4": (with_end_of_sequence, "there may be no picture"),
    "end_of_sequence.ts": (with_end_of_sequence, "there may be no picture"),
    "hidden_late.ivf": (hidden_late, "there may be no picture"),
    "fragmented.mp4": (written(H264, mux=FRAGMENTED), NO_NOTE),
    "fragmented_open_gop.mp4": (written(OPEN, mux=FRAGMENTED), NOT_BY_THEMSELVES),
    "irregular.mp4": (written(IRREGULAR), NO_NOTE),
    "one_key_frame.mp4": (written(Track(numbers=NUMBERS, options={"g": "1000"})), NO_NOTE),
    "edit_list.mp4": (cut_between_key_frames(H264), NO_NOTE),
    "edit_list_open_gop.mp4": (cut_between_key_frames(OPEN), NOT_BY_THEMSELVES),
    "refreshed.mp4": (written(REFRESHED), FROM_THE_START),
    "h264.mkv": (written(H264), NO_NOTE),
    "open_gop.mkv": (written(OPEN), NOT_BY_THEMSELVES),
    "hevc.mkv": (written(HEVC), NO_NOTE),
    "irregular.mkv": (written(IRREGULAR), NO_NOTE),
    "vp8.webm": (written(Track(numbers=NUMBERS, codec="libvpx", options={"g": "12"})), NO_NOTE),
    "vp9.webm": (written(Track(numbers=NUMBERS, codec="libvpx-vp9", options={"g": "12"})), NO_NOTE),
    "av1.webm": (written(Track(numbers=NUMBERS, codec="libsvtav1")), NO_NOTE),
    "live.webm": (
        written(Track(numbers=NUMBERS, codec="libvpx", options={"g": "12"}), mux={"live": "1"}), NO_NOTE
    ),
    "mpeg4.avi": (written(Track(numbers=NUMBERS, codec="mpeg4", options={"g": "12"}, size=(384, 256))), NO_NOTE),
    "h264.avi": (written(Track(numbers=NUMBERS, options={"g": "12", "bf": "0"})), NO_NOTE),
    "reordered.avi": (written(H264), FROM_THE_START),
    "h264.ts": (written(H264), NO_NOTE),
    "open_gop.ts": (written(OPEN), NOT_BY_THEMSELVES),
    "hevc.ts": (written(HEVC), NO_NOTE),
    "mpeg2.ts": (written(MPEG2), NO_NOTE),
    "refreshed.ts": (written(REFRESHED), FROM_THE_START),
    "tuned_in.ts": (tuned_in, NOT_BY_THEMSELVES),
    "joined.ts": (joined(".ts"), FROM_THE_START),
    "joined.mkv": (joined(".mkv"), FROM_THE_START),
    "mpeg2.mpg": (written(MPEG2), FROM_THE_START),
    "h264.flv": (written(H264), NO_NOTE),
    "wmv2.wmv": (written(Track(numbers=NUMBERS, codec="wmv2", options={"g": "12"}), muxer="asf"), NO_NOTE),
    "vp8.ogv": (written(Track(numbers=NUMBERS, codec="libvpx", options={"g": "12"}), muxer="ogg"), NO_NOTE),
    "mpeg2.mxf": (written(MPEG2), NO_NOTE),
    "raw.h264": (written(H264, muxer="h264"), FROM_THE_START),
    "raw.hevc": (written(HEVC, muxer="hevc"), FROM_THE_START),
    "motion.gif": (written(Track(numbers=NUMBERS, codec="gif", pix_fmt="gray")), FROM_THE_START),
    "motion.apng": (written(Track(numbers=NUMBERS, codec="apng", pix_fmt="gray")), FROM_THE_START),
}  # fmt: skip
"""Each file's maker, and a part of the notes that reading it makes."""


@dataclass(frozen=True)
class Seen:
    """A picture, without its frame."""

    index: int
    pts_seconds: float
    checksum: int


class Reel:
    """A file that is opened as often as it is read."""

    def __init__(self, path: Path, **options: object) -> None:
        self.options = VideoSection(path=str(path), **options)  # type: ignore[arg-type]
        self.notes: list[str] = []
        self.decoded = 0
        self._path = path
        self._fds: list[int] = []

    def open(self) -> Footage:
        fd = os.open(self._path, os.O_RDONLY)
        self._fds.append(fd)
        looks = look(fd, self.options)
        container = open_container(fd, self.options)
        stream = choose_stream(container, looks, self.options, fd)
        info = describe(container, stream, looks[stream.index], self.options, fd)
        return Footage(container, stream, self.options, info, fd)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)

    def read(self, start: Start) -> list[Seen | ErrorCode]:
        """The selected frames from `start` on, as the child emits them."""
        reading = Reading(self.open, self.options, start, self.notes.append)
        return selected(reading.pictures(), reading.selects, reading.sampler)


def selected(
    pictures: Iterator[Picture], selects: Callable[[Picture], bool], sampler: Sampler
) -> list[Seen | ErrorCode]:
    """The selected frames, and the error with which the video ends."""
    chosen: list[Seen | ErrorCode] = []
    try:
        for picture in pictures:
            if selects(picture):
                chosen.append(Seen(picture.index, picture.pts_seconds, checksum(picture)))
            if sampler.exhausted:
                break
    except RunnerError as error:
        chosen.append(error.code)
    return chosen


def checksum(picture: Picture) -> int:
    frame = picture.frame
    if frame.format.name == "yuva444p12le":
        # numpy has no type for these pixels.
        frame = frame.reformat(format="rgba64le")
    return zlib.crc32(frame.to_ndarray().tobytes())


def decoded_whole(pictures: Iterator[Picture], sampler: Sampler) -> list[Seen | ErrorCode]:
    """As every frame is decoded from the start on, and selected one by one."""
    return selected(
        pictures, lambda picture: picture.whole and sampler.select(picture.index, picture.pts_seconds), sampler
    )


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def clip(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("clip") / name
            CLIPS[name][0](made[name])
        return made[name]

    return clip


def any_options(rng: random.Random) -> dict[str, object]:
    ways: list[dict[str, object]] = [
        {},
        {"stride": rng.randint(2, 9)},
        {"max_fps": rng.uniform(0.5, 30)},
        {"key_frames_only": True},
        {"key_frames_only": True, "max_fps": rng.uniform(0.5, 3)},
    ]
    options = rng.choice(ways)
    if rng.random() < 0.5:
        options["start_seconds"] = rng.uniform(0, 3.5)
    if rng.random() < 0.3:
        options["max_frames"] = rng.randint(1, 60)
    if rng.random() < 0.3:
        options["on_corrupt"] = "skip"
    elif rng.random() < 0.5:
        options["decoder_threads"] = 3
    return options


@pytest.mark.parametrize("name", CLIPS)
def test_frames_from_the_middle_are_those_of_the_whole(name: str, clips: Callable[[str], Path]) -> None:
    rng = random.Random(name)
    notes = compare(clips(name), [any_options(rng) for _ in range(8)], rng)
    expected = CLIPS[name][1]
    assert bool(notes) == (expected is not None)
    assert all(expected in note for note in notes if expected)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_same_holds_for_the_corpus(case: Case, tmp_path: Path) -> None:
    path, rng = tmp_path / case.name, random.Random(case.name)
    case.make(path)
    ways: list[dict[str, object]] = [
        {},
        {"on_corrupt": "skip"},
        {"start_seconds": 0.2},
        {"stride": 3},
        {"key_frames_only": True},
    ]
    # A file that is refused cannot be opened, from wherever it is read.
    with suppress(RunnerError) if case.code else nullcontext():
        compare(path, [{**case.options, **options} for options in ways], rng)


def compare(path: Path, choices: Sequence[Mapping[str, object]], rng: random.Random) -> list[str]:
    """Read the file from its start, from `start_seconds` and as an attempt that resumes; returns the notes."""
    notes: list[str] = []
    for options in choices:
        reel = Reel(path, **options)
        pictures = reel.open().pictures()
        if reel.options.key_frames_only:
            pictures = (picture for picture in pictures if picture.frame.key_frame)
        whole = decoded_whole(pictures, Sampler.of(reel.options))
        assert reel.read(Start()) == whole, options
        frames = [frame for frame in whole if isinstance(frame, Seen)]
        if frames:
            stored = rng.randint(1, len(frames))
            last = frames[stored - 1]
            assert reel.read(Start(last.index + 1, stored, last.pts_seconds)) == whole[stored:], (options, last)
        reel.close()
        notes += reel.notes
    return notes


def test_a_packet_of_vp8_that_is_not_shown_is_no_picture() -> None:
    shown, hidden = av.Packet(b"\x10\x00\x00"), av.Packet(b"\x00\x00\x00")
    assert (is_picture(shown, "vp8"), is_picture(hidden, "vp8")) == (True, False)


def test_a_tiny_packet_of_mpeg4_may_be_no_picture() -> None:
    assert (is_picture(av.Packet(19), "mpeg4"), is_picture(av.Packet(20), "mpeg4")) == (False, True)
    assert is_picture(av.Packet(19), "h264")


@pytest.mark.parametrize("suffix", [".mp4", ".ts"], ids=["lengths", "start_codes"])
def test_an_idr_picture_is_known_by_its_bytes(suffix: str, tmp_path: Path) -> None:
    for track, known in ((H264, {True}), (OPEN, {True, False})):
        path = write(tmp_path / f"clip{suffix}", track)
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            packets = [packet for packet in container.demux(stream) if packet.size]
            extradata = stream.codec_context.extradata or b""
            assert {is_idr(packet, extradata) for packet in packets if packet.is_keyframe} == known
            assert not any(is_idr(packet, extradata) for packet in packets if not packet.is_keyframe)


def test_a_picture_is_not_searched_for_start_codes_but_its_end_is() -> None:
    before, picture, end = b"\x40\1a", b"\x02\1\0\0\1a" + b"b" * 200, b"\x48\1"
    packet = av.Packet(b"".join(b"\0\0\1" + unit for unit in (before, picture, end)))
    assert [bytes(unit) for unit in units(packet, "hevc", b"")] == [before, picture + b"\0\0\1" + end, end]
    assert not is_picture(packet, "hevc")


@pytest.mark.parametrize("extradata", [b"", b"\1\x42\0\x0a\xff\xe0\0"], ids=["start_codes", "a_container_without_sets"])
def test_parameter_sets_that_repeat_themselves_are_no_change(extradata: bytes) -> None:
    sets, picture = (b"\x67\x42\1", b"\x68\xce\2"), b"\x65\x88"

    def packet(*units: bytes) -> av.Packet[Any]:
        return av.Packet(b"".join((len(unit).to_bytes(4, "big") if extradata else b"\0\0\1") + unit for unit in units))

    parameter_sets = ParameterSets("h264", extradata)
    for _ in range(2):
        parameter_sets.check(packet(picture))
        parameter_sets.check(packet(*sets, picture))
        parameter_sets.check(packet(sets[1], picture))
    with pytest.raises(CannotSeekError, match="parameter sets change"):
        parameter_sets.check(packet(b"\x68\xce\3", picture))


SETS_HEVC = "log-level=none:bframes=0:keyint=12:pools=1"
OTHER_SETS: dict[str, tuple[Track, dict[str, str]]] = {
    "h264": (Track(numbers=range(120), options={"g": "12", "bf": "0"}), {"x264-params": "qp=34"}),
    "hevc": (
        Track(numbers=range(120), codec="libx265", options={"bf": "0", "x265-params": SETS_HEVC}),
        {"x265-params": SETS_HEVC + ":ctu=16"},
    ),
}


# FFmpeg's muxer of transport streams puts the first sets of HEVC before each key frame, also behind the other ones.
@pytest.mark.parametrize(
    ("codec", "suffix"),
    [
        ("h264", ".mp4"),
        ("h264", ".mkv"),
        ("h264", ".ts"),
        ("hevc", ".mp4"),
        ("hevc", ".mkv"),
    ],
)
def test_parameter_sets_that_change_once_are_not_left_out(codec: str, suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"clip{suffix}"
    with_other_sets(*OTHER_SETS[codec])(path)
    check_that_everything_is_decoded(path, "parameter sets change")


def test_a_sequence_header_within_a_file_is_not_left_out(tmp_path: Path) -> None:
    joined_flv(*OTHER_SETS["h264"])(tmp_path / "clip.flv")
    check_that_everything_is_decoded(tmp_path / "clip.flv", "its codec is set up anew")


def check_that_everything_is_decoded(path: Path, why: str) -> None:
    for options in ({}, {"start_seconds": 9.4}, {"stride": 200}, {"key_frames_only": True}, {"max_fps": 0.3}):
        reel = Reel(path, **options)
        pictures = reel.open().pictures()
        if reel.options.key_frames_only:
            pictures = (picture for picture in pictures if picture.frame.key_frame)
        whole = decoded_whole(pictures, Sampler.of(reel.options))
        assert len(whole) > 1
        assert reel.read(Start()) == whole, options
        assert [why in note for note in reel.notes] == ([True] if options else [])
        reel.notes.clear()
        last = whole[-2]
        assert isinstance(last, Seen)
        assert reel.read(Start(last.index + 1, len(whole) - 1, last.pts_seconds)) == whole[-1:], options
        assert [why in note for note in reel.notes] == [True], options
        reel.close()


@dataclass
class Counted:
    """How many packets were decoded."""

    packets: int = 0


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    count, decode = Counted(), Footage._decode

    def counting(footage: Footage, packet: Any, number: int) -> Any:
        count.packets += packet is not None and footage.stream.codec_context.skip_frame != "NONREF"
        return decode(footage, packet, number)

    monkeypatch.setattr(Footage, "_decode", counting)
    return count


@pytest.mark.parametrize("name", ["h264.mp4", "h264.mkv", "h264.ts"])
def test_a_resumed_attempt_decodes_little_of_what_is_stored(
    name: str, clips: Callable[[str], Path], counted: Counted
) -> None:
    reel = Reel(clips(name))
    frames = reel.read(Start(80, 80, 79 / 25))
    assert [frame.index for frame in frames if isinstance(frame, Seen)] == list(range(80, FRAMES))
    # These are the ten new frames, and 32 to 44 that begin with a key frame.
    assert counted.packets <= 54
    reel.close()


def test_a_late_start_decodes_little_of_what_comes_before(clips: Callable[[str], Path], counted: Counted) -> None:
    reel = Reel(clips("long.mp4"), start_seconds=11.4)
    frames = reel.read(Start())
    assert [frame.index for frame in frames if isinstance(frame, Seen)] == list(range(285, 300))
    assert counted.packets <= 100
    reel.close()


@pytest.mark.parametrize(("options", "selected_frames", "most"), [
    ({"key_frames_only": True}, range(0, 300, 12), 76),
    ({"max_fps": 0.5}, range(0, 300, 50), 80),
    ({"stride": 100}, range(0, 300, 100), 60),
], ids=str)  # fmt: skip
def test_sampling_decodes_little_of_what_it_does_not_take(
    options: dict[str, object],
    selected_frames: range,
    most: int,
    clips: Callable[[str], Path],
    counted: Counted,
) -> None:
    reel = Reel(clips("long.mp4"), **options)
    frames = reel.read(Start())
    assert [frame.index for frame in frames if isinstance(frame, Seen)] == list(selected_frames)
    assert counted.packets <= most
    reel.close()


def test_an_attempt_with_nothing_left_ends_at_once(clips: Callable[[str], Path], counted: Counted) -> None:
    for options in ({"max_frames": 5}, {"max_frames": 5, "max_fps": 25.0}):
        reel = Reel(clips("h264.mp4"), **options)
        assert reel.read(Start(5, 5, 4 / 25)) == []
        assert counted.packets == 0
        reel.close()


def test_an_attempt_whose_last_frame_has_another_number_decodes_everything(clips: Callable[[str], Path]) -> None:
    reel = Reel(clips("h264.mp4"), stride=5)
    reel.read(Start(first_frame=51, frames_stored=11, last_pts_seconds=1.96))
    assert ["its frame 50 is not at 1.960 s" in note for note in reel.notes] == [True]
    reel.close()


def test_two_decoders_do_not_mix_up_the_numbers_of_their_packets(clips: Callable[[str], Path]) -> None:
    reel = Reel(clips("h264.mp4"))
    first, second = reel.open().pictures(), reel.open().pictures()
    numbers: list[object] = []
    held = [next(first) for _ in range(4)]
    for picture in second:
        numbers.append(picture.frame.opaque)
        if held:
            held.pop()
            next(first)
    assert None not in numbers
    reel.close()


def test_after_a_lost_chunk_of_avi_an_attempt_goes_on_where_the_last_one_ended(tmp_path: Path) -> None:
    path = tmp_path / "damaged.avi"
    write(path, Track(numbers=NUMBERS, codec="mpeg4", options={"g": "12"}, size=(384, 256)))
    with av.open(str(path)) as container:
        position = [packet.pos or 0 for packet in container.demux(video=0) if packet.size][40]
    content = bytearray(path.read_bytes())
    # The chunk's name, its length and the beginning of its picture.
    content[position : position + 40] = bytes(40)
    path.write_bytes(content)
    reel = Reel(path, on_corrupt="skip")
    whole = reel.read(Start())
    for stored in range(1, len(whole), 7):
        last = whole[stored - 1]
        assert isinstance(last, Seen)
        assert reel.read(Start(last.index + 1, stored, last.pts_seconds)) == whole[stored:], last
    reel.close()


@pytest.mark.parametrize("options", [{"stride": 3}, {"max_fps": 2.0}, {"key_frames_only": True}], ids=str)
@pytest.mark.parametrize("suffix", [".ts", ".wmv"])
def test_a_cut_in_the_last_packet_shows_where_few_are_taken(
    suffix: str, options: dict[str, object], clips: Callable[[str], Path], tmp_path: Path
) -> None:
    name = {".ts": "h264.ts", ".wmv": "wmv2.wmv"}[suffix]
    content, path = clips(name).read_bytes(), tmp_path / name
    for share in range(60, 100, 3):
        path.write_bytes(content[: len(content) * share // 100])
        ends = []
        for reel in (Reel(path), Reel(path, **options)):
            ends.append(any(isinstance(shown, ErrorCode) for shown in reel.read(Start())))
            reel.close()
        assert ends[0] == ends[1], share


async def test_the_child_says_why_it_decodes_everything(
    clips: Callable[[str], Path], caplog: pytest.LogCaptureFixture
) -> None:
    for name, note in (("h264.mp4", False), ("raw.h264", True)):
        whole = await watch(clips(name))
        caplog.clear()
        with caplog.at_level("INFO", logger="trio_runner.video.child"):
            rest = await watch(clips(name), 70, frames_stored=70, last_pts_seconds=whole.frames[69].pts_seconds)
        assert rest.numbers == whole.numbers[70:]
        assert rest.end is not None
        assert rest.end.selected == FRAMES
        assert ("every frame is decoded from the video's start on, because" in caplog.text) == note


LONG = Track(numbers=range(300), options={"g": "12"})
"""Twelve seconds with a key frame in each half second."""


DAMAGED_BEFORE_START = (
    "every frame is decoded from the video's start on, because the part before video.start_seconds is damaged"
)


@pytest.mark.parametrize(("start_seconds", "expected", "notes"), [
    (10.0, list(range(250, 300)), []),
    (5.2, [ErrorCode.VIDEO_TRUNCATED], [DAMAGED_BEFORE_START]),
], ids=["long", "shortly"])  # fmt: skip
def test_damage_before_start_seconds_is_noticed_only_shortly_before(
    start_seconds: float, expected: list[object], notes: list[str], tmp_path: Path
) -> None:
    path = write(tmp_path / "long.mp4", LONG, mux={"movflags": "+faststart"})
    patching.flip(path, range(123, 126))
    reel = Reel(path, start_seconds=start_seconds)
    frames = reel.read(Start())
    assert [frame.index if isinstance(frame, Seen) else frame for frame in frames] == expected
    assert reel.notes == notes
    reel.close()

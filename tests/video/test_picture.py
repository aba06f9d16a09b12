"""Pictures against FFmpeg's own, made by its filter graph, and HDR against OpenCV's, which the project used before."""

from __future__ import annotations

import gc
import math
import struct
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

import av
import av.filter
import cv2
import numpy as np
import pytest
from av.sidedata.sidedata import Type
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.watching import picture, watch
from trio_runner.video.decoder.interlace import Deinterlacer
from trio_runner.video.decoder.picture import Converter, Orientation, UnsupportedPictureError, orientation, planes
from trio_runner.video.decoder.tone import HLG, PQ, ToneMap

NO_TIME = Fraction(1, 1000)

FORMATS = [
    "yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuv410p", "yuv411p", "yuv440p", "nv12", "nv21", "yuyv422",
    "uyvy422", "gray", "gray10le", "gray12le", "rgb24", "bgr24", "bgr0", "bgra", "rgba", "gbrp", "gbrp10le", "gbrap",
    "pal8", "yuva420p", "yuva444p", "yuv420p10le", "yuv422p10le", "yuv444p10le", "yuv420p12le", "yuv422p12le",
    "yuv444p12le", "rgb48le", "rgb555le", "p010le", "monob", "ya8",
]  # fmt: skip


def graph(source: str | av.VideoFrame, *filters: tuple[str, str]) -> list[av.VideoFrame]:
    """The pictures that FFmpeg's filters give for a source filter or for one picture."""
    made = av.filter.Graph()
    made.threads = 1
    if isinstance(source, str):
        nodes = [made.add(*source.split("=", 1))]
    else:
        nodes = [made.add_buffer(width=source.width, height=source.height, format=source.format, time_base=NO_TIME)]
    nodes += [made.add(name, arguments or None) for name, arguments in filters]
    made.link_nodes(*nodes, made.add("buffersink")).configure()
    if not isinstance(source, str):
        made.vpush(source)
        made.vpush(None)
    pictures = []
    while True:
        try:
            pictures.append(made.vpull())
        except (av.error.EOFError, av.error.BlockingIOError):
            return pictures


def drawn(width: int = 320, height: int = 240, form: str = "yuv420p", count: int = 1) -> list[av.VideoFrame]:
    source = f"testsrc2=size={width}x{height}:rate=25:duration={count / 25}"
    return graph(source, ("format", f"pix_fmts={form}"))


def bgr(frame: av.VideoFrame, *filters: tuple[str, str], size: str = "iw:ih") -> Any:
    """FFmpeg's own picture."""
    return graph(frame, *filters, ("scale", f"{size}:flags=bicubic"), ("format", "pix_fmts=bgr24"))[0].to_ndarray()


def psnr(one: Any, other: Any) -> float:
    assert one.shape == other.shape
    error = float(np.mean((one.astype(np.float64) - other) ** 2))
    return 10 * math.log10(255**2 / error) if error else math.inf


def as_jpeg(image: Any) -> Any:
    done, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 90))
    assert done
    return cv2.imdecode(data, cv2.IMREAD_COLOR)


def clip(path: Path, frames: list[av.VideoFrame], codec: str, **about: Any) -> Path:
    """Encode pictures; `about` holds options of the encoder, and attributes of its context or of the stream."""
    with av.open(path, "w") as container:
        stream: Any = container.add_stream(codec, rate=25, options=about.pop("options", {}))
        stream.width, stream.height = frames[0].width, frames[0].height
        stream.pix_fmt = frames[0].format.name
        if matrix := about.pop("matrix", None):
            stream.set_display_matrix(matrix)
        for name, value in about.items():
            setattr(stream.codec_context, name, value)
        for index, frame in enumerate(frames):
            frame.pts, frame.time_base = index, Fraction(1, 25)
            for name in ("color_trc", "color_primaries", "colorspace", "color_range"):
                if name in about:
                    setattr(frame, name, about[name])
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("form", FORMATS)
def test_every_pixel_format_is_the_picture_that_ffmpeg_makes_of_it(form: str) -> None:
    frame = drawn(form=form)[0]
    shown = Converter().convert(frame)
    assert shown.dtype == np.uint8
    assert psnr(as_jpeg(shown), as_jpeg(bgr(frame))) >= 35
    assert psnr(shown, bgr(frame)) >= 40


@pytest.mark.parametrize("matrix", [1, 5, 6, 7, 9], ids=["709", "601-625", "601-525", "240M", "2020"])
@pytest.mark.parametrize("limited", [True, False])
@pytest.mark.parametrize("form", ["yuv420p", "yuv422p10le"])
def test_the_colour_matrix_and_range_of_the_frame_are_used(form: str, *, limited: bool, matrix: int) -> None:
    frame = drawn(form=form)[0]
    plain = Converter().convert(frame)
    frame.colorspace, frame.color_range = matrix, 1 if limited else 2
    shown = Converter().convert(frame)
    ranges = "limited" if limited else "full"
    assert psnr(shown, bgr(frame, ("setparams", f"range={ranges}:colorspace={matrix}"))) >= 40
    assert (psnr(shown, plain) == math.inf) == (limited and matrix in {5, 6}), "what is not stated is limited BT.601"


def test_a_colour_matrix_that_does_not_exist_is_taken_as_not_stated() -> None:
    frame = drawn()[0]
    plain = Converter().convert(frame)
    frame.colorspace = 3
    assert psnr(Converter().convert(frame), plain) == math.inf


def test_a_format_that_cannot_be_converted_raises_and_gives_no_memory() -> None:
    with pytest.raises(UnsupportedPictureError, match="pictures of 64 x 48 in bgr4 cannot be converted"):
        Converter().convert(av.VideoFrame(64, 48, "bgr4"))


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 70), st.integers(1, 70)), min_size=1, max_size=4),
    form=st.sampled_from(["yuv420p", "yuv422p", "yuv444p", "gray", "bgr24", "yuv420p10le", "nv12"]),
    tone=st.sampled_from([2, 2, HLG]),
    aspect=st.sampled_from([Fraction(1), Fraction(1), Fraction(8, 9), Fraction(2)]),
)
def test_each_picture_has_its_own_size_even_an_odd_one(
    sizes: list[tuple[int, int]], form: str, tone: int, aspect: Fraction
) -> None:
    converter = Converter()
    converter._declared_aspect = aspect
    converter._tone_map, converter._tone = hlg_map(), (HLG, 2)
    for width, height in sizes:
        frame = av.VideoFrame(width, height, form)
        for plane in frame.planes:
            plane.update((b"\0\2" if "10" in form else b"\x80\x80") * (plane.buffer_size // 2))
        frame.color_trc = tone
        shown = converter.convert(frame)
        assert shown.shape == (height, max(1, round(width * aspect)), 3)
        assert converter.size(frame) == shown.shape[1::-1]
        # A flat picture stays flat, so no pixel comes from outside it, or from memory that nobody wrote.
        assert int(np.ptp(shown.reshape(-1, 3).astype(int), axis=0).max()) <= 4


@cache
def hlg_map() -> ToneMap:
    """Made once, and not by whoever only collects this file: it takes a second."""
    return ToneMap(HLG, 2)


TURNS = [(turned, mirrored, upside_down) for turned in (0, 1) for mirrored in (0, 1) for upside_down in (0, 1)]


def matrix_of(how: Orientation, scale: float = 1.0) -> list[int]:
    """The display matrix of FFmpeg that turns a picture so."""
    x, y = (-1 if how.mirrored else 1), (-1 if how.upside_down else 1)
    linear = (0, y, x, 0) if how.transposed else (x, 0, 0, y)
    a, b, c, d = (round(scale * 65536 * part) for part in linear)
    return [a, b, 0, c, d, 0, 0, 0, 1 << 30]


def turned(image: Any, how: Orientation) -> Any:
    """The same in numpy, by its meaning."""
    image = image.transpose(1, 0, 2) if how.transposed else image
    image = image[:, ::-1] if how.mirrored else image
    return image[::-1] if how.upside_down else image


@pytest.mark.parametrize("turn", TURNS)
def test_any_of_the_eight_display_matrices_turns_and_mirrors_the_picture(turn: tuple[int, ...], tmp_path: Path) -> None:
    how = Orientation(*map(bool, turn))
    path = clip(tmp_path / "turned.mp4", drawn(64, 48), "libx264", matrix=matrix_of(how))
    with av.open(path) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        shown = Converter(stream).convert(frame)
        assert np.array_equal(shown, turned(bgr(frame), how))
        assert Converter(stream).size(frame) == shown.shape[1::-1]


def test_a_phone_held_upright_and_ffmpegs_own_rotation_agree(tmp_path: Path) -> None:
    # The matrix that phones write, for which FFmpeg's program inserts transpose=clock.
    path = clip(tmp_path / "phone.mp4", drawn(64, 48), "libx264", matrix=[0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30])
    with av.open(path) as container:
        frame = next(container.decode(video=0))
        assert psnr(Converter().convert(frame), bgr(frame, ("transpose", "dir=clock"))) >= 40


@given(st.sampled_from(TURNS), st.floats(-44, 44), st.floats(0.01, 100))
def test_a_matrix_at_an_odd_angle_or_scale_is_the_nearest_of_the_eight(
    turn: tuple[int, ...], degrees: float, scale: float
) -> None:
    how = Orientation(*map(bool, turn))
    a, b, _, c, d, *rest = matrix_of(how, scale)
    sine, cosine = math.sin(math.radians(degrees)), math.cos(math.radians(degrees))
    rotated = [a * cosine - b * sine, a * sine + b * cosine, 0, c * cosine - d * sine, c * sine + d * cosine, *rest]
    assert orientation(struct.pack("=9i", *(int(part) for part in rotated))) == how


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=9, max_size=9))
def test_no_display_matrix_is_an_error(values: list[int]) -> None:
    assert orientation(struct.pack("=9i", *values)) in {Orientation(*map(bool, turn)) for turn in TURNS}


def test_side_data_that_pyav_does_not_know_hides_no_display_matrix() -> None:
    exif = b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x06\0\0\0\0\0\0\0"  # orientation 6: clockwise by 90 degrees
    image: Any = np.ascontiguousarray(drawn(form="bgr24")[0].to_ndarray())
    written, jpeg = cv2.imencodeWithMetadata(".jpg", image, [cv2.IMAGE_METADATA_EXIF], [np.frombuffer(exif, np.uint8)])
    assert written
    codec: Any = av.CodecContext.create("mjpeg", "r")
    frame = codec.decode(av.Packet(jpeg.tobytes()))[0]
    with pytest.raises(ValueError, match="not a valid Type"):
        frame.side_data[Type.DISPLAYMATRIX]
    assert psnr(Converter().convert(frame), cv2.rotate(image, cv2.ROTATE_90_CLOCKWISE)) >= 20


def test_a_converted_frame_is_freed_without_a_collection_of_garbage() -> None:
    converter, sizes = Converter(), []
    gc.collect()
    gc.disable()
    try:
        for _ in range(40):
            frame = av.VideoFrame(1280, 720, "bgr0")
            frame.planes[0].update(bytes(frame.planes[0].buffer_size))
            converter.convert(frame)
            sizes.append(int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * 4)
    finally:
        gc.enable()
    assert sizes[-1] - sizes[9] < 20 * 1024, "30 frames of 3.6 MB have left nothing behind"


@pytest.mark.parametrize(
    ("ratio", "width"), [(Fraction(2), 128), (Fraction(1, 2), 32), (Fraction(8, 9), 57), (Fraction(1), 64)]
)
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "avi"])
def test_pixels_become_square_by_a_change_of_the_width(
    ratio: Fraction, width: int, suffix: str, tmp_path: Path
) -> None:
    path = clip(tmp_path / f"a.{suffix}", drawn(64, 48), "libx264", sample_aspect_ratio=ratio)
    with av.open(path) as container:
        stream = container.streams.video[0]
        frame = next(container.decode(stream))
        shown = Converter(stream).convert(frame)
        assert shown.shape == (48, width, 3)
        assert Converter(stream, square_pixels=False).convert(frame).shape == (48, 64, 3)


def test_the_picture_with_square_pixels_is_ffmpegs_own() -> None:
    converter, frame = Converter(), drawn()[0]
    converter._declared_aspect = Fraction(8, 9)
    assert np.array_equal(converter.convert(frame), bgr(frame, size="iw*8/9:ih"))


@pytest.mark.parametrize("codec", ["libx264", "libx265"])
@pytest.mark.parametrize("width", [320, 427])
def test_chroma_lies_where_ffmpegs_own_picture_has_it(codec: str, width: int, tmp_path: Path) -> None:
    # Both codecs say where, and FFmpeg's program takes no notice.
    options = {"x265-params": "log-level=none:bframes=0:pools=1:frame-threads=1"} if codec == "libx265" else {}
    form = "yuv420p10le" if codec == "libx265" else "yuv420p"
    with av.open(clip(tmp_path / "a.mkv", drawn(form=form), codec, options=options)) as container:
        frame = next(container.decode(video=0))
    converter = Converter()
    converter._declared_aspect = Fraction(width, 320)
    unsited = ("setparams", "chroma_location=unspecified")
    assert np.array_equal(converter.convert(frame), bgr(frame, unsited, size=f"{width}:ih"))


@pytest.mark.parametrize(("transfer", "decibels"), [(HLG, 34), (PQ, 29)], ids=["HLG", "PQ"])
def test_hdr_is_tone_mapped_as_by_opencv(transfer: int, decibels: float, tmp_path: Path) -> None:
    path = clip(
        tmp_path / "hdr.mkv",
        graph("testsrc2=size=320x180:duration=0.04", ("scale", "640:360"), ("format", "pix_fmts=yuv420p10le")),
        "libx265",
        options={"preset": "ultrafast", "x265-params": "log-level=none:bframes=0:pools=1:frame-threads=1"},
        color_trc=transfer, color_primaries=9, colorspace=9, color_range=1,
    )  # fmt: skip
    before, reference = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG).read()
    assert before
    with av.open(path) as container:
        frame = next(container.decode(video=0))
    shown = Converter().convert(frame)
    assert psnr(as_jpeg(shown), as_jpeg(reference)) >= decibels
    frame.color_trc = 1
    assert psnr(Converter().convert(frame), reference) < 20, "without tone mapping the picture is pale"


def interlaced(path: Path, codec: str, count: int = 50) -> Path:
    """A clip whose pictures have their even lines from one moment and their odd lines from the next."""
    moments, woven = drawn(count=2 * count), []
    for top, bottom in zip(moments[::2], moments[1::2], strict=True):
        top.make_writable()
        for ours, theirs in zip(planes(top, np.uint8), planes(bottom, np.uint8), strict=True):
            ours[1::2] = theirs[1::2]
        woven += graph(top, ("setfield", "tff"))
    options = {"flags": "+ilme+ildct"} | ({"x264-params": "tff=1"} if codec == "libx264" else {})
    return clip(path, woven, codec, options=options)


@pytest.mark.parametrize(("codec", "name"), [("libx264", "x.mp4"), ("mpeg2video", "x.mkv")])
def test_interlaced_video_gives_as_many_pictures_at_the_same_times_none_black(
    codec: str, name: str, tmp_path: Path
) -> None:
    with av.open(interlaced(tmp_path / name, codec)) as container:
        frames = list(container.decode(video=0))
    assert len(frames) == 50
    assert all(frame.interlaced_frame for frame in frames)
    deinterlacer, converter = Deinterlacer(), Converter()
    done = [picture for frame in frames for picture in deinterlacer.feed(frame)] + deinterlacer.flush()
    assert [(picture.pts, picture.time_base) for picture in done] == [(frame.pts, frame.time_base) for frame in frames]
    assert not any(picture.interlaced_frame for picture in done)
    for frame, whole in zip(frames[::7], done[::7], strict=True):
        shown = converter.convert(whole)
        assert shown.mean() > 40
        # Left interlaced, the picture is whole, too, and is no memory that something else has used.
        assert psnr(Converter().convert(frame), shown) > 15


def test_the_deinterlaced_picture_is_ffmpegs_own(tmp_path: Path) -> None:
    with av.open(interlaced(tmp_path / "x.mp4", "libx264", count=6)) as container:
        frames = list(container.decode(video=0))
    made = av.filter.Graph()
    source = made.add_buffer(width=320, height=240, format=frames[0].format, time_base=NO_TIME)
    made.link_nodes(source, made.add("bwdif", "mode=send_frame:deint=all"), made.add("buffersink")).configure()
    reference = []
    for frame in [*frames, None]:
        made.vpush(frame)
        try:
            while True:
                reference.append(made.vpull())
        except (av.error.BlockingIOError, av.error.EOFError):
            continue
    deinterlacer = Deinterlacer()
    done = [picture for frame in frames for picture in deinterlacer.feed(frame)] + deinterlacer.flush()
    for ours, theirs in zip(done, reference, strict=True):
        assert np.array_equal(ours.to_ndarray(), theirs.to_ndarray())


def test_deinterlacing_begins_with_the_first_interlaced_picture_and_leaves_the_others_alone(tmp_path: Path) -> None:
    with av.open(interlaced(tmp_path / "x.mp4", "libx264", count=3)) as container:
        fields = list(container.decode(video=0))
    whole = drawn(count=4)
    frames = [*whole[:2], *fields, *whole[2:]]
    for index, frame in enumerate(frames):
        frame.pts, frame.time_base = index, Fraction(1, 25)
    before = [frame.to_ndarray() for frame in frames]
    deinterlacer = Deinterlacer()
    fed = [deinterlacer.feed(frame) for frame in frames]
    assert [len(done) for done in fed] == [1, 1, 0, 1, 1, 1, 1]
    assert deinterlacer._graph is not None
    done = [picture for part in fed for picture in part] + deinterlacer.flush()
    assert [picture.pts for picture in done] == list(range(7))
    for index, whole_again in enumerate(done):
        assert np.array_equal(whole_again.to_ndarray(), before[index]) == (index not in {2, 3, 4})


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.sampled_from([(320, 240), (64, 48), (5, 3)]), max_size=8),
    times=st.data(),
    mode=st.sampled_from(["auto", "off"]),
)
def test_one_picture_comes_out_for_each_that_goes_in(sizes: list[tuple[int, int]], times: Any, mode: Any) -> None:
    frames = []
    for width, height in sizes:
        # The mark of an interlaced picture cannot be set from Python, but by a filter.
        kind = times.draw(st.sampled_from(["tff", "prog"]))
        frame = graph(av.VideoFrame(width, height, "yuv420p"), ("setfield", kind))[0]
        frame.pts = times.draw(st.none() | st.integers(-5, 5))
        frames.append(frame)
    deinterlacer = Deinterlacer(mode)
    done = [picture for frame in frames for picture in deinterlacer.feed(frame)] + deinterlacer.flush()
    assert [(picture.width, picture.height, picture.pts) for picture in done] == [
        (frame.width, frame.height, frame.pts) for frame in frames
    ]
    assert deinterlacer.flush() == []


async def test_the_decoder_child_sends_these_pictures_each_with_its_own_size(tmp_path: Path) -> None:
    turned = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    upright = clip(tmp_path / "a.mp4", drawn(count=3), "libx264", matrix=turned, sample_aspect_ratio=Fraction(2))
    fields = interlaced(tmp_path / "b.mp4", "libx264", count=6)
    for path, size, count in ((upright, (240, 640), 3), (fields, (320, 240), 6)):
        shown = await watch(path)
        assert shown.error is None
        assert [frame.index for frame in shown.frames] == list(range(count))
        deinterlacer = Deinterlacer()
        with av.open(path) as container:
            stream = container.streams.video[0]
            converter = Converter(stream)
            fed = [frame for each in container.decode(stream) for frame in deinterlacer.feed(each)]
            for sent, frame in zip(shown.frames, fed + deinterlacer.flush(), strict=True):
                assert (sent.width, sent.height) == size
                assert np.array_equal(picture(sent), as_jpeg(converter.convert(frame)))

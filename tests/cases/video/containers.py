"""Every other container: Matroska, WebM, AVI, MPEG-TS and PS, FLV, ASF, Ogg, MXF, DV, raw streams, GIF, APNG."""

from __future__ import annotations

from fractions import Fraction
from functools import partial

from tests.cases.video import patching
from tests.cases.video.case import Case, Shown, steady, timed
from tests.cases.video.mp4 import DEFAULT, H264, NO_REORDERING, OTHER, TWELVE, write_two_sizes, written
from tests.cases.video.writing import Sound, Track

BROWSER_MS = (0, 33, 70, 99, 140, 166, 205, 233, 270, 300, 340, 366)
TIMES_600 = (0, 1, 41, 60, 80, 100, 121, 140, 160, 180, 201, 220)
GAPS = (0, 1, 2, 5, 6, 7, 8, 9, 12, 13, 14, 15)
INTERLACED = {"flags": "+ilme+ildct"}

BROWSER = Track(codec="libvpx", times=BROWSER_MS, time_base=Fraction(1, 1000), rate=1000)
COVER = Track(codec="mjpeg", pix_fmt="yuvj420p", numbers=[100], size=(192, 128))


def milliseconds(*times: float) -> tuple[Shown, ...]:
    """Frames at these times."""
    return timed(time / 1000 for time in times)


MATROSKA = [
    Case(name="h264.mkv", make=written(H264), frames=TWELVE),
    Case(name="hevc.mkv", make=written(Track(codec="libx265")), frames=TWELVE),
    Case(name="vp8.webm", make=written(Track(codec="libvpx")), frames=TWELVE),
    Case(name="vp9.webm", make=written(Track(codec="libvpx-vp9")), frames=TWELVE),
    Case(name="av1.webm", make=written(Track(codec="libsvtav1")), frames=TWELVE),
    Case(name="ffv1.mkv", make=written(Track(codec="ffv1")), frames=TWELVE),
    Case(name="mpeg2_interlaced.mkv", make=written(Track(codec="mpeg2video", options=INTERLACED)), frames=TWELVE),
    Case(name="live.mkv", make=written(H264, mux={"live": "1"}), frames=TWELVE),
    # What a browser's recorder writes: whole milliseconds, no duration, no rate.
    Case(
        name="browser.webm",
        make=written(BROWSER, mux={"live": "1"}, then=patching.drop_default_duration),
        frames=milliseconds(*BROWSER_MS),
    ),
    Case(name="rate_1000.webm", make=written(BROWSER), frames=milliseconds(*BROWSER_MS)),
    Case(
        name="rate_600.mkv",
        make=written(Track(times=TIMES_600, time_base=Fraction(1, 600), rate=600)),
        frames=milliseconds(*(time / 0.6 for time in TIMES_600)),
    ),
    Case(name="sound_longer.mkv", make=written(H264, Sound(seconds=2.0, codec="libopus")), frames=TWELVE),
    Case(
        name="sound_first.mkv",
        make=written(Track(times=range(3, 15)), Sound(seconds=0.6, codec="libopus")),
        frames=steady(12, start=0.12),
    ),
    Case(name="second_is_default.mkv", make=written(OTHER, Track(disposition=DEFAULT)), frames=TWELVE),
    Case(
        name="second_is_larger.mkv",
        make=written(Track(numbers=range(100, 112), size=(48, 32)), H264),
        frames=TWELVE,
    ),
    Case(name="cover_first.mkv", make=written(COVER, H264), frames=TWELVE),
    Case(name="two_sizes.mkv", make=write_two_sizes, frames=TWELVE, size=None),
]

AVI = [
    Case(name="mpeg4.avi", make=written(Track(codec="mpeg4")), frames=TWELVE),
    Case(name="mpeg4_reordered.avi", make=written(Track(codec="mpeg4", options={"bf": "2"})), frames=TWELVE),
    Case(name="h264_reordered.avi", make=written(H264), frames=TWELVE),
    # The muxer fills the gaps with chunks of length 0, each of which repeats the picture before.
    Case(
        name="empty_chunks.avi",
        make=written(Track(codec="mpeg4", times=GAPS)),
        frames=timed(time / 25 for time in GAPS),
    ),
    Case(
        name="empty_chunks_at_end.avi",
        make=written(Track(codec="mpeg4"), then=partial(patching.append_empty_chunks, count=2)),
        frames=TWELVE,
    ),
    Case(name="raw.avi", make=written(Track(codec="rawvideo", pix_fmt="bgr24")), frames=TWELVE),
    Case(name="h263.avi", make=written(Track(codec="h263", size=(128, 96))), frames=TWELVE, size=(140, 96)),
    Case(name="msmpeg4v2.avi", make=written(Track(codec="msmpeg4v2")), frames=TWELVE),
    Case(name="msmpeg4v3.avi", make=written(Track(codec="msmpeg4")), frames=TWELVE),
    Case(name="cinepak.avi", make=written(Track(codec="cinepak", pix_fmt="rgb24")), frames=TWELVE),
    Case(name="huffyuv.avi", make=written(Track(codec="huffyuv", pix_fmt="yuv422p")), frames=TWELVE),
    Case(name="ffvhuff.avi", make=written(Track(codec="ffvhuff")), frames=TWELVE),
    Case(name="ffv1.avi", make=written(Track(codec="ffv1")), frames=TWELVE),
    Case(name="mjpeg.avi", make=written(Track(codec="mjpeg", pix_fmt="yuvj420p")), frames=TWELVE),
]

DNXHR = Track(codec="dnxhd", size=(256, 128), pix_fmt="yuv422p", options={"profile": "dnxhr_sq"})

BROADCAST = [
    Case(name="h264.ts", make=written(H264), frames=TWELVE),
    Case(name="h264.m2ts", make=written(H264, mux={"mpegts_m2ts_mode": "1"}), frames=TWELVE),
    Case(name="hevc.ts", make=written(Track(codec="libx265")), frames=TWELVE),
    Case(name="mpeg2.ts", make=written(Track(codec="mpeg2video")), frames=TWELVE),
    Case(name="mpeg2_interlaced.ts", make=written(Track(codec="mpeg2video", options=INTERLACED)), frames=TWELVE),
    Case(name="offset.ts", make=written(H264, mux={"output_ts_offset": "10"}), frames=TWELVE),
    Case(
        # The encoder of the sound lets it begin 481 samples early.
        name="sound_first.ts",
        make=written(Track(times=range(3, 15)), Sound(seconds=0.6, codec="mp2")),
        frames=steady(12, start=0.12 + 481 / 48_000),
    ),
    Case(name="mpeg1.mpg", make=written(Track(codec="mpeg1video")), frames=TWELVE),
    Case(name="mpeg2.mpg", make=written(Track(codec="mpeg2video"), muxer="svcd"), frames=TWELVE),
    Case(name="mpeg2.vob", make=written(Track(codec="mpeg2video")), frames=TWELVE),
    Case(name="mpeg2.mxf", make=written(Track(codec="mpeg2video")), frames=TWELVE),
    # FFmpeg's muxer writes wrong times for reordered H.264.
    Case(name="h264.mxf", make=written(NO_REORDERING), frames=TWELVE),
    Case(name="dnxhr.mxf", make=written(DNXHR), frames=TWELVE, size=(256, 128)),
    Case(
        name="pal.dv",
        make=written(Track(codec="dvvideo", size=(720, 576), numbers=range(4))),
        frames=steady(4),
        size=None,
    ),
]

OTHERS = [
    Case(name="h264.flv", make=written(H264), frames=TWELVE),
    Case(name="sorenson.flv", make=written(Track(codec="flv")), frames=TWELVE),
    Case(name="wmv1.asf", make=written(Track(codec="wmv1")), frames=TWELVE),
    Case(name="wmv2.wmv", make=written(Track(codec="wmv2")), frames=TWELVE),
    Case(name="vp8.ogv", make=written(Track(codec="libvpx")), frames=TWELVE),
    # Raw streams hold no times: FFmpeg takes the rate that the stream declares, or 25 a second.
    Case(name="raw.h264", make=written(H264), frames=TWELVE),
    Case(name="raw.hevc", make=written(Track(codec="libx265")), frames=TWELVE),
    Case(name="picture.gif", make=written(Track(codec="gif", pix_fmt="rgb8")), frames=TWELVE),
    Case(name="picture.apng", make=written(Track(codec="apng", pix_fmt="rgb24")), frames=TWELVE),
]

CASES = MATROSKA + AVI + BROADCAST + OTHERS

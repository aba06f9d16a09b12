"""MP4 and MOV: edit lists, fragments, sound, rates, several streams, rotation, colour, sizes, encryption."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

import av
import numpy as np

from tests.cases.video import patching
from tests.cases.video.case import Case, steady, timed
from tests.cases.video.writing import Sound, Track, remux, write
from tests.support import clips
from trio_runner.errors import ErrorCode

FRAGMENTED = {"movflags": "frag_keyframe+empty_moov+default_base_moof"}
IRREGULAR_MS = (0, 40, 80, 87, 207, 240, 273, 773, 793, 834, 850, 900)
TIMES_600 = (0, 20, 41, 60, 80, 100, 121, 140, 160, 180, 201, 220)
"""At 30 frames a second on a scale of 600, rounded: FFmpeg guesses many a rate from such times."""

DEFAULT, COVER = int(av.stream.Disposition.default), int(av.stream.Disposition.attached_pic)
BT2020, PQ, HLG, LIMITED = 9, 16, 18, 1
KEY = "00112233445566778899aabbccddeeff"
ENCRYPTED = {"encryption_scheme": "cenc-aes-ctr", "encryption_key": KEY, "encryption_kid": KEY}

TWELVE = steady(12)


def turned(rotation: int, *, mirrored: bool) -> Callable[[Path], object]:
    """A maker of pictures that are stored turned and mirrored, and that the display matrix puts upright."""

    def turn(picture: clips.Image) -> clips.Image:
        return np.rot90(picture[:, ::-1] if mirrored else picture, -rotation // 90)

    width, height = turn(np.zeros((64, 96), np.uint8)).shape[::-1]
    track = Track(rotation=rotation, mirrored=mirrored, turn=turn, size=(width, height))
    return lambda path: write(path, track)


def high_dynamic_range(transfer: int) -> Track:
    """A track of HEVC with 10 bits, as phones write it."""
    colour = {"color_primaries": BT2020, "color_trc": transfer, "colorspace": BT2020, "color_range": LIMITED}
    return Track(codec="libx265", tag="hvc1", pix_fmt="yuv420p10le", colour=colour)


def write_two_sizes(path: Path) -> None:
    """Write one track whose pictures double in size half-way; the parameter sets stand in the stream."""
    whole = path.with_suffix(".h264")
    parts = [(range(6), (96, 64)), (range(6, 12), (192, 128))]
    content = b""
    for numbers, size in parts:
        content += write(whole, Track(numbers=numbers, size=size, options={"bf": "0"})).read_bytes()
    whole.write_bytes(content)
    remux(whole, path)
    whole.unlink()


def write_encrypted(path: Path, *, scheme: bytes = b"cenc") -> None:
    """Write a file encrypted by Common Encryption; the scheme is only a name to whoever has no key."""
    write(path, Track(), mux=ENCRYPTED)
    if scheme != b"cenc":
        patching.replace_all(path, b"schm\0\0\0\0cenc", b"schm\0\0\0\0" + scheme)


def written(
    *tracks: Track | Sound, then: Callable[[Path], None] | None = None, **options: object
) -> Callable[[Path], object]:
    """A maker: `write` with these arguments, and `then` a change of the file's bytes."""

    def make(path: Path) -> None:
        write(path, *tracks, **options)  # type: ignore[arg-type]
        if then is not None:
            then(path)

    return make


H264 = Track()
NO_REORDERING = Track(options={"bf": "0"})
OTHER = Track(numbers=range(100, 112))

CASES = [
    Case(name="h264.mp4", make=written(H264), frames=TWELVE),
    Case(name="h264_index_first.mp4", make=written(H264, mux={"movflags": "+faststart"}), frames=TWELVE),
    Case(name="h264.mov", make=written(H264), frames=TWELVE),
    Case(name="one_frame.mp4", make=written(Track(numbers=[7])), frames=((7, 0.0),)),
    Case(name="h264_444_odd.mp4", make=written(Track(size=(97, 65), pix_fmt="yuv444p")), frames=TWELVE, size=(97, 65)),
    Case(name="h264_422_10.mp4", make=written(Track(pix_fmt="yuv422p10le")), frames=TWELVE),
    Case(name="h264_full_range.mp4", make=written(Track(pix_fmt="yuvj420p")), frames=TWELVE),
    Case(name="h264_interlaced.mp4", make=written(Track(options={"flags": "+ilme+ildct"})), frames=TWELVE),
    Case(name="hevc.mp4", make=written(Track(codec="libx265", tag="hvc1")), frames=TWELVE),
    Case(name="hevc_10.mp4", make=written(Track(codec="libx265", tag="hvc1", pix_fmt="yuv420p10le")), frames=TWELVE),
    Case(name="hlg.mp4", make=written(high_dynamic_range(HLG)), frames=TWELVE),
    Case(name="pq.mp4", make=written(high_dynamic_range(PQ)), frames=TWELVE),
    Case(name="av1.mp4", make=written(Track(codec="libsvtav1")), frames=TWELVE),
    Case(name="vp9.mp4", make=written(Track(codec="libvpx-vp9")), frames=TWELVE),
    Case(name="mpeg4.mp4", make=written(Track(codec="mpeg4", options={"bf": "2"})), frames=TWELVE),
    # The pixels of H.263 are 12:11.
    Case(name="h263.3gp", make=written(Track(codec="h263", size=(128, 96))), frames=TWELVE, size=(140, 96)),
    Case(name="mjpeg.mov", make=written(Track(codec="mjpeg", pix_fmt="yuvj420p")), frames=TWELVE),
    Case(name="prores.mov", make=written(Track(codec="prores_ks", pix_fmt="yuv422p10le")), frames=TWELVE),
    Case(name="prores_alpha.mov", make=written(Track(codec="prores_ks", pix_fmt="yuva444p10le")), frames=TWELVE),
    Case(
        name="dnxhr.mov",
        make=written(Track(codec="dnxhd", size=(256, 128), pix_fmt="yuv422p", options={"profile": "dnxhr_sq"})),
        frames=TWELVE,
        size=(256, 128),
    ),
    # Fragments and sound.
    Case(name="fragmented.mp4", make=written(H264, mux=FRAGMENTED), frames=TWELVE),
    Case(
        # The sound begins 1024 samples early. Without an edit list the muxer shifts everything but the first picture.
        name="fragmented_sound.mp4",
        make=written(NO_REORDERING, Sound(seconds=0.7), mux=FRAGMENTED),
        frames=((0, 0.0), *steady(11, first=1, start=0.04 + 1024 / 48_000)),
    ),
    Case(
        name="fragmented_indexed.mp4",
        make=written(H264, mux={"movflags": f"{FRAGMENTED['movflags']}+dash+global_sidx"}),
        frames=TWELVE,
    ),
    Case(name="sound_longer.mp4", make=written(H264, Sound(seconds=2.0)), frames=TWELVE),
    # Edit lists and offsets.
    Case(
        name="trimmed.mp4",
        make=written(Track(numbers=range(30), times=range(-20, 10), options={"g": "30"})),
        frames=steady(10, first=20),
    ),
    Case(
        name="edit_5_of_12.mov",
        make=written(NO_REORDERING, then=partial(patching.limit_edit, milliseconds=200)),
        frames=steady(5),
    ),
    Case(
        name="edit_5_of_12_reordered.mov",
        make=written(H264, then=partial(patching.limit_edit, milliseconds=200)),
        frames=steady(5),
    ),
    Case(name="no_edit_list.mp4", make=written(H264, mux={"use_editlist": "0"}), frames=TWELVE),
    Case(name="negative_offsets.mp4", make=written(H264, mux={"movflags": "negative_cts_offsets"}), frames=TWELVE),
    Case(
        name="sound_first.mp4",
        make=written(Track(times=range(3, 15)), Sound(seconds=0.6)),
        frames=steady(12, start=0.12),
    ),
    # Rates.
    Case(
        name="variable_rate.mp4",
        make=written(Track(times=IRREGULAR_MS, time_base=Fraction(1, 1000)), time_base_kept=True),
        frames=timed(time / 1000 for time in IRREGULAR_MS),
    ),
    Case(
        name="rate_240_02.mp4",
        make=written(Track(rate=Fraction(24002, 100))),
        frames=steady(12, Fraction(24002, 100)),
    ),
    Case(
        name="scale_600.mov",
        make=written(Track(times=TIMES_600, time_base=Fraction(1, 600)), time_base_kept=True),
        frames=timed(time / 600 for time in TIMES_600),
    ),
    # Several streams.
    Case(
        name="second_is_default.mp4",
        make=written(OTHER, Track(disposition=DEFAULT)),
        frames=TWELVE,
    ),
    Case(
        name="cover.mp4",
        make=written(Track(codec="mjpeg", pix_fmt="yuvj420p", numbers=[100], size=(192, 128), disposition=COVER), H264),
        frames=TWELVE,
    ),
    # The picture as it is shown.
    *(
        Case(
            name=f"rotated_{rotation}{'_mirrored' * mirrored}.mp4",
            make=turned(rotation, mirrored=mirrored),
            frames=TWELVE,
        )
        for rotation in (0, 90, 180, 270)
        for mirrored in (False, True)
        if rotation or mirrored
    ),
    Case(
        name="pixels_2_1.mp4",
        make=written(Track(size=(48, 64), sample_aspect_ratio=Fraction(2, 1))),
        frames=TWELVE,
    ),
    Case(
        name="pixels_2_1_as_coded.mp4",
        make=written(Track(size=(48, 64), sample_aspect_ratio=Fraction(2, 1))),
        frames=TWELVE,
        size=(48, 64),
        options={"square_pixels": False},
    ),
    Case(name="two_sizes.mp4", make=write_two_sizes, frames=TWELVE, size=None),
    # Encrypted.
    Case(name="cenc.mp4", make=write_encrypted, code=ErrorCode.VIDEO_REFUSED, message="encrypted"),
    Case(
        name="cbcs.mp4",
        make=partial(write_encrypted, scheme=b"cbcs"),
        code=ErrorCode.VIDEO_REFUSED,
        message="encrypted",
    ),
]

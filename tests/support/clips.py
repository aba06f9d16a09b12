"""Clips made at test time: frames that carry their own number, and files broken in known ways.

`tests.support.numbers` paints the number.
"""

from __future__ import annotations

import itertools
from fractions import Fraction
from functools import partial
from typing import TYPE_CHECKING

import av
import numpy as np

from tests.support.numbers import BLACK, COLUMNS, NUMBER_BITS, WHITE, Image, checksum, paint, read_frame_number

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

__all__ = [
    "BLACK",
    "COLUMNS",
    "DAMAGED",
    "EMPTY",
    "FAST",
    "INTACT",
    "IRREGULAR_MS",
    "LARGE_SIZE",
    "NUMBER_BITS",
    "WHITE",
    "Image",
    "audio_only",
    "checksum",
    "corrupt",
    "paint",
    "pixel_coded",
    "read_frame_number",
    "truncated",
    "with_large_frames",
]

# Speed before size, but with B-frames: they make decoders put frames back in order.
FAST = {
    "libx264": {"preset": "ultrafast", "bf": "2", "g": "12"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "b": "2M"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "b": "2M"},
    "mpeg4": {"qscale": "3"},
    "mjpeg": {"qscale": "3"},
}


LARGE_SIZE = (280, 200)
"""Of the clip that `with_large_frames` writes."""


def pixel_coded(
    path: Path,
    *,
    frames: int = 60,
    fps: int = 25,
    size: tuple[int, int] = (320, 240),
    codec: str = "libx264",
    pix_fmt: str | None = None,
    pts_ms: Sequence[int] | None = None,
    rotation: int = 0,
    noise: int = 0,
) -> Path:
    """Write a clip whose frame i shows the number i; the container goes by the suffix of `path`.

    Args:
        path: where to write.
        frames: how many; 0 leaves a container with a video stream and no packet in it.
        fps: frames per second.
        size: (width, height) as a viewer sees it.
        codec: FFmpeg's name of an encoder.
        pix_fmt: pixel format; None takes the usual one of the codec.
        pts_ms: presentation times in ms, rising from 0, instead of `frames` and `fps`: a variable frame rate.
        rotation: 90, 180 or 270: the pictures are stored turned, and the display matrix turns them upright.
        noise: by how much a pixel may differ from black or white; small pictures then make large JPEGs.

    Returns:
        `path`.
    """
    if pts_ms is None:
        time_base, times = Fraction(1, fps), list(range(frames))
    else:
        time_base, times = Fraction(1, 1000), list(pts_ms)
    quarter_turns = rotation // 90
    rng = np.random.default_rng(frames)
    # The index in front, so that a clip cut short still has it. FFmpeg leaves a stream without packets out of
    # an ordinary index, but not out of a fragmented file's.
    options = {"movflags": "+faststart" if times else "+empty_moov"}
    with av.open(str(path), "w", options=options if path.suffix in {".mp4", ".mov"} else {}) as container:
        stream = container.add_stream(codec, rate=fps, options=FAST.get(codec, {}))
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = size if quarter_turns % 2 == 0 else size[::-1]
        stream.pix_fmt = pix_fmt or ("yuvj420p" if codec == "mjpeg" else "yuv420p")
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        if rotation:
            stream.set_display_rotation(rotation)
        container.start_encoding()
        for number, time in enumerate(times):
            painted = paint(number, size)
            if noise:
                grain = rng.integers(-noise, noise, painted.shape, endpoint=True)
                painted = np.clip(painted + grain, 0, 255).astype(np.uint8)
            picture = np.ascontiguousarray(np.rot90(painted, -quarter_turns))
            frame = av.VideoFrame.from_ndarray(picture, format="gray")
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def with_large_frames(path: Path, *, frames: int) -> Path:
    """Write a clip whose JPEGs have 20 kB each; grain makes them so large, which costs less time than many pixels."""
    return pixel_coded(path, frames=frames, size=LARGE_SIZE, noise=24)


def audio_only(path: Path, *, codec: str = "aac") -> Path:
    """Write half a second of a 440 Hz tone and no video stream."""
    rate, samples = 48_000, 24_000
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(samples) / rate)).astype(np.int16)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout="mono")
        assert isinstance(stream, av.AudioStream)
        frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
        frame.sample_rate = rate
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def truncated(path: Path) -> Path:
    """Write a clip of 60 frames cut off in the middle of its data; an MP4 keeps its header, which says 60."""
    content = pixel_coded(path).read_bytes()
    data = max(content.find(b"mdat"), 0)
    path.write_bytes(content[: data + (len(content) - data) // 2])
    return path


def corrupt(path: Path) -> Path:
    """Write a clip of 60 frames with every bit flipped in a tenth of the data, just before its middle."""
    content = bytearray(pixel_coded(path).read_bytes())
    data = max(content.find(b"mdat"), 0)
    middle, length = data + (len(content) - data) // 2, (len(content) - data) // 10
    content[middle - length : middle] = bytes(byte ^ 0xFF for byte in content[middle - length : middle])
    path.write_bytes(content)
    return path


IRREGULAR_MS = tuple(itertools.accumulate([40, 40, 7, 120, 33, 33, 500, 20, 41, 16] * 3, initial=0))

# Whole and readable: file name -> maker(path). Every frame shows its number.
INTACT: dict[str, Callable[[Path], Path]] = {
    "h264.mp4": pixel_coded,
    "h264.mkv": pixel_coded,
    "h264.mov": pixel_coded,
    "mpeg4.mp4": partial(pixel_coded, codec="mpeg4"),
    "mpeg4.avi": partial(pixel_coded, codec="mpeg4"),
    "mjpeg.avi": partial(pixel_coded, codec="mjpeg"),
    "stream.mjpeg": partial(pixel_coded, codec="mjpeg"),
    "vp8.webm": partial(pixel_coded, codec="libvpx"),
    "vp9.webm": partial(pixel_coded, codec="libvpx-vp9"),
    "vfr.mp4": partial(pixel_coded, pts_ms=IRREGULAR_MS),
    "vfr.mkv": partial(pixel_coded, pts_ms=IRREGULAR_MS),
    "rotated_90.mp4": partial(pixel_coded, rotation=90),
    "rotated_180.mp4": partial(pixel_coded, rotation=180),
    "rotated_270.mp4": partial(pixel_coded, rotation=270),
    "odd_h264.mp4": partial(pixel_coded, size=(321, 241), pix_fmt="yuv444p"),
    "odd_mpeg4.mp4": partial(pixel_coded, size=(321, 241), codec="mpeg4"),
    "odd_vp9.webm": partial(pixel_coded, size=(321, 241), codec="libvpx-vp9"),
    "one_frame.mp4": partial(pixel_coded, frames=1),
    "4k.mp4": partial(pixel_coded, frames=3, size=(3840, 2160)),
}

# Without a picture to give. Only the first opens as a video.
EMPTY: dict[str, Callable[[Path], Path]] = {
    "no_frames.mp4": partial(pixel_coded, frames=0),
    "no_frames.mkv": partial(pixel_coded, frames=0),
    "audio_only.mp4": audio_only,
    "audio_only.wav": partial(audio_only, codec="pcm_s16le"),
}

# Damaged: each opens and gives fewer frames than it promises. OpenCV's `read` answers False at the damage as it
# does at the end; in the corrupt clip, reading on gives smeared frames and then, from a key frame on, whole ones.
DAMAGED: dict[str, Callable[[Path], Path]] = {
    "truncated.mp4": truncated,
    "truncated.mkv": truncated,
    "corrupt.mp4": corrupt,
}

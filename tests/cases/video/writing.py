"""Writes small videos through FFmpeg's encoders and muxers; every picture shows its own number (`clips.paint`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from tests.cases.video.case import SIZE
from tests.support import clips

# Speed before size. Two B-frames and a key frame every six frames, so that decoders put frames back in order.
ENCODER_OPTIONS: dict[str, dict[str, str]] = {
    "libx264": {"preset": "ultrafast", "bf": "2", "g": "6", "b-adapt": "0"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:bframes=2:b-adapt=0:keyint=6:pools=1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "b": "1M"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "b": "1M"},
    "libsvtav1": {"preset": "8", "crf": "8", "svtav1-params": "lp=1:keyint=6"},
    "mpeg1video": {"qscale": "3", "bf": "2", "g": "6"},
    "mpeg2video": {"qscale": "3", "bf": "2", "g": "6"},
    "mpeg4": {"qscale": "3", "g": "6"},
    "mjpeg": {"qscale": "3"},
}


@dataclass(frozen=True, kw_only=True)
class Track:
    """One video stream: which numbers its pictures show, when, and how they are encoded."""

    codec: str = "libx264"
    numbers: Sequence[int] = range(12)
    times: Sequence[int] | None = None
    """Presentation times in units of `time_base`; None takes one unit a frame, from 0 on."""
    rate: Fraction | int = 25
    """The declared rate; its inverse is the encoder's time base unless `time_base` is given."""
    time_base: Fraction | None = None
    size: tuple[int, int] = SIZE
    """Width and height as coded."""
    pix_fmt: str = "yuv420p"
    options: Mapping[str, str] = field(default_factory=dict)
    tag: str = ""
    sample_aspect_ratio: Fraction | None = None
    rotation: int = 0
    """Degrees, as `VideoStream.set_display_rotation` takes them."""
    mirrored: bool = False
    turn: Callable[[clips.Image], clips.Image] = lambda picture: picture
    """Turns a painted picture into the one that is coded."""
    colour: Mapping[str, int] = field(default_factory=dict)
    """Attributes of the codec context: color_primaries, color_trc, colorspace, color_range."""
    disposition: int = 0

    @property
    def base(self) -> Fraction:
        """The unit of `times` in seconds."""
        return self.time_base or 1 / Fraction(self.rate)


@dataclass(frozen=True, kw_only=True)
class Sound:
    """One audio stream: a tone of 440 Hz."""

    seconds: float
    codec: str = "aac"


def write(
    path: Path,
    *tracks: Track | Sound,
    muxer: str | None = None,
    mux: Mapping[str, str] | None = None,
    time_base_kept: bool = False,
) -> Path:
    """Write a file with these streams, interleaved by time.

    Args:
        path: Where to write.
        tracks: The streams, in the order of the file.
        muxer: FFmpeg's name of the container; None takes the one of the suffix.
        mux: Options of the muxer.
        time_base_kept: Whether each stream is asked to count time in its track's own unit.

    Returns:
        `path`.
    """
    with av.open(str(path), "w", format=muxer, options=dict(mux or {})) as container:
        streams = [
            _add_video(container, track, time_base_kept=time_base_kept)
            if isinstance(track, Track)
            else _add_sound(container, track)
            for track in tracks
        ]
        container.start_encoding()
        packets: list[Any] = []
        for track, stream in zip(tracks, streams, strict=True):
            packets += _video_packets(track, stream) if isinstance(track, Track) else _sound_packets(track, stream)
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in packets:
            container.mux(packet)
    return path


def painted(track: Track, number: int) -> av.VideoFrame:
    """A picture of the track, before it is encoded."""
    upright = clips.paint(number, track.turn(np.zeros(track.size[::-1], np.uint8)).shape[::-1])
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(track.turn(upright)), format="gray")


def _add_video(container: Any, track: Track, *, time_base_kept: bool) -> Any:
    options = ENCODER_OPTIONS.get(track.codec, {}) | dict(track.options)
    stream = container.add_stream(track.codec, rate=track.rate, options=options)
    stream.width, stream.height = track.size
    stream.pix_fmt = track.pix_fmt
    stream.codec_context.time_base = track.base
    stream.codec_context.thread_count = 1
    if time_base_kept:
        stream.time_base = track.base
    if track.tag:
        stream.codec_context.codec_tag = track.tag
    if track.sample_aspect_ratio:
        stream.codec_context.sample_aspect_ratio = track.sample_aspect_ratio
    if track.rotation or track.mirrored:
        stream.set_display_rotation(track.rotation, hflip=track.mirrored)
    for name, value in track.colour.items():
        setattr(stream.codec_context, name, value)
    stream.disposition = track.disposition
    return stream


def _video_packets(track: Track, stream: Any) -> list[Any]:
    packets: list[Any] = []
    times = track.times if track.times is not None else range(len(track.numbers))
    for number, time in zip(track.numbers, times, strict=True):
        # Full-range greys of 16 and 235 are the limited range's black and white once they are converted.
        frame = painted(track, number).reformat(format=track.pix_fmt)
        frame.pts, frame.time_base = time, track.base
        packets += stream.encode(frame)
    return [*packets, *stream.encode()]


def _add_sound(container: Any, sound: Sound) -> Any:
    return container.add_stream(sound.codec, rate=48_000, layout="mono")


def _sound_packets(sound: Sound, stream: Any) -> list[Any]:
    samples = round(48_000 * sound.seconds)
    tone = (8000 * np.sin(2 * np.pi * 440 * np.arange(samples) / 48_000)).astype(np.int16)
    frame = av.AudioFrame.from_ndarray(tone[None], format="s16", layout="mono")
    frame.sample_rate, frame.pts = 48_000, 0
    return [*stream.encode(frame), *stream.encode()]


def remux(
    source: Path, path: Path, *, rate: int = 25, muxer: str | None = None, mux: Mapping[str, str] | None = None
) -> Path:
    """Copy the packets of the first video stream, one every 1/`rate` seconds; none may be reordered."""
    with av.open(str(source)) as given, av.open(str(path), "w", format=muxer, options=dict(mux or {})) as container:
        stream = container.add_stream_from_template(given.streams.video[0])
        stream.time_base = Fraction(1, rate)
        for time, packet in enumerate(packet for packet in given.demux(video=0) if packet.size):
            packet.stream, packet.time_base = stream, Fraction(1, rate)
            packet.pts = packet.dts = time
            packet.duration = 1
            container.mux(packet)
    return path

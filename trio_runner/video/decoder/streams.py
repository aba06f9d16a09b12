"""Chooses the stream of a file that is decoded, and describes it."""

from __future__ import annotations

from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import av
from av.stream import Disposition

from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import VideoInfo
from trio_runner.video.decoder.formats import CODECS, check_length, conversion, open_container

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

    from trio_runner.config.sections import VideoSection

STILL: Final = Disposition.attached_pic | Disposition.timed_thumbnails | Disposition.still_image
"""What the streams that are no video are marked as: covers, and pictures for a player's time line."""

LOOK_SECONDS: Final = 2.0
LOOK_PACKETS: Final = 2000
LOOK_BYTES: Final = 16 * 2**20
"""How much of the file's beginning is looked at, without decoding, before a stream is chosen."""

RATE_TOLERANCE: Final = 1.002
"""Containers round times, to whole milliseconds for example: 240 frames a second may measure as 240.02."""

RATE_FRAMES: Final = 12
"""Fewer times say nothing about a rate."""

MAX_FPS: Final = 1000.0
"""A higher rate is FFmpeg's guess for a container that declares none, such as a live recording in Matroska."""

MAX_COUNT: Final = 2**53


@dataclass(slots=True)
class Look:
    """The packets of one stream at the beginning of the file."""

    packets: int = 0
    encrypted: bool = False
    times: list[float] = field(default_factory=list)

    @property
    def rate(self) -> float:
        """Frames a second, as measured; 0 where there are too few."""
        times = sorted(self.times)
        if len(times) < RATE_FRAMES or times[-1] <= times[0]:
            return 0.0
        return (len(times) - 1) / (times[-1] - times[0])


def look(fd: int, options: VideoSection) -> dict[int, Look]:
    """What the file's first packets say about its streams; a container of its own, so that nothing is read twice."""
    looks: dict[int, Look] = defaultdict(Look)
    total = 0
    with open_container(fd, options) as container, suppress(av.error.InvalidDataError, av.error.ArgumentError):
        for number, packet in enumerate(container.demux()):
            seen, total = looks[packet.stream_index], total + packet.size
            if packet.stream.type == "video" and packet.size:
                seen.packets += 1
                seen.encrypted |= packet.has_sidedata("encryption_info")
                # Times of decoding rise evenly, while the last of the reordered pictures would be missing here.
                if packet.dts is not None and packet.time_base:
                    seen.times.append(float(packet.dts * packet.time_base))
            times = seen.times
            if number > LOOK_PACKETS or total > LOOK_BYTES or (times and times[-1] - times[0] > LOOK_SECONDS):
                break
    return looks


def choose_stream(container: InputContainer, looks: dict[int, Look], options: VideoSection, fd: int) -> VideoStream:
    """The video stream that `video.stream` names, or else the one that players show; raises RunnerError.

    Players prefer moving pictures to a cover, then the stream that the container marks as default, then the largest.
    """
    videos = container.streams.video
    if options.stream != "auto":
        for stream in videos:
            if stream.index == options.stream:
                return stream
        why = f"{options.path}: stream {options.stream} is not a video stream"
        numbers = ", ".join(str(stream.index) for stream in videos)
        remedy = f'the video streams are: {numbers}. Set video.stream to one of them, or to "auto"'
        message = f"{why}; {remedy if numbers else 'the file has no video stream. Give another file'}"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, message)
    if not videos:
        check_length(fd, options)
        message = f"{options.path}: holds no video stream. Give another file"
        raise RunnerError(ErrorCode.VIDEO_UNREADABLE, message)

    def preference(stream: VideoStream) -> tuple[bool, bool, bool, int, int]:
        still = bool(stream.disposition & STILL)
        default = bool(stream.disposition & Disposition.default)
        width, height = _size(stream)
        return not still, looks[stream.index].packets != 1, default, width * height, -stream.index

    best = max(videos, key=preference)
    cover = best.disposition & STILL or (
        looks[best.index].packets == 1 and codec_name(best) == "mjpeg" and container.streams.audio
    )
    if cover:
        message = f"{options.path}: holds a single picture, perhaps a cover, and no video. Give another file"
        raise RunnerError(ErrorCode.VIDEO_UNREADABLE, message)
    return best


def codec_name(stream: Any) -> str:
    """FFmpeg's name of the codec; where FFmpeg has no decoder, the container's code for it."""
    if stream.codec_context is not None:
        return str(stream.codec_context.codec.canonical_name)
    with suppress(av.error.FFmpegError, AttributeError, UnicodeDecodeError):
        return repr(stream.codec_tag)
    return "unknown to FFmpeg"


def _size(stream: Any) -> tuple[int, int]:
    return (stream.codec_context.width, stream.codec_context.height) if stream.codec_context is not None else (0, 0)


def describe(container: InputContainer, stream: VideoStream, seen: Look, options: VideoSection, fd: int) -> VideoInfo:
    """The properties that the container declares; raises RunnerError for what is not decoded or beyond a limit."""
    name, codec = container.format.name, codec_name(stream)
    if seen.encrypted:
        message = f"{options.path}: is encrypted ({codec} in {name}). Decrypt it with the key of whoever made it"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, message)
    if codec not in CODECS:
        check_length(fd, options)
        message = f"{options.path}: the codec {codec} in the container {name} is not one that is decoded"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{message}. Convert it: {conversion(options, stream)}")
    width, height = _size(stream)
    if not (width and height):
        check_length(fd, options)
        within = f"pictures within {options.limit_width} x {options.limit_height} are found ({codec} in {name})"
        remedy = "Give another file, or raise video.limit_width and video.limit_height"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{options.path}: no {within}. {remedy}")
    check_size(width, height, options)
    if seen.rate > options.limit_fps * RATE_TOLERANCE:
        rates = f"{seen.rate:g} frames a second, over the limit of {options.limit_fps:g}"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{options.path}: {rates}. Raise video.limit_fps")
    rate = float(stream.average_rate or stream.guessed_rate or 0)
    fps = rate if 0 < rate <= MAX_FPS else 0.0
    duration = None
    if stream.duration and stream.time_base and stream.duration > 0:
        duration = float(stream.duration * stream.time_base)
    elif container.duration and container.duration > 0:
        duration = container.duration / av.time_base
    # Both numbers can be nonsense. They are shown and compared with, and never used as a bound or a size.
    by_duration = round(duration * fps) if duration and fps else 0
    declared = min(filter(None, (stream.frames, by_duration)), default=0)
    return VideoInfo(
        container=name,
        codec=codec,
        stream=stream.index,
        video_streams=len(container.streams.video),
        width=width,
        height=height,
        fps=fps,
        declared_frames=declared if 0 < declared < MAX_COUNT else None,
        duration_seconds=duration,
    )


def check_size(width: int, height: int, options: VideoSection) -> None:
    """Raise RunnerError for a picture beyond the limits; each one is checked, because it may differ from the header."""
    if not (0 < width <= options.limit_width and 0 < height <= options.limit_height):
        exceeded = {
            "video.limit_width": width > options.limit_width,
            "video.limit_height": height > options.limit_height,
        }
        keys = " and ".join(key for key, is_exceeded in exceeded.items() if is_exceeded)
        remedy = f"Raise {keys}, or scale the video down" if keys else "Give another file"
        limits = f"{options.limit_width} x {options.limit_height}"
        message = f"{options.path}: pictures of {width} x {height} are not within {limits}. {remedy}"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, message)

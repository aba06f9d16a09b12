"""Opens a video file as one of the listed containers, and says of any other file what it is and how to convert it."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Any, Final

import av
import av.logging

from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.video.decoder.container import check_readable, inspect

if TYPE_CHECKING:
    from av.container import InputContainer

    from trio_runner.config.sections import VideoSection

FORMATS: Final = (
    "mov", "matroska", "avi", "mpegts", "mpeg", "flv", "asf", "ogg", "mxf", "dv", "gif", "apng", "ivf",
    # Streams without a container.
    "h264", "hevc", "mpegvideo", "m4v", "obu", "vc1",
)  # fmt: skip
"""The containers that are read, by the name of FFmpeg's demuxer. None of them opens a second file or an address."""

CODECS: Final = (
    "h264", "hevc", "av1", "vp8", "vp9", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3",
    "h263", "h263p", "flv1", "mjpeg", "theora", "vc1", "wmv1", "wmv2", "wmv3", "prores", "dnxhd", "dvvideo", "ffv1",
    "huffyuv", "ffvhuff", "cinepak", "gif", "apng", "rawvideo",
)  # fmt: skip
"""The codecs that are decoded, by FFmpeg's names."""

_DECODERS: Final = (*CODECS, "libdav1d", "msmpeg4", "flv")
"""FFmpeg's whitelist of codecs wants the names of decoders, and three of these differ from those of their codecs."""

_PROBED: Final = re.compile(r"Format (\S+) probed")
_NOT_LISTED: Final = "not on whitelist"
_SINGLE_PICTURES: Final = ("_pipe", "image2")
_LISTS: Final = ("hls", "dash", "concat", "sdp", "imf", "asx", "rtsp")

ALIGNMENT: Final = 128
"""FFmpeg rounds a picture's width and height in memory up by less than so many pixels."""


def open_container(fd: int, options: VideoSection) -> InputContainer:
    """Let FFmpeg open the file behind `fd`; raises RunnerError if it is no video in a listed container.

    FFmpeg reads the file by itself, through the link in /proc, and opens nothing else: the only protocol is `file`, and
    no listed container names other files.
    """
    container, messages = _open(fd, options, av.logging.ERROR)
    if container is not None:
        # FFmpeg's own program does not ask the demuxer to make up missing times either; `Clock` does that.
        container.flags &= ~_GENERATE_PTS
        return container
    check_length(fd, options)
    if any("m3u8/hls" in message for message in messages):
        raise RunnerError(ErrorCode.VIDEO_UNREADABLE, f"{options.path}: {_refusal(options, 'hls')}")
    if not any(_NOT_LISTED in message for message in messages):
        found = messages[-1] if messages else "FFmpeg recognises no container in it"
        raise RunnerError(ErrorCode.VIDEO_UNREADABLE, f"{options.path}: is no video: {found}. Give another file")
    # FFmpeg names the container that it refuses only among the messages for its own developers.
    _, messages = _open(fd, options, av.logging.TRACE)
    names = [probed[1] for message in messages if (probed := _PROBED.search(message))]
    raise RunnerError(ErrorCode.VIDEO_UNREADABLE, f"{options.path}: {_refusal(options, names[-1] if names else '?')}")


_GENERATE_PTS: Final = 0x0001
"""AVFMT_FLAG_GENPTS."""


def _open(fd: int, options: VideoSection, level: int) -> tuple[InputContainer | None, list[str]]:
    """The container, None if FFmpeg refuses it, and FFmpeg's messages meanwhile."""
    av.logging.set_level(level)
    try:
        with av.logging.Capture() as log:
            try:
                container = av.open(
                    f"/proc/self/fd/{fd}",
                    options=limits(options),
                    container_options={
                        "protocol_whitelist": "file",
                        "format_whitelist": ",".join(FORMATS),
                        # This list applies while FFmpeg probes the file. `streams.check_codec` checks the codec before
                        # the decoder that is used afterwards gets its first packet.
                        "codec_whitelist": ",".join(_DECODERS),
                        # As FFmpeg's own program does: the programs of a transport stream may be announced late.
                        "scan_all_pmts": "1",
                    },
                    metadata_errors="replace",
                )
            except av.error.MemoryError:
                raise
            except (av.error.FFmpegError, ValueError):
                check_readable(fd)
                container = None
    finally:
        av.logging.set_level(av.logging.ERROR)
    return container, [f"{name}: {text.strip()}" if name else text.strip() for _, name, text in log]


def limits(options: VideoSection) -> dict[str, str]:
    """The options of a decoder that bound the memory of one picture, whatever size the stream declares."""
    pixels = (options.limit_width + ALIGNMENT) * (options.limit_height + ALIGNMENT)
    return {"max_pixels": str(pixels)}


def _refusal(options: VideoSection, name: str) -> str:
    if name.endswith(_SINGLE_PICTURES):
        return f"is a single picture ({name}) and no video. Give another file"
    if name in _LISTS:
        return f"is a list of other files or addresses ({name}) and no video. Give the video itself"
    return f"the container {name} is not one that is read. Convert it: {conversion(options)}"


def conversion(options: VideoSection, stream: Any = None) -> str:
    """The one command that makes a video that is read of any that FFmpeg reads.

    With yuv420p, libx264 would refuse an odd width or height.
    """
    chosen = "0:v:0" if stream is None else f"0:{stream.index}"
    return f"ffmpeg -i {shlex.quote(options.path)} -map {chosen} -c:v libx264 -crf 18 -pix_fmt yuv444p converted.mp4"


def check_length(fd: int, options: VideoSection) -> None:
    """Raise RunnerError if the file ends before its container does, which explains what else is wrong with it."""
    if short := inspect(fd).shortfall:
        raise RunnerError(ErrorCode.VIDEO_TRUNCATED, f"{options.path}: {short}. Copy it again")

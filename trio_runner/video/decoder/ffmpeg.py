"""What FFmpeg is asked past OpenCV: its version, and what it has to complain of."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from trio_runner.errors import ErrorCode, RunnerError

LIBAVCODEC = (62, 28, 102)
"""FFmpeg 8.1.2; 8.1.1 writes out of bounds while it decodes MagicYUV (CVE-2026-8461)."""

DAMAGE = re.compile(r"\[(?:error|fatal|panic)\] |\bconcealing \d+ DC")
"""What FFmpeg reports of a damaged picture; that it made up parts of one is no error to it, but a verbose remark."""

AV_LOG_VERBOSE, AV_LOG_PRINT_LEVEL = 40, 2

HARMLESS = (
    "mmco: unref short failure",
    "co located POCs unavailable",
    "SEI type",
    "unable to decode APP fields",
    "not on whitelist",
)
"""What FFmpeg reports as an error although the pictures are whole."""

STDERR_BYTES = 64 * 1024
"""Standard error is emptied when it holds more."""


def load_ffmpeg() -> ctypes.CDLL:
    """The libavcodec that OpenCV has loaded; raises RunnerError where it is older than it must be, or there is none."""
    # Asked of the library itself: wheels have shipped another FFmpeg than the build information says.
    loaded = re.search(r"/.*/libavcodec.*", Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace"))
    ffmpeg = ctypes.CDLL(loaded[0] if loaded else None)
    number = ffmpeg.avcodec_version() if loaded else 0
    version = (number >> 16, number >> 8 & 0xFF, number & 0xFF)
    if version < LIBAVCODEC:
        has, needs = (".".join(map(str, numbers)) for numbers in (version, LIBAVCODEC))
        message = f"OpenCV has libavcodec {has}, and {needs} is needed"
        raise RunnerError(ErrorCode.DECODER_FAILED, f"{message}. Install opencv-python-headless as the lock has it")
    return ffmpeg


class Complaints:
    """What FFmpeg has written to standard error: the only place where it tells that it concealed damage.

    `err_detect=explode` would make damage an error, but as a capture option it reaches the demuxer and never the
    decoder.
    """

    def __init__(self) -> None:
        self._read_to = os.lseek(2, 0, os.SEEK_CUR)

    def take(self) -> str:
        """The first complaint since the last call that means damage; empty where there is none."""
        end = os.lseek(2, 0, os.SEEK_CUR)
        if end == self._read_to:
            return ""
        text = os.pread(2, min(end - self._read_to, STDERR_BYTES), self._read_to).decode(errors="replace")
        if end > STDERR_BYTES:
            os.ftruncate(2, 0)
            end = os.lseek(2, 0, os.SEEK_SET)
        self._read_to = end
        for line in text.splitlines():
            if DAMAGE.search(line) and not any(harmless in line for harmless in HARMLESS):
                # "[h264 @ 0x55846c705300] [error] ...": address and level say nothing.
                return "FFmpeg: " + re.sub(r" @ 0x[0-9a-f]+\](?: \[\w+\])?", "]", line).rstrip(" .")
        return ""

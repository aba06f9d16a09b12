"""Asks FFmpeg directly, past OpenCV: for its version, and for the damage that it reports."""

from __future__ import annotations

import ctypes
import os
import re
from pathlib import Path

from trio_runner.errors import ErrorCode, RunnerError

LIBAVCODEC = (62, 28, 102)
"""FFmpeg 8.1.2; 8.1.1 writes out of bounds while it decodes MagicYUV (CVE-2026-8461)."""

DAMAGE = re.compile(r"\[(?:error|fatal|panic)\] |\bconcealing \d+ DC")
"""FFmpeg's messages about a damaged picture. If it fills in missing parts, that is only a verbose message."""

AV_LOG_VERBOSE, AV_LOG_PRINT_LEVEL = 40, 2

HARMLESS = (
    "mmco: unref short failure",
    "co located POCs unavailable",
    "SEI type",
    "unable to decode APP fields",
    "not on whitelist",
)
"""Messages that FFmpeg logs as errors although the pictures are whole."""

STDERR_BYTES = 64 * 1024
"""Standard error is emptied when it holds more."""


def load_ffmpeg() -> ctypes.CDLL:
    """The libavcodec that OpenCV has loaded; raises RunnerError if it is too old, or if there is none."""
    # The library itself is asked: some wheels contain another FFmpeg than their build information says.
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
    """Reads FFmpeg's messages from standard error: nowhere else does FFmpeg report that it concealed damage.

    `err_detect=explode` would make damage an error, but as a capture option it reaches the demuxer and not the decoder.
    """

    def __init__(self) -> None:
        self._read_to = os.lseek(2, 0, os.SEEK_CUR)

    def take(self) -> str:
        """The first message since the last call that means damage; empty if there is none."""
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
                # "[h264 @ 0x55846c705300] [error] ...": the address and the level are of no use to the reader.
                return "FFmpeg: " + re.sub(r" @ 0x[0-9a-f]+\](?: \[\w+\])?", "]", line).rstrip(" .")
        return ""

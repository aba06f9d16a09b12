"""What FFmpeg makes of a video file: the times of its frames, and some of the pictures.

The programs `ffmpeg` and `ffprobe` are asked where both are found; else FFmpeg through PyAV decodes the file plainly.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import av
import av.logging
import cv2
import numpy as np

from tests.support.clips import Image

COMPARED = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""The numbers of the frames whose pictures are compared."""

HIGH_DYNAMIC_RANGE = {"smpte2084", "arib-std-b67"}
"""PQ and HLG. The reader maps such pictures to a screen's range, and FFmpeg does not."""

PATIENCE_SECONDS = 600.0
_TIME = re.compile(r" n: *\d+ pts: *(-?\d+|NOPTS) ")


@dataclass
class Reference:
    """The frames that FFmpeg presents."""

    times: list[float] = field(default_factory=list)
    pictures: dict[int, Image] = field(default_factory=dict)
    complaints: list[str] = field(default_factory=list)
    """FFmpeg's error messages; none means that it decoded the file without a complaint."""


def choose_reference() -> tuple[str, Callable[[Path, int], Reference]]:
    """What the reader is compared with, and the function that asks it about the stream of this number in a file."""
    if shutil.which("ffmpeg") and shutil.which("ffprobe"):
        line = subprocess.run(["ffmpeg", "-version"], capture_output=True, text=True, check=True).stdout.split(
            " Copyright"
        )[0]
        return line, by_program
    libraries = ".".join(map(str, av.library_versions["libavcodec"]))
    return f"FFmpeg through PyAV {av.__version__} (libavcodec {libraries})", by_library


def by_program(path: Path, stream: int) -> Reference:
    """Ask `ffmpeg`: every frame that it decodes, deinterlaced where a frame says so, in square pixels."""
    chosen = "+".join(f"eq(n\\,{number})" for number in COMPARED)
    times = "settb=1/1000000,showinfo=checksum=0"
    reference = _ffmpeg(path, stream, f"{times},bwdif=deint=interlaced:mode=send_frame,select={chosen}")
    if not reference.times:
        # The deinterlacer refuses pictures of a few pixels.
        reference = _ffmpeg(path, stream, f"{times},select={chosen}")
    whole, own = _probe(path, stream)
    if whole.get("format_name") in {"mpegts", "mpeg"} and "start_time" in whole.keys() & own.keys():
        # In these containers `ffmpeg` counts from the start of the streams that it is asked for.
        delay = float(own["start_time"]) - float(whole["start_time"])
        reference.times = [time + delay for time in reference.times]
    if own.get("color_transfer") in HIGH_DYNAMIC_RANGE:
        reference.pictures.clear()
    return reference


def _probe(path: Path, stream: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What `ffprobe` says of the file and of one of its streams."""
    command = ["ffprobe", "-v", "quiet", "-of", "json", "-show_format", "-show_streams", f"file:{path}"]
    found = json.loads(subprocess.run(command, capture_output=True, check=False).stdout or "{}")
    streams = found.get("streams", [])
    return found.get("format", {}), streams[stream] if stream < len(streams) else {}


def _ffmpeg(path: Path, stream: int, filters: str) -> Reference:
    command = ["ffmpeg", "-nostdin", "-hide_banner", "-nostats", "-loglevel", "level+info", "-i", f"file:{path}"]
    command += ["-map", f"0:{stream}", "-fps_mode", "passthrough", "-autoscale", "0", "-vf", filters]
    # Else the muxer complains of two frames within what it takes to be one frame's time.
    command += ["-enc_time_base", "1:1000000"]
    command += ["-f", "image2pipe", "-c:v", "ppm", "-pix_fmt", "rgb24", "-"]
    done = subprocess.run(command, capture_output=True, check=False, timeout=PATIENCE_SECONDS)
    lines = done.stderr.decode(errors="replace").splitlines()
    reference = Reference()
    for line in lines:
        if time := _TIME.search(line):
            if time[1] != "NOPTS":
                reference.times.append(int(time[1]) / 1_000_000)
        elif "[error]" in line or "[fatal]" in line:
            reference.complaints.append(line)
    pictures = _split_ppm(done.stdout)
    reference.pictures = dict(zip(COMPARED, pictures, strict=False))
    return reference


def _split_ppm(content: bytes) -> list[Image]:
    """The pictures of a stream of binary PPM, as BGR."""
    pictures, position = [], 0
    header = re.compile(rb"P6\s+(\d+)\s+(\d+)\s+255\s")
    while found := header.match(content, position):
        width, height = int(found[1]), int(found[2])
        picture = np.frombuffer(content, np.uint8, width * height * 3, found.end()).reshape(height, width, 3)
        pictures.append(picture[:, :, ::-1])
        position = found.end() + picture.size
    return pictures


def by_library(path: Path, stream: int) -> Reference:
    """Decode with PyAV; pictures are compared only where they are shown as they are stored."""
    reference = Reference()
    with av.logging.Capture() as log:
        try:
            with av.open(str(path), metadata_errors="replace") as container:
                start = (container.start_time or 0) / 1_000_000
                for number, frame in enumerate(_decoded(container, stream)):
                    if frame.pts is not None:
                        reference.times.append(frame.time - start)
                    as_stored = not frame.rotation and not frame.interlaced_frame and frame.color_trc not in (16, 18)
                    if number in COMPARED and as_stored:
                        picture: Any = frame.to_ndarray(format="bgr24")
                        reference.pictures[number] = picture
        except av.error.FFmpegError as error:
            reference.complaints.append(str(error))
    reference.complaints += [f"{name}: {text.strip()}" for level, name, text in log if level <= av.logging.ERROR]
    return reference


def _decoded(container: Any, stream: int) -> Any:
    # A decoder that is freed waits for its threads while it holds the GIL, and a thread that logs waits for the GIL.
    container.streams[stream].codec_context.thread_count = 1
    for packet in container.demux(container.streams[stream]):
        yield from packet.decode()


def first_video(path: Path) -> int:
    """The number of the first video stream; 0 where FFmpeg finds none."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return next((stream.index for stream in container.streams.video), 0)
    except av.error.FFmpegError:
        return 0


def difference(ours: Image, theirs: Image) -> float:
    """The peak signal-to-noise ratio in dB of a picture that came as JPEG and one that did not; 0 if the sizes differ.

    The second is made JPEG, too: no JPEG with halved colour is like a drawing with thin coloured lines.
    """
    if ours.shape != theirs.shape:
        return 0.0
    _, jpeg = cv2.imencode(".jpg", theirs, (cv2.IMWRITE_JPEG_QUALITY, 100))
    coded: Any = cv2.imdecode(jpeg, cv2.IMREAD_COLOR)
    return float(cv2.PSNR(ours, coded))

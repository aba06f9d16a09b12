"""The pictures of one video file: checked against limits, read in order, and judged at the video's end."""

from __future__ import annotations

import ctypes
import os
import re
import resource
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2

from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import VideoInfo
from trio_runner.video.decoder.container import Container, inspect
from trio_runner.video.decoder.ffmpeg import AV_LOG_PRINT_LEVEL, AV_LOG_VERBOSE, Complaints

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_runner.config.sections import VideoSection

CODECS = {
    "h264": "h264", "hevc": "hevc", "FMP4": "mpeg4", "MJPG": "mjpeg",
    "mpg2": "mpeg2video", "MP43": "msmpeg4", "VP80": "vp8", "VP90": "vp9", "AV01": "av1",
}  # fmt: skip
"""The codecs that are decoded: FFmpeg's name by the code that OpenCV derives from FFmpeg's codec id."""

CAPTURE_OPTIONS = {
    # Without these two, FFmpeg opens the files and addresses that a playlist or an ffconcat list called .mp4 names.
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi",
    # This list applies while FFmpeg probes the file, and not to the decoder that OpenCV opens afterwards. `describe`
    # checks CODECS before that decoder is given a packet. FFmpeg decodes AV1 with libdav1d.
    "codec_whitelist": ",".join([*CODECS.values(), "libdav1d"]),
}

FAILED_GRABS_AT_END = 1000
"""OpenCV reports the end and a packet that cannot be decoded in the same way. So many failures in a row are the end."""

UNSETTLED_FRAMES = 32
"""FFmpeg's message is about a packet. Its picture comes out later, by up to 16 frames of reordering and 16 threads."""

MAX_FPS = 1000.0
"""A higher rate is FFmpeg's guess for a container that declares none, such as a live recording in Matroska."""

STILL_PICTURE_FPS = 90_000.0
"""FFmpeg reports this rate for a still picture beside a sound track, which has none."""

MAX_COUNT = 2**53

ALIGNMENT = 128
"""FFmpeg rounds a picture's width and height in memory up by less than so many pixels."""

READ_ATTEMPTS = 100_000
"""How many packets of other streams OpenCV skips before it gives up on a picture; its default is 4096."""


def open_capture(fd: int, options: VideoSection, complaints: Complaints, ffmpeg: ctypes.CDLL) -> cv2.VideoCapture:
    """Let OpenCV open the file behind `fd`; raises RunnerError if it cannot."""
    file = inspect(fd)
    # Opening a file decodes some frames before their size can be checked, and any frame may be larger than the first.
    # Six bytes a pixel are three planes of 16 bits. FFmpeg's index of a long file grows as well: it takes 24 bytes for
    # each four bytes of the file's own index.
    pixels = (options.limit_width + ALIGNMENT) * (options.limit_height + ALIGNMENT)
    ffmpeg.av_max_alloc(ctypes.c_size_t(min(6 * (pixels + file.size_bytes), 2**31 - 1)))
    os.environ["OPENCV_FFMPEG_CAPTURE_OPTIONS"] = "|".join(f"{key};{value}" for key, value in CAPTURE_OPTIONS.items())
    os.environ["OPENCV_FFMPEG_READ_ATTEMPTS"] = str(READ_ATTEMPTS)
    cv2.setNumThreads(1)
    # FFmpeg starts a thread for each core unless it is given a number. cv2.setNumThreads does not limit them.
    threads = [cv2.CAP_PROP_N_THREADS, options.decoder_threads]
    ffmpeg.av_log_set_flags(AV_LOG_PRINT_LEVEL)
    capture = cv2.VideoCapture(f"/proc/self/fd/{fd}", cv2.CAP_FFMPEG, threads)
    if not capture.isOpened():
        if file.cut_short:
            raise RunnerError(ErrorCode.VIDEO_TRUNCATED, f"{options.path}: {_cut_short(file)}. Copy it again")
        found = complaints.take() or "no video stream was found"
        message = f"{options.path}: cannot be read as MP4, Matroska or AVI video: {found}. Give another file"
        raise RunnerError(ErrorCode.VIDEO_UNREADABLE, message)
    complaints.take()
    ffmpeg.av_log_set_level(AV_LOG_VERBOSE)
    return capture


def _cut_short(file: Container) -> str:
    if not file.cut_short:
        return ""
    return f"cut short: it has {file.size_bytes} of the {file.declared_bytes} bytes its {file.kind} container declares"


def describe(capture: cv2.VideoCapture, options: VideoSection) -> VideoInfo:
    """The properties that the container declares; raises RunnerError if codec, size or rate are beyond the limits."""
    fourcc = int(capture.get(cv2.CAP_PROP_FOURCC)).to_bytes(4, "little").decode("latin-1")
    if fourcc not in CODECS:
        codecs = ", ".join(sorted(CODECS.values()))
        message = f"{options.path}: codec {fourcc!r} is not one of {codecs}. Convert the video"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, message)
    width, height = int(capture.get(cv2.CAP_PROP_FRAME_WIDTH)), int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT))
    fps, count = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    check_size(width, height, options)
    if fourcc == "MJPG" and fps == STILL_PICTURE_FPS:
        message = f"{options.path}: holds a single picture, perhaps a cover, and no video. Give another file"
        raise RunnerError(ErrorCode.VIDEO_UNREADABLE, message)
    fps = fps if 0 < fps <= MAX_FPS else 0.0
    if fps > options.limit_fps:
        rates = f"{fps:g} frames a second, over the limit of {options.limit_fps:g}"
        message = f"{options.path}: {rates}. Raise video.limit_fps"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, message)
    # The count can be nonsense (-1.8e16 was seen), so it is only compared with, and never used as a bound or a size.
    declared = int(count) if 0 < count < MAX_COUNT else None
    duration = declared / fps if declared and fps else None
    return VideoInfo(
        codec=CODECS[fourcc],
        width=width,
        height=height,
        fps=fps,
        declared_frames=declared,
        duration_seconds=duration,
    )


def check_size(width: int, height: int, options: VideoSection) -> None:
    """Raise RunnerError for a picture beyond the limits; each one is checked, because it may differ from the header."""
    if not (0 < width <= options.limit_width and 0 < height <= options.limit_height):
        message = (
            f"{options.path}: pictures of {width} x {height} are not within {options.limit_width} x "
            f"{options.limit_height}. Raise video.limit_width and video.limit_height, or scale the video down"
        )
        raise RunnerError(ErrorCode.VIDEO_REFUSED, message)


class Footage:
    """The pictures of one file in order, and the judgement whether they reached the declared end.

    `decoded` counts the pictures, `damaged` the pictures among them that FFmpeg reported as damaged, and `lost` the
    packets that gave no picture.
    """

    def __init__(
        self,
        capture: cv2.VideoCapture,
        options: VideoSection,
        info: VideoInfo,
        fd: int,
        complaints: Complaints,
    ) -> None:
        self.decoded = self.damaged = self.lost = 0
        self._capture, self._options, self._info, self._fd = capture, options, info, fd
        self._file, self._written_to = inspect(fd), False
        self._complaints = complaints
        self._complaint = ""
        self._complaint_at = -UNSETTLED_FRAMES
        self._interval = self._nominal_interval = 1 / info.fps if info.fps else 0.0
        self._pts = 0.0
        self._image: Any = None

    def pictures(self) -> Iterator[tuple[int, float, bool]]:
        """Index, presentation time in seconds, and whether it is whole, of each picture up to the declared end.

        Raises:
            RunnerError: The video is damaged (unless `on_corrupt` is "skip"), breaks off, or has no picture.
        """
        failed = 0
        while failed < FAILED_GRABS_AT_END:
            grabbed = self._capture.grab()
            if complaint := self._complaints.take():
                self._complaint, self._complaint_at = complaint, self.decoded
            if not grabbed:
                failed += 1
                continue
            if (failed or complaint) and self._options.on_corrupt == "fail":
                raise self._broken("is damaged")
            self.lost += failed
            self.damaged += bool(complaint)
            failed = 0
            self._advance()
            # The picture that comes out while FFmpeg reports damage is the damaged one or close to it.
            yield self.decoded - 1, self._pts, not complaint
        self._look_again()
        if self.decoded == 0:
            self._check_memory()
            declared = self._info.declared_frames or "none"
            why = f"; {self._complaint}" if self._complaint else ""
            message = f"{self._options.path}: no frame could be decoded, {declared} declared{why}. Give another file"
            raise RunnerError(ErrorCode.VIDEO_NO_FRAMES, message)
        if not self._reached_end():
            raise self._broken("breaks off")

    def image(self, *, reuse: bool) -> Any:
        """The current picture as a BGR array, rotated as the container says; `reuse` overwrites the one before."""
        retrieved, image = self._capture.retrieve(self._image if reuse else None)
        if not retrieved:
            raise self._broken("cannot be converted")
        self._image = image
        check_size(image.shape[1], image.shape[0], self._options)
        return image

    def _advance(self) -> None:
        # OpenCV's position is valid after `grab`, and counts from the stream's first frame.
        pts = round(self._capture.get(cv2.CAP_PROP_POS_MSEC) / 1000, 6)
        if self.decoded and pts > self._pts:
            self._interval = pts - self._pts
        elif self.decoded and pts < self._pts:
            # Pictures come in the order of presentation, so time does not go back. But AVI holds no times, and those
            # that FFmpeg computes for reordered frames may jump, at the end to 0. So may the times of a damaged file.
            pts = round(self._pts + self._nominal_interval, 6)
        self._pts = pts
        self.decoded += 1

    def _reached_end(self) -> bool:
        """Whether the declared end was reached. Count and duration may both be wrong, so either one is enough."""
        info, file = self._info, self._file
        if file.counts_frames and info.declared_frames is not None:
            if self.decoded + self.lost >= info.declared_frames:
                return True
            if file.cut_short:
                return False
        # The last frame is taken to last as long as the one before. Half a frame is added, because the duration may
        # have been computed from a rounded count.
        if info.duration_seconds is not None and self._pts + 1.5 * self._interval >= info.duration_seconds:
            return True
        # The duration of a Matroska file may be that of its audio. Its end was reached if the file has all its bytes
        # and FFmpeg reported no damage in the last of them. The same holds for a file that declares neither.
        silent = not self._written_to and not file.cut_short and self.decoded - self._complaint_at > UNSETTLED_FRAMES
        return silent and (not file.counts_frames or info.declared_frames is None)

    def _look_again(self) -> None:
        """Inspect the file again: it may have been cut short since it was opened, or written to its end only now."""
        before, self._file = self._file, inspect(self._fd)
        self._written_to = self._file != before

    def _check_memory(self) -> None:
        """Raise MemoryError if one more picture would not have fitted into the limit.

        OpenCV reports a failed allocation of FFmpeg like the end of the video, which would then be blamed for it.
        """
        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        peak = re.search(r"VmPeak:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
        picture_bytes = 3 * self._info.width * self._info.height
        if limit != resource.RLIM_INFINITY and peak and int(peak[1]) * 1024 + picture_bytes > limit:
            raise MemoryError("no room for another picture")

    def _broken(self, how: str) -> RunnerError:
        self._check_memory()
        info = self._info
        declared = "an unknown number of frames"
        if info.declared_frames and info.duration_seconds:
            declared = f"{info.declared_frames} frames in {info.duration_seconds:.3f} s"
        changed = "the file was written to while it was read" if self._written_to else ""
        why = "".join(f"; {part}" for part in (self._complaint, _cut_short(self._file), changed) if part)
        remedy = "Copy it again" if self._file.cut_short else 'Give a whole file, or set video.on_corrupt = "skip"'
        return RunnerError(
            ErrorCode.VIDEO_TRUNCATED,
            f"{self._options.path}: {how} after {self.decoded} decoded frames, at {self._pts:.3f} s of {declared}"
            f"{why}. {remedy}",
        )

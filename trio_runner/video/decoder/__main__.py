"""The decoder child: a video file in, selected frames as JPEG records out; OpenCV and nothing else.

    python -m trio_runner.video.decoder OPTIONS

OPTIONS is the `[video]` section as JSON. Records (module `records`) leave on standard output: `Passed` as a sign that
this process has started, then `Opened` or `Fault`; then, once a `Start` line has come on standard input, the frames,
and `End` or `Fault`. Standard error must be a file that can be read back: FFmpeg's complaints are found there. What is
not foreseen is a traceback and exit code 1.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import msgspec

from trio_runner.base.leash import tie_to_parent
from trio_runner.config.sections import VideoSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import End
from trio_runner.video import messages as records
from trio_runner.video.decoder.ffmpeg import Complaints, load_ffmpeg
from trio_runner.video.decoder.footage import Footage, describe, open_capture
from trio_runner.video.decoder.identity import identify
from trio_runner.video.decoder.opening import open_file
from trio_runner.video.decoder.sampling import Sampler

SIGN_OF_LIFE_SECONDS = 0.5
STDERR_LIMIT_BYTES = 2**20


def main(arguments: list[str]) -> int:
    """Run the child; returns its exit code."""
    tie_to_parent()
    # From here on standard output is standard error: nothing that a library prints ends up among the records.
    out = os.dup(1)
    os.dup2(2, 1)
    # Python's own JSON: a path is bytes, and msgspec takes no lone surrogates for those that are not UTF-8.
    options = msgspec.convert(json.loads(arguments[0]), VideoSection)
    limit_resources(options.limit_memory_mib)
    try:
        _report_faults(options, out)
    except BrokenPipeError:
        # The daemon has what it wanted, or is gone.
        return 0
    return 0


def _report_faults(options: VideoSection, out: int) -> None:
    try:
        _run(options, out)
    except RunnerError as error:
        code, message = error.code, error.message
    except BrokenPipeError:
        raise
    except OSError as error:
        code = ErrorCode.DECODER_FAILED
        message = f"{options.path}: cannot be read: {error.strerror}. Check the storage that it lies on"
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != cv2.Error.STS_NO_MEM:
            raise
        # Not the video's own fault as its size is: threads, fragmentation and leaks count too, so the next attempt
        # may do better. Where it never does, `scenario.max_failures` ends the attempts.
        limit = f"video.limit_memory_mib = {options.limit_memory_mib}"
        message = f"{options.path}: decoding takes more memory than {limit}. Raise it, or scale the video down"
        code = ErrorCode.DECODER_FAILED
    else:
        return
    write(out, records.Fault(code=code, message=message.encode(errors="backslashreplace").decode()))


def _run(options: VideoSection, out: int) -> None:
    write(out, records.Passed(0))
    ffmpeg = load_ffmpeg()
    fd = open_file(options.path, options.root)
    complaints = Complaints()
    capture = open_capture(fd, options, complaints, ffmpeg)
    info = describe(capture, options)
    identity = identify(fd, codec=info.codec, width=info.width, height=info.height)
    write(out, records.Opened(msgspec.structs.replace(info, identity=identity)))
    line = sys.stdin.buffer.readline(4096)
    if not line:
        return
    first_frame = msgspec.json.decode(line, type=records.Start).first_frame
    footage = Footage(capture, options, info, fd, complaints)
    write(out, decode(footage, options, Emitter(out, options), first_frame))


def write(fd: int, record: records.Record, body: Any = b"") -> None:
    """Write one record whole; raises BrokenPipeError when nobody reads any more."""
    parts = [memoryview(records.pack(record, body)), memoryview(body)]
    while parts:
        written = os.writev(fd, parts)
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][written:]


def limit_resources(memory_mib: int) -> None:
    """Allow `memory_mib` of address space on top of what the imports took, and a bounded standard error."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory = pages * resource.getpagesize() + memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (STDERR_LIMIT_BYTES, STDERR_LIMIT_BYTES))


class Emitter:
    """Turns pictures into JPEG frames and writes them in order.

    One encoder thread means none: encoding on the decoding thread takes less processor time than handing over (4.4
    against 4.6 ms a frame of 1280 × 960), and lets every picture lie in the same memory.
    """

    def __init__(self, out: int, options: VideoSection) -> None:
        self._out, self._options = out, options
        self._threads = options.encoder_threads
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None
        self._pending: deque[tuple[records.FrameHeader, Future[Any]]] = deque()
        self._sequence = 0
        self._written_at = time.monotonic()

    @property
    def immediate(self) -> bool:
        """Whether a picture's memory may be used again as soon as `emit` returns."""
        return self._pool is None

    def emit(self, index: int, pts_seconds: float, image: Any) -> None:
        """Encode one picture and write what is ready, in order."""
        height, width = image.shape[:2]
        sent_width = min(width, self._options.max_width or width)
        sent_height = max(1, round(height * sent_width / width))
        header = records.FrameHeader(
            sequence=self._sequence,
            index=index,
            pts_seconds=pts_seconds,
            width=width,
            height=height,
            sent_width=sent_width,
            sent_height=sent_height,
        )
        self._sequence += 1
        if self._pool is None:
            self._write(header, self._encode(image, sent_width, sent_height))
            return
        self._pending.append((header, self._pool.submit(self._encode, image, sent_width, sent_height)))
        if len(self._pending) > self._threads:
            self._write_oldest()

    def pass_over(self, decoded: int) -> None:
        """Show a sign of life if nothing was written for a while."""
        if time.monotonic() - self._written_at > SIGN_OF_LIFE_SECONDS:
            self._write(records.Passed(decoded))

    def finish(self) -> None:
        """Write what is still being encoded."""
        while self._pending:
            self._write_oldest()

    def _write_oldest(self) -> None:
        header, jpeg = self._pending.popleft()
        self._write(header, jpeg.result())

    def _write(self, record: records.Record, body: Any = b"") -> None:
        write(self._out, record, body)
        self._written_at = time.monotonic()

    def _encode(self, image: Any, width: int, height: int) -> Any:
        if image.shape[1] != width:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        _, jpeg = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, self._options.jpeg_quality))
        return jpeg


def decode(footage: Footage, options: VideoSection, emitter: Emitter, first_frame: int) -> End:
    """Emit the selected frames from source frame `first_frame` on; raises RunnerError for a broken video."""
    sampler = Sampler(
        stride=options.stride,
        max_fps=options.max_fps,
        start_seconds=options.start_seconds,
        max_frames=options.max_frames,
    )
    try:
        for index, pts_seconds, whole in footage.pictures():
            # A picture that is not wanted is decoded, because later ones refer to it, but not converted.
            if whole and sampler.select(index, pts_seconds) and index >= first_frame:
                emitter.emit(index, pts_seconds, footage.image(reuse=emitter.immediate))
            else:
                emitter.pass_over(footage.decoded)
            if sampler.exhausted:
                break
    finally:
        emitter.finish()
    if sampler.selected == 0:
        start = f"video.start_seconds = {options.start_seconds:g}"
        message = f"{options.path}: none of {footage.decoded} frames is as late as {start}. Lower it"
        raise RunnerError(ErrorCode.VIDEO_NO_FRAMES, message)
    skipped = footage.damaged + footage.lost
    return End(decoded=footage.decoded, selected=sampler.selected, skipped_corrupt=skipped)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

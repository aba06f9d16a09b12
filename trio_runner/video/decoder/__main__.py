"""The decoder child: a video file in, selected frames as JPEG records out; OpenCV and nothing else.

    python -m trio_runner.video.decoder OPTIONS

OPTIONS is the `[video]` section as JSON. The child writes records (module `messages`) to standard output: `Passed` as
soon as it has started, then `Opened` or `Fault`. After a `Start` line on standard input it writes the frames, and then
`End` or `Fault`. Standard error must be a file that can be read back, because FFmpeg's messages are found there. Any
other error is a traceback and exit code 1.
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
from trio_runner.video import messages
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
    # From here on standard output is standard error, so that no text which a library prints gets between the records.
    out = os.dup(1)
    os.dup2(2, 1)
    # Python's own JSON, because a path that is not UTF-8 has lone surrogates, and msgspec refuses those.
    options = msgspec.convert(json.loads(arguments[0]), VideoSection)
    limit_resources(options.limit_memory_mib)
    try:
        _report_faults(options, out)
    except BrokenPipeError:
        # The daemon wants no more frames, or is gone.
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
        # This is not always the video's fault: threads, fragmentation and leaks take memory, too. The next attempt may
        # succeed. If none ever does, `scenario.max_failures` ends the attempts.
        limit = f"video.limit_memory_mib = {options.limit_memory_mib}"
        message = f"{options.path}: decoding takes more memory than {limit}. Raise it, or scale the video down"
        code = ErrorCode.DECODER_FAILED
    else:
        return
    write(out, messages.Fault(code=code, message=message.encode(errors="backslashreplace").decode()))


def _run(options: VideoSection, out: int) -> None:
    write(out, messages.Passed(0))
    ffmpeg = load_ffmpeg()
    fd = open_file(options.path, options.root)
    complaints = Complaints()
    capture = open_capture(fd, options, complaints, ffmpeg)
    info = describe(capture, options)
    identity = identify(fd, codec=info.codec, width=info.width, height=info.height)
    write(out, messages.Opened(msgspec.structs.replace(info, identity=identity)))
    line = sys.stdin.buffer.readline(4096)
    if not line:
        return
    first_frame = msgspec.json.decode(line, type=messages.Start).first_frame
    footage = Footage(capture, options, info, fd, complaints)
    write(out, decode(footage, options, Emitter(out, options), first_frame))


def write(fd: int, record: messages.Record, body: Any = b"") -> None:
    """Write one whole record; raises BrokenPipeError when nobody reads any more."""
    parts = [memoryview(messages.pack(record, body)), memoryview(body)]
    while parts:
        written = os.writev(fd, parts)
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][written:]


def limit_resources(memory_mib: int) -> None:
    """Allow `memory_mib` more address space than the imports have taken, and bound the size of standard error."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory = pages * resource.getpagesize() + memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (STDERR_LIMIT_BYTES, STDERR_LIMIT_BYTES))


class Emitter:
    """Turns pictures into JPEG frames and writes them in order.

    With one encoder thread the decoding thread encodes. That takes less processor time than passing the picture to
    another thread (4.4 against 4.6 ms for a frame of 1280 × 960), and every picture can use the same memory.
    """

    def __init__(self, out: int, options: VideoSection) -> None:
        self._out, self._options = out, options
        self._threads = options.encoder_threads
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None
        self._pending: deque[tuple[messages.FrameHeader, Future[Any]]] = deque()
        self._sequence = 0
        self._written_at = time.monotonic()

    @property
    def immediate(self) -> bool:
        """Whether a picture's memory may be used again as soon as `emit` returns."""
        return self._pool is None

    def emit(self, index: int, pts_seconds: float, image: Any) -> None:
        """Encode one picture, and write the frames that are ready, in order."""
        height, width = image.shape[:2]
        sent_width = min(width, self._options.max_width or width)
        sent_height = max(1, round(height * sent_width / width))
        header = messages.FrameHeader(
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
        """Write a sign of life if nothing was written for a while."""
        if time.monotonic() - self._written_at > SIGN_OF_LIFE_SECONDS:
            self._write(messages.Passed(decoded))

    def finish(self) -> None:
        """Write the frames that are still being encoded."""
        while self._pending:
            self._write_oldest()

    def _write_oldest(self) -> None:
        header, jpeg = self._pending.popleft()
        self._write(header, jpeg.result())

    def _write(self, record: messages.Record, body: Any = b"") -> None:
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
            # A picture that is not selected is decoded, because later ones refer to it, but it is not converted.
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

"""The daemon's side of the decoder child: spawn it, read its frames, end it, and explain its death."""

from __future__ import annotations

import json
import logging
import signal
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import msgspec
import trio

from trio_runner.base.text import printable
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import End, Frame, VideoInfo
from trio_runner.video import messages
from trio_runner.video.process import Child, closing, ending

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio_runner.config.sections import VideoSection
    from trio_runner.config.tensor import TensorSection
    from trio_runner.video.report import Report

logger = logging.getLogger(__name__)

START_ALLOWANCE_SECONDS = 20.0
"""Added to `frame_timeout_seconds` until the child has started: a busy machine may load Python and libraries slowly."""

PIPE_BYTES = 2**20

CHILD_ENVIRONMENT = {
    # By default numpy starts a BLAS thread for every core, and glibc gives each thread a heap of its own.
    "OPENBLAS_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
    # By default glibc returns the memory of each picture to the kernel and asks for it again, page by page. With these
    # two a frame of 640 × 480 takes an eighth less CPU. The first is the highest number that glibc accepts.
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(64 * 2**20),
}


class Video:
    """An open video: its declared properties, and its selected frames one by one."""

    info: VideoInfo

    def __init__(self, options: VideoSection, child: _Child, on_passed: Callable[[], None], name: str) -> None:
        self._options, self._child, self._on_passed, self._name = options, child, on_passed, name

    async def open(self) -> None:
        """Wait until the child has opened the file, and set `info`; raises RunnerError."""
        timeout_seconds = self._options.frame_timeout_seconds
        opened = await self._next(timeout_seconds + START_ALLOWANCE_SECONDS)
        while isinstance(opened, messages.Passed):
            opened = await self._next(timeout_seconds)
        if not isinstance(opened, messages.Opened):
            raise _malformed(self._name, f"it began with {type(opened).__name__}")
        self.info = opened.info

    def start(self, first_frame: int, *, frames_stored: int = 0, last_pts_seconds: float | None = None) -> None:
        """Ask for the selected frames from source frame `first_frame` on; called once.

        Args:
            first_frame: The number after that of the last stored frame; 0 where nothing is stored.
            frames_stored: How many frames are stored.
            last_pts_seconds: Presentation time of the last stored frame, from which the child finds the place in the
                file. Where it is not known, the child decodes the video from its start.
        """
        start = messages.Start(first_frame, frames_stored, last_pts_seconds)
        self._child.send(msgspec.json.encode(start) + b"\n")

    async def receive(self) -> Frame | End:
        """The next selected frame, or the end of the video.

        Raises:
            RunnerError: A `video_*` code when the video is at fault, a `decoder_*` code when the child is.
        """
        while True:
            record = await self._next(self._options.frame_timeout_seconds)
            match record:
                case messages.FrameHeader():
                    return Frame(**msgspec.structs.asdict(record), content=self._child.body)
                case End():
                    return record
                case messages.Passed():
                    self._on_passed()
                case messages.Note():
                    logger.info("%s: %s", self._name, record.message)
                case _:
                    raise _malformed(self._name, "it opened the file twice")

    async def inspect(
        self, command: messages.Inspect, on_decoded: Callable[[int], None] = lambda _: None
    ) -> tuple[Report, bytes]:
        """In place of `start` and `receive`: the description of the video, and its contact sheet as an image file.

        Args:
            command: The frames on the sheet, and how far to read.
            on_decoded: Called now and then with the number of frames read so far.

        Raises:
            RunnerError: As `receive` does. What is wrong with the video's frames is in the description.
        """
        self._child.send(msgspec.json.encode(command) + b"\n")
        while True:
            record = await self._next(self._options.frame_timeout_seconds)
            match record:
                case messages.Inspected():
                    return self._named(record.report), self._child.body
                case messages.Passed():
                    on_decoded(record.decoded)
                case _:
                    raise _malformed(self._name, "it was asked for a description and sent something else")

    def _named(self, report: Report) -> Report:
        """The description with the video's name in place of the path of a copy."""
        problem = report.problem.replace(self._options.path, self._name)
        return msgspec.structs.replace(report, path=printable(self._name), problem=problem)

    async def _next(self, timeout_seconds: float) -> messages.Record:
        path = self._name
        record = None
        try:
            with trio.move_on_after(timeout_seconds) as patience:
                record = await self._child.read_record()
        except messages.BadRecordError as error:
            raise _malformed(path, str(error)) from error
        if patience.cancelled_caught:
            await self._child.kill()
            message = (
                f"{path}: nothing came from the decoder for {timeout_seconds:g} s. Check that the file's storage "
                "answers, or raise video.frame_timeout_seconds"
            )
            raise RunnerError(ErrorCode.DECODER_STALLED, message)
        if record is None:
            raise await self._explain_death()
        if isinstance(record, messages.Fault):
            # The child knows the file that it reads, and nothing of a URL that the file is a copy of.
            raise RunnerError(record.code, record.message.replace(self._options.path, self._name))
        return record

    async def _explain_death(self) -> RunnerError:
        status = await self._child.wait()
        how, output = ending(status), self._child.last_output()
        if status is not None and status < 0:
            hint = ", as the kernel does when memory runs out" if status == -signal.SIGKILL else ""
            return RunnerError(ErrorCode.DECODER_KILLED, f"{self._name}: the decoder {how}{hint}{output}")
        remedy = f"If every video ends like this, reinstall trio_runner into {sys.executable}"
        return RunnerError(ErrorCode.DECODER_FAILED, f"{self._name}: the decoder {how}{output}. {remedy}")


@asynccontextmanager
async def spawn_decoder(
    options: VideoSection,
    *,
    tensor: TensorSection | None = None,
    on_passed: Callable[[], None] = lambda: None,
    name: str = "",
) -> AsyncIterator[Video]:
    """Start a child that opens the video, and end it when the block ends.

    The child takes a while to start: open other clients first and await `Video.open` afterwards. Enter this on the main
    thread, because the kernel ties a child to the thread that spawned it.

    Args:
        options: The video's path, the frames to select, and the limits.
        tensor: The form of the tensor that is made of each picture; None for a JPEG.
        on_passed: Called now and then while `receive` waits and no decoded frame is selected: an attempt that resumes
            passes over all frames that an earlier attempt has stored.
        name: What messages call the video, if not by the path that is opened.

    Raises:
        RunnerError: The child cannot be started.
    """
    try:
        child = _Child(options, tensor)
    except OSError as error:
        message = (
            f"{options.path}: the decoder cannot be started with {sys.executable or 'no Python'}: {error.strerror}. "
            "Check that it is there, and this process's limits on processes, open files and memory"
        )
        raise RunnerError(ErrorCode.DECODER_FAILED, message) from error
    async with closing(child):
        yield Video(options, child, on_passed, name or options.path)


def _malformed(path: str, what: str) -> RunnerError:
    return RunnerError(ErrorCode.DECODER_FAILED, f"{path}: the decoder sent something that is no record: {what}")


class _Child(Child):
    """The decoder's process, and its records."""

    body = b""
    """The body of the last record that was read."""

    def __init__(self, options: VideoSection, tensor: TensorSection | None) -> None:
        given = [options] if tensor is None else [options, tensor]
        arguments = ["trio_runner.video.decoder", *(json.dumps(msgspec.to_builtins(each)) for each in given)]
        # In a larger pipe the child can go on while the daemon is busy.
        super().__init__(arguments, environment=CHILD_ENVIRONMENT | _picture_limits(options), pipe_bytes=PIPE_BYTES)

    async def read_record(self) -> messages.Record | None:
        """The next record, None at the end of the pipe; raises BadRecordError for anything else."""
        prefix = await self.read(messages.PREFIX.size)
        if not prefix:
            return None
        header_bytes, body_bytes = messages.unpack_prefix(prefix)
        header = await self.read(header_bytes)
        self.body = await self.read(body_bytes)
        # A pipe that ends within a record means that the child died, like one that ends between two.
        if len(header) < header_bytes or len(self.body) < body_bytes:
            return None
        return messages.unpack_header(header)


def _picture_limits(options: VideoSection) -> dict[str, str]:
    """The variables by which OpenCV refuses an image file over the limits before it decodes it."""
    # The limits are those of the picture as it is shown. A file may hold it turned by 90 degrees.
    longest = str(max(options.limit_width, options.limit_height))
    return {
        "OPENCV_IO_MAX_IMAGE_WIDTH": longest,
        "OPENCV_IO_MAX_IMAGE_HEIGHT": longest,
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(options.limit_width * options.limit_height),
    }

"""The daemon's side of the decoder child: spawn it, read its frames, end it, and explain its death."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
from contextlib import ExitStack, asynccontextmanager, suppress
from typing import TYPE_CHECKING

import msgspec
import trio

from trio_runner.base.text import printable, signal_name
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import End, Frame, VideoInfo
from trio_runner.video import messages

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio_runner.config.sections import VideoSection
    from trio_runner.video.report import Report

logger = logging.getLogger(__name__)

START_ALLOWANCE_SECONDS = 20.0
"""Added to `frame_timeout_seconds` until the child has started: a busy machine may load Python and libraries slowly."""

END_SECONDS = 3.0
"""How long a child may take to end after it was killed or has closed its pipe."""

PIPE_BYTES = 2**20
READ_BYTES = 2**18
STDERR_TAIL_BYTES = 4096
STDERR_TAIL_LINES = 6

INHERITED_ENVIRONMENT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_", "LD_LIBRARY_PATH", "PYTHON", "COVERAGE_")
"""Prefixes of the environment variables that the child inherits. It reads hostile files, so it is given no secret."""

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
                    return Frame(**msgspec.structs.asdict(record), jpeg=self._child.body)
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
        tail = self._child.stderr_tail()
        output = f": {tail}" if tail else ""
        if status is not None and status < 0:
            hint = ", as the kernel does when memory runs out" if status == -signal.SIGKILL else ""
            message = f"{self._name}: the decoder was killed by signal {signal_name(-status)}{hint}{output}"
            return RunnerError(ErrorCode.DECODER_KILLED, message)
        how = "closed its pipe and lived on" if status is None else f"ended early with exit code {status}"
        remedy = f"If every video ends like this, reinstall trio_runner into {sys.executable}"
        return RunnerError(ErrorCode.DECODER_FAILED, f"{self._name}: the decoder {how}{output}. {remedy}")


@asynccontextmanager
async def spawn_decoder(
    options: VideoSection, *, on_passed: Callable[[], None] = lambda: None, name: str = ""
) -> AsyncIterator[Video]:
    """Start a child that opens the video, and end it when the block ends.

    The child takes a while to start: open other clients first and await `Video.open` afterwards. Enter this on the main
    thread, because the kernel ties a child to the thread that spawned it.

    Args:
        options: The video's path, the frames to select, and the limits.
        on_passed: Called now and then while `receive` waits and no decoded frame is selected: an attempt that resumes
            passes over all frames that an earlier attempt has stored.
        name: What messages call the video, if not by the path that is opened.

    Raises:
        RunnerError: The child cannot be started.
    """
    try:
        child = _Child(options)
    except OSError as error:
        message = (
            f"{options.path}: the decoder cannot be started with {sys.executable or 'no Python'}: {error.strerror}. "
            "Check that it is there, and this process's limits on processes, open files and memory"
        )
        raise RunnerError(ErrorCode.DECODER_FAILED, message) from error
    try:
        yield Video(options, child, on_passed, name or options.path)
    finally:
        with trio.move_on_after(2 * END_SECONDS, shield=True):
            await child.aclose()


def _malformed(path: str, what: str) -> RunnerError:
    return RunnerError(ErrorCode.DECODER_FAILED, f"{path}: the decoder sent something that is no record: {what}")


class _Child:
    """The process and its pipes."""

    def __init__(self, options: VideoSection) -> None:
        with ExitStack() as ours:
            with ExitStack() as theirs:
                stdin, self._commands = pipe(theirs, ours)
                frames, stdout = pipe(ours, theirs)
                # Standard error is a file in memory. Nobody has to drain it, and this process can still read it after
                # the child's death.
                self._stderr = os.memfd_create("decoder-stderr")
                ours.callback(os.close, self._stderr)
                # In a larger pipe the child can go on while the daemon is busy. The kernel may refuse the size.
                with suppress(OSError):
                    fcntl.fcntl(frames, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
                self._process = _spawn(options, stdin, stdout, self._stderr)
            # With the child's ends of the pipes closed, a descriptor is free again for this one.
            self._pidfd = os.pidfd_open(self._process.pid)
            ours.pop_all()
        self._records = trio.lowlevel.FdStream(frames)
        self._buffer = bytearray()
        self.body = b""
        """The body of the last record that was read."""

    def send(self, line: bytes) -> None:
        """Write a line that fits into an empty pipe. If the child is dead, `read_record` finds that out."""
        with suppress(BrokenPipeError):
            os.write(self._commands, line)

    async def read_record(self) -> messages.Record | None:
        """The next record, None at the end of the pipe; raises BadRecordError for anything else."""
        prefix = await self._read(messages.PREFIX.size)
        if not prefix:
            return None
        header_bytes, body_bytes = messages.unpack_prefix(prefix)
        header = await self._read(header_bytes)
        self.body = await self._read(body_bytes)
        # A pipe that ends within a record means that the child died, like one that ends between two.
        if len(header) < header_bytes or len(self.body) < body_bytes:
            return None
        return messages.unpack_header(header)

    async def _read(self, count: int) -> bytes:
        """`count` bytes, or none if the pipe ends before."""
        while len(self._buffer) < count:
            chunk = await self._records.receive_some(max(READ_BYTES, count - len(self._buffer)))
            if not chunk:
                return b""
            self._buffer += chunk
        with memoryview(self._buffer) as view:
            taken = bytes(view[:count])
        del self._buffer[:count]
        return taken

    async def wait(self) -> int | None:
        """The exit status, or minus the signal, of a child about to end; None if it had to be killed."""
        with trio.move_on_after(END_SECONDS):
            await trio.lowlevel.wait_readable(self._pidfd)
        if self._process.poll() is None:
            await self.kill()
            return None
        return self._process.returncode

    async def kill(self) -> None:
        """Kill and reap the child if it still runs; bounded, and shielded from cancellation."""
        if self._process.poll() is None:
            self._process.kill()
            with trio.move_on_after(END_SECONDS, shield=True):
                await trio.lowlevel.wait_readable(self._pidfd)
            self._process.poll()

    def stderr_tail(self) -> str:
        """The last lines that the child wrote to standard error, joined into one."""
        size = os.fstat(self._stderr).st_size
        tail = os.pread(self._stderr, STDERR_TAIL_BYTES, max(0, size - STDERR_TAIL_BYTES))
        text = tail.decode(errors="replace")
        # A traceback's lines of ^^^^ and ~~~~ underline the failing expression, and are of no use here.
        lines = [line.strip() for line in text.splitlines() if line.strip(" ^~")]
        return " | ".join(lines[-STDERR_TAIL_LINES:])

    async def aclose(self) -> None:
        """End the child and close everything."""
        try:
            await self.kill()
        finally:
            for fd in (self._commands, self._pidfd, self._stderr):
                os.close(fd)
            await trio.aclose_forcefully(self._records)


def pipe(reader: ExitStack, writer: ExitStack) -> tuple[int, int]:
    """Both ends of a pipe, each closed with its stack."""
    read_end, write_end = os.pipe()
    reader.callback(os.close, read_end)
    writer.callback(os.close, write_end)
    return read_end, write_end


def _picture_limits(options: VideoSection) -> dict[str, str]:
    """The variables by which OpenCV refuses an image file over the limits before it decodes it."""
    # The limits are those of the picture as it is shown. A file may hold it turned by 90 degrees.
    longest = str(max(options.limit_width, options.limit_height))
    return {
        "OPENCV_IO_MAX_IMAGE_WIDTH": longest,
        "OPENCV_IO_MAX_IMAGE_HEIGHT": longest,
        "OPENCV_IO_MAX_IMAGE_PIXELS": str(options.limit_width * options.limit_height),
    }


def _spawn(options: VideoSection, stdin: int, stdout: int, stderr: int) -> subprocess.Popen[bytes]:
    environment = {name: value for name, value in os.environ.items() if name.startswith(INHERITED_ENVIRONMENT)}
    arguments = ["-X", "faulthandler", "-m", "trio_runner.video.decoder", json.dumps(msgspec.to_builtins(options))]
    # Ctrl-C and systemd signal the whole process group, but the daemon decides when the child ends: it may still want
    # the frames under way. A signal that is blocked here stays blocked in the child, from its first instruction on.
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
    try:
        return subprocess.Popen(
            [sys.executable or "", *arguments],
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            env=environment | CHILD_ENVIRONMENT | _picture_limits(options),
        )
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)

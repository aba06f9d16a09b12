"""The daemon's side of the decoder child: opening, the errors when the child dies, and that no process is left."""

from __future__ import annotations

import os
import resource
import select
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import msgspec
import psutil
import pytest
import trio

from tests.support import clips
from tests.support.harness import PATIENCE_SECONDS
from tests.support.makers import open_video
from tests.support.watching import watch
from trio_runner.config.sections import VideoSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import End, Frame, VideoInfo
from trio_runner.video import messages
from trio_runner.video.child import Video

INFO = VideoInfo(codec="h264", width=4, height=2, fps=25.0)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.pixel_coded(tmp_path_factory.mktemp("clips") / "clip.mp4")


@pytest.fixture(scope="module")
def long_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """More JPEG bytes than the pipe and the reader's buffer hold, so that its child is never done by itself."""
    return clips.pixel_coded(tmp_path_factory.mktemp("clips") / "long.mp4", frames=400, size=(640, 480))


@pytest.fixture
def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PretendChild:
    return PretendChild(tmp_path, monkeypatch)


class PretendChild:
    """Puts a shell script in the child's place."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._directory, self._monkeypatch = directory, monkeypatch

    def __call__(self, script: str, output: bytes = b"") -> None:
        (self._directory / "output").write_bytes(output)
        program = self._directory / "child"
        program.write_text(f"#!/bin/sh\ncat {self._directory}/output\n{script}\n")
        program.chmod(0o755)
        self._monkeypatch.setattr(sys, "executable", str(program))


def pid_of(video: Video) -> int:
    return video._child._process.pid


def reaped(pid: int) -> bool:
    """The child is reaped, too: its pid is free."""
    return not Path(f"/proc/{pid}").exists()


def open_descriptors() -> set[str]:
    return {entry.name for entry in Path("/proc/self/fd").iterdir()}


async def failure(video: Video) -> RunnerError:
    """Receive until that raises an error."""
    while True:
        try:
            item = await video.receive()
        except RunnerError as error:
            return error
        assert isinstance(item, Frame)


def options(path: Path, **more: float) -> VideoSection:
    return msgspec.convert({"path": str(path)} | more, VideoSection)


async def test_open_returns_once_the_video_is_open(clip: Path) -> None:
    async with open_video(options(clip)) as video:
        assert (video.info.codec, video.info.width, video.info.height) == ("h264", 320, 240)
        assert (video.info.fps, video.info.declared_frames, video.info.duration_seconds) == (25.0, 60, 2.4)


async def test_nothing_stays_behind(clip: Path) -> None:
    before = open_descriptors()
    async with open_video(options(clip)) as video:
        pid = pid_of(video)
        video.start(0)
        await video.receive()
    assert reaped(pid)
    assert open_descriptors() == before


async def test_a_child_that_stops_answering_is_stalled_and_killed(long_clip: Path) -> None:
    async with open_video(options(long_clip, frame_timeout_seconds=0.5)) as video:
        video.start(0)
        await video.receive()
        os.kill(pid_of(video), signal.SIGSTOP)
        error = await failure(video)
        assert error.code is ErrorCode.DECODER_STALLED
        assert "0.5 s" in error.message
        assert "video.frame_timeout_seconds" in error.message
        assert reaped(pid_of(video))


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
async def test_a_killed_child_is_named_with_its_signal(number: signal.Signals, long_clip: Path) -> None:
    async with open_video(options(long_clip)) as video:
        video.start(0)
        await video.receive()
        os.kill(pid_of(video), number)
        error = await failure(video)
    assert error.code is ErrorCode.DECODER_KILLED
    assert f"signal {number.name.removeprefix('SIG')}" in error.message
    # Python's fault handler has written where the child was.
    assert number == signal.SIGKILL or "footage.py" in error.message or "__main__.py" in error.message


async def test_a_child_killed_before_the_start_is_found_by_receive(clip: Path) -> None:
    async with open_video(options(clip)) as video:
        os.kill(pid_of(video), signal.SIGKILL)
        assert await video._child.wait() == -signal.SIGKILL
        video.start(0)
        assert (await failure(video)).code is ErrorCode.DECODER_KILLED


async def test_signals_meant_for_the_whole_group_leave_the_child_to_the_daemon(clip: Path) -> None:
    async with open_video(options(clip)) as video:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            os.kill(pid_of(video), number)
        video.start(0)
        indices = []
        while isinstance(item := await video.receive(), Frame):
            indices.append(item.index)
    assert indices == list(range(60))


async def test_spawning_leaves_the_daemons_own_signals_alone(clip: Path) -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, set())
    async with open_video(options(clip)):
        assert signal.pthread_sigmask(signal.SIG_BLOCK, set()) == before


@pytest.mark.parametrize("spare", range(9))
async def test_where_descriptors_run_out_nothing_leaks(spare: int, clip: Path) -> None:
    before, children = open_descriptors(), psutil.Process().children()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    held: list[int] = []
    try:
        # All descriptors but a few are taken, wherever the next free ones are.
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(before) + 64, hard))
        with suppress(OSError):
            while True:
                held.append(os.open(os.devnull, os.O_RDONLY))
        for _ in range(spare):
            os.close(held.pop())
        error = (await watch(clip, max_frames=1)).error
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for fd in held:
            os.close(fd)
    # Two pipes, standard error, and Popen's pipe for a failed exec, for which not every Python needs two.
    assert (error is None) == (spare >= 7) or spare in {5, 6}
    assert error is None or (error.code is ErrorCode.DECODER_FAILED and "Too many open files" in error.message)
    assert open_descriptors() == before
    assert psutil.Process().children() == children


async def test_an_interpreter_that_is_gone_is_named(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python3")
    error = (await watch(clip)).error
    assert error is not None
    assert error.code is ErrorCode.DECODER_FAILED
    assert "/nowhere/python3: No such file or directory. Check" in error.message


async def test_a_cancelled_receive_ends_the_child(long_clip: Path) -> None:
    with trio.CancelScope() as scope:
        async with open_video(options(long_clip)) as video:
            pid = pid_of(video)
            scope.cancel()
            await video.receive()
    assert scope.cancelled_caught
    assert reaped(pid)


async def test_a_video_can_be_cancelled_while_it_opens(pretend: PretendChild, clip: Path) -> None:
    pretend("exec sleep 1000")
    with trio.move_on_after(0.1) as scope:
        async with open_video(options(clip)):
            pass
    assert scope.cancelled_caught


def test_the_child_dies_with_a_daemon_that_is_killed(long_clip: Path) -> None:
    script = f"""
import os, signal, trio
from trio_runner.config.sections import VideoSection
from trio_runner.video.child import spawn_decoder

async def main():
    async with spawn_decoder(VideoSection(path={str(long_clip)!r})) as video:
        await video.open()
        video.start(0)
        await video.receive()
        # A stopped process notices no broken pipe: only the kernel can end it.
        os.kill(video._child._process.pid, signal.SIGSTOP)
        print(video._child._process.pid, flush=True)
        await trio.sleep_forever()

trio.run(main)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout is not None
        pid = int(daemon.stdout.readline())
        child = os.pidfd_open(pid)
        daemon.kill()
        daemon.wait(PATIENCE_SECONDS)
    try:
        readable, _, _ = select.select([child], [], [], PATIENCE_SECONDS)
        assert readable == [child]
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(child, signal.SIGKILL)
        os.close(child)


async def test_the_child_ends_by_itself_when_nobody_reads_or_asks(clip: Path) -> None:
    async with open_video(options(clip)) as video:
        child = video._child
        os.close(child._commands)
        child._commands = os.dup(child._stderr)
        with trio.fail_after(PATIENCE_SECONDS):
            assert await child.wait() == 0


async def test_the_environment_of_the_child_holds_no_secret(clip: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGPASSWORD", "canary-6d1f")
    async with open_video(options(clip)) as video:
        environment = await trio.Path(f"/proc/{pid_of(video)}/environ").read_text()
    assert "canary-6d1f" not in environment
    assert "OPENBLAS_NUM_THREADS=1" in environment


# Output of a child that is no video.


def header(record: messages.Record, body: bytes = b"") -> bytes:
    return messages.pack(record, body) + body


async def test_an_exit_code_is_named_with_the_last_lines_of_standard_error(pretend: PretendChild, clip: Path) -> None:
    pretend("seq 1 2000 >&2; echo the last words >&2; exit 3")
    error = (await watch(clip)).error
    assert error is not None
    assert error.code is ErrorCode.DECODER_FAILED
    assert "exit code 3" in error.message
    assert "the last words" in error.message
    assert len(error.message) < 500


async def test_a_child_that_sends_nothing_is_stalled(
    pretend: PretendChild, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_runner.video.child.START_ALLOWANCE_SECONDS", 0.1)
    pretend("exec sleep 1000")
    error = (await watch(clip, frame_timeout_seconds=0.1)).error
    assert error is not None
    assert error.code is ErrorCode.DECODER_STALLED


async def test_what_starting_takes_is_not_held_against_the_file(
    pretend: PretendChild, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_runner.video.child.START_ALLOWANCE_SECONDS", 10 * PATIENCE_SECONDS)
    pretend("exec sleep 1000", header(messages.Passed(0)))
    error = (await watch(clip, frame_timeout_seconds=0.1)).error
    assert error is not None
    assert error.code is ErrorCode.DECODER_STALLED
    assert "for 0.1 s" in error.message


@pytest.mark.parametrize("output", [
    b"Segmentation fault\n" * 10,
    messages.PREFIX.pack(7, 0) + b"no json",
    messages.PREFIX.pack(2, 0) + b"{}",
    messages.PREFIX.pack(10, 2**31),
    header(End(decoded=0, selected=0, skipped_corrupt=0)),
    header(messages.Opened(INFO)) * 2,
])  # fmt: skip
async def test_what_is_no_record_is_a_failure(output: bytes, pretend: PretendChild, clip: Path) -> None:
    pretend("exec sleep 1000", output)
    error = (await watch(clip)).error
    assert error is not None
    assert error.code is ErrorCode.DECODER_FAILED
    assert "no record" in error.message


@pytest.mark.parametrize("cut", [1, 9, 60])
async def test_a_record_that_breaks_off_is_a_death(cut: int, pretend: PretendChild, clip: Path) -> None:
    frame = messages.FrameHeader(sequence=0, index=0, pts_seconds=0, width=4, height=2, sent_width=4, sent_height=2)
    pretend("exit 0", header(messages.Opened(INFO)) + header(frame, b"jpeg" * 100)[:-cut])
    error = (await watch(clip)).error
    assert error is not None
    assert error.code is ErrorCode.DECODER_FAILED
    assert "exit code 0" in error.message


async def test_a_child_that_closes_its_pipe_and_lives_on_is_ended(
    pretend: PretendChild, clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("trio_runner.video.process.END_SECONDS", 0.2)
    pretend("exec sleep 1000 >&2")
    error = (await watch(clip)).error
    assert error is not None
    assert error.code is ErrorCode.DECODER_FAILED
    assert "lived on" in error.message


async def test_a_fault_keeps_its_code_and_signs_of_life_are_passed_on(pretend: PretendChild, clip: Path) -> None:
    fault = messages.Fault(code=ErrorCode.VIDEO_TRUNCATED, message="clip: breaks off")
    passed = header(messages.Passed(100)) + header(messages.Passed(200))
    pretend("cat >/dev/null", header(messages.Opened(INFO)) + passed + header(fault))
    signs: list[None] = []
    async with open_video(options(clip), on_passed=lambda: signs.append(None)) as video:
        video.start(300)
        error = await failure(video)
    assert (error.code, error.message) == (fault.code, fault.message)
    assert len(signs) == 2


async def test_records_arrive_whole_however_they_are_cut(pretend: PretendChild, clip: Path) -> None:
    bodies = [bytes([number]) * size for number, size in enumerate([0, 1, 70_000, 3, 2_000_000, 300_000])]
    output = header(messages.Opened(INFO))
    for number, body in enumerate(bodies):
        frame = messages.FrameHeader(
            sequence=number,
            index=number,
            pts_seconds=number / 25,
            width=4,
            height=2,
            sent_width=4,
            sent_height=2,
            inset=(0, 0, 2, 2),
        )
        output += header(frame, body)
    end = End(decoded=6, selected=6, skipped_corrupt=0)
    pretend("cat >/dev/null", output + header(end))
    shown = await watch(clip)
    assert [frame.content for frame in shown.frames] == bodies
    assert shown.end == end

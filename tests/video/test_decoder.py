"""What comes out of which file: pictures, numbers, times, and how it ends."""

from __future__ import annotations

import os
import re
import shutil
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import cv2
import msgspec
import numpy as np
import pytest

from tests.cases.video.damage import write_flipped
from tests.support import clips
from tests.support.watching import picture, watch
from trio_runner.config.sections import VideoSection
from trio_runner.errors import ErrorCode
from trio_runner.model import End
from trio_runner.video import messages
from trio_runner.video.decoder import emitter
from trio_runner.video.decoder.formats import conversion

if TYPE_CHECKING:
    from collections.abc import Callable

MakeClip = Any
DECODABLE = sorted(set(clips.INTACT) - {"stream.mjpeg"})


@pytest.fixture(scope="session")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A clip of `clips` by its name, made once a session."""
    directory = tmp_path_factory.mktemp("clips")
    makers = clips.INTACT | clips.EMPTY | clips.DAMAGED

    def make(name: str) -> Path:
        path = directory / name
        return path if path.exists() else makers[name](path)

    return make


@pytest.fixture(scope="session")
def clip(make_clip: Callable[[str], Path]) -> Path:
    """A whole clip of 60 frames at 25 a second."""
    return make_clip("h264.mp4")


@pytest.mark.parametrize("name", DECODABLE)
async def test_every_frame_comes_with_its_index_time_and_picture(name: str, make_clip: MakeClip) -> None:
    path = make_clip(name)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        times = [float(frame.time or 0) for frame in container.decode(stream)]
    shown = await watch(path)
    assert shown.error is None
    assert shown.indices == shown.numbers == list(range(len(times)))
    assert [frame.pts_seconds for frame in shown.frames] == pytest.approx(times, abs=1e-6)
    assert [frame.sequence for frame in shown.frames] == shown.indices
    assert shown.end == End(decoded=len(times), selected=len(times), skipped_corrupt=0)
    assert shown.info is not None
    for frame in shown.frames:
        height, width = picture(frame).shape[:2]
        assert (frame.width, frame.height) == (frame.sent_width, frame.sent_height) == (width, height)
        assert sorted((width, height)) == sorted((shown.info.width, shown.info.height))


async def test_reordered_frames_in_a_container_without_times_keep_their_order(tmp_path: Path) -> None:
    path = tmp_path / "reordered.avi"
    clips.pixel_coded(path, codec="libx264")
    shown = await watch(path)
    assert shown.numbers == shown.indices == list(range(60))
    times = [frame.pts_seconds for frame in shown.frames]
    assert times == sorted(set(times))


@pytest.mark.parametrize(("options", "expected"), [
    ({"stride": 7}, list(range(0, 60, 7))),
    ({"max_fps": 25}, list(range(60))),
    ({"max_fps": 12.5}, list(range(0, 60, 2))),
    ({"max_fps": 5}, list(range(0, 60, 5))),
    ({"start_seconds": 1.0}, list(range(25, 60))),
    ({"start_seconds": 0.99, "stride": 10}, [25, 35, 45, 55]),
    ({"max_frames": 4, "stride": 2}, [0, 2, 4, 6]),
])  # fmt: skip
async def test_sampling(options: dict[str, Any], expected: list[int], clip: Path) -> None:
    shown = await watch(clip, **options)
    assert shown.indices == shown.numbers == expected
    assert shown.end is not None
    assert shown.end.selected == len(expected)


async def test_max_fps_on_a_variable_rate(make_clip: MakeClip) -> None:
    times = [time / 1000 for time in clips.IRREGULAR_MS]
    expected, last = [], -1
    for index, time in enumerate(times):
        if int(time * 5) > last:
            expected.append(index)
            last = int(time * 5)
    assert (await watch(make_clip("vfr.mkv"), max_fps=5)).numbers == expected


@pytest.mark.parametrize("options", [{}, {"max_fps": 5}, {"stride": 4, "max_frames": 9}], ids=str)
async def test_an_attempt_that_resumes_gives_the_same_frames(options: dict[str, Any], clip: Path) -> None:
    whole = await watch(clip, **options)
    for first_frame in (1, 30, 59, 60, 1000):
        rest = await watch(clip, first_frame, **options)
        expected = [frame for frame in whole.frames if frame.index >= first_frame]
        assert rest.frames == [replace(frame, sequence=number) for number, frame in enumerate(expected)]
        assert rest.end == whole.end


@pytest.mark.parametrize(("max_width", "sent"), [(160, (160, 120)), (320, (320, 240)), (1000, (320, 240))])
async def test_max_width_scales_down_and_never_up(max_width: int, sent: tuple[int, int], clip: Path) -> None:
    shown = await watch(clip, max_width=max_width, max_frames=3)
    assert shown.numbers == [0, 1, 2]
    for frame in shown.frames:
        assert (frame.width, frame.height) == (320, 240)
        assert (frame.sent_width, frame.sent_height) == picture(frame).shape[1::-1] == sent


async def test_threads_change_nothing(clip: Path) -> None:
    one = await watch(clip)
    many = await watch(clip, encoder_threads=4, decoder_threads=4)
    assert many.frames == one.frames
    assert many.end == one.end


async def test_jpeg_quality_is_heeded(clip: Path) -> None:
    sizes = [len((await watch(clip, max_frames=1, jpeg_quality=quality)).frames[0].content) for quality in (10, 100)]
    assert sizes[0] < sizes[1]


async def test_a_start_beyond_the_end_is_an_error_and_not_an_empty_success(clip: Path) -> None:
    shown = await watch(clip, start_seconds=100)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_NO_FRAMES
    assert "start_seconds" in shown.error.message


# How a video ends.


@pytest.mark.parametrize("name", ["truncated.mp4", "truncated.mkv"])
@pytest.mark.parametrize("on_corrupt", ["fail", "skip"])
async def test_a_truncated_video_gives_its_good_frames_and_an_error(
    name: str, on_corrupt: str, make_clip: MakeClip
) -> None:
    shown = await watch(make_clip(name), on_corrupt=on_corrupt)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_TRUNCATED
    assert ": the file is cut short, it has " in shown.error.message
    assert "FFmpeg" not in shown.error.message
    assert "of 60 frames, at " in shown.error.message
    assert 10 < len(shown.frames) < 40
    if on_corrupt == "fail":
        assert shown.numbers == shown.indices == list(range(len(shown.frames)))


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "webm", "avi"])
@pytest.mark.parametrize("part", [0.02, 0.5, 0.98, 0.999])
async def test_a_video_cut_anywhere_never_passes_for_a_whole_one(suffix: str, part: float, tmp_path: Path) -> None:
    path = tmp_path / f"cut.{suffix}"
    codec = {"webm": "libvpx-vp9", "avi": "mpeg4"}.get(suffix, "libx264")
    content = clips.pixel_coded(path, codec=codec).read_bytes()
    path.write_bytes(content[: int(len(content) * part)])
    shown = await watch(path)
    if shown.end is None:
        assert shown.error is not None
        assert shown.error.code in {ErrorCode.VIDEO_TRUNCATED, ErrorCode.VIDEO_UNREADABLE, ErrorCode.VIDEO_NO_FRAMES}
    else:
        # Only the index at the end of the file is gone.
        assert shown.numbers == list(range(60))


async def test_a_matroska_file_cut_between_two_clusters_is_recognised_by_its_size(tmp_path: Path) -> None:
    # FFmpeg sees nothing wrong here: no packet is torn.
    path = tmp_path / "clusters.mkv"
    remux(clips.pixel_coded(tmp_path / "whole.mp4"), path, cluster_time_limit="400")
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\x1f\x43\xb6\x75")])
    shown = await watch(path)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_TRUNCATED
    assert shown.numbers == shown.indices
    assert 20 < len(shown.frames) < 60


async def test_a_live_recording_that_declares_no_end_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "live.mkv"
    remux(clips.pixel_coded(tmp_path / "whole.mp4"), path, live="1")
    shown = await watch(path)
    assert shown.info is not None
    assert shown.info.declared_frames is None
    assert shown.numbers == list(range(60))
    assert shown.end is not None


async def test_sound_that_goes_on_after_the_last_picture_is_no_truncation(tmp_path: Path) -> None:
    path = tmp_path / "sound.mkv"
    with_sound(path, frames=20, sound_seconds=3)
    shown = await watch(path)
    assert shown.info is not None
    assert shown.info.declared_frames == 75
    assert shown.error is None
    assert shown.numbers == list(range(20))


async def test_damage_fails_before_a_bad_frame_is_shown(make_clip: MakeClip) -> None:
    shown = await watch(make_clip("corrupt.mp4"))
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_TRUNCATED
    assert "FFmpeg" in shown.error.message
    count, last = len(shown.frames), shown.frames[-1].pts_seconds
    assert (
        f"is damaged after {count} of 60 frames, the last whole one at {last:.3f} s of 2.400 s" in shown.error.message
    )
    assert shown.numbers == shown.indices == list(range(len(shown.frames)))
    assert len(shown.frames) > 5


ANOTHER_SCENARIO = 'Submit a whole copy, or this one with video.on_corrupt = "skip", as another scenario'
"""The remedy where stored frames fix the file and its options."""


async def test_the_remedy_for_damage_depends_on_whether_frames_are_stored(make_clip: MakeClip, tmp_path: Path) -> None:
    stored = await watch(make_clip("corrupt.mp4"))
    assert stored.error is not None
    assert stored.error.message.endswith(ANOTHER_SCENARIO)
    last = stored.frames[-1]
    resumed = await watch(
        make_clip("corrupt.mp4"), last.index + 1, frames_stored=last.index + 1, last_pts_seconds=last.pts_seconds
    )
    assert resumed.error is not None
    assert resumed.error.message.endswith(ANOTHER_SCENARIO)
    nothing_stored = await watch(make_clip("corrupt.mp4"), start_seconds=last.pts_seconds + 0.02)
    assert (nothing_stored.frames, nothing_stored.error is None) == ([], False)
    assert nothing_stored.error is not None
    assert nothing_stored.error.message.endswith('Give a whole copy, or set video.on_corrupt = "skip"')


async def test_a_file_that_is_cut_short_says_so_once(make_clip: MakeClip) -> None:
    path = make_clip("truncated.mp4")
    shown = await watch(path)
    assert shown.error is not None
    assert shown.error.message.startswith(f"{path}: ends after {len(shown.frames)} of 60 frames, at ")
    assert f"s of 2.400 s: the file is cut short, it has {path.stat().st_size} of " in shown.error.message
    assert shown.error.message.endswith(" bytes. Copy it again, and submit the copy as another scenario")
    assert "FFmpeg" not in shown.error.message


async def test_damage_that_is_skipped_is_counted_and_the_end_still_reached(make_clip: MakeClip) -> None:
    shown = await watch(make_clip("corrupt.mp4"), on_corrupt="skip")
    assert shown.error is None
    assert shown.end is not None
    assert shown.end.skipped_corrupt > 0
    assert shown.end.selected == len(shown.frames) < 60
    assert shown.frames[-1].pts_seconds == pytest.approx(59 / 25)


async def test_a_video_whose_every_selected_frame_is_damaged_says_so(tmp_path: Path) -> None:
    path = tmp_path / "damaged.mp4"
    write_flipped(path, packets=range(30))
    shown = await watch(path, on_corrupt="skip")
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_NO_FRAMES
    assert "are damaged" in shown.error.message
    assert "start_seconds" not in shown.error.message


async def test_a_limit_on_frames_is_reached_before_damage_is_seen(make_clip: MakeClip) -> None:
    shown = await watch(make_clip("truncated.mp4"), max_frames=5)
    assert shown.error is None
    assert shown.numbers == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("name", "code"), [
    ("no_frames.mp4", ErrorCode.VIDEO_NO_FRAMES),
    ("no_frames.mkv", ErrorCode.VIDEO_UNREADABLE),
    ("audio_only.mp4", ErrorCode.VIDEO_UNREADABLE),
    ("audio_only.wav", ErrorCode.VIDEO_UNREADABLE),
    ("stream.mjpeg", ErrorCode.VIDEO_UNREADABLE),
])  # fmt: skip
async def test_a_file_without_pictures(name: str, code: ErrorCode, make_clip: MakeClip) -> None:
    shown = await watch(make_clip(name))
    assert shown.error is not None
    assert shown.error.code is code
    assert str(name) in shown.error.message
    assert not shown.frames


# Files that are refused.


@pytest.mark.parametrize(("content", "suffix"), [
    (b"", "mp4"),
    (b"This is not a video.\n" * 100, "mp4"),
    (b"ffconcat version 1.0\nfile 'whole.mp4'\n", "mp4"),
    (b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nwhole.mp4\n#EXT-X-ENDLIST\n", "mp4"),
    (b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nwhole.mp4\n#EXT-X-ENDLIST\n", "m3u8"),
])  # fmt: skip
async def test_a_list_or_text_under_another_name_opens_nothing(content: bytes, suffix: str, tmp_path: Path) -> None:
    clips.pixel_coded(tmp_path / "whole.mp4")
    path = tmp_path / f"disguised.{suffix}"
    path.write_bytes(content)
    shown = await watch(path)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_UNREADABLE


@pytest.mark.parametrize("kind", [".png", ".jpg"])
async def test_an_image_under_another_name_is_refused(kind: str, tmp_path: Path) -> None:
    _, image = cv2.imencode(kind, clips.paint(1, (320, 240)))
    path = tmp_path / "image.mp4"
    path.write_bytes(image.tobytes())
    shown = await watch(path)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_UNREADABLE


async def test_a_codec_that_is_not_listed_is_refused(tmp_path: Path) -> None:
    shown = await watch(clips.pixel_coded(tmp_path / "magic.avi", codec="magicyuv", frames=3))
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_REFUSED
    assert "the codec magicyuv in the container avi" in shown.error.message
    assert f"ffmpeg -i {tmp_path}/magic.avi " in shown.error.message


async def test_the_command_that_converts_a_video_takes_odd_sizes_and_makes_one_that_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.avi"
    command = conversion(msgspec.structs.replace(VideoSection(), path=str(path)))
    found = re.search(r"-c:v (\S+) .*-pix_fmt (\S+) ", command)
    assert found is not None
    shown = await watch(clips.pixel_coded(tmp_path / "b.mp4", codec=found[1], pix_fmt=found[2], size=(321, 241)))
    assert shown.error is None
    assert len(shown.frames) == 60


@pytest.mark.parametrize(("limit", "value"), [("limit_width", 319), ("limit_height", 239), ("limit_fps", 24.9)])
async def test_a_video_over_a_limit_is_refused_by_its_name(limit: str, value: float, clip: Path) -> None:
    options: dict[str, Any] = {limit: value}
    shown = await watch(clip, **options)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_REFUSED
    named = [key for key in ("limit_width", "limit_height", "limit_fps") if f"video.{key}" in shown.error.message]
    assert named == [limit]
    assert shown.info is None


async def test_pictures_that_do_not_fit_into_the_memory_limit_are_no_fault_of_the_video(tmp_path: Path) -> None:
    path = clips.pixel_coded(tmp_path / "huge.mp4", frames=2, size=(8000, 8000))
    shown = await watch(path, limit_memory_mib=256, limit_width=8000, limit_height=8000)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.DECODER_FAILED
    assert "memory" in shown.error.message.lower()
    assert not shown.frames


async def test_a_missing_file(tmp_path: Path) -> None:
    shown = await watch(tmp_path / "nowhere.mp4")
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_MISSING
    assert "nowhere.mp4" in shown.error.message


def make_fifo(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


def make_link_to_device(path: Path) -> None:
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [make_fifo, make_socket, make_link_to_device])
async def test_what_is_neither_file_nor_directory_is_refused_at_once(
    make: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "video.mp4"
    make(path)
    shown = await watch(path)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_REFUSED


async def test_a_link_to_a_video_is_the_video(clip: Path, tmp_path: Path) -> None:
    path = tmp_path / "link.mp4"
    path.symlink_to(clip)
    assert (await watch(path)).numbers == list(range(60))


@pytest.mark.parametrize("name", ["with space.mp4", "%03d.mp4", "https:__x.mp4", "ü\U0001f3a5.mp4", "-i.mp4"])
async def test_the_name_of_a_file_means_nothing(name: str, clip: Path, tmp_path: Path) -> None:
    shutil.copy(clip, tmp_path / name)
    assert len((await watch(tmp_path / name)).frames) == 60


def test_the_ffmpeg_in_use_is_at_least_8_1_2() -> None:
    # 8.1.1 has CVE-2026-8461, and wheels have shipped another FFmpeg than their recipe named: the library is asked.
    assert av.library_versions["libavcodec"] >= (62, 28, 102)
    assert av.library_versions["libavformat"] >= (62, 12, 102)


def test_a_record_is_written_whole_into_a_pipe_that_is_too_small() -> None:
    body = os.urandom(300_000)
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as pipe, ThreadPoolExecutor(1) as pool:
        received = pool.submit(pipe.read)
        emitter.write(write_end, messages.Passed(7), body)
        os.close(write_end)
        assert received.result() == messages.pack(messages.Passed(7), body) + body


def test_a_sign_of_life_is_shown_when_nothing_was_written_for_a_while() -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(read_end, "rb") as pipe:
        watched = emitter.Emitter(write_end, VideoSection())
        watched.pass_over(1)
        watched._written_at -= emitter.SIGN_OF_LIFE_SECONDS
        watched.pass_over(2)
        os.close(write_end)
        assert pipe.read() == messages.pack(messages.Passed(2))


def remux(source: Path, target: Path, **options: str) -> None:
    """Copy the packets of the video stream into a container made with FFmpeg's `options`."""
    with av.open(str(source)) as given, av.open(str(target), "w", options=options) as made:
        stream = made.add_stream_from_template(given.streams.video[0])
        for packet in given.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                made.mux(packet)


def with_sound(path: Path, *, frames: int, sound_seconds: int) -> None:
    """Write a clip at 25 frames a second whose sound goes on after the last frame."""
    rate = 48_000
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264", rate=25, options=clips.FAST["libx264"])
        video.width, video.height, video.pix_fmt = 320, 240, "yuv420p"
        sound = container.add_stream("pcm_s16le", rate=rate, layout="mono")
        packets = []
        for number in range(frames):
            packets += video.encode(av.VideoFrame.from_ndarray(clips.paint(number, (320, 240)), format="gray"))
        packets += video.encode()
        for second in range(sound_seconds):
            silence = av.AudioFrame.from_ndarray(np.zeros((1, rate), np.int16), format="s16", layout="mono")
            silence.sample_rate, silence.pts, silence.time_base = rate, second * rate, Fraction(1, rate)
            packets += sound.encode(silence)
        packets += sound.encode()
        for packet in sorted(packets, key=lambda packet: Fraction(packet.dts or 0) * Fraction(packet.time_base or 1)):
            container.mux(packet)

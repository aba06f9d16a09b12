"""Which file is taken and which of its streams: formats, codecs, several videos, rates, encryption."""

from __future__ import annotations

import itertools
import re
from functools import partial
from pathlib import Path
from typing import Any

import av
import pytest

from tests.support import clips
from tests.support.hostile_videos import FRAMES, SIZE, several_tracks
from tests.support.watching import watch
from trio_runner.errors import ErrorCode
from trio_runner.video.decoder.formats import CODECS, FORMATS

NOT_FOR_READING = frozenset({"concat", "hls", "dash", "sdp", "rtsp", "rtp", "image2", "lavfi", "tty", "txt"})


def test_no_listed_container_opens_other_files_or_addresses() -> None:
    assert not NOT_FOR_READING & set(FORMATS)
    assert {av.format.ContainerFormat(name, "r").is_input for name in FORMATS} == {True}


def test_there_is_a_decoder_for_every_listed_codec() -> None:
    for name in CODECS:
        assert av.codec.Codec(name, "r").canonical_name == name


def test_the_notices_name_every_library_that_the_wheel_of_pyav_carries() -> None:
    libraries = Path(av.__file__).parent.parent / "av.libs"
    if not libraries.is_dir():
        pytest.skip("PyAV was not installed from a wheel")
    notices = (Path(__file__).parents[2] / "THIRD_PARTY_NOTICES.md").read_text()
    for path in libraries.iterdir():
        # "libx264-d6533a8d.so.165": the auditor of wheels adds a checksum to the name.
        name = path.name.split(".so")[0].rpartition("-")[0]
        assert re.search(rf"\b{re.escape(name)}\b", notices), name


async def test_another_container_is_named_with_the_command_that_converts_it(tmp_path: Path) -> None:
    path = tmp_path / "a b.nut"
    clips.pixel_coded(path, frames=3)
    shown = await watch(path)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_UNREADABLE
    assert "the container nut is not one that is read" in shown.error.message
    assert f"ffmpeg -i '{path}' -map 0:v:0 -c:v libx264" in shown.error.message


@pytest.mark.parametrize(("name", "content", "part"), [
    ("list.mp4", b"ffconcat version 1.0\nfile 'other.mp4'\n", "a list of other files or addresses (concat)"),
    ("list.mp4", b"#EXTM3U\n#EXT-X-TARGETDURATION:3\n#EXTINF:3,\nother.mp4\n", "other files or addresses (hls)"),
    ("text.mp4", b"no video\n" * 100, "is no video"),
])  # fmt: skip
async def test_what_is_no_video_is_called_what_it_is(name: str, content: bytes, part: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    shown = await watch(path)
    assert shown.error is not None
    assert part in shown.error.message


async def test_a_stream_is_taken_by_its_number(tmp_path: Path) -> None:
    path = several_tracks(tmp_path, kinds=("video", "tone", "video"))
    shown = await watch(path, stream=2)
    assert shown.info is not None
    assert (shown.info.stream, shown.info.video_streams) == (2, 2)
    assert shown.numbers == list(range(FRAMES))


@pytest.mark.parametrize("stream", [1, 7])
async def test_a_number_of_no_video_stream_is_refused_with_those_that_are(stream: int, tmp_path: Path) -> None:
    shown = await watch(several_tracks(tmp_path, kinds=("video", "tone", "video")), stream=stream)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_REFUSED
    assert (
        f"stream {stream} is not a video stream; the video streams are: 0, 2. Set video.stream to one"
        in shown.error.message
    )


async def test_a_number_is_refused_where_there_is_no_video_stream(tmp_path: Path) -> None:
    shown = await watch(clips.audio_only(tmp_path / "a.mp4"), stream=0)
    assert shown.error is not None
    assert shown.error.code is ErrorCode.VIDEO_REFUSED
    assert "stream 0 is not a video stream; the file has no video stream. Give another file" in shown.error.message


def two_videos(path: Path, *, sizes: tuple[tuple[int, int], ...], default: int | None = None) -> Path:
    """Two videos, the second of which shows numbers from 100 on."""
    with av.open(str(path), "w") as container:
        streams: list[Any] = []
        for place, (width, height) in enumerate(sizes):
            stream: Any = container.add_stream("libx264", rate=25, options=clips.FAST["libx264"])
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = av.stream.Disposition.default if place == default else av.stream.Disposition(0)
            streams.append(stream)
        for place, stream in enumerate(streams):
            for number in range(12):
                picture = clips.paint(number + 100 * place, (stream.width, stream.height))
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="gray")))
            container.mux(stream.encode())
    return path


@pytest.mark.parametrize(("sizes", "default", "first"), [
    ((SIZE, (320, 240)), None, 100),
    (((320, 240), SIZE), None, 0),
    ((SIZE, (320, 240)), 0, 0),
    (((320, 240), SIZE), 1, 100),
])  # fmt: skip
async def test_of_several_videos_the_default_is_taken_and_then_the_largest(
    sizes: tuple[tuple[int, int], ...], default: int | None, first: int, tmp_path: Path
) -> None:
    shown = await watch(two_videos(tmp_path / "two.mkv", sizes=sizes, default=default))
    assert shown.numbers == [first + number for number in range(12)]


BURST_MS = tuple(itertools.accumulate([1] * 40 + [40] * 60, initial=0))


@pytest.mark.parametrize("make", [
    partial(clips.pixel_coded, fps=240),
    # Forty frames within a millisecond each, as where a screen recording catches up.
    partial(clips.pixel_coded, pts_ms=BURST_MS),
])  # fmt: skip
async def test_a_rate_is_measured_over_seconds_before_it_is_over_the_limit(make: Any, tmp_path: Path) -> None:
    shown = await watch(make(tmp_path / "fast.mkv"))
    assert shown.error is None
    assert shown.indices

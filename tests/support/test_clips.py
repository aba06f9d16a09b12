"""The clips open, or refuse to, as they claim; and the test video is what its table says."""

from __future__ import annotations

import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import clips

TEST_VIDEOS = Path(__file__).parents[2] / "test_videos"

UNREADABLE = r"neither black nor white|checksum"

numbers = st.integers(0, 2**clips.NUMBER_BITS - 1)


def decode(path: Path) -> list[tuple[int, float]]:
    """Return (number shown, presentation time in ms) of every frame until OpenCV's first refusal."""
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    assert capture.isOpened()
    seen: list[tuple[int, float]] = []
    while True:
        more, image = capture.read()
        if not more:
            return seen
        pixels = np.asarray(image, np.uint8)
        seen.append((clips.read_frame_number(pixels), capture.get(cv2.CAP_PROP_POS_MSEC)))


def shown(path: Path) -> list[int]:
    return [number for number, _ in decode(path)]


def through_jpeg(image: clips.Image, quality: int) -> clips.Image:
    encoded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_COLOR), np.uint8)


@given(
    number=numbers,
    size=st.sampled_from([(160, 120), (320, 240), (321, 241), (640, 360), (240, 320)]),
    quality=st.integers(50, 100),
    scale=st.floats(0.25, 2),
    interpolation=st.sampled_from([cv2.INTER_NEAREST, cv2.INTER_LINEAR, cv2.INTER_CUBIC, cv2.INTER_AREA]),
)
def test_the_number_survives_jpeg_and_scaling(
    number: int, size: tuple[int, int], quality: int, scale: float, interpolation: int
) -> None:
    image = through_jpeg(clips.paint(number, size), quality)
    small = cv2.resize(image, None, fx=scale, fy=scale, interpolation=interpolation)
    assert clips.read_frame_number(through_jpeg(np.asarray(small, np.uint8), quality)) == number


@given(number=numbers, flips=st.sets(st.integers(0, clips.NUMBER_BITS - 1), min_size=1, max_size=2))
def test_one_or_two_wrong_cells_are_refused(number: int, flips: set[int]) -> None:
    image = clips.paint(number, (60, 40))
    for cell in flips:
        row, column = divmod(cell, clips.COLUMNS)
        block = image[row * 10 : row * 10 + 10, column * 10 : column * 10 + 10]
        block[:] = clips.BLACK + clips.WHITE - block
    with pytest.raises(ValueError, match="checksum"):
        clips.read_frame_number(image)


@pytest.mark.parametrize("level", [0, clips.BLACK, 128, clips.WHITE, 255])
def test_a_plain_picture_shows_no_number(level: int) -> None:
    with pytest.raises(ValueError, match=UNREADABLE):
        clips.read_frame_number(np.full((48, 64, 3), level, np.uint8))


def test_a_tiny_picture_shows_no_number() -> None:
    assert clips.read_frame_number(clips.paint(513, (24, 16))) == 513
    with pytest.raises(ValueError, match="too few"):
        clips.read_frame_number(clips.paint(513, (23, 16)))


@pytest.mark.parametrize("turn", [1, 2, 3])
def test_a_turned_picture_shows_no_number(turn: int) -> None:
    misread = 0
    for number in range(1000):
        try:
            misread += clips.read_frame_number(np.rot90(clips.paint(number, (120, 80)), turn)) >= 0
        except ValueError:
            continue
    # A checksum of 8 bits lets one in 256 through by chance.
    assert misread < 12


@pytest.mark.parametrize("name", clips.INTACT)
def test_an_intact_clip_shows_its_numbers_in_order(name: str, tmp_path: Path) -> None:
    path = clips.INTACT[name](tmp_path / name)
    expected = {"one_frame.mp4": 1, "4k.mp4": 3, "vfr.mp4": 31, "vfr.mkv": 31}.get(name, 60)
    assert shown(path) == list(range(expected))


@pytest.mark.parametrize("name", ["vfr.mp4", "vfr.mkv"])
def test_a_variable_rate_keeps_its_times(name: str, tmp_path: Path) -> None:
    times = [time for _, time in decode(clips.INTACT[name](tmp_path / name))]
    assert times == pytest.approx(clips.IRREGULAR_MS, abs=1)


@pytest.mark.parametrize("rotation", [90, 180, 270])
def test_a_rotated_clip_is_stored_turned(rotation: int, tmp_path: Path) -> None:
    path = clips.INTACT[f"rotated_{rotation}.mp4"](tmp_path / "rotated.mp4")
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
    assert (frame.width, frame.height) == ((320, 240) if rotation == 180 else (240, 320))
    with pytest.raises(ValueError, match=UNREADABLE):
        clips.read_frame_number(np.asarray(frame.to_ndarray(format="bgr24"), np.uint8))


@pytest.mark.parametrize("name", ["odd_h264.mp4", "odd_mpeg4.mp4", "odd_vp9.webm"])
def test_an_odd_size_stays_odd(name: str, tmp_path: Path) -> None:
    with av.open(str(clips.INTACT[name](tmp_path / name))) as container:
        assert (container.streams.video[0].width, container.streams.video[0].height) == (321, 241)


def test_a_container_without_packets_opens_and_gives_nothing(tmp_path: Path) -> None:
    assert shown(clips.EMPTY["no_frames.mp4"](tmp_path / "no_frames.mp4")) == []


@pytest.mark.parametrize("name", sorted(clips.EMPTY.keys() - {"no_frames.mp4"}))
def test_what_has_no_video_does_not_open(name: str, tmp_path: Path) -> None:
    path = clips.EMPTY[name](tmp_path / name)
    assert path.stat().st_size > 0
    assert not cv2.VideoCapture(str(path), cv2.CAP_FFMPEG).isOpened()


@pytest.mark.parametrize("name", ["audio_only.mp4", "audio_only.wav"])
def test_an_audio_clip_is_sound_and_nothing_else(name: str, tmp_path: Path) -> None:
    with av.open(str(clips.EMPTY[name](tmp_path / name))) as container:
        assert [stream.type for stream in container.streams] == ["audio"]
        assert sum(frame.samples for frame in container.decode(audio=0)) >= 24_000


@pytest.mark.parametrize("name", clips.DAMAGED)
def test_a_damaged_clip_promises_more_than_it_gives(name: str, tmp_path: Path) -> None:
    path = clips.DAMAGED[name](tmp_path / name)
    promised = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG).get(cv2.CAP_PROP_FRAME_COUNT)
    seen = shown(path)
    assert promised == 60
    assert 12 <= len(seen) < 48
    assert seen[:12] == list(range(12))
    assert all(earlier < later for earlier, later in pairwise(seen))


def test_a_corrupt_clip_goes_on_after_the_damage(tmp_path: Path) -> None:
    capture = cv2.VideoCapture(str(clips.corrupt(tmp_path / "corrupt.mp4")), cv2.CAP_FFMPEG)
    answers = [capture.read() for _ in range(80)]
    whole = [more for more, _ in answers]
    last = np.asarray([image for more, image in answers if more][-1], np.uint8)
    assert True in whole[whole.index(False) :]
    assert clips.read_frame_number(last) == 59


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    return tomllib.loads((TEST_VIDEOS / "test_video.toml").read_text(encoding="utf-8"))


def test_the_test_video_is_what_its_table_says(table: dict[str, Any]) -> None:
    facts = table["file"]
    path = TEST_VIDEOS / facts["name"]
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == facts["codec"] == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert (stream.width, stream.height) == (facts["width"], facts["height"])
        assert stream.average_rate == facts["fps"] == 25
        assert stream.frames == facts["frames"]
        assert stream.time_base is not None
        ticks = [frame.pts for frame in container.decode(video=0)]
        ticks_per_frame = 1 / (stream.time_base * facts["fps"])
    assert ticks == [index * ticks_per_frame for index in range(facts["frames"])]
    assert path.stat().st_size <= 1_500_000


def test_the_index_of_the_test_video_lies_in_front() -> None:
    content = (TEST_VIDEOS / "test_video.mp4").read_bytes()
    assert 0 < content.find(b"moov") < content.find(b"mdat")


def test_the_shots_cover_every_frame_once(table: dict[str, Any]) -> None:
    shots = table["shot"]
    assert shots[0]["first_frame"] == 0
    assert shots[-1]["last_frame"] == table["file"]["frames"] - 1
    assert all(shot["first_frame"] <= shot["last_frame"] for shot in shots)
    assert all(later["first_frame"] == earlier["last_frame"] + 1 for earlier, later in pairwise(shots))


def test_the_shots_show_something_two_things_and_nothing(table: dict[str, Any]) -> None:
    assert {min(len(shot["expect"]), 2) for shot in table["shot"]} == {0, 1, 2}


def test_the_readme_has_the_same_table(table: dict[str, Any]) -> None:
    readme = (TEST_VIDEOS / "README.md").read_text(encoding="utf-8")
    fps = table["file"]["fps"]
    for shot in table["shot"]:
        first, last = shot["first_frame"], shot["last_frame"]
        labels = ", ".join(shot["expect"]) or "nothing at all"
        times = f"{first / fps:.2f}–{last / fps:.2f}"  # noqa: RUF001
        assert f"| {first}–{last} | {times} | {shot['title']} | {labels} |" in readme  # noqa: RUF001

"""The verb `inspect`: what it says about a video, its contact sheet, and its exit codes."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from tests.cases.video import CASES
from tests.support import clips, stills
from tests.support.clips import read_frame_number
from tests.support.harness import free_port
from tests.support.storage import PREFIX, open_storage
from trio_runner.cli import inspection
from trio_runner.cli.main import main
from trio_runner.config.load import Config
from trio_runner.errors import ErrorCode, ExitCode
from trio_runner.video import messages
from trio_runner.video.decoder.sheet import GAP_PIXELS, LABEL_PIXELS, SHEET_PIXELS, Sheet
from trio_runner.video.report import MAX_LISTED, MAX_PICTURES, Declared, Measured, Place, Report, Size, Stream


async def inspected(
    capsys: pytest.CaptureFixture[str], video: Path | str, *settings: str, **arguments: Any
) -> tuple[ExitCode, dict[str, Any], str]:
    """The exit code, the report, and what stands on standard error. `video` is a path, or a URL as a string."""
    given: dict[str, Any] = {"frames": (), "sheet": "", "quick": False, "as_json": True} | arguments
    code = await inspection.inspect(Config(), video=str(video), settings=settings, **given)
    out, err = capsys.readouterr()
    return code, json.loads(out) if out else {}, err


async def test_a_video_file_is_described(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = clips.pixel_coded(tmp_path / "a.mp4")
    code, report, err = await inspected(capsys, video)
    assert (code, err) == (ExitCode.OK, "")
    assert report["path"] == str(video)
    assert report["container"] == "QuickTime / MOV (mov,mp4,m4a,3gp,3g2,mj2)"
    assert report["size_bytes"] == video.stat().st_size
    assert (report["codec"], report["problem"], report["whole"]) == ("h264", "", True)
    (stream,) = report["streams"]
    assert (stream["index"], stream["kind"], stream["codec"], stream["chosen"]) == (0, "video", "h264", True)
    assert stream["detail"] == "320 x 240, 25 frames/s"
    assert report["declared"] == {"frames": 60, "fps": 25.0, "duration_seconds": 2.4}
    measured = report["measured"]
    assert (measured["frames"], measured["fps"], measured["damaged_frames"]) == (60, 25.0, 0)
    assert (measured["first_seconds"], measured["last_seconds"]) == (0.0, 2.36)
    assert (measured["key_frames"], measured["key_frame_seconds"]) == (5, 0.48)
    assert measured["sizes"] == [{"index": 0, "width": 320, "height": 240}]
    assert (report["picture"]["pixel_format"], report["picture"]["rotation"]) == ("yuv420p", 0)
    assert report["selected"] == 60


async def test_a_variable_rate_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = clips.pixel_coded(tmp_path / "a.mkv", pts_ms=clips.IRREGULAR_MS)
    _, report, _ = await inspected(capsys, video)
    measured = report["measured"]
    assert (measured["shortest_seconds"], measured["longest_seconds"]) == (0.007, 0.5)
    assert measured["fps"] == pytest.approx(30 / 2.55, abs=0.001)


@pytest.mark.parametrize(("setting", "selected"), [
    ("video.stride=7", 9),
    ("video.max_fps=5", 12),
    ("video.start_seconds=1.0", 35),
    ("video.max_frames=4", 4),
    ("video.key_frames_only=true", 5),
])  # fmt: skip
async def test_the_frames_that_the_config_selects_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], setting: str, selected: int
) -> None:
    _, report, _ = await inspected(capsys, clips.pixel_coded(tmp_path / "a.mp4"), setting)
    assert (report["selected"], report["measured"]["frames"]) == (selected, 60)


TURNED = {
    "rotated_0_mirrored.mp4": (0, True),
    "rotated_90.mp4": (270, False),
    "rotated_180.mp4": (180, False),
    "rotated_270_mirrored.mp4": (90, True),
}


@pytest.mark.parametrize("name", TURNED)
async def test_the_display_matrix_is_described(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (case,) = (case for case in CASES if case.name == name)
    case.make(tmp_path / name)
    _, report, _ = await inspected(capsys, tmp_path / name)
    assert (report["picture"]["rotation"], report["picture"]["mirrored"]) == TURNED[name]
    assert [report["measured"]["sizes"][0][side] for side in ("width", "height")] == list(case.size or ())


@pytest.mark.parametrize(("name", "field", "value"), [
    ("edit_5_of_12.mov", "edit_list_packets", 2),
    ("h264_interlaced.mp4", "interlaced", 12),
    ("two_sizes.mp4", "sizes", [(0, 96, 64), (6, 192, 128)]),
    ("hlg.mp4", "transfer", "arib_std_b67"),
    ("second_is_default.mp4", "chosen", [False, True]),
    ("h264_full_range.mp4", "range", "full"),
])  # fmt: skip
async def test_the_peculiarities_of_a_file_are_described(
    name: str, field: str, value: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (case,) = (case for case in CASES if case.name == name)
    case.make(tmp_path / name)
    code, report, _ = await inspected(capsys, tmp_path / name)
    assert (code, report["measured"]["frames"], report["selected"]) == (ExitCode.OK, len(case.frames), len(case.frames))
    found = report | report["measured"] | report["picture"]
    found["sizes"] = [tuple(size.values()) for size in found["sizes"]]
    found["chosen"] = [stream["chosen"] for stream in report["streams"] if stream["kind"] == "video"]
    assert found[field] == value


async def test_a_start_beyond_the_end_is_a_problem(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = clips.pixel_coded(tmp_path / "a.mp4")
    code, report, err = await inspected(capsys, video, "video.start_seconds=100")
    assert (code, report["selected"]) == (ExitCode.VIDEO, 0)
    assert err.startswith("video_no_frames: ")
    assert "video.start_seconds = 100" in err


async def test_all_damage_is_listed_with_its_time(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = clips.corrupt(tmp_path / "a.mp4")
    code, report, err = await inspected(capsys, video)
    assert code is ExitCode.VIDEO
    assert err == report["problem"] + "\n"
    assert err.startswith("video_truncated: ")
    measured = report["measured"]
    assert measured["damaged_frames"] + measured["lost_packets"] > 0
    assert len(measured["damaged"]) == measured["damaged_frames"]
    assert report["selected"] == measured["frames"] - measured["damaged_frames"]
    assert report["whole"]
    code, tolerant, err = await inspected(capsys, video, "video.on_corrupt=skip")
    assert (code, err, tolerant["problem"]) == (ExitCode.OK, "", "")
    assert tolerant["measured"] == measured


async def test_a_video_that_breaks_off_is_described_up_to_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, report, err = await inspected(capsys, clips.truncated(tmp_path / "a.mp4"), "video.on_corrupt=skip")
    assert (code, report["whole"]) == (ExitCode.VIDEO, False)
    assert 10 < report["measured"]["frames"] < 40
    assert err.startswith("video_truncated: ")
    assert "cut short" in err


@pytest.mark.parametrize(("make", "code"), [
    (lambda path: path, ErrorCode.VIDEO_MISSING),
    (lambda path: path.write_bytes(b"no video" * 99) and path, ErrorCode.VIDEO_UNREADABLE),
    (clips.audio_only, ErrorCode.VIDEO_UNREADABLE),
])  # fmt: skip
async def test_what_is_no_video_is_65_with_its_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any, code: ErrorCode
) -> None:
    exit_code, report, err = await inspected(capsys, make(tmp_path / "a.mp4"))
    assert (exit_code, report) == (ExitCode.VIDEO, {})
    assert err.startswith(f"{code}: {tmp_path}")


@pytest.mark.parametrize("make", [stills.directory_of, stills.zip_of])
async def test_images_are_described(tmp_path: Path, capsys: pytest.CaptureFixture[str], make: Any) -> None:
    files = {f"img{number}.png": stills.numbered(number, size=(320 + number // 5, 240)) for number in range(10)}
    video = make(tmp_path / "images", files | {"notes.txt": b"x"})
    code, report, _ = await inspected(capsys, video, "video.fps=5")
    assert (code, report["codec"], report["other_files"]) == (ExitCode.OK, "PNG", 1)
    assert report["container"] in {"directory of images", "zip archive of images"}
    assert report["size_bytes"] == sum(map(len, files.values()))
    assert (report["declared"]["fps"], report["measured"]["last_seconds"], report["selected"]) == (5.0, 1.8, 10)
    assert report["measured"]["sizes"] == [
        {"index": 0, "width": 320, "height": 240},
        {"index": 5, "width": 321, "height": 240},
    ]


async def test_a_broken_image_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {f"img{number}.png": stills.numbered(number) for number in range(10)} | {"img7.png": b"x", "img8.png": b"x"}
    code, report, err = await inspected(capsys, stills.directory_of(tmp_path / "images", files))
    assert code is ExitCode.VIDEO
    assert "img7.png: image 8 of 10 (frame 7) is no JPEG" in err
    assert [place["index"] for place in report["measured"]["damaged"]] == [7, 8]


@pytest.mark.parametrize("content", [b"x", None], ids=["broken", "of no kind that is read"])
async def test_a_name_in_an_archive_does_nothing_to_the_terminal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    name = "a\x1b[2J\nb" + (".png" if content else ".heic")
    code, _, err = await inspected(capsys, stills.zip_of(tmp_path / "images.zip", {name: content or b"x"}))
    assert code is ExitCode.VIDEO
    assert "a\N{REPLACEMENT CHARACTER}[2J b." in err
    assert err.count("\n") == 1
    assert "\x1b" not in err


async def test_a_url_that_is_not_allowed_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    arguments: dict[str, Any] = {"frames": (), "sheet": "", "quick": False, "as_json": True}
    code = await inspection.inspect(Config(), video="https://127.0.0.1:1/a.mp4", settings=(), **arguments)
    assert code is ExitCode.VIDEO
    assert "storage.url_prefixes" in capsys.readouterr().err


async def test_where_a_prefix_is_to_be_added_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = await inspected(capsys, "https://127.0.0.1:1/a.mp4")
    assert code is ExitCode.VIDEO
    assert err.endswith("or correct video.path (with --config or --set)\n")


async def test_a_storage_that_fails_is_named_with_its_code(capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    code, _, err = await inspected(capsys, f"{url}a.mp4", f'storage.url_prefixes=["{url}"]')
    assert code is ExitCode.UNCONFIRMED
    assert err.startswith(f"storage_unreachable: {url}a.mp4: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("keeps", [False, True])
async def test_without_a_config_a_fetched_video_is_removed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *, keeps: bool
) -> None:
    video = clips.pixel_coded(tmp_path / "a.mp4").read_bytes()
    for name in ("here", "temporary", "cache"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    with open_storage(video) as storage:
        prefix = f"{storage.url}{PREFIX}"
        settings = [f'storage.url_prefixes=["{prefix}"]', f"storage.cache_dir={tmp_path / 'cache'}"]
        code, report, err = await inspected(capsys, f"{prefix}a.mp4", *settings[: 1 + keeps])
    assert (code, report["measured"]["frames"], err) == (ExitCode.OK, 60, "")
    assert list((tmp_path / "here").iterdir()) == list((tmp_path / "temporary").iterdir()) == []
    assert len(list((tmp_path / "cache").glob("*.mp4"))) == keeps


# The contact sheet.


def cells(sheet: Any, count: int, size: tuple[int, int]) -> list[Any]:
    """The pictures of a sheet, all of one size and not scaled down, in order."""
    columns = next(columns for columns in range(1, 99) if columns * columns >= count)
    width, height = size
    places = [divmod(number, columns) for number in range(count)]
    return [
        sheet[
            (top := GAP_PIXELS + row * (height + LABEL_PIXELS + GAP_PIXELS)) : top + height,
            (left := GAP_PIXELS + column * (width + GAP_PIXELS)) : left + width,
        ]
        for row, column in places
    ]


@pytest.mark.parametrize(
    ("rotation", "turned"), [(90, "90 degrees counterclockwise"), (180, "180 degrees"), (270, "90 degrees clockwise")]
)
async def test_the_direction_in_which_a_player_turns_the_picture_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], rotation: int, turned: str
) -> None:
    """A clip of `rotation` is stored turned clockwise by that, so a player turns it back."""
    video = clips.pixel_coded(tmp_path / "a.mp4", rotation=rotation, frames=2)
    await inspection.inspect(Config(), video=str(video), settings=(), frames=(), sheet="", quick=False, as_json=False)
    assert f"  size:        320 x 240, turned {turned}\n" in capsys.readouterr().out


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
async def test_the_sheet_shows_the_frames_upright_and_in_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    video = clips.pixel_coded(tmp_path / "a.mp4", rotation=90)
    sheet = tmp_path / f"sheet{suffix}"
    code, report, _ = await inspected(capsys, video, frames=(59, 0, 7, 7), sheet=str(sheet))
    assert code is ExitCode.OK
    assert report["picture"]["rotation"] in {90, 270}
    drawn = cv2.imread(str(sheet))
    assert drawn is not None
    assert [read_frame_number(np.asarray(cell, np.uint8)) for cell in cells(drawn, 3, (320, 240))] == [0, 7, 59]


async def test_the_sheet_shows_interlaced_frames_as_a_run_would_send_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, sheet = tmp_path / "a.mp4", tmp_path / "sheet.png"
    with av.open(str(video), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"x264-params": "tff=1", "preset": "ultrafast"})
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for number in range(10):
            # What does not move is left as it is, so the two fields change their places.
            combed = np.zeros((240, 320), np.uint8)
            combed[number % 2 :: 2] = 235
            frame = av.VideoFrame.from_ndarray(combed, format="gray").reformat(format="yuv420p")
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    spread = {}
    for mode in ("auto", "off"):
        code, report, _ = await inspected(capsys, video, f'video.deinterlace="{mode}"', frames=(5,), sheet=str(sheet))
        assert (code, report["measured"]["interlaced"]) == (ExitCode.OK, 10)
        drawn = cv2.imread(str(sheet), cv2.IMREAD_GRAYSCALE)
        assert drawn is not None
        spread[mode] = np.ptp(drawn[100:140, 160].astype(int))
    assert spread["auto"] < 30
    assert spread["off"] > 200


async def test_frames_beyond_the_end_are_1_and_the_others_are_drawn(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video, sheet = clips.pixel_coded(tmp_path / "a.mp4"), tmp_path / "sheet.png"
    code, _, err = await inspected(capsys, video, frames=(5, 60, 1000), sheet=str(sheet))
    assert (code, err) == (
        ExitCode.NOTHING,
        f"--frames: 60, 1000 are not in the video (0 to 59); {sheet} has the others\n",
    )
    assert sheet.exists()
    sheet.unlink()
    code, _, err = await inspected(capsys, video, frames=(60,), sheet=str(sheet))
    assert (code, sheet.exists()) == (ExitCode.NOTHING, False)
    assert err == "--frames: 60 is not in the video (0 to 59)\n"


async def test_quick_reads_no_further_than_the_last_frame_that_is_wanted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = clips.truncated(tmp_path / "a.mp4")
    code, report, _ = await inspected(capsys, video, quick=True)
    assert (code, report["measured"]["frames"], report["whole"]) == (ExitCode.OK, 1, False)
    sheet = tmp_path / "sheet.png"
    code, report, _ = await inspected(capsys, video, quick=True, frames=(3, 9), sheet=str(sheet))
    assert (code, report["measured"]["frames"], sheet.exists()) == (ExitCode.OK, 10, True)


@pytest.mark.parametrize("size", [(320, 240), (3840, 2160), (1080, 1920), (16, 16), (4096, 2), (2, 4096)], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5, MAX_PICTURES])
def test_a_sheet_of_any_pictures_has_a_bounded_size(size: tuple[int, int], count: int) -> None:
    sheet, picture = Sheet(count), np.zeros((size[1], size[0], 3), np.uint8)
    for number in range(count):
        sheet.add(number, number * 3600.0, picture, whole=number != 1)
    height, width = sheet.draw().shape[:2]
    assert width <= SHEET_PIXELS + GAP_PIXELS
    assert height <= SHEET_PIXELS + 12 * (LABEL_PIXELS + GAP_PIXELS)


@pytest.mark.parametrize(("arguments", "problem"), [
    ({"frames": (1,)}, "need each other"),
    ({"sheet": "sheet.png"}, "need each other"),
    ({"frames": (1,), "sheet": "sheet.gif"}, "does not end with .png or .jpg"),
    ({"frames": (1,), "sheet": "/nowhere/sheet.png"}, "there is no directory /nowhere"),
    ({"frames": tuple(range(MAX_PICTURES + 1)), "sheet": "sheet.png"}, f"room for {MAX_PICTURES} frames"),
], ids=["no sheet", "no frames", "suffix", "directory", "too many"])  # fmt: skip
async def test_wrong_usage_is_64_before_anything_is_read(
    capsys: pytest.CaptureFixture[str], arguments: dict[str, Any], problem: str
) -> None:
    code, report, err = await inspected(capsys, Path("/nowhere/a.mp4"), **arguments)
    assert (code, report) == (ExitCode.USAGE, {})
    assert problem in err


@pytest.mark.parametrize("frames", ["", "a", "1,,2", "-1", "1.5", "9" * 16, "\N{ARABIC-INDIC DIGIT ONE}"])
def test_frames_that_are_no_numbers_are_64(frames: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["inspect", "a.mp4", f"--frames={frames}", "-o", "sheet.png"])
    assert caught.value.code == ExitCode.USAGE
    assert "is not a list of numbers such as 0,100,250" in capsys.readouterr().err


# What it prints.


async def test_for_people_there_is_a_line_for_each_fact(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = clips.pixel_coded(tmp_path / "a\x1b[31m\nb.mp4", rotation=180)
    arguments: dict[str, Any] = {"frames": (), "sheet": "", "quick": False, "as_json": False}
    code = await inspection.inspect(Config(), video=str(video), settings=(), **arguments)
    out = capsys.readouterr().out
    assert code is ExitCode.OK
    assert "\x1b" not in out
    assert out.splitlines()[0].endswith("a\N{REPLACEMENT CHARACTER}[31m b.mp4")
    for line in (
        "  codec:       h264, profile Main",
        "  size:        320 x 240, turned 180 degrees",
        "  frames/s:    25 declared, 25 measured, 0.040 to 0.040 s apart",
        "  duration:    2.400 s declared, frames from 0.000 s to 2.360 s",
        "  frames:      60 declared, 60 read",
        "  key frames:  5, at most 0.480 s apart",
        "  interlaced:  no",
        "  damage:      none",
        "  selected:    60 frames",
    ):
        assert line in out.splitlines()


async def test_the_sheet_and_what_was_not_read_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video, sheet = clips.pixel_coded(tmp_path / "a.mp4"), tmp_path / "sheet.png"
    arguments: dict[str, Any] = {"frames": (3, 9), "sheet": str(sheet), "quick": True, "as_json": False}
    code = await inspection.inspect(Config(), video=str(video), settings=(), **arguments)
    lines = capsys.readouterr().out.splitlines()
    assert code is ExitCode.OK
    for line in (
        "  frames:      60 declared, only 10 read",
        "  damage:      none in what was read",
        "  selected:    at least 10 frames",
        f"  sheet:       {sheet}, 2 frames",
    ):
        assert line in lines


def test_the_longest_report_fits_into_its_message() -> None:
    places = tuple(Place(10**9 + number, 1e7 + number / 7) for number in range(MAX_LISTED))
    sizes = tuple(Size(10**9 + number, 16_384, 16_384) for number in range(MAX_LISTED))
    measured = Measured(
        frames=10**9, fps=1000 / 7, shortest_seconds=1 / 7, longest_seconds=1e7 / 7, first_seconds=0.0,
        last_seconds=1e7 / 7, key_frames=10**9, key_frame_seconds=1e7 / 7, interlaced=10**9, damaged=places,
        damaged_frames=10**9, lost_packets=10**9, sizes=sizes,
    )  # fmt: skip
    stream = Stream(
        index=99, kind="attachment", codec="x" * 40, detail="x" * 60, language="\N{REPLACEMENT CHARACTER}" * 40,
        marks=", ".join(["hearing_impaired"] * 8), chosen=False,
    )  # fmt: skip
    report = Report(
        path="\N{REPLACEMENT CHARACTER}" * 4096,
        container="x" * 200,
        size_bytes=2**63,
        identity="f" * 64,
        streams=(stream,) * MAX_LISTED,
        codec="x" * 40,
        profile="x" * 40,
        other_files=10**6,
        edit_list_packets=10**9,
        declared=Declared(frames=10**9, fps=1 / 7, duration_seconds=1e7 / 7),
        measured=measured,
        picture=None,
        selected=10**9,
        whole=True,
        problem="\N{REPLACEMENT CHARACTER}" * 6000,
    )
    packed = messages.pack(messages.Inspected(report))
    header_bytes, _ = messages.unpack_prefix(packed[: messages.PREFIX.size])
    assert messages.unpack_header(packed[messages.PREFIX.size :]) == messages.Inspected(report)
    assert header_bytes < messages.MAX_HEADER_BYTES

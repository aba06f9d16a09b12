"""The comparison with FFmpeg over a folder: what it calls equal, and what it calls a difference."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.cases import corpus
from tests.cases.reference import Reference, by_library, choose_reference
from tests.cases.video import CASES
from tests.support import clips
from trio_runner.errors import ErrorCode

MADE = {case.name: case.make for case in CASES}
PICTURE = np.ascontiguousarray(np.repeat(clips.paint(1, (96, 64))[:, :, None], 3, axis=2))


def make(directory: Path, *names: str) -> None:
    for name in names:
        MADE[name](directory / name)


def test_a_folder_of_whole_and_damaged_files_shows_no_difference(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, results = tmp_path / "videos", tmp_path / "results.json"
    folder.mkdir()
    make(folder, "h264.mp4", "variable_rate.mp4", "ffv1.mkv", "cut_70_percent.mkv")
    (folder / "notes.txt").write_text("This is not a video.\n")
    assert corpus.main([str(folder), "--json", str(results)]) == 0
    table = capsys.readouterr().out
    assert table.splitlines()[-1] == "5 files: 2 damaged, 3 equal"
    lines = {line["name"]: line for line in json.loads(results.read_text())}
    assert {name: line["verdict"] for name, line in lines.items()} == {
        "h264.mp4": "equal",
        "variable_rate.mp4": "equal",
        "ffv1.mkv": "equal",
        "cut_70_percent.mkv": "damaged",
        "notes.txt": "damaged",
    }
    assert lines["h264.mp4"]["least_db"] >= corpus.LEAST_DB


def test_a_difference_is_the_exit_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "one_frame.mp4")
    name, ask = choose_reference()

    def one_more(path: Path, stream: int) -> Reference:
        reference = ask(path, stream)
        reference.times.append(0.04)
        return reference

    monkeypatch.setattr(corpus, "choose_reference", lambda: (name, one_more))
    assert corpus.main([str(tmp_path)]) == 1


def test_the_library_gives_what_the_programs_would(tmp_path: Path) -> None:
    make(tmp_path, "h264.mp4", "cut_70_percent.mp4")
    reference = by_library(tmp_path / "h264.mp4", 0)
    assert reference.times == pytest.approx([number / 25 for number in range(12)])
    assert [clips.read_frame_number(reference.pictures[number]) for number in (0, 1, 2, 5)] == [0, 1, 2, 5]
    assert not reference.complaints
    assert by_library(tmp_path / "cut_70_percent.mp4", 0).complaints


def reading(times: tuple[float, ...] = (0.0, 0.04), **other: object) -> corpus.Reading:
    found = corpus.Reading(times=list(times), indices=list(range(len(times))), pictures={0: PICTURE})
    for name, value in other.items():
        setattr(found, name, value)
    return found


@pytest.mark.parametrize(("ours", "theirs", "verdict", "why"), [
    (reading(), Reference([0.0, 0.0405], {0: PICTURE}), "equal", ""),
    (reading(), Reference([0.0, 0.042], {0: PICTURE}), "differs", "frame 1 at 0.0400 s instead of 0.0420 s"),
    (reading(), Reference([0.0], {0: PICTURE}), "differs", "2 frames instead of 1"),
    (reading(), Reference([0.0, 0.04], {0: 255 - PICTURE}), "differs", "the picture of frame 0 agrees to"),
    (reading(), Reference([0.0, 0.04], {0: PICTURE[::2]}), "differs", "(96, 64) instead of (96, 32)"),
    (reading(indices=[0, 2]), Reference([0.0, 0.04]), "differs", "missing in between"),
    (reading(), Reference([0.0, 0.04], complaints=["damage"]), "concealed", "damage"),
    (reading(), Reference(), "differs", "2 frames instead of 0"),
    (reading(), Reference([0.02, 0.06], {0: PICTURE}), "equal", "starts -0.020 s apart"),
    (reading((), error="no", code=ErrorCode.VIDEO_REFUSED), Reference([0.0]), "refused", "no"),
    (reading((), error="no", code=ErrorCode.VIDEO_TRUNCATED), Reference([0.0]), "differs", "no"),
    (reading((), error="no", code=ErrorCode.VIDEO_REFUSED), Reference(complaints=["damage"]), "damaged", "no"),
])  # fmt: skip
def test_a_verdict(ours: corpus.Reading, theirs: Reference, verdict: str, why: str) -> None:
    line = corpus.judge("video.mp4", ours, theirs)
    assert line.verdict == verdict
    assert why in line.why

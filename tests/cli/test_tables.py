"""Tables in narrow terminals and in pipes: which columns are shortened, and which never."""

from __future__ import annotations

import io
import json
import sys
import uuid
from typing import Any

import pytest

from trio_runner.cli.show import overview_table
from trio_runner.cli.table import FittedTable, print_table

LONG = "the file does not exist or may not be read: " + "/a/very/long/path" * 12
ROWS: list[dict[str, Any]] = [
    {
        "id": number,
        "status": status,
        "outcome": None,
        "epoch": 12,
        "last_epoch": 50,
        "frames_stored": 1030,
        "frames_not_inferred": 0,
        "total_frames": 4000,
        "failures": 1,
        "max_failures": 5,
        "instance_id": instance,
        "lease_seconds": 29.6,
        "due_seconds": -3.0,
        "last_error": json.dumps({"code": "video_missing", "message": LONG}) if number == 2077 else None,
        "runner_id": "node-1-4711",
        "frames_per_second": 24.96,
        "video_path": "/videos/a_video_with_a_long_name_of_its_own.mp4",
    }
    for number, status, instance in ((2077, "active", uuid.UUID(int=1)), (2078, "inactive", None))
]


class Output(io.StringIO):
    """Standard output that is a terminal, or a pipe."""

    def __init__(self, *, is_terminal: bool) -> None:
        super().__init__()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("NO_COLOR", "1")
    return monkeypatch


def printed(environment: pytest.MonkeyPatch, made: FittedTable, columns: int | None) -> list[str]:
    """The lines, without colours, on a terminal of so many columns; in a pipe where `columns` is None."""
    output = Output(is_terminal=columns is not None)
    if columns is not None:
        environment.setenv("COLUMNS", str(columns))
    environment.setattr(sys, "stdout", output)
    print_table(made)
    return output.getvalue().replace("\x1b[1m", "").replace("\x1b[0m", "").splitlines()


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 100, 120, 140, None])
def test_a_long_error_leaves_the_other_columns_whole(environment: pytest.MonkeyPatch, columns: int | None) -> None:
    head, _, working, idle = printed(environment, overview_table(ROWS), columns)
    assert head.split()[:9] == ["id", "state", "attempt", "frames", "per", "s", "runner", "lease", "failures"]
    assert working.split()[:8] == ["2077", "active", "12", "1030/4000", "25.0", "node-1-4711", "30", "s"]
    assert working.split()[8] == "1/5"
    assert idle.split()[:5] == ["2078", "inactive", "12", "1030/4000", "1/5"]


@pytest.mark.parametrize("columns", [100, 120, 140, 160])
def test_the_table_is_as_wide_as_the_terminal(environment: pytest.MonkeyPatch, columns: int) -> None:
    lines = printed(environment, overview_table(ROWS), columns)
    assert max(map(len, lines)) == columns
    assert lines[2].rstrip().endswith("…")


def test_the_error_is_shortened_before_the_video(environment: pytest.MonkeyPatch) -> None:
    assert "its_own.mp4  video_missing: the" in printed(environment, overview_table(ROWS), 160)[2]
    assert "a_video_with_a_lon…  vide…" in printed(environment, overview_table(ROWS), 100)[2]


def test_a_pipe_is_given_everything(environment: pytest.MonkeyPatch) -> None:
    line = printed(environment, overview_table(ROWS), None)[2]
    assert LONG in line
    assert "…" not in line


def test_a_table_that_fits_is_not_stretched(environment: pytest.MonkeyPatch) -> None:
    made = FittedTable(("check", "where"), [("video", "a.mp4")], cut=("where",))
    assert [line.rstrip() for line in printed(environment, made, 80)[::2]] == ["check  where", "video  a.mp4"]
    assert max(map(len, printed(environment, made, 80))) == len("check  where ")

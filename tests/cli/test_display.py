"""What `run` shows of its progress and of its end."""

from __future__ import annotations

import os
import pty
import select
import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, TextIO

import pytest
import trio
import trio.testing

from tests.support.makers import make_claim
from trio_runner.cli.display import Display
from trio_runner.config.load import Config
from trio_runner.errors import ErrorCode
from trio_runner.model import Failure, Progress
from trio_runner.runner.outcome import Ending, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator


def runner_with(**attributes: Any) -> Any:
    claimed = trio.Event()
    claimed.set()
    return SimpleNamespace(claimed=claimed, claim=None, **attributes)


@pytest.mark.parametrize(
    ("progress", "shown"),
    [
        (Progress(next_frame=31, frames_stored=31, declared_frames=665), "frame 31 of 665 ·"),
        (Progress(next_frame=31, frames_stored=31), "frame 31 of unknown ·"),
        (Progress(next_frame=31, frames_stored=31, declared_frames=665, max_frames=60), "frame 31 of at most 60 ·"),
        (Progress(next_frame=31, frames_stored=31, declared_frames=50, max_frames=60), "frame 31 of at most 50 ·"),
        (Progress(next_frame=31, frames_stored=31, max_frames=60), "frame 31 of at most 60 ·"),
        (
            Progress(next_frame=91, frames_stored=21, frames_stored_before=10, declared_frames=665, max_frames=60),
            "frame 31 of at most 60 ·",
        ),
        (
            Progress(next_frame=31, frames_stored=31, frames_not_inferred=2, detections=7),
            "frame 31 of unknown · 6.2 fps · 7 detections · 2 not inferred\n",
        ),
        (Progress(next_frame=31, frames_stored=31, detections=7), "frame 31 of unknown · 6.2 fps · 7 detections\n"),
    ],
)
async def test_the_progress_line_counts_to_the_number_of_frames_that_are_selected(
    progress: Progress, shown: str, capsys: pytest.CaptureFixture[str], autojump_clock: trio.testing.MockClock
) -> None:
    with trio.move_on_after(6):
        await Display(config_path="a.toml").watch(runner_with(progress=progress))
    assert capsys.readouterr().out.startswith(shown)


@pytest.fixture
def terminal() -> Iterator[tuple[int, TextIO]]:
    """A terminal: the descriptor that reads what is shown on it, and the file that a program writes to."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "w") as stdout:
        yield ours, stdout
    os.close(ours)


@pytest.mark.parametrize("columns", [30, 60, 80, 120])
async def test_the_bar_shows_the_number_of_frames_in_a_narrow_terminal(
    columns: int, terminal: tuple[int, TextIO], monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    screen, stdout = terminal
    # pytest sets sys.stdout anew between a fixture and its test.
    monkeypatch.setattr(sys, "stdout", stdout)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", str(columns))
    progress = Progress(next_frame=131, frames_stored=31, declared_frames=665, detections=1234)
    with trio.move_on_after(0.5):
        await Display(config_path="a.toml").watch(runner_with(progress=progress))
    stdout.flush()
    drawn = b""
    while b"131/665" not in drawn and select.select([screen], [], [], 0)[0]:
        drawn += os.read(screen, 60_000)
    assert b"131/665" in drawn


@pytest.mark.parametrize(
    ("ending", "message", "shown"),
    [
        (
            Ending.REFUSED,
            "given up; try: trio-runner retry CONFIG 4",
            "up; try: /opt/trio-runner retry a.toml 4",
        ),
        (Ending.ALREADY_COMPLETED, "scenario 4 is completed", "/opt/trio-runner run a.toml --scenario FREE_ID --video"),
    ],
)
async def test_the_summary_suggests_commands_that_work(
    ending: Ending, message: str, shown: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/trio-runner"])
    failure = Failure(code=ErrorCode.CLAIM_REFUSED, type="ClaimRefusedError", message=message)
    runner = runner_with(outcome=Outcome(ending=ending, claim=None, failure=failure), progress=Progress())
    await Display(config_path="a.toml").summarise(Config(), runner)
    assert shown in capsys.readouterr().out


async def summary(progress: Progress, ending: Ending, capsys: pytest.CaptureFixture[str]) -> str:
    display = Display(config_path="a.toml")
    runner = runner_with(outcome=Outcome(ending=ending, claim=make_claim()), progress=progress)
    # At time 0 the display would take the attempt for one that has not begun.
    await trio.sleep(1)
    with trio.move_on_after(1):
        await display.watch(runner)
    await display.summarise(Config(), runner)
    return capsys.readouterr().out


@pytest.mark.parametrize("ending", [Ending.COMPLETED, Ending.DRAINED])
async def test_the_summary_counts_frames_that_were_not_inferred_and_clipped_boxes(
    ending: Ending,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    autojump_clock: trio.testing.MockClock,
) -> None:
    async def no_labels(*_: Any, **__: Any) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(sys, "argv", ["trio-runner"])
    monkeypatch.setattr(Display, "_note_labels", no_labels)
    flawed = Progress(frames_stored=50, frames_stored_before=10, frames_not_inferred=3, boxes_clipped=12, tokens=9)
    shown = await summary(flawed, ending, capsys)
    assert "  inferred:    all but 3 of these frames; the reasons: trio-runner show a.toml" in shown
    assert "  clipped:     12 boxes, which overshot the picture\n" in shown
    assert "  tokens:      9\n" in shown
    shown = await summary(Progress(frames_stored=50), ending, capsys)
    assert "stored:" in shown
    assert "inferred" not in shown
    assert "clipped" not in shown
    assert "tokens" not in shown

"""The verb `run`, and what a person sees of it: progress while it goes, a summary at the end."""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import trio

from trio_runner.base.text import counted
from trio_runner.cli.output import discard, identify_attempt, say
from trio_runner.cli.suggest import command, with_commands
from trio_runner.config.settings import parse_settings
from trio_runner.database import reading
from trio_runner.database.store import open_store
from trio_runner.errors import RunnerError
from trio_runner.runner.daemon import serve
from trio_runner.runner.outcome import Ending, exit_code

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.config.load import Config
    from trio_runner.errors import ExitCode
    from trio_runner.model import Progress
    from trio_runner.runner.outcome import Outcome
    from trio_runner.runner.runner import Runner

logger = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 0.2
LINE_SECONDS: Final = 5.0
SUMMARY_LABELS: Final = 8
BAR_WIDTH: Final = 72
"""Characters; a narrower terminal is shown the number of frames and the speed without a bar."""


async def run(
    config: Config,
    *,
    config_path: str,
    scenario: int | None,
    video: str | None,
    inference_url: str | None,
    settings: Sequence[str],
) -> ExitCode:
    """Process one scenario; what is named here replaces what the config says."""
    changed = parse_settings(settings)
    for section, key, value in (
        ("scenario", "id", scenario),
        ("video", "path", video),
        ("inference", "url", inference_url),
    ):
        if value is not None:
            changed.setdefault(section, {})[key] = value
    config = config.replace(**changed)
    identify_attempt(config)
    return exit_code(await serve(config, Display(config_path=config_path)))


class Display:
    """A bar where standard output is a terminal, plain lines where it is not."""

    def __init__(self, *, config_path: str) -> None:
        """`config_path` stands in the commands that the summary suggests."""
        self._config_path = config_path
        self._started = 0.0

    def note(self, text: str) -> None:
        """One line, now; a terminal that went away, or a disk that is full, is no reason to stop working."""
        try:
            say(text)
        except OSError as error:
            logger.debug("standard output takes nothing more: %s", error)
            discard()

    async def watch(self, runner: Runner) -> None:
        """Show the runner's progress until cancelled."""
        await runner.claimed.wait()
        self._started = trio.current_time()
        if sys.stdout.isatty():
            with suppress(OSError):
                await self._draw_bar(runner)
        else:
            while True:
                await trio.sleep(LINE_SECONDS)
                self.note(self._line(runner))

    async def summarise(self, config: Config, runner: Runner) -> None:
        """How it ended, what was found, where it is and how to look at it."""
        outcome = runner.outcome
        if outcome is None:
            return
        if outcome.ending is Ending.REFUSED and outcome.failure:
            message = with_commands(outcome.failure.message, self._config_path)
            self.note(f"not claimed: {outcome.failure.code}: {message}")
            return
        if outcome.ending is Ending.ALREADY_COMPLETED and outcome.failure:
            self.note(f"{outcome.failure.message}; nothing is left to do.")
            another = command("run", self._config_path, "--scenario", "FREE_ID", "--video", "YOUR.mp4")
            self.note(f"  see it:        {command('show', self._config_path, config.scenario.id)}")
            self.note(f"  start another: {another}")
            return
        self.note(f"scenario {config.scenario.id} {outcome.ending}")
        self._note_failure(config, outcome)
        if outcome.claim is None or not self._started:
            return
        progress, seconds = runner.progress, trio.current_time() - self._started
        rate = f"{progress.frames_stored / seconds:.1f} frames/s" if seconds > 0 else ""
        before = f" ({progress.frames_stored_before} by earlier attempts)" if progress.frames_stored_before else ""
        stored = progress.frames_stored_before + progress.frames_stored
        self.note(f"  stored:      {counted(stored, 'frame')}{before}")
        if progress.frames_not_inferred:
            why = command("show", self._config_path, config.scenario.id)
            self.note(f"  inferred:    all but {progress.frames_not_inferred} of these frames; the reasons: {why}")
        if progress.boxes_clipped:
            self.note(f"  clipped:     {counted(progress.boxes_clipped, 'box')}, which overshot the picture")
        if progress.tokens:
            self.note(f"  tokens:      {progress.tokens}")
        self.note(f"  took:        {seconds:.1f} s, {rate}")
        # After a failure the database may be the reason, and nobody waits for labels.
        if outcome.ending is Ending.COMPLETED:
            await self._note_labels(config, inferred=stored - progress.frames_not_inferred)
        self.note(f"  where:       {config.database.url}, table trio_runner.predictions")
        self.note(f"  look at it:  {command('show', self._config_path, config.scenario.id)}")

    def _note_failure(self, config: Config, outcome: Outcome) -> None:
        if outcome.failure is None:
            return
        message = with_commands(outcome.failure.message, self._config_path)
        self.note(f"  because:     {outcome.failure.code}: {message}")
        if outcome.event is not None and outcome.ending is not Ending.SUPERSEDED:
            self.note(f"  retry event: {outcome.event.value}, topic {config.kafka.retry_topic}")

    async def _note_labels(self, config: Config, *, inferred: int) -> None:
        try:
            async with open_store(config.database, application_name="trio-runner summary") as store:
                labels = await reading.label_counts(store, config.scenario.id)
        except RunnerError as error:
            self.note(f"  found:       cannot be read back: {error}")
            return
        found = ", ".join(
            f"{row['detections']} {row['label']} in {row['frames']} frames" for row in labels[:SUMMARY_LABELS]
        )
        self.note(f"  found:       {found or ('nothing' if inferred else 'unknown: no frame was inferred')}")

    async def _draw_bar(self, runner: Runner) -> None:
        # Imported here: only a terminal has use for rich, which takes long to load.
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            Progress,
            ProgressColumn,
            TextColumn,
            TimeRemainingColumn,
        )

        from trio_runner.cli.table import Console

        console = Console()
        # rich shortens every column of a line that is too long, and the number of frames must stay legible.
        columns: tuple[ProgressColumn, ...] = (MofNCompleteColumn(), TextColumn("{task.fields[rate]:.1f} fps"))
        if console.width >= BAR_WIDTH:
            columns = (
                TextColumn("scenario {task.fields[scenario]}"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[rate]:.1f} fps · {task.fields[found]}"),
                TimeRemainingColumn(),
            )
        # Refreshed by this task and not by a thread of rich's own.
        with Progress(*columns, console=console, auto_refresh=False) as bar:
            task = bar.add_task("", scenario=runner.claim.scenario_id if runner.claim else "", rate=0.0, found="")

            def update() -> None:
                done, total = runner.progress.frames_done
                bar.update(task, total=total, completed=done)
                bar.update(task, rate=self._rate(runner), found=_found(runner.progress), refresh=True)

            try:
                while True:
                    update()
                    await trio.sleep(REFRESH_SECONDS)
            finally:
                update()

    def _line(self, runner: Runner) -> str:
        return runner.progress.activity or (
            f"frame {runner.progress.position} · {self._rate(runner):.1f} fps · {_found(runner.progress)}"
        )

    def _rate(self, runner: Runner) -> float:
        return runner.progress.frames_stored / max(trio.current_time() - self._started, 0.001)


def _found(progress: Progress) -> str:
    """How many detections are stored, and how many frames were not inferred, where there are any."""
    failed = f" · {progress.frames_not_inferred} not inferred" if progress.frames_not_inferred else ""
    return f"{progress.detections} detections{failed}"

"""The verb `run`, and what a person sees of it: progress while it goes, a summary at the end."""

from __future__ import annotations

import logging
import shutil
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from trio_runner.cli.output import discard, identify_attempt, say
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
    from trio_runner.runner.outcome import Outcome
    from trio_runner.runner.runner import Runner

logger = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 0.2
LINE_SECONDS: Final = 5.0
SUMMARY_LABELS: Final = 8


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
    return exit_code(await serve(config, Display(program=_program(), config_path=config_path)))


def _program() -> str:
    """How this program was called, for the commands that it suggests."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m trio_runner"
    if shutil.which(called.name) == str(called):
        return called.name
    return str(called.relative_to(Path.cwd()) if called.is_relative_to(Path.cwd()) else called)


class Display:
    """A bar where standard output is a terminal, plain lines where it is not."""

    def __init__(self, *, program: str, config_path: str) -> None:
        """`program` and `config_path` stand in the commands that the summary suggests."""
        self._program, self._config_path = program, config_path
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
            self.note(f"not claimed: {outcome.failure.code}: {outcome.failure.message}")
            return
        if outcome.ending is Ending.ALREADY_COMPLETED and outcome.failure:
            self.note(f"{outcome.failure.message}; nothing is left to do.")
            self.note(f"  see it:        {self._program} show {self._config_path} {config.scenario.id}")
            self.note(
                f"  start another: {self._program} run {self._config_path} --scenario {config.scenario.id + 1}"
                " --video YOUR.mp4"
            )
            return
        self.note(f"scenario {config.scenario.id} {outcome.ending}")
        self._note_failure(config, outcome)
        if outcome.claim is None or not self._started:
            return
        progress, seconds = runner.progress, trio.current_time() - self._started
        rate = f"{progress.frames_stored / seconds:.1f} frames/s" if seconds > 0 else ""
        before = f" ({progress.frames_stored_before} by earlier attempts)" if progress.frames_stored_before else ""
        self.note(f"  stored:      {progress.frames_stored_before + progress.frames_stored} frames{before}")
        self.note(f"  took:        {seconds:.1f} s, {rate}")
        # After a failure the database may be the reason, and nobody waits for labels.
        if outcome.ending is Ending.COMPLETED:
            await self._note_labels(config)
        self.note(f"  where:       {config.database.url}, table trio_runner.predictions")
        self.note(f"  look at it:  {self._program} show {self._config_path} {config.scenario.id}")

    def _note_failure(self, config: Config, outcome: Outcome) -> None:
        if outcome.failure is None:
            return
        self.note(f"  because:     {outcome.failure.code}: {outcome.failure.message}")
        if outcome.event is not None and outcome.ending is not Ending.SUPERSEDED:
            self.note(f"  retry event: {outcome.event.value}, topic {config.kafka.retry_topic}")

    async def _note_labels(self, config: Config) -> None:
        try:
            async with open_store(config.database, application_name="trio-runner summary") as store:
                labels = await reading.label_counts(store, config.scenario.id)
        except RunnerError as error:
            self.note(f"  found:       cannot be read back: {error}")
            return
        found = ", ".join(f"{row['boxes']} {row['label']} in {row['frames']} frames" for row in labels[:SUMMARY_LABELS])
        self.note(f"  found:       {found or 'nothing'}")

    async def _draw_bar(self, runner: Runner) -> None:
        # Imported here: only a terminal has use for rich, which takes long to load.
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        from trio_runner.cli.table import Console

        columns = (
            TextColumn("scenario {task.fields[scenario]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} fps · {task.fields[found]} detections"),
            TimeRemainingColumn(),
        )
        # Refreshed by this task and not by a thread of rich's own.
        with Progress(*columns, console=Console(), auto_refresh=False) as bar:
            task = bar.add_task("", scenario=runner.claim.scenario_id if runner.claim else "", rate=0.0, found=0)

            def update() -> None:
                progress = runner.progress
                bar.update(task, total=progress.declared_frames, completed=progress.next_frame)
                bar.update(task, rate=self._rate(runner), found=progress.detections, refresh=True)

            try:
                while True:
                    update()
                    await trio.sleep(REFRESH_SECONDS)
            finally:
                update()

    def _line(self, runner: Runner) -> str:
        progress = runner.progress
        return (
            f"frame {progress.next_frame} of {progress.declared_frames or 'unknown'} · {self._rate(runner):.1f} fps"
            f" · {progress.detections} detections"
        )

    def _rate(self, runner: Runner) -> float:
        return runner.progress.frames_stored / max(trio.current_time() - self._started, 0.001)

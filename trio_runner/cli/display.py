"""What a person sees of a run: progress while it goes, a summary at the end."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import rich.console
import trio
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from trio_runner.database import reading
from trio_runner.database.store import open_store
from trio_runner.errors import RunnerError
from trio_runner.runner.outcome import Ending

if TYPE_CHECKING:
    from trio_runner.config.load import Config
    from trio_runner.runner.runner import Runner

logger = logging.getLogger(__name__)

REFRESH_SECONDS: Final = 0.2
LINE_SECONDS: Final = 5.0


class Console(rich.console.Console):
    """A reader that went away, as `head -1` does, is no reason to stop working."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on; rich would end the process."""
        self.quiet = True
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


class Terminal:
    """The display of `trio-runner run`: a bar where stdout is a terminal, plain lines where it is not."""

    def __init__(self, console: Console, *, program: str, config_path: str) -> None:
        """Write to `console`; `program` and `config_path` stand in the commands that the summary suggests."""
        self._console, self._program, self._config_path = console, program, config_path
        self._started = 0.0

    def note(self, text: str) -> None:
        """One line, now; a terminal that went away is no reason to stop working."""
        try:
            self._console.print(text, highlight=False, markup=False, soft_wrap=True)
        except OSError as error:
            logger.debug("nobody reads standard output: %s", error)

    async def watch(self, runner: Runner) -> None:
        """Show the runner's progress until cancelled."""
        await runner.claimed.wait()
        self._started = trio.current_time()
        if self._console.is_terminal:
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
        progress, seconds = runner.progress, trio.current_time() - self._started
        self.note(f"scenario {config.scenario.id} {outcome.ending}")
        if outcome.failure:
            self.note(f"  because:     {outcome.failure.code}: {outcome.failure.message}")
            if outcome.event is not None and outcome.ending is not Ending.SUPERSEDED:
                self.note(f"  retry event: {outcome.event.value}, topic {config.kafka.retry_topic}")
        if outcome.claim is None or not self._started:
            return
        rate = f"{progress.frames_stored / seconds:.1f} frames/s" if seconds > 0 else ""
        before = f" ({progress.frames_stored_before} by earlier attempts)" if progress.frames_stored_before else ""
        self.note(f"  stored:      {progress.frames_stored_before + progress.frames_stored} frames{before}")
        self.note(f"  took:        {seconds:.1f} s, {rate}")
        # After a failure the database may be the reason, and nobody waits for labels.
        if outcome.ending is Ending.COMPLETED:
            await self._print_labels(config)
        self.note(f"  where:       {config.database.url}, table trio_runner.predictions")
        self.note(f"  look at it:  {self._program} show {self._config_path} {config.scenario.id}")

    async def _print_labels(self, config: Config) -> None:
        try:
            async with open_store(config.database, application_name="trio-runner summary") as store:
                labels = await reading.label_counts(store, config.scenario.id)
        except RunnerError as error:
            self.note(f"  found:       cannot be read back: {error}")
            return
        found = ", ".join(f"{row['boxes']} {row['label']} in {row['frames']} frames" for row in labels[:8])
        self.note(f"  found:       {found or 'nothing'}")

    async def _draw_bar(self, runner: Runner) -> None:
        columns = (
            TextColumn("scenario {task.fields[scenario]}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.1f} fps · {task.fields[found]} detections"),
            TimeRemainingColumn(),
        )
        # Refreshed by this task and not by a thread of rich's own.
        with Progress(*columns, console=self._console, auto_refresh=False) as bar:
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

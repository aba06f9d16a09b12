"""The verbs of whoever hands out work: submit, stop, retry, and what has become of it all."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import msgspec
import trio
from rich.box import SIMPLE_HEAD
from rich.live import Live
from rich.table import Table
from rich.text import Text

from trio_runner.base import aio
from trio_runner.base.stopping import until_signal
from trio_runner.base.text import harmless
from trio_runner.config.settings import check_scenario_settings
from trio_runner.database.backlog import Backlog
from trio_runner.database.store import open_store
from trio_runner.embedded.addresses import open_addresses
from trio_runner.embedded.hosting import Service
from trio_runner.errors import ClaimRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from rich.console import Console

    from trio_runner.config.load import Config

EXIT_OK = 0
EXIT_REFUSED = 1
WATCH_SECONDS = 1.0
COLUMNS = ("id", "state", "attempt", "frames", "per s", "runner", "lease", "failures", "last error")


async def submit(
    config: Config, scenario_id: int, video: str, settings: Mapping[str, dict[str, Any]], console: Console
) -> int:
    """Ask for a video to be processed; 1 where that scenario is completed, given up, or another video's."""
    check_scenario_settings(settings)
    sections = {name: dict(keys) for name, keys in settings.items()}
    sections.setdefault("video", {}).update(path=video)
    if scenario_id:
        sections.setdefault("scenario", {}).update(id=scenario_id)
    changed = config.replace(**sections)
    async with _open_backlog(config, create_schema=config.database.create_schema) as backlog:
        try:
            given = await backlog.submit(
                scenario_id,
                video,
                settings,
                max_failures=changed.scenario.max_failures,
                max_epochs=config.orchestrator.max_epochs,
            )
        except ClaimRefusedError as error:
            return _refused(error, console)
    console.print(f"scenario {given} is submitted", highlight=False)
    return EXIT_OK


async def stop(config: Config, scenario_id: int, console: Console) -> int:
    """Ask for a scenario to be stopped; 1 where there is none."""
    async with _open_backlog(config) as backlog:
        try:
            status = await backlog.stop(scenario_id)
        except ClaimRefusedError as error:
            return _refused(error, console)
    console.print(f"scenario {scenario_id}: {status}", highlight=False)
    return EXIT_OK


async def retry(config: Config, scenario_id: int, console: Console) -> int:
    """Try a scenario again that was given up or stopped; 1 where it is completed, or a runner is at it."""
    async with _open_backlog(config) as backlog:
        try:
            epoch = await backlog.retry(scenario_id, max_epochs=config.orchestrator.max_epochs)
        except ClaimRefusedError as error:
            return _refused(error, console)
    console.print(f"scenario {scenario_id}: attempt {epoch} is due", highlight=False)
    return EXIT_OK


async def status(config: Config, console: Console, *, watch: bool, as_json: bool) -> int:
    """Every scenario: state, progress, speed, lease, failures, last error; `watch` draws it anew every second."""
    async with until_signal(), _open_backlog(config) as backlog:
        if as_json:
            rows = [_plain(row) for row in await backlog.overview()]
            console.print(msgspec.json.encode(rows).decode(), highlight=False, markup=False, soft_wrap=True)
        elif not watch:
            console.print(overview_table(await backlog.overview()))
        else:
            with Live(console=console, auto_refresh=False) as live:
                while True:
                    live.update(overview_table(await backlog.overview()), refresh=True)
                    await trio.sleep(WATCH_SECONDS)
    return EXIT_OK


def overview_table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """One line for each scenario; where the terminal is narrow the last error is what is cut."""
    lines = [_line(row) for row in rows]
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for number, column in enumerate(COLUMNS):
        widest = max((len(line[number]) for line in lines), default=0)
        table.add_column(column, no_wrap=True, min_width=max(widest, len(column)) if column != COLUMNS[-1] else None)
    for line in lines:
        table.add_row(*map(_cell, line))
    return table


def _line(row: Mapping[str, Any]) -> tuple[str, ...]:
    works = row["instance_id"] is not None
    rate = row["frames_per_second"]
    return (
        str(row["id"]),
        _state(row),
        str(row["epoch"]),
        f"{row['frames_stored']}/{row['total_frames']}" if row["total_frames"] else str(row["frames_stored"]),
        f"{rate:.1f}" if works and rate else "",
        (row["runner_id"] or "") if works else "",
        f"{row['lease_seconds']:.0f} s" if works else "",
        f"{row['failures']}/{row['max_failures']}",
        _error(row),
    )


def _cell(text: str) -> Text:
    """As it is, brackets too, but for what a terminal would obey: others have written it."""
    return Text(harmless(text))


def _state(row: Mapping[str, Any]) -> str:
    if row["status"] == "init_startup" and row["due_seconds"] > 0:
        return f"init_startup in {row['due_seconds']:.0f} s"
    return ", ".join(filter(None, (row["status"], row["outcome"])))


def _error(row: Mapping[str, Any]) -> str:
    error = msgspec.json.decode(row["last_error"]) if row["last_error"] else {}
    return f"{error.get('code')}: {error.get('message')}" if error else ""


def _plain(row: Mapping[str, Any]) -> dict[str, Any]:
    return {**row, "last_error": msgspec.json.decode(row["last_error"]) if row["last_error"] else None}


def _refused(error: ClaimRefusedError, console: Console) -> int:
    console.print(harmless(error.message), highlight=False, markup=False, soft_wrap=True)
    return EXIT_REFUSED


@asynccontextmanager
async def _open_backlog(config: Config, *, create_schema: bool = False) -> AsyncIterator[Backlog]:
    async with (
        aio.open_loop(),
        open_addresses(config, frozenset({Service.DATABASE}), published=False) as live,
        open_store(live.database, application_name="trio-runner") as store,
    ):
        if create_schema:
            await store.create_schema()
        await store.check_schema()
        yield Backlog(store)

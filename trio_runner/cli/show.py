"""The verbs that look at the ledger: show and status."""

from __future__ import annotations

from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import trio

from trio_runner.base import aio
from trio_runner.base.redact import redact
from trio_runner.base.stopping import until_signal
from trio_runner.base.text import counted
from trio_runner.cli.output import print_json, say
from trio_runner.cli.table import Console, FittedTable, error_line, print_table, state_of
from trio_runner.database import reading
from trio_runner.database.backlog import Backlog
from trio_runner.database.store import open_store
from trio_runner.embedded.addresses import open_addresses
from trio_runner.embedded.hosting import Service
from trio_runner.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

    from trio_runner.config.load import Config
    from trio_runner.database.store import Store

WATCH_SECONDS: Final = 1.0
SHOWN_NOT_INFERRED: Final = 20
"""So many frames that were not inferred are shown with their reasons; the view `frames` has all of them."""
COLUMNS: Final = (*("id", "state", "attempt", "frames", "per s", "runner", "lease", "failures", "video", "last error"),)


async def show(config: Config, *, scenario: int | None, as_json: bool) -> ExitCode:
    """One scenario in detail, 1 where it does not exist; all of them, as `status` shows them, without a number."""
    if scenario is None:
        return await status(config, watch=False, as_json=as_json)
    async with _open_ledger(config) as store:
        row = next(iter(await reading.scenarios(store, scenario)), None)
        if row is not None:
            row["video_path"] = redact(row["video_path"])
            row["attempts"] = await reading.attempts(store, scenario)
            row["found"] = await reading.label_counts(store, scenario)
            row["frames"] = await reading.frame_counts(store, scenario)
            row["not_inferred"] = await reading.not_inferred(store, scenario, SHOWN_NOT_INFERRED)
            row["first_stored_at"] = await reading.first_stored_at(store, scenario)
    if as_json:
        print_json(row)
    elif row is None:
        say(f"there is no scenario {scenario}")
    else:
        _print_scenario(row)
    return ExitCode.NOTHING if row is None else ExitCode.OK


async def status(config: Config, *, watch: bool, as_json: bool) -> ExitCode:
    """Every scenario: state, progress, speed, lease, failures, last error; `watch` draws it anew every second."""
    async with until_signal(), _open_ledger(config) as store:
        backlog = Backlog(store)
        if as_json:
            print_json(await _overview(backlog))
        elif not watch:
            print_table(overview_table(await _overview(backlog)))
        else:
            await _watch(backlog)
    return ExitCode.OK


async def _watch(backlog: Backlog) -> None:
    # Imported here: no other use of this module draws anything twice.
    from rich.live import Live

    with Live(console=Console(), auto_refresh=False) as live:
        while True:
            live.update(overview_table(await _overview(backlog)), refresh=True)
            await trio.sleep(WATCH_SECONDS)


async def _overview(backlog: Backlog) -> list[dict[str, Any]]:
    """The ledger's rows, where the query of a presigned URL is masked: it would let any reader read the video."""
    return [{**row, "video_path": redact(row["video_path"])} for row in await backlog.overview()]


def overview_table(rows: Sequence[Mapping[str, Any]]) -> FittedTable:
    """One line for each scenario; where the terminal is narrow, the last error is cut first and then the video."""
    return FittedTable(COLUMNS, map(_overview_line, rows), cut=("last error", "video"))


def _overview_line(row: Mapping[str, Any]) -> tuple[str, ...]:
    works = row["instance_id"] is not None
    rate = row["frames_per_second"]
    return (
        str(row["id"]),
        state_of(row),
        str(row["epoch"]),
        _frames_cell(row),
        f"{rate:.1f}" if works and rate else "",
        (row["runner_id"] or "") if works else "",
        f"{row['lease_seconds']:.0f} s" if works else "",
        f"{row['failures']}/{row['max_failures']}",
        Path(row["video_path"]).name,
        error_line(row["last_error"]),
    )


def _frames_cell(row: Mapping[str, Any]) -> str:
    total = f"/{row['total_frames']}" if row["total_frames"] else ""
    failed = f", {row['frames_not_inferred']} not inferred" if row["frames_not_inferred"] else ""
    return f"{row['frames_stored']}{total}{failed}"


def _print_scenario(row: Mapping[str, Any]) -> None:
    say(
        f"scenario {row['id']}: {state_of(row)}\n"
        f"  video:      {_one_line(row['video_path'])}\n"
        f"  stored:     {counted(row['frames_stored'], 'frame')}, next is frame {row['next_frame']}\n"
        f"{_inferred_line(row['frames'])}"
        f"  failures:   {row['failures']} of {row['max_failures']}\n"
        f"  last error: {_one_line(error_line(row['last_error'])) or 'none'}"
    )
    attempts = FittedTable(
        ("attempt", "started", "took", "frames", "outcome", "error", "runner"),
        [
            (
                str(attempt["epoch"]),
                f"{attempt['started_at']:%m-%d %H:%M:%S}",
                _duration(attempt),
                f"{attempt['first_frame']} to {'' if attempt['end_frame'] is None else attempt['end_frame']}",
                attempt["outcome"] or "running",
                error_line(attempt["error"]).partition(":")[0],
                attempt["runner_id"],
            )
            for attempt in row["attempts"]
        ],
        cut=("runner",),
    )
    print_table(attempts)
    if row["found"]:
        found = [(label["label"], str(label["detections"]), str(label["frames"])) for label in row["found"]]
        print_table(FittedTable(("label", "detections", "frames"), found, cut=("label",)))
    if row["not_inferred"]:
        _print_not_inferred(row)


def _inferred_line(frames: Mapping[str, int]) -> str:
    """Tells frames in which nothing was seen from frames that were not inferred; empty where all were inferred."""
    if not frames["not_inferred"]:
        return ""
    inferred = frames["with_detections"] + frames["without_detections"]
    return f"  inferred:   {inferred} of them; nothing was seen in {frames['without_detections']}\n"


def _print_not_inferred(row: Mapping[str, Any]) -> None:
    reasons = [
        (str(frame["frame_index"]), f"{frame['pts_seconds']:.3f} s", _one_line(frame["reason"]))
        for frame in row["not_inferred"]
    ]
    print_table(FittedTable(("frame", "time", "not inferred because"), reasons, cut=("not inferred because",)))
    if others := row["frames"]["not_inferred"] - len(reasons):
        say(f"and {others} more, which the view trio_runner.frames has")


def _one_line(text: str) -> str:
    return text.replace("\n", " ")


def _duration(attempt: Mapping[str, Any]) -> str:
    if attempt["ended_at"] is None:
        return ""
    return f"{(attempt['ended_at'] - attempt['started_at']).total_seconds():.1f} s"


@asynccontextmanager
async def _open_ledger(config: Config) -> AsyncIterator[Store]:
    async with (
        aio.open_loop(),
        open_addresses(config, frozenset({Service.DATABASE}), published=False) as live,
        open_store(live.database, application_name="trio-runner") as store,
    ):
        await store.check_schema()
        yield store

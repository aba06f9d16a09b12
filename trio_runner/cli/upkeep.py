"""The verbs beside `run`: each opens what it needs, prints, and returns an exit code."""

from __future__ import annotations

import math
import os
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import UUID

import msgspec
import trio
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from trio_runner.base import aio
from trio_runner.base.redact import redact
from trio_runner.base.stopping import until_signal
from trio_runner.database import reading
from trio_runner.database.rights import ORCHESTRATOR_VERBS, RUNNER_VERBS
from trio_runner.database.store import open_store
from trio_runner.embedded.addresses import embedded_services, open_addresses
from trio_runner.embedded.data_directory import is_hosted
from trio_runner.embedded.hosting import Service, addresses_as_toml, open_servers
from trio_runner.failure import reaper
from trio_runner.failure.outbox import flush, publish_outbox, publish_spooled
from trio_runner.failure.spool import spool_of
from trio_runner.failure.unreported import report_invocation
from trio_runner.kafka.record import BadEventError, Record
from trio_runner.kafka.retry_event import event_of
from trio_runner.kafka.topic import open_topic
from trio_runner.runner import preflight

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_runner.config.load import Config
    from trio_runner.failure.outbox import Report

EXIT_OK = 0
EXIT_NOTHING = 1
EXIT_UNCONFIRMED = 74
POLL_SECONDS = 0.5


async def init_db(config: Config, runner: str | None, orchestrator: str | None, console: Console) -> int:
    """Apply the schema files that the database lacks, and give roles the rights of a runner or an orchestrator."""
    granted = {
        "a runner": (runner, RUNNER_VERBS),
        "an orchestrator": (orchestrator, ORCHESTRATOR_VERBS),
    }
    async with (
        aio.open_loop(),
        open_addresses(config, frozenset({Service.DATABASE}), published=False) as live,
        open_store(live.database, application_name="trio-runner init-db") as store,
    ):
        applied = await store.create_schema()
        for role, verbs in granted.values():
            if role is not None:
                await store.grant(role, verbs)
    for name in applied:
        console.print(f"applied {name}", highlight=False)
    console.print("the schema is complete", highlight=False)
    for who, (role, _) in granted.items():
        if role is not None:
            console.print(f"{role} may do what {who} does", highlight=False, markup=False)
    return EXIT_OK


async def check(config: Config, console: Console) -> int:
    """The preflight of `run`, alone, as a table; 1 where something is not as it must be."""
    spool = spool_of(config)
    try:
        async with aio.open_loop(), open_addresses(config, published=False) as live:
            findings = await preflight.check(live, spool)
    finally:
        spool.close()
    table = _table("thing", "state", "time", "where")
    for finding in findings:
        state = "ok" if finding.failure is None else str(finding.failure.code)
        _add_row(table, finding.thing, state, f"{finding.seconds:.2f} s", redact(finding.where))
    console.print(table)
    failures = [finding.failure for finding in findings if finding.failure is not None]
    for failure in failures:
        console.print(f"{failure.code}: {failure.message}", highlight=False, markup=False, soft_wrap=True)
    return EXIT_NOTHING if failures else EXIT_OK


async def flush_spool(config: Config, console: Console) -> int:
    """Publish the retry events that wait in the spool and in the database; 74 where some still wait."""
    spool = spool_of(config)
    published, left = 0, len(await spool.waiting())
    if Service.KAFKA in embedded_services(config) and not is_hosted(Path(config.runner.data_dir)):
        console.print("the embedded broker is not running, and keeps nothing when it ends", highlight=False)
    else:
        services = frozenset({Service.DATABASE, Service.KAFKA})
        async with aio.open_loop(), open_addresses(config, services, published=False) as live:
            if left:
                published, left = await publish_spooled(live, spool)
            async with open_store(live.database, application_name="trio-runner flush-spool") as store:
                reports = await publish_outbox(live, store)
        left += sum(report.event.is_due for report in reports)
        published += sum(not report.event.is_due for report in reports)
    console.print(f"retry events published: {published}, still waiting: {left}", highlight=False)
    return EXIT_UNCONFIRMED if left else EXIT_OK


async def report_death(config: Config, console: Console) -> int:
    """Report what the config's scenario died of, where its process did not; 74 where Kafka does not have it yet."""
    spool = spool_of(config)
    try:
        async with (
            aio.open_loop(),
            open_addresses(config, frozenset({Service.DATABASE, Service.KAFKA}), published=False) as live,
        ):
            try:
                report = await report_invocation(live, spool, os.environ)
            finally:
                # An attempt that ended with 74 may have left its event in the spool; this is the second try.
                await flush(live, spool)  # noqa: ASYNC102 - after Ctrl-C nothing is sent, which is right
    finally:
        spool.close()
    return _print_reports([] if report is None else [report], console)


async def reap(config: Config, console: Console) -> int:
    """Report every runner whose lease has ended, and what Kafka was not told of; 74 where it still does not know."""
    async with (
        aio.open_loop(),
        open_addresses(config, frozenset({Service.DATABASE, Service.KAFKA}), published=False) as live,
    ):
        reports = await reaper.reap(live)
    return _print_reports(reports, console)


def _print_reports(reports: Sequence[Report], console: Console) -> int:
    for report in reports:
        attempt = f"scenario {report.claim.scenario_id}, attempt {report.claim.epoch}"
        console.print(f"{attempt}: the retry event is {report.event.value}", highlight=False)
    if not reports:
        console.print("nothing to report", highlight=False)
    return EXIT_UNCONFIRMED if any(report.event.is_due for report in reports) else EXIT_OK


async def show(config: Config, scenario_id: int | None, console: Console, *, as_json: bool) -> int:
    """What the ledger knows about one scenario, or about all; 1 where there is no such scenario."""
    async with (
        aio.open_loop(),
        open_addresses(config, frozenset({Service.DATABASE}), published=False) as live,
        open_store(live.database, application_name="trio-runner show") as store,
    ):
        await store.check_schema()
        scenarios = await reading.scenarios(store, scenario_id)
        if scenario_id is not None and scenarios:
            scenarios[0]["attempts"] = await reading.attempts(store, scenario_id)
            scenarios[0]["found"] = await reading.label_counts(store, scenario_id)
            scenarios[0]["first_stored_at"] = await reading.first_stored_at(store, scenario_id)
    missing = scenario_id is not None and not scenarios
    if as_json:
        _print_json(console, scenarios if scenario_id is None else next(iter(scenarios), None))
    elif scenario_id is None:
        console.print(_scenario_table(scenarios))
    elif scenarios:
        _print_scenario(scenarios[0], console)
    else:
        console.print(f"there is no scenario {scenario_id}", highlight=False)
    return EXIT_NOTHING if missing else EXIT_OK


async def events(config: Config, console: Console, *, as_json: bool, follow: bool) -> int:
    """The retry topic; the ledger's record of it where the broker was embedded and is gone."""
    if Service.KAFKA in embedded_services(config) and not is_hosted(Path(config.runner.data_dir)):
        return await _events_from_ledger(config, console, as_json=as_json)
    async with (
        until_signal(),
        aio.open_loop(),
        open_addresses(config, frozenset({Service.KAFKA})) as live,
        open_topic(live.kafka) as topic,
    ):
        while follow or not await topic.at_end():
            for record in await topic.read(wait_seconds=POLL_SECONDS):
                _print_record(record, console, as_json=as_json)
    return EXIT_OK


async def host_embedded(config: Config, console: Console) -> int:
    """Host the embedded servers until the first SIGINT or SIGTERM."""
    services = embedded_services(config)
    say = partial(console.print, markup=False)
    if not services:
        console.print("nothing to host: every address in this config is a real one", highlight=False)
        return EXIT_OK
    async with (
        until_signal(),
        open_servers(Path(config.runner.data_dir), services, published=True, on_wait=say) as live,
    ):
        console.print(addresses_as_toml(live), highlight=False, markup=False, soft_wrap=True)
        console.print("# until Ctrl-C", highlight=False)
        await trio.sleep(math.inf)  # noqa: ASYNC116 - the type of sleep_forever forbids a return
    return EXIT_OK


async def _events_from_ledger(config: Config, console: Console, *, as_json: bool) -> int:
    async with (
        aio.open_loop(),
        open_addresses(config, frozenset({Service.DATABASE}), published=False) as live,
        open_store(live.database, application_name="trio-runner events") as store,
    ):
        await store.check_schema()
        rows = await reading.retry_events(store)
    # On stderr: what follows on stdout is the events, perhaps for a program.
    Console(stderr=True).print(
        "the embedded broker is not running and keeps nothing; this is the ledger's record of the events:",
        highlight=False,
    )
    for row in rows:
        _print_event(msgspec.json.decode(row["body"]), {"ce_id": str(row["event_id"])}, console, as_json=as_json)
    return EXIT_OK


def _print_json(console: Console, value: Any) -> None:
    """One JSON document a line; jsonb columns as what they hold."""
    console.print(msgspec.json.encode(_plain(value)).decode(), highlight=False, markup=False, soft_wrap=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: msgspec.json.decode(item) if key in ("last_error", "error") and isinstance(item, str) else _plain(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, UUID) else value


def _print_record(record: Record, console: Console, *, as_json: bool) -> None:
    """As JSON whatever it holds; for people what it says, if it is an event."""
    try:
        event_of(record)
    except BadEventError as error:
        if not as_json:
            place = f"partition {record.partition}, offset {record.offset}"
            console.print(f"{place}: no retry event: {error}", highlight=False, markup=False, soft_wrap=True)
            return
    _print_event(record.body, record.headers, console, as_json=as_json)


def _print_event(body: Any, headers: Mapping[str, str], console: Console, *, as_json: bool) -> None:
    if as_json:
        _print_json(console, {"headers": dict(headers), "body": body})
        return
    console.print(
        f"{body.get('timestamp', '')}  scenario {body.get('scenario_id')}  attempt {body.get('epoch')}"
        f"  {body.get('runner_id', '')}  {body.get('reason', body.get('error'))}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )


def _scenario_table(scenarios: list[dict[str, Any]]) -> Table:
    table = _table("id", "state", "attempt", "frames", "last error", "video")
    for row in scenarios:
        _add_row(
            table,
            str(row["id"]),
            _state(row),
            str(row["epoch"]),
            f"{row['frames_stored']}/{row['total_frames'] or '?'}",
            _error_line(row["last_error"]).partition(":")[0],
            Path(row["video_path"]).name,
        )
    return table


def _print_scenario(row: dict[str, Any], console: Console) -> None:
    console.print(
        f"scenario {row['id']}: {_state(row)}\n"
        f"  video:      {row['video_path']}\n"
        f"  stored:     {row['frames_stored']} frames, next is frame {row['next_frame']}\n"
        f"  failures:   {row['failures']} of {row['max_failures']}\n"
        f"  last error: {_error_line(row['last_error']) or 'none'}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    attempts = _table("attempt", "started", "took", "frames", "outcome", "error", "runner")
    for attempt in row["attempts"]:
        _add_row(
            attempts,
            str(attempt["epoch"]),
            f"{attempt['started_at']:%m-%d %H:%M:%S}",
            _duration(attempt),
            f"{attempt['first_frame']} to {'' if attempt['end_frame'] is None else attempt['end_frame']}",
            attempt["outcome"] or "running",
            _error_line(attempt["error"]).partition(":")[0],
            attempt["runner_id"],
        )
    console.print(attempts)
    if row["found"]:
        found = _table("label", "boxes", "frames")
        for label in row["found"]:
            _add_row(found, label["label"], str(label["boxes"]), str(label["frames"]))
        console.print(found)


def _table(*columns: str) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for column in columns:
        table.add_column(column, no_wrap=True)
    return table


def _add_row(table: Table, *cells: str) -> None:
    """Names as they are: a bracket is no markup."""
    table.add_row(*map(Text, cells))


def _state(row: Mapping[str, Any]) -> str:
    return ", ".join(filter(None, (row["status"], row["outcome"])))


def _error_line(error: str | None) -> str:
    if not error:
        return ""
    told = msgspec.json.decode(error)
    return f"{told.get('code', '')}: {told.get('message', '')}".rstrip(": ") if isinstance(told, dict) else str(told)


def _duration(attempt: Mapping[str, Any]) -> str:
    if attempt["ended_at"] is None:
        return ""
    return f"{(attempt['ended_at'] - attempt['started_at']).total_seconds():.1f} s"

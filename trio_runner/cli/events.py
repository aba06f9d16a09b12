"""The verb that prints the retry events."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trio_runner.base import aio
from trio_runner.base.stopping import until_signal
from trio_runner.cli.output import print_json, say
from trio_runner.database import reading
from trio_runner.database.store import open_store
from trio_runner.embedded.addresses import embedded_services, open_addresses
from trio_runner.embedded.data_directory import is_hosted
from trio_runner.embedded.hosting import Service
from trio_runner.errors import ExitCode
from trio_runner.kafka.record import BadEventError
from trio_runner.kafka.retry_event import event_of
from trio_runner.kafka.topic import open_topic

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_runner.config.load import Config
    from trio_runner.kafka.record import Record

POLL_SECONDS: Final = 0.5


async def events(config: Config, *, as_json: bool, follow: bool) -> ExitCode:
    """Print the retry topic; where the broker was embedded and is gone, the ledger's record of it."""
    if Service.KAFKA in embedded_services(config) and not is_hosted(Path(config.runner.data_dir)):
        await _print_recorded(config, as_json=as_json)
        return ExitCode.OK
    async with (
        until_signal(),
        aio.open_loop(),
        open_addresses(config, frozenset({Service.KAFKA})) as live,
        open_topic(live.kafka) as topic,
    ):
        while follow or not await topic.at_end():
            for record in await topic.read(wait_seconds=POLL_SECONDS):
                _print_record(record, as_json=as_json)
    return ExitCode.OK


async def _print_recorded(config: Config, *, as_json: bool) -> None:
    async with (
        aio.open_loop(),
        open_addresses(config, frozenset({Service.DATABASE}), published=False) as live,
        open_store(live.database, application_name="trio-runner events") as store,
    ):
        await store.check_schema()
        rows = await reading.retry_events(store)
    # On stderr, because a program may read the events from stdout.
    print("the embedded broker is not running and keeps no events; these are the ledger's records:", file=sys.stderr)
    for row in rows:
        _print_event(msgspec.json.decode(row["body"]), {"ce_id": str(row["event_id"])}, as_json=as_json)


def _print_record(record: Record, *, as_json: bool) -> None:
    """Print it as JSON whatever it holds; for people as an event, or else why it is none."""
    try:
        event_of(record)
    except BadEventError as error:
        if not as_json:
            say(f"partition {record.partition}, offset {record.offset}: no retry event: {error}".replace("\n", " "))
            return
    _print_event(record.body, record.headers, as_json=as_json)


def _print_event(body: Any, headers: Mapping[str, str], *, as_json: bool) -> None:
    if as_json:
        print_json({"headers": dict(headers), "body": body})
        return
    line = (
        f"{body.get('timestamp', '')}  scenario {body.get('scenario_id')}  attempt {body.get('epoch')}"
        f"  {body.get('runner_id', '')}  {body.get('reason', body.get('error'))}"
    )
    say(line.replace("\n", " "))

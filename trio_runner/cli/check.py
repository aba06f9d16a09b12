"""The verb that asks every peer whether a run could begin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_runner.base import aio
from trio_runner.base.redact import redact
from trio_runner.cli.output import say
from trio_runner.cli.table import FittedTable, print_table
from trio_runner.embedded.addresses import open_addresses
from trio_runner.errors import ExitCode
from trio_runner.failure.spool import spool_of
from trio_runner.runner import preflight

if TYPE_CHECKING:
    from trio_runner.config.load import Config


async def check(config: Config) -> ExitCode:
    """The preflight of `run`, alone, as a table; 1 where something would keep a run from beginning."""
    spool = spool_of(config)
    try:
        async with aio.open_loop(), open_addresses(config, published=False) as live:
            findings = await preflight.check(live, spool)
    finally:
        spool.close()
    table = FittedTable(
        ("check", "state", "time", "where"),
        [
            (
                finding.thing,
                "ok" if finding.failure is None else str(finding.failure.code),
                f"{finding.seconds:.2f} s",
                redact(finding.where),
            )
            for finding in findings
        ],
        cut=("where",),
    )
    print_table(table)
    failures = [finding.failure for finding in findings if finding.failure is not None]
    for failure in failures:
        say(f"{failure.code}: {failure.message}")
    return ExitCode.NOTHING if failures else ExitCode.OK

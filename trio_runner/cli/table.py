"""Tables on standard output: one look for all, and cells that show names and messages without acting on them."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING, Any, Final

import msgspec
import rich.console
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trio_runner.base.text import harmless
from trio_runner.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from rich.console import ConsoleOptions, RenderResult


UNLIMITED: Final = 2**20
"""Characters: wider than any table."""
SHORT: Final = 24
"""Characters that each column keeps while another one can still be shortened to as many."""
SHORTEST: Final = 5
"""Characters that each column keeps in any case, the ellipsis among them."""


class Console(rich.console.Console):
    """Standard output, drawn by rich; a reader that went away, as `head -1` does, is no reason to stop working."""

    def __init__(self) -> None:
        """As wide as the terminal, or as COLUMNS says; without limit where the output goes to a file or a program."""
        limited = sys.stdout.isatty() or os.environ.get("COLUMNS")
        super().__init__(width=None if limited else UNLIMITED)

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on; rich itself would end the process."""
        self.quiet = True
        output.discard()


class FittedTable(Table):
    """A table that shortens only some columns where the terminal is narrow.

    Where that is not enough, its lines are longer than the terminal is wide. rich by itself would shorten all columns,
    the numbers too, and leave out the narrow ones.
    """

    def __init__(self, columns: Sequence[str], rows: Iterable[Sequence[str]], *, cut: Sequence[str]) -> None:
        """`cut` names the columns that are shortened, the first one before the others."""
        super().__init__(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
        lines = [tuple(map(cell, row)) for row in rows]
        for column in columns:
            self.add_column(column, no_wrap=True)
        for line in lines:
            self.add_row(*line)
        self._cut = tuple(columns.index(name) for name in cut)
        self._widths = [
            max([len(name), *(line[number].cell_len for line in lines)]) for number, name in enumerate(columns)
        ]

    def __rich_console__(self, console: rich.console.Console, options: ConsoleOptions) -> RenderResult:
        """The table in the width that there is now, which changes when a terminal is resized."""
        widths = list(self._widths)
        # After each column come one space of padding and one between the columns, but for the last.
        spaces = 2 * len(widths) - 1
        for shortest in (SHORT, SHORTEST):
            for number in self._cut:
                excess = sum(widths) + spaces - options.max_width
                widths[number] -= min(max(excess, 0), max(widths[number] - shortest, 0))
        for column, width in zip(self.columns, widths, strict=True):
            column.width = width
        self.width = sum(widths) + spaces
        yield from super().__rich_console__(console, options)


def print_table(made: FittedTable) -> None:
    """Print the table; a terminal that is too narrow for its lines wraps them."""
    Console().print(made, crop=False)


def cell(text: str) -> Text:
    """The text as it is, brackets too, but without control characters: others have written it."""
    return Text(harmless(text))


def error_line(error: str | None) -> str:
    """An error as the ledger has it, JSON with a code and a message, on one line."""
    if not error:
        return ""
    recorded = msgspec.json.decode(error)
    if not isinstance(recorded, dict):
        return str(recorded)
    return f"{recorded.get('code', '')}: {recorded.get('message', '')}".rstrip(": ")


def state_of(row: Mapping[str, Any]) -> str:
    """A scenario's status, after its outcome where it has one; when its next attempt is due, where that is known."""
    if row["outcome"]:
        return f"{row['outcome']} ({row['status']})"
    if row["status"] == "init_startup" and row.get("due_seconds", 0) > 0:
        return f"init_startup in {row['due_seconds']:.0f} s"
    return str(row["status"])

"""Tables on standard output: one look for all, and cells that show names and messages without acting on them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import rich.console
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from trio_runner.base.text import harmless
from trio_runner.cli import output

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence


class Console(rich.console.Console):
    """Standard output, drawn by rich; a reader that went away, as `head -1` does, is no reason to stop working."""

    def on_broken_pipe(self) -> None:
        """Write to nowhere from now on; rich itself would end the process."""
        self.quiet = True
        output.discard()


def table(columns: Sequence[str], rows: Iterable[Sequence[str]], *, cut: str = "") -> Table:
    """Columns under their names; where the terminal is narrow, `cut` is the one that loses its end, if one is named."""
    lines = [tuple(map(cell, row)) for row in rows]
    made = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for number, column in enumerate(columns):
        widest = max((line[number].cell_len for line in lines), default=0)
        fixed = cut and column != cut
        made.add_column(column, no_wrap=True, min_width=max(widest, len(column)) if fixed else None)
    for line in lines:
        made.add_row(*line)
    return made


def print_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print such a table."""
    Console().print(table(columns, rows))


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

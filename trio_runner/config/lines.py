"""The line of a TOML text on which each key stands."""

from __future__ import annotations

import re
from itertools import takewhile
from typing import TYPE_CHECKING, Any, Final

import tomli

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

Path = tuple[str, ...]

_TOKEN: Final = re.compile(
    r'"""(?:\\.|[^\\])*?"{3,5}'
    r"|'''.*?'{3,5}"
    r'|"(?:\\.|[^"\\\n])*"'
    r"|'[^'\n]*'"
    r"|#[^\n]*|[\[\]{}\n]",
    re.DOTALL,
)
"""The tokens that end a statement, or inside which its end may be hidden: strings, comments, brackets, newlines."""


def key_lines(text: str) -> dict[Path, int]:
    """The 1-based line of every table and key of a valid TOML text, where it is first written.

    A key inside an inline table has the line on which the statement begins.
    """
    return _first_lines(_written(text))


def written_twice(text: str, line: int) -> tuple[Path, int] | None:
    """The path that the statement around `line` writes again, and the line on which it was written first.

    None where no path is written twice up to there.
    """
    try:
        before = list(takewhile(lambda entry: entry[0] <= line, _written(text)))
    except tomli.TOMLDecodeError:
        return None
    statement = max((start for start, _ in before), default=0)
    first = _first_lines(entry for entry in before if entry[0] < statement)
    again = [path for start, path in before if start == statement and path in first]
    return (max(again, key=len), first[max(again, key=len)]) if again else None


def broken_line(text: str) -> int | None:
    """The line on which the first statement begins that is not valid TOML by itself."""
    for line, statement in _statements(text):
        try:
            tomli.loads(statement)
        except (ValueError, RecursionError):
            return line
    return None


def _first_lines(written: Iterable[tuple[int, Path]]) -> dict[Path, int]:
    lines: dict[Path, int] = {}
    for line, path in written:
        lines.setdefault(path, line)
    return lines


def _written(text: str) -> Iterator[tuple[int, Path]]:
    """Each path in the order of the text, after the tables around it, with the line on which its statement begins."""
    header: Path = ()
    for line, statement in _statements(text):
        is_header = statement.lstrip().startswith("[")
        paths = [path if is_header else header + path for path in _paths(tomli.loads(statement))]
        yield from ((line, path) for path in paths)
        if is_header:
            header = max(paths, key=len)


def _statements(text: str) -> Iterator[tuple[int, str]]:
    """The statements of the text, each one header or one key with its value; they end at newlines outside brackets."""
    line, start, depth = 1, 0, 0
    for token in _TOKEN.finditer(text):
        if token[0] in "[{":
            depth += 1
        elif token[0] in "]}":
            depth -= 1
        elif token[0] == "\n" and depth == 0:
            yield line, text[start : token.end()]
            line += text.count("\n", start, token.end())
            start = token.end()
    yield line, text[start:]


def _paths(tables: dict[str, Any]) -> Iterator[Path]:
    """Every path through nested tables; without recursion, because there may be a thousand levels."""
    waiting: list[tuple[Path, dict[str, Any]]] = [((), tables)]
    while waiting:
        above, table = waiting.pop()
        for key, value in table.items():
            yield (*above, key)
            if isinstance(value, dict):
                waiting.append(((*above, key), value))

"""The mistakes in a config: each with its place and its remedy, in a message that gives no secret away."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trio_runner.errors import ErrorCode

if TYPE_CHECKING:
    from collections.abc import Iterable

SECRET_NAME: Final = re.compile(
    r"(?:pass(?:word|wd|phrase|code)?|pwd|token|secret|credentials?|(?:api|access)_?key)(?:_file)?$", re.IGNORECASE
)
_SECRET_TEXT: Final = re.compile(r"[@?]|pass|pwd|token|secret|-----BEGIN", re.IGNORECASE)
_SHOWN_CHARACTERS: Final = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One mistake: its place, what is wrong, and the remedy; only `problem` is always set."""

    problem: str
    path: tuple[str, ...] = ()
    """Section and key, or whatever was written in their place."""
    line: int | None = None
    found: str = ""
    allowed: str = ""
    nearest: str = ""
    """The known key or section that this one resembles."""
    remedy: str = ""
    others: tuple[tuple[str, ...], ...] = ()
    """The keys that this one does not go together with."""

    @property
    def key(self) -> str:
        """The path as TOML would write it; letters that look like others and control characters show as escapes."""
        bare = rf"[A-Za-z0-9_-]{{1,{_SHOWN_CHARACTERS}}}"
        return ".".join(part if re.fullmatch(bare, part) else _quoted(part) for part in self.path)

    @property
    def sentence(self) -> str:
        """Everything but the line."""
        text = self.problem
        if self.found:
            text += f", found {self.found}"
        if self.allowed:
            text += f"; allowed: {self.allowed}"
        if self.nearest:
            text += f"; did you mean '{self.nearest}'?"
        if self.remedy:
            text += f"; {self.remedy}"
        return f"{self.key}: {text}" if self.path else text

    def __str__(self) -> str:
        return f"line {self.line}: {self.sentence}" if self.line else self.sentence


class ConfigError(Exception):
    """A config that cannot be used; `problems` are all its mistakes in the order of their lines."""

    code: Final = ErrorCode.CONFIG_INVALID

    def __init__(self, problems: Iterable[Problem]) -> None:
        """Problems without a line come last."""
        self.problems = tuple(sorted(problems, key=lambda problem: problem.line or float("inf")))
        super().__init__(str(self))

    def __str__(self) -> str:
        """One line a mistake."""
        return "\n".join(map(str, self.problems))

    def report(self, file: str, settings: Iterable[str] = ()) -> str:
        """The problems as a compiler prints them, so that editors can jump to the lines; the last line sums them up.

        Args:
            file: The config's path; "" where only a command line was read.
            settings: The values of `--set`, which is the place of a problem with one of their keys.
        """
        written = {text.partition("=")[0].strip() for text in settings}

        def place(problem: Problem) -> str:
            keys = {".".join(path) for path in (problem.path, *problem.others)}
            if problem.line:
                return f"{file}:{problem.line}"
            # The path of an unknown section is the section alone.
            is_set = any(key in written or any(each.startswith(f"{key}.") for each in written) for key in keys)
            return "--set" if is_set or not file else file

        lines = [f"{place(problem)}: {problem.sentence}" for problem in self.problems]
        count = f"{len(lines)} error{'s' if len(lines) > 1 else ''}"
        where, outcome = (file, ", nothing was started") if file else ("--set", "")
        return "\n".join([*lines, f"{where}: {self.code}: {count}{outcome}"])


def shown(path: tuple[str, ...], value: Any) -> str:
    """The value of the key `path` as a message may repeat it: bounded, on one line, and not if it may be a secret."""
    secret = any(map(SECRET_NAME.search, path))
    if isinstance(value, str):
        return "text that is not repeated here" if secret or _SECRET_TEXT.search(value) else _quoted(value)
    if isinstance(value, bool | int | float) and not secret:
        # Python refuses to write out integers of more than 4300 digits.
        short = not isinstance(value, int) or value.bit_length() <= 64  # noqa: PLR2004 - what any number here needs
        return json.dumps(value).replace("NaN", "nan").replace("Infinity", "inf") if short else "a huge integer"
    kinds = {bool: "a truth value", int: "an integer", float: "a number", list: "an array", dict: "a table"}
    return kinds.get(type(value), "a date or time")


def _quoted(text: str) -> str:
    return json.dumps(text[:_SHOWN_CHARACTERS]) + ("…" if len(text) > _SHOWN_CHARACTERS else "")

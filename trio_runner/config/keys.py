"""Checks tables key by key: right keys become structs, and every wrong one becomes a problem."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trio_runner.config.errors import SECRET_NAME, Problem, shown
from trio_runner.config.sections import allowed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from trio_runner.config.sections import Section

CREDENTIALS_DIRECTORY: Final = "CREDENTIALS_DIRECTORY"
"""The variable with the directory of LoadCredential= files; no other variable may stand in a path."""

_VARIABLE: Final = re.compile(r"\A\$(?:CREDENTIALS_DIRECTORY|\{CREDENTIALS_DIRECTORY\})(?=/)")
_CERTAINLY_MEANT: Final = 0.85
_MAX_GUESSES: Final = 500
"""A guess takes up to a millisecond, and there may be thousands of unknown keys."""


def is_credential(key: str, path: str) -> bool:
    """Whether that key's path begins with `$CREDENTIALS_DIRECTORY/`."""
    return key.endswith("_file") and _VARIABLE.match(path) is not None


def check_tables(
    tables: Mapping[str, Any], kinds: Mapping[str, type[Section]], environ: Mapping[str, str] | None
) -> tuple[dict[str, Any], list[Problem]]:
    """A struct for each section, made of the keys that are right in it, and the problems with the others.

    Args:
        tables: The tables as they were written.
        kinds: The struct of each section.
        environ: Where `$CREDENTIALS_DIRECTORY` in a `*_file` key is looked up; with None it stays as it is.
    """
    problems: list[Problem] = []
    sections: dict[str, Any] = {}
    unknown = _Unknown({name: list(kind.__struct_fields__) for name, kind in kinds.items()})
    for name, kind in kinds.items():
        types = {field.name: field.type for field in msgspec.structs.fields(kind)}
        table = tables.get(name, {})
        if not isinstance(table, dict):
            found = shown((name,), table)
            problems.append(Problem(problem="bad value", path=(name,), found=found, allowed=f"the table [{name}]"))
            table = {}
        checked = {key: _check((name, key), value, types[key], environ) for key, value in table.items() if key in types}
        problems += [value for value in checked.values() if isinstance(value, Problem)]
        problems += [unknown.key(name, key) for key in table if key not in types]
        sections[name] = kind(**{key: value for key, value in checked.items() if not isinstance(value, Problem)})
    problems += [unknown.section(name, table) for name, table in tables.items() if name not in kinds]
    return sections, problems


def _check(path: tuple[str, ...], value: Any, kind: Any, environ: Mapping[str, str] | None) -> Any:
    """The value as the key's type has it, or a Problem."""
    if environ is not None and isinstance(value, str) and is_credential(path[-1], value):
        directory = environ.get(CREDENTIALS_DIRECTORY)
        if not directory:
            remedy = "give the systemd unit a LoadCredential=, or write the path itself"
            return Problem(problem=f"${CREDENTIALS_DIRECTORY} is not set", path=path, remedy=remedy)
        value = _VARIABLE.sub(lambda _: directory, value)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return Problem(problem="bad value", path=path, found=shown(path, value), allowed=allowed(kind))


class _Unknown:
    """Makes problems of unknown keys and sections, with the known one that was probably meant."""

    def __init__(self, known: dict[str, list[str]]) -> None:
        """`known` are the keys of each section."""
        self._known = known
        self._guesses_left = _MAX_GUESSES

    def section(self, name: str, value: Any) -> Problem:
        """The problem with an unknown table, or with a key that stands above all tables."""
        is_table = isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict))
        if not is_table and (homes := self._homes(name)):
            return self._elsewhere((name,), homes, name)
        nearest = self._nearest(name, self._known)
        if not nearest and not is_table and (key := self._nearest_anywhere(name)):
            return self._elsewhere((name,), self._homes(key), key)
        return Problem(
            problem="unknown section" if is_table else "unknown key",
            path=(name,),
            nearest=nearest,
            allowed="" if nearest else ", ".join(f"[{section}]" for section in self._known),
            others=((nearest,),) if nearest else (),
        )

    def key(self, section: str, name: str) -> Problem:
        """The problem with an unknown key in a known section."""
        path, here = (section, name), self._known[section]
        if homes := self._homes(name):
            return self._elsewhere(path, homes, name)
        if name in self._known:
            return Problem(
                problem="unknown key", path=path, remedy=f"[{name}] is a section of its own", others=((name,),)
            )
        nearest = self._nearest(name, here, cutoff=_CERTAINLY_MEANT)
        if not nearest and SECRET_NAME.search(name):
            file_key = next((key for key in here if re.fullmatch(r"(password|token)_file", key)), "")
            name_it = f"name that in {file_key}" if file_key else "name that in password_file of [database] or [kafka]"
            remedy = f"write it into a file and {name_it}"
            return Problem(problem="unknown key", path=path, remedy=remedy, others=((section, file_key),))
        nearest = nearest or self._nearest(name, here)
        if not nearest and (key := self._nearest_anywhere(name)):
            return self._elsewhere(path, self._homes(key), key)
        return Problem(
            problem="unknown key",
            path=path,
            nearest=nearest,
            allowed="" if nearest else ", ".join(here),
            others=((section, nearest),) if nearest else (),
        )

    def _homes(self, key: str) -> list[str]:
        return [section for section, keys in self._known.items() if key in keys]

    def _nearest_anywhere(self, name: str) -> str:
        return self._nearest(name, {key for keys in self._known.values() for key in keys}, cutoff=_CERTAINLY_MEANT)

    @staticmethod
    def _elsewhere(path: tuple[str, ...], homes: list[str], key: str) -> Problem:
        return Problem(
            problem="unknown key",
            path=path,
            nearest="" if key == path[-1] else key,
            remedy=f"known in {', '.join(f'[{section}]' for section in homes)}",
            others=tuple((section, key) for section in homes),
        )

    def _nearest(self, name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
        if not self._guesses_left:
            return ""
        self._guesses_left -= 1
        plain = name.lower().replace("-", "_")
        return next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=cutoff)), "")

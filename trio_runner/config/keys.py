"""Checks tables key by key: right keys become structs, and every wrong one becomes a problem."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, Final

import msgspec

from trio_runner.config.errors import SECRET_NAME, Problem, shown
from trio_runner.config.kinds import Section, allowed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

Path = tuple[str, ...]

CREDENTIALS_DIRECTORY: Final = "CREDENTIALS_DIRECTORY"
"""The variable with the directory of LoadCredential= files; no other variable may stand in a path."""

_VARIABLE: Final = re.compile(r"\A\$(?:CREDENTIALS_DIRECTORY|\{CREDENTIALS_DIRECTORY\})(?=/)")
_CERTAINLY_MEANT: Final = 0.85
_MAX_GUESSES: Final = 500
"""A guess takes up to a millisecond, and there may be thousands of unknown keys."""


def is_credential(key: str, path: str) -> bool:
    """Whether that key's path begins with `$CREDENTIALS_DIRECTORY/`."""
    return key.endswith(("_file", "_files")) and _VARIABLE.match(path) is not None


def check_tables(
    tables: Mapping[str, Any], kinds: Mapping[str, type[Section]], environ: Mapping[str, str] | None
) -> tuple[dict[str, Any], list[Problem]]:
    """A struct for each section, made of the keys that are right in it, and the problems with the others.

    Args:
        tables: The tables as they were written; a section may hold tables itself.
        kinds: The struct of each section.
        environ: Where `$CREDENTIALS_DIRECTORY` in a `*_file` key is looked up; with None it stays as it is.
    """
    known: dict[Path, list[str]] = {}
    for name, kind in kinds.items():
        known |= _tables_in((name,), kind)
    problems: list[Problem] = []
    unknown = _Unknown(known)
    sections = {
        name: _checked_table((name,), tables.get(name, {}), kind, environ, unknown, problems)
        for name, kind in kinds.items()
    }
    problems += [unknown.section(name, table) for name, table in tables.items() if name not in kinds]
    return sections, problems


def _tables_in(path: Path, kind: type[Section]) -> dict[Path, list[str]]:
    """The keys of the section at `path`, and those of each table inside it."""
    found = {path: [name for name, each in _types(kind).items() if not is_table(each)]}
    for name, each in _types(kind).items():
        if is_table(each):
            found |= _tables_in((*path, name), each)
    return found


def _types(kind: type[Section]) -> dict[str, Any]:
    return {field.name: field.type for field in msgspec.structs.fields(kind)}


def is_table(kind: Any) -> bool:
    """Whether a key's type is a table with keys of its own."""
    return isinstance(kind, type) and issubclass(kind, Section)


def _checked_table(
    path: Path,
    table: Any,
    kind: type[Section],
    environ: Mapping[str, str] | None,
    unknown: _Unknown,
    problems: list[Problem],
) -> Section:
    """A struct made of the keys that are right; a problem is added for each of the others."""
    if not isinstance(table, dict):
        name = f"the table [{'.'.join(path)}]"
        problems.append(Problem(problem="bad value", path=path, found=shown(path, table), allowed=name))
        return kind()
    types, right = _types(kind), {}
    for key, value in table.items():
        if key not in types:
            problems.append(unknown.key(path, key))
        elif is_table(types[key]):
            right[key] = _checked_table((*path, key), value, types[key], environ, unknown, problems)
        else:
            checked = _check((*path, key), value, types[key], environ)
            if isinstance(checked, Problem):
                problems.append(checked)
            else:
                right[key] = checked
    return kind(**right)


def _check(path: Path, value: Any, kind: Any, environ: Mapping[str, str] | None) -> Any:
    """The value as the key's type has it, or a Problem."""
    if environ is not None:
        try:
            value = _with_credentials(path[-1], value, environ)
        except LookupError:
            remedy = "give the systemd unit a LoadCredential=, or write the path itself"
            return Problem(problem=f"${CREDENTIALS_DIRECTORY} is not set", path=path, remedy=remedy)
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return Problem(problem="bad value", path=path, found=shown(path, value), allowed=allowed(kind))


def _with_credentials(key: str, value: Any, environ: Mapping[str, str]) -> Any:
    """The path, or the table of paths, with its variable replaced; raises LookupError where that is not set."""
    if isinstance(value, dict):
        return {name: _with_credentials(key, path, environ) for name, path in value.items()}
    if not isinstance(value, str) or not is_credential(key, value):
        return value
    directory = environ.get(CREDENTIALS_DIRECTORY)
    if not directory:
        raise LookupError(CREDENTIALS_DIRECTORY)
    return _VARIABLE.sub(lambda _: directory, value)


class _Unknown:
    """Makes problems of unknown keys and sections, with the known one that was probably meant."""

    def __init__(self, known: dict[Path, list[str]]) -> None:
        """`known` are the keys of each section, and of each table inside one."""
        self._known = known
        self._sections = [path[0] for path in known if len(path) == 1]
        self._guesses_left = _MAX_GUESSES

    def section(self, name: str, value: Any) -> Problem:
        """The problem with an unknown table, or with a key that stands above all tables."""
        is_table = isinstance(value, dict) or (isinstance(value, list) and value and isinstance(value[0], dict))
        if not is_table and (homes := self._homes(name)):
            return self._elsewhere((name,), homes, name)
        nearest = self._nearest(name, self._sections)
        if not nearest and not is_table and (key := self._nearest_anywhere(name)):
            return self._elsewhere((name,), self._homes(key), key)
        return Problem(
            problem="unknown section" if is_table else "unknown key",
            path=(name,),
            nearest=nearest,
            allowed="" if nearest else ", ".join(f"[{section}]" for section in self._sections),
            others=((nearest,),) if nearest else (),
        )

    def key(self, section: Path, name: str) -> Problem:
        """The problem with an unknown key in a known section or table."""
        path = (*section, name)
        here = [*self._known[section], *(path[-1] for path in self._known if path[:-1] == section)]
        if homes := self._homes(name):
            return self._elsewhere(path, homes, name)
        if name in self._sections:
            return Problem(
                problem="unknown key", path=path, remedy=f"[{name}] is a section of its own", others=((name,),)
            )
        nearest = self._nearest(name, here, cutoff=_CERTAINLY_MEANT)
        if not nearest and SECRET_NAME.search(name):
            file_key = next((key for key in here if re.fullmatch(r"(password|token)_file", key)), "")
            name_it = f"name that in {file_key}" if file_key else "name that in password_file of [database] or [kafka]"
            remedy = f"write it into a file and {name_it}"
            return Problem(problem="unknown key", path=path, remedy=remedy, others=((*section, file_key),))
        nearest = nearest or self._nearest(name, here)
        if not nearest and (key := self._nearest_anywhere(name)):
            return self._elsewhere(path, self._homes(key), key)
        return Problem(
            problem="unknown key",
            path=path,
            nearest=nearest,
            allowed="" if nearest else ", ".join(here),
            others=((*section, nearest),) if nearest else (),
        )

    def _homes(self, key: str) -> list[Path]:
        return [section for section, keys in self._known.items() if key in keys]

    def _nearest_anywhere(self, name: str) -> str:
        return self._nearest(name, {key for keys in self._known.values() for key in keys}, cutoff=_CERTAINLY_MEANT)

    @staticmethod
    def _elsewhere(path: Path, homes: list[Path], key: str) -> Problem:
        return Problem(
            problem="unknown key",
            path=path,
            nearest="" if key == path[-1] else key,
            remedy="known in " + ", ".join(f"[{'.'.join(section)}]" for section in homes),
            others=tuple((*section, key) for section in homes),
        )

    def _nearest(self, name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
        if not self._guesses_left:
            return ""
        self._guesses_left -= 1
        plain = name.lower().replace("-", "_")
        return next(iter(difflib.get_close_matches(plain, known, n=1, cutoff=cutoff)), "")

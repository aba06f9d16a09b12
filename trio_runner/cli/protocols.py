"""The verb protocols: the wire protocols and the presets, and a config of each to paste."""

from __future__ import annotations

import json
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import msgspec

from trio_runner.cli.output import say
from trio_runner.config.http_presets import preset_names, read_preset
from trio_runner.config.inference import InferenceSection
from trio_runner.config.keys import is_table
from trio_runner.config.kinds import Section, allowed
from trio_runner.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping


def protocols(name: str) -> ExitCode:
    """List the protocols and the presets, or print one as TOML; 1 where there is none of that name."""
    known = protocol_sections()
    if not name:
        _print_list(known)
    elif name in known:
        say(as_toml(name, known[name]))
    elif name in preset_names():
        say(read_preset(name).as_toml())
    else:
        nearest = get_close_matches(name, [*known, *preset_names()], n=1)
        guess = f"; did you mean {nearest[0]!r}?" if nearest else "; `trio-runner protocols` lists them"
        say(f"there is no protocol or preset {name!r}{guess}")
        return ExitCode.NOTHING
    return ExitCode.OK


def protocol_sections() -> Mapping[str, type[Section]]:
    """The struct of each protocol's table, by the name of the protocol."""
    hints = get_type_hints(InferenceSection)
    return {name: hints[name] for name in get_args(hints["protocol"])}


def as_toml(name: str, section: type[Section]) -> str:
    """A config to paste: every key of the protocol's table with its default, and what else it may be, as comments."""
    head = ["[inference]", 'url = "http://localhost:8000"', f'protocol = "{name}"']
    return "\n".join([*head, *_table(f"inference.{name}", section)])


def _table(path: str, section: type[Section]) -> Iterator[str]:
    """The lines of a table, and of the tables inside it."""
    yield from ("", f"[{path}]")
    types = get_type_hints(section, include_extras=True)
    fields = msgspec.structs.fields(section)
    for field in fields:
        if not is_table(types[field.name]):
            default: Any = field.default_factory() if field.default is msgspec.NODEFAULT else field.default
            yield f"# {field.name} = {_toml(default)}  # {allowed(types[field.name])}"
    for field in fields:
        if is_table(types[field.name]):
            yield from _table(f"{path}.{field.name}", types[field.name])


def _print_list(known: Mapping[str, type[Section]]) -> None:
    # rich takes 60 ms, and printing one protocol needs none of it.
    from trio_runner.cli.table import FittedTable, print_table

    rows = [(name, "protocol", _first_line(section)) for name, section in known.items()]
    rows += [(name, "preset of http", read_preset(name).summary) for name in preset_names()]
    print_table(FittedTable(("name", "kind", "for"), rows, cut=("for",)))


def _first_line(section: type[Section]) -> str:
    """The first sentence of the docstring, without the name that is in the table already."""
    line = (section.__doc__ or "").partition("\n")[0]
    return (line.partition("`: ")[2] or line).rstrip(".")


def _toml(value: Any) -> str:
    """A default as TOML writes it; one that is a table is empty."""
    return json.dumps(value)

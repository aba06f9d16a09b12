"""Single keys, as a command line gives them (`section.key=value`) or as a scenario carries them."""

from __future__ import annotations

from pathlib import PurePosixPath
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import tomli

from trio_runner.config.errors import ConfigError, Problem
from trio_runner.config.location import is_url

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

OF_A_SCENARIO: Final = MappingProxyType(
    {
        "scenario": frozenset({"on_complete", "max_failures"}),
        "video": frozenset(
            {
                "stream",
                "deinterlace",
                "square_pixels",
                "fps",
                "stride",
                "key_frames_only",
                "max_fps",
                "start_seconds",
                "max_frames",
                "max_width",
                "jpeg_quality",
                "on_corrupt",
                "frame_timeout_seconds",
                "decoder_threads",
                "encoder_threads",
            }
        ),
        "inference": frozenset({"in_flight", "connect_timeout_seconds", "timeout_seconds"}),
        "pipeline": frozenset({"max_buffered_bytes", "max_buffered_frames"}),
        "database": frozenset({"batch_frames", "batch_seconds"}),
    }
)
"""The keys that a scenario may set. No address, file, secret or limit is among them: the right to submit a scenario, by
a message perhaps, must not include the right to choose where a token is sent, or which files a runner reads."""


def parse_settings(given: Iterable[str]) -> dict[str, dict[str, Any]]:
    """`["video.stride=2", "video.on_corrupt=skip"]` as sections; a value that is not TOML is text.

    Raises:
        ConfigError: a setting is not of this form.
    """
    sections: dict[str, dict[str, Any]] = {}
    for text in given:
        path, equals, value = text.partition("=")
        *tables, key = path.strip().split(".")
        if not (equals and tables and key and all(tables)):
            problem = Problem(problem="not of the form section.key=value", path=(path.strip() or "--set",))
            raise ConfigError([problem])
        holder: Any = sections
        for table in tables:
            holder = holder.setdefault(table, {})
            if not isinstance(holder, dict):
                raise ConfigError([Problem(problem="set as a key and as a table", path=tuple(tables))])
        holder[key] = _value(value.strip())
    return sections


def check_scenario_settings(settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ConfigError for keys that a scenario may not set; their values are checked with the whole config."""
    problems = [
        Problem(
            problem="not for a scenario to set",
            path=path,
            allowed=", ".join(f"{name}.{each}" for name in OF_A_SCENARIO for each in sorted(OF_A_SCENARIO[name])),
        )
        for section, keys in settings.items()
        for path in (*((section, key) for key in keys), *(() if section in OF_A_SCENARIO else ((section,),)))
        if not (path[1:] and path[1] in OF_A_SCENARIO.get(section, ()))
    ]
    if problems:
        raise ConfigError(problems)


def is_canonical(path: str) -> bool:
    """Whether the path stays the same when a runner makes it absolute; a scenario is compared by its path."""
    return is_url(path) or (path.startswith("/") and str(PurePosixPath(path)) == path)


def _value(text: str) -> Any:
    try:
        table = tomli.loads(f"value = {text}")
    except (ValueError, RecursionError):
        # Not TOML, or with a number that Python does not convert, or nested too deeply.
        return text
    return table["value"] if len(table) == 1 else text

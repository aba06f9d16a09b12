"""What a verb writes: lines for people, JSON for programs, and whom its log lines are about."""

from __future__ import annotations

import os
import re
import sys
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

import msgspec

from trio_runner.base.logs import identify_process
from trio_runner.base.text import harmless

if TYPE_CHECKING:
    from trio_runner.config.load import Config

_JSON_COLUMNS: Final = frozenset({"error", "last_error"})
"""The columns that the ledger hands over as JSON text."""

_TERMINAL_CONTROLS: Final = re.compile("[\x7f-\x9f]")
"""DEL and the C1 control characters: JSON allows them in a string, and a terminal acts on them."""


def say(text: str) -> None:
    """Print `text`, which may have several lines; what a terminal would act on shows as replacement characters."""
    _print("\n".join(map(harmless, text.split("\n"))))


def print_json(value: Any) -> None:
    """Print one JSON document on one line; the ledger's JSON columns as what they hold."""
    text = msgspec.json.encode(_plain(value)).decode()
    _print(_TERMINAL_CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def identify_attempt(config: Config) -> None:
    """Put scenario and runner on every log line of this process, and the epoch where the config names one."""
    identify_process(scenario_id=config.scenario.id, runner_id=config.runner.id)
    if config.scenario.epoch:
        identify_process(epoch=config.scenario.epoch)


def discard() -> None:
    """Write to nowhere from now on: whoever read standard output has gone."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # A reader that has seen enough, as `head -1` has, is no reason to stop working.
        discard()


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: msgspec.json.decode(item) if key in _JSON_COLUMNS and isinstance(item, str) else _plain(item)
            for key, item in value.items()
        }
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, UUID) else value

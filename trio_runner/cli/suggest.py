"""Commands that a message suggests, written so that they work when pasted into the shell that called this program."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path
from typing import Final

_SUGGESTED: Final = re.compile(r"\btrio-runner ([a-z-]+) CONFIG\b")
"""A command in a message of a module, or of a database function, that does not know how the program was called."""


def command(verb: str, config_path: str, *arguments: object) -> str:
    """The command line that calls `verb` with this config."""
    return " ".join([_program(), verb, shlex.quote(config_path), *map(str, arguments)])


def with_commands(message: str, config_path: str) -> str:
    """`message` with the program's name and the config's path in each command that it suggests."""
    return _SUGGESTED.sub(lambda found: command(found[1], config_path), message)


def _program() -> str:
    """How this program was called."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m trio_runner"
    if shutil.which(called.name) == str(called):
        return called.name
    return shlex.quote(str(called.relative_to(Path.cwd()) if called.is_relative_to(Path.cwd()) else called))

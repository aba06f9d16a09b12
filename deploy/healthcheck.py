"""Checks that no process of the container is stopped and that every URL answers; the exit code says so.

python healthcheck.py [URL...]
"""

from __future__ import annotations

import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

TIMEOUT_SECONDS = 4


def stopped() -> list[str]:
    """The processes that a signal or a debugger has stopped, as `name (pid)`."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        # The process may end in the meantime.
        with suppress(FileNotFoundError, ProcessLookupError):
            before, _, after = stat.read_text().rpartition(")")
            if after.split()[0] in "Tt":
                found.append(f"{before.partition('(')[2]} ({stat.parent.name})")
    return found


def main(*urls: str) -> str | None:
    """What is wrong, in words; None if nothing is."""
    if frozen := stopped():
        return f"stopped: {', '.join(frozen)}"
    for url in urls:
        try:
            with urllib.request.urlopen(url, timeout=TIMEOUT_SECONDS):  # noqa: S310 - from compose.yaml
                pass
        except OSError as error:
            return f"{url}: {error}"
    return None


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

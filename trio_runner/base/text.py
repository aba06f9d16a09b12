"""Text from elsewhere, made fit for a database, a log line and a terminal."""

from __future__ import annotations

import os


def printable(path: str) -> str:
    """A file's name may be any bytes, a text in JSON or in PostgreSQL may not."""
    return os.fsencode(path).decode(errors="backslashreplace")


def harmless(text: str) -> str:
    """What others have written, without what a terminal might obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)

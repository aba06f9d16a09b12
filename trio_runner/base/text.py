"""Text from elsewhere, made fit for a database, a log line and a terminal."""

from __future__ import annotations

import os
import signal


def printable(path: str) -> str:
    """A file's name as text: the name may be any bytes, but JSON and PostgreSQL take only text."""
    return os.fsencode(path).decode(errors="backslashreplace")


def harmless(text: str) -> str:
    """Text from elsewhere, with a replacement character for each character that a terminal might interpret."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)


def counted(number: int, noun: str) -> str:
    """A number of things: "1 frame", "2 frames", "2 boxes"."""
    ending = "" if number == 1 else "es" if noun.endswith("x") else "s"
    return f"{number} {noun}{ending}"


def signal_name(number: int) -> str:
    """A signal's name without SIG, as systemd writes it ("KILL"); its number where it has none in Python ("35")."""
    known = number in set(signal.Signals)
    return signal.Signals(number).name.removeprefix("SIG") if known else str(number)

"""The answers of a service to harmless questions, their parts, and the lines of a config."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Mapping

OK: Final = 200
_NAME: Final = re.compile(r"[A-Za-z0-9._:@-]{1,200}\Z")
_PLAIN: Final = re.compile(r"[ -~]{1,200}\Z")


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one question: its status, its headers, and the beginning of its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class Guess:
    """What the service may be, and the lines of the config for it; a comment marks what is not known."""

    what: str
    lines: tuple[str, ...]


def good(replies: Mapping[str, Reply], question: str) -> Reply | None:
    """The answer to a question, if its status is 200."""
    reply = replies.get(question)
    return reply if reply and reply.status == OK else None


def as_list(value: Any) -> list[Any]:
    """The value, or an empty list where it is none."""
    return value if isinstance(value, list) else []


def as_text(value: Any) -> str:
    """A short printable text of ASCII; empty for anything else."""
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else ""


def is_name(value: Any) -> bool:
    """Whether the value may stand in a URL's path as it is."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def quoted(text: str) -> str:
    """A basic string of TOML: ASCII as JSON writes it is one."""
    return json.dumps(text)


def comment(text: str) -> str:
    """The text as a comment behind a line of TOML."""
    return f"  # {text}" if text else ""


def at(value: Any, *keys: str) -> Any:
    """The value at this place in an object; None where there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def paths_of(page: Reply | None) -> dict[str, Any]:
    """The paths of an API by OpenAPI's description."""
    found = at(page.json, "paths") if page else None
    return found if isinstance(found, dict) else {}

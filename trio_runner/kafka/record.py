"""A record as it lies on a topic, whatever it holds, and the error for one that cannot be used."""

from __future__ import annotations

import json
from typing import Any

import msgspec

from trio_runner.base.text import harmless


class BadEventError(ValueError):
    """A record that is no retry event of this version, and why; the text is safe to print."""

    def __init__(self, reason: str) -> None:
        """Cut the reason and take out what a terminal might obey: it quotes the record."""
        super().__init__(harmless(reason[:300]))


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One record of the topic: its place, what it holds as bytes, and that made readable whatever it is."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    raw_headers: tuple[tuple[str, bytes | None], ...]

    @property
    def headers(self) -> dict[str, str]:
        """The CloudEvents attributes as text, and what else is there."""
        return {name: (value or b"").decode(errors="replace") for name, value in self.raw_headers}

    @property
    def body(self) -> Any:
        """The body as JSON; None where it is not that."""
        try:
            return msgspec.json.decode(self.value or b"null")
        except (msgspec.DecodeError, ValueError, RecursionError):
            return None


def record_of(message: Any) -> Record:
    """What aiokafka calls a ConsumerRecord."""
    return Record(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        key=message.key,
        value=message.value,
        raw_headers=tuple(message.headers),
    )


def check_no_key_twice(value: bytes) -> None:
    """Raise ValueError where two readers of this JSON may not read the same: msgspec lets the last one count."""
    json.loads(value, object_pairs_hook=_refuse_a_second)


def _refuse_a_second(pairs: list[tuple[str, Any]]) -> None:
    if len(dict(pairs)) < len(pairs):
        raise ValueError("a key is there twice")

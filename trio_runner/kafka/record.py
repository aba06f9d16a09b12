"""A record as it lies on a topic, whatever it holds, and the error for one that cannot be used."""

from __future__ import annotations

from typing import Any

import msgspec

from trio_runner.base.text import harmless


class BadEventError(ValueError):
    """A record that is no retry event of this version, and why; the text is safe to print."""

    def __init__(self, reason: str) -> None:
        """Cut the reason and remove control characters from it, because it quotes the record."""
        super().__init__(harmless(reason[:300]))


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """One record of the topic: its place, its content as bytes, and the same in readable form, whatever it holds."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    raw_headers: tuple[tuple[str, bytes | None], ...]

    @property
    def headers(self) -> dict[str, str]:
        """All headers as text, the CloudEvents attributes among them."""
        return {name: (value or b"").decode(errors="replace") for name, value in self.raw_headers}

    @property
    def body(self) -> Any:
        """The body as JSON; None if it is no JSON."""
        try:
            return msgspec.json.decode(self.value or b"null")
        except (msgspec.DecodeError, ValueError, RecursionError):
            return None


def record_of(message: Any) -> Record:
    """Our own form of a record that aiokafka's consumer returned."""
    return Record(
        topic=message.topic,
        partition=message.partition,
        offset=message.offset,
        key=message.key,
        value=message.value,
        raw_headers=tuple(message.headers),
    )

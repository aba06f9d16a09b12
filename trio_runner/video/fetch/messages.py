"""The wire format between the fetcher child and the daemon: JSON lines, an order on stdin and records on stdout."""

from __future__ import annotations

from typing import Final, TypeAlias

import msgspec

from trio_runner.config.sections import StorageSection
from trio_runner.errors import ErrorCode

MAX_LINE_BYTES: Final = 64 * 1024


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """What signs requests to S3; never shown."""

    key_id: str
    secret_key: str
    session_token: str = ""

    def __repr__(self) -> str:
        """Nothing of the values: a traceback may print this."""
        return "Credentials(...)"


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """The one line on the child's stdin. It holds the secrets, which so stand in no argument and no variable."""

    url: str
    storage: StorageSection
    credentials: Credentials | None = None
    only_look: bool = False
    """Ask the storage for the object and fetch nothing."""

    def __repr__(self) -> str:
        """Nothing of the values: a traceback may print this."""
        return "Order(...)"


class Waiting(msgspec.Struct, tag="waiting", frozen=True):
    """Another process fetches the same object; written again every second."""


class Received(msgspec.Struct, tag="received", frozen=True):
    """How much of the object is in the cache by now; written again as more comes."""

    received_bytes: int
    total_bytes: int


class Ready(msgspec.Struct, tag="ready", frozen=True):
    """The file is whole. The child keeps it from being evicted until its stdin is closed."""

    path: str
    size_bytes: int
    fetched: bool
    """False: the copy that the cache had is still the object."""


class Fault(msgspec.Struct, tag="fault", frozen=True):
    """The last record of an object that cannot be had."""

    code: ErrorCode
    message: str
    retry_after_seconds: float | None = None


Record: TypeAlias = Waiting | Received | Ready | Fault

encode = msgspec.json.Encoder().encode
decode_order = msgspec.json.Decoder(Order).decode
_decoder = msgspec.json.Decoder(Record)


def decode(line: bytes | bytearray) -> Record:
    """The record on this line; raises msgspec.MsgspecError."""
    record: Record = _decoder.decode(line)
    return record

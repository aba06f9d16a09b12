"""The ways in which an HTTP service lets its client down, as data: what it sends in place of an answer."""

from __future__ import annotations

import enum
import gzip
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from itertools import chain, repeat

import h11
import trio

HUGE_BYTES = 4 * 2**20
BIG_BYTES = 100 * 2**20
DRIP_SECONDS = 0.05


class Fault(enum.StrEnum):
    """A way in which a service lets its client down."""

    STATUS_500 = "status_500"
    STATUS_429 = "status_429"
    STATUS_429_SOON = "status_429_soon"
    STATUS_429_BARE = "status_429_bare"
    STATUS_503 = "status_503"
    STATUS_404 = "status_404"
    STATUS_413 = "status_413"
    FAILURE = "failure"
    REDIRECT = "redirect"
    HANG = "hang"
    DRIP = "drip"
    CUT = "cut"
    GARBAGE = "garbage"
    EMPTY = "empty"
    WRONG_TYPE = "wrong_type"
    NAN = "nan"
    HUGE = "huge"
    # From here on HTTP itself is at fault, or nearly.
    BIG = "big"
    BIG_CHUNKED = "big_chunked"
    GZIP_BOMB = "gzip_bomb"
    GZIP_BOMB_AS_IDENTITY = "gzip_bomb_as_identity"
    NO_CONTENT = "no_content"
    NO_STATUS_LINE = "no_status_line"
    OTHER_PROTOCOL = "other_protocol"
    CHUNKED_GARBAGE = "chunked_garbage"
    TWO_LENGTHS = "two_lengths"
    LENGTH_AND_CHUNKED = "length_and_chunked"
    SWITCHED = "switched"
    BIG_HEADER = "big_header"
    ENDLESS_HEADERS = "endless_headers"
    ENDLESS_INFORMATION = "endless_information"
    TWO_ANSWERS = "two_answers"
    INFORMATION = "information"
    CONNECTION_CLOSE = "connection_close"
    WRONG_CONTENT_TYPE = "wrong_content_type"


HARMLESS = frozenset({Fault.INFORMATION, Fault.CONNECTION_CLOSE, Fault.WRONG_CONTENT_TYPE})
"""Unusual, but HTTP, and the answer is the right one."""

RETRY_AFTER_SECONDS = 7

ELSEWHERE = "http://169.254.169.254"
"""Link-local, where clouds keep their credentials: a client that follows a redirect there is an exploit."""

_STATUS: Mapping[Fault, tuple[int, list[tuple[str, str]]]] = {
    Fault.STATUS_500: (500, []),
    Fault.STATUS_429: (429, [("Retry-After", str(RETRY_AFTER_SECONDS))]),
    Fault.STATUS_429_SOON: (429, [("Retry-After", "1")]),
    Fault.STATUS_429_BARE: (429, []),
    Fault.STATUS_503: (503, []),
    Fault.STATUS_404: (404, []),
    Fault.STATUS_413: (413, []),
}

_BODY: Mapping[Fault, bytes] = {
    Fault.FAILURE: b'{"success": false, "error": "out of memory"}',
    Fault.GARBAGE: b"<html>It works!</html>",
    Fault.EMPTY: b"",
    Fault.WRONG_TYPE: b'{"predictions": [{"class": "a", "confidence": "high", "bbox": [0, 0, 1, 1]}]}',
    Fault.NAN: b'{"predictions": [{"class": "a", "confidence": 0.5, "bbox": [0, 0, NaN, 1]}]}',
    Fault.HUGE: b'{"predictions": [' + b" " * HUGE_BYTES + b"]}",
}


def _head(*headers: str, status: str = "200 OK") -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()


def _lengthy(body: bytes, *headers: str) -> bytes:
    return _head(*headers, f"Content-Length: {len(body)}") + body


@cache
def _gzip_bomb() -> bytes:
    return gzip.compress(bytes(BIG_BYTES))


_BLANKS = b" " * 2**20
_EARLY_HINTS = _head(status="103 Early Hints")

_RAW: Mapping[Fault, Callable[[bytes], Iterable[bytes]]] = {
    Fault.CUT: lambda whole: [_lengthy(whole)[: -len(whole) // 2]],
    Fault.BIG: lambda _: chain([_head(f"Content-Length: {BIG_BYTES}")], repeat(_BLANKS, BIG_BYTES // len(_BLANKS))),
    Fault.BIG_CHUNKED: lambda _: chain(
        [_head("Transfer-Encoding: chunked")],
        repeat(b"%x\r\n%b\r\n" % (len(_BLANKS), _BLANKS), BIG_BYTES // len(_BLANKS)),
        [b"0\r\n\r\n"],
    ),
    Fault.GZIP_BOMB: lambda _: [_lengthy(_gzip_bomb(), "Content-Encoding: gzip")],
    Fault.GZIP_BOMB_AS_IDENTITY: lambda _: [_lengthy(_gzip_bomb(), "Content-Encoding: identity")],
    Fault.NO_CONTENT: lambda _: [_head(status="204 No Content")],
    Fault.NO_STATUS_LINE: lambda whole: [whole],
    Fault.OTHER_PROTOCOL: lambda _: [b"SSH-2.0-OpenSSH_10.0\r\n"],
    Fault.CHUNKED_GARBAGE: lambda whole: [_head("Transfer-Encoding: chunked") + whole],
    Fault.TWO_LENGTHS: lambda whole: [_head(f"Content-Length: {len(whole)}", "Content-Length: 2") + whole],
    Fault.LENGTH_AND_CHUNKED: lambda whole: [_lengthy(whole, "Transfer-Encoding: chunked")],
    Fault.SWITCHED: lambda whole: [_head("Upgrade: h2c", "Connection: upgrade", status="101 Switching") + whole],
    Fault.BIG_HEADER: lambda whole: [_lengthy(whole, "X-Note: " + "y" * 2**20)],
    Fault.ENDLESS_HEADERS: lambda _: chain([b"HTTP/1.1 200 OK\r\n"], repeat(b"X-Note: y\r\n" * 100)),
    Fault.ENDLESS_INFORMATION: lambda _: repeat(_EARLY_HINTS * 100),
    Fault.TWO_ANSWERS: lambda whole: [_lengthy(whole) * 2],
    Fault.INFORMATION: lambda whole: [
        _head(status="100 Continue") + _EARLY_HINTS * 100 + _lengthy(whole, "Connection: close")
    ],
    Fault.CONNECTION_CLOSE: lambda whole: [_lengthy(whole, "Connection: close")],
    Fault.WRONG_CONTENT_TYPE: lambda whole: [_lengthy(whole, "Content-Type: text/html", "Connection: close")],
}
"""From the right answer's body to what is sent, byte for byte; then the connection ends."""


async def send_answer(
    connection: h11.Connection, stream: trio.abc.Stream, fault: Fault | bytes | None, whole: bytes, elsewhere: str
) -> None:
    """Answer with the body `whole`, or with `fault`: bytes are another body, redirects lead `elsewhere`.

    Raises:
        BrokenResourceError: the connection shall end.
    """
    match fault:
        case Fault.HANG:
            await trio.sleep_forever()
        case Fault.DRIP:
            await stream.send_all(_head(f"Content-Length: {len(whole)}"))
            for byte in whole:
                await stream.send_all(bytes([byte]))
                await trio.sleep(DRIP_SECONDS)
            raise trio.BrokenResourceError
        case Fault.REDIRECT:
            await _send(connection, stream, 307, [("Location", f"{elsewhere}/predict")], b"{}")
        case None | bytes():
            await _send(connection, stream, 200, [], whole if fault is None else fault)
        case _ if fault in _RAW:
            for piece in _RAW[fault](whole):
                await stream.send_all(piece)
            raise trio.BrokenResourceError
        case _:
            status, headers = _STATUS.get(fault, (200, []))
            await _send(connection, stream, status, headers, _BODY.get(fault, b"{}"))


async def _send(
    connection: h11.Connection, stream: trio.abc.Stream, status: int, headers: list[tuple[str, str]], body: bytes
) -> None:
    headers = [*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
        await stream.send_all(connection.send(event) or b"")

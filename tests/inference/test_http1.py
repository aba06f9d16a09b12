"""The parser of responses: however a response is cut into segments, it is the same one."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_runner.inference.http1 import ResponseParser


@dataclass(frozen=True)
class Built:
    """A response as bytes, and what it says."""

    wire: bytes
    status: int
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    ends_with_the_connection: bool = False


TOKENS = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_!#", min_size=1, max_size=12).filter(
    lambda name: name.lower() not in {"content-length", "transfer-encoding", "connection", "upgrade"}
)
VALUES = st.text([chr(code) for code in range(0x21, 0x7F)] + [" "], max_size=20).map(str.strip)
FIELDS = st.lists(st.tuples(TOKENS.map(str.encode), VALUES.map(str.encode)), max_size=4)
BODIES = st.binary(max_size=200)


def _head(status: int, fields: list[tuple[bytes, bytes]]) -> bytes:
    return b"HTTP/1.1 %d A reason\r\n" % status + b"".join(b"%b: %b\r\n" % field for field in fields) + b"\r\n"


@st.composite
def responses(draw: st.DrawFn) -> Built:
    """Any response that is none to HEAD."""
    interim = b"".join(draw(st.lists(st.builds(_head, st.sampled_from([100, 102, 103]), FIELDS), max_size=3)))
    status = draw(st.sampled_from([200, 201, 204, 304, 400, 413, 500, 599]))
    fields = draw(FIELDS)
    body = b"" if status in {204, 304} else draw(BODIES)
    framing = draw(st.sampled_from(["none"] if status in {204, 304} else ["length", "chunked", "connection"]))
    payload = body
    if framing == "length":
        fields.insert(draw(st.integers(0, len(fields))), (b"Content-Length", b"%d" % len(body)))
    elif framing == "chunked":
        fields.insert(draw(st.integers(0, len(fields))), (b"transfer-encoding", b"chunked"))
        cuts = sorted(draw(st.lists(st.integers(0, len(body)), max_size=5)))
        chunks = [body[a:b] for a, b in zip([0, *cuts], [*cuts, len(body)], strict=True) if a < b]
        trailer = b"".join(b"%b: %b\r\n" % field for field in draw(FIELDS))
        payload = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n" + trailer + b"\r\n"
    return Built(interim + _head(status, fields) + payload, status, tuple(fields), body, framing == "connection")


def segments(wire: bytes, cuts: list[int]) -> list[bytes]:
    places = [0, *sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]
    return [wire[a:b] for a, b in itertools.pairwise(places) if a < b]


@given(responses(), st.lists(st.integers(0, 2000), max_size=12))
def test_any_way_of_cutting_a_response_gives_the_same_response(built: Built, cuts: list[int]) -> None:
    parser = ResponseParser("POST")
    body = b""
    for segment in segments(built.wire, cuts):
        assert not parser.complete
        parser.feed(segment)
        body += parser.take_body()
    if built.ends_with_the_connection:
        assert not parser.complete
        parser.feed(b"")
    assert parser.complete
    assert not parser.extra
    assert (parser.status, tuple(parser.headers), body) == (built.status, built.headers, built.body)
    assert parser.keep_alive is not built.ends_with_the_connection


@given(responses(), st.lists(st.integers(0, 2000), max_size=12), st.integers(1, 2000))
def test_a_response_that_ends_too_early_is_an_error(built: Built, cuts: list[int], missing: int) -> None:
    wire = built.wire[: -(missing % len(built.wire)) or None]
    if wire == built.wire or built.ends_with_the_connection:
        return
    parser = ResponseParser("POST")
    for segment in segments(wire, cuts):
        parser.feed(segment)
    with pytest.raises(httpx.RemoteProtocolError, match="in the middle"):
        parser.feed(b"")


@given(responses(), st.binary(min_size=1, max_size=20).filter(lambda extra: extra.strip(b"\r\n")), st.integers(0, 2000))
def test_what_comes_behind_a_response_is_noticed(built: Built, extra: bytes, cut: int) -> None:
    if built.ends_with_the_connection:
        return
    parser = ResponseParser("POST")
    for segment in segments(built.wire + extra, [cut % len(built.wire)]):
        parser.feed(segment)
    assert parser.complete
    assert parser.extra


@given(st.binary(max_size=300), st.lists(st.integers(0, 300), max_size=5))
def test_no_bytes_are_anything_but_a_response_or_an_error(wire: bytes, cuts: list[int]) -> None:
    for start in (b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"):
        parser = ResponseParser("POST")
        try:
            for segment in segments(start + wire, cuts):
                parser.feed(segment)
            parser.feed(b"")
        except httpx.RemoteProtocolError:
            continue
        assert parser.complete


@pytest.mark.parametrize(
    ("head", "kept"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: Close\r\n\r\n", False),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: x, close\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: Keep-Alive\r\n\r\n", True),
        (b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n", False),
    ],
)
def test_a_connection_is_kept_where_the_head_allows_it(head: bytes, *, kept: bool) -> None:
    parser = ResponseParser("POST")
    parser.feed(head)
    assert parser.keep_alive is kept

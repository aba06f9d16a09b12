"""Records for the retry topic that are no retry events, each for one reason; made from one that is."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from tests.support.makers import make_claim
from trio_runner.errors import ErrorCode
from trio_runner.kafka import retry_event as retry
from trio_runner.model import Failure, Progress

Header = tuple[str, bytes | None]


@dataclass(frozen=True, kw_only=True)
class Sent:
    """A record as it lies on the topic."""

    key: bytes | None
    value: bytes | None
    headers: tuple[Header, ...]

    def decode(self) -> retry.RetryEvent:
        return retry.decode(self.key, self.value, self.headers)

    def with_header(self, name: str, value: bytes | None) -> Sent:
        """The same with this value of this header."""
        return replace(self, headers=tuple((n, value if n == name else v) for n, v in self.headers))

    def without_header(self, name: str) -> Sent:
        return replace(self, headers=tuple(header for header in self.headers if header[0] != name))

    def with_body(self, change: Callable[[Any], None]) -> Sent:
        """The same with a changed body."""
        body = json.loads(self.value or b"")
        change(body)
        return replace(self, value=json.dumps(body).encode())

    def with_text(self, old: str, new: str) -> Sent:
        """The same with another text in the body, which need not be JSON then."""
        value = self.value or b""
        assert old.encode() in value, old
        return replace(self, value=value.replace(old.encode(), new.encode("utf-8", "surrogatepass")))


@dataclass(frozen=True, kw_only=True)
class Hostile:
    """What is wrong with it, the record, and words of the reason for which it must be refused."""

    name: str
    sent: Sent
    because: str


def valid() -> Sent:
    """Every field is there."""
    failure = Failure(
        code=ErrorCode.INFERENCE_UNAVAILABLE,
        type="RunnerError",
        message="answered 503",
        stack=("a.py:1:f", "b.py:2:g"),
        causes=(("OSError", "reset"),),
        suppressed=2,
        retry_after_seconds=7.5,
    )
    event = retry.build_event(
        failure,
        claim=make_claim(7, epoch=3),
        runner_id="runner_1",
        progress=Progress(next_frame=30, frames_stored=10, frames_stored_before=20, declared_frames=100),
        reporter="runner",
        uptime_seconds=12.5,
    )
    return Sent(key=b"7", value=retry.encode(event), headers=tuple(retry.headers(event)))


def every() -> list[Hostile]:
    """The corpus."""
    return [
        Hostile(name=name, sent=sent, because=because)
        for part in (_of_no_kind(), _by_header(), _by_field(), _by_json())
        for name, sent, because in part
    ]


Case = tuple[str, Sent, str]


def _of_no_kind() -> Iterator[Case]:
    good = valid()
    body = "the body is no retry event"
    yield "no key", replace(good, key=None), "the key is absent"
    yield "an empty key", replace(good, key=b""), "the key is ''"
    yield "another scenario's key", replace(good, key=b"8"), "the key is '8', and the body is about scenario 7"
    yield "a key with a zero before it", replace(good, key=b"07"), "the key is '07'"
    yield "a key of 1 MB", replace(good, key=b"7" * 2**20), "the key is '777"
    yield "a key that is no text", replace(good, key=b"\xff\x1b[2J"), "the key is"
    yield "a tombstone", replace(good, value=None), "there is no body"
    yield "an empty body", replace(good, value=b""), body
    yield "16 KiB and a byte", replace(good, value=(good.value or b"").ljust(2**14 + 1)), "more than 16384 bytes"
    yield "a body of 1 MB", replace(good, value=b"[" * 2**20), "more than 16384 bytes"
    yield "random bytes", replace(good, value=bytes(range(256))), body
    yield "gzip", replace(good, value=b"\x1f\x8b\x08\x00"), body
    yield "MessagePack", replace(good, value=b"\x81\xabscenario_id\x07"), body
    yield "a list", replace(good, value=b"[]"), body
    yield "null", replace(good, value=b"null"), body
    yield "a number", replace(good, value=b"7"), body
    yield "an event in a string", replace(good, value=json.dumps((good.value or b"").decode()).encode()), body
    yield "two events", replace(good, value=(good.value or b"") * 2), body
    yield "half an event", replace(good, value=(good.value or b"")[:200]), body
    yield "a CloudEvent in structured mode", replace(good, headers=(("content-type", b"application/json"),)), "ce_type"


def _by_header() -> Iterator[Case]:
    good = valid()
    yield "no headers", replace(good, headers=()), "ce_type is absent"
    for name, _ in good.headers:
        yield f"no {name}", good.without_header(name), f"{name} is absent"
        yield f"a null {name}", good.with_header(name, None), f"{name} is absent"
    yield "a header twice", replace(good, headers=(*good.headers, ("ce_epoch", b"4"))), "a header is there twice"
    yield "the next major", good.with_header("ce_type", b"trio-runner.died.v2"), "v2', not trio-runner.died.v1"
    yield "the first of the next ten", good.with_header("ce_type", b"trio-runner.died.v10"), "v10"
    yield "another program's event", good.with_header("ce_type", b"com.example.sold.v1"), "com.example"
    yield "the next CloudEvents", good.with_header("ce_specversion", b"2.0"), "ce_specversion is '2.0'"
    yield "another id", good.with_header("ce_id", b"6d1f2f0e-5a53-5d0a-9a5e-7c1f0d6f4b21"), "ce_id is"
    yield "the id in capitals", good.with_header("ce_id", dict(good.headers)["ce_id"].upper()), "ce_id is"  # type: ignore[union-attr]
    yield "another subject", good.with_header("ce_subject", b"8"), "ce_subject is '8', and by the body it should be 7"
    yield "another source", good.with_header("ce_source", b"/trio-runner/scenarios/8"), "ce_source is"
    yield "another partition key", good.with_header("ce_partitionkey", b"8"), "ce_partitionkey is"
    yield "another epoch", good.with_header("ce_epoch", b"4"), "ce_epoch is '4', and by the body it should be 3"
    yield "an epoch with a sign", good.with_header("ce_epoch", b"+3"), "ce_epoch is"
    yield "another time", good.with_header("ce_time", b"1970-01-01T00:00:00.000Z"), "ce_time is"
    yield "another schema", good.with_header("ce_dataschema", b"urn:trio-runner:retry-event:2"), "ce_dataschema is"
    yield "another content type", good.with_header("content-type", b"application/xml"), "content-type is"
    yield "a header that is no text", good.with_header("ce_subject", b"\xff\x00"), "ce_subject is"


def _by_field() -> Iterator[Case]:
    good = valid()
    for path in ("scenario_id", "epoch", "invocation_id", "uptime_seconds", "error.code", "progress.declared_frames"):
        yield f"no {path}", good.with_body(_remove(path)), "missing required field"
    for path, value, because in (
        ("shoe_size", 44, "unknown field `shoe_size`"),
        ("error.locals", {}, "unknown field `locals`"),
        ("progress.claimed_at", 0, "unknown field `claimed_at`"),
        ("\x1b[2J\u202e" * 100, 0, "unknown field `\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}"),
        ("scenario_id", "7", "$.scenario_id"),
        ("scenario_id", 7.5, "$.scenario_id"),
        ("scenario_id", True, "$.scenario_id"),
        ("scenario_id", None, "$.scenario_id"),
        ("scenario_id", 0, "$.scenario_id"),
        ("scenario_id", -7, "$.scenario_id"),
        ("scenario_id", 2**63, "$.scenario_id"),
        ("scenario_id", 10**4000, "no retry event"),
        ("scenario_id", 8, "the key is '7', and the body is about scenario 8"),
        ("runner_id", "", "$.runner_id"),
        ("runner_id", "r" * 201, "$.runner_id"),
        ("runner_id", "a b", "$.runner_id"),
        ("runner_id", "runner_1\n", "$.runner_id"),
        ("epoch", -1, "$.epoch"),
        ("epoch", 2**63, "$.epoch"),
        ("epoch", 4, "ce_id is"),
        ("epoch", 0, "ce_id is"),
        ("reason", "", "$.reason"),
        ("reason", "r" * 513, "$.reason"),
        ("reason", "\x1b]0;owned\x07", "$.reason"),
        ("timestamp", "yesterday", "$.timestamp"),
        ("timestamp", "2026-02-30T00:00:00.000Z", "day is out of range"),
        ("timestamp", "2026-02-03T00:00:00.000+00:00", "$.timestamp"),
        ("timestamp", 1764000000, "$.timestamp"),
        ("stage", "shutdown", "$.stage"),
        ("stage", "store", "stage and class are not those of inference_unavailable"),
        ("reporter", "", "$.reporter"),
        ("instance_id", "7", "$.instance_id"),
        ("instance_id", "6D1F2F0E-5A53-5D0A-9A5E-7C1F0D6F4B21", "$.instance_id"),
        ("invocation_id", "7", "$.invocation_id"),
        ("host", "h" * 256, "$.host"),
        ("host", "a\x00b", "$.host"),
        ("pid", 0, "$.pid"),
        ("pid", "1; rm -rf /", "$.pid"),
        ("uptime_seconds", -1, "$.uptime_seconds"),
        ("version", "", "$.version"),
        ("error", "it broke", "$.error"),
        ("error", [], "$.error"),
        ("error.code", "out_of_coffee", "Invalid enum value 'out_of_coffee' - at `$.error.code`"),
        ("error.code", "internal", "stage and class are not those of internal"),
        ("error.class", "permanent", "stage and class are not those of inference_unavailable"),
        ("error.class", "fatal", "$.error.class"),
        ("error.type", "", "$.error.type"),
        ("error.message", "m" * 2049, "$.error.message"),
        ("error.message", "\x9b31m", "$.error.message"),
        ("error.stack", ["a:1:f"] * 21, "$.error.stack"),
        ("error.stack", "a:1:f", "$.error.stack"),
        ("error.stack", [], "$.error.stack"),
        ("error.causes", [{"type": "E", "message": "m"}] * 5, "$.error.causes"),
        ("error.causes", [{"type": "E", "message": "m", "locals": {}}], "unknown field `locals`"),
        ("error.suppressed", 0, "$.error.suppressed"),
        ("error.retry_after_seconds", 301, "$.error.retry_after_seconds"),
        ("error.retry_after_seconds", "soon", "$.error.retry_after_seconds"),
        ("progress.next_frame", -1, "$.progress.next_frame"),
        ("progress.next_frame", 1e30, "$.progress.next_frame"),
        ("progress.frames_stored", None, "$.progress.frames_stored"),
    ):
        yield f"{path[:20]!r} = {str(value)[-24:]!r}", good.with_body(_put(path, value)), because


def _by_json() -> Iterator[Case]:
    good = valid()
    body = "the body is no retry event"
    twice = good.with_text('{"scenario_id":7', '{"scenario_id":8,"scenario_id":7')
    yield "a key twice", twice, "$.scenario_id: appears twice"
    yield "the code twice", good.with_text('"code":', '"code":"internal","code":'), "$.error.code: appears twice"
    yield "NaN", good.with_text('"uptime_seconds":12.5', '"uptime_seconds":NaN'), body
    yield "Infinity", good.with_text('"uptime_seconds":12.5', '"uptime_seconds":Infinity'), body
    yield "1e400", good.with_text('"uptime_seconds":12.5', '"uptime_seconds":1e400'), body
    yield "a lone surrogate, escaped", good.with_text("answered 503", "\\ud800"), body
    yield "a lone surrogate, encoded", good.with_text("answered 503", "\ud800"), body
    yield "NUL, escaped", good.with_text("answered 503", "\\u0000"), "$.reason"
    yield "NUL, raw", good.with_text("answered 503", "\x00"), body
    yield "UTF-16", replace(good, value=(good.value or b"").decode().encode("utf-16")), body
    yield "Latin-1", replace(good, value=(good.value or b"").replace(b"answered", b"r\xe9pondu")), body
    yield "a byte order mark", replace(good, value=b"\xef\xbb\xbf" + (good.value or b"")), body
    yield "single quotes", replace(good, value=(good.value or b"").replace(b'"', b"'")), body
    yield "a comma at the end", good.with_text('"uptime_seconds":12.5', '"uptime_seconds":12.5,,'), body
    yield "a comment", good.with_text('{"scenario_id"', '/* hello */ {"scenario_id"'), body
    deep = "[" * 8_000 + "]" * 8_000
    yield "deep nesting", replace(good, value=deep.encode()), body
    yield "deep nesting in a field", good.with_text('"answered 503"', deep[4_000:-4_000]), "$.error.message"
    yield (
        "deep nesting in a field of its own",
        good.with_text('{"scenario_id"', f'{{"x":{deep[4_000:-4_000]},"scenario_id"'),
        body,
    )


def _put(path: str, value: Any) -> Callable[[Any], None]:
    *parents, name = path.split(".")

    def change(body: Any) -> None:
        for parent in parents:
            body = body[parent]
        body[name] = value

    return change


def _remove(path: str) -> Callable[[Any], None]:
    *parents, name = path.split(".")

    def change(body: Any) -> None:
        for parent in parents:
            body = body[parent]
        del body[name]

    return change

from __future__ import annotations

import base64
import json
import logging
import re
import sys
import time
from ast import literal_eval
from collections.abc import Callable
from contextlib import suppress
from io import StringIO
from urllib.parse import quote, quote_plus, unquote, unquote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_runner.base.logs import about, conceal, set_up_logging
from trio_runner.base.redact import MASK, MIN_SECRET_CHARACTERS, redact

CANARY = "c4n4ry"


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("nothing to hide", "nothing to hide"),
        ("postgresql://user:c4n4ry@host:5432/db", "postgresql://***@host:5432/db"),
        ("http://c4n4ry@host/", "http://***@host/"),
        ("http://:c4n4ry@host/", "http://***@host/"),
        ("two: a://x:c4n4ry@h, b://y:c4n4ry@i.", "two: a://***@h, b://***@i."),
        ("a://u:c4n@4ry@host", "a://***@host"),
        ("http://host/mail@example.org", "http://host/mail@example.org"),
        ("write to mail@example.org", "write to mail@example.org"),
        ("http://host:80/path and mail@example.org", "http://host:80/path and mail@example.org"),
    ],
)
def test_the_user_part_of_an_address_is_masked(text: str, clean: str) -> None:
    assert redact(text) == clean


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("https://h/a.mp4?X-Amz-Signature=c4n4ry: gone", "https://h/a.mp4?*** gone"),
        ("(https://h/a?c4n4ry and s3://b/k?versionId=c4n4ry", "(https://h/a?*** and s3://b/k?***"),
        ('{"url": "http://h/?c4n4ry", "next": 1}', '{"url": "http://h/?***", "next": 1}'),
        ("https://h/a?x=1\\u0026sig=c4n4ry", "https://h/a?***"),
        ("https://h/a? is no query", "https://h/a? is no query"),
        ("postgresql:///db?host=/run/postgresql", "postgresql:///db?host=/run/postgresql"),
    ],
)
def test_the_query_of_a_web_address_is_masked(text: str, clean: str) -> None:
    assert redact(text) == clean
    assert redact(clean) == clean


def test_an_address_is_read_once_however_many_others_it_holds() -> None:
    def seconds(count: int) -> float:
        text = "http://" * count + " "
        began = time.process_time()
        assert redact(text) == text
        return time.process_time() - began

    # Sixteen times the text takes sixteen times as long. It took over a hundred times as long.
    short = min(seconds(1000) for _ in range(5))
    assert min(seconds(16_000) for _ in range(3)) < 64 * max(short, 0.0005)


def test_given_secrets_are_masked_wherever_they_stand() -> None:
    assert redact("key=c4n4ry;c4n4ryc4n4ry", frozenset({CANARY})) == f"key={MASK};{MASK}{MASK}"


def test_a_secret_that_holds_another_is_masked_whole() -> None:
    assert redact("long c4n4ry-extended", frozenset({CANARY, f"{CANARY}-extended"})) == f"long {MASK}"


@pytest.mark.parametrize("secret", ["", "a", "ab", "abc"])
def test_what_is_too_short_masks_nothing(secret: str) -> None:
    assert redact("abc", frozenset({secret})) == "abc"


def test_what_becomes_a_secret_by_masking_is_masked_too() -> None:
    assert redact("a-c4n4ry-b", frozenset({CANARY, "-***-"})) == "a***b"


# Printable, no white space: what ends an address in running text.
printable = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="/?#"), max_size=12)


@given(st.sampled_from(["http", "postgresql", "x+y"]), printable, printable, st.text(max_size=10), st.text(max_size=10))
def test_no_password_survives_in_an_address(scheme: str, left: str, right: str, before: str, after: str) -> None:
    text = f"{before} {scheme}://user:{left}{CANARY}{right}@host/db {after}"
    assert CANARY not in redact(text)


# Rich in what has to be escaped somewhere.
awkward = st.text("ab\"'\\/@:+% \té€😀*n0", min_size=MIN_SECRET_CHARACTERS, max_size=12) | st.text(
    st.characters(exclude_categories=["Cs", "Cc"]), min_size=MIN_SECRET_CHARACTERS, max_size=12
)
around = st.text("ab\"'\\/@:+% \t\né€😀*n0", max_size=20) | st.text(max_size=20)


@given(st.frozensets(awkward, min_size=1, max_size=3), st.lists(around, min_size=2, max_size=4))
def test_no_given_secret_survives(secrets: frozenset[str], pieces: list[str]) -> None:
    text = "".join(piece + secret for piece, secret in zip(pieces, [*secrets] * 4, strict=False))
    clean = redact(text, secrets)
    assert not [secret for secret in secrets if secret in clean]
    assert redact(clean, secrets) == clean


WRITTEN: dict[str, tuple[Callable[[str], str], Callable[[str], str]]] = {
    "JSON": (json.dumps, json.loads),
    "JSON with Unicode": (lambda text: json.dumps(text, ensure_ascii=False), json.loads),
    "repr": (repr, literal_eval),
    "ascii": (ascii, literal_eval),
    "repr of bytes": (lambda text: repr(text.encode()), lambda text: literal_eval(text).decode("utf-8", "replace")),
    "JSON of a repr": (lambda text: json.dumps(repr(text)), lambda text: literal_eval(json.loads(text))),
    "JSON of JSON": (lambda text: json.dumps(json.dumps(text)), lambda text: json.loads(json.loads(text))),
    "URL": (lambda text: quote(text, safe=""), unquote),
    "URL in small letters": (lambda text: re.sub("%..", lambda code: code[0].lower(), quote(text, safe="")), unquote),
    "path of a URL": (quote, unquote),
    "form": (quote_plus, unquote_plus),
}
"""Ways of writing a text, each with the way of reading it."""


@pytest.mark.parametrize(("write", "read"), WRITTEN.values(), ids=WRITTEN)
@given(awkward, around, around)
def test_a_secret_does_not_survive_in_another_way_of_writing(
    write: Callable[[str], str], read: Callable[[str], str], secret: str, before: str, after: str
) -> None:
    clean = redact(write(f"{before}{secret}{after}"), frozenset({secret}))
    assert MASK in clean
    assert secret not in clean
    # A secret that ends with a backslash may have taken the end of the whole with it.
    with suppress(ValueError, SyntaxError):
        assert secret not in read(clean)


@given(awkward, st.binary(max_size=9), st.binary(max_size=9))
def test_a_secret_does_not_survive_in_base64(secret: str, before: bytes, after: bytes) -> None:
    # SASL/PLAIN is \0user\0password, HTTP's Basic is user:password.
    data = before + secret.encode() + after
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        clean = redact(f"authorization: {encode(data).decode()}", frozenset({secret}))
        left, _, right = clean.removeprefix("authorization: ").partition(MASK)
        assert MASK in clean
        # At most a digit at either end is left of it.
        assert len(left) <= len(before) * 8 // 6 + 2
        assert len(right.rstrip("=")) <= len(after) * 8 // 6 + 2


def test_a_long_run_of_backslashes_takes_no_longer_than_its_length() -> None:
    # With patterns that try a run's parts one by one, this would not end.
    secret = "\\a" * 10 + "\\" * 10 + "z"
    text = "\\" * 20_000 + "\\a" * 9
    assert redact(text, frozenset({secret})) == text


# logs


@pytest.fixture
def fresh_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A root logger of the test's own."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def log_everywhere(secret: str, before: str, after: str) -> None:
    """Log the secret from every place that a log line may come from."""
    text = f"{before}{secret}{after}"
    logger = logging.getLogger("trio_runner.x")
    logger.error("%s", text)
    logger.error("%r is %s", text, [text])
    logger.error(text.replace("%", "%%"), extra={"more": text})
    with about(bound=text):
        logger.error("bound", extra={"value": text, "values": [text], "octets": text.encode()})
    error = ValueError(text)
    error.__cause__ = KeyError(text)
    logger.error("broken", exc_info=error)


@pytest.mark.parametrize("form", ["json", "console"])
@given(awkward, around, around)
def test_no_secret_survives_in_a_log_line(form: str, secret: str, before: str, after: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        output = StringIO()
        patch.setattr(sys, "stderr", output)
        root = logging.getLogger()
        patch.setattr(root, "handlers", [])
        set_up_logging(level="info", form=form)
        conceal(frozenset({secret}))
        log_everywhere(secret, before, after)
    assert output.getvalue().count(MASK) >= 5
    assert secret not in output.getvalue()


@pytest.mark.usefixtures("fresh_logging")
def test_lines_stay_json_and_keep_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="info", form="json")
    secret = 'c4n4ry"\\é\\'
    conceal(frozenset({secret}))
    log_everywhere(secret, "before ", ' "after" \\')
    output = capsys.readouterr().err
    records = [json.loads(line) for line in output.splitlines()]
    assert len(records) == 5
    assert records[0]["event"] == f'before {MASK} "after" \\'
    assert records[3]["value"] == f'before {MASK} "after" \\'
    assert f"ValueError: before {MASK}" in records[4]["exception"]
    assert CANARY not in output


@pytest.mark.usefixtures("fresh_logging")
def test_a_secret_that_ends_with_a_backslash_takes_no_quote_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="info", form="json")
    conceal(frozenset({"c4n4ry\\"}))
    logging.getLogger("x").error('c4n4ry\\"after"')
    assert json.loads(capsys.readouterr().err)["event"] == f'{MASK}"after"'


@pytest.mark.usefixtures("fresh_logging")
def test_lines_stay_json_also_when_an_escape_makes_up_a_secret(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="info", form="json")
    conceal(frozenset({"nabcd"}))
    log_everywhere("abcd", "\n", "")
    output = capsys.readouterr().err
    assert len([json.loads(line) for line in output.splitlines()]) == 5
    assert "nabcd" not in output


@pytest.mark.usefixtures("fresh_logging")
def test_what_is_concealed_later_is_added(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="info", form="json")
    conceal(frozenset({"first-secret"}))
    conceal(frozenset({"second-secret"}))
    logging.getLogger("x").error("first-secret and second-secret, postgresql://user:third@h")
    assert json.loads(capsys.readouterr().err)["event"] == "*** and ***, postgresql://***@h"


def test_logging_that_somebody_else_set_up_is_left_alone() -> None:
    handlers = logging.getLogger().handlers[:]
    conceal(frozenset({"some-secret"}))
    assert logging.getLogger().handlers == handlers

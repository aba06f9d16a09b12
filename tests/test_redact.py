from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_runner.redact import MASK, redact

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


def test_given_secrets_are_masked_wherever_they_stand() -> None:
    assert redact("key=c4n4ry;c4n4ryc4n4ry", frozenset({CANARY})) == f"key={MASK};{MASK}{MASK}"


def test_a_secret_that_holds_another_is_masked_whole() -> None:
    assert redact("long c4n4ry-extended", frozenset({CANARY, f"{CANARY}-extended"})) == f"long {MASK}"


def test_an_empty_secret_masks_nothing() -> None:
    assert redact("abc", frozenset({""})) == "abc"


# Printable, no white space: what ends an address in running text.
printable = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="/?#"), max_size=12)


@given(st.sampled_from(["http", "postgresql", "x+y"]), printable, printable, st.text(max_size=10), st.text(max_size=10))
def test_no_password_survives_in_an_address(scheme: str, left: str, right: str, before: str, after: str) -> None:
    text = f"{before} {scheme}://user:{left}{CANARY}{right}@host/db {after}"
    assert CANARY not in redact(text)


@given(st.text(max_size=30), st.frozensets(st.text(min_size=1, max_size=5), max_size=4))
def test_no_given_secret_survives_but_for_the_mask_itself(text: str, secrets: frozenset[str]) -> None:
    clean = redact(text, secrets)
    for secret in secrets:
        assert secret not in clean.replace(MASK, "\0") or secret in text.replace(secret, "\0")

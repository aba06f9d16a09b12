"""Takes secrets out of every text that leaves the process, also where they are written with escapes."""

from __future__ import annotations

import base64
import json
import re
from math import ceil
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

MASK: Final = "***"
MIN_SECRET_CHARACTERS: Final = len(MASK) + 1
"""Shorter secrets are not masked: they occur in every other word, and a text without them would be unreadable."""

_USERINFO: Final = re.compile(r"(?<=://)[^/\s]*@")
_QUERY: Final = re.compile(
    r"((?i:https?|s3|gs|rtsps?|ftps?|abfss?|wasbs?|azure?):/{1,2}[^\s?\"\\]*+)(\?(?:[^\s\"\\]|\\u[0-9A-Fa-f]{4})+)?"
)
"""The query of a URL: whoever knows that of a presigned URL may read the object. A quote or a backslash ends it,
because a log line in JSON must stay JSON. An address without a query matches as well, so that it is read once: the
search would otherwise read the same text again for each `http:` in it."""


def redact(text: str, secrets: frozenset[str] = frozenset()) -> str:
    """`text` without the given secret values, without the user part of any URL and without the query of a web address.

    A value is also found as JSON, Python's `repr`, a URL or base64 would write it, or one of them inside another.
    """
    maskable = sorted((secret for secret in secrets if len(secret) >= MIN_SECRET_CHARACTERS), key=len, reverse=True)
    forms = [form for secret in maskable for form in (_with_escapes(secret), *_in_base64(secret))]
    pattern = re.compile("|".join(forms) if forms else r"(?!)", re.DOTALL)
    # Repeated after every change: the text before a mask and the text behind it may form another secret. The loop ends,
    # because a mask is shorter than the secret that it replaces, and a masked address is not changed again.
    while (clean := _QUERY.sub(_without_query, _USERINFO.sub(f"{MASK}@", pattern.sub(MASK, text)))) != text:
        text = clean
    return clean


def _without_query(address: re.Match[str]) -> str:
    return f"{address[1]}?{MASK}" if address[2] else address[1]


def _with_escapes(secret: str) -> str:
    r"""Each letter as itself or escaped: é may stand as é, \u00e9, \xe9, \xc3\xa9 or %C3%A9, with any number of \."""
    # Backslashes match as a whole run and possessively: nothing is tried twice, however many there are.
    runs = re.findall(r"(\\*)([^\\]|\Z)", secret, re.DOTALL)
    return r"(?<!\\)\\*+" * (not runs[0][0]) + "".join(_letter(len(run), letter) for run, letter in runs)


def _letter(backslashes: int, letter: str) -> str:
    before = rf"(?:\\{{{backslashes},}}+|(?:%5[Cc]){{{backslashes}}})" if backslashes else ""
    if letter.isascii() and (letter.isalnum() or not letter):
        return before + letter
    octets = letter.encode("utf-8", "surrogatepass")
    forms = [
        re.escape(letter),
        re.escape(json.dumps(letter)[1:-1].lstrip("\\")).replace(r"\\", r"\\*+"),
        rf"x{ord(letter):02x}",
        f"U{ord(letter):08x}",
        r"\\*+".join(f"x{octet:02x}" for octet in octets),
        "".join(f"%{octet:02x}" for octet in octets),
        *([r"\+"] if letter == " " else []),
    ]
    return rf"{before}\\*+(?i:{'|'.join(forms)})"


def _in_base64(secret: str) -> Iterator[str]:
    """The secret in base64, at each offset: SASL/PLAIN and HTTP encode it with a name in front of it."""
    octets = secret.encode("utf-8", "surrogatepass")
    for offset in range(3):
        digits = base64.b64encode(bytes(offset) + octets).decode()
        # The digits at either end also hold bits of the neighbours.
        inner = digits[ceil(offset * 8 / 6) : (offset + len(octets)) * 8 // 6]
        yield inner.replace("+", "[+-]").replace("/", "[/_]")

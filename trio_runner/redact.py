"""Takes secrets out of every text that leaves the process."""

from __future__ import annotations

import re

MASK = "***"
_USERINFO = re.compile(r"(?<=://)[^/\s]*@")


def redact(text: str, secrets: frozenset[str] = frozenset()) -> str:
    """`text` without the given secret values and without the user part of any URL."""
    for secret in sorted(secrets, key=len, reverse=True):
        if secret:
            text = text.replace(secret, MASK)
    return _USERINFO.sub(f"{MASK}@", text)

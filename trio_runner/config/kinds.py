"""The types of keys, each with its range in words, and what a section is."""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, Final, Literal, get_args, get_origin

import msgspec
from msgspec import Meta

PLACEHOLDER: Final = re.compile(r"<[A-Z][A-Z0-9_/ -]*>")
"""What the user has to replace in a printed config, as <MODEL>."""

EMBEDDED: Final = "embedded"
"""In place of an address: the runner starts a real server of its own."""

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
NotNegative = Annotated[int, Meta(ge=0, le=2**31 - 1)]
FilePath = Annotated[
    str, Meta(max_length=4096, pattern=r"^[^\x00]*\Z", description="a path of at most 4096 characters")
]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
SecondsOrNone = Annotated[float, Meta(ge=0, le=86_400)]
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=200,
        pattern=r"^[A-Za-z0-9._:@-]+\Z",
        description="1 to 200 letters, digits or any of . _ : @ -",
    ),
]
DnsName = Annotated[
    str,
    Meta(
        max_length=63,
        pattern=r"^([a-z0-9]([a-z0-9-]*[a-z0-9])?)?\Z",
        description="at most 63 small letters, digits or -, as Kubernetes names its objects",
    ),
]
Quantity = Annotated[
    str,
    Meta(
        max_length=30,
        pattern=r"^([0-9]+(\.[0-9]+)?(m|k|[MGT]|[KMGT]i)?)?\Z",
        description='a quantity of Kubernetes, as "500m" or "2Gi"; "" for none',
    ),
]


UrlPath = Annotated[
    str, Meta(pattern=r"^/((?![?#])[!-~])*\Z", description="a path that begins with /, without blanks, ? and #")
]
OptionalUrlPath = Annotated[
    str,
    Meta(
        pattern=r"^(/((?![?#])[!-~])*)?\Z",
        description='a path that begins with /, without blanks, ? and #; "" for none',
    ),
]
HeaderName = Annotated[str, Meta(max_length=100, pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]+\Z")]
HeaderTable = Annotated[
    dict[HeaderName, Annotated[str, Meta(max_length=4000, pattern=r"^([!-~]([ -~]*[!-~])?)?\Z")]],
    Meta(max_length=40, description='a table of at most 40 header names and values, as { "X-Model" = "a" }'),
]
QueryTable = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=100)], Annotated[str, Meta(max_length=4000)]],
    Meta(max_length=40, description='a table of at most 40 parameters, as { confidence = "0.4" }'),
]
FileTable = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=100)], Annotated[FilePath, Meta(min_length=1)]],
    Meta(max_length=40, description='a table of at most 40 names and files, as { "X-Api-Key" = "/etc/keys/api" }'),
]
Topic = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9._-]{1,249}\Z", description="1 to 249 letters, digits or any of . _ -")
]


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the config file."""


class PeerSection(Section, frozen=True, kw_only=True):
    """TLS with a peer; without `ca_file` the system's authorities are trusted."""

    ca_file: FilePath = ""
    certificate_file: FilePath = ""
    key_file: FilePath = ""


def allowed(kind: Any) -> str:
    """The values that a key of this type takes, in words."""
    base, *metas = get_args(kind) if get_origin(kind) is Annotated else (kind,)
    for meta in reversed(metas):
        if meta.description:
            return str(meta.description)
    if get_origin(base) is Literal:
        return " | ".join(map(json.dumps, get_args(base)))
    if base is not int and base is not float:
        return "true or false" if base is bool else "text in quotes"
    limits = {name: getattr(meta, name) for meta in metas for name in ("ge", "gt", "le")}
    span = f"from {limits['ge']} to" if limits["gt"] is None else f"above {limits['gt']}, at most"
    return f"{'an integer' if base is int else 'a number'} {span} {limits['le']}"

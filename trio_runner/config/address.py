"""Addresses as the config writes them, taken apart; nothing is looked up or connected to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

DATABASE_PARAMETERS: Final = ("host", "port", "user", "dbname")
"""What the query of `database.url` may hold. Of the rest that libpq knows, most would override keys of ours."""

_UNIX: Final = "unix:"

_DATABASE_PORT: Final = 5432

_SOCKET_DIRECTORIES: Final = ("/run/postgresql", "/var/run/postgresql")
"""Where a server's socket may lie; not /tmp, in which anybody could put one and ask for the password."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseAddress:
    """Where a PostgreSQL server is, and as whom and to what one connects; no user: whoever runs this process."""

    hosts: tuple[str, ...]
    """One host, or the directories in which a Unix socket is looked for."""
    port: int
    user: str
    database: str
    has_password: bool = False
    """Whether a password stands in the address, where it must not."""
    unread: tuple[str, ...] = ()
    """The parameters of its query that are not read."""

    @property
    def is_socket(self) -> bool:
        """Whether no network lies between."""
        return self.hosts[0].startswith("/")

    def __str__(self) -> str:
        if self.is_socket:
            return f"{self.hosts[0]}/.s.PGSQL.{self.port}"
        host = f"[{self.hosts[0]}]" if ":" in self.hosts[0] else self.hosts[0]
        return f"{host}:{self.port}"


def split_url(url: str, schemes: set[str]) -> SplitResult | None:
    """The parts of an address of one of these schemes, in printable ASCII; None for anything else."""
    try:
        parts = urlsplit(url)
        # Reading the port makes urlsplit check it. Programs do not agree on where to cut an address with two @.
        usable = parts.scheme in schemes and parts.port != 0 and parts.netloc.count("@") < 2  # noqa: PLR2004
    except ValueError:
        return None
    return parts if usable and re.fullmatch(r"[!-~]+", url) else None


def socket_path(url: str) -> str:
    """The path in `unix:/path`; empty for any other address."""
    return url.removeprefix(_UNIX) if url.startswith(_UNIX) else ""


def http_base(url: str) -> str:
    """The address that HTTP paths are appended to; a service on a Unix socket is called localhost."""
    return "http://localhost" if socket_path(url) else url.rstrip("/")


def is_host_and_port(address: str) -> bool:
    """Whether this is `host:port`, with a literal IPv6 address in brackets."""
    matched = re.fullmatch(r"(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", address)
    return matched is not None and 0 < int(matched[1]) < 2**16


def parse_database_url(url: str) -> DatabaseAddress | None:
    """What a `postgresql://` address says; what it leaves out is the default. None: it cannot be used.

    A Unix socket's directory is the host, either quoted (`%2Frun%2Fpostgresql`) or as `?host=/run/postgresql`.
    """
    parts = split_url(url, {"postgresql", "postgres"})
    if parts is None or parts.fragment:
        return None
    try:
        given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
    except ValueError:
        return None
    login, _, place = parts.netloc.rpartition("@")
    # Not `parts.hostname`, which is in lower case: a path is not.
    named = place[1:].partition("]")[0] if place.startswith("[") else unquote(place.partition(":")[0])
    host = named or given.get("host", "")
    port = given.get("port", str(_DATABASE_PORT))
    if "," in host or not is_host_and_port(f"host:{port}"):
        return None
    user = unquote(login.partition(":")[0]) or given.get("user", "")
    return DatabaseAddress(
        hosts=(host,) if host else _SOCKET_DIRECTORIES,
        port=parts.port or int(port),
        user=user,
        database=unquote(parts.path[1:]) or given.get("dbname") or user,
        has_password=parts.password is not None,
        unread=tuple(name for name in given if name not in DATABASE_PARAMETERS),
    )

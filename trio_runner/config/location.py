"""Where a video lies that is not a local file, as its URL says; nothing is looked up or connected to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote, unquote

from trio_runner.config.address import split_url

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

DEFAULT_PORTS: Final = {"https": 443, "http": 80, "s3": 0}
"""An `s3` URL names no port: its bucket is reached at `storage.s3_endpoint`."""

_URL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_HOST: Final = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?|[0-9a-f:.]*:[0-9a-f:.]*")
_S3: Final = re.compile(r"s3://([^/?#@:\s\x00-\x1f\x7f]+)/([^\x00-\x1f\x7f?#]*)(?:\?versionId=([!-~]+))?")
_BUCKET: Final = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_MAX_QUOTINGS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Location:
    """The parts of a URL by which it is compared and requested. `host` is the bucket of an `s3` URL."""

    scheme: str
    host: str
    port: int
    path: str
    """Begins with "/"; percent-encoded for http and https, the key as it is for s3."""
    query: str = ""

    @property
    def authority(self) -> str:
        """Host and port as a `Host` header has them: the scheme's own port is left out."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """Path and query as the first line of a request has them."""
        return f"{self.path}?{self.query}" if self.query else self.path

    def __str__(self) -> str:
        """The URL without its query, which may hold a signature."""
        return f"{self.scheme}://{self.authority}{self.path}"


def is_url(path: str) -> bool:
    """Whether a video's path is a URL of any scheme, known or not, and no path of a file."""
    return _URL.match(path) is not None


def absolute_path(path: str, directory: Path) -> str:
    """The path of a video, which starts from `directory` if it is relative; a URL stays as it is."""
    return path if is_url(path) else str(directory / path)


def parse_location(url: str) -> Location:
    """The parts of an `https`, `http` or `s3` URL.

    Raises:
        ValueError: It is no such URL, or one that two programs could read in two ways; the text says why and does not
            repeat the URL.
    """
    scheme = url.partition(":")[0]
    if scheme not in DEFAULT_PORTS:
        raise ValueError("only https://, s3:// and http:// are fetched")
    location = _of_s3(url) if scheme == "s3" else _of_http(url)
    if _climbs(location.path):
        raise ValueError("its path has a segment . or .., or a backslash")
    return location


def allowing_prefix(location: Location, prefixes: Iterable[str]) -> Location | None:
    """The first prefix that allows this location; None if none does. A prefix ends with "/"."""
    for prefix in map(parse_location, prefixes):
        same_place = (prefix.scheme, prefix.host, prefix.port) == (location.scheme, location.host, location.port)
        if same_place and location.path.startswith(prefix.path):
            return prefix
    return None


def _of_s3(url: str) -> Location:
    matched = _S3.fullmatch(url)
    if matched is None:
        raise ValueError("not of the form s3://bucket/key, perhaps with ?versionId=")
    bucket, key, version = matched.groups()
    if not _BUCKET.fullmatch(bucket):
        # The name is not repeated: it may be a secret that was written in the wrong place.
        raise ValueError("the bucket's name is not valid (3 to 63 small letters, digits or any of . -)")
    query = f"versionId={quote(version, safe='-_.~')}" if version else ""
    return Location(scheme="s3", host=bucket, port=0, path=f"/{key}", query=query)


def _of_http(url: str) -> Location:
    parts = split_url(url, {"https", "http"})
    if parts is None or not parts.hostname:
        raise ValueError("not of the form https://host/path in printable ASCII")
    if "@" in parts.netloc:
        raise ValueError("it has a user name or a password")
    if "#" in url:
        raise ValueError("it has a fragment")
    if not _HOST.fullmatch(parts.hostname):
        raise ValueError("its host is no host name and no IP address")
    port = parts.port or DEFAULT_PORTS[parts.scheme]
    return Location(scheme=parts.scheme, host=parts.hostname, port=port, path=parts.path or "/", query=parts.query)


def _climbs(path: str) -> bool:
    """Whether a server could take the path for one in another directory, however often it decodes it."""
    for _ in range(_MAX_QUOTINGS):
        if "\\" in path or any(segment in {".", ".."} for segment in re.split(r"[/;]", path)):
            return True
        path, before = unquote(path), path
        if path == before:
            return False
    return True

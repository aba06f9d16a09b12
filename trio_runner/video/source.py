"""Decides whether a video's path is a file or an object to be fetched, and whether it may be fetched at all."""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING, Final

from trio_runner.base.redact import redact
from trio_runner.config.location import Location, allowing_prefix, is_url, parse_location
from trio_runner.errors import ErrorCode, RunnerError

if TYPE_CHECKING:
    from collections.abc import Iterable

_SIGNATURE: Final = re.compile(
    r"x-amz-.*|x-goog-.*|awsaccesskeyid|googleaccessid|signature|expires|policy|key-pair-id", re.IGNORECASE
)
"""The parameters by which AWS, Google and CloudFront sign a URL. They say who may read, and not what is read."""

_AZURE: Final = frozenset(
    {"se", "sig", "sip", "ske", "skoid", "sks", "skt", "sktid", "skv", "sp", "spr", "sr", "st", "sv"}
)
"""Those of Azure, which are looked for where there is a `sig`: names so short mean something else elsewhere."""

_SUFFIX: Final = re.compile(r"\.[A-Za-z0-9]{1,8}\Z")


def location_of(path: str, prefixes: Iterable[str]) -> Location | None:
    """Where the video is to be fetched from; None for the path of a file.

    Args:
        path: `video.path`, or the path that a scenario was submitted with.
        prefixes: `storage.url_prefixes`.

    Raises:
        RunnerError: `video_refused`: no prefix allows this URL, or it is not one that can be fetched.
    """
    if not is_url(path):
        return None
    try:
        location = parse_location(path)
    except ValueError as error:
        # A URL that is not understood may hold a signature all the same.
        shown = redact(path.partition("?")[0])
        raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{shown}: {error}. Correct video.path") from None
    if location.path.endswith("/"):
        raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{location}: names a directory, not an object. Correct video.path")
    if allowing_prefix(location, prefixes) is None:
        remedy = "Add its directory to storage.url_prefixes, or correct video.path"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{location}: begins with none of storage.url_prefixes. {remedy}")
    return location


def object_key(location: Location) -> str:
    """The name under which the cache keeps this object: a hash of its URL without the parameters of a signature.

    So every presigned URL of an object finds the copy that was fetched by an earlier one. The fetcher asks the storage
    by the new URL whether that copy is still the object, so an expired URL gives no access to the copy.
    """
    parameters = [(each.partition("=")[0], each) for each in location.query.split("&")]
    azure = _AZURE if "sig" in dict(parameters) else frozenset()
    query = [each for name, each in parameters if not _SIGNATURE.fullmatch(name) and name not in azure]
    return hashlib.sha256(f"{location}?{'&'.join(query)}".encode()).hexdigest()[:40]


def suffix_of(location: Location) -> str:
    """The ending of the object's name, by which FFmpeg tells some formats apart, as ".mp4"; perhaps empty."""
    matched = _SUFFIX.search(location.path)
    return matched[0].lower() if matched else ""

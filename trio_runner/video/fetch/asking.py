"""One GET of an object, with redirects that stay within the allowed prefixes: an answer, or an error with a code."""

from __future__ import annotations

import http.client
import re
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import urljoin

from trio_runner import __version__
from trio_runner.config.location import Location, allowing_prefix, parse_location
from trio_runner.config.tls import tls_problem
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.video.cache import Version
from trio_runner.video.fetch.connecting import connect
from trio_runner.video.fetch.signing import encoded_path, signed_headers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from trio_runner.config.sections import StorageSection
    from trio_runner.video.fetch.messages import Credentials

MAX_REDIRECTS: Final = 5
MAX_RETRY_AFTER_SECONDS: Final = 300.0
_OK: Final = 200
_PARTIAL: Final = 206
_NOT_MODIFIED: Final = 304
_UNSATISFIABLE: Final = 416
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_DENIED: Final = frozenset({401, 403})
_MISSING: Final = frozenset({404, 410})
_UNAVAILABLE: Final = frozenset({408, 425, 429})
_SERVER_ERROR: Final = 500
_PLAIN: Final = "Let the server send the video as it is"
LOOK: Final = "Look at the network and at the server's log"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """A usable answer: `begin` is the first byte that `body` gives, which is None where nothing has changed or fits."""

    version: Version | None
    begin: int = 0
    body: http.client.HTTPResponse | None = None
    is_current: bool = False
    """The storage says that the version that it was asked about is still the object's."""
    checksums: Mapping[str, str] | None = None
    """Of the whole object, in base64, by `sha256` and `crc32`."""


@contextmanager
def asked(
    location: Location,
    storage: StorageSection,
    credentials: Credentials | None,
    *,
    known: Version | None = None,
    part: tuple[Version, int] | None = None,
) -> Iterator[Answer]:
    """Ask for the object: unless it is still `known`, from behind `part` on if that is still its version, or whole.

    Raises:
        RunnerError: One of `storage_*`, or `video_refused` for a redirect or an address that is not allowed.
    """
    conditions = {"accept-encoding": "identity", "user-agent": f"trio-runner/{__version__}"}
    if part is not None:
        conditions |= {"range": f"bytes={part[1]}-", "if-range": part[0].etag}
    elif known is not None and known.etag:
        conditions["if-none-match"] = known.etag
    request = _Request.to(location, storage, credentials)
    for _ in range(MAX_REDIRECTS + 1):
        with (
            closing(request.connected(storage)) as connection,
            request.send(connection, conditions, storage) as response,
        ):
            if response.status in _REDIRECTS:
                request = request.redirected(response, storage)
                continue
            yield _answer(response, location, known=known, part=part)
            return
    raise RunnerError(ErrorCode.STORAGE_BAD_ANSWER, f"{location}: more than {MAX_REDIRECTS} redirects")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Request:
    """Where one request goes, the entry of the config that allows that, and who signs it."""

    shown: Location
    target: Location
    listed: Location
    credentials: Credentials | None
    region: str

    @classmethod
    def to(cls, location: Location, storage: StorageSection, credentials: Credentials | None) -> _Request:
        prefix = allowing_prefix(location, storage.url_prefixes)
        if prefix is None:
            raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{location}: begins with none of storage.url_prefixes")
        if location.scheme == "s3":
            target, listed = _at_endpoint(location, storage)
        else:
            # Only the storage of an s3:// URL is sent what the credentials sign.
            target, listed, credentials = location, prefix, None
        return cls(shown=location, target=target, listed=listed, credentials=credentials, region=storage.s3_region)

    def connected(self, storage: StorageSection) -> http.client.HTTPConnection:
        try:
            key = "s3_endpoint" if self.shown.scheme == "s3" else "url_prefixes"
            return connect(self.target, self.listed, storage, key=key)
        except RunnerError as error:
            if self.target is self.shown:
                raise
            raise RunnerError(error.code, f"{self.shown}: {error.message}") from error

    def send(
        self, connection: http.client.HTTPConnection, conditions: Mapping[str, str], storage: StorageSection
    ) -> http.client.HTTPResponse:
        headers = {"host": self.target.authority, **conditions}
        if self.shown.scheme == "s3":
            headers["x-amz-checksum-mode"] = "ENABLED"
        if self.credentials is not None:
            now = datetime.now(UTC)
            headers = signed_headers(
                headers, self.target.path, self.target.query, self.credentials, region=self.region, now=now
            )
        try:
            connection.putrequest("GET", self.target.target, skip_host=True, skip_accept_encoding=True)
            for name, value in {**headers, "connection": "close"}.items():
                connection.putheader(name, value)
            connection.endheaders()
            return connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            raise broken(self.shown, error, storage) from error

    def redirected(self, response: http.client.HTTPResponse, storage: StorageSection) -> _Request:
        place = response.getheader("Location", "")
        if self.shown.scheme == "s3":
            region = response.getheader("x-amz-bucket-region", "")
            remedy = (
                f"set storage.s3_region to {region}"
                if re.fullmatch(r"[a-z0-9-]{1,40}", region)
                else ("correct storage.s3_endpoint and s3_region")
            )
            message = f"{self.shown}: it answered {response.status}, and redirects of S3 are not followed; {remedy}"
            raise RunnerError(ErrorCode.STORAGE_BAD_ANSWER, message)
        try:
            target = parse_location(
                urljoin(f"{self.target.scheme}://{self.target.authority}{self.target.target}", place)
            )
            listed = None if target.scheme == "s3" else allowing_prefix(target, storage.url_prefixes)
        except ValueError:
            target, listed = None, None
        if target is None or listed is None:
            where = f"to {target}" if target else "to no usable URL"
            message = f"{self.shown}: it redirects {where}, which begins with none of storage.url_prefixes"
            remedy = "Add the target's directory to storage.url_prefixes, if it is to be trusted"
            raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{message}. {remedy}")
        return _Request(shown=self.shown, target=target, listed=listed, credentials=None, region=self.region)


def broken(location: Location, error: BaseException, storage: StorageSection) -> RunnerError:
    """The error of a connection that broke, stalled, or carried something that is not HTTP."""
    if isinstance(error, TimeoutError):
        silence = f"no byte for {storage.stall_timeout_seconds:g} s (storage.stall_timeout_seconds)"
        return RunnerError(ErrorCode.STORAGE_TIMEOUT, f"{location}: {silence}. Look at the network, or raise that")
    if problem := tls_problem(error, "storage", address="url_prefixes"):
        return RunnerError(ErrorCode.STORAGE_TLS, f"{location}: {problem}")
    if isinstance(error, http.client.HTTPException) and not isinstance(error, http.client.RemoteDisconnected):
        why = f"it does not speak HTTP: {type(error).__name__}. Correct the address"
        return RunnerError(ErrorCode.STORAGE_BAD_ANSWER, f"{location}: {why}")
    return RunnerError(ErrorCode.STORAGE_UNAVAILABLE, f"{location}: it broke off the exchange. {LOOK}")


def _at_endpoint(location: Location, storage: StorageSection) -> tuple[Location, Location]:
    """The object's place at the endpoint, and the endpoint. AWS itself has a host for each bucket without a dot."""
    region, bucket = storage.s3_region, location.host
    endpoint = parse_location(storage.s3_endpoint or f"https://s3.{region}.amazonaws.com/")
    key = encoded_path(location.path)
    if storage.s3_endpoint or "." in bucket:
        host, path = endpoint.host, f"/{bucket}{key}"
    else:
        host, path = f"{bucket}.{endpoint.host}", key
    target = Location(scheme=endpoint.scheme, host=host, port=endpoint.port, path=path, query=location.query)
    return target, endpoint


def _answer(
    response: http.client.HTTPResponse, location: Location, *, known: Version | None, part: tuple[Version, int] | None
) -> Answer:
    status = response.status
    if status == _NOT_MODIFIED and known is not None and part is None:
        return Answer(version=known, is_current=True)
    if status == _UNSATISFIABLE and part is not None:
        return Answer(version=None)
    if status not in {_OK, _PARTIAL}:
        raise _refusal(response, location)
    if response.getheader("Content-Encoding", "identity").lower() != "identity":
        raise RunnerError(ErrorCode.STORAGE_BAD_ANSWER, f"{location}: it compressed its answer unasked. {_PLAIN}")
    if response.length is None or response.chunked:
        why = "its answer has no Content-Length. Let the server send the video as a file"
        raise RunnerError(ErrorCode.STORAGE_BAD_ANSWER, f"{location}: {why}")
    if not response.length:
        raise RunnerError(ErrorCode.STORAGE_BAD_ANSWER, f"{location}: the object is empty. Upload it again")
    begin, total = (0, response.length) if status == _OK else _range(response, location)
    version = Version(
        size=total,
        etag=response.getheader("ETag", "").strip(),
        modified=response.getheader("Last-Modified", "").strip(),
    )
    if status == _PARTIAL and (part is None or begin != part[1] or _differs(version, part[0])):
        # Not what was asked for: another version's part, or another range.
        return Answer(version=None)
    return Answer(
        version=version,
        begin=begin,
        body=response,
        is_current=version.is_known and version == known,
        checksums={
            name: value
            for name in ("sha256", "crc32")
            # A checksum of a multipart upload's checksums has the number of parts behind it.
            if (value := response.getheader(f"x-amz-checksum-{name}", "")) and "-" not in value
        },
    )


def _differs(found: Version, part: Version) -> bool:
    return (found.size, found.etag) != (part.size, part.etag)


def _range(response: http.client.HTTPResponse, location: Location) -> tuple[int, int]:
    """The first byte and the object's size, of an answer that goes on to the object's end."""
    matched = re.fullmatch(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", response.getheader("Content-Range", ""))
    first, last, total = map(int, matched.groups()) if matched else (0, 0, 0)
    if not matched or last + 1 != total or total - first != response.length:
        raise RunnerError(ErrorCode.STORAGE_BAD_ANSWER, f"{location}: its Content-Range contradicts its answer")
    return first, total


def _refusal(response: http.client.HTTPResponse, location: Location) -> RunnerError:
    status = response.status
    answered = f"{location}: it answered {status}{_reason(response)}"
    if status in _DENIED:
        if location.scheme == "s3":
            remedy = "Check the credentials of [storage]"
        elif location.query:
            remedy = "A presigned URL may have expired"
        else:
            remedy = "The server does not let this runner read it"
        return RunnerError(ErrorCode.STORAGE_DENIED, f"{answered}. {remedy}")
    if status in _MISSING:
        return RunnerError(ErrorCode.STORAGE_MISSING, f"{answered}. Correct video.path, or put the object there")
    if status in _UNAVAILABLE or status >= _SERVER_ERROR:
        after = response.getheader("Retry-After", "")
        seconds = min(float(after), MAX_RETRY_AFTER_SECONDS) if re.fullmatch(r"[0-9]{1,9}", after) else None
        message = f"{answered}. Look at the server's log, or try again later"
        return RunnerError(ErrorCode.STORAGE_UNAVAILABLE, message, retry_after_seconds=seconds)
    return RunnerError(ErrorCode.STORAGE_BAD_ANSWER, f"{answered}. Correct video.path, or look at the server's log")


def _reason(response: http.client.HTTPResponse) -> str:
    """The name of the error that S3 has put into the body, as " AccessDenied"; "" where there is none."""
    try:
        body = response.read1(4096)
    except (OSError, http.client.HTTPException):
        return ""
    matched = re.search(rb"<Code>([A-Za-z0-9.]{1,80})</Code>", body)
    return f" {matched[1].decode()}" if matched else ""

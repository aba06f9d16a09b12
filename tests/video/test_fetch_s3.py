"""The fetcher child against a real S3 server: signed requests, presigned URLs, ranges, refusals."""

from __future__ import annotations

import hashlib
import hmac
import random
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pytest

from tests.support.certificates import Authority
from tests.support.s3_server import KEY_ID, SECRET_KEY, S3Server, open_s3
from tests.support.storage import Fault, open_storage
from tests.video.test_fetch import MIB, fetched, started, whole_file
from trio_runner.video.fetch import messages

pytestmark = pytest.mark.slow

CONTENT = random.Random(3).randbytes(5 * MIB + 3)
CREDENTIALS = messages.Credentials(key_id=KEY_ID, secret_key=SECRET_KEY)
KEY = "day 1/a+b=ü&c'(1)!.mp4"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, authority: Authority) -> Iterator[S3Server]:
    directory = tmp_path_factory.mktemp("s3")
    file = directory / "file"
    file.write_bytes(CONTENT)
    with open_s3(directory, certificate=authority.issue("localhost")) as opened:
        opened.put("bucket", KEY, file)
        yield opened


@pytest.fixture
def options(server: S3Server, authority: Authority) -> dict[str, Any]:
    return {
        "s3_endpoint": server.endpoint,
        "ca_file": str(authority.ca_file),
        "credentials": CREDENTIALS,
        "url_prefixes": ("s3://bucket/day 1/",),
    }


def test_a_signed_request_brings_the_object_and_asks_about_it_the_next_time(
    tmp_path: Path, options: dict[str, Any]
) -> None:
    assert whole_file(f"s3://bucket/{KEY}", tmp_path, **options) == CONTENT
    again = fetched(f"s3://bucket/{KEY}", tmp_path, **options)
    assert isinstance(again, messages.Ready)
    assert not again.fetched


def test_killed_in_the_middle_it_goes_on_there(tmp_path: Path, options: dict[str, Any]) -> None:
    with started(f"s3://bucket/{KEY}", tmp_path, **options) as child:
        child.record()
        child.process.kill()
    # The part as a fetcher would have left it that was killed earlier.
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(CONTENT[: 2 * MIB])
    assert whole_file(f"s3://bucket/{KEY}", tmp_path, **options) == CONTENT


@pytest.mark.parametrize(
    ("changed", "url", "code", "named"),
    [
        ({"credentials": None}, f"s3://bucket/{KEY}", "storage_denied", "AccessDenied"),
        (
            {"credentials": messages.Credentials(key_id=KEY_ID, secret_key="wrong")},
            f"s3://bucket/{KEY}",
            "storage_denied",
            "SignatureDoesNotMatch",
        ),
        ({}, "s3://bucket/day 1/none.mp4", "storage_missing", "NoSuchKey"),
        ({"url_prefixes": ("s3://nowhere/",)}, "s3://nowhere/none.mp4", "storage_missing", "NoSuchBucket"),
    ],
)
def test_a_refusal_has_the_name_that_s3_gives_it(
    tmp_path: Path, options: dict[str, Any], changed: dict[str, Any], url: str, code: str, named: str
) -> None:
    result = fetched(url, tmp_path, **options | changed)
    assert isinstance(result, messages.Fault)
    assert (result.code, named in result.message) == (code, True), result
    assert SECRET_KEY not in result.message


def test_a_presigned_url_needs_no_credentials_and_its_copy_is_that_of_the_next_one(
    tmp_path: Path, server: S3Server, options: dict[str, Any]
) -> None:
    prefixes = (f"{server.endpoint}bucket/",)
    mine = options | {"credentials": None, "url_prefixes": prefixes}
    first = fetched(presigned(server, KEY, seconds=600), tmp_path, **mine)
    second = fetched(presigned(server, KEY, seconds=700), tmp_path, **mine)
    assert isinstance(first, messages.Ready), first
    assert isinstance(second, messages.Ready), second
    assert (first.path, second.fetched) == (second.path, False)
    forged = presigned(server, KEY, seconds=600)[:-4] + "0000"
    result = fetched(forged, tmp_path, **mine)
    assert isinstance(result, messages.Fault), "a copy in the cache is no right to read it"
    assert result.code == "storage_denied"


@pytest.mark.parametrize("scheme", ["http", "s3"])
def test_the_credentials_are_sent_to_their_endpoint_alone(tmp_path: Path, scheme: str) -> None:
    with open_storage(CONTENT) as other:
        other.elsewhere, other.plan = f"{other.url}/bucket/moved.mp4", lambda _: Fault.REDIRECT
        result = fetched(
            "s3://bucket/a.mp4" if scheme == "s3" else f"{other.url}/bucket/a.mp4",
            tmp_path,
            s3_endpoint=f"{other.url}/",
            credentials=CREDENTIALS,
        )
        assert isinstance(result, messages.Fault)
        assert result.code == "storage_bad_answer"
        signed = ["authorization" in each for each in other.asked]
    # A redirect of S3 is not followed, and of a URL that is no s3:// they sign nothing, wherever it leads.
    assert signed == ([True] if scheme == "s3" else [False] * 6)


def presigned(server: S3Server, key: str, *, seconds: int) -> str:
    """A URL with a signature, made here by AWS's description of it and not by the code under test."""
    now = datetime.now(UTC)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    scope = f"{day}/us-east-1/s3/aws4_request"
    host, path = urlsplit(server.endpoint).netloc, f"/bucket/{quote(key, safe='/-_.~')}"
    query = (
        f"X-Amz-Algorithm=AWS4-HMAC-SHA256&X-Amz-Credential={quote(f'{KEY_ID}/{scope}', safe='')}"
        f"&X-Amz-Date={stamp}&X-Amz-Expires={seconds}&X-Amz-SignedHeaders=host"
    )
    request = f"GET\n{path}\n{query}\nhost:{host}\n\nhost\nUNSIGNED-PAYLOAD"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{hashlib.sha256(request.encode()).hexdigest()}"
    signing = f"AWS4{SECRET_KEY}".encode()
    for part in (day, "us-east-1", "s3", "aws4_request"):
        signing = hmac.digest(signing, part.encode(), "sha256")
    signature = hmac.digest(signing, text.encode(), "sha256").hex()
    return f"{server.endpoint.rstrip('/')}{path}?{query}&X-Amz-Signature={signature}"

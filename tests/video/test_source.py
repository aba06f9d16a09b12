"""Which URLs are fetched at all: decided without a network, the same for runners, `submit` and commands."""

from __future__ import annotations

import ipaddress
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_runner.config.location import is_url, parse_location
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.video.fetch.connecting import why_forbidden
from trio_runner.video.source import location_of, object_key, suffix_of

PREFIXES = ("https://media.example/videos/", "s3://bucket/day/", "http://10.0.0.7:8080/")
SEGMENT = st.text(string.ascii_letters + string.digits + "-_~ä", min_size=1, max_size=12)


@pytest.mark.parametrize(
    "url",
    [
        "https://media.example/videos/a.mp4",
        "https://MEDIA.example:443/videos/a/b.mp4?X-Amz-Signature=abc",
        "s3://bucket/day/a b.mp4",
        "s3://bucket/day/ä.mp4?versionId=1",
        "http://10.0.0.7:8080/a.mp4",
    ],
)
def test_a_url_below_a_prefix_is_fetched(url: str) -> None:
    assert location_of(url, PREFIXES) is not None


@pytest.mark.parametrize("path", ["/srv/videos/a.mp4", "a.mp4", "/srv/https://media.example/videos/a.mp4", "s3:a.mp4"])
def test_a_path_is_a_file(path: str) -> None:
    assert location_of(path, ()) is None


@pytest.mark.parametrize(
    "url",
    [
        "https://media.example/videos",
        "https://media.example/videos/",
        "https://media.example/private/a.mp4",
        "https://media.example/videos/../private/a.mp4",
        "https://media.example/videos/%2e%2e/private/a.mp4",
        "https://media.example/videos/%252e%252e/private/a.mp4",
        "https://media.example/videos/..%2fprivate/a.mp4",
        "https://media.example/videos/..%5cprivate/a.mp4",
        "https://media.example/videos/..;/private/a.mp4",
        r"https://media.example/videos/..\private\a.mp4",
        "http://media.example/videos/a.mp4",
        "https://media.example:8443/videos/a.mp4",
        "https://media.example.evil.example/videos/a.mp4",
        "https://media.example@evil.example/videos/a.mp4",
        "https://user:secret@media.example/videos/a.mp4",
        r"https://evil.example\@media.example/videos/a.mp4",
        "https://evil.example#@media.example/videos/a.mp4",
        "https://media.example/videos/a.mp4#t=10",
        "https://medi\u0430.example/videos/a.mp4",
        "https://media.example./videos/a.mp4",
        "HTTPS://media.example/videos/a.mp4",
        "https:///videos/a.mp4",
        "https://media.example:0/videos/a.mp4",
        "https://media.example/videos/a\r\nHost: evil.mp4",
        "s3://bucket/other/a.mp4",
        "s3://bucket/day/../other/a.mp4",
        "s3://buckets/day/a.mp4",
        "s3://user@bucket/day/a.mp4",
        "s3://bucket/day/a.mp4?X-Amz-Signature=1",
        "http://2130706433/a.mp4",
        "http://0x7f000001:8080/a.mp4",
        "file:///etc/passwd",
        "ftp://media.example/videos/a.mp4",
        "gopher://media.example/videos/a.mp4",
        "concat://a|b",
        "HTTPS://media.example/videos/a.mp4?X-Amz-Signature=1",
        "gs://bucket/day/a.mp4?X-Goog-Signature=1",
        "https://media.example/videos/a b.mp4?X-Amz-Signature=1",
    ],
)
def test_every_other_url_is_refused_and_its_query_not_repeated(url: str) -> None:
    with pytest.raises(RunnerError) as refused:
        location_of(url, PREFIXES)
    assert refused.value.code is ErrorCode.VIDEO_REFUSED
    assert "Signature=1" not in refused.value.message
    assert "secret" not in refused.value.message


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("s3://b/k", "the bucket's name is not valid (3 to 63 small letters, digits or any of . -)"),
        ("s3://Bucket/k", "the bucket's name is not valid"),
        ("s3://bucket", "not of the form s3://bucket/key"),
        ("s3:///k", "not of the form s3://bucket/key"),
        ("s3://user@bucket/k", "not of the form s3://bucket/key"),
        ("https://elsewhere.example/a.mp4", "Add its directory to storage.url_prefixes, or correct video.path"),
    ],
)
def test_a_refused_url_is_told_apart_by_its_fault(url: str, why: str) -> None:
    with pytest.raises(RunnerError) as refused:
        location_of(url, PREFIXES)
    assert why in refused.value.message


def test_without_prefixes_every_url_is_refused() -> None:
    with pytest.raises(RunnerError):
        location_of("https://media.example/videos/a.mp4", ())


@given(st.lists(SEGMENT, min_size=1, max_size=4), st.lists(SEGMENT, min_size=1, max_size=4))
def test_an_allowed_location_begins_with_the_prefix_segment_by_segment(below: list[str], path: list[str]) -> None:
    prefix = f"s3://bucket/{'/'.join(below)}/"
    url = f"s3://bucket/{'/'.join(path)}"
    try:
        allowed = location_of(url, [prefix]) is not None
    except RunnerError:
        allowed = False
    assert allowed == (path[: len(below)] == below and len(path) > len(below))


@given(st.text(max_size=60))
def test_any_text_is_a_location_or_no_url_or_refused_and_stays_what_it_is(text: str) -> None:
    try:
        location = parse_location(f"https://media.example/{text}")
    except ValueError:
        return
    again = parse_location(f"{location}?{location.query}" if location.query else str(location))
    assert again == location
    assert is_url(str(location))


def test_a_signature_does_not_change_the_object_and_anything_else_does() -> None:
    def key(query: str) -> str:
        return object_key(parse_location(f"https://media.example/a.mp4{query}"))

    assert key("?X-Amz-Date=1&X-Amz-Signature=2") == key("?x-amz-signature=3") == key("")
    assert key("?Expires=1&Signature=2&Key-Pair-Id=3") == key("")
    assert key("?sv=2024&sp=r&se=2030&sig=abc") == key("?sv=2025&sp=r&se=2031&sig=def") == key("")
    assert len({key(""), key("?sp=r"), key("?id=1"), key("?id=2"), key("?id=1&X-Amz-Signature=2&v=1")}) == 5
    assert suffix_of(parse_location("https://media.example/a.MP4?x=.mkv")) == ".mp4"
    assert suffix_of(parse_location("https://media.example/a.m/p")) == ""


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.1.2.3", "169.254.169.254", "169.254.0.1", "0.0.0.0",  # noqa: S104
        "224.0.0.1", "255.255.255.255",
        "240.0.0.1", "192.0.0.192", "100.100.100.200", "::1", "::", "fe80::1", "fd00:ec2::254", "ff02::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2002:a9fe:a9fe::1", "::127.0.0.1", "2001:0:a9fe:a9fe::1",
    ],
)  # fmt: skip
def test_an_address_of_this_machine_or_of_no_host_is_forbidden(address: str) -> None:
    assert why_forbidden(ipaddress.ip_address(address), "media.example")


@pytest.mark.parametrize(
    "address", ["192.0.2.1", "10.0.0.7", "192.168.1.1", "2606:4700::1", "fd12::1", "64:ff9b::808:808", "::ffff:8.8.8.8"]
)
def test_an_address_of_a_network_is_allowed(address: str) -> None:
    assert why_forbidden(ipaddress.ip_address(address), "media.example") == ""


@pytest.mark.parametrize(
    ("address", "listed", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "localhost", True),
        ("::1", "storage.localhost", True),
        ("127.0.0.2", "127.0.0.1", False),
        ("169.254.169.254", "localhost", False),
        ("169.254.169.254", "169.254.169.254", True),
        ("127.0.0.1", "localhost.example", False),
    ],
)
def test_what_the_operator_has_listed_by_its_address_is_allowed(address: str, listed: str, *, allowed: bool) -> None:
    assert (why_forbidden(ipaddress.ip_address(address), listed) == "") == allowed

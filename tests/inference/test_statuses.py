"""The error that a status is, and its message."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.makers import make_frame
from trio_runner.config.inference import InferenceSection
from trio_runner.errors import ErrorCode
from trio_runner.inference.statuses import MAX_RETRY_AFTER_SECONDS, Blame, InferenceError, status_error

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
DATE = "Thu, 01 Jan 2026 11:00:00 GMT"


def error_of(
    status: int, body: bytes = b"", *, frames: int = 1, headers: dict[str, str] | None = None
) -> InferenceError:
    return status_error(
        InferenceSection(url="http://h:1"),
        "/predict?api_key=c4n4ry",
        [make_frame(content=bytes(2_000_000), size=(1920, 1080))] * frames,
        status=status,
        reason="Why",
        headers=headers or {},
        body=body,
        now=NOW,
    )


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_these_statuses_may_pass(status: int) -> None:
    error = error_of(status)
    assert error.transient
    assert error.code is ErrorCode.INFERENCE_UNAVAILABLE


@pytest.mark.parametrize("status", [202, 204, 301, 400, 401, 403, 404, 405, 413, 415, 422, 501, 505, 599])
def test_all_others_do_not_pass(status: int) -> None:
    assert not error_of(status).transient


def test_a_frame_is_blamed_for_what_is_its_own_and_doubted_at_a_500() -> None:
    blame = {status: error_of(status).blame for status in (*range(200, 600),)}
    assert [status for status in blame if blame[status] is Blame.FRAME] == [400, 413, 415, 422]
    assert [status for status in blame if blame[status] is Blame.UNCLEAR] == [500]


@pytest.mark.parametrize("status", [400, 413, 500])
def test_without_a_frame_in_the_request_none_is_blamed(status: int) -> None:
    assert error_of(status, frames=0).blame is Blame.SERVICE


@pytest.mark.parametrize(
    ("status", "parts"),
    [
        (307, ["redirects are not followed", "inference.url"]),
        (400, ["inference.url", "[inference.predict]"]),
        (401, ["inference.token_file", "inference.header_files"]),
        (403, ["inference.token_file", "inference.header_files"]),
        (404, ["/predict was asked for", "inference.url", "the path in [inference.predict]"]),
        (413, ["2000000 bytes", "1920×1080 pixels", "video.max_width", "video.jpeg_quality", "proxy's limit"]),
        (422, ["check inference.predict.field"]),
        (500, ["[inference.predict]", "video.max_width", "video.jpeg_quality"]),
        (429, ["inference.requests_per_minute", "inference.retry_seconds"]),
        (503, ["inference.ready_timeout_seconds"]),
    ],
)
def test_a_message_names_the_setting_to_change(status: int, parts: list[str]) -> None:
    message = error_of(status).message
    assert message.startswith(f"http://h:1 answered {status} Why: ")
    for part in parts:
        assert part in message
    assert "c4n4ry" not in message


@pytest.mark.parametrize(
    ("config", "path", "parts"),
    [
        ({"protocol": "openai"}, "/v1/chat/completions", "the path or the model in [inference.openai]"),
        ({"protocol": "oip"}, "/v2/models/yolo/infer", "the model and its version in [inference.oip]"),
        ({"ready_path": "/health"}, "/health", "inference.ready_path"),
    ],
)
def test_a_404_names_the_whole_path_and_the_settings_that_it_is_made_of(
    config: dict[str, Any], path: str, parts: str
) -> None:
    section = InferenceSection(url="http://h:1/gateway/", **config)
    error = status_error(section, path, [], status=404, reason="", headers={}, body=b'{"error": "no model yolo"}')
    hint = f"/gateway{path} was asked for: check inference.url, and {parts}"
    assert error.message == f'http://h:1/gateway/ answered 404 "no model yolo": {hint}'


def test_a_422_names_the_field_that_is_missing_and_the_key_that_names_it() -> None:
    body = json.dumps({"detail": [{"type": "missing", "loc": ["body", "file"], "msg": "Field required"}]}).encode()
    for config, key in (
        (InferenceSection(protocol="predict"), "check inference.predict.field,"),
        (InferenceSection(protocol="http"), "check inference.http.image_at,"),
        (InferenceSection(protocol="openai"), "check inference.url and [inference.openai]"),
    ):
        error = status_error(config, "/", [make_frame()], status=422, reason="", headers={}, body=body)
        assert error.message.startswith(f'embedded answered 422 "body.file: Field required": {key}')


def test_no_key_is_advised_that_is_set() -> None:
    section = InferenceSection(retry_seconds=60.0, ready_timeout_seconds=60.0)
    many, starting = (
        status_error(section, "/", [], status=status, reason="", headers={}, body=b"") for status in (429, 503)
    )
    assert many.message.endswith(" or raise inference.retry_seconds")
    assert starting.message == starting.without_remedy == "embedded answered 503"


def test_a_413_of_several_frames_has_their_size_together() -> None:
    assert "3 frames of the request have 6000000 bytes, each 1920×1080 pixels" in error_of(413, frames=3).message


@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        ({"error": "no such model"}, "no such model"),
        ({"error": {"code": 7, "message": "no such model"}}, "no such model"),
        ({"message": "no such model", "status": 4}, "no such model"),
        ({"detail": [{"loc": ["body", "file"], "msg": "Field required"}]}, "body.file: Field required"),
        ({"detail": [{"loc": ["body", 0, None], "msg": "Field required"}]}, "body.0: Field required"),
        ({"detail": [{"loc": [], "msg": "no such model"}]}, "no such model"),
        ({"detail": [{"loc": "body", "msg": "no such model"}]}, "no such model"),
        ({"detail": [{"loc": ["body"], "type": "missing"}], "title": "no such model"}, "no such model"),
        ({"error": None, "detail": "no such model"}, "no such model"),
        (["no such model"], "no such model"),
        (b"no such model\r\nTraceback", "no such model"),
        (b"<html><head><TITLE>413 Too Large</TITLE></head>", "413 Too Large"),
        (b"see http://me:secret@h/x", "see http://***@h/x"),
        (b"a\x1b[31mb", "a\N{REPLACEMENT CHARACTER}[31mb"),
        (json.dumps("w " * 40_000).encode(), "w " * 98 + "w …"),
    ],
)
def test_a_message_quotes_what_the_service_says(body: Any, complaint: str) -> None:
    error = error_of(500, body if isinstance(body, bytes) else json.dumps(body).encode())
    assert error.without_remedy == f'http://h:1 answered 500 Why "{complaint}"'


@pytest.mark.parametrize("body", [b"", b"{}", b"[[[]]]", b'{"error": 5}', b"<html>", b"null", b"\n \n"])
def test_a_body_that_says_nothing_is_not_quoted(body: bytes) -> None:
    assert error_of(500, body).without_remedy == "http://h:1 answered 500 Why"


def test_a_body_that_is_nested_too_deeply_is_cut() -> None:
    assert error_of(500, b"[" * 60_000).without_remedy == 'http://h:1 answered 500 Why "…"'


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7),
        ({"Retry-After": " 7 "}, 7),
        ({"Retry-After": "0"}, 0),
        ({"Retry-After": "86400"}, 86400),
        ({"Retry-After": "Thu, 01 Jan 2026 11:00:30 GMT", "Date": DATE}, 30),
        ({"Retry-After": "Thu, 01 Jan 2026 10:00:00 GMT", "Date": DATE}, 0),
        ({"Retry-After": "Thu, 01 Jan 2026 12:00:30 GMT"}, 30),
        ({"Retry-After": "Thu, 01 Jan 2026 12:00:30 GMT", "Date": "nonsense"}, 30),
        ({"Retry-After": "Thu, 01 Jan 2026 12:00:30 -0000"}, 30),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "Thu, 01 Jan 2026 12:00:30 +" + "9" * 30}, None),
        ({"Retry-After": "Thu, 01 Jan 2026 12:00:30 GMT", "Date": "Thu, 01 Jan 2026 12:00:30 -" + "9" * 30}, 30),
        ({"Retry-After": "1.5"}, None),
        ({"Retry-After": "-1"}, None),
        ({}, None),
    ],
)
def test_retry_after_counts_seconds_or_names_a_date(headers: dict[str, str], seconds: float | None) -> None:
    error = error_of(503, headers=headers)
    assert error.retry_after == seconds
    assert error.retry_after_seconds == (None if seconds is None else min(seconds, MAX_RETRY_AFTER_SECONDS))


DATES = st.builds(
    "{}, {} {} {} {}:{}:{} {}".format,
    st.sampled_from(["Thu", ""]),
    st.integers(-1, 99999),
    st.sampled_from(["Jan", "Dec", "13", ""]),
    *[st.integers(-1, 99999)] * 4,
    st.sampled_from(["GMT", "", "-0000"]) | st.integers().map("{:+05}".format),
)


@given(st.text() | DATES, st.text() | DATES)
def test_any_retry_after_is_a_number_of_seconds_or_none(value: str, date: str) -> None:
    error = error_of(503, headers={"Retry-After": value, "Date": date})
    assert error.retry_after is None or error.retry_after >= 0

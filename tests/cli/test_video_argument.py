"""What `--video` takes."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest

from trio_runner.cli.parser import make_parser

PRESIGNED = "https://media.example/7.mp4?X-Amz-Signature=c4n4ry"


@pytest.mark.parametrize("verb", ["run", "submit"])
@pytest.mark.parametrize(
    ("given", "taken"),
    [
        (PRESIGNED, PRESIGNED),
        ("s3://bucket/a b.mp4", "s3://bucket/a b.mp4"),
        ("/srv/7.mp4", "/srv/7.mp4"),
        ("7.mp4", str(Path.cwd() / "7.mp4")),
        ("-", PRESIGNED),
    ],
)
def test_a_url_stays_a_path_becomes_absolute_and_a_dash_is_standard_input(
    monkeypatch: pytest.MonkeyPatch, verb: str, given: str, taken: str
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{PRESIGNED}\n"))
    assert make_parser().parse_args([verb, "runner.toml", "--video", given]).video == taken

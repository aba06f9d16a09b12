"""The duration that a file's container declares."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import clips
from trio_runner.video.decoder import container

if TYPE_CHECKING:
    from pathlib import Path


def inspect(path: Path) -> container.Extent:
    with path.open("rb") as file:
        return container.inspect(file.fileno())


def box(kind: bytes, length: int, content: bytes = b"") -> bytes:
    return struct.pack(">I4s", length, kind) + content


@pytest.mark.parametrize(("name", "kind"), [
    ("h264.mp4", "mp4"), ("h264.mov", "mp4"), ("h264.mkv", "matroska"), ("vp9.webm", "matroska"), ("mpeg4.avi", "avi"),
])  # fmt: skip
def test_a_whole_file_declares_its_own_size_and_a_byte_less_is_cut_short(name: str, kind: str, tmp_path: Path) -> None:
    path = clips.INTACT[name](tmp_path / name)
    size = path.stat().st_size
    found = inspect(path)
    assert (found.kind, found.size_bytes, found.declared_bytes) == (kind, size, size)
    assert not inspect(path).shortfall
    path.write_bytes(path.read_bytes()[:-1])
    assert inspect(path).shortfall


def test_a_file_that_was_written_to_is_another(tmp_path: Path) -> None:
    path = clips.INTACT["h264.mkv"](tmp_path / "clip.mkv")
    before = inspect(path)
    assert inspect(path) == before
    os.utime(path, ns=(0, before.modified_ns + 1))
    assert inspect(path) != before


@pytest.mark.parametrize(("content", "declared"), [
    (box(b"ftyp", 8) + box(b"mdat", 1000), 1008),
    (box(b"ftyp", 8) + box(b"mdat", 1, struct.pack(">Q", 2**40)), 8 + 2**40),
    (box(b"ftyp", 8) + box(b"mdat", 0), None),
    (box(b"ftyp", 8) + bytes(64), None),
    (b"RIFF" + struct.pack("<I", 500) + b"AVI ", 508),
    (b"RIFF" + struct.pack("<I", 0) + b"AVI ", None),
    (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x01\xff\xff\xff\xff\xff\xff\xff", None),
    (b"\x1a\x45\xdf\xa3\x80\x18\x53\x80\x67\x40\x64", 111),
    (b"\x1a\x45\xdf\xa3", None),
    (b"Not a container at all", None),
    (b"", None),
])  # fmt: skip
def test_declared_bytes(content: bytes, declared: int | None, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    assert inspect(path).declared_bytes == declared


def test_an_opendml_file_has_several_riff_chunks(tmp_path: Path) -> None:
    path = tmp_path / "long.avi"
    first = b"RIFF" + struct.pack("<I", 12) + b"AVI " + bytes(8)
    second = b"RIFF" + struct.pack("<I", 100) + b"AVIX"
    path.write_bytes(first + second)
    assert inspect(path).declared_bytes == len(first) + 108


@given(
    start=st.sampled_from([b"\x1a\x45\xdf\xa3", b"RIFF\x10\0\0\0AVI ", b"\0\0\0\x08ftyp", b""]),
    rest=st.binary(max_size=80),
)
def test_no_content_is_too_strange(start: bytes, rest: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "strange"
    path.write_bytes(start + rest)
    found = inspect(path)
    assert found.declared_bytes is None or found.declared_bytes > 0

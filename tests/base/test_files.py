from __future__ import annotations

import stat
from pathlib import Path

import pytest

from trio_runner.base import files
from trio_runner.base.files import write_private


def test_a_private_file_is_whole_and_replaces_no_file_by_way_of_a_link(tmp_path: Path) -> None:
    path, temporary, victim = (tmp_path / name for name in ("7.toml", "7.toml.tmp", "victim"))
    path.write_text("before")
    temporary.write_text("of a process that was killed while it wrote, and longer")
    with path.open() as reader:
        write_private(path, b"after")
        # A process that has the file open reads the old text to its end.
        assert reader.read() == "before"
    assert path.read_text() == "after"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    victim.write_text("a")
    temporary.symlink_to(victim)
    write_private(path, b"b")
    assert (path.read_text(), victim.read_text()) == ("b", "a")
    assert sorted(tmp_path.iterdir()) == [path, victim]


def test_what_cannot_be_written_whole_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fill_up(_: int, content: bytes) -> None:
        raise OSError(28, f"no room for {len(content)} bytes")

    path = tmp_path / "7.toml"
    path.write_text("before")
    monkeypatch.setattr(files, "write_whole", fill_up)
    with pytest.raises(OSError, match="no room"):
        write_private(path, b"after")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]

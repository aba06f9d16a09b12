"""Text for messages."""

from __future__ import annotations

import pytest

from trio_runner.base.text import counted


@pytest.mark.parametrize(
    ("number", "noun", "text"),
    [
        (0, "frame", "0 frames"),
        (1, "frame", "1 frame"),
        (2, "frame", "2 frames"),
        (1, "box", "1 box"),
        (2, "box", "2 boxes"),
    ],
)
def test_a_number_of_things_has_its_plural(number: int, noun: str, text: str) -> None:
    assert counted(number, noun) == text

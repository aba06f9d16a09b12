"""A corpus of small videos that are made when they are needed, each with what a reader should get from it."""

from __future__ import annotations

from tests.cases.video import containers, damage, mp4
from tests.cases.video.case import Case

CASES: list[Case] = mp4.CASES + containers.CASES + damage.CASES

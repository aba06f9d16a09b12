"""The corpus through the real child: which pictures come, when, in what size, and how each file ends."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cases.video import CASES
from tests.cases.video.case import Case
from tests.support.watching import Showing, picture, watch

WHOLE = [case for case in CASES if case.code is None and case.certain is None]
BROKEN = [case for case in CASES if case.code is not None]
SKIPPED = [case for case in CASES if case.certain is not None]
MILLISECOND = 0.001


def named(case: Case) -> str:
    return case.name


async def shown(case: Case, directory: Path) -> Showing:
    """Make the file, and read it to its end."""
    path = directory / case.name
    case.make(path)
    return await watch(path, **case.options)


@pytest.mark.parametrize("case", WHOLE, ids=named)
async def test_a_whole_file_gives_each_picture_at_its_time_and_in_its_size(case: Case, tmp_path: Path) -> None:
    showing = await shown(case, tmp_path)
    assert showing.error is None
    assert showing.numbers == [number for number, _ in case.frames]
    assert showing.indices == list(range(len(case.frames)))
    times = [frame.pts_seconds for frame in showing.frames]
    assert times == pytest.approx([seconds for _, seconds in case.frames], abs=MILLISECOND)
    for frame in showing.frames:
        assert (frame.width, frame.height) == picture(frame).shape[1::-1]
        assert (frame.width, frame.height) == (case.size or (frame.width, frame.height))
    assert showing.end is not None
    assert (showing.end.decoded, showing.end.skipped_corrupt) == (len(case.frames), 0)


@pytest.mark.parametrize("case", BROKEN, ids=named)
async def test_a_broken_file_gives_its_first_pictures_and_an_error(case: Case, tmp_path: Path) -> None:
    showing = await shown(case, tmp_path)
    assert showing.error is not None
    assert showing.error.code is case.code
    assert case.name in showing.error.message
    assert case.message in showing.error.message
    assert showing.numbers == [number for number, _ in case.frames[: len(showing.frames)]]
    assert showing.indices == list(range(len(showing.frames)))


@pytest.mark.parametrize("case", SKIPPED, ids=named)
async def test_damage_that_is_skipped_lets_only_whole_pictures_through(case: Case, tmp_path: Path) -> None:
    showing = await shown(case, tmp_path)
    assert showing.error is None
    pictures = list(zip(showing.numbers, (round(frame.pts_seconds, 3) for frame in showing.frames), strict=True))
    whole = {(number, round(seconds, 3)) for number, seconds in case.frames}
    certain = {(number, round(seconds, 3)) for number, seconds in case.certain or ()}
    assert pictures == sorted(set(pictures))
    assert certain <= set(pictures) < whole
    assert showing.end is not None
    assert showing.end.skipped_corrupt > 0

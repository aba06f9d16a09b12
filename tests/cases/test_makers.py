"""The makers of the corpus: FFmpeg's plain decoder finds in each whole file what its case says."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest

from tests.cases.video import CASES
from tests.cases.video.case import Case
from tests.support.clips import read_frame_number

# FFmpeg's decoder alone gives something else than a player here. It does not turn the picture upright, the first video
# stream is not the one that a player shows, or the container holds no times of presentation.
TURNED = {case.name for case in CASES if case.name.startswith("rotated_")}
OTHER_STREAM = {"second_is_default.mp4", "second_is_default.mkv", "second_is_larger.mkv", "cover_first.mkv"}
WITHOUT_TIMES = {"mpeg4_reordered.avi", "h264_reordered.avi", "raw.h264", "raw.hevc"}
WHOLE = [case for case in CASES if case.code is None and case.certain is None]


def test_each_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in CASES]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("case", WHOLE, ids=lambda case: case.name)
def test_a_whole_file_holds_what_its_case_says(case: Case, tmp_path: Path) -> None:
    path = tmp_path / case.name
    case.make(path)
    with av.open(str(path)) as container:
        stream = container.streams.video[case.name in OTHER_STREAM]
        frames = list(container.decode(stream))
        start = (container.start_time or 0) / 1_000_000
    assert len(frames) == len(case.frames)
    if case.name not in TURNED:
        numbers = [read_frame_number(np.asarray(frame.to_ndarray(format="gray"), np.uint8)) for frame in frames]
        assert numbers == [number for number, _ in case.frames]
    if case.name not in WITHOUT_TIMES:
        times = [frame.time - start for frame in frames]
        assert times == pytest.approx([seconds for _, seconds in case.frames], abs=0.001)
    assert all(before < after for (_, before), (_, after) in pairwise(case.frames))

"""Which frames are selected, whatever the timestamps."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from trio_runner.video.decoder.sampling import TIMESTAMP_SLACK_SECONDS, Sampler

TIMESTAMPS = st.lists(st.floats(min_value=0, max_value=2, allow_nan=False), min_size=1, max_size=120).map(
    lambda gaps: [sum(gaps[:count]) for count in range(len(gaps))]
)
STRIDES = st.builds(
    lambda n, start, most: {"stride": n, "start_seconds": start, "max_frames": most},
    st.integers(1, 9),
    st.floats(0, 20),
    st.integers(0, 30),
)
RATES = st.builds(
    lambda fps, start, most: {"max_fps": fps, "start_seconds": start, "max_frames": most},
    st.floats(0.1, 1000),
    st.floats(0, 20),
    st.integers(0, 30),
)
RULES = st.one_of(STRIDES, RATES)


def selection(times: list[float], **rules: Any) -> list[int]:
    sampler = Sampler(**rules)
    return [index for index, pts in enumerate(times) if sampler.select(index, pts)]


def test_without_a_rule_every_frame_is_selected() -> None:
    assert selection([0.0, 0.04, 0.08]) == [0, 1, 2]


@pytest.mark.parametrize("origin", [0.0, 3.3, 36_000.0])
@pytest.mark.parametrize(("source", "max_fps", "every"), [
    (Fraction(25), 25, 1), (Fraction(25), 12.5, 2), (Fraction(25), 5, 5), (Fraction(25), 1, 25),
    (Fraction(30), 10, 3), (Fraction(30), 30, 1), (Fraction(30_000, 1001), 30_000 / 1001, 1),
    (Fraction(60), 20, 3), (Fraction(50), 25, 2),
])  # fmt: skip
@pytest.mark.parametrize("rounded", [False, True], ids=["exact", "rounded_to_ms"])
def test_a_rate_that_divides_the_source_rate_takes_every_nth(
    source: Fraction, max_fps: float, every: int, origin: float, *, rounded: bool
) -> None:
    times = [origin + float(index / source) for index in range(2000)]
    if rounded:
        times = [round(pts, 3) for pts in times]
    assert selection(times, max_fps=max_fps, start_seconds=origin) == list(range(0, 2000, every))


@pytest.mark.parametrize("source", [25, 29.97, 24_000 / 1001])
def test_a_rate_above_the_source_rate_takes_all(source: float) -> None:
    assert len(selection([index / source for index in range(2000)], max_fps=30)) == 2000


def test_stride_counts_from_the_first_frame_at_or_after_the_start() -> None:
    assert selection([index / 10 for index in range(20)], stride=3, start_seconds=0.45) == [5, 8, 11, 14, 17]


def test_a_start_that_falls_on_a_rounded_timestamp_includes_that_frame() -> None:
    assert selection([0.0, 0.033, 0.067], start_seconds=1 / 30) == [1, 2]


def test_max_frames_counts_from_the_start_of_the_video() -> None:
    assert selection([index / 25 for index in range(100)], stride=10, max_frames=3) == [0, 10, 20]


def test_exhausted_is_true_once_no_frame_can_follow() -> None:
    sampler = Sampler(max_frames=2)
    states = [(sampler.select(index, index / 25), sampler.exhausted) for index in range(4)]
    assert states == [(True, False), (True, True), (False, True), (False, True)]


def test_a_long_pause_is_not_made_up_for() -> None:
    times = [0.0, 0.1, 10.0, 10.1, 10.2, 11.0]
    assert selection(times, max_fps=1) == [0, 2, 5]


def test_time_that_goes_back_selects_nothing_twice() -> None:
    assert selection([0.0, 1.0, 0.5, 1.0, 2.0], max_fps=1) == [0, 1, 4]


@given(TIMESTAMPS, RULES)
def test_the_selection_grows_and_never_changes(times: list[float], rules: dict[str, Any]) -> None:
    # What is selected of a prefix is a prefix of what is selected: a frame's fate depends on earlier frames only.
    whole = selection(times, **rules)
    for count in (1, len(times) // 2, len(times)):
        assert selection(times[:count], **rules) == [index for index in whole if index < count]


@given(TIMESTAMPS, STRIDES)
def test_stride_selects_exactly_every_nth(times: list[float], rules: dict[str, Any]) -> None:
    late = [index for index, pts in enumerate(times) if pts + TIMESTAMP_SLACK_SECONDS >= rules["start_seconds"]]
    expected = late[:: int(rules["stride"])]
    assert selection(times, **rules) == (expected[: int(rules["max_frames"])] if rules["max_frames"] else expected)


@given(TIMESTAMPS, RATES)
def test_max_fps_takes_the_first_frame_of_each_cell_and_no_other(times: list[float], rules: dict[str, Any]) -> None:
    rules = rules | {"max_frames": 0}
    origin = rules["start_seconds"] - TIMESTAMP_SLACK_SECONDS
    cells: dict[int, int] = {}
    for index, pts in enumerate(times):
        if pts + TIMESTAMP_SLACK_SECONDS >= rules["start_seconds"]:
            cells.setdefault(
                math.floor((pts + TIMESTAMP_SLACK_SECONDS - rules["start_seconds"]) * rules["max_fps"]), index
            )
    chosen = selection(times, **rules)
    assert chosen == list(cells.values())
    if chosen:
        elapsed = times[chosen[-1]] - origin
        assert len(chosen) <= elapsed * rules["max_fps"] + 1.001


@given(TIMESTAMPS, RULES, st.integers(0, 130))
def test_an_attempt_that_reads_from_the_start_again_selects_the_rest_of_the_same_frames(
    times: list[float], rules: dict[str, Any], first_frame: int
) -> None:
    first_attempt = selection(times, **rules)
    resumed = Sampler(**rules)
    emitted = [index for index, pts in enumerate(times) if resumed.select(index, pts) and index >= first_frame]
    assert emitted == [index for index in first_attempt if index >= first_frame]
    assert resumed.selected == len(first_attempt)


@given(TIMESTAMPS, RULES, st.data())
def test_an_attempt_that_seeks_selects_the_rest_of_the_same_frames(
    times: list[float], rules: dict[str, Any], data: st.DataObject
) -> None:
    first_attempt = selection(times, **rules)
    assume(first_attempt)
    stored = data.draw(st.integers(1, len(first_attempt)))
    last = first_attempt[stored - 1]
    resumed = Sampler(**rules)
    resumed.resume(last, times[last], stored)
    emitted = [index for index in range(last + 1, len(times)) if resumed.select(index, times[index])]
    assert emitted == first_attempt[stored:]
    assert resumed.selected == len(first_attempt)

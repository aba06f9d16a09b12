"""When pictures are presented: each rule of `decoder.timing`, without a file."""

from __future__ import annotations

from fractions import Fraction
from types import SimpleNamespace
from typing import Any

import pytest

from trio_runner.video.decoder.timing import NO_TIMESTAMPS, TS_DISCONT, Clock

MILLISECOND = Fraction(1, 1000)


def clock(name: str = "matroska,webm", *, flags: int = 0, start: int | None = 0, stream: Any = None) -> Clock:
    """A clock of a stream at 25 frames a second whose unit is the millisecond; `start` is in microseconds."""
    container: Any = SimpleNamespace(format=SimpleNamespace(name=name, flags=flags), start_time=start)
    own = {"time_base": MILLISECOND, "average_rate": Fraction(25), "guessed_rate": None, "start_time": None}
    described: Any = SimpleNamespace(**{"codec_context": SimpleNamespace(has_b_frames=True)} | own | (stream or {}))
    return Clock(container, described)


def packet(dts: int) -> Any:
    return SimpleNamespace(dts=dts)


def test_times_count_from_the_containers_start() -> None:
    ours = clock(start=1_400_000)
    assert [ours.time(pts, None) for pts in (1423, 1463)] == [0.023, 0.063]


def test_the_streams_own_start_is_exact_where_the_containers_is_rounded() -> None:
    unit = Fraction(1, 90_000)
    ours = clock(start=33_367, stream={"time_base": unit, "start_time": 3003})
    assert [ours.time(pts, None) for pts in (3003, 6006)] == [0.0, 0.033367]


def test_a_container_without_a_start_begins_with_its_first_picture() -> None:
    ours = clock(start=None)
    assert [ours.time(pts, None) for pts in (-500, -460, 0)] == [0.0, 0.04, 0.5]


def test_a_missing_time_is_the_time_of_decoding_and_without_that_one_frame_later() -> None:
    ours = clock()
    assert [ours.time(*times) for times in [(None, 0), (40, 40), (None, 80), (None, None)]] == [0.0, 0.04, 0.08, 0.12]


def test_times_of_decoding_stand_in_where_the_pictures_own_go_back_more_often() -> None:
    ours = clock()
    times = [(0, 0), (120, 40), (40, 80), (80, 120), (240, 160), (160, 200), (200, 240)]
    assert [ours.time(*pair) for pair in times][-2:] == [0.2, 0.24]


def test_the_time_of_a_damaged_picture_is_not_counted_against_the_others() -> None:
    ours = clock()
    for pts, dts in [(0, 0), (80, 40), (40, 80)]:
        ours.time(pts, dts, trusted=False)
    assert ours.time(120, 160) == 0.12


def test_reordered_pictures_of_avi_have_the_places_of_their_packets_in_order() -> None:
    ours = clock("avi")
    for dts in (0, 40, 80, 160):
        ours.sent(packet(dts))
    # The chunk of the frame at 0.12 s is empty: the picture before it is shown for twice as long.
    assert [ours.time(None, dts) for dts in (80, 160, None, None)] == [0.0, 0.04, 0.08, 0.16]


def test_a_packet_that_gives_no_picture_gives_its_place_in_avi_to_no_other() -> None:
    ours = clock("avi")
    for dts in (0, 40, 80):
        ours.sent(packet(dts))
    ours.lost(packet(40))
    assert [ours.time(None, None) for _ in range(2)] == [0.0, 0.08]


def test_without_reordering_a_picture_of_avi_has_the_place_of_its_own_packet() -> None:
    ours = clock("avi", stream={"codec_context": SimpleNamespace(has_b_frames=False)})
    for dts in (0, 40, 80):
        ours.sent(packet(dts))
    # The packet at 0.04 s is damaged: it gives no picture, and the decoder does not complain.
    assert [ours.time(None, dts) for dts in (0, 80)] == [0.0, 0.08]


def test_a_stream_without_a_container_is_counted_at_the_rate_of_its_codec() -> None:
    rate = {"codec_context": SimpleNamespace(framerate=Fraction(50))}
    ours = clock("h264", flags=NO_TIMESTAMPS, stream=rate)
    assert [ours.time(1000 * number, 0) for number in range(3)] == [0.0, 0.02, 0.04]


def test_time_does_not_go_back_and_one_wrong_time_moves_no_other() -> None:
    ours = clock()
    assert [ours.time(pts, None) for pts in (0, 40, 20, 120, 160)] == [0.0, 0.04, 0.06, 0.12, 0.16]


def test_equal_times_stay_equal() -> None:
    ours = clock()
    assert [ours.time(pts, None) for pts in (0, 40, 40, 80)] == [0.0, 0.04, 0.04, 0.08]


def test_time_goes_on_where_two_recordings_were_joined() -> None:
    ours = clock()
    assert [ours.time(pts, None) for pts in (60_000, 60_040, 0, 40, 80)] == [60.0, 60.04, 60.08, 60.12, 60.16]


@pytest.mark.parametrize(("flags", "last"), [(0, 60.0), (TS_DISCONT, 0.08)])
def test_a_leap_forward_is_a_join_in_a_transport_stream_alone(flags: int, last: float) -> None:
    ours = clock(flags=flags)
    assert [ours.time(pts, None) for pts in (0, 40, 60_000)] == [0.0, 0.04, last]

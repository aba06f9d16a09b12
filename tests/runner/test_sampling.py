"""The options that choose a scenario's frames: what is the same choice, and what is not."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_runner.config.sections import VideoSection
from trio_runner.runner.sampling import KEYS, differences, sampling_of

OPTIONS = st.fixed_dictionaries(
    {},
    optional={
        "stride": st.integers(1, 2**31 - 1),
        "max_fps": st.floats(0, 1000),
        "start_seconds": st.floats(0, 10**7),
        "max_frames": st.integers(0, 2**31 - 1),
        "on_corrupt": st.sampled_from(["fail", "skip"]),
    },
)
OFF = st.dictionaries(
    st.text(min_size=1).filter(lambda key: key not in KEYS), st.sampled_from([None, False, 0, 0.0, ""])
)
DEFAULTS = json.loads(sampling_of(VideoSection()))


@given(OPTIONS, OPTIONS, OFF, OFF)
def test_exactly_the_options_whose_values_differ_are_named(
    before: dict[str, Any], now: dict[str, Any], off_before: dict[str, Any], off_now: dict[str, Any]
) -> None:
    """A missing key is its default, and what either side has beyond the known keys is off; both may be in any order."""
    named = differences(json.dumps(off_before | before), json.dumps(now | off_now))
    different = [key for key in KEYS if before.get(key, DEFAULTS[key]) != now.get(key, DEFAULTS[key])]
    assert [each.partition(" ")[0] for each in named] == different


@given(OPTIONS, st.sampled_from([1, 0.5, True, "x", ["x"]]))
def test_an_option_that_is_on_and_not_known_is_a_difference(options: dict[str, Any], value: Any) -> None:
    with_it = json.dumps(options | {"tilt": value})
    assert [each.partition(" ")[0] for each in differences(with_it, json.dumps(options))] == ["tilt"]
    assert [each.partition(" ")[0] for each in differences(json.dumps(options), with_it)] == ["tilt"]


@given(OPTIONS)
def test_a_section_is_stored_as_it_is(options: dict[str, Any]) -> None:
    stored = sampling_of(VideoSection(**options))
    assert json.loads(stored) == {**DEFAULTS, **options}
    assert differences(stored, sampling_of(VideoSection(**options))) == []


def test_the_message_names_both_values() -> None:
    assert differences(sampling_of(VideoSection()), sampling_of(VideoSection(stride=3, on_corrupt="skip"))) == [
        "stride was 1 and is 3",
        'on_corrupt was "fail" and is "skip"',
    ]


@pytest.mark.parametrize("key", KEYS)
def test_each_key_is_an_option_of_the_config(key: str) -> None:
    assert key in {field.name for field in msgspec.structs.fields(VideoSection)}

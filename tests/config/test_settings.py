"""Single keys, from a command line or of a scenario: which may be set, and how the others are refused."""

from __future__ import annotations

import string
import tomllib
from typing import Any

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_runner.config.errors import ConfigError
from trio_runner.config.load import Config
from trio_runner.config.settings import OF_A_SCENARIO, check_scenario_settings, parse_settings

ALLOWED = [(section, key) for section, keys in OF_A_SCENARIO.items() for key in keys]
EVERY = [
    (section.name, key.name)
    for section in msgspec.structs.fields(Config)
    for key in msgspec.structs.fields(type(section.default))
]


@pytest.mark.parametrize(
    ("given", "value"),
    [
        ("video.stride=2", 2),
        ("video.max_fps=2.5", 2.5),
        ("video.on_corrupt=skip", "skip"),
        ('video.on_corrupt="skip"', "skip"),
        ("video.on_corrupt='skip'", "skip"),
        ("inference.allow_plaintext_token=true", True),
        (" video.stride = 2 ", 2),
        ("video.path=/a=b.mp4", "/a=b.mp4"),
        ("video.path=", ""),
        ("video.path=True", "True"),
        ("video.path=1\nstride = 2", "1\nstride = 2"),
        ("video.path=1\n[video]\nstride = 2", "1\n[video]\nstride = 2"),
        ("video.path=" + "[" * 10_000, "[" * 10_000),
        ("video.stride=" + "9" * 5000, "9" * 5000),
    ],
)
def test_a_setting_is_a_toml_value_or_else_text(given: str, value: Any) -> None:
    ((_, keys),) = parse_settings([given]).items()
    ((_, parsed),) = keys.items()
    assert (parsed, type(parsed)) == (value, type(value))


def test_settings_are_gathered_by_section_and_the_last_counts() -> None:
    settings = ["video.stride=2", "database.batch_frames=4", "video.stride=3", "video.max_frames=9"]
    assert parse_settings(settings) == {"video": {"stride": 3, "max_frames": 9}, "database": {"batch_frames": 4}}


@pytest.mark.parametrize("given", ["", "=", "video", "video.stride", "video=2", "stride=2", ".stride=2", "video.=2"])
def test_what_has_not_the_form_is_refused(given: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        parse_settings([given])


@given(st.lists(st.text(st.characters(codec="utf-8") | st.sampled_from(string.punctuation + "\n"), max_size=40)))
def test_any_text_is_settings_or_a_config_error(given: list[str]) -> None:
    try:
        sections = parse_settings(given)
    except ConfigError:
        return
    assert all(isinstance(keys, dict) for keys in sections.values())


@given(st.dictionaries(st.sampled_from(["a", "b"]), st.integers() | st.booleans() | st.text(string.ascii_letters)))
def test_what_toml_writes_is_read_as_toml_reads_it(values: dict[str, Any]) -> None:
    for value in values.values():
        written = msgspec.toml.encode({"value": value}).decode().strip().removeprefix("value = ")
        assert parse_settings([f"video.x={written}"]) == {"video": {"x": tomllib.loads(f"v = {written}")["v"]}}


# what a scenario may set


def test_everything_that_a_scenario_may_set_exists() -> None:
    assert set(ALLOWED) <= set(EVERY)


def test_a_scenario_sets_no_address_file_secret_limit_or_identity() -> None:
    """Whether one may send a message does not decide where a token goes, which files are read, or memory limits."""
    for section, key in ALLOWED:
        forbidden = ("_file", "url", "path", "root", "dir", "topic", "brokers", "username", "id", "epoch")
        assert not key.endswith(forbidden), (section, key)
        assert not key.startswith(("limit_", "allow_", "ssl", "sasl", "security")), (section, key)
    assert not OF_A_SCENARIO.keys() & {"kafka", "orchestrator", "runner", "log"}


@pytest.mark.parametrize(("section", "key"), sorted(set(EVERY) - set(ALLOWED)))
def test_everything_else_is_refused_by_its_name(section: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"{section}\.{key}: not for a scenario to set; allowed: "):
        check_scenario_settings({section: {key: 1}})


@pytest.mark.parametrize("section", ["self", "kafka", "orchestrator", "no such section", "", "\x00", "\x1b[31m"])
def test_a_section_without_a_key_is_refused_too(section: str) -> None:
    with pytest.raises(ConfigError, match="not for a scenario to set") as caught:
        check_scenario_settings({section: {}})
    assert str(caught.value).isprintable()


@given(
    st.dictionaries(
        st.sampled_from([*OF_A_SCENARIO, "self", "kafka"]) | st.text(max_size=10),
        st.dictionaries(st.sampled_from([key for _, key in EVERY]) | st.text(max_size=10), st.integers()),
    )
)
@example({"video": {}})
@example({"self": {}})
def test_settings_pass_only_with_every_key_on_the_list(settings: dict[str, dict[str, int]]) -> None:
    pairs = {(section, key) for section, keys in settings.items() for key in keys}
    expected = settings.keys() <= OF_A_SCENARIO.keys() and pairs <= set(ALLOWED)
    try:
        check_scenario_settings(settings)
        passed = True
    except ConfigError:
        passed = False
    assert passed == expected


def test_a_config_can_be_asked_to_change_what_no_config_has() -> None:
    with pytest.raises(ConfigError, match="self: unknown section"):
        Config().replace(self={})


# topics


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"orchestrator": {"command_topic": "runner.retry"}}, r"orchestrator\.command_topic"),
        ({"orchestrator": {"dead_letter_topic": "runner.retry"}}, r"orchestrator\.dead_letter_topic"),
        ({"orchestrator": {"dead_letter_topic": "x", "command_topic": "x"}}, r"orchestrator\.dead_letter_topic"),
        ({"kafka": {"retry_topic": "runner.dead-letter"}}, r"orchestrator\.dead_letter_topic"),
    ],
)
def test_a_dead_letter_must_not_come_back(sections: dict[str, dict[str, Any]], key: str) -> None:
    with pytest.raises(ConfigError, match=f"{key}: the same topic as"):
        Config().replace(**sections)


# the command line

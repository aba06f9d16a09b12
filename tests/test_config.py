from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
import tomli
from harness import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from trio_runner.config import EMBEDDED, Config, ConfigError, line_of, load_config, parse_config

BASE = Path("/somewhere")
KEYS = {
    section.name: [key.encode_name for key in msgspec.structs.fields(section.type)]
    for section in msgspec.structs.fields(Config)
}
ALL_KEYS = [(section, key) for section, keys in KEYS.items() for key in keys]


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, base_dir=BASE)
    return caught.value


def parsed(text: str) -> Config | ConfigError:
    """Either of the two; anything else that is raised is a bug."""
    try:
        return parse_config(text, base_dir=BASE)
    except ConfigError as error:
        return error


# runner.toml, the reference


def test_reference_config_says_what_the_defaults_are() -> None:
    written = tomli.loads((REPOSITORY / "runner.toml").read_text())
    assert written == msgspec.to_builtins(Config())


def test_reference_config_lists_every_key_in_the_order_of_the_structs() -> None:
    written = tomli.loads((REPOSITORY / "runner.toml").read_text())
    assert {section: list(keys) for section, keys in written.items()} == KEYS


def test_reference_config_loads_with_paths_beside_it() -> None:
    config = load_config(REPOSITORY / "runner.toml")
    assert config.video.path == str(REPOSITORY / "test_videos/test_video.mp4")
    assert config.runner.data_dir == str(REPOSITORY / ".trio-runner")
    assert config.database.password_file == ""


def test_an_empty_file_is_the_defaults() -> None:
    assert parse_config("", base_dir=Path()).inference == Config().inference


# what is refused, and how


@pytest.mark.parametrize(("section", "key"), ALL_KEYS)
def test_every_key_refuses_a_value_of_another_type_and_says_where(section: str, key: str) -> None:
    error = refused(f"# one\n\n[{section}]\n{key} = []\n")
    assert error.key == f"{section}.{key}"
    assert error.line == 4
    assert f"{section}.{key}" in str(error)
    assert "(line 4)" in str(error)
    assert error.remedy


@pytest.mark.parametrize(("section", "key"), ALL_KEYS)
def test_a_misspelt_key_is_met_with_the_right_one(section: str, key: str) -> None:
    # Doubling the last letter stays nearer to the key than to any other.
    error = refused(f"[{section}]\n{key}{key[-1]} = 1\n")
    assert error.key == f"{section}.{key}{key[-1]}"
    assert error.line == 2
    assert f"Did you mean '{key}'?" in str(error)


def test_a_misspelt_section_is_met_with_the_right_one() -> None:
    error = refused("[runner]\n\n[infrence]\nurl = 'http://h'\n")
    assert (error.key, error.line) == ("infrence", 3)
    assert "Did you mean 'inference'?" in str(error)


def test_a_key_unlike_any_other_is_met_with_the_known_ones() -> None:
    assert "Known here: level, format" in str(refused("[log]\nzzz = 1\n"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runner.id", '""'),
        ("runner.id", '"a b"'),
        ("runner.id", '"runner\\n"'),
        ("runner.drain_seconds", "0"),
        ("runner.drain_seconds", "nan"),
        ("runner.drain_seconds", "inf"),
        ("log.level", '"loud"'),
        ("scenario.id", "0"),
        ("scenario.id", "9223372036854775808"),
        ("scenario.id", "true"),
        ("scenario.id", "1.5"),
        ("scenario.epoch", "-1"),
        ("scenario.epoch", "9223372036854775808"),
        ("scenario.max_failures", "0"),
        ("scenario.max_failures", "2147483648"),
        ("scenario.on_complete", '"init_startup"'),
        ("video.path", '""'),
        ("video.path", '"a\\u0000b"'),
        ("video.stride", "0"),
        ("video.start_seconds", "-0.1"),
        ("video.start_seconds", "inf"),
        ("video.start_seconds", "nan"),
        ("video.max_fps", "nan"),
        ("video.jpeg_quality", "101"),
        ("video.limit_memory_mib", "99999999999999999"),
        ("inference.url", '""'),
        ("inference.url", '"localhost:8001"'),
        ("inference.url", '"ftp://h"'),
        ("inference.url", '"http://"'),
        ("inference.url", '"http://h:0"'),
        ("inference.url", '"http://h:99999"'),
        ("inference.url", '"http://h:port"'),
        ("inference.url", '"http://[::1"'),
        ("inference.url", '"http://two words"'),
        ("inference.url", '"http://h?key=1"'),
        ("inference.url", '"http://h/#part"'),
        ("inference.path", '"predict"'),
        ("inference.path", '"/a b"'),
        ("inference.path", '"/predict?x=1"'),
        ("inference.path", '"/predict\\n"'),
        ("inference.in_flight", "0"),
        ("inference.in_flight", "257"),
        ("pipeline.max_buffered_bytes", "1"),
        ("database.url", '"mysql://h/db"'),
        ("database.url", '"postgresql://h:99999/db"'),
        ("database.password_file", '"a\\u0000b"'),
        ("database.batch_frames", "1001"),
        ("database.lease_seconds", "0.5"),
        ("kafka.brokers", '""'),
        ("kafka.brokers", '"host"'),
        ("kafka.brokers", '"host:9092,"'),
        ("kafka.brokers", '"host:9092, other:9092"'),
        ("kafka.brokers", '"host:99999"'),
        ("kafka.brokers", '"host:0"'),
        ("kafka.retry_topic", '"a/b"'),
        ("kafka.retry_topic", '"retry\\n"'),
    ],
)
def test_values_that_cannot_work_are_refused_by_key_and_line(key: str, value: str) -> None:
    section, name = key.split(".")
    error = refused(f"[{section}]\n{name} = {value}\n")
    assert error.key == key
    assert error.line == 2
    assert error.remedy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inference.url", "https://gpu.example.org/v1"),
        ("inference.url", "http://[::1]:8001"),
        ("database.url", "postgresql:///local_database"),
        ("database.url", "postgres://user@h:5432/db?sslmode=require"),
        ("kafka.brokers", "a:9092,b.example.org:9093,[::1]:9094"),
        ("kafka.brokers", EMBEDDED),
        ("runner.id", "runner_1.eu-west@host:7"),
    ],
)
def test_values_that_work_are_taken(key: str, value: str) -> None:
    section, name = key.split(".")
    config = parse_config(f'[{section}]\n{name} = "{value}"\n', base_dir=BASE)
    assert getattr(getattr(config, section), name) == value


def test_two_ways_of_sampling_at_once_are_refused() -> None:
    assert refused("[video]\nstride = 2\nmax_fps = 5\n").key == "video.max_fps"


def test_a_batch_larger_than_the_buffer_is_refused() -> None:
    assert (
        refused("[database]\nbatch_frames = 100\n[pipeline]\nmax_buffered_frames = 99\n").key == "database.batch_frames"
    )


# secrets

CANARY = "c4n4ryc4n4ry"


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("database.url", f"postgresql://user:{CANARY}@h:5432/db"),
        ("database.url", f"postgresql://user@h:5432/db?password={CANARY}"),
        ("inference.url", f"http://user:{CANARY}@h:8001"),
        ("inference.url", f"http://{CANARY}@h:8001"),
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(key: str, url: str) -> None:
    section, name = key.split(".")
    error = refused(f'[{section}]\n{name} = "{url}"\n')
    assert error.key == key
    assert CANARY not in str(error)
    assert CANARY not in repr(error)


@given(
    st.sampled_from(["mysql", "postgresql", "http", "ftp", ""]),
    st.sampled_from(["database.url", "inference.url"]),
    st.text(alphabet=":/?#[]@ab1", max_size=8),
)
def test_whatever_else_is_wrong_with_an_address_the_password_stays_in_the_file(scheme: str, key: str, odd: str) -> None:
    section, name = key.split(".")
    text = f'[{section}]\n{name} = "{scheme}://user:{CANARY}@{odd}h"\n'
    error = refused(text)
    assert error.key == key
    assert CANARY not in str(error)


# TOML itself


@pytest.mark.parametrize(
    ("text", "line"),
    [("[runner]\nid = \n", 2), ("[runner]\n[runner]\n", 2), ("x", 1), ("\n\n\x00", 3), ("a = 1\r", 1)],
)
def test_bad_toml_names_its_line(text: str, line: int) -> None:
    error = refused(text)
    assert error.line == line
    assert "not valid TOML" in str(error)


def test_nesting_beyond_the_parsers_depth_is_an_ordinary_error() -> None:
    assert "nested too deeply" in str(refused("x = " + "[" * 20_000))


@pytest.mark.parametrize(
    "text",
    [
        "[scenario]\nid = " + "9" * 5_000,
        "[video]\nlimit_fps = 1" + "0" * 400,
        "[video]\nlimit_fps = 1e999",
        "[runner]\nid = 1979-05-27T07:32:00Z",
        "[runner]\nid = '''" + "x" * 100_000 + "'''",
        '"a`b" = 1',
        '"" = 1',
        '[video]\n"x - at `$.y" = 1',
        '"x - at `$.y.z" = 1',
        "a.b.c.d = 1",
        "[[runner]]\nid = 'x'",
        "runner = [{id = 'x'}]",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_odd_toml_is_a_config_error(text: str) -> None:
    assert len(str(refused(text))) < 1_000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[ runner ]\nid = ""', 2),
        ('["runner"]\n"id" = ""', 2),
        ('\nrunner.id = ""', 2),
        ('# [runner]\n# id = 1\n[log]\nlevel = "info"\n[runner]\nid = ""', 6),
        ('[log] # id\r\nlevel = "info"\r\n\r\n[runner]\r\nid = ""', 5),
        ('# a line separator\u2028 ends no line of TOML\n[runner]\nid = ""', 3),
        ('runner = {id = ""}', 1),
    ],
)
def test_lines_are_found_in_every_way_of_writing(text: str, line: int) -> None:
    error = refused(text)
    assert (error.key, error.line) == ("runner.id", line)


def test_a_key_that_is_not_written_has_the_line_of_its_table_or_none() -> None:
    assert line_of("[log]\n[video]\n", "video.path") == 2
    assert line_of("[log]\n", "video.path") is None


# files


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*no\.toml: No such file"):
        load_config(tmp_path / "no.toml")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="Is a directory"):
        load_config(tmp_path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe[\0r\0")
    with pytest.raises(ConfigError, match="not UTF-8"):
        load_config(tmp_path / "x.toml")


def test_relative_paths_start_from_the_file_and_absolute_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text('[video]\npath = "a.mp4"\n[database]\npassword_file = "/etc/secret"\n')
    config = load_config(tmp_path / "x.toml")
    assert config.video.path == str(tmp_path / "a.mp4")
    assert config.database.password_file == "/etc/secret"


# replace


def test_replace_changes_single_keys_and_checks_them() -> None:
    config = Config().replace(scenario={"id": 7}, video={"stride": 3})
    assert (config.scenario.id, config.video.stride, config.scenario.max_failures) == (7, 3, 5)
    with pytest.raises(ConfigError, match=r"^scenario\.id: "):
        Config().replace(scenario={"id": 0})
    with pytest.raises(ConfigError, match=r"^inference\.url: "):
        Config().replace(inference={"url": "nonsense"})


# any table at all

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from([EMBEDDED, "http://h:1", "postgresql://u@h/d", "h:1", "info", "fail", "active", "predict"])
)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text("abc.`$ ", max_size=5), scalars, max_size=2)
tables = st.fixed_dictionaries(
    {},
    optional={
        section: st.dictionaries(st.sampled_from(keys) | st.text("abc_`$. ", max_size=6), values, max_size=4) | values
        for section, keys in KEYS.items()
    },
)


def toml(value: Any) -> str:
    """Any of `values` but None, which TOML lacks, on one line."""
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(toml(item) for item in value if item is not None)}]"
    if isinstance(value, dict):
        pairs = (f"{toml(key)} = {toml(item)}" for key, item in value.items() if item is not None)
        return f"{{{', '.join(pairs)}}}"
    return repr(value)


def replaced(table: dict[str, Any]) -> Config | ConfigError:
    try:
        return Config().replace(**table)
    except ConfigError as error:
        return error


@given(tables)
def test_any_table_is_a_config_or_an_error_that_names_a_key(table: dict[str, Any]) -> None:
    result = replaced({name: keys for name, keys in table.items() if isinstance(keys, dict)})
    if isinstance(result, ConfigError):
        assert result.key.split(".")[0] in KEYS
        assert str(result).startswith(f"{result.key}: ")
        return
    config = result
    assert msgspec.convert(msgspec.to_builtins(config), Config) == config
    # What the decoder child is told passes through JSON, which has no infinity.
    assert msgspec.json.decode(msgspec.json.encode(config), type=Config) == config


@given(
    st.lists(st.tuples(st.sampled_from(ALL_KEYS), values), max_size=4, unique_by=lambda pair: pair[0]),
)
def test_any_file_of_known_keys_is_a_config_or_an_error_with_the_keys_own_line(
    pairs: list[tuple[tuple[str, str], Any]],
) -> None:
    table: dict[str, dict[str, Any]] = {}
    for (section, key), value in pairs:
        if value is not None:
            table.setdefault(section, {})[key] = value
    text = "".join(
        f"[{section}]\n" + "".join(f"{key} = {toml(value)}\n" for key, value in keys.items())
        for section, keys in table.items()
    )
    result = parsed(text)
    if isinstance(result, Config):
        return
    section, key = result.key.split(".")[:2]
    if result.line is None:
        # A rule that spans two keys, where the other one is written.
        assert section not in table
    else:
        assert text.split("\n")[result.line - 1].startswith((f"{key} = ", f"[{section}]"))


@given(st.text())
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    assert str(parsed(text))

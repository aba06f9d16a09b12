"""Whatever lies at the config's path: it is a Config or every mistake in it by key and line, and nothing else."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.hostile_configs import CANARY, HOSTILE_CONFIGS, UNREADABLE, HostileConfig
from trio_runner.config.errors import ConfigError
from trio_runner.config.kinds import EMBEDDED
from trio_runner.config.load import Config, load_config, parse_config
from trio_runner.errors import ErrorCode

KNOWN = {
    section.name: [key.encode_name for key in msgspec.structs.fields(section.type)]
    for section in msgspec.structs.fields(Config)
}


def refusal(path: Path) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(path, environ={})
    return caught.value


def test_there_are_enough_of_them_and_no_two_alike() -> None:
    assert len({config.name for config in HOSTILE_CONFIGS}) == len(HOSTILE_CONFIGS) >= 50


@pytest.mark.parametrize("config", HOSTILE_CONFIGS, ids=lambda config: config.name)
def test_every_hostile_config_is_refused_by_key_and_line(config: HostileConfig, tmp_path: Path) -> None:
    path = tmp_path / "runner.toml"
    config.write(path)
    error = refusal(path)
    assert error.code is ErrorCode.CONFIG_INVALID
    assert tuple((problem.key, problem.line) for problem in error.problems) == config.places
    report = error.report("runner.toml")
    assert CANARY not in report
    assert len(report.splitlines()) == len(config.places) + 1, "one line a mistake"
    assert report.isprintable() or report.replace("\n", "").replace("…", "").isprintable()
    assert all(len(line) < 500 for line in report.splitlines())
    assert all(problem.remedy or problem.allowed or problem.nearest for problem in error.problems)


def test_a_config_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    UNREADABLE.write(tmp_path / "runner.toml")
    assert "Permission denied" in str(refusal(tmp_path / "runner.toml"))


# any tables at all

scalars = (
    st.booleans()
    | st.integers()
    | st.floats()
    | st.dates()
    | st.times()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
    | st.sampled_from([EMBEDDED, "http://h:1", "postgresql://u@h/d", "h:1", "info", "fail", "active", "predict"])
    | st.sampled_from(["https://h", "postgresql:///d", "SASL_SSL", "SSL", "require", "disable", "a.pem", "PLAIN"])
)
values = scalars | st.lists(scalars, max_size=3) | st.dictionaries(st.text("abc.`$ ", max_size=5), scalars, max_size=2)
names = st.sampled_from([key for keys in KNOWN.values() for key in keys]) | st.text("abcpt_`$.\n\u0456 ", max_size=8)
tables = st.dictionaries(
    st.sampled_from(list(KNOWN)) | names,
    st.dictionaries(names, values, max_size=4) | values,
    max_size=5,
)


def toml(value: Any) -> str:
    """Any of `values` on one line."""
    if isinstance(value, bool | str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return f"[{', '.join(map(toml, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{toml(key)} = {toml(item)}' for key, item in value.items())}}}"
    return value.isoformat() if hasattr(value, "isoformat") else repr(value)


def written(table: Mapping[str, Any], padding: str) -> tuple[str, dict[tuple[str, ...], int]]:
    """The text of a file, and the line of each section and key in it."""
    text = ""
    lines: dict[tuple[str, ...], int] = {}
    for name, keys in sorted(table.items(), key=lambda item: isinstance(item[1], dict)):
        text += padding
        lines[name,] = text.count("\n") + 1
        if not isinstance(keys, dict):
            text += f"{toml(name)} = {toml(keys)}\n"
            continue
        text += f"[{toml(name)}]\n"
        for key, value in keys.items():
            text += padding
            lines[name, key] = text.count("\n") + 1
            text += f"{toml(key)} = {toml(value)}\n"
    return text, lines


def parsed(text: str) -> Config | ConfigError:
    """Either of the two; anything else that is raised is a bug."""
    try:
        return parse_config(text, base_dir=Path("/somewhere"), environ={})
    except ConfigError as error:
        return error


@given(tables, st.sampled_from(["", "\n", "# [log]\n", "#'\n\n"]))
def test_any_file_is_a_config_or_an_error_whose_lines_are_right(table: dict[str, Any], padding: str) -> None:
    text, lines = written(table, padding)
    result = parsed(text)
    if isinstance(result, Config):
        assert msgspec.convert(msgspec.to_builtins(result), Config) == result
        # The options of the decoder child pass through JSON, which has no infinity.
        assert msgspec.json.decode(msgspec.json.encode(result), type=Config) == result
        return
    assert result.problems
    for problem in result.problems:
        # A key of a table inside has the line of the statement that writes the table.
        path = problem.path if problem.path in lines else problem.path[:2]
        if path in lines:
            assert problem.line == lines[path]
        else:
            # A rule that misses a key: it has the line of another that it is about.
            assert problem.line in {lines[path] for path in problem.others if path in lines}
    assert len(str(result).splitlines()) == len(result.problems)


@given(tables)
def test_any_replacement_is_a_config_or_an_error_that_names_keys(table: dict[str, Any]) -> None:
    sections = {name: keys for name, keys in table.items() if isinstance(keys, dict)}
    try:
        result: Config | ConfigError = Config().replace(**sections)
    except ConfigError as error:
        result = error
    assert isinstance(result, Config) or all(problem.path and problem.line is None for problem in result.problems)


@given(st.text())
def test_any_text_is_a_config_or_a_config_error(text: str) -> None:
    assert str(parsed(text))


@given(st.binary(max_size=100))
def test_any_bytes_are_a_config_or_a_config_error(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes.toml"
    path.write_bytes(data)
    try:
        result: Config | ConfigError = load_config(path, environ={})
    except ConfigError as error:
        result = error
    assert str(result)


# Each is one mistake whatever stands beside it: no other key takes an array, and no key has such a name.
mistakes: st.SearchStrategy[tuple[tuple[str, str], Any]] = st.tuples(
    st.sampled_from(
        [(section, key) for section, keys in KNOWN.items() for key in keys if key not in {"url_prefixes", "labels"}]
    ),
    st.just([]),
) | st.tuples(st.tuples(st.sampled_from(list(KNOWN)), st.from_regex(r"q[xz]{4,8}", fullmatch=True)), st.integers(0, 9))


@given(st.lists(mistakes, min_size=1, max_size=12, unique_by=lambda mistake: mistake[0]))
def test_n_mistakes_are_n_problems(made: list[tuple[tuple[str, str], Any]]) -> None:
    table: dict[str, dict[str, Any]] = {}
    for (section, key), value in made:
        table.setdefault(section, {})[key] = value
    text, lines = written(table, "")
    result = parsed(text)
    assert isinstance(result, ConfigError)
    assert {problem.path: problem.line for problem in result.problems} == {path: lines[path] for path, _ in made}
    assert len(result.problems) == len(made)
    assert result.report("x").endswith(
        f"x: config_invalid: {len(made)} error{'s' * (len(made) > 1)}, nothing was started"
    )


secret_names = st.sampled_from(
    ["password", "Password", "db_password", "token", "secret", "apikey", "passphrase", "PWD"]
)


@given(st.sampled_from([*KNOWN, ""]), secret_names, st.sampled_from(["", "value"]), st.text("[]{}= #", max_size=5))
def test_a_secret_under_any_such_key_is_not_repeated(section: str, name: str, inner: str, around: str) -> None:
    value: Any = f"{around}{CANARY}{around}"
    value = {inner: value} if inner else value
    text, _ = written({section: {name: value}} if section else {name: value}, "")
    result = parsed(text)
    assert isinstance(result, ConfigError)
    assert CANARY not in result.report("x")
    assert CANARY not in repr(result.problems)

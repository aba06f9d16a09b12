"""TOML into one frozen object; every mistake is found at once and named by key and line, with a remedy."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Final

import msgspec
import tomli

from trio_runner.base.files import read_small_file
from trio_runner.config.errors import ConfigError, Problem
from trio_runner.config.inference import InferenceSection
from trio_runner.config.inference_rules import failed_frames_rule, inference_rules, readiness_rule
from trio_runner.config.keys import check_tables, is_credential
from trio_runner.config.kinds import EMBEDDED, PeerSection, Section
from trio_runner.config.lines import broken_line, key_lines, written_twice
from trio_runner.config.location import absolute_path
from trio_runner.config.oip_rules import oip_rules
from trio_runner.config.rules import (
    database_rules,
    kafka_rules,
    kubernetes_rules,
    orchestrator_rules,
    remote_video_rules,
    storage_rules,
    topic_rules,
    video_rules,
)
from trio_runner.config.sections import (
    OPTIONAL_PATHS,
    DatabaseSection,
    KafkaSection,
    KubernetesSection,
    LogSection,
    OrchestratorSection,
    PipelineSection,
    RunnerSection,
    ScenarioSection,
    StorageSection,
    SystemdSection,
    VideoSection,
)

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

__all__ = [
    "EMBEDDED",
    "Config",
    "ConfigError",
    "DatabaseSection",
    "InferenceSection",
    "KafkaSection",
    "KubernetesSection",
    "LogSection",
    "OrchestratorSection",
    "PeerSection",
    "PipelineSection",
    "RunnerSection",
    "ScenarioSection",
    "StorageSection",
    "SystemdSection",
    "VideoSection",
    "load_config",
    "parse_config",
]

MAX_CONFIG_BYTES: Final = 2**16
"""Ten times the reference config."""


class Config(Section, frozen=True, kw_only=True):
    """Every setting of a runner, in one frozen object."""

    runner: RunnerSection = RunnerSection()
    log: LogSection = LogSection()
    scenario: ScenarioSection = ScenarioSection()
    video: VideoSection = VideoSection()
    storage: StorageSection = StorageSection()
    inference: InferenceSection = InferenceSection()
    pipeline: PipelineSection = PipelineSection()
    database: DatabaseSection = DatabaseSection()
    kafka: KafkaSection = KafkaSection()
    orchestrator: OrchestratorSection = OrchestratorSection()
    systemd: SystemdSection = SystemdSection()
    kubernetes: KubernetesSection = KubernetesSection()

    def replace(self, /, **sections: dict[str, Any]) -> Config:
        """A checked copy with single keys changed: `config.replace(video={"path": "a.mp4"})`; raises ConfigError."""
        changed: dict[str, dict[str, Any]] = msgspec.to_builtins(self)
        for name, keys in sections.items():
            changed[name] = _merged(changed.get(name, {}), keys, getattr(self, name, None))
        return _checked(changed)

    def with_absolute_paths(self, base_dir: Path) -> Config:
        """A copy whose relative paths start from `base_dir`; `$CREDENTIALS_DIRECTORY/name` stays."""
        changed: dict[str, Any] = {
            "runner": {"data_dir": str(base_dir / self.runner.data_dir)},
            "video": {"path": absolute_path(self.video.path, base_dir)},
        }
        for name, keys in OPTIONAL_PATHS.items():
            section, table = self, changed
            for part in name.split("."):
                section, table = getattr(section, part), table.setdefault(part, {})
            table.update({key: _absolute(key, path, base_dir) for key in keys if (path := getattr(section, key))})
        return self.replace(**changed)


def _absolute(key: str, path: Any, base_dir: Path) -> Any:
    """The path, or each path of a table; `$CREDENTIALS_DIRECTORY/name` stays."""
    if isinstance(path, dict):
        return {name: _absolute(key, each, base_dir) for name, each in path.items()}
    return path if is_credential(key, path) else str(base_dir / path)


def _merged(table: Mapping[str, Any], keys: Mapping[str, Any], section: Any) -> dict[str, Any]:
    """The table with these keys; a table inside the section keeps the keys of its own that are not given."""
    merged = {**table, **keys}
    for name, value in keys.items():
        inside = getattr(section, name, None)
        if isinstance(inside, Section) and isinstance(value, dict):
            merged[name] = _merged(table[name], value, inside)
    return merged


def load_config(path: Path, environ: Mapping[str, str] | None = os.environ, *, with_video: bool = False) -> Config:
    """Read, parse and check the file; relative paths in it start from its own directory.

    With `environ=None` the config is for another process: `$CREDENTIALS_DIRECTORY` stays in it, to be replaced there.
    For `with_video` see `parse_config`.

    Raises:
        ConfigError: the file cannot be read, or has mistakes; the error holds all of them.
    """
    try:
        data, _ = read_small_file(path, max_bytes=MAX_CONFIG_BYTES)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _single(f"cannot read {path}: {why}", remedy="name an existing config file") from None
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        # Not chained: the decoder's error holds the whole file.
        raise _single("not UTF-8 text", line=line, remedy="save the file as UTF-8") from None
    return parse_config(text, base_dir=path.resolve().parent, environ=environ, with_video=with_video)


def parse_config(
    text: str, *, base_dir: Path, environ: Mapping[str, str] | None = os.environ, with_video: bool = False
) -> Config:
    """Turn TOML text into a checked Config whose paths are absolute.

    `$CREDENTIALS_DIRECTORY/` at the beginning of a `*_file` key is replaced from `environ`; nothing else is.
    `with_video` checks too whether `storage.url_prefixes` allow the video's URL. A runner does not: the path may come
    from a scenario, and then a URL that is not allowed is an error of that scenario, which has its own event.

    Raises:
        ConfigError: the text has mistakes; the error holds all of them.
    """
    tables = _parse(text)
    try:
        return _checked(tables, environ, with_video=with_video).with_absolute_paths(base_dir)
    except ConfigError as error:
        lines = key_lines(text)
        raise ConfigError(replace(problem, line=_line(problem, lines)) for problem in error.problems) from None


def _single(problem: str, *, line: int | None = None, path: tuple[str, ...] = (), remedy: str) -> ConfigError:
    return ConfigError([Problem(problem=problem, path=path, line=line, remedy=remedy)])


def _parse(text: str) -> dict[str, Any]:
    if text.startswith("\N{BYTE ORDER MARK}"):
        raise _single(
            "not valid TOML: begins with a byte order mark", line=1, remedy="save the file as UTF-8 without one"
        )
    try:
        return tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        again = written_twice(text, error.lineno) if error.msg.startswith("Cannot ") else None
        if again is not None:
            path, first = again
            problem = f"not valid TOML: written twice, first on line {first}"
            raise _single(problem, path=path, line=error.lineno, remedy="keep one of the two") from None
        # tomli notices only at the end of the text that something is not closed.
        line = broken_line(text) if error.pos >= len(error.doc) else error.lineno
        problem = f"not valid TOML: {error.msg[:1].lower()}{error.msg[1:]}"
        raise _single(problem, line=line, remedy="correct the syntax") from None
    except RecursionError:
        remedy = "the config has two levels, no more"
        raise _single("not valid TOML: nested too deeply", line=broken_line(text), remedy=remedy) from None
    except ValueError:
        # Python converts no more than 4300 digits at once.
        remedy = "write a shorter number"
        raise _single("not valid TOML: a number is too long", line=broken_line(text), remedy=remedy) from None


def _line(problem: Problem, lines: Mapping[tuple[str, ...], int]) -> int | None:
    """The line of the problem's key, or else of another key involved; one of them is written, as defaults agree."""
    return next((lines[path] for path in (problem.path, *problem.others) if path in lines), None)


def _checked(tables: dict[str, Any], environ: Mapping[str, str] | None = None, *, with_video: bool = False) -> Config:
    """Check every key by itself, and then each rule that spans keys, unless one of its keys is wrong already."""
    sections, problems = check_tables(
        tables, {field.name: field.type for field in msgspec.structs.fields(Config)}, environ
    )
    config = Config(**sections)
    doubtful = {path for problem in problems for path in (problem.path, *problem.others)}
    rules = chain(
        video_rules(config.video),
        storage_rules(config.storage),
        remote_video_rules(config.video, config.storage) if with_video else (),
        inference_rules(config.inference),
        failed_frames_rule(config.inference, config.pipeline),
        oip_rules(config.inference, config.video, config.pipeline),
        readiness_rule(config.inference, config.orchestrator, config.kubernetes),
        database_rules(config.database, config.pipeline),
        kafka_rules(config.kafka),
        topic_rules(config.kafka, config.orchestrator),
        orchestrator_rules(config.orchestrator),
        kubernetes_rules(config.kubernetes),
    )
    for problem in rules:
        involved = (problem.path, *problem.others)
        if doubtful.isdisjoint({*involved, *(path[:1] for path in involved)}):
            problems.append(problem)
    if problems:
        raise ConfigError(problems)
    return config

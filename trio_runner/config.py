"""TOML into frozen structs; an unknown key or a bad value is an error that names its key, line and remedy."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints
from urllib.parse import urlsplit

import msgspec
import tomli
from msgspec import Meta

if TYPE_CHECKING:
    from pathlib import Path

EMBEDDED = "embedded"
"""In place of an address: the runner brings a real server of its own for it."""

Positive = Annotated[int, Meta(ge=1, le=2**31 - 1)]
NotNegative = Annotated[int, Meta(ge=0, le=2**31 - 1)]
FilePath = Annotated[str, Meta(max_length=4096, pattern=r"^[^\x00]*\Z")]
Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Name = Annotated[str, Meta(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._:@-]+\Z")]


class ConfigError(Exception):
    """A config that cannot be used: which key, on which line, what is wrong and what to do."""

    def __init__(self, problem: str, *, key: str = "", line: int | None = None, remedy: str = "") -> None:
        """Hold the parts; `key` is dotted, `line` 1-based."""
        super().__init__(problem)
        self.problem, self.key, self.line, self.remedy = problem, key, line, remedy

    def __str__(self) -> str:
        """One sentence with everything a person needs."""
        where = f"{self.key}: " if self.key else ""
        line = f" (line {self.line})" if self.line else ""
        return f"{where}{self.problem}{line}" + (f". {self.remedy}" if self.remedy else "")


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A table of the config file."""


class RunnerSection(Section, frozen=True, kw_only=True):
    """Who this process is and where it keeps its state."""

    id: Name = "runner_1"
    data_dir: FilePath = ".trio-runner"
    drain_seconds: Seconds = 10.0


class LogSection(Section, frozen=True, kw_only=True):
    """What is logged to stderr, and how."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class ScenarioSection(Section, frozen=True, kw_only=True):
    """Which scenario this process serves."""

    id: Annotated[int, Meta(ge=1, le=2**63 - 1)] = 1
    epoch: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    on_complete: Literal["active", "inactive"] = "active"
    max_failures: Positive = 5


class VideoSection(Section, frozen=True, kw_only=True):
    """Which video, which of its frames, in what form, and within what limits."""

    path: Annotated[FilePath, Meta(min_length=1)] = "test_videos/test_video.mp4"
    stride: Positive = 1
    max_fps: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    start_seconds: Annotated[float, Meta(ge=0, le=10**7)] = 0.0
    max_frames: NotNegative = 0
    max_width: Annotated[int, Meta(ge=0, le=16_384)] = 0
    jpeg_quality: Annotated[int, Meta(ge=1, le=100)] = 90
    on_corrupt: Literal["fail", "skip"] = "fail"
    frame_timeout_seconds: Seconds = 10.0
    decoder_threads: Annotated[int, Meta(ge=1, le=16)] = 1
    encoder_threads: Annotated[int, Meta(ge=1, le=16)] = 1
    limit_width: Annotated[int, Meta(ge=1, le=16_384)] = 4096
    limit_height: Annotated[int, Meta(ge=1, le=16_384)] = 4096
    limit_fps: Annotated[float, Meta(gt=0, le=1000)] = 240.0
    limit_memory_mib: Annotated[int, Meta(ge=256, le=2**20)] = 2048


class InferenceSection(Section, frozen=True, kw_only=True):
    """Where frames are sent and how long an answer may take."""

    url: str = EMBEDDED
    protocol: Literal["predict"] = "predict"
    path: Annotated[str, Meta(pattern=r"^/((?![?#])[!-~])*\Z")] = "/predict"
    field: Name = "frame"
    in_flight: Annotated[int, Meta(ge=1, le=256)] = 4
    connect_timeout_seconds: Seconds = 3.0
    timeout_seconds: Seconds = 10.0
    max_response_bytes: Annotated[int, Meta(ge=1024, le=64 * 2**20)] = 2**20


class PipelineSection(Section, frozen=True, kw_only=True):
    """How much may be under way at once."""

    max_buffered_bytes: Annotated[int, Meta(ge=2**16, le=2**40)] = 32 * 2**20
    max_buffered_frames: Positive = 64


class DatabaseSection(Section, frozen=True, kw_only=True):
    """The ledger: where it is, and how it is written."""

    url: str = EMBEDDED
    password_file: FilePath = ""
    create_schema: bool = True
    connect_timeout_seconds: Seconds = 5.0
    command_timeout_seconds: Seconds = 10.0
    batch_frames: Annotated[int, Meta(ge=1, le=1000)] = 16
    batch_seconds: Seconds = 0.25
    lease_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 30.0


class KafkaSection(Section, frozen=True, kw_only=True):
    """The doorbell: where deaths are announced."""

    brokers: Annotated[str, Meta(min_length=1)] = EMBEDDED
    retry_topic: Annotated[str, Meta(pattern=r"^[A-Za-z0-9._-]{1,249}\Z")] = "runner.retry"
    connect_timeout_seconds: Seconds = 5.0
    publish_timeout_seconds: Seconds = 15.0


class Config(Section, frozen=True, kw_only=True):
    """Everything a runner is told, in one frozen object."""

    runner: RunnerSection = RunnerSection()
    log: LogSection = LogSection()
    scenario: ScenarioSection = ScenarioSection()
    video: VideoSection = VideoSection()
    inference: InferenceSection = InferenceSection()
    pipeline: PipelineSection = PipelineSection()
    database: DatabaseSection = DatabaseSection()
    kafka: KafkaSection = KafkaSection()

    def replace(self, **sections: dict[str, Any]) -> Config:
        """A checked copy with single keys changed: `config.replace(video={"path": "a.mp4"})`; raises ConfigError."""
        changed = msgspec.to_builtins(self)
        for name, keys in sections.items():
            changed[name] |= keys
        return _convert(changed, "")

    def with_absolute_paths(self, base_dir: Path) -> Config:
        """A copy whose relative paths start from `base_dir`."""
        changed: dict[str, dict[str, Any]] = {
            "runner": {"data_dir": str(base_dir / self.runner.data_dir)},
            "video": {"path": str(base_dir / self.video.path)},
        }
        if self.database.password_file:
            changed["database"] = {"password_file": str(base_dir / self.database.password_file)}
        return self.replace(**changed)


def load_config(path: Path) -> Config:
    """Read, parse and check the file; relative paths in it start from its own directory. Raises ConfigError."""
    try:
        text = path.read_bytes().decode("utf-8")
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", remedy="Name an existing config file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text", remedy="Save the file as UTF-8") from error
    return parse_config(text, base_dir=path.resolve().parent)


def parse_config(text: str, *, base_dir: Path) -> Config:
    """Turn TOML text into a checked Config whose paths are absolute; raises ConfigError."""
    try:
        tables = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise ConfigError(f"not valid TOML: {error.msg}", line=error.lineno, remedy="Correct the syntax") from error
    except RecursionError as error:
        raise ConfigError("not valid TOML: nested too deeply", remedy="The config has two levels, no more") from error
    except ValueError as error:
        raise ConfigError(f"not usable TOML: {error}", remedy="Write shorter numbers") from error
    return _convert(tables, text).with_absolute_paths(base_dir)


def _convert(tables: dict[str, Any], text: str) -> Config:
    try:
        config = msgspec.convert(tables, Config)
    except msgspec.ValidationError as error:
        raise _explain(error, tables, text) from error
    for key, problem, remedy in _cross_check(config):
        raise ConfigError(problem, key=key, line=line_of(text, key), remedy=remedy)
    return config


def _explain(error: msgspec.ValidationError, tables: dict[str, Any], text: str) -> ConfigError:
    message, _, place = str(error).partition(" - at `$")
    key = place.rstrip("`").lstrip(".")
    if unknown := re.search(r"unknown field `([^`]*)`", message):
        section = key
        key = f"{section}.{unknown[1]}" if section else unknown[1]
        fields = type(getattr(Config(), section)) if section else Config
        known = list(fields.__struct_fields__)
        near = difflib.get_close_matches(unknown[1], known, n=1)
        what = f"Did you mean {near[0]!r}?" if near else f"Known here: {', '.join(known)}"
        return ConfigError("unknown key", key=key, line=line_of(text, key), remedy=what)
    value: Any = tables
    for part in key.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    if allowed := _choices(key):
        remedy = f"Write one of {', '.join(allowed)}"
        return ConfigError(f"{value!r} is not known"[:80], key=key, line=line_of(text, key), remedy=remedy)
    problem = f"{message[:1].lower()}{message[1:]}".replace("`", "")
    got = f", here {value!r}"[:80] if isinstance(value, bool | int | float | str) else ""
    return ConfigError(
        f"{problem}{got}",
        key=key,
        line=line_of(text, key),
        remedy="See the comment beside this key in runner.toml",
    )


def _choices(key: str) -> list[str]:
    """The values of a key that takes one of a few words; empty for the others."""
    section, _, name = key.partition(".")
    fields = get_type_hints(type(getattr(Config(), section, None)))
    return [f'"{word}"' for word in get_args(fields.get(name)) if isinstance(word, str)]


def _cross_check(config: Config) -> list[tuple[str, str, str]]:
    """Rules that span keys or look inside an address: (key, problem, remedy) for each one broken."""
    broken: list[tuple[str, str, str]] = []
    if config.inference.url != EMBEDDED:
        broken += _check_url("inference.url", config.inference.url, {"http", "https"})
    if config.inference.path != "/" and config.inference.url.rstrip("/").endswith(config.inference.path):
        broken.append(("inference.url", "ends with inference.path", "Write the address alone"))
    if config.database.url != EMBEDDED:
        broken += _check_url("database.url", config.database.url, {"postgresql", "postgres"})
    if config.kafka.brokers != EMBEDDED and not all(map(_is_host_and_port, config.kafka.brokers.split(","))):
        broken.append(("kafka.brokers", "not a list of host:port", 'Write "host1:9092,host2:9092", or "embedded"'))
    if config.video.stride > 1 and config.video.max_fps > 0:
        broken.append(("video.max_fps", "stride and max_fps are both set", "Choose one way of sampling"))
    if config.database.batch_frames > config.pipeline.max_buffered_frames:
        broken.append(
            (
                "database.batch_frames",
                "larger than pipeline.max_buffered_frames",
                "A batch must fit into the buffer",
            )
        )
    return broken


def _is_host_and_port(address: str) -> bool:
    matched = re.fullmatch(r"(?:\[[0-9A-Fa-f:]+\]|[A-Za-z0-9._-]+):(\d{1,5})", address)
    return matched is not None and 0 < int(matched[1]) < 2**16


def _check_url(key: str, url: str, schemes: set[str]) -> list[tuple[str, str, str]]:
    try:
        parts = urlsplit(url)
        # Reading the port is what makes urlsplit check it.
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), 0
    http = "http" in schemes
    if parts.scheme not in schemes or port == 0 or (http and not parts.hostname) or not re.fullmatch(r"[!-~]+", url):
        example = "http://host:port" if http else "postgresql://user@host:port/database"
        return [(key, "not a usable address", f'Write "{example}", or "{EMBEDDED}"')]
    if parts.password is not None or (http and parts.username is not None) or "password=" in parts.query:
        remedy = "Remove the user name and password" if http else "Set database.password_file instead"
        return [(key, "holds a secret, which would end up in logs", remedy)]
    if http and (parts.query or parts.fragment):
        return [(key, "has a query or a fragment", "Write the address alone; the path is inference.path")]
    return []


def line_of(text: str, key: str) -> int | None:
    """The 1-based line of `text` on which the dotted `key` is set, or its table begins; None where it is not there."""
    section, _, name = key.rpartition(".")
    current, table_line = "", None
    for number, line in enumerate(text.split("\n"), start=1):
        if header := re.match(r"\s*\[\s*([^\[\]]+?)\s*\]", line):
            current = header[1].strip("\"'")
            if current in (section, key):
                table_line = number
        elif assigned := re.match(r"\s*([\w.\"'-]+)\s*=", line):
            written = assigned[1].replace('"', "").replace("'", "")
            if (current, written) == (section, name) or (not current and written == key):
                return number
            if not current and written == section:
                table_line = number
    return table_line

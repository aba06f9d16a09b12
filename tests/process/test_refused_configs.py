"""What a config or a `--set` may hold that is wrong: the real program refuses it with 78 and starts nothing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio

from tests.support.harness import Cli, WriteConfig
from tests.support.hostile_configs import CANARY, HOSTILE_CONFIGS, HostileConfig

PATIENCE_SECONDS = 15.0


# Cases that could hang, take much time or memory, or print a secret.
NAMES = {"FIFO", "endless device", "10 GB with a hole", "deep array", "6000 keys", "secret twice", "everything at once"}


BY_PROCESS = [config for config in HOSTILE_CONFIGS if config.name in NAMES]


@pytest.mark.parametrize("config", BY_PROCESS, ids=lambda config: config.name)
async def test_the_program_refuses_it_with_78_and_starts_nothing(
    cli: Cli, config: HostileConfig, tmp_path: Path
) -> None:
    config.write(tmp_path / "runner.toml")
    with trio.fail_after(PATIENCE_SECONDS):
        done = await cli("validate", "runner.toml")
    assert (done.code, done.out) == (78, "")
    assert done.err.startswith("runner.toml")
    assert "Traceback" not in done.err
    assert CANARY not in done.err
    assert all(config.places[i][0] in done.err for i in (0, -1))
    assert set(os.listdir(tmp_path)) == {"runner.toml", "cli-1.out", "cli-1.err"}  # noqa: PTH208 - it waits for nothing


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("video.stride=0", "video.stride"),
        ("video.stride=two", "video.stride"),
        ("video.stride=" + "9" * 5000, "video.stride"),
        ("video.strid=2", "video.strid"),
        ("self.x=1", "self"),
        ("nonsense", "nonsense: not of the form section.key=value"),
        ("database.batch_frames=1000", "database.batch_frames: larger than pipeline.max_buffered_frames"),
    ],
)
@pytest.mark.parametrize("verb", [("run",), ("submit", "--video", "a.mp4")], ids=lambda verb: verb[0])
async def test_a_bad_value_is_named_and_nothing_is_started(
    cli: Cli, write_config: WriteConfig, verb: tuple[str, ...], setting: str, named: str
) -> None:
    done = await cli(*verb, write_config(), "--set", setting)
    assert done.code == 78, done.err
    assert named in done.err
    assert "nothing was started" in done.err
    assert done.out == ""


@pytest.mark.parametrize(
    "setting",
    [
        "inference.url=http://169.254.169.254",
        "inference.token_file=/etc/passwd",
        "database.url=postgresql://evil/x",
        "video.root=/",
        "video.limit_memory_mib=99999",
        "scenario.id=9",
        "kafka.brokers=evil:9092",
        "runner.data_dir=/",
    ],
)
async def test_what_is_not_a_scenarios_cannot_be_submitted(cli: Cli, write_config: WriteConfig, setting: str) -> None:
    done = await cli("submit", write_config(), "--video", "a.mp4", "--set", setting)
    assert done.code == 78
    assert f"{setting.partition('=')[0]}: not for a scenario to set" in done.err


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--video", "a.mp4", "--id", "-5"), "scenario.id"),
        (("--video", "a.mp4", "--id", str(2**63)), "scenario.id"),
        (("--video", "a" * 5000), "video.path"),
    ],
)
async def test_an_id_or_a_path_that_cannot_be_is_named(
    cli: Cli, write_config: WriteConfig, arguments: tuple[str, ...], named: str
) -> None:
    done = await cli("submit", write_config(), *arguments)
    assert done.code == 78, done.err
    assert named in done.err

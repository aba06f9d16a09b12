"""The config of a runner: a scenario's row may set the scenario's own keys, and no others."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from tests.support.hanging_disk import hanging_disk
from trio_runner.config.errors import ConfigError
from trio_runner.config.load import Config, load_config, parse_config
from trio_runner.database.backlog import Work
from trio_runner.kafka.record import BadEventError
from trio_runner.orchestrator.listener import refuse_url
from trio_runner.orchestrator.spawners import runner_config as runner_config_module
from trio_runner.orchestrator.spawners.kubernetes_job import job
from trio_runner.orchestrator.spawners.runner_config import as_toml, load_template, runner_config


def work(settings: dict[str, dict[str, Any]] | None = None, video_path: str = "/srv/videos/7.mp4") -> Work:
    return Work(scenario_id=7, epoch=3, video_path=video_path, settings=settings or {})


def test_a_runners_config_has_the_fleets_keys_its_own_and_the_scenarios() -> None:
    template = Config().replace(video={"jpeg_quality": 80}, runner={"data_dir": "/var/lib/fleet"})
    given = work({"video": {"stride": 2}, "scenario": {"max_failures": 3}})
    made = runner_config(template, given, data_dir=Path("/run/7"), node="node_1")
    assert (made.scenario.id, made.scenario.epoch, made.runner.id) == (7, 3, "node_1-7")
    assert (made.video.path, made.video.stride, made.video.jpeg_quality) == ("/srv/videos/7.mp4", 2, 80)
    assert (made.kafka.required, made.kafka.spool_dir) == (False, "/var/lib/fleet/spool")
    again = parse_config(as_toml(made), base_dir=Path("/"))
    assert again == made
    # An attempt that had to wait gets the same config again.
    assert runner_config(template, given, data_dir=Path("/run/7"), node="node_1") == made


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"settings": {"inference": {"url": "http://elsewhere"}}}, "inference.url"),
        ({"settings": {"database": {"password_file": "/etc/shadow"}}}, "database.password_file"),
        ({"settings": {"video": {"stride": None}}}, "video.stride"),
        ({"settings": {"video": {"stride": math.inf}}}, "video.stride"),
        ({"video_path": "/srv//videos/./7.mp4"}, "video.path"),
        ({"video_path": "videos/7.mp4"}, "video.path"),
    ],
)
def test_a_key_that_no_scenario_may_set_is_refused_by_its_name(changes: dict[str, Any], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        runner_config(Config(), work(**changes), data_dir=Path("/run/7"), node="node_1")
    with pytest.raises(ConfigError, match=named):
        job(Config().kubernetes, "node_1", work(**changes))


PRESIGNED = "https://media.example/7.mp4?X-Amz-Signature=c4n4ry"


def test_a_runner_is_given_the_url_as_it_was_submitted_and_shares_one_cache_with_the_others() -> None:
    template = Config().replace(runner={"data_dir": "/var/lib/fleet"}, storage={"url_prefixes": ["https://h/"]})
    made = runner_config(template, work(video_path=PRESIGNED), data_dir=Path("/run/7"), node="node_1")
    assert (made.video.path, made.storage.cache_dir) == (PRESIGNED, "/var/lib/fleet/videos")
    assert made.storage.url_prefixes == ("https://h/",)
    assert parse_config(as_toml(made), base_dir=Path("/")) == made


def test_a_presigned_url_never_stands_in_the_command_of_a_job() -> None:
    with pytest.raises(ConfigError, match=r"video\.path: a URL with a query") as refused:
        job(Config().kubernetes, "node_1", work(video_path=PRESIGNED))
    assert "c4n4ry" not in str(refused.value)
    assert "s3://bucket/7.mp4" in str(job(Config().kubernetes, "node_1", work(video_path="s3://bucket/7.mp4")))


def test_a_command_with_a_url_that_no_runner_would_fetch_is_refused_without_its_query() -> None:
    template = Config().replace(storage={"url_prefixes": ["https://media.example/"]})
    refuse_url(PRESIGNED, template)
    refuse_url("/srv/videos/7.mp4", template)
    with pytest.raises(BadEventError, match=r"storage\.url_prefixes") as refused:
        refuse_url("https://elsewhere.example/7.mp4?c4n4ry=1", template)
    assert "c4n4ry" not in str(refused.value)


def test_a_long_nodes_name_leaves_room_for_the_scenarios_id() -> None:
    made = runner_config(Config(), work(), data_dir=Path("/run/7"), node="n" * 200)
    assert made.runner.id == "n" * 198 + "-7"


def test_runners_use_the_spool_that_the_fleets_config_names() -> None:
    template = Config().replace(kafka={"spool_dir": "/var/spool/fleet"})
    assert runner_config(template, work(), data_dir=Path("/run/7"), node="here").kafka.spool_dir == "/var/spool/fleet"


@pytest.mark.parametrize("missing", ["database.url", "kafka.brokers", "inference.url"])
async def test_runners_have_no_servers_of_their_own(tmp_path: Path, missing: str) -> None:
    addresses = {"database.url": "postgresql://h/d", "kafka.brokers": "h:9092", "inference.url": "https://i"}
    path = tmp_path / "runner.toml"
    path.write_text("".join(f'{key} = "{address}"\n' for key, address in addresses.items() if key != missing))
    with pytest.raises(ConfigError, match=f"{path}: {missing}: runners of a fleet share their servers"):
        await load_template(Config().replace(orchestrator={"runner_config": str(path)}))


async def test_a_mistake_in_the_runners_config_is_named_by_its_own_file_and_line(tmp_path: Path) -> None:
    path = tmp_path / "runner.toml"
    path.write_text("[video]\nstride = 0\n")
    with pytest.raises(ConfigError) as caught:
        await load_template(Config().replace(orchestrator={"runner_config": str(path)}))
    assert f"orchestrator.runner_config: {path}:2: video.stride: " in caught.value.report("orchestrator.toml")


async def test_without_a_config_of_their_own_runners_are_given_the_orchestrators() -> None:
    assert await load_template(Config()) is None


async def test_a_runners_config_on_a_hanging_disk_is_a_config_error_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner_config_module, "FILE_SECONDS", 0.2)
    async with hanging_disk() as disk:
        monkeypatch.setattr(runner_config_module, "load_config", disk.holding_up(load_config))
        with pytest.raises(ConfigError, match=r"it did not answer within 0\.2 s"):
            await load_template(Config().replace(orchestrator={"runner_config": str(tmp_path / "runner.toml")}))

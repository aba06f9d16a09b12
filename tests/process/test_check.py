"""`trio-runner check`: the preflight alone, as a table; it changes nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_inference import open_fake
from tests.support.harness import Ledger, free_port, full_backlog, new_database, read_topic
from tests.support.scene import Scene

THINGS = ["spool", "database", "kafka", "inference", "video"]


def states(out: str) -> dict[str, str]:
    """The table's first two columns."""
    rows = (line.split() for line in out.splitlines())
    return {row[0]: row[1] for row in rows if len(row) > 1 and row[0] in THINGS}


async def check_untouched(scene: Scene) -> None:
    assert await scene.ledger.scenario(scene.scenario_id) is None
    assert await read_topic(scene.servers.brokers, scene.topic) == []


@pytest.mark.kafka
async def test_all_is_well(scene: Scene, clip: Path) -> None:
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        done = await scene.cli("check", config)
    assert done.code == 0, done.err
    assert list(states(done.out).items()) == [(thing, "ok") for thing in THINGS]
    assert fake.numbers == []
    scene.check_secrets(done.out, done.err)
    await check_untouched(scene)


async def test_an_empty_database_stays_empty(scene: Scene, clip: Path) -> None:
    async with new_database(scene.servers, f"empty_{scene.scenario_id}") as empty, open_fake() as fake:
        config = scene.write_config(
            video={"path": str(clip)}, inference={"url": fake.url}, database={"url": empty.database_url}
        )
        done = await scene.cli("check", config)
        assert done.code == 0, done.err
        (schema,) = await Ledger(empty).query("SELECT to_regnamespace('trio_runner') IS NULL AS missing")
    assert schema["missing"]


@pytest.mark.parametrize(
    ("thing", "section", "keys", "code"),
    [
        ("spool", "kafka", {"spool_dir": "/proc/version"}, "spool_unusable"),
        ("database", "database", {"url": "postgresql://u@127.0.0.1:{port}/d"}, "store_unreachable"),
        ("database", "database", {"password_file": "/no/such/file"}, "credential_unreadable"),
        ("kafka", "kafka", {"brokers": "127.0.0.1:{port}"}, "kafka_unreachable"),
        ("inference", "inference", {"url": "http://127.0.0.1:{port}"}, "inference_unreachable"),
        ("video", "video", {"path": "/no/such/video.mp4"}, "video_missing"),
        ("video", "video", {"path": "/dev/null"}, "video_refused"),
    ],
)
async def test_one_thing_is_wrong_and_the_others_are_looked_at_all_the_same(
    scene: Scene, clip: Path, thing: str, section: str, keys: dict[str, Any], code: str
) -> None:
    async with open_fake() as fake:
        sections: dict[str, dict[str, Any]] = {"video": {"path": str(clip)}, "inference": {"url": fake.url}}
        port = free_port()
        sections[section] = sections.get(section, {}) | {key: value.format(port=port) for key, value in keys.items()}
        done = await scene.cli("check", scene.write_config("runner.toml", **sections))
    assert done.code == 1, done.err
    assert states(done.out) == {name: code if name == thing else "ok" for name in THINGS}
    (message,) = (line for line in done.out.splitlines() if line.startswith(f"{code}: "))
    assert next(iter(keys.values())).format(port=port).split("@")[-1].split("/d")[0] in message, "the thing is named"
    scene.check_secrets(done.out, done.err)
    await check_untouched(scene)


async def test_peers_that_do_not_answer_are_waited_for_together_and_not_for_long(scene: Scene, clip: Path) -> None:
    async with full_backlog() as silent:
        config = scene.write_config(
            video={"path": str(clip)},
            inference={"url": f"http://{silent}", "connect_timeout_seconds": 1.0},
            database={"url": f"postgresql://u@{silent}/d", "connect_timeout_seconds": 1.0},
            kafka={"brokers": silent, "connect_timeout_seconds": 1.0},
        )
        done = await scene.cli("check", config)
    assert done.code == 1, done.err
    assert states(done.out) == {
        "spool": "ok",
        "database": "store_unreachable",
        "kafka": "kafka_unreachable",
        "inference": "inference_unreachable",
        "video": "ok",
    }


async def test_a_config_that_names_no_address_is_checked_against_its_embedded_servers(scene: Scene, clip: Path) -> None:
    config = scene.directory / "embedded.toml"
    config.write_text(f'[video]\npath = "{clip}"\n')
    done = await scene.cli("check", config)
    assert done.code == 0, done.err
    assert states(done.out) == dict.fromkeys(THINGS, "ok")

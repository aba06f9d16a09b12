"""Events that Kafka did not take wait in the database or in the spool, and the real program publishes them later."""

from __future__ import annotations

import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.fake_inference import open_fake
from tests.support.harness import read_topic, until
from tests.support.scene import Scene, death_without_kafka


def spooled(scene: Scene) -> list[Path]:
    return sorted((scene.directory / "data" / "spool").glob("*.json"))


async def test_the_next_runner_publishes_what_the_last_one_could_only_record(scene: Scene, clip: Path) -> None:
    async with death_without_kafka(scene, clip) as (_, kafka, _):
        (record,) = await scene.ledger.retry_events(scene.scenario_id)
        assert (record["published_at"], spooled(scene)) == (None, [])
        assert record["publish_due"] - record["received_at"] < timedelta(seconds=60), "it is handed over"

        await scene.check_resume(frames=60, video={"path": str(clip)}, kafka=kafka)
        assert await published(scene, kafka) == {str(record["event_id"])}
        (record,) = await scene.ledger.retry_events(scene.scenario_id)
        assert record["published_at"] is not None


async def test_the_next_runner_sends_what_the_last_one_could_not(scene: Scene, clip: Path) -> None:
    """Neither Kafka nor PostgreSQL took it."""
    async with death_without_kafka(scene, clip, database=False) as (done, kafka, _):
        assert await scene.ledger.retry_events(scene.scenario_id) == []
        (path,) = spooled(scene)
        assert str(path) in done.err
        event = msgspec.json.decode(msgspec.json.decode(path.read_bytes())["value"])
        assert (event["scenario_id"], event["epoch"]) == (scene.scenario_id, 1)
        scene.check_secrets(path.read_text())
        await scene.ledger.query(
            "UPDATE scenarios SET lease_until = now() - interval '1 s' WHERE id = $1", scene.scenario_id
        )

        await scene.check_resume(frames=60, video={"path": str(clip)}, kafka=kafka)
        assert spooled(scene) == []
        # The next runner records the death as well, and under the same id.
        (record,) = await scene.ledger.retry_events(scene.scenario_id)
        assert await published(scene, kafka) == {path.stem} == {str(record["event_id"])}


@pytest.mark.parametrize("database", [True, False], ids=["recorded", "spooled"])
async def test_flush_spool_publishes_it_without_a_run(scene: Scene, clip: Path, *, database: bool) -> None:
    async with death_without_kafka(scene, clip, database=database) as (_, kafka, server):
        waiting = spooled(scene)
        assert len(waiting) == (not database)
        config = scene.write_config("flush.toml", kafka=kafka)
        server.suspend()
        failed = await scene.cli("flush-spool", config)
        server.resume()
        assert failed.code == 74
        assert "did not answer" in failed.err
        assert spooled(scene) == waiting

        # The session's database holds other tests' events, too.
        sent = await scene.cli("flush-spool", config)
        assert spooled(scene) == [], sent.err
        assert "retry events published: " in sent.out
        assert len(await published(scene, kafka)) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGINT, 130)])
async def test_a_flush_spool_that_is_terminated_hands_back_what_it_took(
    scene: Scene, clip: Path, number: signal.Signals, code: int
) -> None:
    async with death_without_kafka(scene, clip) as (_, kafka, server):
        config = scene.write_config("flush.toml", kafka=kafka | {"publish_timeout_seconds": 60.0})
        # The session's database holds other tests' events, which would be given out before this one.
        await scene.ledger.query(
            "UPDATE retry_events SET publish_due = now() - interval '1 day' WHERE scenario_id = $1", scene.scenario_id
        )

        async def waits_for_lease() -> bool:
            (row,) = await scene.ledger.query(
                "SELECT publish_due > now() AS taken FROM retry_events WHERE scenario_id = $1", scene.scenario_id
            )
            return bool(row["taken"])

        server.suspend()
        async with scene.cli.started("flush-spool", config) as running:
            await until(waits_for_lease, described="flush-spool has taken the event")
            running.send_signal(number)
            assert (await running.wait()).code == code
        server.resume()
        assert not await waits_for_lease()


async def published(scene: Scene, kafka: dict[str, Any]) -> set[str]:
    """The ids of this scenario's events, one for each death: a frozen broker may have taken the first sending, too."""
    events = await read_topic(kafka["brokers"], scene.topic)
    return {event.headers["ce_id"] for event in events if event.key == str(scene.scenario_id)}


async def test_a_runner_that_could_keep_no_event_does_not_start(scene: Scene, clip: Path) -> None:
    (scene.directory / "file").touch()
    async with open_fake() as fake:
        config = scene.write_config(
            video={"path": str(clip)}, inference={"url": fake.url}, kafka={"spool_dir": str(scene.directory / "file")}
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 75, done.err
    assert fake.numbers == []
    await scene.check_death(done, "spool_unusable", named="kafka.spool_dir")
    await scene.check_resume(frames=60, video={"path": str(clip)})

"""Events that Kafka did not take wait in the spool, and the real program publishes them later."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.support.fake_inference import open_fake
from tests.support.harness import read_topic
from tests.support.scene import Scene, death_without_kafka, held_run
from trio_runner.failure.spool import Spool


def spooled(scene: Scene) -> list[Path]:
    return sorted((scene.directory / "data" / "spool").glob("*.json"))


async def test_the_next_runner_sends_what_the_last_one_could_not(scene: Scene, clip: Path) -> None:
    async with death_without_kafka(scene, clip) as (done, kafka, _):
        (record,) = await scene.ledger.retry_events(scene.scenario_id)
        (path,) = spooled(scene)
        assert path.stem == str(record["event_id"])
        assert str(path) in done.err
        assert msgspec.json.decode(msgspec.json.decode(path.read_bytes())["value"]) == record["body"]
        scene.check_secrets(path.read_text())

        await scene.check_resume(frames=60, video={"path": str(clip)}, kafka=kafka)
        assert spooled(scene) == []
        assert await published(scene, kafka) == {path.stem}


async def test_flush_spool_sends_it_without_a_run(scene: Scene, clip: Path) -> None:
    async with death_without_kafka(scene, clip) as (_, kafka, server):
        (path,) = spooled(scene)
        config = scene.write_config("flush.toml", kafka=kafka)
        server.suspend()
        failed = await scene.cli("flush-spool", config)
        server.resume()
        assert failed.code == 74
        assert "did not answer" in failed.err
        assert spooled(scene) == [path]

        sent = await scene.cli("flush-spool", config)
        assert (sent.code, spooled(scene)) == (0, []), sent.err
        assert "1 event sent, 0 wait" in sent.out
        assert path.stem in await published(scene, kafka)
        again = await scene.cli("flush-spool", config)
        assert (again.code, "0 events sent, 0 wait" in again.out) == (0, True)


async def test_the_room_that_a_killed_runner_kept_takes_the_report_of_its_death(
    scene: Scene, big_clip: Path, small_disk: Path
) -> None:
    kafka = {"spool_dir": str(small_disk)}
    async with held_run(scene, big_clip, kafka=kafka) as held:
        held.running.send_signal(signal.SIGKILL)
        await held.running.wait()
    with pytest.raises(OSError, match="No space left"):
        (small_disk / "filler").write_bytes(bytes(2**20))
    config = scene.write_config("later.toml", video={"path": str(big_clip)}, kafka=kafka | {"brokers": "127.0.0.1:1"})
    done = await scene.cli("report-death", config)
    assert (done.code, "attempt 1: in the spool" in done.out) == (74, True), done.err
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert [path.stem for path in await Spool(small_disk).waiting()] == [str(record["event_id"])]


async def published(scene: Scene, kafka: dict[str, Any]) -> set[str]:
    """The ids on the topic: the frozen broker may have taken the first sending, too, which is why events have ids."""
    return {event.headers["ce_id"] for event in await read_topic(kafka["brokers"], scene.topic)}


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

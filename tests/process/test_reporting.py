"""Deaths that the dead did not report: told by a service manager's words or by the lease, once, under the same id."""

from __future__ import annotations

import json
import os
import shutil
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from tests.support import clips
from tests.support.fake_inference import Fault, at_frame, open_fake
from tests.support.harness import Event, Finished, open_service_manager, read_topic, until
from tests.support.scene import SMALL_WINDOW, Held, Scene, death_without_kafka, held_run, locked


async def killed(scene: Scene, held: Held) -> None:
    held.running.send_signal(signal.SIGKILL)
    assert (await held.running.wait()).code == -signal.SIGKILL

    async def nobody_left() -> bool:
        return held.running.family() == []

    await until(nobody_left, described="the children are gone")


async def end_lease(scene: Scene) -> None:
    """As time does; a lease short enough to wait for may end under a living runner on a busy machine."""
    await scene.ledger.query(
        "UPDATE scenarios SET lease_until = now() - interval '1 s' WHERE id = $1", scene.scenario_id
    )


async def report_death(scene: Scene, *options: str, **variables: str) -> Finished:
    config = scene.directory / "runner.toml"
    async with scene.cli.started("report-death", config, *options, variables=variables) as running:
        return await running.wait()


KILLED = {"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL"}


@pytest.mark.parametrize(
    ("result", "code"),
    [("signal", "runner_killed"), ("oom-kill", "runner_out_of_memory"), ("watchdog", "runner_hung")],
)
async def test_a_killed_runner_is_reported_once_and_the_next_one_goes_on(
    scene: Scene, big_clip: Path, result: str, code: str
) -> None:
    ended = KILLED | {"SERVICE_RESULT": result}
    async with held_run(scene, big_clip) as held:
        assert "nothing to report" in (await report_death(scene, **ended)).out, "it is alive"
        await killed(scene, held)
    done = await report_death(scene, **ended)
    assert done.code == 0, done.err
    assert "attempt 1: reported" in done.out
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert (record["reporter"], record["body"]["error"]["code"]) == ("stop-post", code)
    event = await scene.the_event()
    assert (event.headers["ce_id"], event.body) == (str(record["event_id"]), record["body"])
    again = await report_death(scene, **ended)
    assert (again.code, "nothing to report" in again.out) == (0, True)
    await scene.the_event()
    await scene.check_resume(frames=120, size=(1280, 720), video={"path": str(big_clip)})


async def test_one_killed_before_it_could_claim_is_reported_too(scene: Scene, clip: Path) -> None:
    """The marker is there, and the ledger knows of no such attempt."""
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        async with scene.cli.started("run", config) as running:

            async def marked() -> list[Path]:
                return list((scene.directory / "data").glob(f"attempt-{scene.scenario_id}-*.json"))

            await until(marked, described="the marker")
            os.kill(running.pid, signal.SIGKILL)
            await running.wait()
    done = await report_death(scene, **KILLED)
    assert done.code == 0, done.err
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert record["body"]["error"]["code"] == "runner_killed"
    assert (await scene.the_event()).headers["ce_id"] == str(record["event_id"])
    await scene.check_resume(frames=60, video={"path": str(clip)})


def leave_marker(scene: Scene, clip: Path, **fields: Any) -> None:
    """As a process leaves it that was killed before it claimed."""
    instance_id = str(uuid.uuid4())
    known: dict[str, Any] = {"instance_id": instance_id, "epoch": 0, "video_path": str(clip)}
    path = scene.directory / "data" / f"attempt-{scene.scenario_id}-{instance_id}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(known | {"scenario_id": scene.scenario_id} | fields))


async def test_of_several_that_report_one_death_at_once_one_does(scene: Scene, clip: Path) -> None:
    config = scene.write_config(video={"path": str(clip)})
    assert (await scene.cli("init-db", config)).code == 0
    leave_marker(scene, clip)
    told: list[Finished] = []

    async def report() -> None:
        told.append(await report_death(scene, **KILLED))

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(report)
    assert [done.code for done in told] == [0] * 4
    assert sum("attempt 1: reported" in done.out for done in told) == 1
    row = await scene.ledger.existing(scene.scenario_id)
    assert (row["epoch"], row["failures"]) == (2, 1)
    await scene.the_event()


async def test_a_death_before_the_claim_is_of_the_attempt_that_was_begun(scene: Scene, clip: Path) -> None:
    """By the time it is reported the config may be the next attempt's."""
    async with open_fake(plan=at_frame(0, Fault.STATUS_500)) as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        assert (await scene.run_to_the_end(config)).code == 75
    leave_marker(scene, clip, epoch=1)
    scene.write_config(video={"path": str(clip)}, scenario={"epoch": 2})
    assert "nothing to report" in (await report_death(scene, **KILLED)).out
    row = await scene.ledger.existing(scene.scenario_id)
    assert (row["epoch"], row["failures"]) == (2, 1)


async def test_what_another_process_ended_with_says_nothing_of_this_one(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip) as held:
        await killed(scene, held)
    done = await report_death(scene, SERVICE_RESULT="exit-code", EXIT_CODE="exited", EXIT_STATUS="79")
    assert "attempt 1: reported" in done.out, done.err
    assert (await scene.the_event()).body["error"]["code"] == "runner_killed"


async def test_without_the_ledger_the_event_has_the_id_that_it_has_with_it(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip) as held:
        await killed(scene, held)
    config = scene.directory / "runner.toml"
    shipped = config.read_text()
    address = urlsplit(scene.servers.database_url).netloc.rpartition("@")[2]
    config.write_text(shipped.replace(address, "127.0.0.1:1"))
    done = await report_death(scene, **KILLED)
    assert "attempt 1: reported" in done.out, done.err
    (event,) = await events_of(scene)
    config.write_text(shipped)
    await end_lease(scene)

    async def reaped() -> bool:
        return f"scenario {scene.scenario_id}, attempt 1: reported" in (await scene.cli("reap", config)).out

    await until(reaped, described="a reaper has found it, too")
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert {each.headers["ce_id"] for each in await events_of(scene)} == {
        event.headers["ce_id"],
        str(record["event_id"]),
    }
    assert event.headers["ce_id"] == str(record["event_id"])


@pytest.mark.parametrize("code", [0, 75])
async def test_a_marker_that_cannot_be_removed_changes_no_ending(scene: Scene, clip: Path, code: int) -> None:
    data = scene.directory / "elsewhere"
    plan = at_frame(20 if code else -1, Fault.STATUS_500)
    async with open_service_manager() as manager, open_fake(plan=plan, held=lambda number: number >= 5) as fake:
        config = scene.write_config(
            video={"path": str(clip)},
            inference={"url": fake.url},
            runner={"data_dir": str(data)},
            kafka={"spool_dir": str(scene.directory / "spool")},
        )
        async with scene.cli.started("run", config, variables=manager.variables) as running:
            await manager.wait_for("READY=1")
            data.rename(scene.directory / "moved")
            data.touch()
            fake.gate.set()
            done = await running.wait()
    assert done.code == code, done.err
    assert "Not a directory" in done.err


async def test_a_scenario_that_was_named_on_the_command_line(
    scene: Scene, big_clip: Path, new_scenario_id: Callable[[], int]
) -> None:
    """The config of both verbs names another."""
    named = new_scenario_id()
    async with open_service_manager() as manager, open_fake(held=lambda number: number >= 5) as fake:
        config = scene.write_config(video={"path": str(big_clip)}, inference={"url": fake.url})
        async with scene.cli.started("run", config, "--scenario", str(named), variables=manager.variables) as running:
            await manager.wait_for("READY=1")
            running.send_signal(signal.SIGKILL)
            await running.wait()
    assert "nothing to report" in (await report_death(scene, **KILLED)).out
    assert (
        f"scenario {named}, attempt 1: reported" in (await report_death(scene, "--scenario", str(named), **KILLED)).out
    )


async def test_what_a_runner_has_reported_is_not_reported_again(scene: Scene, clip: Path) -> None:
    async with open_fake(plan=at_frame(20, Fault.STATUS_500)) as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        assert (await scene.run_to_the_end(config)).code == 75
    done = await report_death(scene, SERVICE_RESULT="exit-code", EXIT_CODE="exited", EXIT_STATUS="75")
    assert (done.code, "nothing to report" in done.out) == (0, True)
    unasked = await report_death(scene)
    assert (unasked.code, "nothing to report" in unasked.out) == (0, True)
    assert list((scene.directory / "data").glob("attempt-*")) == []
    await scene.the_event()
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert record["published_at"] >= record["received_at"]


async def events_of(scene: Scene) -> list[Event]:
    events = await read_topic(scene.servers.brokers, scene.topic)
    return [event for event in events if event.key == str(scene.scenario_id)]


async def test_a_reaper_finds_it_by_its_lease(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip) as held:
        config = scene.directory / "runner.toml"
        assert f"scenario {scene.scenario_id}," not in (await scene.cli("reap", config)).out, "it is alive"
        await killed(scene, held)
    await end_lease(scene)

    async def reaped() -> bool:
        done = await scene.cli("reap", config)
        assert done.code == 0, done.err
        return f"scenario {scene.scenario_id}, attempt 1: reported" in done.out

    await until(reaped, described="the lease has ended")
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert (record["reporter"], record["body"]["error"]["code"]) == ("reaper", "lease_expired")
    # A reaper looks at every scenario, and other tests leave killed runners behind.
    (event,) = await events_of(scene)
    assert (event.headers["ce_id"], event.body) == (str(record["event_id"]), record["body"])
    assert "nothing to report" in (await report_death(scene, **KILLED)).out
    assert [event.body for event in await events_of(scene)] == [record["body"]]
    await scene.check_resume(frames=120, size=(1280, 720), video={"path": str(big_clip)})


async def test_a_death_that_kafka_was_not_told_of_is_told_by_a_reaper(scene: Scene, clip: Path) -> None:
    """Whoever recorded it died in between, or has left it in the spool of a host that is gone."""
    async with death_without_kafka(scene, clip) as (_, kafka, server):
        told = f"scenario {scene.scenario_id}, attempt 1"
        config = scene.write_config("reap.toml", kafka=kafka)
        assert told not in (await scene.cli("reap", config)).out, "its reporter may still be at it"
        await scene.ledger.query(
            "UPDATE retry_events SET received_at = received_at - interval '61 s' WHERE scenario_id = $1",
            scene.scenario_id,
        )
        server.suspend()
        done = await scene.cli("reap", config)
        assert done.code == 74, done.out
        assert "NOT reported" in done.out
        (before,) = await scene.ledger.retry_events(scene.scenario_id)
        server.resume()

        async def reaped() -> bool:
            return f"{told}: reported" in (await scene.cli("reap", config)).out

        await until(reaped, described="a reaper has told Kafka")
        (record,) = await scene.ledger.retry_events(scene.scenario_id)
        assert (before["published_at"], record["published_at"] is None) == (None, False)
        ids = {event.headers["ce_id"] for event in await read_topic(kafka["brokers"], scene.topic)}
        assert str(record["event_id"]) in ids
        assert told not in (await scene.cli("reap", config)).out


async def test_what_the_ledger_recorded_and_is_no_event_holds_no_reaper_up(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip) as held:
        row = await scene.ledger.existing(scene.scenario_id)
        await scene.ledger.query(
            "SELECT fail($1, 1, $2, gen_random_uuid(), 'runner', 'retriable', '{}')",
            scene.scenario_id,
            row["instance_id"],
        )
        held.fake.gate.set()
        assert (await held.running.wait()).code == 79
    await scene.ledger.query(
        "UPDATE retry_events SET received_at = received_at - interval '61 s' WHERE scenario_id = $1", scene.scenario_id
    )

    async def passed_over() -> bool:
        done = await scene.cli("reap", scene.directory / "runner.toml")
        return f"scenario {scene.scenario_id}, attempt 1 is no event" in done.err

    await until(passed_over, described="a reaper has met it")
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert record["published_at"] is None, "a later version may know what it is"


async def test_a_row_that_somebody_has_locked_holds_no_reaper_up(
    scene: Scene, clip: Path, new_scenario_id: Callable[[], int]
) -> None:
    config = scene.write_config(video={"path": str(clip)}, database={"command_timeout_seconds": 2.0})
    assert (await scene.cli("init-db", config)).code == 0
    held_up, behind = scene.scenario_id, new_scenario_id()
    for number, seconds in ((held_up, 7200), (behind, 3600)):
        await scene.ledger.query(
            "SELECT claim($1, 'x', 0, gen_random_uuid(), 'r', 'h', make_interval(secs => $2), 5, 'x', 'x')",
            number,
            -float(seconds),
        )
    async with locked(scene, f"SELECT FROM scenarios WHERE id = {held_up} FOR UPDATE"):
        done = await scene.cli("reap", config)
    assert done.code == 0, done.err
    assert f"scenario {behind}, attempt 1: reported" in done.out
    assert f"scenario {held_up}," not in done.out
    assert f"scenario {held_up}, attempt 1: reported" in (await scene.cli("reap", config)).out


async def test_a_reaper_that_comes_too_late_does_not_take_what_was_renewed(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip) as held:
        row = await scene.ledger.existing(scene.scenario_id)
        (answer,) = await scene.ledger.query(
            "SELECT fail($1, 1, $2, gen_random_uuid(), 'reaper', 'retriable', '{}') AS recorded",
            scene.scenario_id,
            row["instance_id"],
        )
        assert not answer["recorded"]
        held.fake.gate.set()
        assert (await held.running.wait()).code == 0


# the video and its sampling are those of the first claim


async def half_a_run(scene: Scene, clip: Path, **video: Any) -> None:
    async with open_fake(plan=at_frame(20, Fault.STATUS_500)) as fake:
        config = scene.write_config(
            "runner.toml", video={"path": str(clip)} | video, inference={"url": fake.url}, **SMALL_WINDOW
        )
        assert (await scene.run_to_the_end(config)).code == 75
    assert await scene.stored() > 0


@pytest.mark.parametrize("other", ["longer", "one bit"])
async def test_another_video_under_the_same_name_is_refused(scene: Scene, tmp_path: Path, other: str) -> None:
    path = clips.pixel_coded(tmp_path / "video.mp4", frames=60)
    await half_a_run(scene, path)
    before = await scene.ledger.predictions(scene.scenario_id)
    if other == "longer":
        clips.pixel_coded(path, frames=61)
    else:
        with path.open("r+b") as file:
            file.seek(path.stat().st_size // 2)
            byte = file.read(1)
            file.seek(-1, os.SEEK_CUR)
            file.write(bytes([byte[0] ^ 1]))
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(path)}, inference={"url": fake.url})
        done = await scene.run_to_the_end(config)
    assert done.code == 65, done.err
    assert fake.numbers == []
    row = await scene.ledger.existing(scene.scenario_id)
    assert (row["last_error"]["code"], row["outcome"]) == ("video_changed", "failed")
    assert await scene.ledger.predictions(scene.scenario_id) == before
    events = await read_topic(scene.servers.brokers, scene.topic)
    assert [event.body["error"]["code"] for event in events] == ["inference_unavailable", "video_changed"]
    await scene.ledger.check_invariants(scene.scenario_id)


@pytest.mark.parametrize(
    "changed",
    [{"stride": 2}, {"max_fps": 10.0}, {"start_seconds": 1.0}, {"start_seconds": 5e-324}, {"max_frames": 50}],
)
async def test_another_sampling_is_refused(scene: Scene, clip: Path, changed: dict[str, Any]) -> None:
    await half_a_run(scene, clip)
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)} | changed, inference={"url": fake.url})
        done = await scene.run_to_the_end(config)
    assert done.code == 75, done.err
    assert fake.numbers == []
    row = await scene.ledger.existing(scene.scenario_id)
    assert (row["last_error"]["code"], row["outcome"]) == ("sampling_changed", "failed")
    assert next(iter(changed)) in row["last_error"]["message"]
    await scene.ledger.check_invariants(scene.scenario_id)


async def test_as_long_as_nothing_is_stored_both_may_change(scene: Scene, tmp_path: Path) -> None:
    path = clips.pixel_coded(tmp_path / "video.mp4", frames=60)
    async with open_fake(plan=at_frame(0, Fault.STATUS_500)) as fake:
        config = scene.write_config(video={"path": str(path)}, inference={"url": fake.url})
        assert (await scene.run_to_the_end(config)).code == 75
    clips.pixel_coded(path, frames=30)
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(path), "stride": 3}, inference={"url": fake.url})
        assert (await scene.run_to_the_end(config)).code == 0
    rows = await scene.ledger.predictions(scene.scenario_id)
    assert [row["frame_index"] for row in rows] == list(range(0, 30, 3))


async def test_the_same_video_elsewhere_and_younger_is_the_same(scene: Scene, clip: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(clip, tmp_path / "copy.mp4"))
    await half_a_run(scene, path)
    shutil.copy(clip, path)
    os.utime(path, (0, 0))
    await scene.check_resume(frames=60, video={"path": str(path)})

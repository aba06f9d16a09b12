"""The failure path on the real process: each way to die, the records and events of it, and the run after it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support import clips
from tests.support.fake_inference import RETRY_AFTER_SECONDS, Fault, at_frame, open_fake
from tests.support.harness import command, free_port, open_service_manager, read_topic, until
from tests.support.scene import Scene, held_run


@pytest.mark.parametrize(
    ("fault", "code", "part"),
    [
        (Fault.STATUS_500, "inference_unavailable", "500"),
        (Fault.HANG, "inference_timeout", "within 2 s. Lower inference.in_flight"),
        (Fault.WRONG_TYPE, "inference_bad_answer", "$.predictions[0].confidence"),
    ],
)
@pytest.mark.kafka
async def test_a_service_that_fails_at_frame_20_and_is_well_again(
    scene: Scene, clip: Path, fault: Fault, code: str, part: str
) -> None:
    # Where it is not what the test is about, no busy machine runs into it.
    timeout_seconds = 2.0 if code == "inference_timeout" else 60.0
    async with open_fake(plan=at_frame(20, fault)) as fake:
        config = scene.write_config(
            video={"path": str(clip)},
            inference={"url": fake.url, "timeout_seconds": timeout_seconds},
            database={"batch_frames": 4},
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 75, done.err
    body = await scene.check_death(done, code, named=fake.url)
    assert part in body["error"]["message"]
    stored = await scene.stored()
    assert stored <= 20
    await scene.check_rows(stored)
    await scene.check_resume(frames=60, video={"path": str(clip)})


async def test_retry_after_moves_the_next_attempt(scene: Scene, clip: Path) -> None:
    async with open_fake(plan=at_frame(0, Fault.STATUS_429)) as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        assert (await scene.run_to_the_end(config)).code == 75
    event = await scene.the_event()
    assert event.body["error"]["retry_after_seconds"] == RETRY_AFTER_SECONDS
    (attempt,) = await scene.ledger.attempts(scene.scenario_id)
    scenario = await scene.ledger.existing(scene.scenario_id)
    assert scenario["not_before"] - attempt["ended_at"] >= timedelta(seconds=RETRY_AFTER_SECONDS - 0.5)


async def test_a_service_that_rejects_what_it_is_asked_is_not_asked_again(scene: Scene, clip: Path) -> None:
    async with open_fake(plan=at_frame(3, Fault.STATUS_404)) as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        done = await scene.run_to_the_end(config)
        assert done.code == 75, done.err
        await scene.check_death(done, "inference_rejected", named=fake.url, error_class="permanent")
        asked = len(fake.numbers)
        again = await scene.run_to_the_end(config)
        assert again.code == 79
        assert "claim_refused" in again.out
        assert "given up" in again.out
        assert len(fake.numbers) == asked
    await scene.the_event()


async def test_a_service_that_is_not_there(scene: Scene, clip: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = await scene.run_to_the_end(scene.write_config(video={"path": str(clip)}, inference={"url": url}))
    assert done.code == 75, done.err
    body = await scene.check_death(done, "inference_unreachable", named=url)
    assert body["progress"]["next_frame"] == 0
    await scene.check_resume(frames=60, video={"path": str(clip)})


def missing(path: Path) -> Path:
    return path


def fifo(path: Path) -> Path:
    os.mkfifo(path)
    return path


def directory(path: Path) -> Path:
    path.mkdir()
    return path


def text(path: Path) -> Path:
    path.write_text("no video\n" * 1000)
    return path


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (missing, "video_missing"),
        (fifo, "video_refused"),
        (directory, "video_no_frames"),
        (text, "video_unreadable"),
        (clips.EMPTY["no_frames.mp4"], "video_no_frames"),
        (clips.truncated, "video_truncated"),
    ],
    ids=["missing", "FIFO", "directory", "text", "no frames", "truncated"],
)
async def test_a_video_that_is_no_good(scene: Scene, tmp_path: Path, make: Callable[[Path], Path], code: str) -> None:
    path = make(tmp_path / "clip.mp4")
    async with open_fake() as fake:
        done = await scene.run_to_the_end(scene.write_config(video={"path": str(path)}, inference={"url": fake.url}))
    assert done.code == 65, done.err
    await scene.check_death(done, code, named=str(path), error_class="permanent")
    stored = await scene.stored()
    await scene.check_rows(stored)
    assert (stored > 0) == (make is clips.truncated), "what comes before the damage is good"


async def test_a_video_whose_name_is_not_utf_8(scene: Scene, clip: Path) -> None:
    path = scene.directory / os.fsdecode(b"caf\xe9.mp4")
    path.symlink_to(clip)
    async with open_fake() as fake:
        config = scene.write_config(inference={"url": fake.url})
        done = await scene.cli("run", config, "--video", path)
    assert done.code == 0, done.err
    await scene.check_rows(60)
    assert (await scene.ledger.existing(scene.scenario_id))["video_path"].endswith("caf\\xe9.mp4")


async def test_a_decoder_that_is_killed(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip) as held:
        decoder = held.running.decoder()
        assert decoder is not None
        decoder.kill()
        held.fake.gate.set()
        done = await held.running.wait()
        assert held.running.family() == []
    assert done.code == 75, done.err
    await scene.check_death(done, "decoder_killed", named="signal KILL")
    await scene.check_resume(frames=120, size=clips.LARGE_SIZE, video={"path": str(big_clip)})


async def test_a_decoder_that_stands_still(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip, video={"frame_timeout_seconds": 3.0}) as held:
        decoder = held.running.decoder()
        assert decoder is not None
        decoder.suspend()
        held.fake.gate.set()
        done = await held.running.wait()
        assert held.running.family() == []
    assert done.code == 75, done.err
    await scene.check_death(done, "decoder_stalled", named=str(big_clip))
    await scene.check_resume(frames=120, size=clips.LARGE_SIZE, video={"path": str(big_clip)})


async def test_a_database_connection_that_is_cut(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip) as held:
        ended = await scene.ledger.query(
            "SELECT pg_terminate_backend(pid, 10000) AS ended FROM pg_stat_activity WHERE application_name LIKE $1",
            f"%scenario {scene.scenario_id}",
        )
        assert [row["ended"] for row in ended] == [True]
        held.fake.gate.set()
        done = await held.running.wait()
        assert held.running.family() == []
    assert done.code == 75, done.err
    await scene.check_death(done, "store_lost", named="PostgreSQL")
    await scene.check_resume(frames=120, size=clips.LARGE_SIZE, video={"path": str(big_clip)})


async def test_a_database_that_is_not_there(scene: Scene, clip: Path) -> None:
    port = free_port()
    async with open_fake() as fake:
        config = scene.write_config(
            video={"path": str(clip)},
            inference={"url": fake.url},
            database={"url": f"postgresql://trio_runner@127.0.0.1:{port}/trio_runner"},
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 75, done.err
    assert fake.numbers == []
    event = await scene.the_event()
    assert (event.body["epoch"], event.body["error"]["code"]) == (0, "store_unreachable")
    assert any(line["level"] == "error" and f"127.0.0.1:{port}" in line["event"] for line in done.log()), done.err
    scene.check_secrets(done.out, done.err, event.raw.decode())
    # Nothing was claimed, so the scenario's first attempt is still to come.
    assert await scene.ledger.scenario(scene.scenario_id) is None


async def test_a_database_that_refuses_the_password(scene: Scene, clip: Path, tmp_path: Path) -> None:
    (tmp_path / "wrong").write_text("canary-password\n")
    async with open_fake() as fake:
        config = scene.write_config(
            video={"path": str(clip)}, inference={"url": fake.url}, database={"password_file": "wrong"}
        )
        done = await scene.run_to_the_end(config)
    if done.code == 0:
        pytest.skip("this database asks for no password")
    assert done.code == 75, done.err
    event = await scene.the_event()
    assert event.body["error"]["code"] == "store_auth"
    assert "canary-password" not in done.out + done.err + event.raw.decode()


@pytest.mark.kafka
async def test_a_broker_that_is_not_there(scene: Scene, clip: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url}, kafka={"brokers": address})
        done = await scene.run_to_the_end(config)
    assert done.code == 74, done.err
    assert fake.numbers == [], "a runner that could not report its death does not begin"
    await scene.check_death(done, "kafka_unreachable", named=address, published=False)
    assert "not confirmed" in done.err.lower()
    await scene.check_resume(frames=60, video={"path": str(clip)}, kafka={"brokers": scene.servers.brokers})
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    event = await scene.the_event()
    assert (event.headers["ce_id"], event.body) == (str(record["event_id"]), record["body"]), "it went out late"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.kafka
async def test_on_a_signal_it_finishes_the_frames_under_way(
    scene: Scene, big_clip: Path, number: signal.Signals
) -> None:
    async with held_run(scene, big_clip) as held:
        held.running.send_signal(number)
        await held.manager.wait_for("STOPPING=1")
        held.fake.gate.set()
        done = await held.running.wait()
        assert held.running.family() == []
    assert done.code == 0, done.err
    await scene.check_death(done, "interrupted", named="stop", error_class="interrupted")
    stored = await scene.stored()
    assert sorted(held.fake.answered) == list(range(stored)), "every answer that came is stored"
    assert 5 <= stored < 120
    await scene.check_rows(stored, clips.LARGE_SIZE)
    await scene.check_resume(frames=120, size=clips.LARGE_SIZE, video={"path": str(big_clip)})


async def test_what_is_under_way_is_not_waited_for_for_ever(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip, runner={"drain_seconds": 0.5}) as held:
        held.running.send_signal(signal.SIGTERM)
        done = await held.running.wait()
        assert held.running.family() == []
    assert done.code == 0, done.err
    await scene.check_death(done, "interrupted", named="stop", error_class="interrupted")
    await scene.check_resume(frames=120, size=clips.LARGE_SIZE, video={"path": str(big_clip)})


async def test_on_a_second_signal_it_stops_at_once(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip, runner={"drain_seconds": 600.0}, inference={"timeout_seconds": 600.0}) as held:
        held.running.send_signal(signal.SIGTERM)
        await held.manager.wait_for("STOPPING=1")
        held.running.send_signal(signal.SIGTERM)
        done = await held.running.wait()
        assert held.running.family() == []
    assert done.code == 75, done.err
    await scene.check_death(done, "interrupted", named="stop", error_class="interrupted")
    await scene.check_resume(frames=120, size=clips.LARGE_SIZE, video={"path": str(big_clip)})


async def test_on_a_signal_with_the_last_frames_under_way_it_may_as_well_complete(scene: Scene, clip: Path) -> None:
    """Everything was read when the signal came, so draining is completing; either outcome is true of what is stored."""
    async with open_fake(held=lambda _: True) as fake, open_service_manager() as manager:
        config = scene.write_config(video={"path": str(clip), "max_frames": 3}, inference={"url": fake.url})
        async with scene.cli.started("run", config, variables=manager.variables) as running:

            async def all_asked() -> bool:
                return len(fake.numbers) == 3

            await until(all_asked, described="three frames asked about")
            running.send_signal(signal.SIGTERM)
            await manager.wait_for("STOPPING=1")
            fake.gate.set()
            done = await running.wait()
    assert done.code == 0, done.err
    await scene.check_rows(3)
    await scene.ledger.check_invariants(scene.scenario_id)
    scenario = await scene.ledger.existing(scene.scenario_id)
    assert (scenario["outcome"], scenario["failures"]) in (("completed", 0), (None, 0))


async def test_a_hangup_does_not_end_it(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip) as held:
        held.running.send_signal(signal.SIGHUP)
        held.fake.gate.set()
        done = await held.running.wait()
    assert done.code == 0, done.err
    await scene.check_rows(120, clips.LARGE_SIZE)


async def test_killed_it_leaves_no_child_and_the_next_one_takes_over(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip, database={"lease_seconds": 2.0}) as held:
        held.running.send_signal(signal.SIGKILL)
        assert (await held.running.wait()).code == -signal.SIGKILL

        async def nobody_left() -> bool:
            return held.running.family() == []

        await until(nobody_left, described="the children are gone")
    async with open_fake() as fake:
        config = scene.write_config("second.toml", video={"path": str(big_clip)}, inference={"url": fake.url})

        async def taken_over() -> bool:
            done = await scene.run_to_the_end(config)
            assert done.code in (0, 79), done.err
            return done.code == 0

        await until(taken_over, described="the dead runner's lease has ended")
    await scene.check_rows(120, clips.LARGE_SIZE)
    await scene.ledger.check_invariants(scene.scenario_id)
    assert [row["outcome"] for row in await scene.ledger.attempts(scene.scenario_id)] == ["lost", "completed"]
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert (record["reporter"], record["body"]["error"]["code"]) == ("takeover", "lease_expired")
    assert await read_topic(scene.servers.brokers, scene.topic) == [], "its successor is running already"


async def test_a_runner_that_was_frozen_past_its_lease_writes_nothing_more(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip, database={"lease_seconds": 1.0}) as zombie:
        os.kill(zombie.running.pid, signal.SIGSTOP)

        async def expired() -> bool:
            (row,) = await scene.ledger.query(
                "SELECT lease_until < clock_timestamp() AS expired FROM scenarios WHERE id = $1", scene.scenario_id
            )
            return bool(row["expired"])

        await until(expired, described="the frozen runner's lease has ended")
        (row,) = await scene.ledger.query(
            "SELECT count(*) AS connections, count(xact_start) AS transactions,"
            " (SELECT count(*) FROM pg_locks l WHERE l.pid = ANY (array_agg(a.pid))) AS locks"
            " FROM pg_stat_activity a WHERE application_name = $1",
            f"trio-runner runner_under_test scenario {scene.scenario_id}",
        )
        assert dict(row) == {"connections": 1, "transactions": 0, "locks": 0}
        async with open_fake(held=lambda number: number >= 60) as fake, open_service_manager() as manager:
            config = scene.write_config("second.toml", video={"path": str(big_clip)}, inference={"url": fake.url})
            async with scene.cli.started("run", config, variables=manager.variables) as successor:
                await manager.wait_for("READY=1")
                zombie.fake.gate.set()
                os.kill(zombie.running.pid, signal.SIGCONT)
                frozen = await zombie.running.wait()
                fake.gate.set()
                done = await successor.wait()
    assert frozen.code == 79, frozen.err
    assert "superseded" in frozen.out
    assert done.code == 0, done.err
    await scene.check_rows(120, clips.LARGE_SIZE)
    await scene.ledger.check_invariants(scene.scenario_id)
    assert await read_topic(scene.servers.brokers, scene.topic) == [], "a superseded runner owes no event"


@pytest.mark.kafka
async def test_attempts_without_progress_are_counted_and_end(scene: Scene, clip: Path) -> None:
    async with open_fake(plan=at_frame(0, Fault.STATUS_500)) as fake:
        config = scene.write_config(
            video={"path": str(clip)}, inference={"url": fake.url}, scenario={"max_failures": 2}
        )
        codes = [(await scene.run_to_the_end(config)).code for _ in range(3)]
    assert codes == [75, 75, 79]
    scenario = await scene.ledger.existing(scene.scenario_id)
    assert (scenario["status"], scenario["outcome"], scenario["failures"]) == ("inactive", "failed", 2)
    events = await read_topic(scene.servers.brokers, scene.topic)
    assert sorted(event.body["epoch"] for event in events) == [1, 2]
    assert len({event.headers["ce_id"] for event in events}) == 2


async def test_the_password_lies_nowhere_in_reach(scene: Scene, big_clip: Path) -> None:
    if not scene.servers.password:
        pytest.skip("this database asks for no password")
    async with held_run(scene, big_clip, executed=True, log={"level": "debug"}) as held:
        family = held.running.family()
        assert len(family) == 2, "the runner and its decoder"
        for process in family:
            scene.check_secrets(*process.cmdline(), *process.environ().values())
        held.running.send_signal(signal.SIGTERM)
        held.fake.gate.set()
        done = await held.running.wait()
    scene.check_secrets(done.out, done.err)


async def test_a_death_is_printed_on_stdout_too(scene: Scene, clip: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = await scene.run_to_the_end(scene.write_config(video={"path": str(clip)}, inference={"url": url}))
    assert f"scenario {scene.scenario_id} failed" in done.out
    assert "inference_unreachable" in done.out
    assert f"retry event: published, topic {scene.topic}" in done.out


async def test_a_closed_stderr_is_no_reason_to_die(scene: Scene, clip: Path) -> None:
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url}, log={"level": "debug"})
        program = ["sh", "-c", 'exec "$0" "$@" 2>&-', *command()]
        async with scene.cli.started("run", config, program=program) as running:
            assert (await running.wait()).code == 0
    await scene.check_rows(60)

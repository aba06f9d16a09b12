"""Every error code of the list is reached on the real process: here, or by the test that is named here."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path

import pytest

from tests.support import clips
from tests.support.fake_inference import open_fake
from tests.support.harness import new_database
from tests.support.scene import SMALL_WINDOW, Scene, held_run, locked
from trio_runner.errors import ErrorCode

REACHED_BY = {
    "config_invalid": "test_cli.test_a_bad_config_is_refused_with_key_line_and_remedy",
    "credential_unreadable": "test_codes.test_a_token_file_that_is_not_there",
    "spool_unusable": "test_spooled_events.test_a_runner_that_could_keep_no_event_does_not_start",
    "claim_refused": "test_run.test_a_service_that_rejects_what_it_is_asked_is_not_asked_again",
    "lease_expired": "test_run.test_killed_it_leaves_no_child_and_the_next_one_takes_over",
    "superseded": "test_run.test_a_runner_that_was_frozen_past_its_lease_writes_nothing_more",
    "video_missing": "test_run.test_a_video_that_is_no_good",
    "video_refused": "test_run.test_a_video_that_is_no_good",
    "video_unreadable": "test_run.test_a_video_that_is_no_good",
    "video_no_frames": "test_run.test_a_video_that_is_no_good",
    "video_truncated": "test_run.test_a_video_that_is_no_good",
    "video_changed": "test_reporting.test_another_video_under_the_same_name_is_refused",
    "sampling_changed": "test_reporting.test_another_sampling_is_refused",
    "decoder_failed": "test_decoder_deaths",
    "decoder_killed": "test_run.test_a_decoder_that_is_killed",
    "decoder_stalled": "test_run.test_a_decoder_that_stands_still",
    "storage_unreachable": "test_remote_video.test_a_storage_that_is_not_there",
    "storage_tls": "test_remote_video.test_a_storage_that_is_not_trusted",
    "storage_timeout": "test_remote_video.test_a_storage_that_fails_and_is_well_again",
    "storage_unavailable": "test_remote_video.test_a_storage_that_fails_and_is_well_again",
    "storage_denied": "test_remote_video.test_a_storage_that_fails_and_is_well_again",
    "storage_missing": "test_remote_video.test_a_storage_that_fails_and_is_well_again",
    "storage_bad_answer": "test_remote_video.test_a_storage_that_fails_and_is_well_again",
    "cache_unusable": "test_remote_video.test_a_cache_that_cannot_be_written",
    "fetcher_failed": "test_remote_video.test_a_fetcher_that_is_killed",
    "inference_unreachable": "test_run.test_a_service_that_is_not_there",
    "inference_tls": "test_tls_run.test_a_run_dies_of_a_service_that_it_does_not_trust",
    "inference_timeout": "test_run.test_a_service_that_fails_at_frame_20_and_is_well_again",
    "inference_unavailable": "test_run.test_a_service_that_fails_at_frame_20_and_is_well_again",
    "inference_rejected": "test_run.test_a_service_that_rejects_what_it_is_asked_is_not_asked_again",
    "inference_bad_answer": "test_run.test_a_service_that_fails_at_frame_20_and_is_well_again",
    "store_unreachable": "test_run.test_a_database_that_is_not_there",
    "store_tls": "test_tls_run.test_a_run_dies_of_a_database_that_it_does_not_trust",
    "store_auth": "test_run.test_a_database_that_refuses_the_password",
    "store_lost": "test_run.test_a_database_connection_that_is_cut",
    "store_timeout": "test_codes.test_a_table_that_somebody_has_locked",
    "store_rejected": "test_codes.test_a_row_that_is_there_already",
    "store_schema": "test_codes.test_a_database_without_the_schema",
    "kafka_unreachable": "test_run.test_a_broker_that_is_not_there",
    "kafka_tls": "test_secure_run.test_a_broker_that_refuses_the_event_is_named_and_the_event_waits",
    "kafka_auth": "test_secure_run.test_a_broker_that_refuses_the_event_is_named_and_the_event_waits",
    "kafka_topic": "test_secure_run.test_a_broker_that_refuses_the_event_is_named_and_the_event_waits",
    "stalled": "test_codes.test_a_pipeline_that_stands_still_although_no_deadline_passes",
    "runner_killed": "test_reporting.test_a_killed_runner_is_reported_once_and_the_next_one_goes_on",
    "runner_out_of_memory": "test_reporting.test_a_killed_runner_is_reported_once_and_the_next_one_goes_on",
    "runner_hung": "test_reporting.test_a_killed_runner_is_reported_once_and_the_next_one_goes_on",
    "interrupted": "test_run.test_on_a_signal_it_finishes_the_frames_under_way",
    "internal": "test_codes.test_a_bug_has_a_name_too_and_its_stack",
}


@pytest.mark.parametrize("code", ErrorCode)
def test_every_code_is_reached_by_a_test_on_the_real_process(code: ErrorCode) -> None:
    module, _, function = REACHED_BY[code].partition(".")
    (path,) = Path(__file__).parents[1].rglob(f"{module}.py")
    tests = importlib.import_module(f"tests.{path.parent.name}.{module}")
    source = inspect.getsource(getattr(tests, function) if function else tests)
    marks = [str(mark) for mark in getattr(getattr(tests, function, None), "pytestmark", ())]
    assert f'"{code}"' in source or any(f"'{code}'" in mark for mark in marks), f"{REACHED_BY[code]} does not name it"


async def test_a_token_file_that_is_not_there(scene: Scene, clip: Path) -> None:
    async with open_fake() as fake:
        config = scene.write_config(
            video={"path": str(clip)},
            inference={"url": fake.url, "token_file": "no-such-file", "allow_plaintext_token": True},
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 75, done.err
    assert fake.numbers == []
    await scene.check_death(done, "credential_unreadable", named="inference.token_file")
    await scene.check_resume(frames=60, video={"path": str(clip)})


async def test_a_table_that_somebody_has_locked(scene: Scene, big_clip: Path) -> None:
    async with held_run(scene, big_clip, database={"command_timeout_seconds": 3.0}) as held:
        async with locked(scene, "LOCK TABLE predictions IN ACCESS EXCLUSIVE MODE"):
            held.fake.gate.set()
            done = await held.running.wait()
        assert held.running.family() == []
    assert done.code == 75, done.err
    await scene.check_death(done, "store_timeout", named="PostgreSQL")
    await scene.check_resume(frames=120, size=clips.LARGE_SIZE, video={"path": str(big_clip)})


async def test_a_row_that_is_there_already(scene: Scene, clip: Path) -> None:
    """Nobody but a runner may write predictions; if somebody did, nothing is mixed up with it."""
    await scene.ledger.query("INSERT INTO scenarios (id, video_path) VALUES ($1, $2)", scene.scenario_id, str(clip))
    await scene.ledger.query(
        "INSERT INTO predictions (scenario_id, frame_index, epoch, pts_seconds, width, height, detections,"
        " inference_ms) VALUES ($1, 20, 1, 0, 2, 2, '[]', 0)",
        scene.scenario_id,
    )
    async with open_fake() as fake:
        done = await scene.run_to_the_end(scene.write_config(video={"path": str(clip)}, inference={"url": fake.url}))
    assert done.code == 75, done.err
    await scene.ledger.query("DELETE FROM predictions WHERE scenario_id = $1 AND frame_index = 20", scene.scenario_id)
    await scene.check_death(done, "store_rejected", named="23505")
    await scene.check_resume(frames=60, video={"path": str(clip)})


async def test_a_database_without_the_schema(scene: Scene, clip: Path) -> None:
    async with new_database(scene.servers, f"empty_{scene.scenario_id}") as empty:
        database = {"url": empty.database_url, "create_schema": False}
        async with open_fake() as fake:
            config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url}, database=database)
            done = await scene.run_to_the_end(config)
        assert done.code == 75, done.err
        assert fake.numbers == []
        event = await scene.the_event()
        assert (event.body["error"]["code"], event.body["epoch"]) == ("store_schema", 0), "there is no ledger to ask"
        assert "trio-runner init-db" in event.body["error"]["message"]

        assert (await scene.cli("init-db", config)).code == 0
        async with open_fake() as fake:
            well = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url}, database=database)
            assert (await scene.run_to_the_end(well)).code == 0


async def test_a_pipeline_that_stands_still_although_no_deadline_passes(scene: Scene, big_clip: Path) -> None:
    """No way is known to get there, so patience is shortened below the deadlines of the steps."""
    impatient = (
        "from trio_runner.pipeline import run as pipeline\n"
        "pipeline.stalled_seconds = lambda config: 1.0\n"
        "pipeline.STALLED_GRACE_SECONDS = 0.1"
    )
    async with open_fake(held=lambda number: number >= 5) as fake:
        config = scene.write_config(
            "runner.toml",
            video={"path": str(big_clip)},
            inference={"url": fake.url, "timeout_seconds": 60.0},
            **SMALL_WINDOW,
        )
        # On a busy machine it may lose its patience before the first frame is stored.
        async with scene.cli.started("run", config, patch=impatient) as running:
            done = await running.wait()
            assert running.family() == []
    assert done.code == 75, done.err
    await scene.check_death(done, "stalled", named="no frame was read or stored for 1 s")
    await scene.check_resume(frames=120, size=clips.LARGE_SIZE, video={"path": str(big_clip)})


async def test_a_bug_has_a_name_too_and_its_stack(scene: Scene, clip: Path) -> None:
    buggy = (
        "from trio_runner.inference.protocols import predict\n"
        "def parse_json(body):\n    secret = 'c4n4ry'\n    return 1 / 0\n"
        "predict.parse_json = parse_json"
    )
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url})
        async with scene.cli.started("run", config, patch=buggy) as running:
            done = await running.wait()
            assert running.family() == []
    assert done.code == 75, done.err
    body = await scene.check_death(done, "internal", named="division by zero")
    assert body["error"]["type"] == "ZeroDivisionError"
    assert body["error"]["stack"][-1].endswith(":parse_json")
    assert "c4n4ry" not in done.err + str(body), "a stack says where, and never a value"
    await scene.check_resume(frames=60, video={"path": str(clip)})

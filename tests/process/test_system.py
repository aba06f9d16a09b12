"""The whole system where all goes well: real servers, the real process, and what is stored held against the video."""

from __future__ import annotations

import json
import math
import os
import shutil
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.support import clips
from tests.support.fake_inference import open_fake, random_delays, stored_for
from tests.support.harness import (
    REPOSITORY,
    Cli,
    Ledger,
    Servers,
    WriteConfig,
    from_toml,
    open_service_manager,
    read_topic,
    until,
)

FPS = 25


def about(detections: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Detections to compare with, boxes to a fiftieth of a pixel: scaling rounds to hundredths."""
    return [found | {"bbox": pytest.approx(found["bbox"], abs=0.02)} for found in detections]


def assert_rows(
    rows: list[dict[str, Any]], frames: list[int], *, size: tuple[int, int] = (320, 240), fps: int = FPS
) -> None:
    """Exactly these frames, each once, in order, on the time grid, and each with the answer to its own picture."""
    assert [row["frame_index"] for row in rows] == frames
    assert [row["pts_seconds"] for row in rows] == pytest.approx([frame / fps for frame in frames], abs=1e-6)
    for row in rows:
        assert row["detections"] == about(stored_for(row["frame_index"], *size))
        assert row["inference_ms"] > 0


@pytest.mark.slow
async def test_the_shipped_config_from_nothing_to_predictions(cli: Cli, tmp_path: Path) -> None:
    shutil.copy(REPOSITORY / "runner.toml", tmp_path)
    (tmp_path / "test_videos").mkdir()
    shutil.copy(REPOSITORY / "test_videos" / "test_video.mp4", tmp_path / "test_videos")
    table = tomllib.loads((REPOSITORY / "test_videos" / "test_video.toml").read_text())

    first = await cli("run", "runner.toml")
    assert first.code == 0, first.err
    assert "scenario 1 completed" in first.out
    assert f"{table['file']['frames']} frames" in first.out
    again = await cli("run", "runner.toml")
    assert again.code == 0, again.err
    assert "nothing is left to do" in again.out

    # The servers were hosted by runs that are over: what is read now was kept on disk.
    async with cli.started("embedded", "runner.toml") as host:

        async def addresses() -> str:
            return host.out() if "# until Ctrl-C" in host.out() else ""

        live = from_toml(await until(addresses, described="addresses"))
        database = live["database"]
        ledger = Ledger(
            Servers(
                database_url=database["url"],
                password_file=Path(database["password_file"]),
                brokers=live["kafka"]["brokers"],
                inference_url=live["inference"]["url"],
            )
        )
        scenario = await ledger.existing(1)
        rows = await ledger.predictions(1)
        attempts = await ledger.attempts(1)
        await ledger.check_invariants(1)

    frames = table["file"]["frames"]
    assert (scenario["status"], scenario["outcome"], scenario["epoch"]) == ("active", "completed", 1)
    assert (scenario["frames_stored"], scenario["total_frames"], scenario["next_frame"]) == (frames, frames, frames)
    assert [(attempt["epoch"], attempt["outcome"]) for attempt in attempts] == [(1, "completed")]
    assert [row["frame_index"] for row in rows] == list(range(frames))
    assert [row["pts_seconds"] for row in rows] == pytest.approx([i / table["file"]["fps"] for i in range(frames)])
    for shot in table["shot"]:
        in_shot = rows[shot["first_frame"] : shot["last_frame"] + 1]
        labels = [{found["label"] for found in row["detections"]} for row in in_shot]
        if not shot["expect"]:
            assert labels == [set()] * len(in_shot), shot["title"]
        for label in shot["expect"]:
            assert sum(label in seen for seen in labels) >= 0.95 * len(in_shot), (shot["title"], label)


@pytest.mark.slow
async def test_people_in_a_street(cli: Cli, write_config: WriteConfig, ledger: Ledger, scenario_id: int) -> None:
    path = os.environ.get("TRIO_RUNNER_TEST_VTEST")
    if not path:
        pytest.skip("set TRIO_RUNNER_TEST_VTEST to the path of vtest.avi, OpenCV's clip of a street")
    done = await cli("run", write_config(), "--video", path, cwd=Path.cwd())
    assert done.code == 0, done.err
    rows = await ledger.predictions(scenario_id)
    assert [row["frame_index"] for row in rows] == list(range(795))
    with_person = [row for row in rows if any(found["label"] == "person" for found in row["detections"])]
    assert len(with_person) >= 0.95 * len(rows)


async def test_answers_that_overtake_each_other_end_up_with_their_frames(
    cli: Cli, write_config: WriteConfig, clip: Path, ledger: Ledger, scenario_id: int, topic: str, servers: Servers
) -> None:
    async with open_fake(delay=random_delays(seed=7, longest_seconds=0.05)) as fake:
        config = write_config(video={"path": str(clip)}, inference={"url": fake.url, "in_flight": 8})
        done = await cli("run", config)
    assert done.code == 0, done.err
    assert fake.answered != sorted(fake.answered), "the service was to answer out of order"
    assert sorted(fake.numbers) == list(range(60)), "each frame is asked about once"
    assert 1 < fake.most_under_way <= 8
    assert_rows(await ledger.predictions(scenario_id), list(range(60)))
    await ledger.check_invariants(scenario_id)
    scenario = await ledger.existing(scenario_id)
    assert (scenario["status"], scenario["outcome"], scenario["epoch"]) == ("active", "completed", 1)
    assert (scenario["failures"], scenario["last_error"]) == (0, None)
    assert await read_topic(servers.brokers, topic) == []


async def test_a_completed_scenario_is_not_touched_again(
    cli: Cli, write_config: WriteConfig, clip: Path, ledger: Ledger, scenario_id: int, topic: str, servers: Servers
) -> None:
    async with open_fake() as fake:
        config = write_config(video={"path": str(clip)}, inference={"url": fake.url})
        assert (await cli("run", config)).code == 0
        before = await ledger.existing(scenario_id), await ledger.predictions(scenario_id)
        again = await cli("run", config)
    assert again.code == 0, again.err
    assert f"scenario {scenario_id} is completed: 60 frames stored" in again.out
    assert len(fake.numbers) == 60, "nothing was asked again"
    assert (await ledger.existing(scenario_id), await ledger.predictions(scenario_id)) == before
    assert len(await ledger.attempts(scenario_id)) == 1
    assert await read_topic(servers.brokers, topic) == []


async def test_the_first_stored_prediction_makes_the_scenario_active(
    cli: Cli, write_config: WriteConfig, clip: Path, ledger: Ledger, scenario_id: int
) -> None:
    async def status_is(status: str) -> bool:
        row = await ledger.scenario(scenario_id)
        return row is not None and row["status"] == status

    async with open_fake(held=lambda _: True) as fake, open_service_manager() as manager:
        config = write_config(
            video={"path": str(clip)},
            inference={"url": fake.url, "timeout_seconds": 60.0},
            scenario={"on_complete": "inactive"},
        )
        async with cli.started("run", config, variables=manager.variables) as running:
            await manager.wait_for("READY=1")
            await until(lambda: status_is("in_startup_processing"), described="in_startup_processing")
            assert await ledger.predictions(scenario_id) == []
            fake.held = lambda number: number >= 30
            fake.gate.set()
            fake.gate = trio.Event()
            await until(lambda: status_is("active"), described="active")
            under_way = await ledger.existing(scenario_id)
            assert under_way["instance_id"] is not None
            assert under_way["outcome"] is None
            fake.gate.set()
            done = await running.wait()
        await manager.wait_for("STOPPING=1")
    assert done.code == 0, done.err
    scenario = await ledger.existing(scenario_id)
    assert (scenario["status"], scenario["outcome"]) == ("inactive", "completed")


async def test_boxes_in_downscaled_pictures_are_stored_in_source_pixels(
    cli: Cli, write_config: WriteConfig, clip: Path, ledger: Ledger, scenario_id: int
) -> None:
    async with open_fake() as fake:
        config = write_config(video={"path": str(clip), "max_width": 100}, inference={"url": fake.url})
        done = await cli("run", config)
    assert done.code == 0, done.err
    assert set(fake.sizes) == {(100, 75)}
    assert_rows(await ledger.predictions(scenario_id), list(range(60)))


@pytest.mark.parametrize(
    ("sampling", "frames"),
    [
        # On the grid of 0.1 s: the first frame at or after each tenth.
        ({"max_fps": 10.0}, [math.ceil(tenth * 2.5) for tenth in range(24)]),
        ({"start_seconds": 1.0, "stride": 10, "max_frames": 3}, [25, 35, 45]),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else "",
)
async def test_the_selected_frames_and_no_others(
    cli: Cli,
    write_config: WriteConfig,
    clip: Path,
    ledger: Ledger,
    scenario_id: int,
    sampling: dict[str, float],
    frames: list[int],
) -> None:
    async with open_fake() as fake:
        config = write_config(video={"path": str(clip)} | sampling, inference={"url": fake.url})
        done = await cli("run", config)
    assert done.code == 0, done.err
    assert sorted(fake.numbers) == frames
    assert_rows(await ledger.predictions(scenario_id), frames)
    scenario = await ledger.existing(scenario_id)
    assert (scenario["outcome"], scenario["total_frames"]) == ("completed", len(frames))


async def test_of_two_runners_on_one_scenario_one_works(
    cli: Cli, write_config: WriteConfig, clip: Path, ledger: Ledger, scenario_id: int, topic: str, servers: Servers
) -> None:
    async with open_fake(held=lambda _: True) as fake, open_service_manager() as manager:
        config = write_config(video={"path": str(clip)}, inference={"url": fake.url, "timeout_seconds": 60.0})
        async with cli.started("run", config, variables=manager.variables) as first:
            await manager.wait_for("READY=1")
            owner = (await ledger.existing(scenario_id))["instance_id"]
            second = await cli("run", config)
            assert second.code == 79
            assert "being processed by another runner" in second.out + second.err
            assert (await ledger.existing(scenario_id))["instance_id"] == owner
            fake.gate.set()
            done = await first.wait()
    assert done.code == 0, done.err
    assert_rows(await ledger.predictions(scenario_id), list(range(60)))
    assert [attempt["outcome"] for attempt in await ledger.attempts(scenario_id)] == ["completed"]
    assert await read_topic(servers.brokers, topic) == []


async def test_two_runners_that_start_together(
    cli: Cli, write_config: WriteConfig, clip: Path, ledger: Ledger, scenario_id: int
) -> None:
    codes: list[int] = []

    async def run(config: Path) -> None:
        codes.append((await cli("run", config)).code)

    async with open_fake(delay=lambda _: 0.1) as fake:
        config = write_config(video={"path": str(clip)}, inference={"url": fake.url})
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, config)
            nursery.start_soon(run, config)
    # The later one is refused; or, on a machine that starts it a whole run late, finds the work done.
    assert sorted(codes) in ([0, 79], [0, 0])
    assert sorted(fake.numbers) == list(range(60))
    assert len(await ledger.attempts(scenario_id)) == 1
    assert_rows(await ledger.predictions(scenario_id), list(range(60)))


async def test_scenarios_beside_each_other(
    cli: Cli, write_config: WriteConfig, clip: Path, ledger: Ledger, new_scenario_id: Callable[[], int]
) -> None:
    ids = [new_scenario_id(), new_scenario_id()]

    async def run(config: Path) -> None:
        done = await cli("run", config)
        assert done.code == 0, done.err

    async with open_fake(delay=random_delays(seed=1, longest_seconds=0.02)) as fake, trio.open_nursery() as nursery:
        for number in ids:
            config = write_config(
                f"{number}.toml", scenario={"id": number}, video={"path": str(clip)}, inference={"url": fake.url}
            )
            nursery.start_soon(run, config)
    for number in ids:
        assert_rows(await ledger.predictions(number), list(range(60)))
        assert (await ledger.existing(number))["outcome"] == "completed"


async def test_one_slow_answer_stops_the_reading_at_the_window(
    cli: Cli, write_config: WriteConfig, big_clip: Path, ledger: Ledger, scenario_id: int
) -> None:
    async with open_fake(held=lambda number: number == 0) as fake:
        config = write_config(
            video={"path": str(big_clip)},
            inference={"url": fake.url, "in_flight": 4},
            pipeline={"max_buffered_frames": 12},
            database={"batch_frames": 4},
        )
        async with cli.started("run", config) as running:

            async def window_is_full() -> bool:
                return len(fake.answered) >= 11

            await until(window_is_full, described="frames 1 to 11 answered")
            # Time for what must not happen: a twelfth frame beside the one that is held.
            await trio.sleep(0.5)
            assert sorted(fake.numbers) == list(range(12))
            fake.gate.set()
            done = await running.wait()
    assert done.code == 0, done.err
    assert_rows(await ledger.predictions(scenario_id), list(range(120)), size=clips.LARGE_SIZE)


async def test_a_slow_service_is_not_sent_more_bytes_than_allowed(
    cli: Cli, write_config: WriteConfig, big_clip: Path, ledger: Ledger, scenario_id: int
) -> None:
    async with open_fake(delay=lambda _: 0.02) as fake:
        config = write_config(
            video={"path": str(big_clip)},
            inference={"url": fake.url, "in_flight": 16},
            pipeline={"max_buffered_bytes": 2**16},
        )
        done = await cli("run", config)
    assert done.code == 0, done.err
    assert 2**15 < fake.most_bytes_under_way <= 2**16
    assert_rows(await ledger.predictions(scenario_id), list(range(120)), size=clips.LARGE_SIZE)


@pytest.mark.parametrize("name", ["vfr.mkv", "rotated_90.mp4"])
async def test_containers_and_codecs(
    cli: Cli, write_config: WriteConfig, ledger: Ledger, scenario_id: int, tmp_path: Path, name: str
) -> None:
    path = clips.INTACT[name](tmp_path / name)
    async with open_fake() as fake:
        done = await cli("run", write_config(video={"path": str(path)}, inference={"url": fake.url}))
    assert done.code == 0, done.err
    rows = await ledger.predictions(scenario_id)
    frames = list(range(31 if name == "vfr.mkv" else 60))
    assert [row["frame_index"] for row in rows] == frames
    assert [row["detections"][0]["label"] for row in rows] == [f"frame-{number}" for number in frames]
    expected = [ms / 1000 for ms in clips.IRREGULAR_MS] if name == "vfr.mkv" else [frame / FPS for frame in frames]
    assert [row["pts_seconds"] for row in rows] == pytest.approx(expected, abs=0.0011)


async def test_what_the_runner_records_can_be_read_back_by_sql(
    cli: Cli, write_config: WriteConfig, clip: Path, ledger: Ledger, scenario_id: int
) -> None:
    async with open_fake() as fake:
        assert (await cli("run", write_config(video={"path": str(clip)}, inference={"url": fake.url}))).code == 0
        shown = await cli("show", write_config(), str(scenario_id), "--json")
    rows = await ledger.query(
        "SELECT * FROM detections WHERE scenario_id = $1 AND label = 'frame-9' AND x1 > 0", scenario_id
    )
    (expected,) = stored_for(9, 320, 240)
    assert len(rows) == 1
    assert [rows[0][side] for side in ("x1", "y1", "x2", "y2")] == expected["bbox"]
    assert rows[0]["confidence"] == expected["confidence"]
    assert json.loads(shown.out)["frames_stored"] == 60

"""What becomes of an orchestrator's children where two things happen at once; whole fleets are tested elsewhere."""

from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest
import trio
from harness import free_port

from trio_runner import aio
from trio_runner.backlog import Work
from trio_runner.config import Config
from trio_runner.orchestrator import process
from trio_runner.orchestrator.process import ProcessSpawner, open_processes
from trio_runner.orchestrator.runner_config import load_template
from trio_runner.orchestrator.spawning import Ended

WORK = Work(scenario_id=7, epoch=1, video_path="/srv/videos/7.mp4", settings={})


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """With peers that refuse every connection at once."""
    return Config().replace(
        runner={"data_dir": str(tmp_path)},
        inference={"url": f"http://127.0.0.1:{free_port()}"},
        database={"url": f"postgresql://u@127.0.0.1:{free_port()}/d"},
        kafka={"brokers": f"127.0.0.1:{free_port()}"},
    )


async def test_of_a_runner_that_ends_with_its_orchestrator_is_told_to_the_end(config: Config) -> None:
    told: list[Ended] = []

    async def on_ended(ended: Ended) -> None:
        # As long as a ledger may take.
        await trio.sleep(0.2)
        told.append(ended)

    async with aio.open_loop(), open_processes(config, load_template(config), "here", on_ended) as spawner:
        await spawner.start(WORK)
    assert [(ended.scenario_id, ended.epoch) for ended in told] == [(7, 1)]


async def test_what_is_being_started_is_not_taken_for_what_was_left_behind(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, go_on = trio.Event(), threading.Event()
    write_config = process._write_config
    configs: list[str] = []

    def write_and_wait(config: Config, place: Path) -> Path:
        path = write_config(config, place)
        trio.from_thread.run_sync(written.set)
        go_on.wait(60)
        return path

    def popen(_: ProcessSpawner, path: Path, *_more: object) -> subprocess.Popen[bytes]:
        configs.append(path.read_text())
        return subprocess.Popen(["true"])

    async def on_ended(_: Ended) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(process, "_write_config", write_and_wait)
    monkeypatch.setattr(process, "FILE_SECONDS", 60.0)
    monkeypatch.setattr(ProcessSpawner, "_popen", popen)
    async with aio.open_loop(), trio.open_nursery() as nursery:
        spawner = ProcessSpawner(tmp_path, load_template(config), "here", nursery, on_ended)
        nursery.start_soon(spawner.start, WORK)
        await written.wait()
        await spawner.report_left_behind()
        go_on.set()
    assert "id = 7" in configs[0]

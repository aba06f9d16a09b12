"""An embedded server that dies while it hosts a run: its client reports the error, and the others take the report."""

from __future__ import annotations

import json
from pathlib import Path

import psutil
import pytest
import trio

from tests.support import clips
from tests.support.harness import PATIENCE_SECONDS, Cli, as_toml, command, open_service_manager
from trio_runner import Runner, load_config

WHOLE_VIDEO = 200


@pytest.mark.parametrize(
    ("victim", "exit_code", "codes"),
    [
        ("trio_runner.embedded.inference", 75, {"inference_unavailable", "inference_unreachable"}),
        # The ledger itself died, so only the event has the code.
        ("postgres", 75, set()),
        # Nobody needed it: the run completes.
        ("trio_runner.embedded.broker", 0, set()),
    ],
)
async def test_a_server_that_is_killed_during_a_run(
    tmp_path: Path, cli: Cli, victim: str, exit_code: int, codes: set[str]
) -> None:
    video = clips.pixel_coded(tmp_path / "clip.mp4", frames=WHOLE_VIDEO, size=(640, 360))
    config = tmp_path / "runner.toml"
    config.write_text(as_toml({"runner": {"data_dir": "data"}, "video": {"path": str(video)}}))
    async with open_service_manager() as manager, cli.started("run", config, variables=manager.variables) as running:
        await manager.wait_for("READY=1")
        (target,) = (
            child
            for child in psutil.Process(running.pid).children()
            if any(word == victim or word.endswith(f"/{victim}") for word in child.cmdline())
        )
        target.kill()
        done = await running.wait()
        assert done.code == exit_code, done.err
        assert "was killed by signal KILL" in done.err
        # They lead sessions of their own.
        left = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
        assert not [words for words in left if str(tmp_path) in " ".join(words)]
    shown = json.loads((await cli("show", config, "1", "--json")).out)
    if exit_code == 0:
        assert (shown["outcome"], shown["frames_stored"]) == ("completed", WHOLE_VIDEO)
    elif codes:
        assert (shown["status"], shown["instance_id"]) == ("init_startup", None)
        assert shown["last_error"]["code"] in codes, (shown["last_error"], done.err)
    else:
        assert "retry event: published" in done.out


async def test_a_caller_that_cancels_leaves_a_record(tmp_path: Path, cli: Cli) -> None:
    """The embedded servers outlast the cancellation that the report is about."""
    video = clips.pixel_coded(tmp_path / "clip.mp4", frames=WHOLE_VIDEO, size=(640, 360))
    config = tmp_path / "runner.toml"
    config.write_text(as_toml({"runner": {"data_dir": "data"}, "video": {"path": str(video)}}))
    runner = Runner.from_config(load_config(config))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(runner.process_scenario, 1)
        with trio.fail_after(PATIENCE_SECONDS):
            await runner.claimed.wait()
        nursery.cancel_scope.cancel()
    shown = json.loads((await cli("show", config, "1", "--json")).out)
    assert (shown["status"], shown["instance_id"]) == ("init_startup", None)
    assert (shown["last_error"]["code"], shown["failures"]) == ("interrupted", 0)


async def test_a_reader_of_stdout_that_goes_away_is_no_reason_to_die(tmp_path: Path, cli: Cli) -> None:
    video = clips.pixel_coded(tmp_path / "clip.mp4", frames=30, size=(640, 360))
    config = tmp_path / "runner.toml"
    config.write_text(as_toml({"runner": {"data_dir": "data"}, "video": {"path": str(video)}}))
    program = ["bash", "-c", 'set -o pipefail; "$0" "$@" | true', *command()]
    async with cli.started("run", config, program=program) as running:
        assert (await running.wait()).code == 0

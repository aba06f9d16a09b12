"""Each log line names its runner, so eight runners in one journal can be distinguished line by line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.support.fake_inference import Fault, at_frame, open_fake
from tests.support.harness import Finished, free_port
from tests.support.scene import Scene

INVOCATION = "0123456789abcdef0123456789abcdef"


def named(done: Finished, scene: Scene) -> list[dict[str, Any]]:
    """The log lines, each of which names the scenario and the runner."""
    lines = done.log()
    assert lines, done.err
    for line in lines:
        assert (line.get("scenario_id"), line.get("runner_id")) == (scene.scenario_id, "runner_under_test"), line
    return lines


async def test_every_line_of_a_run_names_scenario_and_runner_and_the_epoch_once_claimed(
    scene: Scene, clip: Path
) -> None:
    async with open_fake(plan=at_frame(20, Fault.STATUS_500)) as fake:
        for epoch in (1, 2):
            config = scene.write_config(
                video={"path": str(clip)}, inference={"url": fake.url}, log={"level": "debug", "format": "json"}
            )
            done = await scene.run_to_the_end(config)
            lines = named(done, scene)
            (died,) = (line for line in lines if "500" in line["event"] and line["level"] == "error")
            (published,) = (line for line in lines if line["event"].endswith("is acknowledged"))
            assert (died["epoch"], published["epoch"]) == (epoch, epoch)
            claimed = next(number for number, line in enumerate(lines) if "epoch" in line)
            assert all(line["epoch"] == epoch for line in lines[claimed:] if "epoch" in line)
            at = lines.index(died)
            assert all("epoch" in line for line in lines[at:])


async def test_every_line_of_report_death_does_so_too(scene: Scene, clip: Path) -> None:
    scene.write_config(
        "runner.toml",
        video={"path": str(clip)},
        kafka={"brokers": f"127.0.0.1:{free_port()}"},
        log={"level": "debug", "format": "json"},
    )
    variables = {"SERVICE_RESULT": "signal", "EXIT_CODE": "killed", "EXIT_STATUS": "KILL", "INVOCATION_ID": INVOCATION}
    async with scene.cli.started("report-death", scene.directory / "runner.toml", variables=variables) as running:
        done = await running.wait()
    assert done.code == 74, done.err
    lines = named(done, scene)
    (unconfirmed,) = (line for line in lines if line["event"].startswith("the retry event is not confirmed"))
    assert unconfirmed["epoch"] == 1

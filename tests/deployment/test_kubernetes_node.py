"""Runners in pods that a kubelet starts, from an image of this tree, with the session's servers."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import cluster as cluster_of_tests
from tests.support.cluster import PASSWORD_FILE, Cluster, open_pods
from tests.support.fake_inference import Fake, open_fake
from tests.support.harness import PATIENCE_SECONDS, until
from tests.support.scene import SMALL_WINDOW, Scene
from trio_runner.config.load import Config
from trio_runner.database.backlog import Work
from trio_runner.errors import ErrorCode
from trio_runner.orchestrator.spawners.kubernetes import open_kubernetes
from trio_runner.orchestrator.spawners.kubernetes_job import job_name
from trio_runner.orchestrator.spawners.spawner import Ended, Spawner

WHY_NOT = cluster_of_tests.why_not() or (
    ""
    if os.environ.get(cluster_of_tests.NODE)
    else "the cluster has no node: tests/deployment/kubernetes.sh start DIRECTORY --node"
)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(WHY_NOT), reason=WHY_NOT)]

CLIP = "a $(CREDENTIALS_DIRECTORY) $$.mp4"
"""A name in which Kubernetes would see a variable."""


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with open_pods() as opened:
        yield opened


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    """A service that holds back the answers from frame 5 on until its gate is opened."""
    async with open_fake(held=lambda number: number >= 5) as opened:
        yield opened


class Recorder:
    def __init__(self) -> None:
        self.ends: list[Ended] = []

    async def __call__(self, ended: Ended) -> None:
        self.ends.append(ended)

    async def first(self, seconds: float = PATIENCE_SECONDS) -> Ended:
        async def recorded() -> list[Ended]:
            return self.ends

        return (await until(recorded, described="on_ended is called", seconds=seconds))[0]


Sections = dict[str, dict[str, Any]]


@pytest.fixture
async def fleet(cluster: Cluster, scene: Scene, clip: Path, fake: Fake) -> AsyncIterator[Sections]:
    """ConfigMap and Secret are made, the scenario is submitted; the sections of an orchestrator's config.

    At the end the scenario is stopped, so that the orchestrator of the next test does not try it again.
    """
    videos = scene.directory / "videos"
    videos.mkdir(mode=0o755)
    shutil.copy(clip, videos / CLIP)
    config = scene.write_config(
        "pod.toml",
        # Draining ends before an answer that is held back times out.
        runner={"id": None, "data_dir": None, "drain_seconds": 3.0},
        scenario={"id": None},
        inference={"url": fake.url, "timeout_seconds": 60.0},
        pipeline=SMALL_WINDOW["pipeline"],
        database=SMALL_WINDOW["database"] | {"password_file": PASSWORD_FILE},
    )
    await cluster.give(config.read_text(), scene.servers.password)
    sections = {"kubernetes": cluster.section(scene.directory, videos)}
    asker = scene.write_config("fleet.toml", **sections)
    submitted = await scene.cli("submit", asker, "--video", f"/videos/{CLIP}", "--id", str(scene.scenario_id))
    assert submitted.code == 0, submitted.err
    yield sections
    stopped = await scene.cli("stop", asker, str(scene.scenario_id))
    assert stopped.code == 0, stopped.err


@asynccontextmanager
async def started(scene: Scene, fleet: Sections) -> AsyncIterator[tuple[Spawner, Recorder]]:
    """A spawner that has started the scenario's first attempt, and the recorder of its end."""
    recorder = Recorder()
    work = Work(scenario_id=scene.scenario_id, epoch=1, video_path=f"/videos/{CLIP}", settings={"video": {"stride": 1}})
    async with open_kubernetes(Config().replace(**fleet), "node-a", recorder) as spawner:
        await spawner.start(work)
        yield spawner, recorder


def process_in_pod(scene: Scene, epoch: int) -> psutil.Process:
    """The runner's process, which has another number than 1 outside its namespace."""
    wanted = {f"scenario.id={scene.scenario_id}", f"scenario.epoch={epoch}"}
    (found,) = (each for each in psutil.process_iter() if wanted <= set(command_line(each)))
    return found


def command_line(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def logs(cluster: Cluster) -> str:
    """The logs of the namespace's pods, for a test that fails."""
    directory = Path(os.environ[cluster_of_tests.ASKED]).parent / "logs"
    return "\n".join(file.read_text() for file in directory.glob(f"{cluster.namespace}_*/*/*.log"))


async def stored_something(cluster: Cluster, scene: Scene) -> None:
    async def stored() -> bool:
        row = await scene.ledger.existing(scene.scenario_id)
        assert row["epoch"] == 1, logs(cluster)
        return int(row["next_frame"]) > 0

    await until(stored, described="frames are stored")


# This test comes first, because it takes two minutes, and the others run meanwhile.
async def test_a_frozen_runner_is_ended_by_its_probe(
    cluster: Cluster, scene: Scene, fleet: Sections, fake: Fake
) -> None:
    async with started(scene, fleet) as (_, recorder):

        async def is_started() -> bool:
            pod = await cluster.pod(job_name(scene.scenario_id, 1))
            return any(each.get("started") for each in pod["status"].get("containerStatuses", []))

        await until(is_started, described="the startup probe has succeeded")
        process_in_pod(scene, 1).send_signal(signal.SIGSTOP)
        ended = await recorder.first(3 * PATIENCE_SECONDS)
    assert ended.failure is not None, logs(cluster)
    assert (ended.detail, ended.failure.code) == ("signal KILL", ErrorCode.RUNNER_KILLED)


async def test_a_scenario_completes_in_a_pod(cluster: Cluster, scene: Scene, fleet: Sections, fake: Fake) -> None:
    fake.gate.set()
    async with started(scene, fleet) as (_, recorder):
        ended = await recorder.first()
    assert (ended.detail, ended.failure) == ("exit code 0", None), logs(cluster)
    await scene.check_rows(60)
    scenario = await scene.ledger.existing(scene.scenario_id)
    assert (scenario["outcome"], scenario["video_path"]) == ("completed", f"/videos/{CLIP}")


async def test_the_end_of_a_pod_whose_process_is_killed_is_reported(
    cluster: Cluster, scene: Scene, fleet: Sections, fake: Fake
) -> None:
    async with started(scene, fleet) as (_, recorder):
        await stored_something(cluster, scene)
        process_in_pod(scene, 1).kill()
        ended = await recorder.first()
    assert ended.failure is not None, logs(cluster)
    assert (ended.detail, ended.failure.code) == ("signal KILL", ErrorCode.RUNNER_KILLED)


async def test_the_end_of_a_pod_that_is_out_of_memory_is_reported(
    cluster: Cluster, scene: Scene, fleet: Sections, fake: Fake
) -> None:
    fleet["kubernetes"] |= {"memory_limit": "16Mi"}
    async with started(scene, fleet) as (_, recorder):
        ended = await recorder.first()
    assert ended.failure is not None, logs(cluster)
    assert (ended.detail, ended.failure.code) == ("out of memory", ErrorCode.RUNNER_OUT_OF_MEMORY)


async def test_a_stopped_runner_drains(cluster: Cluster, scene: Scene, fleet: Sections, fake: Fake) -> None:
    async with started(scene, fleet) as (spawner, recorder):
        await stored_something(cluster, scene)
        # The gate stays closed, so that the runner cannot complete the scenario before SIGTERM reaches it.
        await spawner.stop(scene.scenario_id, 1)
        assert (await recorder.first()).failure is None
    (attempt,) = await scene.ledger.attempts(scene.scenario_id)
    assert attempt["outcome"] == "interrupted", logs(cluster)
    (event,) = await scene.ledger.retry_events(scene.scenario_id)
    assert event["reporter"] == "runner"


async def test_a_killed_pod_is_followed_by_the_next_job(
    cluster: Cluster, scene: Scene, fleet: Sections, fake: Fake
) -> None:
    fleet["orchestrator"] = {
        "spawner": "kubernetes",
        "node": "node-a",
        "group": f"group-{scene.scenario_id}",
        "command_topic": f"commands-{scene.scenario_id}",
        "dead_letter_topic": f"dead-{scene.scenario_id}",
    }
    config = scene.write_config("orchestrator.toml", **fleet)
    async with scene.cli.started("orchestrate", config) as orchestrator:
        await stored_something(cluster, scene)
        process_in_pod(scene, 1).kill()
        fake.gate.set()

        async def completed() -> bool:
            return bool((await scene.ledger.existing(scene.scenario_id))["outcome"] == "completed")

        await until(completed, described="the scenario is completed")
        orchestrator.send_signal(signal.SIGTERM)
        done = await orchestrator.wait()
    assert done.code == 0, done.err
    await scene.check_rows(60)
    first, second = await scene.ledger.attempts(scene.scenario_id)
    assert (first["error"]["code"], second["outcome"]) == ("runner_killed", "completed"), done.err
    assert second["first_frame"] == first["end_frame"] > 0
    (event,) = await scene.ledger.retry_events(scene.scenario_id)
    assert (event["reporter"], event["body"]["error"]["message"]) == (
        "orchestrator",
        "ended unreported: signal KILL",
    )
    names = {job["metadata"]["name"] for job in (await cluster.ask("GET", "batch/v1@jobs"))["items"]}
    assert names == {f"runner-{scene.scenario_id}-{epoch}" for epoch in (1, 2)}, done.err
    await scene.ledger.check_invariants(scene.scenario_id)

"""The spawner `kubernetes` against Kubernetes' own API server and Job controller; the tests act as the kubelet."""

from __future__ import annotations

import logging
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import pytest
import trio

from tests.support import cluster as cluster_of_tests
from tests.support.cluster import NOWHERE, Cluster, Object, container, open_cluster, true_condition
from tests.support.harness import free_port, until
from trio_runner.config.load import Config
from trio_runner.database.backlog import Work
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.orchestrator.spawners import kubernetes, kubernetes_api
from trio_runner.orchestrator.spawners.kubernetes import open_kubernetes
from trio_runner.orchestrator.spawners.spawner import Ended, Spawner, SpawnRefusedError

pytestmark = pytest.mark.skipif(bool(cluster_of_tests.why_not()), reason=cluster_of_tests.why_not())

JOB = "runner-7-3"
RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def work(scenario_id: int = 7, epoch: int = 3, **settings: dict[str, Any]) -> Work:
    return Work(scenario_id=scenario_id, epoch=epoch, video_path="/videos/a $(HOME).mp4", settings=settings)


class Recorder:
    """An `on_ended` that records each end; its first `failures` calls raise."""

    def __init__(self) -> None:
        self.ends: list[Ended] = []
        self.failures = 0

    async def __call__(self, ended: Ended) -> None:
        if self.failures:
            self.failures -= 1
            raise RunnerError(ErrorCode.STORE_UNREACHABLE, "away")
        self.ends.append(ended)

    async def the_only(self) -> Ended:
        async def recorded() -> list[Ended]:
            return self.ends

        (ended,) = await until(recorded, described="on_ended is called")
        return ended


class Open(Protocol):
    def __call__(self, *, node: str = ..., **keys: Any) -> AbstractAsyncContextManager[Spawner]: ...


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with open_cluster(RESTRICTED) as opened:
        yield opened


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def opened(cluster: Cluster, recorder: Recorder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Open:
    """Opens the spawner on the test's namespace, with pods that no node has room for."""
    monkeypatch.setattr(kubernetes, "POLL_SECONDS", 0.1)
    kubeconfig = cluster.write_kubeconfig(tmp_path / "kubeconfig")

    def open_it(*, node: str = "node-a", **keys: Any) -> AbstractAsyncContextManager[Spawner]:
        section = {"kubeconfig": kubeconfig, "namespace": cluster.namespace, **NOWHERE} | keys
        return open_kubernetes(Config().replace(kubernetes=section), node, recorder)

    return open_it


async def reported_label(cluster: Cluster, name: str = JOB) -> None:
    async def labelled() -> bool:
        return "trio-runner/reported" in (await cluster.job(name))["metadata"]["labels"]

    await until(labelled, described="the Job is labelled as reported")


# starts


async def test_a_job_is_accepted_with_all_that_it_may_mount(cluster: Cluster, opened: Open) -> None:
    async with opened(videos_claim="videos", cpu_limit="1000", ttl_seconds=60) as spawner:
        await spawner.start(work(video={"max_fps": 2.5}, inference={"in_flight": 8}))
        job, pod = await cluster.job(JOB), await cluster.pod(JOB)
    # There is a pod, so it has passed the admission of restricted pods.
    assert pod["spec"]["containers"][0]["command"] == [
        *("trio-runner", "run", "/etc/trio-runner/runner.toml"),
        *("--set", "video.max_fps=2.5", "--set", 'video.path="/videos/a $$(HOME).mp4"'),
        *("--set", "inference.in_flight=8"),
        *("--set", 'runner.id="node-a-7"', "--set", 'runner.data_dir="/var/lib/trio-runner"'),
        *("--set", "scenario.id=7", "--set", "scenario.epoch=3", "--set", "kafka.required=false"),
    ]
    assert (job["spec"]["backoffLimit"], job["spec"]["ttlSecondsAfterFinished"]) == (0, 60)
    assert job["metadata"]["labels"]["trio-runner/orchestrator"] == "node-a"
    (limits,) = [each["resources"]["limits"] for each in pod["spec"]["containers"]]
    assert limits == {"cpu": "1k", "memory": "3Gi"}
    mounted = {each["mountPath"] for each in pod["spec"]["containers"][0]["volumeMounts"]}
    places = {"/etc/trio-runner", "/run/credentials/trio-runner", "/run/trio-runner", "/var/lib/trio-runner", "/videos"}
    assert mounted == places


async def test_without_videos_and_secret_nothing_is_mounted_for_them(cluster: Cluster, opened: Open) -> None:
    async with opened(secret_name="", memory_limit="") as spawner:
        await spawner.start(work())
        pod = await cluster.pod(JOB)
    assert [volume["name"] for volume in pod["spec"]["volumes"]] == ["config", "data", "notify"]
    assert "limits" not in pod["spec"]["containers"][0]["resources"]


async def test_a_name_that_is_no_label_is_hashed(cluster: Cluster, opened: Open, recorder: Recorder) -> None:
    async with opened(node="rack:7@" + "x" * 100) as spawner:
        await spawner.start(work())
        await cluster.ends(JOB, 75)
        assert (await recorder.the_only()).detail == "exit code 75"


# ends


@pytest.mark.parametrize(
    ("exit_code", "reason", "job_reason", "code", "detail"),
    [
        (0, "", "Complete", None, "exit code 0"),
        (64, "Error", "PodFailurePolicy", ErrorCode.CONFIG_INVALID, "exit code 64"),
        (65, "Error", "PodFailurePolicy", None, "exit code 65"),
        (74, "Error", "BackoffLimitExceeded", "internal", "exit code 74, its event in a spool that ended with the pod"),
        (75, "Error", "BackoffLimitExceeded", None, "exit code 75"),
        (78, "Error", "PodFailurePolicy", "config_invalid", "exit code 78"),
        (79, "Error", "PodFailurePolicy", None, "exit code 79"),
        (1, "Error", "BackoffLimitExceeded", "internal", "exit code 1"),
        (137, "Error", "BackoffLimitExceeded", "runner_killed", "signal KILL"),
        (137, "OOMKilled", "BackoffLimitExceeded", "runner_out_of_memory", "out of memory"),
        (139, "Error", "BackoffLimitExceeded", "runner_killed", "signal SEGV"),
        (143, "Error", "BackoffLimitExceeded", "interrupted", "signal TERM"),
    ],
)
async def test_the_job_controller_decides_by_exit_code(
    cluster: Cluster,
    opened: Open,
    recorder: Recorder,
    exit_code: int,
    reason: str,
    job_reason: str,
    code: str | None,
    detail: str,
) -> None:
    async with opened() as spawner:
        await spawner.start(work())
        await cluster.ends(JOB, exit_code, reason)
        ended = await recorder.the_only()
        await reported_label(cluster)
    assert (ended.scenario_id, ended.epoch, ended.detail) == (7, 3, detail)
    assert (ended.failure and ended.failure.code) == code
    assert ended.failure is None or detail in ended.failure.message
    job = await cluster.job(JOB)
    condition = true_condition(job, "Complete" if exit_code == 0 else "Failed")
    assert condition is not None
    assert exit_code == 0 or condition["reason"] == job_reason
    assert job["status"].get("failed", 0) == (1 if exit_code else 0), "another pod was made"


async def test_an_exit_code_of_the_policy_outlives_its_pod(cluster: Cluster, opened: Open, recorder: Recorder) -> None:
    async with opened() as spawner:
        await spawner.start(work())
    await cluster.ends(JOB, 65)

    async def failed() -> bool:
        return true_condition(await cluster.job(JOB), "Failed") is not None

    await until(failed, described="the Job has failed")
    await cluster.ask("DELETE", f"pods/{(await cluster.pod(JOB))['metadata']['name']}", gracePeriodSeconds="0")
    async with opened():
        ended = await recorder.the_only()
    assert (ended.detail, ended.failure) == ("exit code 65", None)


@pytest.mark.parametrize(
    ("status", "detail"),
    [
        ({"reason": "Evicted"}, "Evicted"),
        (
            {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler"}]},
            "Preempt",
        ),
        (
            {
                "containerStatuses": [container(terminated={"exitCode": 137, "reason": "Error"})],
                "conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "TerminationByKubelet"}],
            },
            "signal KILL (TerminationByKubelet)",
        ),
    ],
)
async def test_a_pod_that_was_taken_away_was_killed(
    cluster: Cluster, opened: Open, recorder: Recorder, status: Object, detail: str
) -> None:
    async with opened() as spawner:
        await spawner.start(work())
        await cluster.befalls(JOB, "Failed", **status)
        ended = await recorder.the_only()
    assert ended.failure is not None
    assert ended.failure.code is ErrorCode.RUNNER_KILLED
    assert ended.detail.startswith(detail)
    condition = true_condition(await cluster.job(JOB), "Failed")
    assert condition is not None
    assert condition["reason"] == ("PodFailurePolicy" if "conditions" in status else "BackoffLimitExceeded")


async def test_a_pod_that_was_deleted_was_killed_and_is_not_replaced(
    cluster: Cluster, opened: Open, recorder: Recorder
) -> None:
    async with opened() as spawner:
        await spawner.start(work())
        name = (await cluster.pod(JOB))["metadata"]["name"]
        await cluster.ask("DELETE", f"pods/{name}", gracePeriodSeconds="0")
        ended = await recorder.the_only()
    assert ended.failure is not None
    assert ended.failure.code is ErrorCode.RUNNER_KILLED
    assert (await cluster.ask("GET", "pods"))["items"] == []


async def test_an_end_is_reported_once_also_after_a_restart(cluster: Cluster, opened: Open, recorder: Recorder) -> None:
    async with opened() as spawner:
        await spawner.start(work())
    await cluster.ends(JOB, 137)
    async with opened():
        await recorder.the_only()
        await reported_label(cluster)
    async with opened() as spawner:
        # Once a second end is reported, there was time to report the first again.
        await spawner.start(work(epoch=4))
        await cluster.ends("runner-7-4", 75)

        async def reported() -> bool:
            return len(recorder.ends) > 1

        await until(reported, described="the second end")
    assert [(ended.epoch, ended.detail) for ended in recorder.ends] == [(3, "signal KILL"), (4, "exit code 75")]


async def test_an_end_is_reported_again_if_that_failed(cluster: Cluster, opened: Open, recorder: Recorder) -> None:
    recorder.failures = 2
    async with opened() as spawner:
        await spawner.start(work())
        await cluster.ends(JOB, 137)
        assert (await recorder.the_only()).detail == "signal KILL"
        await reported_label(cluster)
    assert recorder.failures == 0


async def test_the_jobs_of_an_orchestrator_that_is_gone_are_reported_by_another_in_time(
    cluster: Cluster, opened: Open, recorder: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(node="node-a") as spawner:
        await spawner.start(work())
    await cluster.ends(JOB, 137)
    monkeypatch.setattr(kubernetes, "ORPHAN_SECONDS", 2.0)
    began = trio.current_time()
    async with opened(node="node-b"):
        assert (await recorder.the_only()).detail == "signal KILL"
    assert trio.current_time() - began >= 2.0


# started again, stopped


async def test_a_doubled_start_is_one_job(cluster: Cluster, opened: Open) -> None:
    async with opened() as first, opened(node="node-b") as second:
        await first.start(work())
        uid = (await cluster.job(JOB))["metadata"]["uid"]
        await first.start(work())
        await second.start(work())
    (job,) = await cluster.jobs()
    assert (job["metadata"]["uid"], job["metadata"]["labels"]["trio-runner/orchestrator"]) == (uid, "node-a")


async def test_an_attempt_that_ended_without_having_claimed_can_be_started_again(
    cluster: Cluster, opened: Open, recorder: Recorder
) -> None:
    async with opened() as spawner:
        await spawner.start(work())
        uid = (await cluster.job(JOB))["metadata"]["uid"]
        await cluster.ends(JOB, 75)
        await reported_label(cluster)
        await spawner.start(work())
        assert (await cluster.job(JOB))["metadata"]["uid"] != uid


async def test_an_attempt_whose_end_is_not_reported_is_not_started_again(
    cluster: Cluster, opened: Open, recorder: Recorder
) -> None:
    recorder.failures = sys.maxsize
    async with opened() as spawner:
        await spawner.start(work())
        await cluster.ends(JOB, 137)

        async def tried() -> bool:
            return recorder.failures < sys.maxsize

        await until(tried, described="its end is reported")
        with pytest.raises(SpawnRefusedError, match="has yet to be reported"):
            await spawner.start(work())


async def test_stop_deletes_job_and_pod_and_the_end_is_reported(
    cluster: Cluster, opened: Open, recorder: Recorder, caplog: pytest.LogCaptureFixture
) -> None:
    async with opened() as spawner:
        await spawner.start(work())
        await spawner.start(work(scenario_id=8))
        await cluster.pod(JOB)

        async def seen() -> bool:
            return JOB in spawner._running  # type: ignore[attr-defined]

        await until(seen, described="it is seen")
        await spawner.stop(7, 3)
        assert (await recorder.the_only()).failure is None
        await spawner.stop(7, 3)
    assert [job["metadata"]["name"] for job in await cluster.jobs()] == ["runner-8-3"]
    assert len((await cluster.ask("GET", "pods"))["items"]) <= 1
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_while_a_pod_drains_its_attempt_is_not_started_again(cluster: Cluster, opened: Open) -> None:
    async with opened() as spawner:
        await spawner.start(work())
        # A finalizer keeps the Job, as a kubelet does while the process drains.
        await cluster.ask("PATCH", f"batch/v1@jobs/{JOB}", {"metadata": {"finalizers": ["example.com/drains"]}})
        await spawner.stop(7, 3)
        with pytest.raises(SpawnRefusedError, match="drains"):
            await spawner.start(work())
        await cluster.ask("PATCH", f"batch/v1@jobs/{JOB}", {"metadata": {"finalizers": None}})


# refused


async def refusal(spawner: Spawner, attempt: Work | None = None) -> str:
    with pytest.raises(SpawnRefusedError) as caught:
        await spawner.start(attempt or work())
    return str(caught.value)


async def test_a_quota_is_named(cluster: Cluster, opened: Open) -> None:
    quota = {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "few"},
        "spec": {"hard": {"count/jobs.batch": "1"}},
    }
    await cluster.ask("POST", "resourcequotas", quota)

    async def counted() -> bool:
        return "hard" in (await cluster.ask("GET", "resourcequotas/few")).get("status", {})

    await until(counted, described="the quota is counted")
    async with opened() as spawner:
        await spawner.start(work())
        refused = await refusal(spawner, work(scenario_id=8))
        assert "exceeded quota: few" in refused
        assert "orchestrator.max_runners" in refused
        await spawner.stop(7, 3)

        async def started() -> bool:
            try:
                await spawner.start(work(scenario_id=8))
            except SpawnRefusedError:
                return False
            return True

        await until(started, described="there is room again")


async def test_a_missing_right_is_named_with_its_account(cluster: Cluster, opened: Open, tmp_path: Path) -> None:
    other = cluster.write_kubeconfig(tmp_path / "other", token=await cluster.token("default"))
    async with opened(kubeconfig=other) as spawner:
        refused = await refusal(spawner)
    assert f"system:serviceaccount:{cluster.namespace}:default" in refused
    assert "deploy/kubernetes/rbac.yaml" in refused


async def test_unknown_credentials_are_named_and_not_repeated(cluster: Cluster, opened: Open, tmp_path: Path) -> None:
    other = cluster.write_kubeconfig(tmp_path / "other", token="wrong-token")
    async with opened(kubeconfig=other) as spawner:
        refused = await refusal(spawner)
    assert "kubernetes.kubeconfig" in refused
    assert "wrong-token" not in refused


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"memory_limit": "1Mi"}, "Correct the section [kubernetes]"),
        ({"namespace": "nowhere"}, "Make the namespace nowhere"),
        ({"kubeconfig": "/nowhere/kubeconfig"}, "kubernetes.kubeconfig (/nowhere/kubeconfig)"),
    ],
)
async def test_a_mistake_in_the_section_is_named(opened: Open, keys: dict[str, Any], named: str) -> None:
    async with opened(**keys) as spawner:
        assert named in await refusal(spawner)


@pytest.mark.parametrize("text", ["", "a: [", "[]", '{"current-context": "a"}', "\0"])
async def test_a_file_that_is_no_kubeconfig_is_named(opened: Open, tmp_path: Path, text: str) -> None:
    (tmp_path / "none").write_text(text)
    async with opened(kubeconfig=str(tmp_path / "none")) as spawner:
        assert "kubernetes.kubeconfig (" in await refusal(spawner)


async def test_an_api_server_that_is_away_refuses_and_is_asked_again(
    cluster: Cluster,
    opened: Open,
    recorder: Recorder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened() as spawner:
        await spawner.start(work())
    monkeypatch.setattr(kubernetes, "MAX_POLL_SECONDS", 0.2)
    port = free_port()
    other = cluster.write_kubeconfig(tmp_path / "other", server=f"https://127.0.0.1:{port}")
    async with opened(kubeconfig=other) as spawner:
        refused = await refusal(spawner)
        assert "cannot be used" in refused
        assert other in refused
        await until(lambda: logged(caplog, "looked at again"), described="the watch is logged")
        await cluster.ends(JOB, 137)
        target = cluster.kubeconfig["clusters"][0]["cluster"]["server"].removeprefix("https://127.0.0.1:")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay, port, int(target))
            assert (await recorder.the_only()).detail == "signal KILL"
            await spawner.start(work(scenario_id=8))
            nursery.cancel_scope.cancel()


async def logged(caplog: pytest.LogCaptureFixture, text: str) -> bool:
    return any(text in record.getMessage() for record in caplog.records)


async def relay(port: int, target: int) -> None:
    async def carry(source: trio.SocketStream, to: trio.SocketStream) -> None:
        async for chunk in source:
            await to.send_all(chunk)

    async def serve(client: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", target) as server, trio.open_nursery() as nursery:
            nursery.start_soon(carry, client, server)
            nursery.start_soon(carry, server, client)

    await trio.serve_tcp(serve, port, host="127.0.0.1")


async def test_an_api_server_that_does_not_answer_refuses_in_time(
    cluster: Cluster, opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes_api, "STEP_SECONDS", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        other = cluster.write_kubeconfig(tmp_path / "other", server=f"https://127.0.0.1:{silent.getsockname()[1]}")
        async with opened(kubeconfig=other) as spawner:
            assert "cannot be used: Timeout while waiting" in await refusal(spawner)


async def test_stop_with_the_api_server_away_is_logged(
    cluster: Cluster, opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    other = cluster.write_kubeconfig(tmp_path / "other", server=f"https://127.0.0.1:{free_port()}")
    async with opened(kubeconfig=other) as spawner:
        await spawner.stop(7, 3)
    assert await logged(caplog, "cannot be asked to drain")


async def test_a_job_that_gets_no_pod_or_no_node_is_shown(
    cluster: Cluster, opened: Open, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kubernetes, "WAITING_SECONDS", 0.0)
    async with opened() as spawner, opened(service_account="nobody") as other:
        await spawner.start(work())
        await other.start(work(scenario_id=8))
        await until(lambda: logged(caplog, f"{JOB} is not at work yet: Unschedulable: "), described="no node")
        await until(lambda: logged(caplog, "runner-8-3 is not at work yet: it has no pod"), described="no pod")

"""Kubernetes accepts deploy/kubernetes, and the Role in it is enough and no more."""

from __future__ import annotations

import copy
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

import trio_runner
from tests.support import cluster as cluster_of_tests
from tests.support.cluster import NOWHERE, Cluster, Object, open_cluster
from tests.support.harness import REPOSITORY, until
from trio_runner.config.load import Config, parse_config
from trio_runner.config.sections import KubernetesSection
from trio_runner.database.backlog import Work
from trio_runner.orchestrator.spawners import kubernetes
from trio_runner.orchestrator.spawners.kubernetes import open_kubernetes
from trio_runner.orchestrator.spawners.kubernetes_job import CREDENTIALS_DIR, NOTIFY_DIR, NOTIFY_SOCKET, PROBE, job
from trio_runner.orchestrator.spawners.spawner import Ended

DIRECTORY = REPOSITORY / "deploy/kubernetes"
KUSTOMIZATION: Object = yaml.safe_load((DIRECTORY / "kustomization.yaml").read_text())

in_cluster = pytest.mark.skipif(bool(cluster_of_tests.why_not()), reason=cluster_of_tests.why_not())


def objects(*names: str) -> dict[tuple[str, str], Object]:
    """By kind and name."""
    found = [each for name in names for each in yaml.safe_load_all((DIRECTORY / name).read_text())]
    return {(each["kind"], each["metadata"]["name"]): each for each in found}


ALL = objects(*KUSTOMIZATION["resources"], "secret.yaml")


def of_config_map(key: str) -> Config:
    text = ALL["ConfigMap", "trio-runner"]["data"][key]
    return parse_config(text, base_dir=Path("/etc/trio-runner"), environ={"CREDENTIALS_DIRECTORY": CREDENTIALS_DIR})


def test_every_file_but_the_secret_is_in_the_kustomization() -> None:
    files = {path.name for path in DIRECTORY.glob("*.yaml")} - {"kustomization.yaml", "secret.yaml"}
    assert files == set(KUSTOMIZATION["resources"])


def test_the_configs_can_be_used_and_name_objects_that_exist() -> None:
    orchestrator, runner = of_config_map("orchestrator.toml"), of_config_map("runner.toml")
    ours = orchestrator.kubernetes
    assert orchestrator.orchestrator.spawner == "kubernetes"
    assert {
        ("Namespace", ours.namespace),
        ("ConfigMap", ours.config_map),
        ("Secret", ours.secret_name),
        ("ServiceAccount", ours.service_account),
        ("PersistentVolumeClaim", ours.videos_claim),
    } <= ALL.keys()
    assert (runner.database.url, runner.kafka.brokers) == (orchestrator.database.url, orchestrator.kafka.brokers)
    assert runner.video.root == ours.videos_mount


def test_the_secret_has_the_keys_that_the_configs_read_and_no_values() -> None:
    read = set(re.findall(r"\$CREDENTIALS_DIRECTORY/([\w.-]+)", str(ALL["ConfigMap", "trio-runner"]["data"])))
    assert ALL["Secret", "trio-runner"]["stringData"] == dict.fromkeys(read, "")


def test_orchestrator_and_runners_are_of_one_image_and_one_user() -> None:
    pod = ALL["StatefulSet", "trio-runner-orchestrator"]["spec"]["template"]["spec"]
    config = of_config_map("orchestrator.toml").kubernetes
    work = Work(scenario_id=1, epoch=1, video_path="/a.mp4", settings={})
    runner = job(config, "node", work)["spec"]["template"]["spec"]
    assert config.image == pod["containers"][0]["image"] == f"trio-runner:{trio_runner.__version__}"
    assert KUSTOMIZATION["images"][0]["newTag"] == trio_runner.__version__
    assert pod["securityContext"] == runner["securityContext"]
    assert pod["containers"][0]["securityContext"] == runner["containers"][0]["securityContext"]


def test_the_probes_are_the_watchdog_of_the_units() -> None:
    runner = job(KubernetesSection(), "node", Work(scenario_id=1, epoch=1, video_path="/a.mp4", settings={}))
    orchestrator = ALL["StatefulSet", "trio-runner-orchestrator"]
    for unit, made in {"trio-runner@.service": runner, "trio-runner-orchestrator.service": orchestrator}.items():
        text = (REPOSITORY / "systemd" / unit).read_text()
        start, watchdog, abort = (
            int(re.findall(rf"^{key}=(\d+)$", text, re.MULTILINE)[0])
            for key in ("TimeoutStartSec", "WatchdogSec", "TimeoutAbortSec")
        )
        pod = made["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        for probe, seconds in {"startupProbe": start, "livenessProbe": watchdog}.items():
            assert container[probe]["exec"] == PROBE["exec"]
            assert container[probe]["periodSeconds"] * container[probe]["failureThreshold"] == seconds
        assert container["livenessProbe"]["terminationGracePeriodSeconds"] == abort
        assert {"name": "NOTIFY_SOCKET", "value": NOTIFY_SOCKET} in container["env"]
        assert {"name": "notify", "mountPath": NOTIFY_DIR} in container["volumeMounts"]
        assert {"name": "notify", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}} in pod["volumes"]


@pytest.fixture
async def cluster() -> AsyncIterator[Cluster]:
    async with open_cluster(ALL["Namespace", "trio-runner"]["metadata"]["labels"]) as opened:
        yield opened


PLACES = {
    "ServiceAccount": "serviceaccounts",
    "Role": "rbac.authorization.k8s.io/v1@roles",
    "RoleBinding": "rbac.authorization.k8s.io/v1@rolebindings",
    "ConfigMap": "configmaps",
    "Secret": "secrets",
    "PersistentVolumeClaim": "persistentvolumeclaims",
    "StatefulSet": "apps/v1@statefulsets",
    "PodDisruptionBudget": "policy/v1@poddisruptionbudgets",
}


async def apply(cluster: Cluster) -> None:
    """Create every object in this namespace, but on no node, which has no image of the orchestrator."""
    for (kind, _), found in ALL.items():
        if kind == "Namespace":
            path, moved = "/api/v1/namespaces", found | {"metadata": {**found["metadata"], "name": "trio-runner-dry"}}
            (await cluster.send("POST", path, moved, dryRun="All", fieldValidation="Strict")).raise_for_status()
            continue
        assert found["metadata"]["namespace"] == KUSTOMIZATION["namespace"]
        moved = found | {"metadata": {**found["metadata"], "namespace": cluster.namespace}}
        if kind == "StatefulSet":
            moved = copy.deepcopy(moved)
            moved["spec"]["template"]["spec"]["schedulerName"] = "nobody"
        if "subjects" in found:
            moved["subjects"] = [each | {"namespace": cluster.namespace} for each in found["subjects"]]
        for dry_run in ("All", ""):
            asked = {"fieldValidation": "Strict"} | ({"dryRun": dry_run} if dry_run else {})
            answer = await cluster.send("POST", cluster.path(PLACES[kind]), moved, token="", **asked)
            assert answer.is_success, answer.text


@in_cluster
async def test_every_object_is_accepted_and_the_orchestrator_gets_its_pods(cluster: Cluster) -> None:
    await apply(cluster)

    async def pods() -> bool:
        # There are pods, so they have passed the admission of restricted pods.
        return len((await cluster.ask("GET", "pods"))["items"]) == 2

    await until(pods, described="two pods of the orchestrator")
    for pod in (await cluster.ask("GET", "pods"))["items"]:
        assert pod["spec"]["hostname"] == pod["metadata"]["name"]

    async def allowed() -> bool:
        budget = await cluster.ask("GET", "policy/v1@poddisruptionbudgets/trio-runner-orchestrator")
        return bool(budget.get("status", {}).get("expectedPods") == 2)

    await until(allowed, described="the budget counts both")


@in_cluster
async def test_the_role_is_enough_and_no_more(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(kubernetes, "POLL_SECONDS", 0.1)
    monkeypatch.setattr(kubernetes, "WAITING_SECONDS", 0.0)
    await apply(cluster)
    token = await cluster.token("trio-runner-orchestrator")
    section: dict[str, Any] = {
        "kubeconfig": cluster.write_kubeconfig(tmp_path / "kubeconfig", token=token),
        "namespace": cluster.namespace,
        "service_account": "trio-runner",
        **NOWHERE,
    }
    ends: list[Ended] = []

    async def on_ended(ended: Ended) -> None:
        ends.append(ended)

    async with open_kubernetes(Config().replace(kubernetes=section), "node-a", on_ended) as spawner:
        await spawner.start(Work(scenario_id=7, epoch=3, video_path="/a.mp4", settings={}))
        await spawner.start(Work(scenario_id=7, epoch=3, video_path="/a.mp4", settings={}))
        await cluster.ends("runner-7-3", 137)

        async def labelled() -> bool:
            return "trio-runner/reported" in (await cluster.job("runner-7-3"))["metadata"]["labels"]

        await until(labelled, described="the Job is labelled as reported")
        await spawner.start(Work(scenario_id=7, epoch=3, video_path="/a.mp4", settings={}))
        await spawner.stop(7, 3)

        async def gone() -> bool:
            return await cluster.jobs() == []

        await until(gone, described="the Job is deleted")
    assert [ended.detail for ended in ends][:1] == ["signal KILL"]
    assert not any("refuses" in record.getMessage() for record in caplog.records), caplog.text

    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}
    for method, path, body in (
        ("GET", cluster.path("secrets"), None),
        ("GET", cluster.path("secrets/trio-runner"), None),
        ("GET", cluster.path("configmaps/trio-runner"), None),
        ("PATCH", cluster.path("configmaps/trio-runner"), {}),
        ("POST", cluster.path("pods"), pod),
        ("DELETE", cluster.path("pods/a"), None),
        ("POST", cluster.path("pods/a/exec"), None),
        ("GET", cluster.path("pods/a/log"), None),
        ("DELETE", cluster.path("batch/v1@jobs"), None),
        ("PATCH", cluster.path("batch/v1@jobs/a/status"), {}),
        ("GET", cluster.path("apps/v1@statefulsets"), None),
        ("PATCH", cluster.path("rbac.authorization.k8s.io/v1@roles/trio-runner-orchestrator"), {}),
        ("POST", cluster.path("serviceaccounts/default/token"), {}),
        ("GET", "/apis/batch/v1/namespaces/default/jobs", None),
        ("GET", "/apis/batch/v1/jobs", None),
    ):
        answer = await cluster.send(method, path, body, token=token)
        assert answer.status_code == 403, f"{method} {path}: {answer.text}"

"""A Kubernetes cluster with an administrator's rights: namespaces for tests, raw objects, and the part of a kubelet."""

from __future__ import annotations

import json
import os
import ssl
import uuid
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import trio

from tests.support.harness import PATIENCE_SECONDS, until

ASKED = "TRIO_RUNNER_TEST_KUBERNETES"
"""Set to the kubeconfig that `tests/deployment/kubernetes.sh start` wrote."""

NODE = "TRIO_RUNNER_TEST_KUBERNETES_NODE"
"""Set where that cluster has a node, with an image of this tree."""

IMAGE = "docker.io/trio-runner-test/trio-runner:1"
"""The name of the image on the node."""

PASSWORD_FILE = "$CREDENTIALS_DIRECTORY/database-password"
"""Where a runner in a pod finds the password that `Cluster.give` put into the Secret."""

NOWHERE = {"cpu_request": "1000"}
"""More than any node has: the pod waits, and the test decides how it ends."""

Object = dict[str, Any]


def why_not() -> str:
    """Why there is no cluster for tests; empty where there is one."""
    return "" if os.environ.get(ASKED) else f"{ASKED} is not set: tests/deployment/kubernetes.sh start DIRECTORY"


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """One namespace of the cluster, with all rights."""

    client: httpx.AsyncClient
    kubeconfig: dict[str, Any]
    namespace: str

    async def ask(self, method: str, path: str, body: Object | None = None, **parameters: str) -> Object:
        """Send a request for "pods" or "batch/v1@jobs" of the namespace; raises httpx.HTTPStatusError."""
        answer = await self.send(method, self.path(path), body, token="", **parameters)
        answer.raise_for_status()
        found: Object = answer.json()
        return found

    async def send(
        self,
        method: str,
        path: str,
        body: Object | None = None,
        *,
        token: str = "",
        **parameters: str,
    ) -> httpx.Response:
        kind = "merge-patch+json" if method == "PATCH" else "json"
        content = None if body is None else json.dumps(body)
        headers = {"Content-Type": f"application/{kind}"} | ({"Authorization": f"Bearer {token}"} if token else {})
        return await self.client.request(method, path, content=content, params=parameters, headers=headers)

    def path(self, resource: str) -> str:
        group, _, name = resource.rpartition("@")
        base = f"/apis/{group}" if group else "/api/v1"
        return f"{base}/namespaces/{self.namespace}/{name}"

    async def job(self, name: str) -> Object:
        return await self.ask("GET", f"batch/v1@jobs/{name}")

    async def jobs(self) -> list[Object]:
        return list((await self.ask("GET", "batch/v1@jobs"))["items"])

    async def pod(self, job: str) -> Object:
        """The Job's only pod, once the Job controller has made it."""

        async def made() -> list[Object]:
            return list((await self.ask("GET", "pods", labelSelector=f"batch.kubernetes.io/job-name={job}"))["items"])

        (pod,) = await until(made, described=f"the pod of {job}")
        return pod

    async def ends(self, job: str, exit_code: int, reason: str = "Error") -> None:
        """Write the status that a kubelet writes when a pod's container has ended."""
        ended = {"exitCode": exit_code, "reason": reason if exit_code else "Completed"}
        await self.befalls(job, "Failed" if exit_code else "Succeeded", containerStatuses=[container(terminated=ended)])

    async def befalls(self, job: str, phase: str, **status: Any) -> None:
        """Write a pod's phase and status."""
        pod = await self.pod(job)
        body = {"status": {"phase": phase, **status}}
        await self.ask("PATCH", f"pods/{pod['metadata']['name']}/status", body)

    async def token(self, account: str) -> str:
        """A token of a service account of the namespace."""
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        return str((await self.ask("POST", f"serviceaccounts/{account}/token", request))["status"]["token"])

    async def give(self, config: str, password: str) -> None:
        """Make the ConfigMap and the Secret that runners mount."""
        meta = {"apiVersion": "v1", "metadata": {"name": "trio-runner"}}
        await self.ask("POST", "configmaps", meta | {"kind": "ConfigMap", "data": {"runner.toml": config}})
        secret = {"database-password": password}
        await self.ask("POST", "secrets", meta | {"kind": "Secret", "stringData": secret})

    def section(self, directory: Path, videos: Path) -> Object:
        """`[kubernetes]` of an orchestrator whose runners are pods of this namespace, from the node's image."""
        return {
            "kubeconfig": self.write_kubeconfig(directory / "kubeconfig"),
            "namespace": self.namespace,
            "image": IMAGE,
            "image_pull_policy": "Never",
            "videos_host_path": str(videos),
            "cpu_request": "10m",
            "memory_request": "10Mi",
        }

    def write_kubeconfig(self, path: Path, *, token: str = "", server: str = "") -> str:
        """The cluster's kubeconfig with another token or address."""
        config: dict[str, Any] = json.loads(json.dumps(self.kubeconfig))
        if token:
            config["users"][0]["user"] = {"token": token}
        if server:
            config["clusters"][0]["cluster"]["server"] = server
        path.write_text(json.dumps(config))
        return str(path)


def container(**state: Object) -> Object:
    """The status of a container."""
    return {"name": "runner", "image": "", "imageID": "", "ready": False, "restartCount": 0, "state": state}


def true_condition(found: Object, kind: str) -> Object | None:
    conditions: list[Object] = found.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind and each["status"] == "True"), None)


def _kubeconfig() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(os.environ[ASKED]).read_text())
    return found


@asynccontextmanager
async def open_cluster(labels: Mapping[str, str]) -> AsyncIterator[Cluster]:
    """A new namespace of the cluster that the environment names, once pods can be made in it; removed at the end."""
    kubeconfig = _kubeconfig()
    cluster, user = kubeconfig["clusters"][0]["cluster"], kubeconfig["users"][0]["user"]
    async with httpx.AsyncClient(
        base_url=cluster["server"],
        verify=ssl.create_default_context(cafile=cluster["certificate-authority"]),
        headers={"Authorization": f"Bearer {user['token']}"},
        timeout=PATIENCE_SECONDS,
    ) as client:
        namespace = f"test-{uuid.uuid4().hex[:12]}"
        ours = Cluster(client=client, kubeconfig=kubeconfig, namespace=namespace)
        made = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace, "labels": dict(labels)}}
        (await ours.send("POST", "/api/v1/namespaces", made)).raise_for_status()
        try:

            async def has_account() -> bool:
                return (await ours.send("GET", ours.path("serviceaccounts/default"))).is_success

            await until(has_account, described="the namespace's account")
            yield ours
        finally:
            with trio.move_on_after(PATIENCE_SECONDS, shield=True):
                await ours.send("DELETE", f"/api/v1/namespaces/{namespace}")


@asynccontextmanager
async def host_network(cluster: Cluster) -> AsyncIterator[None]:
    """Every pod of the namespace is on the host's network, though no object under test says so."""
    name, admission = cluster.namespace, "admissionregistration.k8s.io/v1beta1"
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    policy = {
        "matchConstraints": {
            "resourceRules": [rule],
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}},
        },
        "failurePolicy": "Fail",
        "reinvocationPolicy": "Never",
        "mutations": [
            {
                "patchType": "ApplyConfiguration",
                "applyConfiguration": {"expression": "Object{spec: Object.spec{hostNetwork: true}}"},
            }
        ],
    }
    kinds = {"MutatingAdmissionPolicy": policy, "MutatingAdmissionPolicyBinding": {"policyName": name}}
    paths = [f"/apis/{admission}/mutatingadmissionpolicies", f"/apis/{admission}/mutatingadmissionpolicybindings"]
    try:
        for path, (kind, spec) in zip(paths, kinds.items(), strict=True):
            body = {"apiVersion": admission, "kind": kind, "metadata": {"name": name}, "spec": spec}
            (await cluster.send("POST", path, body)).raise_for_status()
        pod = {"metadata": {"name": "a"}, "spec": {"containers": [{"name": "a", "image": "a"}]}}

        async def in_force() -> bool:
            tried = await cluster.ask("POST", "pods", {"apiVersion": "v1", "kind": "Pod", **pod}, dryRun="All")
            return bool(tried["spec"].get("hostNetwork"))

        await until(in_force, described="the policy is in force")
        yield
    finally:
        with trio.move_on_after(PATIENCE_SECONDS, shield=True):
            for path in paths:
                await cluster.send("DELETE", f"{path}/{name}")


@asynccontextmanager
async def open_pods() -> AsyncIterator[Cluster]:
    """A namespace for pods that run, on the host's network, where the session's servers are."""
    async with open_cluster({"pod-security.kubernetes.io/enforce": "privileged"}) as cluster, host_network(cluster):
        yield cluster

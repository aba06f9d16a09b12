"""The Job that is one attempt, and what a Job that has ended says about it: objects in, objects out, no network."""

from __future__ import annotations

import hashlib
import math
import re
import signal
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from trio_runner.base.text import signal_name
from trio_runner.config.load import Config
from trio_runner.errors import REPORTED, ErrorCode, ExitCode
from trio_runner.model import Failure
from trio_runner.orchestrator.spawners.runner_config import own_keys
from trio_runner.orchestrator.spawners.spawner import Ended, SpawnRefusedError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trio_runner.config.sections import KubernetesSection
    from trio_runner.database.backlog import Work

Object = dict[str, Any]
"""An object of Kubernetes, as JSON has it."""

CONTAINER: Final = "runner"
CONFIG_DIR: Final = "/etc/trio-runner"
CREDENTIALS_DIR: Final = "/run/credentials/trio-runner"
DATA_DIR: Final = "/var/lib/trio-runner"

USER: Final = 10001
"""Whoever the image says it runs as: a number, for `runAsNonRoot` believes no name."""

GRACE_SECONDS: Final = 60
"""From SIGTERM to SIGKILL: `drain_seconds`, and what a death may take when nothing answers (34 s)."""

NOTIFY_DIR: Final = "/run/trio-runner"
NOTIFY_SOCKET: Final = f"{NOTIFY_DIR}/notify"
PROBE_SECONDS: Final = 10
PROBE: Final = {
    "exec": {"command": ["python", "-I", "-m", "trio_runner.base.probe"]},
    "periodSeconds": PROBE_SECONDS,
    # It listens for 5 s; the rest is for a busy node to start it.
    "timeoutSeconds": PROBE_SECONDS,
}
"""Asks as a service manager's watchdog would listen."""

WATCHDOG_SECONDS: Final = 30
"""WatchdogSec= of the systemd unit, which says why."""

HUNG_GRACE_SECONDS: Final = 15
"""Its TimeoutAbortSec=: enough for one that is slow and not stuck to drain."""

OF_RUNNERS: Final = "app.kubernetes.io/name=trio-runner,app.kubernetes.io/component=runner"
SCENARIO: Final = "trio-runner/scenario"
EPOCH: Final = "trio-runner/epoch"
ORCHESTRATOR: Final = "trio-runner/orchestrator"
REPORTED_LABEL: Final = "trio-runner/reported"

NOTHING_TO_GAIN: Final = (ExitCode.USAGE, ExitCode.VIDEO, ExitCode.CONFIG, ExitCode.SUPERSEDED)
"""Wrong usage, a bad video, a bad config, somebody else's scenario: no pod would fare better."""

_BY_SIGNAL: Final = 128
"""A container that a signal ended has this exit code and the signal's number."""


class KubernetesError(SpawnRefusedError):
    """A call to the API server that failed: why, and what to do; `status` is None where there was no answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


def job_name(scenario_id: int, epoch: int) -> str:
    """One name for one attempt: whoever starts it a second time is told so by the API server."""
    return f"runner-{scenario_id}-{epoch}"


def job(settings: KubernetesSection, node: str, work: Work) -> Object:
    """The Job of one attempt.

    It has one pod, once (`backoffLimit: 0`): the next attempt has an epoch and a Job of its own, so a pod in the place
    of one that failed would only be told 79. `podFailurePolicy` therefore decides no retries, but what the Job says
    of itself when its pod is gone: `PodFailurePolicy` with the exit code, where another attempt is of no use, and with
    `DisruptionTarget` where the pod was evicted, preempted or lost with its node; `BackoffLimitExceeded` for everything
    else (74, 75, a signal), where another attempt follows.

    Its probes are the watchdog: whatever a runner waits for has a deadline, so what they find is one that is stopped
    or stuck. Its lease ends meanwhile, and the next attempt does not wait for it. Readiness would matter to a Service
    only.
    """
    labels = {
        **dict(pair.split("=") for pair in OF_RUNNERS.split(",")),
        SCENARIO: str(work.scenario_id),
        EPOCH: str(work.epoch),
        ORCHESTRATOR: label_of(node),
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_name(work.scenario_id, work.epoch), "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": settings.ttl_seconds,
            "podFailurePolicy": {
                "rules": [
                    {
                        "action": "FailJob",
                        "onExitCodes": {
                            "containerName": CONTAINER,
                            "operator": "In",
                            "values": list(map(int, NOTHING_TO_GAIN)),
                        },
                    },
                    {"action": "FailJob", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                ]
            },
            "template": {"metadata": {"labels": labels}, "spec": _pod(settings, node, work)},
        },
    }


def label_of(node: str) -> str:
    """A name as a label may hold it: itself, or where it may not, its hash."""
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", node):
        return node
    return hashlib.sha256(node.encode()).hexdigest()[:32]


def _pod(settings: KubernetesSection, node: str, work: Work) -> Object:
    volumes: Object = {
        "config": {"configMap": {"name": settings.config_map}},
        # Spool included: what is in it ends with the pod, which is why the orchestrator speaks for whoever leaves 74.
        "data": {"emptyDir": {}},
        # Not on a disk, which may be full: that is no reason to be taken for dead.
        "notify": {"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    }
    mounts = [
        {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
        {"name": "data", "mountPath": DATA_DIR},
        {"name": "notify", "mountPath": NOTIFY_DIR},
    ]
    if settings.secret_name:
        # Root's, and readable by the group that the pod is in.
        volumes["credentials"] = {"secret": {"secretName": settings.secret_name, "defaultMode": 0o440}}
        mounts.append({"name": "credentials", "mountPath": CREDENTIALS_DIR, "readOnly": True})
    if settings.videos_claim:
        volumes["videos"] = {"persistentVolumeClaim": {"claimName": settings.videos_claim, "readOnly": True}}
    elif settings.videos_host_path:
        volumes["videos"] = {"hostPath": {"path": settings.videos_host_path, "type": "Directory"}}
    if "videos" in volumes:
        mounts.append({"name": "videos", "mountPath": settings.videos_mount, "readOnly": True})
    return {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "serviceAccountName": settings.service_account,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": CONTAINER,
                "image": settings.image,
                "imagePullPolicy": settings.image_pull_policy,
                "command": ["trio-runner", "run", f"{CONFIG_DIR}/runner.toml", *_settings(node, work)],
                "env": [
                    {"name": "CREDENTIALS_DIRECTORY", "value": CREDENTIALS_DIR},
                    {"name": "NOTIFY_SOCKET", "value": NOTIFY_SOCKET},
                ],
                # Nothing is heard of it before it has claimed.
                "startupProbe": PROBE | {"failureThreshold": math.ceil(settings.startup_seconds / PROBE_SECONDS)},
                "livenessProbe": PROBE
                | {
                    "failureThreshold": WATCHDOG_SECONDS // PROBE_SECONDS,
                    "terminationGracePeriodSeconds": HUNG_GRACE_SECONDS,
                },
                "resources": {
                    "requests": _quantities(cpu=settings.cpu_request, memory=settings.memory_request),
                    "limits": _quantities(cpu=settings.cpu_limit, memory=settings.memory_limit),
                },
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "readOnlyRootFilesystem": True,
                    "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": mounts,
            }
        ],
        "volumes": [{"name": name, **source} for name, source in volumes.items()],
    }


def _settings(node: str, work: Work) -> Iterator[str]:
    sections = own_keys(work, data_dir=DATA_DIR, node=node)
    # Whether the values will do: they came from a row.
    Config().replace(**sections)
    for section, keys in sections.items():
        for key, value in keys.items():
            written = tomli_w.dumps({key: value}).strip().partition(" = ")[2]
            # Kubernetes puts variables into commands, and takes $$ for a $ that is none.
            yield from ("--set", f"{section}.{key}={written}".replace("$", "$$"))


def _quantities(**amounts: str) -> dict[str, str]:
    return {name: amount for name, amount in amounts.items() if amount}


def is_over(job: Object) -> bool:
    """Whether the Job has ended, and its pod too."""
    return any(true_condition(job, kind) for kind in ("Complete", "Failed"))


def true_condition(found: Object, kind: str) -> Object | None:
    """The condition of this kind, where it holds."""
    conditions = found.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind and each["status"] == "True"), None)


def attempt_of(job: Object) -> tuple[int, int]:
    """Scenario and epoch."""
    labels = job["metadata"]["labels"]
    return int(labels[SCENARIO]), int(labels[EPOCH])


def how_it_ended(job: Object, pods: Sequence[Object]) -> Ended:
    """What the Job and its pod say: the container's exit code first, else what befell the pod."""
    scenario_id, epoch = attempt_of(job)
    if true_condition(job, "Complete"):
        detail, code = "exit code 0", None
    else:
        detail, code = _cause(job, pods)
    failure = None if code is None else Failure(code=code, type="Ended", message=f"ended unreported: {detail}")
    return Ended(scenario_id=scenario_id, epoch=epoch, failure=failure, detail=detail)


def _cause(job: Object, pods: Sequence[Object]) -> tuple[str, ErrorCode | None]:
    befell, failed = _what_befell(pods), true_condition(job, "Failed") or {}
    # The pod may be gone; of the codes in the policy the Job still has the word.
    in_message = re.search(r"failed with exit code (\d+)", failed.get("message", ""))
    exit_code, reason = next(_exits(pods), (int(in_message[1]) if in_message else None, ""))
    if exit_code is None:
        return befell or f"its pod is gone ({failed.get('message', '')})", ErrorCode.RUNNER_KILLED
    if reason == "OOMKilled":
        return "out of memory", ErrorCode.RUNNER_OUT_OF_MEMORY
    if exit_code > _BY_SIGNAL:
        detail = f"signal {signal_name(exit_code - _BY_SIGNAL)}" + (f" ({befell})" if befell else "")
        term = exit_code - _BY_SIGNAL == signal.SIGTERM
        return detail, ErrorCode.INTERRUPTED if term else ErrorCode.RUNNER_KILLED
    detail = f"exit code {exit_code}"
    # EX_USAGE, of an image too old for what it is told, and EX_CONFIG: it does not know whom to tell.
    if exit_code in {ExitCode.USAGE, ExitCode.CONFIG}:
        return detail, ErrorCode.CONFIG_INVALID
    if exit_code in REPORTED:
        return detail, None
    if exit_code == ExitCode.UNCONFIRMED:
        detail += ", its event in a spool that ended with the pod"
    return detail, ErrorCode.INTERNAL


def _exits(pods: Sequence[Object]) -> Iterator[tuple[int, str]]:
    for pod in pods:
        for status in pod.get("status", {}).get("containerStatuses") or []:
            if ended := status["state"].get("terminated"):
                yield ended["exitCode"], ended.get("reason", "")


def _what_befell(pods: Sequence[Object]) -> str:
    for pod in pods:
        if disrupted := true_condition(pod, "DisruptionTarget"):
            return str(disrupted.get("reason") or "disrupted")
        if reason := pod.get("status", {}).get("reason"):
            return str(reason)
    return ""


def why_waiting(job: Object, pods: Sequence[Object]) -> str:
    """Why a Job has nothing that runs, for people."""
    for pod in pods:
        for status in pod.get("status", {}).get("containerStatuses") or []:
            if waiting := status["state"].get("waiting"):
                return f"{waiting.get('reason', '')}: {waiting.get('message', '')}".strip(": ")
        for condition in pod.get("status", {}).get("conditions") or []:
            if condition["type"] == "PodScheduled" and condition["status"] == "False":
                return f"{condition.get('reason', '')}: {condition.get('message', '')}".strip(": ")
        phase = str(pod.get("status", {}).get("phase", "its pod is being made"))
        return "it has not claimed yet" if phase == "Running" else phase
    return f"it has no pod; kubectl describe job {job['metadata']['name']} says why"

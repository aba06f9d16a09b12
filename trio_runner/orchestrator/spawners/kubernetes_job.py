"""The Job of one attempt: settings in, a Kubernetes object out, no network."""

from __future__ import annotations

import hashlib
import math
import re
from typing import TYPE_CHECKING, Any, Final

import tomli_w

from trio_runner.config.errors import ConfigError, Problem
from trio_runner.config.load import Config
from trio_runner.config.location import is_url
from trio_runner.errors import ExitCode
from trio_runner.orchestrator.spawners.runner_config import own_keys

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_runner.config.sections import KubernetesSection
    from trio_runner.database.backlog import Work

Object = dict[str, Any]
"""A Kubernetes object, as decoded from JSON."""

CONTAINER: Final = "runner"
CONFIG_DIR: Final = "/etc/trio-runner"
CREDENTIALS_DIR: Final = "/run/credentials/trio-runner"
DATA_DIR: Final = "/var/lib/trio-runner"

USER: Final = 10001
"""The image's user, as a number: `runAsNonRoot` accepts no name."""

GRACE_SECONDS: Final = 60
"""From SIGTERM to SIGKILL: `drain_seconds`, and the 34 s that a death may take when no peer answers."""

NOTIFY_DIR: Final = "/run/trio-runner"
NOTIFY_SOCKET: Final = f"{NOTIFY_DIR}/notify"
PROBE_SECONDS: Final = 10
PROBE: Final = {
    "exec": {"command": ["python", "-I", "-m", "trio_runner.base.probe"]},
    "periodSeconds": PROBE_SECONDS,
    # The probe listens for 5 s. A busy node may need the rest to start it.
    "timeoutSeconds": PROBE_SECONDS,
}
"""Listens on NOTIFY_SOCKET for what a service manager's watchdog would listen for."""

WATCHDOG_SECONDS: Final = 30
"""WatchdogSec= of the systemd unit, where a comment says why it is this long."""

HUNG_GRACE_SECONDS: Final = 15
"""TimeoutAbortSec= of the systemd unit: a runner that is slow, but not stuck, can drain in it."""

OF_RUNNERS: Final = "app.kubernetes.io/name=trio-runner,app.kubernetes.io/component=runner"
SCENARIO: Final = "trio-runner/scenario"
EPOCH: Final = "trio-runner/epoch"
ORCHESTRATOR: Final = "trio-runner/orchestrator"
REPORTED_LABEL: Final = "trio-runner/reported"

NOTHING_TO_GAIN: Final = (ExitCode.USAGE, ExitCode.VIDEO, ExitCode.CONFIG, ExitCode.SUPERSEDED)
"""Exit codes that a second pod would end with too: wrong usage, bad video, bad config, another runner's scenario."""


def job_name(scenario_id: int, epoch: int) -> str:
    """One name for one attempt, so that the API server refuses to start it twice."""
    return f"runner-{scenario_id}-{epoch}"


def job(settings: KubernetesSection, node: str, work: Work) -> Object:
    """The Job of one attempt.

    It has one pod, once (`backoffLimit: 0`). The next attempt has an epoch and a Job of its own, so a second pod of
    this Job would be refused by the ledger and exit with 79.

    `podFailurePolicy` decides no retries then. It decides the reason in the Job's condition `Failed`, which outlives
    the pod: `PodFailurePolicy` with the exit code where another attempt is of no use, `PodFailurePolicy` with
    `DisruptionTarget` where the pod was evicted, preempted or lost with its node, and `BackoffLimitExceeded` for
    everything else (74, 75, a signal), where another attempt follows.

    The probes are the watchdog. Every wait of a runner has a deadline, so a runner that does not answer them is stopped
    or stuck. The next attempt does not wait for the probes, because the lease ends meanwhile. There is no readiness
    probe, which only a Service would use.
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
    """The name, or its hash where the name is no valid label."""
    if re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", node):
        return node
    return hashlib.sha256(node.encode()).hexdigest()[:32]


def _pod(settings: KubernetesSection, node: str, work: Work) -> Object:
    volumes: Object = {
        "config": {"configMap": {"name": settings.config_map}},
        # The spool is in it and ends with the pod. That is why the orchestrator reports a runner that exits with 74.
        "data": {"emptyDir": {}},
        # In memory: a runner on a full disk must not be taken for dead.
        "notify": {"emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
    }
    mounts = [
        {"name": "config", "mountPath": CONFIG_DIR, "readOnly": True},
        {"name": "data", "mountPath": DATA_DIR},
        {"name": "notify", "mountPath": NOTIFY_DIR},
    ]
    if settings.secret_name:
        # Owned by root, readable by the pod's group.
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
                # A runner notifies nobody before it has claimed.
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
    # Raises ConfigError for a value that the runner could not use: the settings came from a row.
    Config().replace(**sections)
    if is_url(work.video_path) and "?" in work.video_path:
        # The command of a container is read by whoever may read Jobs, and in the node's list of processes.
        problem, remedy = "a URL with a query, which would stand in the Job's command", "submit it as s3://bucket/key"
        raise ConfigError([Problem(problem=problem, path=("video", "path"), remedy=remedy)])
    for section, keys in sections.items():
        for key, value in keys.items():
            written = tomli_w.dumps({key: value}).strip().partition(" = ")[2]
            # Kubernetes expands $(NAME) in commands, and turns $$ into $.
            yield from ("--set", f"{section}.{key}={written}".replace("$", "$$"))


def _quantities(**amounts: str) -> dict[str, str]:
    return {name: amount for name, amount in amounts.items() if amount}

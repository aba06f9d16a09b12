"""What a Job that has ended, and its pods, say about the runner in it: objects in, `Ended` out, no network."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Final

from trio_runner.base.text import signal_name
from trio_runner.errors import REPORTED, ErrorCode, ExitCode
from trio_runner.model import Failure
from trio_runner.orchestrator.spawners.kubernetes_job import EPOCH, SCENARIO
from trio_runner.orchestrator.spawners.spawner import Ended

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from trio_runner.orchestrator.spawners.kubernetes_job import Object

_BY_SIGNAL: Final = 128
"""The exit code of a container that a signal ended is this plus the signal's number."""


def is_over(job: Object) -> bool:
    """Whether the Job and its pod have ended."""
    return any(true_condition(job, kind) for kind in ("Complete", "Failed"))


def true_condition(found: Object, kind: str) -> Object | None:
    """The object's condition of this kind; None unless its status is True."""
    conditions = found.get("status", {}).get("conditions") or []
    return next((each for each in conditions if each["type"] == kind and each["status"] == "True"), None)


def attempt_of(job: Object) -> tuple[int, int]:
    """Scenario and epoch, by the Job's labels."""
    labels = job["metadata"]["labels"]
    return int(labels[SCENARIO]), int(labels[EPOCH])


def how_it_ended(job: Object, pods: Sequence[Object]) -> Ended:
    """How the attempt ended: by the container's exit code, or else by what happened to its pod."""
    scenario_id, epoch = attempt_of(job)
    if true_condition(job, "Complete"):
        detail, code = "exit code 0", None
    else:
        detail, code = _cause(job, pods)
    failure = None if code is None else Failure(code=code, type="Ended", message=f"ended unreported: {detail}")
    return Ended(scenario_id=scenario_id, epoch=epoch, failure=failure, detail=detail)


def _cause(job: Object, pods: Sequence[Object]) -> tuple[str, ErrorCode | None]:
    disruption, failed = _disruption(pods), true_condition(job, "Failed") or {}
    # The pod may be gone. The Job's own message still has the exit codes that `podFailurePolicy` lists.
    in_message = re.search(r"failed with exit code (\d+)", failed.get("message", ""))
    exit_code, reason = next(_exits(pods), (int(in_message[1]) if in_message else None, ""))
    if exit_code is None:
        return disruption or f"its pod is gone ({failed.get('message', '')})", ErrorCode.RUNNER_KILLED
    if reason == "OOMKilled":
        return "out of memory", ErrorCode.RUNNER_OUT_OF_MEMORY
    if exit_code > _BY_SIGNAL:
        detail = f"signal {signal_name(exit_code - _BY_SIGNAL)}" + (f" ({disruption})" if disruption else "")
        term = exit_code - _BY_SIGNAL == signal.SIGTERM
        return detail, ErrorCode.INTERRUPTED if term else ErrorCode.RUNNER_KILLED
    detail = f"exit code {exit_code}"
    # USAGE comes from an image too old for its arguments. CONFIG leaves the runner without an address to report to.
    if exit_code in {ExitCode.USAGE, ExitCode.CONFIG}:
        return detail, ErrorCode.CONFIG_INVALID
    if exit_code in REPORTED:
        return detail, None
    if exit_code == ExitCode.UNCONFIRMED:
        detail += ", its event in a spool that ended with the pod"
    return detail, ErrorCode.INTERNAL


def _exits(pods: Sequence[Object]) -> Iterator[tuple[int, str]]:
    """Exit code and reason of each container that has ended."""
    for pod in pods:
        for status in pod.get("status", {}).get("containerStatuses") or []:
            if ended := status["state"].get("terminated"):
                yield ended["exitCode"], ended.get("reason", "")


def _disruption(pods: Sequence[Object]) -> str:
    """Why a pod was taken away: evicted, preempted, lost with its node; empty if none was."""
    for pod in pods:
        if disrupted := true_condition(pod, "DisruptionTarget"):
            return str(disrupted.get("reason") or "disrupted")
        if reason := pod.get("status", {}).get("reason"):
            return str(reason)
    return ""


def why_waiting(job: Object, pods: Sequence[Object]) -> str:
    """Why no container of the Job runs, in words for people."""
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

"""The Job of an attempt, and the outcome that is read from a Job that has ended, without a cluster."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_runner.config.sections import KubernetesSection
from trio_runner.config.settings import parse_settings
from trio_runner.database.backlog import Work
from trio_runner.orchestrator.spawners.kubernetes_job import job, job_name, label_of
from trio_runner.orchestrator.spawners.kubernetes_outcome import how_it_ended, why_waiting

# A path with a NUL or a surrogate is refused before it reaches the ledger: PostgreSQL stores neither.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
paths = st.builds(lambda name: str(PurePosixPath("/", name.lstrip("/"))), texts)


def as_kubernetes_passes_it(argument: str) -> str:
    """Expand like k8s.io/kubernetes/third_party/forked/golang/expansion where no such variable is set."""
    return argument.replace("$$", "$")


@given(path=paths | st.just("/a $$(CREDENTIALS_DIRECTORY) $ \\ \"'.mp4"), fps=st.floats(0, 1000))
def test_a_runners_settings_survive_kubernetes_expansion_of_its_command(path: str, fps: float) -> None:
    work = Work(scenario_id=7, epoch=3, video_path=path, settings={"video": {"max_fps": fps, "on_corrupt": "skip"}})
    command = job(KubernetesSection(), "node-a", work)["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:3] == ["trio-runner", "run", "/etc/trio-runner/runner.toml"]
    assert set(command[3::2]) == {"--set"}
    # A lone $ would be the beginning of a variable.
    assert not any(re.search(r"(?<!\$)(?:\$\$)*\$(?!\$)", argument) for argument in command)
    assert parse_settings(map(as_kubernetes_passes_it, command[4::2])) == {
        "runner": {"id": "node-a-7", "data_dir": "/var/lib/trio-runner"},
        "scenario": {"id": 7, "epoch": 3},
        "video": {"path": path, "max_fps": fps, "on_corrupt": "skip"},
        "kafka": {"required": False},
    }


def test_the_longest_names_are_names() -> None:
    # The name of a pod is that of its Job and six characters. The value of a label has at most 63.
    assert len(job_name(2**63 - 1, 2**63 - 1)) + 6 <= 63


@given(texts.filter(bool))
def test_every_node_has_a_label(node: str) -> None:
    assert re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", label_of(node))


def ended(reason: str, message: str) -> dict[str, Any]:
    condition = {"type": "Failed", "status": "True", "reason": reason, "message": message}
    labels = {"trio-runner/scenario": "7", "trio-runner/epoch": "3"}
    return {"metadata": {"name": "runner-7-3", "labels": labels}, "status": {"conditions": [condition]}}


def test_a_pod_that_is_gone_with_its_node_was_killed() -> None:
    found = how_it_ended(ended("BackoffLimitExceeded", "Job has reached the specified backoff limit"), [])
    assert found.failure is not None
    assert (found.failure.code, found.detail) == (
        "runner_killed",
        "its pod is gone (Job has reached the specified backoff limit)",
    )


def test_a_signal_without_a_name_is_a_number() -> None:
    state = {"terminated": {"exitCode": 255, "reason": "Error"}}
    pod = {"status": {"containerStatuses": [{"name": "runner", "state": state}]}}
    assert how_it_ended(ended("BackoffLimitExceeded", ""), [pod]).detail == "signal 127"


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "x"}}}]},
            "ErrImagePull: x",
        ),
        ({"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull"}}}]}, "ErrImagePull"),
        ({"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}]}, "Unschedulable"),
        ({"phase": "Pending"}, "Pending"),
        ({"phase": "Running"}, "it has not claimed yet"),
    ],
)
def test_the_reason_why_a_pod_waits_is_found(status: dict[str, Any], reason: str) -> None:
    assert why_waiting(ended("", ""), [{"status": status}]) == reason

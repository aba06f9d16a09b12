"""The systemd units are valid, as closed as they claim to be, and leave the daemons the time they need."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import PATIENCE_SECONDS
from trio_runner.config.load import Config
from trio_runner.orchestrator.spawners.process import KILL_SECONDS, REPORT_SECONDS

SHIPPED = Path(__file__).parents[2] / "systemd"
UNIT = SHIPPED / "trio-runner@.service"
ORCHESTRATOR = SHIPPED / "trio-runner-orchestrator.service"
UNITS = [UNIT, ORCHESTRATOR]
OF_SYSTEMD_254 = {"RestartSteps", "RestartMaxDelaySec"}
MAX_EXPOSURE = 1.5

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def unit_settings(unit: Path = UNIT) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # typeshed wants a method here
    parser.read_string(unit.read_text())
    return parser


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )


@needs_systemd_analyze
@pytest.mark.parametrize("drop_ins", [[], ["units.conf"]], ids=["alone", "with drop-ins"])
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path, unit: Path, drop_ins: list[str]) -> None:
    # It complains about a program that is not there, and /opt/trio-runner is not on the machine that tests.
    text, replaced = re.subn(
        r"^(ExecStart|ExecStopPost)=\S+", rf"\1={sys.executable}", unit.read_text(), flags=re.MULTILINE
    )
    assert replaced == (2 if unit == UNIT else 1)
    copy = tmp_path / unit.name.replace("@", "@7")
    copy.write_text(text)
    (tmp_path / f"{copy.name}.d").mkdir()
    for drop_in in (path for name in drop_ins if (path := SHIPPED / f"{unit.name}.d" / name).exists()):
        shutil.copy(drop_in, tmp_path / f"{copy.name}.d")

    verified = analyze("verify", "--man=no", copy)

    # Other units of this machine may be named too.
    complaints = {line for line in (verified.stdout + verified.stderr).splitlines() if str(tmp_path) in line}
    unknown = {line for line in complaints if re.search(r"Unknown key(?: name)? '(\w+)'", line)}
    assert complaints == unknown
    assert {found for line in unknown for found in re.findall(r"'(\w+)'", line)} <= OF_SYSTEMD_254
    assert verified.returncode == 0


@needs_systemd_analyze
@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_exposure_is_low(unit: Path) -> None:
    judged = analyze("security", "--offline=true", "--no-pager", unit)

    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", judged.stdout)
    assert exposure, judged.stdout + judged.stderr
    assert float(exposure[1]) <= MAX_EXPOSURE


OWN = {
    "Description", "StartLimitIntervalSec", "CollectMode", "ExecStart", "ExecStartPre", "ExecStopPost", "Restart",
    "RestartSec", "RestartSteps", "RestartMaxDelaySec", "TimeoutStopSec", "MemoryHigh", "MemoryMax", "OOMPolicy",
    "OOMScoreAdjust", "CPUQuota", "TasksMax", "LimitNOFILE", "User", "StateDirectory", "RuntimeDirectory",
    "RuntimeDirectoryMode", "WorkingDirectory", "LoadCredential", "Environment", "NoExecPaths", "WantedBy",
}  # fmt: skip
"""Settings in which the two may differ."""


def test_the_orchestrator_is_as_confined_as_a_runner_which_may_be_its_child() -> None:
    runner, orchestrator = (
        {
            line.strip()
            for line in unit.read_text().splitlines()
            if "=" in line and not line.startswith("#") and line.partition("=")[0] not in OWN
        }
        for unit in UNITS
    )
    assert orchestrator == runner


def test_the_orchestrator_is_always_restarted() -> None:
    assert unit_settings(ORCHESTRATOR)["Service"]["Restart"] == "always"


def test_there_is_time_for_the_orchestrators_children_to_leave_and_to_be_reported() -> None:
    needed = Config().orchestrator.stop_timeout_seconds + KILL_SECONDS + REPORT_SECONDS
    assert int(unit_settings(ORCHESTRATOR)["Service"]["TimeoutStopSec"]) > needed


def test_only_the_orchestrator_restarts_a_runner() -> None:
    assert unit_settings()["Service"]["Restart"] == "no"


def test_there_is_time_to_report_a_failure_before_the_kill() -> None:
    # Cancel 5 s, release the claim 3 s, publish 15 s, close 2 s, spool 1 s.
    failure_budget_seconds = 26
    assert int(unit_settings()["Service"]["TimeoutStopSec"]) > failure_budget_seconds

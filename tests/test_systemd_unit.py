"""The systemd unit is valid, as closed as it claims to be, and leaves the daemon the time it needs."""

from __future__ import annotations

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parent.parent / "systemd" / "trio-runner@.service"
MAX_EXPOSURE = 1.5

needs_systemd_analyze = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def unit_settings() -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False, comment_prefixes=("#",))
    parser.optionxform = str  # type: ignore[assignment, method-assign]  # typeshed wants a method here
    parser.read_string(UNIT.read_text())
    return parser


def analyze(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["systemd-analyze", *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False
    )


@needs_systemd_analyze
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    # It complains about a program that is not there, and /opt/trio-runner is not on the machine that tests.
    text, replaced = re.subn(
        r"^(ExecStart|ExecStopPost)=\S+", rf"\1={sys.executable}", UNIT.read_text(), flags=re.MULTILINE
    )
    assert replaced == 2
    copy = tmp_path / "trio-runner@7.service"
    copy.write_text(text)

    verified = analyze("verify", "--man=no", copy)

    # Other units of this machine may be named too.
    complaints = [line for line in (verified.stdout + verified.stderr).splitlines() if copy.name in line]
    assert not complaints
    assert verified.returncode == 0


@needs_systemd_analyze
def test_exposure_is_low() -> None:
    judged = analyze("security", "--offline=true", "--no-pager", UNIT)

    exposure = re.search(r"Overall exposure level for \S+: ([\d.]+)", judged.stdout)
    assert exposure, judged.stdout + judged.stderr
    assert float(exposure[1]) <= MAX_EXPOSURE


def test_only_the_orchestrator_restarts_a_runner() -> None:
    assert unit_settings()["Service"]["Restart"] == "no"


def test_there_is_time_to_report_a_failure_before_the_kill() -> None:
    # Cancel 5 s, release the claim 3 s, publish 15 s, close 2 s, spool 1 s.
    failure_budget_seconds = 26
    assert int(unit_settings()["Service"]["TimeoutStopSec"]) > failure_budget_seconds

"""The campaign itself: a plan follows from its seed, the invariants see what is wrong, and a few runs are played."""

from __future__ import annotations

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.campaign import schedule as campaign_schedule
from tests.campaign.invariants import Evidence, Trace, repeated_frames, violations
from tests.campaign.mutants import MUTANTS
from tests.campaign.schedule import plan_of
from tests.support.fake_inference import stored_for
from tests.support.harness import Event, environment
from trio_runner.video.decoder.sampling import Sampler

SIZE = (320, 240)


def test_a_plan_follows_from_its_seed_and_every_fault_comes_up() -> None:
    plans = [plan_of(seed) for seed in range(2000)]
    assert plans == [plan_of(seed) for seed in range(2000)]
    assert {fault.kind for plan in plans for fault in plan.faults} >= {
        "kill", "term", "pause", "database", "kafka restart", "database restart", "double start", "old news", "decoder"
    }  # fmt: skip
    assert {plan.clip for plan in plans} == campaign_schedule.FRAMES.keys()


def test_the_truth_of_a_plan_is_what_the_sampler_selects() -> None:
    """The plan finds it by another way."""
    for plan in map(plan_of, range(200)):
        sampler = Sampler(**plan.video)
        times = campaign_schedule._times(plan.clip)
        assert plan.truth == tuple(i for i, seconds in enumerate(times) if sampler.select(i, seconds))


def test_every_mutant_changes_the_program() -> None:
    for name, mutant in MUTANTS.items():
        assert mutant.python or "CREATE OR REPLACE FUNCTION" in mutant.schema_patch(), name
        compile(mutant.python, name, "exec")


def attempt(epoch: int, first: int, end: int, outcome: str) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "runner_id": f"r{epoch}",
        "first_frame": first,
        "end_frame": end,
        "outcome": outcome,
        "ended_at": 1,
    }


def event(epoch: int, reporter: str = "runner") -> Event:
    body = {"epoch": epoch, "runner_id": f"r{epoch}", "reporter": reporter, "reason": "x"}
    return Event(key="1", headers={"ce_id": f"e{epoch}"}, body=body, raw=b"")


def sound() -> Evidence:
    """A killed runner that was reported, and a second one that completed six frames."""
    return Evidence(
        scenario={"epoch": 2, "next_frame": 6, "frames_stored": 6, "total_frames": 6, "outcome": "completed"},
        predictions=[
            {"frame_index": i, "epoch": 1 if i < 3 else 2, "detections": stored_for(i, *SIZE)} for i in range(6)
        ],
        attempts=[attempt(1, 0, 3, "lost"), attempt(2, 3, 6, "completed")],
        deaths=[{"epoch": 1, "event_id": "e1", "reporter": "stop-post", "body": {"runner_id": "r1"}}],
        events=[event(1, "stop-post")],
        spooled=set(),
        traces=[
            Trace(runner_id="r1", epoch=1, code=-9, asked=[0, 1, 2, 3], signals=["SIGKILL"]),
            Trace(runner_id="r2", epoch=2, code=0, asked=[3, 4, 5]),
        ],
        truth=range(6),
        size=SIZE,
        most_repeated=1,
    )


def test_a_sound_run_violates_nothing() -> None:
    assert violations(sound()) == []
    assert repeated_frames(sound()) == [1]


def set_item(of: Callable[[Evidence], Any], key: Any, value: Any) -> Callable[[Evidence], None]:
    return lambda seen: of(seen).__setitem__(key, value)


def set_field(of: Callable[[Evidence], Any], name: str, value: Any) -> Callable[[Evidence], None]:
    return lambda seen: setattr(of(seen), name, value)


def superseded_but_loud(seen: Evidence) -> None:
    seen.events.append(event(1))
    seen.traces[0].code = 79


def silent_death(seen: Evidence) -> None:
    seen.events.clear()
    seen.traces[0].code = 74


def killed_in_between(seen: Evidence) -> None:
    seen.events.clear()
    seen.traces[0].report_death = True


def zombie(seen: Evidence) -> None:
    seen.deaths[0]["reporter"] = "reaper"
    seen.traces[0].frozen_over = True


UNSOUND: dict[str, tuple[Callable[[Evidence], Any], str]] = {
    "a row is missing": (lambda seen: seen.predictions.pop(2), "I1"),
    "progress is behind the rows": (set_item(lambda seen: seen.scenario, "next_frame", 5), "I1"),
    "an old attempt wrote behind": (set_item(lambda seen: seen.predictions[4], "epoch", 1), "I2"),
    "one process, two claims": (set_item(lambda seen: seen.attempts[1], "runner_id", "r1"), "I3"),
    "work without a claim": (lambda seen: seen.traces.append(Trace(runner_id="r3", epoch=2, code=79, asked=[1])), "I3"),
    "a death without a record": (lambda seen: seen.deaths.clear(), "I4"),
    "written after its death": (set_item(lambda seen: seen.attempts[0], "end_frame", 2), "I5"),
    "no outcome": (set_item(lambda seen: seen.attempts[0], "outcome", None), "I6"),
    "completed too early": (set_field(lambda seen: seen, "truth", range(7)), "I7"),
    "another frame's content": (
        set_item(lambda seen: seen.predictions[3], "detections", stored_for(4, *SIZE)),
        "I8",
    ),
    "an event of no death": (lambda seen: seen.events.append(event(7)), "I9"),
    "a death is not published": (silent_death, "I9"),
    "killed between the ledger and Kafka": (killed_in_between, "I9"),
    "an unknown exit code": (set_field(lambda seen: seen.traces[1], "code", 1), "exit"),
    "a signal that nobody sent": (set_field(lambda seen: seen.traces[1], "code", -11), "exit"),
    "75 without an event": (set_field(lambda seen: seen.traces[1], "code", 75), "exit"),
    "79 with an event": (superseded_but_loud, "superseded"),
    "a zombie that ends otherwise": (zombie, "superseded"),
    "asked twice": (lambda seen: seen.traces[1].asked.append(4), "resume"),
    "asked about a frame that is not selected": (lambda seen: seen.traces[1].asked.append(9), "resume"),
    "asked about what was stored": (lambda seen: seen.traces[1].asked.append(2), "resume"),
    "too many again": (set_field(lambda seen: seen, "most_repeated", 0), "resume"),
}


@pytest.mark.parametrize("what", UNSOUND)
def test_each_invariant_is_seen_to_be_violated(what: str) -> None:
    spoil, name = UNSOUND[what]
    seen = copy.deepcopy(sound())
    spoil(seen)
    assert name in {violation.partition(":")[0] for violation in violations(seen)}


@pytest.mark.slow
def test_a_few_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "tests.campaign",
            "--runs",
            "6",
            "--seed",
            "1",
            "--directory",
            str(tmp_path / "campaign"),
        ],
        cwd=Path(__file__).resolve().parents[2],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "violations: 0" in done.stdout

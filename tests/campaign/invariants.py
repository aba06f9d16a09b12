"""What has to be true of a scenario after a run, whatever happened to its runners: I1 to I9, and what processes may do.

Pure: rows, events and processes in, violations as sentences out, each beginning with the name of what it violates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.support.fake_inference import stored_for
from tests.support.harness import Event

REPORTED = {0, 65, 75, 79}
EARLY_QUESTIONS = 5
UNCONFIRMED = 74
KNOWN_CODES = {*REPORTED, UNCONFIRMED, -9, -15}


@dataclass(kw_only=True)
class Trace:
    """What is known of one process of the run."""

    runner_id: str
    epoch: int
    """That it was started for; 0: whichever was free."""
    code: int | None = None
    asked: list[int] = field(default_factory=list)
    """The frames that the service was asked about, in order."""
    frozen_over: bool = False
    """It was stopped, its death was recorded, and it came back: a zombie."""
    ledger_cut: bool = False
    """Its way to the ledger was cut at some time, so it may have published a death that the ledger does not have."""
    report_death: bool = False
    """`report-death` was run after its end."""
    signals: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Evidence:
    """Everything that is left after a run."""

    scenario: dict[str, Any]
    predictions: list[dict[str, Any]]
    attempts: list[dict[str, Any]]
    deaths: list[dict[str, Any]]
    events: list[Event]
    spooled: set[str]
    """Ids of events."""
    traces: list[Trace]
    truth: Sequence[int]
    size: tuple[int, int]
    most_repeated: int
    """As many frames as an attempt may ask about although an earlier one had."""


def violations(evidence: Evidence) -> list[str]:
    """Everything that is wrong."""
    checks = (_rows, _claims, _attempts, _contents, _events, _deaths, _exits, _zombies, _repetitions)
    return [violation for check in checks for violation in check(evidence)]


def _rows(seen: Evidence) -> Iterator[str]:
    frames = [row["frame_index"] for row in seen.predictions]
    stored, next_frame = seen.scenario["frames_stored"], seen.scenario["next_frame"]
    if len(frames) != stored:
        yield f"I1: {len(frames)} rows, but {stored} frames counted as stored"
    if (frames[-1] + 1 if frames else 0) != next_frame:
        yield f"I1: the last row is of frame {frames[-1:]}, but frame {next_frame} is next"
    if frames != [frame for frame in seen.truth if frame < next_frame]:
        yield f"I1: below frame {next_frame} there are {frames}"
    epochs = [row["epoch"] for row in seen.predictions]
    if epochs != sorted(epochs):
        yield f"I2: an earlier attempt wrote behind a later one: {epochs}"
    completed = seen.scenario["outcome"] == "completed"
    if completed != (seen.scenario["total_frames"] is not None):
        yield "I7: completed without a total, or the other way round"
    if completed and (frames != list(seen.truth) or seen.scenario["total_frames"] != len(seen.truth)):
        yield f"I7: completed with {len(frames)} of {len(seen.truth)} frames"


def _claims(seen: Evidence) -> Iterator[str]:
    if len({row["epoch"] for row in seen.attempts}) != len(seen.attempts):
        yield "I3: two claims of one epoch"
    for trace in seen.traces:
        claims = [row["epoch"] for row in seen.attempts if row["runner_id"] == trace.runner_id]
        if len(claims) > 1:
            yield f"I3: {trace.runner_id} claimed epochs {claims}"
        if trace.asked and not claims:
            yield f"I3: {trace.runner_id} worked on an epoch that another had claimed"
        if trace.epoch and claims not in ([], [trace.epoch]):
            yield f"I3: {trace.runner_id}, started for epoch {trace.epoch}, claimed {claims}"


def _attempts(seen: Evidence) -> Iterator[str]:
    epoch = seen.scenario["epoch"]
    if [row["epoch"] for row in seen.deaths] != list(range(1, epoch)):
        yield f"I4: epoch {epoch}, but deaths of {[row['epoch'] for row in seen.deaths]}"
    frames: dict[int, list[int]] = {}
    for row in seen.predictions:
        frames.setdefault(row["epoch"], []).append(row["frame_index"])
    for row in seen.attempts:
        written = frames.pop(row["epoch"], [])
        if row["outcome"] is None or row["end_frame"] is None or row["ended_at"] is None:
            yield f"I6: the attempt of epoch {row['epoch']} has no end, or no outcome"
        elif late := [frame for frame in written if frame >= row["end_frame"]]:
            yield f"I5: epoch {row['epoch']} wrote frames {late} after its death"
        if early := [frame for frame in written if frame < row["first_frame"]]:
            yield f"I5: epoch {row['epoch']} wrote frames {early}, which lie before its first"
    if frames:
        yield f"I5: epochs {list(frames)} wrote, and nobody had claimed them"


def _contents(seen: Evidence) -> Iterator[str]:
    for row in seen.predictions:
        if row["detections"] != stored_for(row["frame_index"], *seen.size):
            yield f"I8: frame {row['frame_index']} has the detections {row['detections']}"


def _events(seen: Evidence) -> Iterator[str]:
    known = {str(row["event_id"]): row for row in seen.deaths}
    cut = {trace.runner_id for trace in seen.traces if trace.ledger_cut}
    # The reply to its claim may have been lost.
    early = {trace.runner_id for trace in seen.traces if len(trace.asked) < EARLY_QUESTIONS}
    # Killed after the death was recorded and before it was published or handed over: a reaper publishes it, later.
    unreported = {
        trace.runner_id
        for trace in seen.traces
        if (trace.code == -9 and not trace.report_death) or trace.code == UNCONFIRMED
    }
    completed = seen.scenario["epoch"] if seen.scenario["outcome"] == "completed" else None
    for event in seen.events:
        if event.headers["ce_id"] in known:
            continue
        # The contract allows both. A runner that cannot reach the ledger and has no claim publishes epoch 0. A runner
        # whose ledger was cut cannot know whether its completion was recorded.
        runner_id, epoch = event.body["runner_id"], event.body["epoch"]
        if runner_id in cut and (epoch == completed or (epoch == 0 and runner_id in early)):
            continue
        yield f"I9: the topic has an event of epoch {event.body['epoch']} that is no death: {event.body['reason']}"
    for row in unpublished(seen):
        if row["body"]["runner_id"] not in unreported or row["reporter"] != "runner":
            yield f"I9: the death of epoch {row['epoch']}, which is recorded by {row['reporter']}, is not published"


def unpublished(seen: Evidence) -> list[dict[str, Any]]:
    """The recorded deaths that are neither on the topic nor in a spool, nor recorded by a successor."""
    published = {event.headers["ce_id"] for event in seen.events} | seen.spooled
    return [row for row in seen.deaths if str(row["event_id"]) not in published and row["reporter"] != "takeover"]


def _deaths(seen: Evidence) -> Iterator[str]:
    for trace in unreported(seen):
        yield f"report: {trace.runner_id} ended with {trace.code}, and nobody has reported it"


def unreported(seen: Evidence) -> list[Trace]:
    """The processes that died with a claim, and of whose death neither the ledger nor Kafka knows."""
    known = {row["body"]["runner_id"] for row in seen.deaths} | {event.body["runner_id"] for event in seen.events}
    at_work = {row["runner_id"] for row in seen.attempts if row["outcome"] != "completed"} - known
    return [trace for trace in seen.traces if trace.runner_id in at_work]


def _exits(seen: Evidence) -> Iterator[str]:
    published = _publishers(seen)
    for trace in seen.traces:
        name, code = trace.runner_id, trace.code
        if code is None:
            yield f"exit: {name} does not end"
        elif code not in KNOWN_CODES or (code < 0 and not trace.signals):
            yield f"exit: {name} ended with {code}"
        if code in (65, 75) and name not in published:
            yield f"exit: {name} ended with {code}, but its event is not on the topic"
        if code == 79 and name in published:
            yield f"superseded: {name} ended with 79, but has published an event"


def _zombies(seen: Evidence) -> Iterator[str]:
    published = _publishers(seen)
    lost = {row["body"]["runner_id"] for row in seen.deaths if row["reporter"] in ("reaper", "takeover")}
    for trace in seen.traces:
        # One that cannot ask the ledger cannot know that it is superseded.
        if trace.frozen_over and not trace.ledger_cut:
            if trace.runner_id in lost and trace.code != 79:
                yield f"superseded: {trace.runner_id} came back after its death and ended with {trace.code}"
            if trace.runner_id in published:
                yield f"superseded: {trace.runner_id} came back after its death and published an event"


def _publishers(seen: Evidence) -> set[str]:
    """The runners that have published their own deaths."""
    return {event.body["runner_id"] for event in seen.events if event.body["reporter"] == "runner"}


def _repetitions(seen: Evidence) -> Iterator[str]:
    first = {row["runner_id"]: row["first_frame"] for row in seen.attempts}
    for trace in seen.traces:
        if len(trace.asked) != len(set(trace.asked)):
            yield f"resume: {trace.runner_id} asked twice about a frame"
        if strange := set(trace.asked) - set(seen.truth):
            yield f"resume: {trace.runner_id} asked about frames that are not selected: {sorted(strange)}"
        if early := [frame for frame in trace.asked if frame < first.get(trace.runner_id, 0)]:
            yield f"resume: {trace.runner_id} asked about frames that were stored: {early}"
    for count in repeated_frames(seen):
        if count > seen.most_repeated:
            yield f"resume: {count} frames were asked about again, more than {seen.most_repeated}"


def repeated_frames(seen: Evidence) -> list[int]:
    """Of each attempt but the first: how many frames it asked about although an earlier one had."""
    asked = {trace.runner_id: set(trace.asked) for trace in seen.traces}
    before: set[int] = set()
    counts = []
    for attempt in seen.attempts:
        mine = asked.get(attempt["runner_id"], set())
        if attempt["epoch"] > 1:
            counts.append(len(before & mine))
        before |= mine
    return counts

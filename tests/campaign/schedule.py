"""From a seed to one run's schedule: which clip, which sampling, and what befalls each attempt at which moment."""

from __future__ import annotations

import math
import random
import signal
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from tests.support.clips import IRREGULAR_MS
from tests.support.fake_inference import Fault as Answer
from tests.support.proxy import Breakdown

PERMANENT = frozenset({Answer.STATUS_404, Answer.REDIRECT, Answer.NO_CONTENT, Answer.SWITCHED})
"""The service's answers that end a scenario: somebody has to put it right and set the row back."""

FPS = 25
START_SECONDS = 0.41
FRAMES = {"short.mp4": 60, "long.mp4": 120, "irregular.mkv": len(IRREGULAR_MS)}


@dataclass(frozen=True, kw_only=True)
class Moment:
    """When something happens to a process; all of it is known beforehand, but not where that finds the process."""

    kind: str
    """`seconds` after the start; `asked`: the service was asked `count` times; `call`: the ledger is sent `verb`;
    `event`: Kafka is sent the retry event."""
    seconds: float = 0.0
    count: int = 0
    verb: str = ""
    place: str = "before"
    """Of a call: `before` its bytes pass, `inside`: they pass and nothing else, `reply`: before its answer passes."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What befalls one attempt."""

    kind: str
    at: Moment
    provoked_at: int = 0
    """If not 0: at this question the service fails, the process dies of that, and the fault strikes on the way out."""
    signal: signal.Signals = signal.SIGKILL
    twice: bool = False
    how: Breakdown = Breakdown.RESET
    answer: Answer = Answer.STATUS_500
    seconds: float = 0.0
    """How long it lasts; 0 of a breakdown: what is open now, and nothing that is opened later."""
    until: str = ""
    """Of a pause past the lease, what ends it: the death's `record`, the successor's `work`, its `end`."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One run."""

    seed: int
    clip: str
    video: dict[str, Any]
    truth: tuple[int, ...]
    """The frames that must be stored in the end, found without the program's own sampler."""
    lease_seconds: float
    longest_answer_seconds: float
    faults: tuple[Fault, ...]
    by: tuple[str, ...]
    """How the death of each attempt comes to be known: `report`, `reap` or `takeover`."""


def plan_of(seed: int, kinds: Collection[str] = ()) -> Plan:
    """The schedule of this seed, always the same; with `kinds`, of no other faults than these."""
    rng = random.Random(seed)
    clip = rng.choices(list(FRAMES), [5, 3, 1])[0]
    video, truth = _sampling(rng, clip)
    count = rng.choices([1, 2, 3], [4, 4, 2])[0]
    faults = tuple(_fault(rng, number, len(truth), kinds) for number in range(count))
    return Plan(
        seed=seed,
        clip=clip,
        video=video,
        truth=truth,
        lease_seconds=rng.choice([1.5, 2.0, 2.5]),
        longest_answer_seconds=rng.choice([0.0, 0.02, 0.05]),
        faults=faults,
        by=tuple(rng.choices(["report", "reap", "takeover"], [5, 3, 2])[0] for _ in range(count)),
    )


def _sampling(rng: random.Random, clip: str) -> tuple[dict[str, Any], tuple[int, ...]]:
    frames = range(FRAMES[clip])
    match rng.choices(["all", "stride", "max_fps", "max_frames", "start"], [6, 2, 2, 1, 2])[0]:
        case "stride":
            stride = rng.choice([2, 3])
            return {"stride": stride}, tuple(frames[::stride])
        case "max_fps":
            # Cells of an eighth of a second. Rounding hurts nobody: no frame comes shortly before a border.
            cells = [math.floor(8 * seconds + 0.01) for seconds in _times(clip)]
            return {"max_fps": 8.0}, tuple(i for i in frames if i == 0 or cells[i] != cells[i - 1])
        case "start":
            # Between two frames.
            shown = [i for i, seconds in zip(frames, _times(clip), strict=True) if seconds > START_SECONDS]
            return {"start_seconds": START_SECONDS, "stride": 2}, tuple(shown[::2])
        case "max_frames":
            return {"max_frames": 20}, tuple(frames[:20])
    return {}, tuple(frames)


def _times(clip: str) -> list[float]:
    if clip == "irregular.mkv":
        return [ms / 1000 for ms in IRREGULAR_MS]
    return [number / FPS for number in range(FRAMES[clip])]


def _moment(rng: random.Random, asked: int) -> Moment:
    """Anywhere in an attempt that asks about so many frames."""
    match rng.choices(["seconds", "asked", "call"], [2, 4, 4])[0]:
        case "seconds":
            return Moment(kind="seconds", seconds=rng.uniform(0, 2.0))
        case "asked":
            return Moment(kind="asked", count=rng.randint(1, max(1, asked)))
    verb = rng.choices(["claim", "store", "later store", "finish"], [2, 3, 4, 2])[0]
    place = rng.choice(["before", "inside", "reply"])
    return Moment(kind="call", verb=verb, count=rng.randint(1, 8), place=place)


def _last_moment(rng: random.Random) -> Moment:
    """While a death is reported."""
    place = rng.choice(["before", "inside", "reply"])
    if rng.random() < 0.5:
        return Moment(kind="call", verb="fail", place=place)
    return Moment(kind="event", place=place)


def _at_work(rng: random.Random, asked: int) -> Moment:
    return Moment(kind="asked", count=rng.randint(1, max(1, asked * 2 // 3)))


def _fault(rng: random.Random, number: int, asked: int, kinds: Collection[str]) -> Fault:
    weights = {
        "kill": 5.0,
        "kill on the way out": 2.5,
        "term": 3.0,
        "term on the way out": 0.5,
        "short pause": 1.0,
        "pause": 3.0,
        "store in transit": 2.0,
        "database": 6.0,
        "database on the way out": 1.5,
        "kafka at the start": 0.7,
        "kafka on the way out": 2.5,
        "decoder": 2.0,
        "inference": 4.0,
        "double start": 2.0,
        "stale start": 1.5 if number else 0.0,
        "old news": 2.0 if number else 0.0,
        "database restart": 0.2,
        "kafka restart": 0.2,
    }
    weights = {kind: weight for kind, weight in weights.items() if not kinds or kind in kinds}
    kind = rng.choices(list(weights), list(weights.values()))[0]
    provoked_at = rng.randint(3, max(3, asked * 2 // 3)) if kind.endswith("on the way out") else 0
    lasting = rng.choice([0.0, 0.5, 1.5, 4.0])
    at = _moment(rng, asked)
    if provoked_at:
        at = _last_moment(rng)
    elif kind == "store in transit":
        at = Moment(kind="call", verb="later store", count=rng.randint(1, 8), place="before")
    elif kind == "kafka at the start":
        at = Moment(kind="seconds")
    elif kind in {"short pause", "pause", "decoder", "inference", "stale start", "old news"} or "restart" in kind:
        at = _at_work(rng, asked)
    if kind == "kafka on the way out":
        # From before the death on, or from the event on.
        at = rng.choice([_at_work(rng, 4), Moment(kind="event", place=rng.choice(["before", "reply"]))])
    return Fault(
        kind=kind,
        at=at,
        provoked_at=provoked_at,
        signal={
            "term": signal.SIGTERM,
            "term on the way out": signal.SIGTERM,
            "short pause": signal.SIGSTOP,
            "pause": signal.SIGSTOP,
            "store in transit": signal.SIGSTOP,
            "decoder": rng.choice([signal.SIGSEGV, signal.SIGKILL, signal.SIGABRT, signal.SIGSTOP]),
        }.get(kind, signal.SIGKILL),
        twice=rng.random() < 0.25,
        how=rng.choice([Breakdown.RESET, Breakdown.CUT, Breakdown.FREEZE, Breakdown.SWALLOW, Breakdown.REFUSE]),
        answer=rng.choice(list(Answer)),
        seconds=rng.uniform(0.1, 0.6) if kind == "short pause" else lasting,
        until=rng.choices(["record", "work", "end"], [3 if kind == "store in transit" else 1, 1, 1])[0],
    )

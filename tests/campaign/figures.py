"""The figures of a campaign: counted while it plays, and printed at its end."""

from __future__ import annotations

import resource
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True)
class Tally:
    """The figures of a campaign."""

    runs: int = 0
    attempts: int = 0
    unprovoked: int = 0
    """Attempts that ended badly although nothing was done to them: a busy machine, or a server that restarted."""
    faults: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    """Faults whose moment did not come before the process had ended."""
    codes: Counter[int] = field(default_factory=Counter)
    reporters: Counter[str] = field(default_factory=Counter)
    violations: int = 0
    unreported: int = 0
    published_later: int = 0
    """Deaths whose reporter was killed between the ledger and Kafka, and for which only a reaper could speak."""
    frozen: int = 0
    """Runners that came back after their successor had been called."""
    killed_to_due: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    term_to_exit: list[float] = field(default_factory=list)
    repeated_frames: list[int] = field(default_factory=list)

    def count_death(self, row: dict[str, Any], killed_at: float, lease_seconds: float) -> None:
        """Of a SIGKILL: when its death was recorded, and when the next attempt was due, backoff included."""
        who, seconds = row["reporter"], row["recorded"] - killed_at
        if who in ("reaper", "takeover"):
            due = max(seconds, row["due"] - killed_at)
            self.killed_to_due[f"recorded by {who}, beyond the lease"].append(seconds - lease_seconds)
            self.killed_to_due[f"due again, recorded by {who}, beyond the lease"].append(due - lease_seconds)
        else:
            self.killed_to_due[f"recorded by {who}"].append(seconds)
            self.killed_to_due[f"due again, recorded by {who}"].append(max(seconds, row["due"] - killed_at))


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank above."""
    return sorted(values)[min(len(values) - 1, int(len(values) * share))]


def report(tally: Tally, seconds: float) -> str:
    """All figures, as lines of text."""
    lines: list[str] = []
    add = lines.append
    usage = resource.getrusage(resource.RUSAGE_CHILDREN), resource.getrusage(resource.RUSAGE_SELF)
    used = sum(each.ru_utime + each.ru_stime for each in usage)
    add(f"\n{tally.runs} runs in {seconds:.0f} s, {tally.attempts} attempts, {used:.0f} s of processor time")
    add(f"  faults: {sum(tally.faults.values())}; {tally.missed} more came too late for their process")
    for kind, count in sorted(tally.faults.items()):
        add(f"    {count:5d}  {kind}")
    add(f"  exit codes: {dict(sorted(tally.codes.items()))}")
    add(f"  deaths, by reporter: {dict(tally.reporters)}")
    add(f"  deaths unreported: {tally.unreported}; published by a reaper in its place: {tally.published_later}")
    add(f"  runners that came back after their death: {tally.frozen}")
    add(f"  attempts that failed although nothing was done to them: {tally.unprovoked}")
    figures = {f"SIGKILL to {what}": values for what, values in sorted(tally.killed_to_due.items())}
    for what, values in (figures | {"SIGTERM to exit": tally.term_to_exit}).items():
        if values:
            p50, p99 = percentile(values, 0.5), percentile(values, 0.99)
            add(f"  {what}: p50 {p50:.2f} s, p99 {p99:.2f} s of {len(values)}")
    add(f"  frames that a resume asked about again: at most {max(tally.repeated_frames, default=0)}")
    add(f"  violations: {tally.violations}")
    return "\n".join(lines)

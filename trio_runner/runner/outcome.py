"""The ways in which a run can end, what became of its retry event, and the exit code of each."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trio_runner.errors import ErrorClass, ErrorCode, ExitCode, Stage
from trio_runner.failure.publication import Publication

if TYPE_CHECKING:
    from trio_runner.model import Claim, Failure


class Ending(enum.StrEnum):
    """The ways in which a run can end."""

    COMPLETED = "completed"
    ALREADY_COMPLETED = "already completed"
    DRAINED = "drained"
    FAILED = "failed"
    REFUSED = "refused"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one run ended, and what became of its retry event; `event` is None where none was due."""

    ending: Ending
    claim: Claim | None
    failure: Failure | None = None
    event: Publication | None = None
    frames_not_inferred: int = 0
    """Of the scenario's stored frames, those of earlier attempts included."""
    boxes_clipped: int = 0
    """In the frames that this run stored."""
    tokens: int = 0
    """That a language model counted for the frames that this run stored."""


def exit_code(outcome: Outcome | None) -> ExitCode:
    """The exit code of a run that ended so; None: it was stopped before it had begun."""
    if outcome is None or outcome.ending in (Ending.COMPLETED, Ending.ALREADY_COMPLETED):
        return ExitCode.OK
    if outcome.ending in (Ending.SUPERSEDED, Ending.REFUSED):
        return ExitCode.SUPERSEDED
    if outcome.event is not Publication.PUBLISHED:
        return ExitCode.UNCONFIRMED
    if outcome.ending is Ending.DRAINED:
        return ExitCode.OK
    code = outcome.failure.code if outcome.failure else ErrorCode.INTERNAL
    bad_video = code.stage is Stage.VIDEO and code.error_class is ErrorClass.PERMANENT
    return ExitCode.VIDEO if bad_video else ExitCode.CONFIRMED

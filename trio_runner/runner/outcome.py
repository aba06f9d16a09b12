"""The ways a run can end, and what is known of its retry event then."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_runner.failure.outbox import Publication
    from trio_runner.model import Claim, Failure


class Ending(enum.StrEnum):
    """The ways a run can end."""

    COMPLETED = "completed"
    ALREADY_COMPLETED = "already completed"
    DRAINED = "drained"
    FAILED = "failed"
    REFUSED = "refused"
    SUPERSEDED = "superseded"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How one run ended, and what became of its retry event; None where none was due."""

    ending: Ending
    claim: Claim | None
    failure: Failure | None = None
    event: Publication | None = None

"""The ways a run can end, and what is known of its retry event then."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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
    """How one run ended; the retry event is acknowledged by Kafka, or in the spool, or was not owed."""

    ending: Ending
    claim: Claim | None
    failure: Failure | None = None
    event_confirmed: bool = False
    event_spooled: bool = False

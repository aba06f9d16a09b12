"""What became of the retry events of deaths: published, waiting, lost, or not due."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_runner.errors import RunnerError
    from trio_runner.model import Claim


class Publication(enum.Enum):
    """What became of the retry event of a death; the value says so in words."""

    PUBLISHED = "published"
    """Kafka has acknowledged it."""
    RECORDED = "recorded, and waits in the database"
    """The scenario's next runner publishes it, or any orchestrator, reaper or `flush-spool`."""
    SPOOLED = "spooled, and waits for the next runner here"
    """PostgreSQL did not record the death. The next runner that starts with this spool publishes the event."""
    LOST = "NOT published"
    """Neither Kafka nor PostgreSQL nor the spool took it."""
    SUPERSEDED = "not due: the scenario is another runner's"
    COMPLETED = "not due: the attempt had completed its scenario"
    """Only the reply to its last statement was lost."""

    @property
    def is_due(self) -> bool:
        """Whether somebody has yet to publish the event."""
        return self in (Publication.RECORDED, Publication.SPOOLED, Publication.LOST)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """The claim whose death was reported, and what became of its retry event."""

    claim: Claim
    event: Publication


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolPass:
    """What became of the spool's records: how many were sent, how many still wait, and why one of them does."""

    sent: int
    waiting: int
    problem: RunnerError | None
    """Why one record, or the directory itself, was passed over; it holds up no other event."""

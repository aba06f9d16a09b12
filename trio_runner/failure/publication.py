"""What became of the retry events of deaths: published, waiting, lost, or not due."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trio_runner.errors import RunnerError
    from trio_runner.model import Claim


class Publication(enum.Enum):
    """What became of the retry event of a death; the value is a phrase for messages."""

    PUBLISHED = "published"
    """Kafka has acknowledged the event."""
    RECORDED = "recorded, and waits in the database"
    """The scenario's next runner publishes the event, or any orchestrator, reaper or `flush-spool`."""
    SPOOLED = "spooled, and waits for the next runner here"
    """PostgreSQL did not record the death. The next runner that starts with this spool publishes the event."""
    LOST = "NOT published"
    """Neither Kafka nor PostgreSQL nor the spool took the event."""
    SUPERSEDED = "not due: the scenario is another runner's"
    COMPLETED = "not due: the attempt had completed its scenario"
    """Only the reply to the attempt's last statement was lost."""

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
class FlushResult:
    """What became of the spool's records: the numbers of those sent and of those that still wait."""

    sent: int
    waiting: int
    problem: RunnerError | None
    """The first error that kept one record from being sent, or the spool's directory from being listed."""

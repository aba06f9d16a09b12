"""What the orchestrator asks of whatever starts its runners."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_runner.config.errors import ConfigError
    from trio_runner.database.backlog import Work


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a runner ended, as its spawner saw it."""

    scenario_id: int
    epoch: int
    failure: Failure | None
    """What nobody has reported yet; None where the runner, or the spawner's own means, has."""
    detail: str
    """For the log: "exit code 75", "signal KILL"."""


class SpawnRefusedError(Exception):
    """A runner could not be started, for now: why, and what to do about it. No attempt was made."""


class Spawner(Protocol):
    """Starts runners and asks them to leave. Opened by its module, with what to call when a runner has ended."""

    @property
    def count(self) -> int:
        """How many of its runners live, with a claim or without; 0 where only the ledger knows."""
        ...

    async def start(self, work: Work) -> None:
        """Start a runner for that attempt; a second one for the same attempt is no harm.

        Raises:
            SpawnRefusedError: not now.
        """
        ...

    async def stop(self, scenario_id: int, epoch: int) -> None:
        """Ask that attempt's runner to drain; asked twice it is asked once, and one that is gone is not asked."""
        ...


def unusable(work: Work, error: ConfigError) -> Ended:
    """The end of an attempt that cannot even be given a config."""
    failure = Failure(code=ErrorCode.CONFIG_INVALID, type="ConfigError", message=str(error)[:2000])
    return Ended(scenario_id=work.scenario_id, epoch=work.epoch, failure=failure, detail="its config cannot be used")


async def report_end(on_ended: Callable[[Ended], Awaitable[None]], ended: Ended) -> None:
    """Call it, once; where the ledger cannot be reached the lease will tell."""
    try:
        await on_ended(ended)
    except RunnerError as error:
        logger.warning("its lease will tell of it: %s", error, extra={"scenario_id": ended.scenario_id})

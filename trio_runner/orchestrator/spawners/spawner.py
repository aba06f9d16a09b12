"""The interface between the orchestrator and its spawners."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from trio_runner.base.logs import about
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import Failure

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trio_runner.config.errors import ConfigError
    from trio_runner.database.backlog import Work


logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a runner ended, as its spawner observed."""

    scenario_id: int
    epoch: int
    failure: Failure | None
    """The failure that has yet to be reported; None where the runner or its spawner has reported the end."""
    detail: str
    """For the log: "exit code 75", "signal KILL"."""


class SpawnRefusedError(Exception):
    """A runner could not be started now: why, and what to do about it. The attempt has not begun."""


class Spawner(Protocol):
    """Starts runners and asks them to drain. Each spawner's module has the function that opens it."""

    @property
    def count(self) -> int:
        """How many runners live, with a claim or without; 0 where only the ledger knows."""
        ...

    async def start(self, work: Work) -> None:
        """Start a runner for that attempt; harmless if it was started before.

        Raises:
            SpawnRefusedError: The runner cannot be started now.
        """
        ...

    async def stop(self, scenario_id: int, epoch: int) -> None:
        """Ask the attempt's runner to drain; once, however often this is called, and only while that runner lives."""
        ...


def unusable(work: Work, error: ConfigError) -> Ended:
    """The end of an attempt for which no config can be made."""
    failure = Failure(code=ErrorCode.CONFIG_INVALID, type="ConfigError", message=str(error)[:2000])
    return Ended(scenario_id=work.scenario_id, epoch=work.epoch, failure=failure, detail="its config cannot be used")


async def report_end(on_ended: Callable[[Ended], Awaitable[None]], ended: Ended) -> None:
    """Call `on_ended` once. If the ledger does not take the report, the end of the lease reports the death."""
    with about(scenario_id=ended.scenario_id, epoch=ended.epoch):
        try:
            await on_ended(ended)
        except RunnerError as error:
            logger.warning("the end is not reported, so the lease has to end first: %s", error)

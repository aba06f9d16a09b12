"""Records the deaths of runners whose leases have ended, and publishes what nobody else has."""

from __future__ import annotations

import logging
import random
from typing import TYPE_CHECKING, Final

from trio_runner.database.store import open_store
from trio_runner.errors import RunnerError
from trio_runner.failure.outbox import publish_outbox
from trio_runner.failure.record import record_lost

if TYPE_CHECKING:
    from trio_runner.config.load import Config
    from trio_runner.failure.publication import Report

logger = logging.getLogger(__name__)

REAP_BATCH: Final = 1000


async def reap(config: Config) -> list[Report]:
    """Record the death of every runner whose lease has ended, and publish every death that waits in the database.

    Any number of reapers may run: PostgreSQL takes the first report of a death, and none of a runner that has renewed
    its lease meanwhile. What Kafka does not take stays in the database for the next reaper.

    Raises:
        RunnerError: PostgreSQL cannot be asked.
    """
    problem: RunnerError | None = None
    try:
        await record_expired(config)
    except RunnerError as error:
        problem = error
    async with open_store(config.database, application_name="trio-runner reap") as store:
        reports = await publish_outbox(config, store)
    if problem is not None:
        raise problem
    return reports


async def record_expired(config: Config) -> int:
    """Record the death of every runner whose lease has ended; its scenario is due again. Returns how many there were.

    Raises:
        RunnerError: PostgreSQL cannot be asked, or did not record one of them; the others are recorded all the same.
    """
    recorded = 0
    async with open_store(config.database, application_name="trio-runner reap") as store:
        while True:
            problem: RunnerError | None = None
            expired = await store.expired_claims(REAP_BATCH)
            # Reapers that run at once are given the same claims. In different orders they share the work.
            random.shuffle(expired)
            for claim, runner_id, host in expired:
                try:
                    recorded += await record_lost(store, claim, runner_id=runner_id, host=host)
                except RunnerError as error:
                    # A row that is locked must not hold up the other rows.
                    logger.warning("scenario %d: %s", claim.scenario_id, error)
                    problem = problem or error
            if problem is not None:
                raise problem
            if len(expired) < REAP_BATCH:
                return recorded

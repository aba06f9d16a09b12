"""Retry events as an orchestrator handles them: recorded in the ledger, which takes each death once."""

from __future__ import annotations

import random
import uuid
from typing import Any

from tests.campaign.crew import Note, Violated
from tests.campaign.world import World
from tests.support.harness import Event


class Inbox:
    """One scenario's events, and an orchestrator that believes all of them."""

    def __init__(self, world: World, scenario_id: int, rng: random.Random, note: Note) -> None:
        self._world, self._id, self._rng, self._note = world, scenario_id, rng, note
        self._consumed = 0

    async def consume(self, *, again: bool = False) -> None:
        """Record every new event in the ledger, and if `again` old ones too, doubled and in any order."""
        await self._world.read_events()
        events = self._world.events[self._id]
        news, self._consumed = events[self._consumed :], len(events)
        if again:
            doubled = [event for event in events if self._rng.random() < 0.7]
            self._rng.shuffle(doubled)
            await self._world.publish(doubled)
            news = [*doubled, *news]
        for event in news:
            if event.body["epoch"]:
                await self._record(event)
        await self._record_forged()

    async def _record(self, event: Event) -> None:
        body = event.body
        known = await self._world.ledger.query(
            "SELECT FROM retry_events WHERE scenario_id = $1 AND epoch = $2", self._id, body["epoch"]
        )
        recorded = await self._fail(body["epoch"], body["instance_id"], event.headers["ce_id"], body)
        self._note("event recorded in the ledger", epoch=body["epoch"], recorded=recorded, known=bool(known))
        if known and recorded:
            raise Violated(f"I4: the ledger took a second report of the death of epoch {body['epoch']}")

    async def _record_forged(self) -> None:
        """Report, as a process without the claim, the death of the attempt that is under way or next."""
        row = await self._world.ledger.scenario(self._id)
        if row is not None and await self._fail(row["epoch"], str(uuid.uuid4()), str(uuid.uuid4()), {"error": {}}):
            raise Violated(f"I4: the ledger took a stranger's report of the death of epoch {row['epoch']}")

    async def _fail(self, epoch: int, instance_id: str, event_id: str, body: dict[str, Any]) -> bool:
        (answer,) = await self._world.ledger.query(
            "SELECT fail($1, $2, $3, $4, 'runner', $5, $6) AS recorded",
            self._id,
            epoch,
            uuid.UUID(instance_id),
            uuid.UUID(event_id),
            body["error"].get("class", "retriable"),
            body,
        )
        return bool(answer["recorded"])

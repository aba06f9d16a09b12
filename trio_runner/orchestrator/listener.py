"""The orchestrator's end of Kafka: commands are applied, retry events reconciled, bad messages put aside."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, NoReturn

from trio_runner.base.logs import about
from trio_runner.base.redact import redact
from trio_runner.database.backlog import Backlog
from trio_runner.database.store import Store, open_store
from trio_runner.errors import ClaimRefusedError, RunnerError
from trio_runner.failure.record import record_death
from trio_runner.kafka.command import StartCommand, decode_command
from trio_runner.kafka.inbox import open_inbox
from trio_runner.kafka.record import BadEventError
from trio_runner.kafka.retry_event import event_of
from trio_runner.orchestrator.dead_letters import publish_refused
from trio_runner.video.source import location_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trio_runner.config.load import Config
    from trio_runner.kafka.record import Record
    from trio_runner.kafka.retry_event import RetryEvent

logger = logging.getLogger(__name__)

APPLICATION: Final = "trio-runner orchestrate"
"""The name of an orchestrator's connections in `pg_stat_activity`."""

RECEIVE_SECONDS: Final = 1.0
RECEIVE_RECORDS: Final = 500


class Listener:
    """Reads the retry topic and the command topic, as a member of the fleet's consumer group."""

    def __init__(self, config: Config, template: Config, on_change: Callable[[], None]) -> None:
        """`template` is the config that runners are given; `on_change` is called when the ledger has taken messages."""
        self._config, self._template, self._on_change = config, template, on_change

    async def listen(self) -> NoReturn:
        """Bring each message into the ledger; its offset is committed after that, so no message is lost.

        Raises:
            RunnerError: PostgreSQL or Kafka cannot be used.
        """
        config = self._config
        topics = {
            config.kafka.retry_topic: "kafka.retry_topic",
            config.orchestrator.command_topic: "orchestrator.command_topic",
        }
        async with (
            open_store(config.database, application_name=APPLICATION) as store,
            open_inbox(config.kafka, topics, config.orchestrator.group) as inbox,
        ):
            while True:
                records = await inbox.receive(wait_seconds=RECEIVE_SECONDS, limit=RECEIVE_RECORDS)
                events = []
                publish = True
                for record in records:
                    try:
                        if record.topic == config.kafka.retry_topic:
                            events.append(event_of(record))
                        else:
                            await self._apply(store, record)
                    except (BadEventError, ClaimRefusedError) as error:
                        # A dead letter that Kafka refuses costs a timeout, and the group waits for no member that long
                        # a second time. So the rest of the batch is not published either.
                        publish = await self._put_aside(record, redact(str(error)), publish=publish)
                if records:
                    await self._reconcile(store, events)
                    await inbox.commit()
                    self._on_change()

    async def _put_aside(self, record: Record, why: str, *, publish: bool) -> bool:
        """Log a message that cannot be used, and publish a copy as a dead letter; returns whether Kafka took that."""
        with about(topic=record.topic, partition=record.partition, offset=record.offset):
            logger.warning("a message is put aside: %s", why)
            try:
                if publish:
                    await publish_refused(self._config, record, why)
            except RunnerError as error:
                logger.warning("the dead-letter topic has no copy of the message: %s", error)
                return False
        return publish

    async def _reconcile(self, store: Store, events: Sequence[RetryEvent]) -> None:
        """Record each death that the ledger does not have yet; its runner may not have reached the database."""
        unknown = await Backlog(store).reconcile([event.claim for event in events])
        for event in events:
            if (event.scenario_id, event.epoch) not in unknown:
                continue
            recorded = await record_death(store, event.claim, event)
            await store.mark_published(event.scenario_id, event.epoch)
            with about(scenario_id=event.scenario_id, epoch=event.epoch, code=str(event.error.code), recorded=recorded):
                logger.info("a death that the ledger did not have was reconciled with its retry event")

    async def _apply(self, store: Store, record: Record) -> None:
        """Apply a command, unless a command of its id was applied before.

        Raises:
            BadEventError: The message is no command.
            ClaimRefusedError: The ledger refuses the command.
        """
        command_id, command = decode_command(record, self._template)
        if isinstance(command, StartCommand):
            refuse_url(command.video_path, self._template)
        start = isinstance(command, StartCommand)
        settings = command.settings if isinstance(command, StartCommand) else {}
        first = await Backlog(store).apply(
            command_id,
            "start" if start else "stop",
            command.scenario_id,
            command.video_path if isinstance(command, StartCommand) else "",
            settings,
            max_failures=settings.get("scenario", {}).get("max_failures", self._template.scenario.max_failures),
            max_epochs=self._config.orchestrator.max_epochs,
        )
        with about(scenario_id=command.scenario_id, command=command_id):
            logger.info(
                "the command %s is applied" if first else "the command %s was applied before and changes nothing",
                "start" if start else "stop",
            )


def refuse_url(video_path: str, template: Config) -> None:
    """Raise BadEventError for a URL that no runner of this fleet would fetch."""
    try:
        location_of(video_path, template.storage.url_prefixes)
    except RunnerError as error:
        raise BadEventError(error.message) from error

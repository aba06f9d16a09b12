"""The dead-letter topic: scenarios that were given up, and messages that could not be applied."""

from __future__ import annotations

import dataclasses
import uuid
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

import msgspec

from trio_runner.base.redact import redact
from trio_runner.kafka.connection import send

if TYPE_CHECKING:
    from trio_runner.config.load import Config
    from trio_runner.database.backlog import GivenUp
    from trio_runner.kafka.record import Record

GIVEN_UP: Final = "trio-runner.given-up.v1"
REFUSED: Final = "trio-runner.refused.v1"
MAX_REFUSED_BYTES: Final = 16 * 1024
_NAMESPACE: Final = uuid.UUID("b60f3f63-6c0c-5d6a-9f4e-0f6a1c0a7d55")


async def publish_given_up(config: Config, given_up: GivenUp) -> None:
    """Publish that a scenario was given up, with the error of its last attempt; the message always has the same id.

    Raises:
        RunnerError: One of `kafka_*`. The message may still arrive.
    """
    # The query of a presigned URL lets whoever reads the topic read the video.
    body = msgspec.json.encode(dataclasses.replace(given_up, video_path=redact(given_up.video_path)))
    key = str(given_up.scenario_id)
    name = f"{key}:{given_up.epoch}"
    await _send(config, GIVEN_UP, name, key.encode(), body, {"ce_epoch": str(given_up.epoch)})


async def publish_refused(config: Config, record: Record, why: str) -> None:
    """Publish a copy of a message that cannot be used, with the reason, its topic, partition and offset.

    Raises:
        RunnerError: One of `kafka_*`. The copy may still arrive, and the message stays on its topic.
    """
    place = f"{record.topic}/{record.partition}/{record.offset}"
    value = (record.value or b"")[:MAX_REFUSED_BYTES]
    headers = {"refused-because": why[:1000], "refused-at": place}
    await _send(config, REFUSED, place, record.key or b"", value, headers)


async def _send(config: Config, kind: str, name: str, key: bytes, value: bytes, further: dict[str, str]) -> None:
    attributes = {
        "ce_specversion": "1.0",
        "ce_id": str(uuid.uuid5(_NAMESPACE, f"{kind}:{name}")),
        "ce_source": "/trio-runner/orchestrator",
        "ce_type": kind,
        "ce_time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        **further,
    }
    headers = [(name, text.encode()) for name, text in attributes.items()]
    topic = config.orchestrator.dead_letter_topic
    await send(config.kafka, topic, key, value, headers, topic_key="orchestrator.dead_letter_topic")

"""The error that a produce response stands for: aiokafka's own where it is right, and a refusal otherwise."""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from aiokafka import errors
from aiokafka.errors import BrokerResponseError, KafkaError

AS_AIOKAFKA_HAS_IT: Final = (
    errors.UnknownTopicOrPartitionError,
    errors.LeaderNotAvailableError,
    errors.NotLeaderForPartitionError,
    errors.RequestTimedOutError,
    errors.MessageSizeTooLargeError,
    errors.InvalidTopicError,
    errors.RecordListTooLargeError,
    errors.NotEnoughReplicasError,
    errors.NotEnoughReplicasAfterAppendError,
    errors.TopicAuthorizationFailedError,
    errors.ClusterAuthorizationFailedError,
)
"""`kafka.errors.explain` has words for each of these."""

CORRECTED_NAMES: Final = MappingProxyType(
    {
        -1: "UNKNOWN_SERVER_ERROR",
        13: "NETWORK_EXCEPTION",
        74: "FENCED_LEADER_EPOCH",
        75: "UNKNOWN_LEADER_EPOCH",
        76: "UNSUPPORTED_COMPRESSION_TYPE",
        87: "INVALID_RECORD",
    }
)
"""Names from Apache Kafka's protocol guide for codes that aiokafka does not know, or knows by another name."""

RETRIABLE_CODES: Final = frozenset({2, 9, 13, 74, 75})
"""Codes that Kafka calls retriable and aiokafka does not. 2 is CORRUPT_MESSAGE, and 9 is REPLICA_NOT_AVAILABLE."""


class RecordRefusedError(KafkaError):  # type: ignore[misc]  # aiokafka has no types
    """The broker has answered that it does not take the record."""

    def __init__(self, code: int, topic: str) -> None:
        """Name the code as Kafka does; `retriable` says whether the same record may be taken later."""
        known = errors.for_code(code)
        name = CORRECTED_NAMES.get(code) or ("" if known is errors.UnknownError else known.message)
        super().__init__(topic)
        self.answer = f"{code} ({name})" if name else f"{code}"
        self.retriable = known.retriable or code in RETRIABLE_CODES


def produce_error(code: int, topic: str) -> KafkaError | None:
    """The error for the code of a produce response about `topic`, or None if the record was taken."""
    if code == errors.NoError.errno:
        return None
    known: type[BrokerResponseError] = errors.for_code(code)
    return known(topic) if known in AS_AIOKAFKA_HAS_IT else RecordRefusedError(code, topic)

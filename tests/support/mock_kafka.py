"""librdkafka's mock cluster inside the test process, which can be told how to answer the next requests."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import confluent_kafka

PRODUCER = 0
PRODUCE_API_KEY = 0


class MockKafka:
    """A cluster of `brokers` brokers, numbered from 1. librdkafka's `rdkafka_mock.h` describes the functions."""

    def __init__(self, brokers: int = 1) -> None:
        (library,) = Path(confluent_kafka.__file__).parent.parent.glob("confluent_kafka.libs/librdkafka*")
        self._library = ctypes.CDLL(str(library))
        for name in ("rd_kafka_conf_new", "rd_kafka_new", "rd_kafka_mock_cluster_new"):
            getattr(self._library, name).restype = ctypes.c_void_p
        self._library.rd_kafka_mock_cluster_bootstraps.restype = ctypes.c_char_p
        configuration = ctypes.c_void_p(self._library.rd_kafka_conf_new())
        self._client = ctypes.c_void_p(self._library.rd_kafka_new(PRODUCER, configuration, None, ctypes.c_size_t(0)))
        self._cluster = ctypes.c_void_p(self._library.rd_kafka_mock_cluster_new(self._client, brokers))
        assert self._cluster

    def close(self) -> None:
        self._library.rd_kafka_mock_cluster_destroy(self._cluster)
        self._library.rd_kafka_destroy(self._client)

    @property
    def addresses(self) -> str:
        addresses: bytes = self._library.rd_kafka_mock_cluster_bootstraps(self._cluster)
        return addresses.decode()

    def create_topic(self, topic: str, *, leader: int = 1) -> None:
        """Create it with one partition."""
        assert not self._library.rd_kafka_mock_topic_create(self._cluster, topic.encode(), 1, 1)
        self.set_leader(topic, leader)

    def set_leader(self, topic: str, leader: int) -> None:
        """From now on this broker leads the topic's partition."""
        assert not self._library.rd_kafka_mock_partition_set_leader(self._cluster, topic.encode(), 0, leader)

    def answer_produce(self, answers: list[tuple[int, float]], *, broker: int = 1) -> None:
        """Answer the next produce requests with these error codes, each after so many seconds.

        A record whose error code is 0 is appended at once, before the seconds pass.
        """
        pairs = [ctypes.c_int(number) for code, seconds in answers for number in (code, int(seconds * 1000))]
        assert not self._library.rd_kafka_mock_broker_push_request_error_rtts(
            self._cluster,
            ctypes.c_int32(broker),
            ctypes.c_int16(PRODUCE_API_KEY),
            ctypes.c_size_t(len(answers)),
            *pairs,
        )


@contextmanager
def mock_kafka(brokers: int = 1) -> Iterator[MockKafka]:
    """The cluster, until the block ends."""
    cluster = MockKafka(brokers)
    try:
        yield cluster
    finally:
        cluster.close()

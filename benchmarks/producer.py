"""Is an idempotent producer worth its while for one record? Cold start, a broker that freezes, what is there twice.

    python benchmarks/producer.py                 against the embedded broker
    python benchmarks/producer.py DIRECTORY       also against Apache Kafka (tests/support/apache_kafka.sh start)

Prints, with and without idempotence: how long start, send and stop take on a topic that exists; and with the broker
stopped by SIGSTOP between start and send, whether `send_and_wait` and `stop` end by themselves within WATCH_SECONDS,
and how often the record is on the topic after SIGCONT and a second sending by a new producer.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import statistics
import subprocess
import sys
import time
import uuid
from pathlib import Path

import psutil
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

ROUNDS = 50
WATCH_SECONDS = 20.0
REQUEST_SECONDS = 5.0


def make_producer(brokers: str, *, idempotent: bool) -> AIOKafkaProducer:
    """A producer of aiokafka; `trio_runner.kafka.connection` uses none, partly for these results."""
    return AIOKafkaProducer(
        bootstrap_servers=brokers,
        acks="all",
        enable_idempotence=idempotent,
        request_timeout_ms=int(REQUEST_SECONDS * 1000),
        retry_backoff_ms=100,
        linger_ms=0,
    )


async def cold(brokers: str, topic: str, *, idempotent: bool) -> list[float]:
    """Seconds for start, send and stop together, one new producer after the other."""
    taken = []
    for _ in range(ROUNDS):
        begun = time.perf_counter()
        producer = make_producer(brokers, idempotent=idempotent)
        await producer.start()
        await producer.send_and_wait(topic, b"x" * 2048, b"7")
        await producer.stop()
        taken.append(time.perf_counter() - begun)
    return sorted(taken)


async def frozen(brokers: str, pid: int, topic: str, *, idempotent: bool) -> str:
    """What becomes of one record whose broker freezes before it is sent."""
    producer = make_producer(brokers, idempotent=idempotent)
    await producer.start()
    await producer.partitions_for(topic)
    os.kill(pid, signal.SIGSTOP)
    while psutil.Process(pid).status() != psutil.STATUS_STOPPED:  # noqa: ASYNC110 - the kernel has no event for it
        await asyncio.sleep(0.001)
    try:
        sent = await watched(producer.send_and_wait(topic, b"once?", b"7"))
        stopped = await watched(producer.stop())
    finally:
        os.kill(pid, signal.SIGCONT)
    # Nothing of the first attempt is left but what the broker's socket holds.
    again = make_producer(brokers, idempotent=idempotent)
    await again.start()
    await again.send_and_wait(topic, b"once?", b"7")
    await again.stop()
    return f"send: {sent}; stop: {stopped}; on the topic: {await count(brokers, topic)} times"


async def watched(call: object) -> str:
    """How it ends, and after how long."""
    begun = time.perf_counter()
    task = asyncio.ensure_future(call)
    done, _ = await asyncio.wait([task], timeout=WATCH_SECONDS)
    after = f"after {time.perf_counter() - begun:.1f} s"
    if not done:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait([task], timeout=5)
        return f"still waits {after}"
    error = task.exception()
    return f"{type(error).__name__} {after}" if error else f"done {after}"


async def count(brokers: str, topic: str) -> int:
    """How many records the topic holds, once nothing more arrives for a second."""
    consumer = AIOKafkaConsumer(
        topic, bootstrap_servers=brokers, auto_offset_reset="earliest", enable_auto_commit=False
    )
    await consumer.start()
    found = 0
    try:
        while batch := await consumer.getmany(timeout_ms=1000):
            found += sum(map(len, batch.values()))
    finally:
        await consumer.stop()
    return found


async def measure(name: str, brokers: str, pid: int) -> None:
    """Both kinds of producer against one broker."""
    for idempotent in (False, True):
        topic = f"bench.{uuid.uuid4()}"
        warm = make_producer(brokers, idempotent=False)
        await warm.start()
        await warm.send_and_wait(topic, b"", b"7")
        await warm.stop()
        taken = await cold(brokers, topic, idempotent=idempotent)
        p99 = taken[int(len(taken) * 0.99)]
        print(
            f"{name}, idempotent {idempotent}: cold {statistics.median(taken) * 1000:.1f} ms, p99 {p99 * 1000:.1f} ms"
        )
        topic = f"bench.{uuid.uuid4()}"
        print(f"{name}, idempotent {idempotent}: frozen: {await frozen(brokers, pid, topic, idempotent=idempotent)}")


def main() -> None:
    """The embedded broker as a child, and Apache Kafka where it is named."""
    with subprocess.Popen(
        [sys.executable, "-m", "trio_runner.embedded.broker"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as broker:
        assert broker.stdout is not None
        try:
            port = json.loads(broker.stdout.readline())["port"]
            asyncio.run(measure("embedded", f"127.0.0.1:{port}", broker.pid))
        finally:
            broker.kill()
    for directory in map(Path, sys.argv[1:]):
        lines = (directory / "addresses.env").read_text().splitlines()
        addresses = dict(line.split("=", 1) for line in lines)
        pid = int((directory / "pid").read_text())
        asyncio.run(measure("Apache Kafka", addresses["TRIO_RUNNER_TEST_KAFKA"], pid))


if __name__ == "__main__":
    main()

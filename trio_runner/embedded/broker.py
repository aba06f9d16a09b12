"""A Kafka broker for one machine: librdkafka's mock cluster, which speaks the real protocol.

It accepts idempotent producers and consumer groups, creates a topic when a client first names it, and listens on
127.0.0.1, on a port that the kernel chooses. Topics are in memory and are lost when it ends, which costs no promise:
those rest on the database.
"""

from __future__ import annotations

import argparse
import json
import signal

from trio_runner.base.leash import tie_to_parent


def main() -> None:
    """Serve until SIGTERM; print `{"port": N}` once the broker answers."""
    parser = argparse.ArgumentParser(prog="python -m trio_runner.embedded.broker", description=__doc__)
    parser.add_argument("--tied", action="store_true", help="end when the parent process does")
    if parser.parse_args().tied:
        tie_to_parent()
    # The signals are blocked before librdkafka starts its threads. The threads inherit that, so sigwait gets a signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})

    # Imported after the leash is on: during this long import the parent may die.
    from confluent_kafka import Producer

    # The cluster belongs to a client and lives as long as it does (librdkafka, `test.mock.num.brokers`). That
    # client's own bootstrap address is replaced by the cluster's.
    client = Producer({"test.mock.num.brokers": 1, "bootstrap.servers": "replaced"})
    (broker,) = client.list_topics(timeout=10).brokers.values()
    print(json.dumps({"port": broker.port}), flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()

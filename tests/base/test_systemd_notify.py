from __future__ import annotations

import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from trio_runner.base.notify import Notifier


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """NOTIFY_SOCKET's value, and the socket that listens there."""
    if request.param == "path":
        value = str(tmp_path / "notify")
        address = value
    else:
        value = f"@trio-runner-test-{uuid.uuid4()}"
        address = "\0" + value[1:]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(0)
        listener.bind(address)
        yield value, listener


def received(listener: socket.socket) -> list[bytes]:
    messages = []
    while True:
        try:
            messages.append(listener.recv(4096))
        except BlockingIOError:
            return messages


def test_each_message_is_one_datagram(manager: tuple[str, socket.socket]) -> None:
    value, listener = manager
    notifier = Notifier({"NOTIFY_SOCKET": value})
    notifier.ready()
    notifier.status("frame 1 of 20 - Größe")
    notifier.watchdog()
    notifier.stopping()
    assert received(listener) == [
        b"READY=1",
        "STATUS=frame 1 of 20 - Größe".encode(),
        b"WATCHDOG=1",
        b"STOPPING=1",
    ]


def test_a_full_queue_does_not_wait(manager: tuple[str, socket.socket]) -> None:
    value, listener = manager
    notifier = Notifier({"NOTIFY_SOCKET": value})
    sent = 10_000
    for _ in range(sent):
        notifier.watchdog()
    assert 0 < len(received(listener)) < sent


def test_a_manager_that_went_away_is_harmless(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(path))
    notifier = Notifier({"NOTIFY_SOCKET": str(path)})
    notifier.ready()
    path.unlink()
    notifier.ready()


@pytest.mark.parametrize("value", ["", "/" + "x" * 200, "@" + "x" * 200, "vsock:2:1234", "@"])
def test_no_manager_or_one_that_cannot_be_reached_is_harmless(value: str) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": value})
    notifier.ready()
    notifier.stopping()


def test_no_environment_no_manager() -> None:
    notifier = Notifier({})
    notifier.ready()
    assert notifier.watchdog_seconds is None


@pytest.mark.parametrize(
    ("usec", "seconds"), [("30000000", 30.0), ("500000", 0.5), ("", None), ("-1", None), ("x", None), ("1.5", None)]
)
def test_the_watchdogs_interval(usec: str, seconds: float | None) -> None:
    assert Notifier({"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": usec}).watchdog_seconds == seconds


def test_there_is_no_watchdog_where_there_is_nobody_to_notify() -> None:
    assert Notifier({"WATCHDOG_USEC": "30000000"}).watchdog_seconds is None


def test_a_watchdog_meant_for_another_process_is_not_ours() -> None:
    """sd_watchdog_enabled(3): WATCHDOG_PID, where it is set, names the process that must answer."""
    environ = {"NOTIFY_SOCKET": "@x", "WATCHDOG_USEC": "30000000"}
    assert Notifier(environ | {"WATCHDOG_PID": str(os.getpid())}).watchdog_seconds == 30.0
    assert Notifier(environ | {"WATCHDOG_PID": str(os.getpid() + 1)}).watchdog_seconds is None

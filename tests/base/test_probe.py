"""The probe for containers, as a process, against what a runner or orchestrator sends."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.harness import PATIENCE_SECONDS
from trio_runner.base.notify import Notifier


@contextmanager
def notifying(path: Path, *states: str) -> Iterator[None]:
    """A process that notifies again and again, whether anybody listens or not."""
    notifier, over = Notifier({"NOTIFY_SOCKET": str(path)}), threading.Event()

    def notify() -> None:
        while not over.wait(0.02):
            for state in states:
                notifier._send(state)

    thread = threading.Thread(target=notify)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def asked(path: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-I", "-m", "trio_runner.base.probe"],
        env={"NOTIFY_SOCKET": path},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
        check=False,
    )
    return done.returncode, done.stderr


def test_a_process_that_makes_progress_is_alive_again_and_again(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with notifying(path, "STATUS=frame 1 of 20", "WATCHDOG=1"):
        assert [asked(str(path)) for _ in range(2)] == [(0, ""), (0, "")]
    assert not path.exists()


def test_a_process_that_sends_a_status_only_does_not_pass(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with notifying(path, "READY=1", "STATUS=WATCHDOG=1 of 20"):
        code, output = asked(str(path))
    assert (code, "no sign of life" in output) == (1, True)
    assert not path.exists()


def test_what_a_killed_probe_left_is_no_hindrance(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as left:
        left.bind(str(path))
    with notifying(path, "WATCHDOG=1"):
        assert asked(str(path)) == (0, "")


def test_a_service_manager_that_listens_keeps_its_socket(tmp_path: Path) -> None:
    path = tmp_path / "notify"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(path))
        code, output = asked(str(path))
        assert (code, "in use" in output) == (1, True)
        Notifier({"NOTIFY_SOCKET": str(path)}).ready()
        assert manager.recv(100) == b"READY=1"


@pytest.mark.parametrize("value", ["", "@abstract", "/no/such/directory/notify"])
def test_a_socket_that_cannot_be_made_is_named(value: str) -> None:
    code, output = asked(value)
    assert code == 1
    assert "NOTIFY_SOCKET" in output or "No such file" in output

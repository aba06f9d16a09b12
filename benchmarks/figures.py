"""Measures a runner from the outside: time to READY and to the first stored prediction, memory, frames/s, time to die.

    python benchmarks/figures.py [--runs 20]

Starts the embedded servers once, then real `trio-runner run` processes against them. Times are wall-clock of this
machine: compare them within one run of this script only. Needs the development dependencies.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.support import clips  # noqa: E402 - the tests' clips are made by the tests' own script

COMMAND = [sys.executable, "-m", "trio_runner"]


class Answer(BaseHTTPRequestHandler):
    """Answers every frame at once with one box; after `fail_after` frames with 500, noting the time."""

    protocol_version = "HTTP/1.1"
    fail_after = 0
    served = 0
    failed_at = 0.0

    def do_POST(self) -> None:
        """Answer one frame."""
        self.rfile.read(int(self.headers["Content-Length"]))
        cls = type(self)
        cls.served += 1
        failing = bool(cls.fail_after) and cls.served >= cls.fail_after
        body = b'{"predictions": [{"class": "person", "confidence": 0.9, "bbox": [1, 1, 9, 9]}]}'
        if failing and not cls.failed_at:
            cls.failed_at = time.time()
        head = f"HTTP/1.1 {500 if failing else 200} X\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        self.wfile.write(head + body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


class Service(ThreadingHTTPServer):
    """The fake inference service."""

    def handle_error(self, *_: object) -> None:
        """A runner that dies resets its connections; that is no error here."""


def run(config: Path, scenario: int, *extra: str, on_ready: Callable[[], None] = lambda: None) -> dict[str, float]:
    """One runner to its end; seconds since exec, MiB."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, tempfile.TemporaryDirectory() as directory:
        address = f"{directory}/notify"
        manager.bind(address)
        manager.settimeout(30)
        started = time.time()
        child = subprocess.Popen(
            [*COMMAND, "run", str(config), "--scenario", str(scenario), *extra],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"NOTIFY_SOCKET": address},
            cwd=ROOT,
        )
        figures: dict[str, float] = {}
        ended = threading.Event()
        peaks = {"daemon": 0, "decoder": 0}

        def listen() -> None:
            while b"READY=1" not in manager.recv(4096):
                pass
            figures["ready"] = time.time() - started
            on_ready()

        def watch() -> None:
            # Not rusage: a child's high-water mark begins with that of the process it was forked from.
            while not ended.is_set():
                for pid in [child.pid, *children_of(child.pid)]:
                    name = "daemon" if pid == child.pid else "decoder"
                    peaks[name] = max(peaks[name], high_water_kib(pid))
                time.sleep(0.02)

        threads = [threading.Thread(target=listen, daemon=True), threading.Thread(target=watch, daemon=True)]
        for thread in threads:
            thread.start()
        stderr = child.stderr.read().decode() if child.stderr else ""
        figures["code"] = child.wait()
        figures["exit"] = time.time() - started
        ended.set()
        figures |= {f"{name} MiB": peak / 1024 for name, peak in peaks.items()}
        figures["ended"] = time.time()
        for line in stderr.splitlines():
            if "is acknowledged" in line:
                stamp = json.loads(line)["timestamp"].replace("Z", "+00:00")
                figures["acked at"] = datetime.fromisoformat(stamp).timestamp()
        if figures["code"] not in {0, 74, 75}:
            print(stderr)
        return {**figures, "started": started}


def children_of(pid: int) -> list[int]:
    """The children of a process that may be gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def high_water_kib(pid: int) -> int:
    """The peak of a process's resident memory; 0 when it is gone."""
    try:
        found = re.search(r"VmHWM:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def spread(values: list[float], unit: str = "s") -> str:
    """Median and worst."""
    return f"median {statistics.median(values):.3f} {unit}, worst {max(values):.3f} {unit} of {len(values)}"


def main() -> None:
    """Start the servers, measure, stop them."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--runs", type=int, default=20)
    runs = parser.parse_args().runs
    service = Service(("127.0.0.1", 0), Answer)
    threading.Thread(target=service.serve_forever, daemon=True).start()
    fake = ["--inference-url", f"http://127.0.0.1:{service.server_port}"]
    with tempfile.TemporaryDirectory() as directory:
        work = Path(directory)
        with servers(work / "all") as (live, _):
            measure(live, fake, runs, work)
        for name, number in (("refused", signal.SIGKILL), ("frozen", signal.SIGSTOP)):
            gone = []
            for count in range(3):
                with servers(work / f"{name}-{count}") as (live, broker):
                    gone.append(death_without_kafka(live, fake, work, broker, number))
            print(f"error → process gone, Kafka {name}: {spread(gone)}")


@contextmanager
def servers(work: Path) -> Iterator[tuple[Path, int]]:
    """Embedded servers: a config that names them, and the broker's process."""
    work.mkdir()
    config = work / "embedded.toml"
    config.write_text('[runner]\ndata_dir = "data"\n')
    host = subprocess.Popen([*COMMAND, "embedded", str(config)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    lines = []
    assert host.stdout
    for line in host.stdout:
        if line.startswith("#"):
            break
        lines.append(line)
    live = work / "live.toml"
    live.write_text("".join(lines))
    (broker,) = (
        pid for pid in children_of(host.pid) if b"embedded.broker" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )
    try:
        yield live, broker
    finally:
        host.send_signal(signal.SIGINT)
        host.wait(60)


def death_without_kafka(live: Path, fake: list[str], work: Path, broker: int, number: signal.Signals) -> float:
    """Seconds from the first failing answer to the runner's end, its broker having got the signal before that."""
    Answer.served, Answer.fail_after, Answer.failed_at = 0, 10**9, 0.0

    def fail() -> None:
        os.kill(broker, number)
        Answer.fail_after = 1

    figures = run(live, 1, *fake, "--video", str(work / "large.mp4"), on_ready=fail)
    assert figures["code"] == 74, figures
    if number is signal.SIGSTOP:
        os.kill(broker, signal.SIGCONT)
    return figures["ended"] - Answer.failed_at


def measure(live: Path, fake: list[str], runs: int, work: Path) -> None:
    """Print every figure."""
    number = iter(range(1, 10_000))
    small = str(clips.pixel_coded(work / "small.mp4", frames=30, fps=25, size=(768, 576)))
    large = str(clips.pixel_coded(work / "large.mp4", frames=120, fps=25, size=(1280, 960)))
    video = str(ROOT / "test_videos" / "test_video.mp4")

    ready, first = [], []
    for _ in range(runs):
        scenario = next(number)
        figures = run(live, scenario, *fake, "--video", small)
        assert figures["code"] == 0, figures
        ready.append(figures["ready"])
        first.append(first_stored(live, scenario) - figures["started"])
    print(f"exec → READY:                    {spread(ready)}")
    print(f"exec → first prediction stored:  {spread(first)}")

    acked, gone = [], []
    for _ in range(runs):
        Answer.served, Answer.fail_after, Answer.failed_at = 0, 10, 0.0
        figures = run(live, next(number), *fake, "--video", small)
        assert figures["code"] == 75, figures
        acked.append(figures["acked at"] - Answer.failed_at)
        gone.append(figures["ended"] - Answer.failed_at)
    Answer.fail_after = 0
    print(f"error → event acknowledged:      {spread(acked)}")
    print(f"error → process gone:            {spread(gone)}")

    figures = run(live, next(number), *fake, "--video", large)
    daemon, decoder = figures["daemon MiB"], figures["decoder MiB"]
    print(f"peak memory at 1280x960:         daemon {daemon:.0f} MiB, decoder {decoder:.0f} MiB")

    for name, extra in (("instant answers", fake), ("embedded service", [])):
        figures = run(live, next(number), *extra, "--video", video)
        assert figures["code"] == 0, figures
        print(f"test_video.mp4, {name}: {665 / (figures['exit'] - figures['ready']):.1f} frames/s after READY")


def first_stored(live: Path, scenario: int) -> float:
    """When the first prediction was stored, seconds since the epoch."""
    shown = subprocess.run(
        [*COMMAND, "show", str(live), str(scenario), "--json"], capture_output=True, check=True, cwd=ROOT
    )
    return float(json.loads(shown.stdout)["first_stored_at"])


if __name__ == "__main__":
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    main()

"""Hostile answers end the real process by their name, and take no memory from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import trio

from tests.support.fake_inference import at_frame, open_fake
from tests.support.faults import Fault
from tests.support.harness import until
from tests.support.hostile_answers import GOOD
from tests.support.scene import Scene

pytestmark = pytest.mark.slow

PROCESS_FAULTS: dict[str, tuple[Fault | bytes, str]] = {
    "5,000 digits": (GOOD.replace(b"0.5", b"9" * 5_000), "$: not JSON"),
    "deep": (b"[" * 100_000 + b"]" * 100_000, "$: nested too deeply"),
    "NUL": (GOOD.replace(b"dog", b"\\u0000"), "$.predictions[0].class"),
    "100 MB in chunks": (Fault.BIG_CHUNKED, "1048576 bytes"),
    "a gzip bomb": (Fault.GZIP_BOMB, "compressed"),
    "1 MB of objects": (b'{"predictions": [' + b"{}," * 340_000 + b"{}]}", "$.predictions: 340001 detections"),
}
"""Of each way in which an answer is refused one: tests/inference/test_hostile_answers.py has them all."""


AT_FRAME = 5
MOST_GROWTH_MIB = 32
"""Measured from the moment when the frame is asked about: 19 for a megabyte of empty objects, 0 for all others."""


def peak_mib(pid: int) -> float:
    """The most memory that the process has had; 0 when it is gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0.0
    return max((int(line.split()[1]) / 1024 for line in status.splitlines() if line.startswith("VmHWM")), default=0.0)


async def watch_peak(pid: int, peaks: list[float]) -> None:
    while True:
        peaks.append(peak_mib(pid))
        await trio.sleep(0.01)


@pytest.mark.parametrize("name", PROCESS_FAULTS)
async def test_the_process_reports_it_and_takes_little_memory(scene: Scene, clip: Path, name: str) -> None:
    fault, part = PROCESS_FAULTS[name]
    peaks: list[float] = []
    async with open_fake(plan=at_frame(AT_FRAME, fault), held=lambda number: number >= AT_FRAME) as fake:
        config = scene.write_config(
            video={"path": str(clip)}, inference={"url": fake.url}, database={"batch_frames": 4}
        )
        async with scene.cli.started("run", config) as running, trio.open_nursery() as nursery:

            async def asked() -> bool:
                return AT_FRAME in fake.numbers or peak_mib(running.pid) == 0

            await until(asked, described=f"frame {AT_FRAME} is asked about")
            before = peak_mib(running.pid)
            nursery.start_soon(watch_peak, running.pid, peaks)
            fake.gate.set()
            done = await running.wait()
            nursery.cancel_scope.cancel()
            assert running.family() == []
    assert done.code == 75, done.err
    body = await scene.check_death(done, "inference_bad_answer", named=fake.url)
    assert part in body["error"]["message"]
    await scene.check_rows(await scene.stored())
    assert "Traceback" not in done.err
    assert max(peaks) - before < MOST_GROWTH_MIB

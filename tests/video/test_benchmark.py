"""The benchmark of the decoder runs to its end; no figure of it decides."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "decoder.py"


def test_the_benchmark_prints_each_figure() -> None:
    arguments = ["--quick", "--rounds", "1", "--frames", "5", "--long", "60"]
    done = subprocess.run([sys.executable, str(SCRIPT), *arguments], capture_output=True, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    assert set(figures) == {"cpu_ms_a_frame", "memory_mib", "import_cpu_seconds", "long_frames", "long_mib"}
    assert set(figures["cpu_ms_a_frame"]["640x480 H.264 8 bit"]) == {"ours", "bare", "ratio"}
    assert figures["long_frames"] == 60
    assert figures["memory_mib"] > 0

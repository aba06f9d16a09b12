"""What decoding costs: CPU a frame against bare OpenCV, the decoder's import, its memory, and whether that stays flat.

    python benchmarks/decoder.py [--rounds 5] [--frames 120] [--long 100000] [--quick]

Each round decodes the same clip with the decoder child, as the daemon runs it, and then with OpenCV's VideoCapture and
imencode in a process of its own, both to JPEG of quality 90 and with one thread. The CPU of a frame is that of all
frames less that of one, so that imports and opening do not count. Only the ratios mean something on another machine.
Prints a table and, as its last line, the same as JSON. Needs the development dependencies.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import trio

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.support import clips  # noqa: E402 - the long clip is made by the tests' own script
from trio_runner.config.sections import VideoSection  # noqa: E402
from trio_runner.model import End  # noqa: E402
from trio_runner.video.child import spawn_decoder  # noqa: E402

BARE = """
import sys, cv2
cv2.setNumThreads(1)
capture = cv2.VideoCapture(sys.argv[1], cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
for _ in range(int(sys.argv[2])):
    found, image = capture.read()
    if not found:
        break
    cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 90))
"""

CLIPS = {
    "640x480 H.264 8 bit": ((640, 480), False),
    "1280x720 H.264 8 bit": ((1280, 720), False),
    "1920x1080 H.264 8 bit": ((1920, 1080), False),
    "1920x1080 HEVC 10 bit HLG": ((1920, 1080), True),
}
LARGEST = "1920x1080 H.264 8 bit"
QUICK = "640x480 H.264 8 bit"
BT2020, HLG, LIMITED = 9, 18, 1
REPEATED_FRAMES = 250


def make_clip(path: Path, size: tuple[int, int], *, hlg: bool, frames: int) -> Path:
    """Write FFmpeg's moving test picture."""
    width, height = size
    pix_fmt = "yuv420p10le" if hlg else "yuv420p"
    graph = av.filter.Graph()
    source = graph.add("testsrc2", f"size={width}x{height}:rate=25")
    form, sink = graph.add("format", pix_fmt), graph.add("buffersink")
    source.link_to(form)
    form.link_to(sink)
    graph.configure()
    options = {"preset": "ultrafast", "crf": "23"} | ({"x265-params": "log-level=none"} if hlg else {"bf": "2"})
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx265" if hlg else "libx264", rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        if hlg:
            context = stream.codec_context
            context.codec_tag, context.color_range = "hvc1", LIMITED
            context.color_primaries, context.color_trc, context.colorspace = BT2020, HLG, BT2020
        for number in range(frames):
            frame: Any = sink.pull()
            frame.pts, frame.time_base = number, Fraction(1, 25)
            if hlg:
                frame.color_primaries, frame.color_trc, frame.colorspace = BT2020, HLG, BT2020
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def make_long_clip(path: Path, frames: int) -> Path:
    """Write a small clip of many frames: the packets of a short one over and over."""
    short = clips.pixel_coded(path.with_name("short.mp4"), frames=REPEATED_FRAMES, size=(96, 64))
    with av.open(str(short)) as given, av.open(str(path), "w") as container:
        source: Any = given.streams.video[0]
        stream: Any = container.add_stream_from_template(source)
        packets = [
            (bytes(packet), packet.pts, packet.dts, packet.is_keyframe) for packet in given.demux(source) if packet.size
        ]
        step = round(1 / (source.average_rate * source.time_base))
        for number in range(frames):
            content, pts, dts, is_key = packets[number % len(packets)]
            shift = number // len(packets) * len(packets) * step
            packet: Any = av.Packet(content)
            packet.pts, packet.dts, packet.duration = pts + shift, dts + shift, step
            packet.time_base, packet.stream, packet.is_keyframe = source.time_base, stream, is_key
            container.mux(packet)
    return path


async def decode(path: Path, *, frames: int = 0, every: int = 1) -> tuple[int, list[int]]:
    """Let the child decode `frames` (0: all); how many came, and its memory in KiB after each `every` of them."""
    resident, count = [], 0
    async with spawn_decoder(VideoSection(path=str(path), max_frames=frames, frame_timeout_seconds=60)) as video:
        await video.open()
        pid = video._child._process.pid  # noqa: SLF001 - the child is what is measured
        video.start(0)
        while not isinstance(await video.receive(), End):
            count += 1
            if count % every == 0 and (kib := memory_kib(pid)):
                resident.append(kib)
    return count, resident


def memory_kib(pid: int, what: str = "VmRSS") -> int:
    """The resident memory of a process; 0 when it is gone."""
    try:
        found = re.search(rf"{what}:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def children_seconds() -> float:
    """The CPU that children have used which have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def ours(path: Path, frames: int) -> float:
    """CPU seconds of the decoder child."""
    before = children_seconds()
    count, _ = trio.run(lambda: decode(path, frames=frames))
    assert count == frames, f"{count} frames instead of {frames}"
    return children_seconds() - before


def bare(path: Path, frames: int) -> float:
    """CPU seconds of OpenCV alone."""
    before = children_seconds()
    subprocess.run([sys.executable, "-c", BARE, str(path), str(frames)], check=True)
    return children_seconds() - before


def compare(path: Path, frames: int, rounds: int) -> dict[str, float]:
    """Milliseconds of CPU a frame of both, the medians of interleaved rounds."""
    taken: dict[str, list[float]] = {"ours": [], "bare": []}
    for _ in range(rounds):
        for name, run in (("ours", ours), ("bare", bare)):
            taken[name].append((run(path, frames) - run(path, 1)) / (frames - 1) * 1000)
    figures = {name: statistics.median(values) for name, values in taken.items()}
    return figures | {"ratio": figures["ours"] / figures["bare"]}


def import_seconds(module: str, rounds: int) -> float:
    """CPU that a Python takes to start and import a module: the median."""
    taken = []
    for _ in range(rounds):
        before = children_seconds()
        subprocess.run([sys.executable, "-c", f"import {module}"], check=True, cwd=ROOT)
        taken.append(children_seconds() - before)
    return statistics.median(taken)


def main(arguments: list[str]) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--frames", type=int, default=120, help="of each clip")
    parser.add_argument(
        "--long", type=int, default=100_000, help="frames of the small clip over which memory must stay flat"
    )
    parser.add_argument("--quick", action="store_true", help="the smallest clip alone: does everything run?")
    options = parser.parse_args(arguments)
    figures: dict[str, Any] = {"cpu_ms_a_frame": {}}
    with tempfile.TemporaryDirectory(prefix="trio-runner-decoder-") as directory:
        for name, (size, hlg) in CLIPS.items():
            if options.quick and name != QUICK:
                continue
            path = make_clip(
                Path(directory) / f"{len(figures['cpu_ms_a_frame'])}.mp4", size, hlg=hlg, frames=options.frames
            )
            found = figures["cpu_ms_a_frame"][name] = compare(path, options.frames, options.rounds)
            print(
                f"{name:28} {found['ours']:7.2f} ms a frame, OpenCV {found['bare']:7.2f} ms, ratio {found['ratio']:.2f}"
            )
            if name == (QUICK if options.quick else LARGEST):
                figures["memory_mib"] = max(trio.run(decode, path)[1]) / 1024
                print(f"{name:28} {figures['memory_mib']:7.1f} MiB of memory at most")
        for name, module in (("ours", "trio_runner.video.decoder.__main__"), ("OpenCV", "cv2"), ("none", "sys")):
            figures.setdefault("import_cpu_seconds", {})[name] = import_seconds(module, options.rounds)
            print(f"{'import: ' + name:28} {figures['import_cpu_seconds'][name]:7.2f} s of CPU")
        path = make_long_clip(Path(directory) / "long.mp4", options.long)
        every = max(1, options.long // 10)
        count, resident = trio.run(lambda: decode(path, every=every))
        assert count == options.long, f"{count} frames instead of {options.long}"
        figures["long_frames"], figures["long_mib"] = count, [kib / 1024 for kib in resident]
        print(f"{count} small frames: " + ", ".join(f"{kib / 1024:.1f}" for kib in resident) + " MiB after each tenth")
    print(json.dumps(figures))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

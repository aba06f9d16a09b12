"""Holds the reader against FFmpeg over a folder of videos.

    make corpus DIR=folder          or: python -m tests.cases.corpus folder [--jobs 2] [--json results.json]

For each file: are all frames given, at the same times to 1 ms, and do some of the pictures agree to 35 dB? Pictures are
compared before their pixels are made square, and not in high dynamic range. Where sound begins before the picture,
versions of FFmpeg disagree about the start by as much as the encoder of the sound needs. A shift of all frames by up to
50 ms is only named. FFmpeg's times of reordered frames in AVI, and of MPEG-1 and 2 without a container, are not even,
while the reader's are.

Nothing is fetched. Exit code 1 if any file is refused or differs: one that FFmpeg decodes without a complaint and the
reader does not take, or takes otherwise, or one that the reader takes as whole although FFmpeg finds no frame in it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import trio

from tests.cases.reference import COMPARED, Reference, choose_reference, difference, first_video
from tests.support.clips import Image
from tests.support.makers import open_video
from tests.support.watching import picture
from trio_runner.config.sections import VideoSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import Frame

LEAST_DB = 35.0
MOST_SECONDS = 0.001
MOST_ORIGIN_SECONDS = 0.05
GENEROUS: dict[str, Any] = {
    "limit_width": 16_384,
    "limit_height": 16_384,
    "limit_fps": 1000.0,
    "frame_timeout_seconds": 120.0,
    "jpeg_quality": 100,
    "square_pixels": False,
}


@dataclass
class Reading:
    """What the reader gave."""

    stream: int = 0
    codec: str = ""
    container: str = ""
    times: list[float] = field(default_factory=list)
    indices: list[int] = field(default_factory=list)
    pictures: dict[int, Image] = field(default_factory=dict)
    error: str = ""
    code: ErrorCode | None = None


@dataclass
class Line:
    """One line of the table."""

    name: str
    kind: str
    verdict: str
    """equal; damaged: both say so; concealed: FFmpeg complains, and both give the same frames; refused; differs."""
    frames: int
    expected: int
    worst_seconds: float | None = None
    least_db: float | None = None
    why: str = ""


async def read(path: Path) -> Reading:
    """Read a file to its end through the real child."""
    reading = Reading()
    known = {name: value for name, value in GENEROUS.items() if name in VideoSection.__struct_fields__}
    try:
        async with open_video(VideoSection(path=str(path), **known)) as video:
            reading.stream, reading.codec = video.info.stream, video.info.codec
            reading.container = video.info.container
            video.start(0)
            while isinstance(frame := await video.receive(), Frame):
                reading.times.append(frame.pts_seconds)
                reading.indices.append(frame.index)
                if frame.index in COMPARED:
                    reading.pictures[frame.index] = picture(frame)
    except RunnerError as error:
        reading.error, reading.code = error.message, error.code
    return reading


def judge(name: str, reading: Reading, reference: Reference) -> Line:
    """Compare what both made of a file."""
    line = Line(
        name=name,
        kind=f"{reading.container.split(',')[0]} {reading.codec}".strip() or "?",
        verdict="equal",
        frames=len(reading.times),
        expected=len(reference.times),
    )
    if reading.error:
        clean = reference.times and not reference.complaints
        unread = reading.code in {ErrorCode.VIDEO_REFUSED, ErrorCode.VIDEO_UNREADABLE}
        line.verdict = ("refused" if unread else "differs") if clean else "damaged"
        line.why = f"{reading.code}: {reading.error}"
        return line
    found = list(_differences(line, reading, reference))
    if found:
        line.verdict, line.why = "differs", "; ".join(found)
    elif reference.complaints:
        line.verdict, line.why = "concealed", reference.complaints[0]
    return line


def _differences(line: Line, reading: Reading, reference: Reference) -> Any:
    if reading.indices != list(range(len(reading.indices))):
        yield "frames are missing in between"
    if len(reading.times) != len(reference.times):
        yield f"{len(reading.times)} frames instead of {len(reference.times)}"
    elif reading.times:
        origin = reading.times[0] - reference.times[0]
        if MOST_SECONDS < abs(origin) < MOST_ORIGIN_SECONDS:
            line.why = f"starts {origin:+.3f} s apart"
        else:
            origin = 0.0
        pairs = zip(reading.times, reference.times, strict=True)
        apart = [abs(ours - theirs - origin) for ours, theirs in pairs]
        line.worst_seconds = round(max(apart), 6)
        if line.worst_seconds > MOST_SECONDS:
            worst = apart.index(max(apart))
            yield f"frame {worst} at {reading.times[worst]:.4f} s instead of {reference.times[worst]:.4f} s"
    both = sorted(reading.pictures.keys() & reference.pictures.keys())
    if both:
        ratios = [difference(reading.pictures[number], reference.pictures[number]) for number in both]
        line.least_db = round(min(ratios), 1)
        if line.least_db < LEAST_DB:
            worst = both[ratios.index(min(ratios))]
            shapes = [side.pictures[worst].shape[1::-1] for side in (reading, reference)]
            sizes = f" ({shapes[0]} instead of {shapes[1]})" if shapes[0] != shapes[1] else ""
            yield f"the picture of frame {worst} agrees to {line.least_db:g} dB{sizes}"


async def compare(paths: list[Path], folder: Path, jobs: int) -> list[Line]:
    """Compare every file, `jobs` at a time."""
    name, ask = choose_reference()
    sys.stdout.write(f"{len(paths)} files against {name}\n")
    lines: list[Line] = []
    limiter = trio.CapacityLimiter(jobs)

    async def one(path: Path) -> None:
        async with limiter:
            reading = await read(path)
            stream = reading.stream if reading.codec else await trio.to_thread.run_sync(first_video, path)
            try:
                reference = await trio.to_thread.run_sync(partial(ask, path, stream))
            except (OSError, ValueError) as error:
                reference = Reference(complaints=[str(error)])
            line = judge(str(path.relative_to(folder)), reading, reference)
            sys.stdout.write(describe(line) + "\n")
            sys.stdout.flush()
            lines.append(line)

    # The main thread spawns each decoder, because the kernel ties a child to the thread that spawned it.
    async with trio.open_nursery() as nursery:
        for path in paths:
            nursery.start_soon(one, path)
    return sorted(lines, key=lambda line: line.name)


def describe(line: Line) -> str:
    """A line of the table."""
    frames = f"{line.frames}/{line.expected}"
    apart = "" if line.worst_seconds is None else f"{line.worst_seconds * 1000:.1f} ms"
    ratio = "" if line.least_db is None else f"{line.least_db:.1f} dB"
    return f"{line.verdict:9} {frames:>13} {apart:>9} {ratio:>9}  {line.kind:24} {line.name}  {line.why}".rstrip()


def summary(lines: list[Line]) -> str:
    """The last line."""
    counts = Counter(line.verdict for line in lines)
    return f"{len(lines)} files: " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))


def main(arguments: list[str]) -> int:
    """Compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--jobs", type=int, default=2, help="files at a time")
    parser.add_argument("--json", type=Path, help="write the results here, too")
    options = parser.parse_args(arguments)
    paths = sorted(path for path in options.folder.rglob("*") if path.is_file())
    if not paths:
        parser.error(f"{options.folder} holds no file")
    lines = trio.run(compare, paths, options.folder, options.jobs)
    if options.json:
        options.json.write_text(json.dumps([asdict(line) for line in lines], indent=1))
    sys.stdout.write(summary(lines) + "\n")
    return 1 if any(line.verdict in {"refused", "differs"} for line in lines) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

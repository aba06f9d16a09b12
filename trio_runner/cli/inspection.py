"""The verb that shows what a reader finds in a video."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Final

import msgspec

from trio_runner.base.text import counted, harmless, printable
from trio_runner.cli.output import print_json, say
from trio_runner.cli.table import FittedTable, print_table
from trio_runner.config.location import is_url
from trio_runner.config.settings import parse_settings
from trio_runner.errors import ErrorClass, ExitCode, RunnerError, Stage
from trio_runner.video import messages
from trio_runner.video.child import spawn_decoder
from trio_runner.video.fetcher import open_fetched
from trio_runner.video.report import MAX_PICTURES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from trio_runner.config.load import Config
    from trio_runner.video.child import Video
    from trio_runner.video.report import Measured, Picture, Report

SHEET_SUFFIXES: Final = (".png", ".jpg")


async def inspect(
    config: Config,
    *,
    video: str,
    settings: Sequence[str],
    frames: Sequence[int],
    sheet: str,
    quick: bool,
    as_json: bool,
    config_path: str = "",
) -> ExitCode:
    """Show what is in a video; 65 where it is damaged or cannot be read, 1 where a frame of `frames` is not in it.

    Args:
        config: Its `[video]` section says how the video is read.
        video: The path, or a URL that `storage.url_prefixes` allows.
        settings: `section.key=value` in place of what the config says.
        frames: Numbers of frames for the contact sheet.
        sheet: Where the contact sheet is written; "" for none.
        quick: Read no further than to the last of `frames`.
        as_json: Print a JSON document.
        config_path: The file of `config`. Where there is none, a fetched video is removed again.
    """
    if problem := _usage_problem(frames, sheet):
        _complain(f"trio-runner inspect: {problem}")
        return ExitCode.USAGE
    changed = parse_settings(settings)
    changed.setdefault("video", {}).update(path=video)
    config = config.replace(**changed)
    command = messages.Inspect(frames=tuple(sorted(set(frames))), suffix=Path(sheet).suffix.lower(), quick=quick)
    progress = _Progress()
    try:
        async with AsyncExitStack() as stack:
            if is_url(video) and not (config_path or config.storage.cache_dir):
                directory = stack.enter_context(TemporaryDirectory(prefix="trio-runner-"))
                config = config.replace(storage={"cache_dir": directory})
            child = await open_video(stack, config, progress.show)
            report, drawn = await child.inspect(command, progress.frames)
    except RunnerError as error:
        progress.end()
        is_prefix_missing = "storage.url_prefixes" in error.message and not config_path
        _complain(f"{error}{' (with --config or --set)' if is_prefix_missing else ''}")
        is_by_the_video = error.code.stage is Stage.VIDEO and error.code.error_class is ErrorClass.PERMANENT
        return ExitCode.VIDEO if is_by_the_video else ExitCode.UNCONFIRMED
    finally:
        progress.end()
    drawn_frames = [number for number in command.frames if number < report.measured.frames]
    missing = command.frames[len(drawn_frames) :]
    if drawn:
        # The child does not write it: a process that reads hostile files may write none.
        Path(sheet).write_bytes(drawn)  # noqa: ASYNC240 - nothing else is under way any more
    if as_json:
        print_json(msgspec.to_builtins(report))
    else:
        _print_report(report)
        if drawn:
            say(_line("sheet", f"{sheet}, {counted(len(drawn_frames), 'frame')}"))
    if report.problem:
        _complain(report.problem)
        return ExitCode.VIDEO
    if missing:
        listed = f"{', '.join(map(str, missing))} {'is' if len(missing) == 1 else 'are'}"
        others = f"; {sheet} has the others" if drawn else ""
        _complain(f"--frames: {listed} not in the video (0 to {report.measured.frames - 1}){others}")
        return ExitCode.NOTHING
    return ExitCode.OK


async def open_video(
    stack: AsyncExitStack, config: Config, on_progress: Callable[[str], None] = lambda _: None
) -> Video:
    """The video, open in its decoder child; fetched before, where the path is a URL."""
    if is_url(config.video.path):
        return await open_fetched(stack, config, on_progress=on_progress, on_passed=lambda: None)
    child = await stack.enter_async_context(spawn_decoder(config.video, tensor=config.inference.tensor))
    await child.open()
    return child


def _usage_problem(frames: Sequence[int], sheet: str) -> str:
    if bool(frames) != bool(sheet):
        return "--frames and --output need each other"
    if len(set(frames)) > MAX_PICTURES:
        return f"--frames: a sheet has room for {MAX_PICTURES} frames"
    if sheet and Path(sheet).suffix.lower() not in SHEET_SUFFIXES:
        return f"--output: {sheet} does not end with {' or '.join(SHEET_SUFFIXES)}"
    if sheet and not Path(sheet).absolute().parent.is_dir():
        return f"--output: there is no directory {Path(sheet).parent}"
    return ""


def _complain(text: str) -> None:
    """Print a line on standard error; names in it may come from an archive that somebody else made."""
    print(harmless(text.replace("\n", " ")), file=sys.stderr)


class _Progress:
    """One line on a terminal, which is written anew."""

    def __init__(self) -> None:
        self._is_shown = False

    def frames(self, number: int) -> None:
        """Show how many frames are read."""
        self.show(f"{counted(number, 'frame')} read")

    def show(self, text: str) -> None:
        """Show this text in place of the last one."""
        if sys.stderr.isatty():
            print(f"\r{harmless(text)}\x1b[K", end="", file=sys.stderr, flush=True)
            self._is_shown = True

    def end(self) -> None:
        """Clear the line."""
        if self._is_shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
        self._is_shown = False


def _print_report(report: Report) -> None:
    say(printable(report.path).replace("\n", " "))
    for name, value in _lines(report):
        say(_line(name, value))
    if report.streams:
        rows = [
            (
                str(stream.index),
                stream.kind,
                stream.codec,
                stream.detail,
                stream.language,
                stream.marks,
                "read" if stream.chosen else "",
            )
            for stream in report.streams
        ]
        print_table(FittedTable(("stream", "kind", "codec", "detail", "language", "marks", ""), rows, cut=("marks",)))
    sizes = report.measured.sizes
    if len(sizes) > 1:
        changes = [(str(size.index), f"{size.width} x {size.height}") for size in sizes]
        print_table(FittedTable(("from frame", "size"), changes, cut=()))
    if report.measured.damaged:
        places = [(str(place.index), f"{place.seconds:.3f} s") for place in report.measured.damaged]
        print_table(FittedTable(("damaged", "at"), places, cut=()))


def _line(name: str, value: str) -> str:
    return f"  {name + ':':<13}{value}".replace("\n", " ")


def _lines(report: Report) -> Iterator[tuple[str, str]]:
    declared, measured = report.declared, report.measured
    size = f"{report.size_bytes} bytes"
    count = report.other_files
    others = f", {counted(count, 'other file')}" if count else ""
    yield "container", f"{report.container}, {size}{others}"
    yield "codec", report.codec + (f", profile {report.profile}" if report.profile else "")
    yield "size", _size(measured, report.picture)
    if report.picture:
        yield "stored as", _stored(report.picture)
        yield "colour", _colour(report.picture)
    rate = f"{declared.fps:g} declared" if declared.fps else "none declared"
    spread = f", {measured.shortest_seconds:.3f} to {measured.longest_seconds:.3f} s apart"
    yield "frames/s", rate + (f", {measured.fps:g} measured{spread}" if measured.fps else "")
    length = "none declared" if declared.duration_seconds is None else f"{declared.duration_seconds:.3f} s declared"
    times = f", frames from {measured.first_seconds:.3f} s to {measured.last_seconds:.3f} s" if measured.frames else ""
    yield "duration", length + times
    number = "none declared" if declared.frames is None else f"{declared.frames} declared"
    read = f"{measured.frames} read" if report.whole else f"only {measured.frames} read"
    yield "frames", f"{number}, {read}"
    gap = f", at most {measured.key_frame_seconds:.3f} s apart" if measured.key_frames > 1 else ""
    if report.picture:
        yield "key frames", f"{measured.key_frames}{gap}"
        yield "interlaced", counted(measured.interlaced, "frame") if measured.interlaced else "no"
    if report.edit_list_packets:
        yield "edit list", f"hides {counted(report.edit_list_packets, 'picture')}"
    lost = f", {counted(measured.lost_packets, 'packet')} without a picture" if measured.lost_packets else ""
    none = "none" if report.whole else "none in what was read"
    yield "damage", f"{counted(measured.damaged_frames, 'frame')}{lost}" if measured.damaged_frames or lost else none
    yield "selected", f"{'' if report.whole else 'at least '}{counted(report.selected, 'frame')}"
    yield "identity", report.identity


def _size(measured: Measured, picture: Picture | None) -> str:
    if not measured.sizes:
        return "no picture"
    first, *others = measured.sizes
    turns = []
    if picture and picture.rotation:
        how = {90: "90 degrees clockwise", 180: "180 degrees", 270: "90 degrees counterclockwise"}
        turns.append(f"turned {how[picture.rotation]}")
    if picture and picture.mirrored:
        turns.append("mirrored")
    changes = f", {len(others)} change{'s' * (len(others) > 1)}" if others else ""
    return f"{first.width} x {first.height}{changes}{''.join(f', {turn}' for turn in turns)}"


def _stored(picture: Picture) -> str:
    aspect = f", pixels {picture.pixel_aspect}" if picture.pixel_aspect not in {"", "1:1"} else ""
    return f"{picture.width} x {picture.height}, {picture.pixel_format}{aspect}"


def _colour(picture: Picture) -> str:
    parts = {
        "matrix": picture.matrix,
        "range": picture.range,
        "transfer": picture.transfer,
        "primaries": picture.primaries,
    }
    return ", ".join(f"{name} {value}" for name, value in parts.items() if value) or "not stated"

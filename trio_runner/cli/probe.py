"""The verb that sends one frame to the configured service and shows the exchange, or asks a service what it is."""

from __future__ import annotations

import sys
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, Final

import msgspec
import trio

from trio_runner.base.files import read_small_file
from trio_runner.base.redact import MASK, redact
from trio_runner.base.text import counted, harmless
from trio_runner.cli.inspection import open_video
from trio_runner.cli.output import say
from trio_runner.cli.table import FittedTable, print_table
from trio_runner.config.credentials import secrets_of
from trio_runner.config.settings import parse_settings
from trio_runner.embedded.addresses import open_addresses
from trio_runner.embedded.hosting import Service
from trio_runner.errors import ErrorCode, ExitCode, RunnerError
from trio_runner.failure.failure import flatten
from trio_runner.inference.client import open_client
from trio_runner.inference.recording import RECORDED_BYTES, Exchange
from trio_runner.model import Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from trio_runner.config.load import Config
    from trio_runner.model import FrameResult

SUFFIXES: Final = (".png", ".jpg")
MAX_IMAGE_BYTES: Final = 64 * 2**20
SHOWN_LINES: Final = 20
SHOWN_CHARACTERS: Final = 120
SECRET_HEADERS: Final = frozenset({"authorization", "cookie", "proxy-authorization", "set-cookie"})
_NO_PICTURE: Final = frozenset({ErrorCode.VIDEO_NO_FRAMES, ErrorCode.VIDEO_TRUNCATED, ErrorCode.VIDEO_UNREADABLE})
DRAWN_QUALITY: Final = 95


async def probe(
    config: Config,
    *,
    config_path: str,
    settings: Sequence[str],
    image: str,
    picture: str,
    service: str,
    token_file: str,
) -> ExitCode:
    """Show one exchange with the service of `config`, or the config for the service at `service`.

    Nothing is claimed, stored or published. Where the exchange fails, its error names the setting to change, and the
    exit code is 1.

    Args:
        config: Says how the service is asked, and which frame of which video is sent.
        config_path: The file of `config`; "" where there is none.
        settings: `section.key=value` in place of what the config says.
        image: A picture to send in place of the video's first frame.
        picture: Where the frame with the detections is written; "" for nowhere.
        service: The address of a service that is asked what it is, in place of all this.
        token_file: A file with a bearer token for that.
    """
    if problem := _usage_problem(config_path, image, picture, service, token_file, settings):
        print(f"trio-runner probe: {harmless(problem)}", file=sys.stderr)
        return ExitCode.USAGE
    if service:
        from trio_runner.cli.detection import detect

        return await detect(service, token_file)
    # A failed frame is what this verb is to show, however many of them a run may have.
    config = config.replace(**parse_settings(settings)).replace(inference={"max_failed_frames": 0})
    async with AsyncExitStack() as stack:
        live = await stack.enter_async_context(open_addresses(config, frozenset({Service.INFERENCE}), published=False))
        shown = _Shown(live, await secrets_of(live))
        try:
            return await _probe(live, image, picture, shown)
        except RunnerError as error:
            failure = flatten(error, shown.secrets)
            shown.line(f"{failure.code}: {failure.message}")
            return ExitCode.NOTHING


def _usage_problem(
    config_path: str, image: str, picture: str, service: str, token_file: str, settings: Sequence[str]
) -> str:
    if bool(config_path) == bool(service):
        return "either a config or --detect, not both" if service else "name a config, or an address with --detect"
    if service and (image or picture or settings):
        return "--detect sends no picture"
    if token_file and not service:
        return "--token-file goes with --detect; a config has inference.token_file"
    if picture and Path(picture).suffix.lower() not in SUFFIXES:
        return f"--output: {picture} does not end with {' or '.join(SUFFIXES)}"
    if picture and not Path(picture).absolute().parent.is_dir():
        return f"--output: there is no directory {Path(picture).parent}"
    return ""


async def _probe(config: Config, image: str, picture: str, shown: _Shown) -> ExitCode:
    frame, original = await _first_frame(config, image, wanted=bool(picture))
    exchanges: list[Exchange] = []
    async with open_client(config.inference, exchanges=exchanges) as client:
        if config.inference.ready_timeout_seconds:
            await client.wait_until_ready(lambda text: print(harmless(text), file=sys.stderr) if text else None)
            exchanges.clear()
        started = trio.current_time()
        await client.check()
        connected = trio.current_time() - started
        try:
            await client.describe()
            exchanges.clear()
            (result,) = await client.infer([frame])
        finally:
            for number, exchange in enumerate(exchanges, start=1):
                shown.exchange(exchange, frame, f" {number}" if len(exchanges) > 1 else "")
            last = f"{1000 * exchanges[-1].seconds:.1f} ms" if exchanges else "none"
            shown.line(f"latency: {1000 * connected:.1f} ms to connect and hang up again, {last} for the exchange")
            shown.line("")
    shown.result(result)
    if picture and original is not None:
        from trio_runner.video.decoder.drawing import drawn

        content = drawn(original.content, result.detections, Path(picture).suffix.lower())
        Path(picture).write_bytes(content)  # noqa: ASYNC240 - nothing else is under way any more
        shown.line(f"picture: {picture}, {original.sent_width} x {original.sent_height}")
    return ExitCode.OK


async def _first_frame(config: Config, image: str, *, wanted: bool) -> tuple[Frame, Frame | None]:
    """The first frame that a run would send, in its form, and if `wanted` the same one as a JPEG of its whole size."""
    with TemporaryDirectory(prefix="trio-runner-") as directory:
        if image:
            video: dict[str, Any] = {"path": _only_picture(image, directory), "root": "", "start_seconds": 0.0}
            config = config.replace(video=video)
        # This protocol takes JPEGs.
        whole = config.replace(video={"max_width": 0, "jpeg_quality": DRAWN_QUALITY}, inference={"protocol": "predict"})
        # A stateful model is told that the frame is its last one, too.
        try:
            frame = replace(await _first_of(config), last=True)
        except RunnerError as error:
            if not image or error.code not in _NO_PICTURE:
                raise
            # The decoder's message names the copy.
            problem = f"--image: {image} is no whole picture in JPEG, PNG, WebP, BMP or TIFF"
            raise RunnerError(error.code, problem) from error
        return frame, await _first_of(whole) if wanted else None


def _only_picture(image: str, directory: str) -> str:
    """The path of a directory with a copy of the image file in it: the decoder reads single pictures only there."""
    try:
        content, _ = read_small_file(image, max_bytes=MAX_IMAGE_BYTES)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise RunnerError(ErrorCode.VIDEO_MISSING, f"--image: cannot read {image}: {why}") from error
    (Path(directory) / f"0{Path(image).suffix.lower()}").write_bytes(content)
    return directory


async def _first_of(config: Config) -> Frame:
    async with AsyncExitStack() as stack:
        video = await open_video(stack, config)
        video.start(0)
        frame = await video.receive()
    if not isinstance(frame, Frame):
        raise RunnerError(ErrorCode.VIDEO_NO_FRAMES, f"{config.video.path}: no frame of it is selected")
    return frame


class _Shown:
    """What is printed, without any secret."""

    def __init__(self, config: Config, secrets: frozenset[str]) -> None:
        self.secrets = secrets
        self._protocol = config.inference.protocol
        self._hidden = SECRET_HEADERS | {name.lower() for name in config.inference.header_files}

    def line(self, text: str) -> None:
        """Print one line."""
        say(redact(text, self.secrets))

    def exchange(self, exchange: Exchange, frame: Frame, number: str) -> None:
        """What was sent and what came back."""
        self.line(f"sent{number}: {exchange.method} {exchange.url}")
        inset = f", in it the picture at {frame.inset}" if frame.inset else ""
        if exchange.sent_bytes:
            self.line(
                f"  frame {frame.index} at {frame.pts_seconds:.3f} s, {frame.width} x {frame.height}, sent as "
                f"{frame.sent_width} x {frame.sent_height}{inset}: {len(frame.content)} bytes in a body of "
                f"{exchange.sent_bytes}"
            )
        self._headers(exchange.sent_headers)
        self.line("")
        if not exchange.status:
            self.line(f"came back{number}: nothing")
            return
        self.line(f"came back{number}: {exchange.status} {exchange.reason}".rstrip() + f", {exchange.size} bytes")
        self._headers(exchange.headers)
        self._body(exchange)
        self.line("")

    def result(self, result: FrameResult) -> None:
        """How the answer was mapped."""
        self.line(f"mapped by the protocol {self._protocol}, in pixels of the source:")
        if result.detections:
            rows = [
                (
                    redact(each.label, self.secrets),
                    "" if each.class_id is None else str(each.class_id),
                    "none" if each.confidence is None else f"{each.confidence:.3f}",
                    "none" if each.bbox is None else ", ".join(f"{corner:g}" for corner in each.bbox),
                    redact(msgspec.json.encode(each.attributes).decode(), self.secrets) if each.attributes else "",
                )
                for each in result.detections
            ]
            print_table(
                FittedTable(("label", "class", "confidence", "x1, y1, x2, y2", "attributes"), rows, cut=("attributes",))
            )
        clipped = f", {counted(result.clipped, 'box')} clipped at the border" if result.clipped else ""
        tokens = f", {counted(result.tokens, 'token')}" if result.tokens else ""
        self.line(f"{counted(len(result.detections), 'detection')}{clipped}{tokens}")

    def _headers(self, headers: Iterable[tuple[str, str]]) -> None:
        for name, value in headers:
            self.line(f"  {name}: {MASK if name.lower() in self._hidden else value}")

    def _body(self, exchange: Exchange) -> None:
        """The first lines of the body; long ones are folded."""
        # A character may be cut in two where only a part of the body is recorded.
        errors = "strict" if exchange.size <= RECORDED_BYTES else "ignore"
        try:
            text = redact(exchange.body.decode(errors=errors), self.secrets)
        except UnicodeDecodeError:
            say(f"  | {exchange.body[:40].hex(' ')} …, which is no text")
            return
        lines = [piece for line in text.splitlines() for piece in _folded(line)]
        for line in lines[:SHOWN_LINES]:
            say(f"  | {line}")
        if len(lines) > SHOWN_LINES or exchange.size > RECORDED_BYTES:
            say("  | … and more")


def _folded(line: str) -> list[str]:
    return [line[start : start + SHOWN_CHARACTERS] for start in range(0, max(len(line), 1), SHOWN_CHARACTERS)]

"""The arguments of every verb, named like the parameters of the function that the verb calls."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any, NoReturn

from trio_runner import __version__
from trio_runner.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

_MAX_DIGITS = 15
"""Of the number of a frame: a longer one is no frame of any video."""

EPILOG = """\
exit codes:
  0   completed, completed before, or stopped on request
  1   of the other verbs: no such scenario, frame or protocol, a refused request, or something that check or probe found
  64  wrong usage
  65  the video is bad; the retry event is confirmed
  74  failed; Kafka has not confirmed the retry event, which waits in the database or in the spool
  75  failed; the retry event is confirmed
  78  the config cannot be used
  79  another runner has the scenario, or it is not to be run; no retry event is due
"""

INSPECT_EPILOG = """\
exit codes:
  0   the video can be read and is whole
  1   a frame of --frames is not in the video
  64  wrong usage
  65  the video is damaged or cannot be read, even where a run with these options would not notice
  74  failed: the decoder, the storage or the cache
  78  the config cannot be used
"""

PROBE_EPILOG = """\
Nothing is claimed, stored or published, and no secret is printed.

exit codes:
  0   the service answered, and the answer was mapped; with --detect, the service was recognised
  1   it did not or was not; the message names the setting to change
  64  wrong usage
  78  the config cannot be used
"""


class _Parser(argparse.ArgumentParser):
    """argparse with the exit code of sysexits.h for wrong usage."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser; each verb's options are named like the parameters of the function that it calls."""
    parser = _Parser(
        prog="trio-runner",
        description="Reads a video, asks an inference service about its frames, stores the predictions in PostgreSQL.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trio-runner {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)

    def add(name: str, function: str, text: str, *, epilog: str = "", **defaults: Any) -> argparse.ArgumentParser:
        verb: argparse.ArgumentParser = verbs.add_parser(
            name,
            help=text,
            description=f"{text[0].upper()}{text[1:]}.",
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        verb.set_defaults(function=f"trio_runner.{function}", **{"ignores_hangup": False, **defaults})
        return verb

    def add_with_config(name: str, function: str, text: str, **others: Any) -> argparse.ArgumentParser:
        verb = add(name, function, text, **others)
        config = "a TOML file like runner.toml, where every key is explained"
        verb.add_argument("config_path", metavar="CONFIG", help=config)
        return verb

    run = add_with_config(
        "run",
        "cli.display:run",
        "process one scenario to its end; if it fails, record why and publish a retry event",
        epilog=EPILOG,
        # A closed terminal must not kill a runner in the middle of its attempt: SIGTERM and Ctrl-C let it drain.
        ignores_hangup=True,
    )
    run.add_argument("--scenario", type=int, metavar="ID", help="this scenario in place of [scenario] id")
    run.add_argument(
        "--video", type=_video, metavar="PATH_OR_URL", help="this video in place of [video] path; -: see submit"
    )
    run.add_argument("--inference-url", metavar="URL", help="this service in place of [inference] url")
    _add_set(run, "this value in place of the config's; may be given several times")
    add_with_config(
        "validate",
        "cli.main:validate",
        "check the config without connecting to anything; 78 with key, line and remedy if it cannot be used",
    )
    _add_inspect(add)
    add_with_config(
        "check",
        "cli.check:check",
        "check spool, database, Kafka, inference service and video, as `run` does first; 1 if something is wrong",
    )
    _add_probe(add)
    init_db = add_with_config(
        "init-db", "cli.upkeep:init_db", "create or complete the database schema; changes nothing if it is complete"
    )
    init_db.add_argument("--grant", metavar="ROLE", help="give this role the rights of a runner, and no others")
    init_db.add_argument("--grant-orchestrator", metavar="ROLE", help="the same for an orchestrator")
    show = add_with_config(
        "show",
        "cli.show:show",
        "show a scenario's state, attempts, detections, last error and frames that were not inferred",
    )
    show.add_argument("scenario", type=int, nargs="?", help="one scenario in detail; without it what `status` shows")
    _add_json(show, "one JSON document on stdout")
    events = add_with_config("events", "cli.events:events", "print the retry events on the Kafka topic")
    _add_json(events, "one JSON object a line")
    events.add_argument("--follow", action="store_true", help="go on waiting for new events until Ctrl-C")
    add_with_config(
        "flush-spool",
        "cli.upkeep:flush_spool",
        "publish the retry events that Kafka has not taken yet, from spool and database; 74 if some still wait",
    )
    report_death = add_with_config(
        "report-death",
        "cli.upkeep:report_death",
        "report an attempt whose process ended without a report of its own; for ExecStopPost= and for spawners",
    )
    report_death.add_argument("--scenario", type=int, metavar="ID", help="as it was given to `run`")
    add_with_config(
        "reap", "cli.upkeep:reap", "report every runner whose lease has ended, and publish deaths that Kafka lacks"
    )
    add_with_config(
        "embedded",
        "cli.embedded:host_embedded",
        "host the embedded servers until Ctrl-C and print their addresses as a config",
        # Other processes use these servers, and would fail with them when this one's terminal is closed.
        ignores_hangup=True,
    )
    add_with_config(
        "orchestrate",
        "orchestrator.daemon:orchestrate",
        "start runners for the scenarios that are due, until Ctrl-C; then let them drain, until a second Ctrl-C",
        # A closed terminal must not take all runners of a machine along.
        ignores_hangup=True,
    )
    submit = add_with_config(
        "submit", "cli.work:submit", "ask for a video to be processed, and print its scenario's id"
    )
    submit.add_argument(
        "--video",
        type=_video,
        metavar="PATH_OR_URL",
        required=True,
        help="the path on the runner's machine, or a URL; -: standard input has it, which no list of processes shows",
    )
    submit.add_argument(
        "--id", dest="scenario", type=int, default=0, metavar="ID", help="this scenario; without it a new one"
    )
    _add_set(submit, "for this scenario, as video.stride=2; may be given several times")
    stop = add_with_config("stop", "cli.work:stop", "let a scenario's runner drain, and start no other")
    stop.add_argument("scenario", type=int)
    retry = add_with_config("retry", "cli.work:retry", "try a scenario again that was given up or stopped")
    retry.add_argument("scenario", type=int)
    status = add_with_config(
        "status", "cli.show:status", "show every scenario: state, progress, lease, failures, video, last error"
    )
    status.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    _add_json(status, "one JSON document on stdout")
    protocols = add(
        "protocols",
        "cli.protocols:protocols",
        "list the wire protocols and the presets of services, or print one as a config to paste",
    )
    protocols.add_argument("name", nargs="?", default="", metavar="NAME", help="a protocol or a preset")
    serve = add(
        "serve-inference",
        "embedded.inference:serve",
        "run the embedded inference service by itself, for the protocols predict and oip",
    )
    serve.add_argument("--listen", default="127.0.0.1:8001", metavar="HOST:PORT", help="default: %(default)s")
    return parser


def _add_inspect(add: Callable[..., argparse.ArgumentParser]) -> None:
    inspect = add(
        "inspect",
        "cli.inspection:inspect",
        "show what a reader finds in a video: codec, size, rate, damage, frames selected; 65 if it is damaged",
        epilog=INSPECT_EPILOG,
    )
    inspect.add_argument("video", type=_video, metavar="VIDEO", help="a file, a directory or zip of images, a URL")
    inspect.add_argument(
        "--config", dest="config_path", default="", metavar="CONFIG", help="read it as this config's [video] says"
    )
    _add_set(inspect, "this value in place of the config's; may be given several times")
    inspect.add_argument(
        "--frames", type=_numbers, default=(), metavar="N,N,…", help="draw these frames on a contact sheet"
    )
    inspect.add_argument("-o", "--output", dest="sheet", default="", metavar="PATH", help="the sheet, .png or .jpg")
    inspect.add_argument(
        "--quick", action="store_true", help="read no further than to the last of --frames, or to the first frame"
    )
    _add_json(inspect, "one JSON document on stdout")


def _add_probe(add: Callable[..., argparse.ArgumentParser]) -> None:
    probe = add(
        "probe",
        "cli.probe:probe",
        "send one frame to the configured service and show what was sent, what came back and how it was mapped; "
        "or ask a service what it is",
        epilog=PROBE_EPILOG,
    )
    probe.add_argument("config_path", metavar="CONFIG", nargs="?", default="", help="a TOML file like runner.toml")
    _add_set(probe, "this value in place of the config's; may be given several times")
    probe.add_argument(
        "--image", default="", metavar="FILE", help="send this picture in place of the first frame of video.path"
    )
    probe.add_argument(
        "-o", "--output", dest="picture", default="", metavar="PATH", help="draw the detections, as .png or .jpg"
    )
    probe.add_argument(
        "--detect", dest="service", default="", metavar="URL", help="ask this service what it is, and print the config"
    )
    probe.add_argument(
        "--token-file", default="", metavar="FILE", help="for --detect: a file with a bearer token and nothing else"
    )


def _video(path: str) -> str:
    from pathlib import Path

    from trio_runner.config.location import absolute_path

    return absolute_path(sys.stdin.readline().rstrip("\n") if path == "-" else path, Path.cwd())


def _numbers(text: str) -> tuple[int, ...]:
    """Numbers of frames, separated by commas."""
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and len(part) <= _MAX_DIGITS for part in parts):
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of numbers such as 0,100,250")
    return tuple(map(int, parts))


def _add_set(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--set", dest="settings", action="append", default=[], metavar="SECTION.KEY=VALUE", help=text)


def _add_json(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--json", dest="as_json", action="store_true", help=text)

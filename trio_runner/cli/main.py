"""The command line: verbs, logging, one `trio.run` each, and the only place that decides the exit code."""

from __future__ import annotations

import argparse
import io
import logging
import os
import shutil
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import trio

from trio_runner import __version__
from trio_runner.base.logs import set_up_logging
from trio_runner.config.errors import ConfigError
from trio_runner.config.load import load_config
from trio_runner.config.settings import parse_settings
from trio_runner.errors import ErrorClass, ErrorCode, Stage
from trio_runner.failure.failure import flatten
from trio_runner.failure.outbox import Publication
from trio_runner.runner.outcome import Ending

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.config.load import Config
    from trio_runner.runner.outcome import Outcome

EXIT_OK = 0
EXIT_USAGE = 64
EXIT_VIDEO = 65
EXIT_UNCONFIRMED = 74
EXIT_CONFIRMED = 75
EXIT_CONFIG = 78
EXIT_SUPERSEDED = 79

EPILOG = """\
exit codes:
  0   completed, already completed, or drained on request
  64  wrong usage
  65  the video is bad; the retry event is confirmed
  74  failed, and Kafka has not confirmed the retry event: it waits in the spool
  75  failed; the retry event is confirmed
  78  the config cannot be used
  79  the scenario is another runner's, or not to be run; no event is owed
"""


class _Parser(argparse.ArgumentParser):
    """argparse with the exit code of sysexits.h for wrong usage."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(EXIT_USAGE, f"{self.prog}: {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the process's exit code."""
    _fill_standard_descriptors()
    options = _parser().parse_args(arguments)
    # A terminal that cannot show a character shows another.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    # A closed terminal must not end a runner in the middle of its work.
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        code: int = options.verb(options)
    except ConfigError as error:
        print(error.report(getattr(options, "config", "config")), file=sys.stderr)
        return EXIT_CONFIG
    except (KeyboardInterrupt, BaseExceptionGroup) as error:
        # Every verb that waits takes Ctrl-C itself; this is for one that falls into the first and last instants.
        if flatten(error).type != "KeyboardInterrupt":
            return _explain(error)
        return 128 + signal.SIGINT
    except Exception as error:  # noqa: BLE001 - the last rung: whatever it is, it is said and has an exit code
        return _explain(error)
    return code


def _fill_standard_descriptors() -> None:
    """A closed standard stream's number would go to the next file opened, and a socket get the log lines."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - 0, 1 and 2 are the standard ones
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - its only parameter
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123 - open as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123 - the same


def exit_code(outcome: Outcome | None) -> int:
    """The exit code for a run's outcome; None: it was stopped before it had begun."""
    if outcome is None or outcome.ending in (Ending.COMPLETED, Ending.ALREADY_COMPLETED):
        return EXIT_OK
    if outcome.ending in (Ending.SUPERSEDED, Ending.REFUSED):
        return EXIT_SUPERSEDED
    if outcome.event is not Publication.PUBLISHED:
        return EXIT_UNCONFIRMED
    if outcome.ending is Ending.DRAINED:
        return EXIT_OK
    code = outcome.failure.code if outcome.failure else ErrorCode.INTERNAL
    bad_video = code.stage is Stage.VIDEO and code.error_class is ErrorClass.PERMANENT
    return EXIT_VIDEO if bad_video else EXIT_CONFIRMED


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="trio-runner",
        description="Reads a video, asks an inference service about its frames, stores the predictions in PostgreSQL.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"trio-runner {__version__}")
    verbs = parser.add_subparsers(required=True, metavar="VERB", parser_class=_Parser)

    run = _verb(verbs, "run", _run, "process one scenario to its end, or die saying why", epilog=EPILOG)
    run.add_argument("--scenario", type=int, metavar="ID", help="this scenario in place of [scenario] id")
    run.add_argument("--video", metavar="PATH", help="this video in place of [video] path")
    run.add_argument("--inference-url", metavar="URL", help="this service in place of [inference] url")
    _add_set(run, "this value in place of the config's; may be given several times")
    _verb(
        verbs,
        "validate",
        _validate,
        "check the config and touch nothing; 78 with key, line and remedy if it is bad",
    )
    _verb(
        verbs,
        "check",
        _check,
        "the preflight of `run` alone: spool, database, Kafka, inference, video; 1 if something is wrong",
    )
    init_db = _verb(verbs, "init-db", _init_db, "create or complete the database schema; harmless when it is there")
    init_db.add_argument("--grant", metavar="ROLE", help="give this role what a runner needs, and nothing else")
    init_db.add_argument("--grant-orchestrator", metavar="ROLE", help="the same for an orchestrator")
    show = _verb(verbs, "show", _show, "what the ledger knows: status, attempts, counts, last error")
    show.add_argument("scenario", type=int, nargs="?", help="one scenario in detail; all in a table without it")
    show.add_argument("--json", action="store_true", help="one JSON document on stdout")
    events = _verb(verbs, "events", _events, "print the retry events on the Kafka topic")
    events.add_argument("--json", action="store_true", help="one JSON object a line")
    events.add_argument("--follow", action="store_true", help="go on waiting for new events until Ctrl-C")
    _verb(
        verbs,
        "flush-spool",
        _flush_spool,
        "publish the retry events that Kafka did not take; 74 if some still wait",
    )
    report_death = _verb(
        verbs,
        "report-death",
        _report_death,
        "report an attempt whose process is gone and did not: for ExecStopPost= and for spawners",
    )
    report_death.add_argument("--scenario", type=int, metavar="ID", help="as it was given to `run`")
    _verb(verbs, "reap", _reap, "report every runner that was not heard of until its lease ended")
    _verb(
        verbs,
        "embedded",
        _embedded,
        "host the embedded servers until Ctrl-C and print their addresses as a config",
    )
    _verb(verbs, "orchestrate", _orchestrate, "start runners for what is due, until Ctrl-C; they drain then")
    submit = _verb(verbs, "submit", _submit, "ask for a video to be processed; prints the scenario's id")
    submit.add_argument("--video", metavar="PATH", required=True, help="as the runner's machine has it")
    submit.add_argument("--id", type=int, default=0, metavar="ID", help="this scenario; without it a new one")
    _add_set(submit, "for this scenario, as video.stride=2; may be given several times")
    stop = _verb(verbs, "stop", _stop, "let a scenario's runner drain, and start no other")
    stop.add_argument("scenario", type=int)
    retry = _verb(verbs, "retry", _retry, "try again what was given up or stopped")
    retry.add_argument("scenario", type=int)
    status = _verb(verbs, "status", _status, "every scenario: state, progress, lease, failures, last error")
    status.add_argument("--watch", action="store_true", help="again every second, until Ctrl-C")
    status.add_argument("--json", action="store_true", help="one JSON document on stdout")
    serve = verbs.add_parser("serve-inference", help="run the embedded inference service by itself")
    serve.add_argument("--listen", default="127.0.0.1:8001", metavar="HOST:PORT", help="default: %(default)s")
    serve.set_defaults(verb=_serve_inference)
    return parser


def _verb(verbs: Any, name: str, function: Any, text: str, epilog: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name,
        help=text,
        description=f"{text[0].upper()}{text[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("config", metavar="CONFIG", help="a TOML file like runner.toml, where every key is explained")
    parser.set_defaults(verb=function)
    return parser


def _add_set(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help=text)


def _load(options: argparse.Namespace) -> Config:
    config = load_config(Path(options.config))
    set_up_logging(level=config.log.level, form=config.log.format)
    return config


def _run(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console, Terminal
    from trio_runner.runner.daemon import serve

    changed = parse_settings(options.set)
    if options.scenario is not None:
        changed.setdefault("scenario", {})["id"] = options.scenario
    if options.video is not None:
        changed.setdefault("video", {})["path"] = str(Path(options.video).absolute())
    if options.inference_url is not None:
        changed.setdefault("inference", {})["url"] = options.inference_url
    config = _load(options).replace(**changed)
    terminal = Terminal(Console(), program=_program(), config_path=options.config)
    outcome = trio.run(serve, config, terminal)
    # All is said and done: a signal that falls into the last instants must not change how it ended.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return exit_code(outcome)


def _program() -> str:
    """How this program was called, for the commands that it suggests."""
    called = Path(sys.argv[0])
    if called.name == "__main__.py":
        return "python -m trio_runner"
    if shutil.which(called.name) == str(called):
        return called.name
    return str(called.relative_to(Path.cwd()) if called.is_relative_to(Path.cwd()) else called)


def _validate(options: argparse.Namespace) -> int:
    load_config(Path(options.config))
    print(f"{options.config}: valid")
    return EXIT_OK


def _check(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console
    from trio_runner.cli.upkeep import check

    return trio.run(check, _load(options), Console())


def _flush_spool(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console
    from trio_runner.cli.upkeep import flush_spool

    return trio.run(flush_spool, _load(options), Console())


def _report_death(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console
    from trio_runner.cli.upkeep import report_death

    config = _load(options)
    if options.scenario is not None:
        config = config.replace(scenario={"id": options.scenario})
    return trio.run(report_death, config, Console())


def _reap(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console
    from trio_runner.cli.upkeep import reap

    return trio.run(reap, _load(options), Console())


def _init_db(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console
    from trio_runner.cli.upkeep import init_db

    return trio.run(init_db, _load(options), options.grant, options.grant_orchestrator, Console())


def _show(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console
    from trio_runner.cli.upkeep import show

    return trio.run(partial(show, as_json=options.json), _load(options), options.scenario, Console())


def _events(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console
    from trio_runner.cli.upkeep import events

    return trio.run(partial(events, as_json=options.json, follow=options.follow), _load(options), Console())


def _embedded(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console
    from trio_runner.cli.upkeep import host_embedded

    return trio.run(host_embedded, _load(options), Console())


def _orchestrate(options: argparse.Namespace) -> int:
    from trio_runner.orchestrator.daemon import orchestrate

    trio.run(orchestrate, _load(options))
    return EXIT_OK


def _submit(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console
    from trio_runner.cli.work import submit

    settings = parse_settings(options.set)
    return trio.run(submit, _load(options), options.id, str(Path(options.video).absolute()), settings, Console())


def _stop(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console
    from trio_runner.cli.work import stop

    return trio.run(stop, _load(options), options.scenario, Console())


def _retry(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console
    from trio_runner.cli.work import retry

    return trio.run(retry, _load(options), options.scenario, Console())


def _status(options: argparse.Namespace) -> int:
    from trio_runner.cli.display import Console
    from trio_runner.cli.work import status

    return trio.run(partial(status, watch=options.watch, as_json=options.json), _load(options), Console())


def _serve_inference(options: argparse.Namespace) -> int:
    from trio_runner.embedded.inference import serve

    return serve(options.listen)


def _explain(error: BaseException) -> int:
    """Say on stderr what ended the process before there was an attempt to report."""
    failure = flatten(error)
    if failure.code is ErrorCode.INTERNAL and failure.type != "ServerError":
        logging.getLogger(__name__).error("%s: %s", failure.type, failure.message, exc_info=error)
    else:
        print(failure.message, file=sys.stderr)
    return EXIT_UNCONFIRMED

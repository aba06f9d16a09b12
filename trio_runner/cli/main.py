"""The command line: parses, calls one verb, and is the only place that decides the exit code.

It imports nothing that a verb needs: each verb's module is imported when the verb is called.
"""

from __future__ import annotations

import importlib
import io
import os
import signal
import sys
from typing import TYPE_CHECKING, Any

from trio_runner.cli.parser import make_parser
from trio_runner.errors import ErrorCode, ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from trio_runner.config.errors import ConfigError
    from trio_runner.config.load import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb; returns the process's exit code."""
    _fill_standard_descriptors()
    options = vars(make_parser().parse_args(arguments))
    # A terminal that cannot show a character shows another.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if options["ignores_hangup"]:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        return _call(options)
    except (Exception, KeyboardInterrupt, BaseExceptionGroup) as error:  # noqa: BLE001 - the last rung: each has an exit code
        return _explain(error, options.get("config_path", ""), options.get("settings", ()))


def _fill_standard_descriptors() -> None:
    """Open /dev/null in the place of a closed standard stream: the next file or socket opened would get its number."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:  # noqa: PLR2004 - 0, 1 and 2 are the standard ones
        os.set_inheritable(descriptor, True)  # noqa: FBT003 - its only parameter
    os.close(descriptor)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115, PTH123 - open as long as the process
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115, PTH123 - the same


def _call(options: Mapping[str, Any]) -> int:
    """Call the verb's function with those options that its parameters name; an async one is given a Trio of its own."""
    # None of these imports is needed for `--version` and `--help`.
    import inspect
    from functools import partial

    module, _, name = options["function"].partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    is_async = inspect.iscoroutinefunction(function)
    names = inspect.signature(function).parameters
    named = {name: value for name, value in options.items() if name in names}
    if "config" in names:
        named["config"] = _load(options["config_path"], with_logging=is_async)
    if not is_async:
        return int(function(**named))
    import trio

    code = trio.run(partial(function, **named))
    # The work is done and reported: a signal that arrives in the last instants must not change the exit code.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    return int(code or ExitCode.OK)


def _load(path: str, *, with_logging: bool) -> Config:
    from pathlib import Path

    from trio_runner.base.logs import set_up_logging
    from trio_runner.config import load

    # A verb that can do without a config is given the defaults.
    config = load.load_config(Path(path)) if path else load.Config()
    if with_logging:
        set_up_logging(level=config.log.level, form=config.log.format)
    return config


def validate(config_path: str) -> ExitCode:
    """Say that the config is valid; raises ConfigError for one that is not."""
    from pathlib import Path

    from trio_runner.config.load import load_config

    load_config(Path(config_path), with_video=True)
    print(f"{config_path}: valid")
    return ExitCode.OK


def _explain(error: BaseException, config_path: str, settings: Sequence[str]) -> ExitCode:
    """Say on stderr what ended the process, and choose the exit code."""
    from trio_runner.cli.suggest import with_commands
    from trio_runner.failure.failure import flatten

    if (refused := _config_error(error)) is not None:
        print(refused.report(config_path, settings), file=sys.stderr)
        return ExitCode.CONFIG
    failure = flatten(error)
    if failure.type == "KeyboardInterrupt":
        # Every verb that waits handles Ctrl-C itself; this one fell into the first or last instants of one.
        return ExitCode.INTERRUPTED
    if failure.code is ErrorCode.INTERNAL and failure.type != "ServerError":
        import logging

        logging.getLogger(__name__).error("%s: %s", failure.type, failure.message, exc_info=error)
    else:
        print(with_commands(failure.message, config_path), file=sys.stderr)
    return ExitCode.UNCONFIRMED


def _config_error(error: BaseException) -> ConfigError | None:
    """The config's error, also where Trio's nurseries have wrapped it into groups."""
    from trio_runner.config.errors import ConfigError

    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_config_error, error.exceptions)), None)
    return error if isinstance(error, ConfigError) else None

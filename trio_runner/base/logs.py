"""Logging to stderr: lines for people on a terminal, JSON for a journal, secrets in neither."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, TextIO

from trio_runner.base.redact import redact

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_ABOUT: Final[ContextVar[Mapping[str, object]]] = ContextVar("trio_runner_about", default=MappingProxyType({}))
"""What `about` has bound in this task, as every task and thread that it starts inherits it."""

_STANDARD_ATTRIBUTES: Final = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
"""The attributes that every log record has; the others came in as `extra`."""


@contextmanager
def about(**names: object) -> Iterator[dict[str, object]]:
    """Put `names` on every line that this task, and whatever it starts in the block, logs through our own handler.

    The names of an enclosing block stay, unless this one replaces them. The dictionary that is yielded may be added to
    as more becomes known (an epoch, once the scenario is claimed): the tasks started in the block share it. In a
    program with logging of its own this changes nothing.
    """
    bound = {**_ABOUT.get(), **names}
    token = _ABOUT.set(bound)
    try:
        yield bound
    finally:
        _ABOUT.reset(token)


def identify_process(**names: object) -> None:
    """Put `names` on every line of this process from now on, whichever task or thread logs it.

    The names of `about` replace them. In a program that set up its own logging this does nothing.
    """
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _StderrHandler):
            handler.names |= names


def set_up_logging(*, level: str, form: str) -> None:
    """Send every logger of the process to stderr; called once, by the command line.

    Args:
        level: `log.level` of the config.
        form: `log.format`: "json", "console", or "auto", which is JSON where stderr is no terminal.
    """
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    handler = _StderrHandler()
    handler.setFormatter(_JSONFormatter(handler) if as_json else _console_formatter(handler))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # httpx logs one INFO line for each request. aiokafka's warnings come back as the cause in our own errors.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    aiokafka = logging.getLogger("aiokafka")
    # aiokafka's level does not follow the root's: kafka/errors.py listens to its warnings, and a logger makes no record
    # below its level.
    aiokafka.setLevel(logging.DEBUG if level == "debug" else logging.WARNING)
    aiokafka.propagate = level == "debug"
    aiokafka.addHandler(logging.NullHandler())


def conceal(secrets: frozenset[str]) -> None:
    """Mask these values in every line from now on; in a program that set up its own logging this does nothing."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, _StderrHandler):
            handler.secrets |= secrets


class _StderrHandler(logging.StreamHandler[TextIO]):
    """Writes to whatever `sys.stderr` is at the moment: a progress bar puts itself there while it is drawn."""

    def __init__(self) -> None:
        super().__init__()
        self.secrets: frozenset[str] = frozenset()
        self.names: dict[str, object] = {}

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Redact the finished line, which covers tracebacks and values of any type too."""
        return redact(super().format(record), self.secrets)


class _JSONFormatter(logging.Formatter):
    """One JSON object a line; without structlog, which loads rich and would take a fifth of a runner's start."""

    def __init__(self, handler: _StderrHandler) -> None:
        super().__init__()
        self._handler = handler

    def format(self, record: logging.LogRecord) -> str:
        event: dict[str, Any] = {
            "event": record.getMessage(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat().replace("+00:00", "Z"),
        }
        for name, value in _names_of(record, self._handler).items():
            event.setdefault(name, value)
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            event["stack"] = self.formatStack(record.stack_info)
        # Redacted before they become JSON: a mask put into the finished line could break it.
        secrets = self._handler.secrets
        clean = {key: redact(value, secrets) if isinstance(value, str) else value for key, value in event.items()}
        return json.dumps(clean, default=repr)


def _names_of(record: logging.LogRecord, handler: _StderrHandler) -> dict[str, Any]:
    """The names of the process and of the task that logs, and what came with the line as `extra`."""
    extra = {key: value for key, value in vars(record).items() if key not in _STANDARD_ATTRIBUTES}
    return {**handler.names, **_ABOUT.get(), **extra}


def _console_formatter(handler: _StderrHandler) -> logging.Formatter:
    # Imported here: structlog loads rich, which no line of a service needs.
    import structlog  # noqa: PLC0415

    def add_names(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        return {**_names_of(event["_record"], handler), **event}

    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            add_names,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            # Tracebacks as plain text: the pretty renderers print local variables, and those hold passwords.
            structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback),
        ],
    )

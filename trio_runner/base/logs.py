"""Logging to stderr: lines for people on a terminal, JSON for a journal, secrets in neither."""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

from trio_runner.base.redact import redact


def set_up_logging(*, level: str, form: str) -> None:
    """Send every logger of the process to stderr; called once, by the command line.

    Args:
        level: `log.level` of the config.
        form: `log.format`: "json", "console", or "auto", which is JSON where stderr is no terminal.
    """
    as_json = form == "json" or (form == "auto" and not sys.stderr.isatty())
    shared: list[structlog.types.Processor] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = _StderrHandler()
    # Tracebacks as plain text: the pretty renderers print local variables, and those hold passwords.
    render: list[structlog.types.Processor] = (
        [structlog.processors.format_exc_info, handler.redact_values, structlog.processors.JSONRenderer()]
        if as_json
        else [structlog.dev.ConsoleRenderer(exception_formatter=structlog.dev.plain_traceback)]
    )
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
    # One INFO line per request. What aiokafka warns of comes back as the cause in our own errors.
    logging.getLogger("httpx").setLevel(logging.WARNING)
    aiokafka = logging.getLogger("aiokafka")
    # Not by the root's level: what is not even made cannot be listened to.
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

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        """Last of all, so that whatever a renderer makes of tracebacks and odd values is covered too."""
        return redact(super().format(record), self.secrets)

    def redact_values(self, _: Any, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
        """Before they become JSON, which a mask put in afterwards could break."""
        return {key: redact(value, self.secrets) if isinstance(value, str) else value for key, value in event.items()}

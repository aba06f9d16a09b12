"""A Trio daemon that takes one video scenario from its frames to stored predictions, or dies saying why."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trio_runner.config.errors import ConfigError
    from trio_runner.config.load import Config, load_config
    from trio_runner.errors import ClaimRefusedError, RunnerError
    from trio_runner.runner.runner import Runner, RunnerDead

__all__ = [
    "ClaimRefusedError",
    "Config",
    "ConfigError",
    "Runner",
    "RunnerDead",
    "RunnerError",
    "__version__",
    "load_config",
]
__version__ = "0.1.0"

_HOMES = {
    "config.errors": ("ConfigError",),
    "config.load": ("Config", "load_config"),
    "errors": ("ClaimRefusedError", "RunnerError"),
    "runner.runner": ("Runner", "RunnerDead"),
}


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): the decoder child imports this package too, and must not wait for Trio, asyncpg and
    # httpx before its first frame.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"trio_runner.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

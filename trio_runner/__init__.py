"""A Trio daemon that takes one video scenario from its frames to stored predictions, or records why it could not."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

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
    """Import a public name when it is first asked for (PEP 562).

    Every child process and every verb imports this package, and none of them should wait for Trio, asyncpg and httpx
    unless it needs them.
    """
    for module, names in _HOMES.items():
        if name in names:
            # Even importlib and typing wait: `--version` takes no longer than Python itself.
            import importlib  # noqa: PLC0415

            return getattr(importlib.import_module(f"trio_runner.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

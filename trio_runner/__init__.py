"""A Trio daemon that takes one video scenario from its frames to stored predictions, or dies saying why."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trio_runner.runner import Runner

__all__ = ["Runner", "__version__"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    # Lazy (PEP 562): the decoder child imports this package too, and must not wait for Trio, asyncpg and
    # httpx before its first frame.
    if name == "Runner":
        from trio_runner.runner import Runner  # noqa: PLC0415 - the point of this function

        return Runner
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

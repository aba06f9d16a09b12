"""The spawner that the config names."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING

from trio_runner.orchestrator.spawners.kubernetes import open_kubernetes
from trio_runner.orchestrator.spawners.process import open_processes
from trio_runner.orchestrator.spawners.units import open_units

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    import trio

    from trio_runner.config.load import Config
    from trio_runner.orchestrator.spawners.spawner import Ended, Spawner


@asynccontextmanager
async def open_spawner(
    config: Config,
    template: Config,
    node: str,
    on_ended: Callable[[Ended], Awaitable[None]],
    second_signal: trio.Event,
) -> AsyncIterator[Spawner]:
    """Start runners in the way of `orchestrator.spawner`; `on_ended` is called for each that has ended.

    Runners that are children drain when the block ends, unless `second_signal` cuts that short; others live on.
    """
    ways: dict[str, Callable[..., AbstractAsyncContextManager[Spawner]]] = {
        "process": partial(open_processes, second_signal=second_signal),
        "systemd": open_units,
        # Its runners' config lies in the cluster.
        "kubernetes": lambda config, _template, node, on_ended: open_kubernetes(config, node, on_ended),
    }
    async with ways[config.orchestrator.spawner](config, template, node, on_ended) as spawner:
        yield spawner

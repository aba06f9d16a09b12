"""The spawner that the config names."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeAlias

from trio_runner.config.errors import ConfigError, Problem

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

    import trio

    from trio_runner.config.load import Config
    from trio_runner.orchestrator.spawners.spawner import Ended, Spawner

    OpenSpawner: TypeAlias = Callable[
        [Config, Config, str, Callable[[Ended], Awaitable[None]], trio.Event], AbstractAsyncContextManager[Spawner]
    ]


def choose_spawner(config: Config) -> OpenSpawner:
    """The function that opens the spawner of `orchestrator.spawner`; the modules of the others are not imported.

    That function takes the config with live addresses, the config that runners are given, this machine's name,
    `on_ended`, which the spawner calls for each runner that has ended, and the event of a second signal, which cuts
    short how child processes drain. Units and Jobs outlive the orchestrator.

    Raises:
        ConfigError: The spawner needs a package that is not installed.
    """
    match config.orchestrator.spawner:
        case "process":
            from trio_runner.orchestrator.spawners.process import open_processes  # noqa: PLC0415 - only the chosen one

            return open_processes
        case "systemd":
            from trio_runner.orchestrator.spawners.units import open_units  # noqa: PLC0415 - the same

            return lambda config, template, node, on_ended, _: open_units(config, template, node, on_ended)
        case "kubernetes":
            try:
                from trio_runner.orchestrator.spawners.kubernetes import open_kubernetes  # noqa: PLC0415 - needs kr8s
            except ImportError as error:
                problem = Problem(
                    problem=f'"kubernetes" needs a package that is not installed: {error}',
                    path=("orchestrator", "spawner"),
                    remedy="install the extra: pip install 'trio_runner[kubernetes]'",
                )
                raise ConfigError([problem]) from None
            # The config of its runners is a ConfigMap of the cluster.
            return lambda config, _template, node, on_ended, _: open_kubernetes(config, node, on_ended)

"""The config of one attempt's runner: the fleet's config, the scenario's settings, and the attempt's own keys."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec
import tomli_w

from trio_runner.base.threads import bounded
from trio_runner.config.errors import ConfigError, Problem
from trio_runner.config.kinds import EMBEDDED
from trio_runner.config.load import load_config
from trio_runner.config.sections import CACHE_NAME
from trio_runner.config.settings import check_scenario_settings, is_canonical

if TYPE_CHECKING:
    from collections.abc import Iterable

    from trio_runner.config.load import Config
    from trio_runner.database.backlog import Work

FILE_SECONDS: Final = 5.0
"""How long the file system is given for the runners' config."""


async def load_template(config: Config) -> Config | None:
    """The config of `orchestrator.runner_config`; None where runners are given the orchestrator's own.

    Raises:
        ConfigError: That file cannot be used, or each runner would bring a database of its own.
    """
    path = config.orchestrator.runner_config
    if not path:
        return None
    # The credentials of a unit lie where the orchestrator, a unit of another name, may not look.
    environ = None if config.orchestrator.spawner == "systemd" else os.environ
    try:
        template = await bounded(lambda: load_config(Path(path), environ), seconds=FILE_SECONDS)
    except ConfigError as error:
        raise _unusable_template(path, error.problems) from None
    except OSError as error:
        raise _unusable_template(path, [Problem(problem=f"cannot read the file: {error.strerror}")]) from None
    addresses = {
        "database.url": template.database.url,
        "kafka.brokers": template.kafka.brokers,
        "inference.url": template.inference.url,
    }
    if embedded := [key for key, address in addresses.items() if address == EMBEDDED]:
        said, remedy = "runners of a fleet share their servers", "write the address there"
        raise _unusable_template(
            path, [Problem(problem=said, path=tuple(key.split(".")), remedy=remedy) for key in embedded]
        )
    return template


def _unusable_template(path: str, problems: Iterable[Problem]) -> ConfigError:
    """The mistakes of another file than the one that the orchestrator was called with."""
    return ConfigError(
        Problem(
            problem=f"{path}:{problem.line}: {problem.sentence}" if problem.line else f"{path}: {problem.sentence}",
            path=("orchestrator", "runner_config"),
        )
        for problem in problems
    )


def own_keys(work: Work, *, data_dir: str, node: str) -> dict[str, dict[str, Any]]:
    """The keys of this attempt's runner that are not in the fleet's config.

    Raises:
        ConfigError: The scenario's row sets a key that no scenario may set, or its path is not canonical. Other
            programs write rows too, and none of our checks sees those before.
    """
    check_scenario_settings(work.settings)
    if not is_canonical(work.video_path):
        problem, remedy = "not an absolute path without // and /./", "submit the video by another one"
        raise ConfigError([Problem(problem=problem, path=("video", "path"), remedy=remedy)])
    sections: dict[str, dict[str, Any]] = {name: dict(keys) for name, keys in work.settings.items()}
    sections["runner"] = {"id": f"{node}-{work.scenario_id}"[-200:], "data_dir": data_dir}
    sections.setdefault("scenario", {}).update(id=work.scenario_id, epoch=work.epoch)
    sections.setdefault("video", {}).update(path=work.video_path)
    # The orchestrator finds the next attempt in the ledger, so a runner need not wait for Kafka.
    sections["kafka"] = {"required": False}
    return sections


def runner_config(template: Config, work: Work, *, data_dir: Path, node: str) -> Config:
    """The config of this attempt's runner; raises ConfigError where the scenario's settings do not fit into it."""
    sections = own_keys(work, data_dir=str(data_dir), node=node)
    if not template.kafka.spool_dir:
        # All runners of this node share one spool, so that the next one that starts publishes the events in it.
        sections["kafka"]["spool_dir"] = str(Path(template.runner.data_dir) / "spool")
    if not template.storage.cache_dir:
        # For the same reason they share one cache of videos.
        sections["storage"] = {"cache_dir": str(Path(template.runner.data_dir) / CACHE_NAME)}
    return template.replace(**sections)


def as_toml(config: Config) -> str:
    """The config file of a runner, without the sections that only an orchestrator uses."""
    tables: dict[str, Any] = msgspec.to_builtins(config)
    for name in ("orchestrator", "systemd", "kubernetes"):
        del tables[name]
    return tomli_w.dumps(tables)

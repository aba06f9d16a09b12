"""The config of one attempt's runner: the fleet's, the scenario's settings, and what is this attempt's own."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
import tomli_w

from trio_runner.config.errors import ConfigError, Problem
from trio_runner.config.load import load_config
from trio_runner.config.sections import EMBEDDED
from trio_runner.config.settings import check_scenario_settings, is_canonical

if TYPE_CHECKING:
    from trio_runner.config.load import Config
    from trio_runner.database.backlog import Work


def load_template(config: Config) -> Config:
    """What all runners are given: `orchestrator.runner_config`, or else the orchestrator's own config.

    Raises:
        ConfigError: that file cannot be used, or each runner would bring a database of its own.
    """
    of_units = config.orchestrator.spawner == "systemd"
    if of_units and not config.orchestrator.runner_config:
        # The orchestrator's credentials lie where no unit of another name may look.
        path, remedy = ("orchestrator", "runner_config"), "name the config that runners are given"
        raise ConfigError([Problem(problem="units have credentials of their own", path=path, remedy=remedy)])
    if not config.orchestrator.runner_config:
        return config
    template = load_config(Path(config.orchestrator.runner_config), None if of_units else os.environ)
    addresses = {
        "database.url": template.database.url,
        "kafka.brokers": template.kafka.brokers,
        "inference.url": template.inference.url,
    }
    embedded = [key for key, address in addresses.items() if address == EMBEDDED]
    if embedded:
        remedy = f"write the address there, in {config.orchestrator.runner_config}"
        raise ConfigError(
            Problem(problem="runners of a fleet share their servers", path=tuple(key.split(".")), remedy=remedy)
            for key in embedded
        )
    return template


def own_keys(work: Work, *, data_dir: str, node: str) -> dict[str, dict[str, Any]]:
    """What this attempt's runner is told beyond the fleet's config.

    Raises:
        ConfigError: the row says what is not for a scenario to say. It may have been written past every check of ours.
    """
    check_scenario_settings(work.settings)
    if not is_canonical(work.video_path):
        problem, remedy = "not an absolute path without // and /./", "submit the video by another one"
        raise ConfigError([Problem(problem=problem, path=("video", "path"), remedy=remedy)])
    sections: dict[str, dict[str, Any]] = {name: dict(keys) for name, keys in work.settings.items()}
    sections["runner"] = {"id": f"{node}-{work.scenario_id}"[-200:], "data_dir": data_dir}
    sections.setdefault("scenario", {}).update(id=work.scenario_id, epoch=work.epoch)
    sections.setdefault("video", {}).update(path=work.video_path)
    # Whoever starts the next attempt looks into the ledger: Kafka's absence need not keep anybody from working.
    sections["kafka"] = {"required": False}
    return sections


def runner_config(template: Config, work: Work, *, data_dir: Path, node: str) -> Config:
    """The config of this attempt's runner; raises ConfigError where the scenario's settings do not go with it."""
    sections = own_keys(work, data_dir=str(data_dir), node=node)
    if not template.kafka.spool_dir:
        # One for all runners of this node, so that the next of any of them sends what waits.
        sections["kafka"]["spool_dir"] = str(Path(template.runner.data_dir) / "spool")
    return template.replace(**sections)


def as_toml(config: Config) -> str:
    """A config file for a runner, which has no use for the sections of an orchestrator."""
    tables: dict[str, Any] = msgspec.to_builtins(config)
    for name in ("orchestrator", "systemd", "kubernetes"):
        del tables[name]
    return tomli_w.dumps(tables)

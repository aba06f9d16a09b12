"""Only the spawner that the config names is imported, and a package that it lacks is a mistake in the config."""

from __future__ import annotations

import sys

import pytest

from trio_runner.config.errors import ConfigError
from trio_runner.config.load import Config
from trio_runner.orchestrator.spawners.choice import choose_spawner

PACKAGE = "trio_runner.orchestrator.spawners"


def test_without_its_extra_the_kubernetes_spawner_is_a_mistake_in_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kubernetes", "kubernetes_api"):
        monkeypatch.delitem(sys.modules, f"{PACKAGE}.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "kr8s", None)
    with pytest.raises(ConfigError, match=r"orchestrator\.spawner: .*pip install 'trio_runner\[kubernetes\]'"):
        choose_spawner(Config().replace(orchestrator={"spawner": "kubernetes"}))


def test_no_other_spawner_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("kubernetes", "kubernetes_api", "units"):
        monkeypatch.delitem(sys.modules, f"{PACKAGE}.{name}", raising=False)
    choose_spawner(Config())
    assert f"{PACKAGE}.process" in sys.modules
    assert not {f"{PACKAGE}.{name}" for name in ("kubernetes", "kubernetes_api", "units")} & sys.modules.keys()

"""The commands that messages suggest can be pasted as they are."""

from __future__ import annotations

import sys

import pytest

from trio_runner.cli.suggest import command, with_commands


def test_a_suggested_command_names_the_program_and_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/somewhere/trio-runner"])
    message = "scenario 4 was given up: video_missing; to try again: trio-runner retry CONFIG 4"
    assert with_commands(message, "my configs/a.toml") == (
        "scenario 4 was given up: video_missing; to try again: /opt/somewhere/trio-runner retry 'my configs/a.toml' 4"
    )


def test_another_message_stays_as_it_is() -> None:
    assert with_commands(r"CONFIG, trio-runner and \1", "a.toml") == r"CONFIG, trio-runner and \1"


def test_the_module_is_called_as_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/trio_runner/__main__.py"])
    assert command("show", "runner.toml", 4) == "python -m trio_runner show runner.toml 4"

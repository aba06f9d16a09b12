"""The spawner of systemd units with a fake `systemctl`; tests/deployment/test_systemd_spawner.py has a real one."""

from __future__ import annotations

import subprocess
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest
import tomli
import trio

from tests.support.endings import ENDINGS, Ending
from tests.support.hanging_disk import hanging_disk
from tests.support.harness import PATIENCE_SECONDS
from tests.support.harness import until as until_async
from trio_runner.base.files import write_private
from trio_runner.config.errors import ConfigError
from trio_runner.config.load import Config, load_config
from trio_runner.database.backlog import Work
from trio_runner.errors import ErrorCode
from trio_runner.orchestrator.spawners import units
from trio_runner.orchestrator.spawners.runner_config import as_toml, load_template, runner_config
from trio_runner.orchestrator.spawners.spawner import Ended, SpawnRefusedError
from trio_runner.orchestrator.spawners.units import WRITTEN_BY, UnitSpawner, _how_it_ended, open_units

ADDRESSES = """\
[inference]
url = "https://i"
[database]
url = "postgresql://u@h/d"
password_file = "$CREDENTIALS_DIRECTORY/password"
[kafka]
brokers = "h:9092"
"""


def work(epoch: int = 1, scenario_id: int = 7) -> Work:
    return Work(scenario_id=scenario_id, epoch=epoch, video_path="/srv/videos/7.mp4", settings={})


def config_in(directory: Path) -> Config:
    (directory / "runner.toml").write_text(f'[runner]\ndata_dir = "/var/lib/trio-runner"\n{ADDRESSES}')
    return Config().replace(
        orchestrator={"spawner": "systemd", "runner_config": str(directory / "runner.toml"), "poll_seconds": 0.05},
        systemd={"config_dir": str(directory)},
    )


# the config of a unit


async def test_a_credential_is_left_for_the_unit_to_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/credentials/the-orchestrators")
    template = await load_template(config_in(tmp_path))
    assert template is not None
    config = runner_config(template, work(), data_dir=Path("/var/lib/trio-runner/7"), node="here")
    tables = tomli.loads(as_toml(config))
    assert tables["database"]["password_file"] == "$CREDENTIALS_DIRECTORY/password"
    assert tables["runner"]["data_dir"] == "/var/lib/trio-runner/7"
    assert tables["kafka"]["spool_dir"] == "/var/lib/trio-runner/spool"
    assert not {"orchestrator", "systemd", "kubernetes"} & tables.keys()
    (tmp_path / "7.toml").write_text(as_toml(config))
    read = load_config(tmp_path / "7.toml", {"CREDENTIALS_DIRECTORY": "/run/credentials/the-units"})
    assert read.database.password_file == "/run/credentials/the-units/password"
    assert (read.scenario.id, read.scenario.epoch, read.video.path) == (7, 1, "/srv/videos/7.mp4")


def test_units_need_a_config_of_their_own() -> None:
    with pytest.raises(ConfigError, match=r"orchestrator\.runner_config: missing, because orchestrator\.spawner"):
        Config().replace(orchestrator={"spawner": "systemd"})


# how a unit ended


@pytest.mark.parametrize("ending", [*ENDINGS, Ending("exit-code", "exited", "78", ErrorCode.INTERNAL)], ids=str)
def test_an_end_that_the_unit_may_not_have_reported_is_a_failure(ending: Ending) -> None:
    failure, _ = _how_it_ended("trio-runner@7.service", ending.properties())
    assert (failure and failure.code) == ending.code
    assert failure is None or "journalctl --unit=trio-runner@7.service" in failure.message


def test_a_unit_that_the_manager_forgot_before_the_last_look_may_not_have_been_reported() -> None:
    failure, detail = _how_it_ended("trio-runner@7.service", {})
    assert failure is not None
    assert (failure.code, detail) == (ErrorCode.RUNNER_KILLED, "gone")


# a manager whose answers the test chooses


class Manager:
    """Answers in the place of `systemctl`."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.calls: list[tuple[str, ...]] = []
        self.asked = 0
        self.refusal: tuple[int, str] | None = None

    async def run_process(self, command: Sequence[str], **_options: object) -> subprocess.CompletedProcess[bytes]:
        await trio.lowlevel.checkpoint()
        verb, *rest = command[4:]
        if self.refusal is not None:
            code, text = self.refusal
            return subprocess.CompletedProcess(command, code, b"", text.encode())
        if verb == "show":
            self.asked += 1
            shown = "\n".join(f"Id={unit}\nActiveState={state}\n" for unit, state in self.states.items())
            return subprocess.CompletedProcess(command, 0, shown.encode(), b"")
        self.calls.append((verb, rest[-1]))
        if verb == "start":
            self.states[rest[-1]] = "activating"
        return subprocess.CompletedProcess(command, 0, b"", b"")


@pytest.fixture
def manager(monkeypatch: pytest.MonkeyPatch) -> Manager:
    manager = Manager()
    monkeypatch.setattr(trio, "run_process", manager.run_process)
    return manager


UNIT = "trio-runner@7.service"


async def until(condition: Callable[[], bool]) -> None:
    """Wait for the condition. An end is reported in a task of its own, before or after what else follows from it."""
    with trio.fail_after(PATIENCE_SECONDS):
        while not condition():  # noqa: ASYNC110 - the condition has no event
            await trio.sleep(0.01)


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.toml"))


async def spawner_in(directory: Path, ends: list[Ended]) -> tuple[Config, Config, Callable[[Ended], Awaitable[None]]]:
    async def on_ended(ended: Ended) -> None:
        await trio.lowlevel.checkpoint()
        ends.append(ended)

    config = config_in(directory)
    template = await load_template(config)
    assert template is not None
    return config, template, on_ended


async def test_an_attempt_is_started_once_and_the_next_one_when_it_has_ended(tmp_path: Path, manager: Manager) -> None:
    ends: list[Ended] = []
    config, template, on_ended = await spawner_in(tmp_path, ends)
    async with open_units(config, template, "here", on_ended) as spawner:
        await spawner.start(work())
        await spawner.start(work())
        await spawner.start(work(epoch=2))
        assert manager.calls == [("start", UNIT)]
        manager.states.clear()
        await until(lambda: bool(ends) and len(manager.calls) > 1)
        assert manager.calls == [("start", UNIT)] * 2
        assert load_config(tmp_path / "7.toml", None).scenario.epoch == 2
        assert ends[0].epoch == 1
        await spawner.stop(7, 1)
        for _ in range(2):
            await spawner.stop(7, 2)
        assert manager.calls[2:] == [("stop", UNIT)]
        manager.states[UNIT] = "failed"
        await until(lambda: len(ends) == 2 and not (tmp_path / "7.toml").exists())


async def test_a_unit_whose_start_is_queued_has_not_ended_and_is_started_once(tmp_path: Path, manager: Manager) -> None:
    ends: list[Ended] = []
    config, template, on_ended = await spawner_in(tmp_path, ends)
    async with open_units(config, template, "here", on_ended) as spawner:
        for _ in range(2):
            await spawner.start(work())
        # The unit's stop, of an earlier attempt, comes before its start.
        manager.states[UNIT] = "inactive\nJob=3"
        asked = manager.asked
        await until(lambda: manager.asked >= asked + 3)
        assert ends == []
        manager.states.clear()
        await until(lambda: bool(ends))
    assert manager.calls == [("start", UNIT)]


async def test_an_attempt_that_was_stopped_while_it_waited_is_not_started(tmp_path: Path, manager: Manager) -> None:
    ends: list[Ended] = []
    config, template, on_ended = await spawner_in(tmp_path, ends)
    async with open_units(config, template, "here", on_ended) as spawner:
        await spawner.start(work())
        await spawner.start(work(epoch=2))
        await spawner.stop(7, 2)
        manager.states.clear()
        await until(lambda: bool(ends) and not (tmp_path / "7.toml").exists())
    assert manager.calls == [("start", UNIT)]


async def test_only_units_whose_configs_an_orchestrator_wrote_are_found_again(tmp_path: Path, manager: Manager) -> None:
    text = "[scenario]\nepoch = 3\n"
    for name, content in {
        "7.toml": f"{WRITTEN_BY}\n{text}",
        "8.toml": text,
        "9.toml": f"{WRITTEN_BY}\n{text}",
        "10.toml": f"{WRITTEN_BY}\nfrom another version\n",
        "1x.toml": f"{WRITTEN_BY}\n{text}",
    }.items():
        (tmp_path / name).write_text(content)
    manager.states = {f"trio-runner@{number}.service": "active" for number in (7, 8, 10)}
    ends: list[Ended] = []
    config, template, on_ended = await spawner_in(tmp_path, ends)
    async with open_units(config, template, "here", on_ended) as spawner:
        await spawner.start(work(epoch=3))
        await spawner.stop(8, 3)
        with pytest.raises(SpawnRefusedError, match="written by hand"):
            await spawner.start(work(scenario_id=8))
        await spawner.stop(7, 3)
        assert manager.calls == [("stop", UNIT)]
        manager.states.clear()
        await until(lambda: len(ends) == 2 and len(names_in(tmp_path)) == 3)
    # The epoch of the last one cannot be read, so no failure is reported for it.
    assert {(ended.scenario_id, ended.epoch, ended.failure is None) for ended in ends} == {(7, 3, False), (10, 0, True)}
    assert names_in(tmp_path) == ["1x.toml", "8.toml", "runner.toml"]


@pytest.mark.parametrize(
    ("code", "text", "remedy"),
    [
        (4, "Access denied", "polkit"),
        (1, "Interactive authentication required.", "polkit"),
        (5, "Unit trio-runner@7.service not found.", r"systemd\.unit"),
        (1, "Failed to connect to bus: No medium found", r"systemd\.manager"),
        (1, "Unit has a bad unit file setting.", "bad unit file setting"),
    ],
)
async def test_a_refusal_says_why_and_what_to_do(
    tmp_path: Path, manager: Manager, code: int, text: str, remedy: str
) -> None:
    config, template, on_ended = await spawner_in(tmp_path, [])
    async with trio.open_nursery() as nursery:
        spawner = UnitSpawner(config, template, "here", nursery, on_ended)
        await spawner.stop(7, 1)
        manager.refusal = code, text
        with pytest.raises(SpawnRefusedError, match=remedy):
            await spawner.start(work())
    assert not (tmp_path / "7.toml").exists()


async def test_a_directory_that_is_not_there_is_named_with_its_key(tmp_path: Path, manager: Manager) -> None:
    config, template, on_ended = await spawner_in(tmp_path, [])
    elsewhere = config.replace(systemd={"config_dir": str(tmp_path / "none")})
    async with open_units(elsewhere, template, "here", on_ended) as spawner:
        with pytest.raises(SpawnRefusedError, match=r"none: No such file.*systemd\.config_dir"):
            await spawner.start(work())


async def test_a_hanging_disk_refuses_starts_in_time_and_answers_no_later_call_before_the_first(
    tmp_path: Path, manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends: list[Ended] = []
    config, template, on_ended = await spawner_in(tmp_path, ends)
    monkeypatch.setattr(units, "FILE_SECONDS", 0.5)
    async with hanging_disk() as disk, open_units(config, template, "here", on_ended) as spawner:
        monkeypatch.setattr(units, "write_private", disk.holding_up(write_private))
        with pytest.raises(SpawnRefusedError, match=r"it did not answer within 0\.5 s; .*systemd\.config_dir"):
            await spawner.start(work())
        with pytest.raises(SpawnRefusedError, match="has not answered an earlier call yet"):
            await spawner.start(work(epoch=2))
        assert manager.calls == []
        disk.answers.set()

        async def started() -> bool:
            try:
                await spawner.start(work(epoch=2))
            except SpawnRefusedError:
                return False
            return True

        await until_async(started, described="the disk answers, and the unit starts")
        assert load_config(tmp_path / "7.toml", None).scenario.epoch == 2
    assert manager.calls == [("start", UNIT)]

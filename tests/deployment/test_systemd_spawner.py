"""The orchestrator and its unit under a real systemd, with runners that are units or its own children."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest

from tests.support import clips
from tests.support.harness import until
from tests.support.orchestrator_unit import NAME, Fleet, open_fleet, unit_of
from tests.support.scene import Scene
from tests.support.service_manager import Manager, open_manager, why_not

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

FRAMES = 30


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    with open_manager() as manager:
        yield manager


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.pixel_coded(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=FRAMES)


@pytest.fixture
async def fleet(manager: Manager, scene: Scene) -> AsyncIterator[Fleet]:
    """Runners are units."""
    await manager.drop_in(NAME, "RestartSec=100ms")
    async with open_fleet(manager, scene, "systemd") as fleet:
        yield fleet


@pytest.fixture
async def family(manager: Manager, scene: Scene) -> AsyncIterator[Fleet]:
    """Runners are children of the orchestrator."""
    await manager.drop_in(NAME, "RestartSec=100ms", "WatchdogSec=20")
    async with open_fleet(manager, scene, "process") as fleet:
        yield fleet


# runners that are units


async def test_a_submitted_scenario_becomes_a_unit_and_completes(fleet: Fleet, video: Path) -> None:
    scenario_id = await fleet.submit(video)
    await fleet.at_work(scenario_id)
    assert (await fleet.manager.show(unit_of(scenario_id)))["ActiveState"] == "active"
    config = fleet.manager.configs / f"{scenario_id}.toml"
    assert config.stat().st_mode & 0o777 == 0o600
    fleet.fake.gate.set()
    (attempt,) = await fleet.completed(scenario_id)
    assert attempt["runner_id"] == f"here-{scenario_id}"
    await fleet.without_config(scenario_id)
    assert await fleet.reporters(scenario_id) == []


async def test_a_killed_runner_is_reported_by_its_unit_and_the_next_one_goes_on(fleet: Fleet, video: Path) -> None:
    scenario_id = await fleet.submit(video)
    await fleet.at_work(scenario_id)

    async def at_rest() -> bool:
        """Whether all answers are stored, and as many requests wait as may at once."""
        row = await fleet.scene.ledger.existing(scenario_id)
        return row["next_frame"] == 5 and len(fleet.fake.under_way) == 4

    await until(at_rest, described="it waits for the answers that are held back")
    stored, asked = 5, len(fleet.fake.numbers)
    await fleet.kill(unit_of(scenario_id))
    fleet.fake.gate.set()
    lost, last = await fleet.completed(scenario_id)
    assert (lost["outcome"], last["first_frame"]) == ("lost", stored)
    assert await fleet.reporters(scenario_id) == [("runner_killed", "stop-post")]
    assert sorted(fleet.fake.numbers[asked:]) == list(range(stored, FRAMES))


async def test_stop_lets_the_unit_drain(fleet: Fleet, video: Path) -> None:
    unit, keep = unit_of(fleet.scene.scenario_id), f"keep@{fleet.scene.scenario_id}.target"
    assert (await fleet.manager.systemctl("start", keep)).code == 0
    scenario_id = await fleet.submit(video)
    await fleet.at_work(scenario_id)
    await fleet.stop(scenario_id)
    await fleet.drained(scenario_id)
    # The manager still knows the unit, and the orchestrator sees all the same that it has ended.
    await fleet.without_config(scenario_id)
    shown = await fleet.manager.show(unit)
    assert (shown["ActiveState"], shown["Result"], shown["ExecMainStatus"]) == ("inactive", "success", "0")
    assert (await fleet.manager.systemctl("stop", keep)).code == 0


async def test_runners_outlive_their_orchestrator_and_are_found_again(
    fleet: Fleet, video: Path, new_scenario_id: Callable[[], int]
) -> None:
    stays, stops = await fleet.submit(video), await fleet.submit(video, new_scenario_id())
    for scenario_id in (stays, stops):
        await fleet.at_work(scenario_id)
    await fleet.kill()
    await fleet.logged("runners of a former orchestrator go on")
    await fleet.stop(stops)
    await fleet.drained(stops)
    assert (await fleet.manager.systemctl("stop", NAME)).code == 0
    assert (await fleet.manager.show(unit_of(stays)))["ActiveState"] == "active"
    fleet.fake.gate.set()
    assert len(await fleet.completed(stays)) == 1
    await fleet.gone(unit_of(stays))
    # A runner that ends while no orchestrator watches leaves its config, which the next orchestrator removes.
    assert (fleet.manager.configs / f"{stays}.toml").exists()
    assert (await fleet.manager.systemctl("start", NAME)).code == 0
    await fleet.without_config(stays)


async def test_without_its_unit_file_a_scenario_waits_and_records_why(fleet: Fleet, video: Path) -> None:
    shipped, aside = (fleet.manager.units / name for name in ("trio-runner@.service", "aside"))
    shipped.rename(aside)
    assert (await fleet.manager.systemctl("daemon-reload")).code == 0
    scenario_id = await fleet.submit(video)
    why = await fleet.refused(scenario_id)
    assert "not found" in why
    assert "systemd.unit" in why
    assert not (fleet.manager.configs / f"{scenario_id}.toml").exists()
    aside.rename(shipped)
    assert (await fleet.manager.systemctl("daemon-reload")).code == 0
    fleet.fake.gate.set()
    assert len(await fleet.completed(scenario_id)) == 1


async def test_a_unit_that_cannot_read_its_config_is_reported_by_the_orchestrator(fleet: Fleet, video: Path) -> None:
    unit, nowhere = unit_of(fleet.scene.scenario_id), fleet.manager.directory / "nowhere.toml"
    command = f"{fleet.manager.interpreter} -m trio_runner"
    await fleet.manager.drop_in(
        unit,
        *("ExecStart=", f"ExecStart={command} run {nowhere}"),
        *("ExecStopPost=", f"ExecStopPost={command} report-death {nowhere}"),
    )
    scenario_id = await fleet.submit(video)

    async def is_reported() -> list[tuple[str, str]]:
        return await fleet.reporters(scenario_id)

    ((code, reporter), *_) = await until(is_reported, described="its death is reported")
    assert (code in {"internal", "runner_killed"}, reporter) == (True, "orchestrator")
    await fleet.manager.drop_in(unit)
    fleet.fake.gate.set()
    attempts = await fleet.completed(scenario_id)
    assert unit in attempts[0]["error"]["message"]


async def test_a_config_that_somebody_wrote_is_left_alone(fleet: Fleet, video: Path) -> None:
    theirs = fleet.manager.configs / f"{fleet.scene.scenario_id}.toml"
    theirs.write_text("# mine\n")
    scenario_id = await fleet.submit(video)
    assert str(theirs) in await fleet.refused(scenario_id)
    assert theirs.read_text() == "# mine\n"


# runners that are children


async def test_it_is_ready_feeds_its_watchdog_and_lets_its_children_drain(family: Fleet, video: Path) -> None:
    async def fed() -> str:
        return (await family.manager.show(NAME))["WatchdogTimestampMonotonic"]

    first = await fed()

    async def is_fed_again() -> bool:
        return await fed() != first

    await until(is_fed_again, described="the watchdog is fed")
    scenario_id = await family.submit(video)
    await family.at_work(scenario_id)

    async def counts() -> bool:
        return (await family.manager.show(NAME))["StatusText"] == "1 running, 0 due, 0 backing off"

    await until(counts, described="STATUS counts the runner")
    assert (await family.manager.systemctl("stop", NAME)).code == 0
    shown = await family.manager.show(NAME)
    assert (shown["ActiveState"], shown["Result"], shown["NRestarts"]) == ("inactive", "success", "0")
    assert family.manager.processes(NAME) == []
    assert await family.reporters(scenario_id) == [("interrupted", "runner")]
    await family.scene.ledger.check_invariants(scenario_id)


async def test_killed_it_takes_its_children_along_and_the_next_one_reports_them(
    family: Fleet, video: Path, new_scenario_id: Callable[[], int]
) -> None:
    """The kernel sends them SIGTERM, and systemd SIGKILL once it has noticed: one may be quick enough to drain."""
    scenario_ids = [await family.submit(video), await family.submit(video, new_scenario_id())]
    for scenario_id in scenario_ids:
        await family.at_work(scenario_id)
    await family.kill()
    for scenario_id in scenario_ids:

        async def is_reported(scenario_id: int = scenario_id) -> list[tuple[str, str]]:
            return await family.reporters(scenario_id)

        (reported,) = await until(is_reported, described=f"the death of {scenario_id} is reported")
        assert reported in {("runner_killed", "stop-post"), ("interrupted", "runner")}
    family.fake.gate.set()
    for scenario_id in scenario_ids:
        assert len(await family.completed(scenario_id)) == 2

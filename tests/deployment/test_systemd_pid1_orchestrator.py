"""The orchestrator's unit as shipped under systemd as PID 1, with its own children and, by polkit's leave, with units.

They take root and a minute, and are left out where nobody asks for them: `TRIO_RUNNER_TEST_PID1=1`.
"""

from __future__ import annotations

import os
import pwd
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import clips
from tests.support.harness import REPOSITORY, Servers, until
from tests.support.orchestrator_unit import NAME, open_fleet, unit_of
from tests.support.scene import Scene
from tests.support.service_machine import ASKED, Machine, open_machine, why_not

reason = why_not() if os.environ.get(ASKED) else f"a stage of its own, which sets {ASKED}=1"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason), reason=reason)]

FRAMES = 30
VIDEO = Path("/srv/videos/clip.mp4")
USER = "trio-runner-orchestrator"

PASSWORD = {"database": {"password_file": "$CREDENTIALS_DIRECTORY/database-password"}}
RUNNER: dict[str, dict[str, Any]] = {**PASSWORD, "runner": {"data_dir": "/var/lib/trio-runner"}}
OF_CHILDREN: dict[str, dict[str, Any]] = {**PASSWORD, "runner": {"data_dir": f"/var/lib/{USER}"}}
OF_UNITS = OF_CHILDREN | {"systemd": {"manager": "system"}}

POLKIT = [Path("/usr/bin/dbus-daemon"), Path("/usr/lib/polkit-1/polkitd")]
needs_polkit = pytest.mark.skipif(
    not all(path.exists() for path in POLKIT), reason=f"not installed: {' or '.join(map(str, POLKIT))}"
)


@pytest.fixture(scope="module")
def machine(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    clip = clips.pixel_coded(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=FRAMES)
    with open_machine({str(VIDEO): clip}, servers.password) as machine:
        yield machine


async def done(machine: Machine, *command: str) -> None:
    done = await machine.run(*command)
    assert done.code == 0, f"{command}: {done.text}"


async def install_units(machine: Machine) -> None:
    """Install the files that the drop-in's comments ask for."""
    shipped = REPOSITORY / "systemd"
    for source, place in {
        f"{NAME}.d/units.conf": f"etc/systemd/system/{NAME}.d/units.conf",
        f"{USER}.sysusers": f"etc/sysusers.d/{USER}.conf",
        f"{USER}.rules": f"etc/polkit-1/rules.d/{USER}.rules",
    }.items():
        (machine.root / place).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shipped / source, machine.root / place)
    users = [pwd.getpwnam(name) for name in ("root", "messagebus", "polkitd")]
    for file, line in {"passwd": "{0}:x:{1}:{2}::/:/usr/sbin/nologin\n", "group": "{0}:x:{2}:\n"}.items():
        (machine.root / "etc" / file).write_text(
            "".join(line.format(user.pw_name, user.pw_uid, user.pw_gid) for user in users)
        )
    # Made when the machine booted, whose users had other numbers.
    await done(machine, "chown", "polkitd", "/etc/polkit-1/rules.d")
    await done(machine, "systemd-sysusers", f"/etc/sysusers.d/{USER}.conf")
    await done(machine, "install", "-d", "-o", "root", "-g", USER, "-m", "1770", "/etc/trio-runner")
    await done(machine, "systemctl", "daemon-reload")
    await done(machine, "systemctl", "start", "dbus.socket", "polkit.service")


async def test_its_children_complete_and_it_leaves_nobody(machine: Machine, scene: Scene) -> None:
    async with open_fleet(machine, scene, "process", orchestrator=OF_CHILDREN, runner=RUNNER) as fleet:
        scenario_id = await fleet.submit(VIDEO)
        await fleet.at_work(scenario_id)
        statuses = kernel_statuses(machine)
        assert len(statuses) >= 2
        confined = {"NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000"}
        assert all(confined <= status for status in statuses)
        fleet.fake.gate.set()
        assert len(await fleet.completed(scenario_id)) == 1
        assert (await machine.systemctl("stop", NAME)).code == 0
        assert (await machine.show(NAME))["Result"] == "success"
        assert machine.processes(NAME) == []


@needs_polkit
async def test_without_privileges_it_starts_and_stops_runners_and_nothing_else(
    machine: Machine, scene: Scene, new_scenario_id: Callable[[], int]
) -> None:
    await install_units(machine)
    async with open_fleet(machine, scene, "systemd", orchestrator=OF_UNITS, runner=RUNNER) as fleet:
        completes, stops = await fleet.submit(VIDEO), await fleet.submit(VIDEO, new_scenario_id())
        for scenario_id in (completes, stops):
            await fleet.at_work(scenario_id)
        owner = (machine.configs / f"{completes}.toml").stat()
        assert (owner.st_mode & 0o777, owner.st_uid) == (0o600, await uid_of(machine))
        await refusals(machine)
        await fleet.stop(stops)
        await fleet.drained(stops)
        await fleet.kill(unit_of(completes))
        fleet.fake.gate.set()
        assert len(await fleet.completed(completes)) == 2
        assert await fleet.reporters(completes) == [("runner_killed", "stop-post")]
        for scenario_id in (completes, stops):
            await fleet.without_config(scenario_id)


@needs_polkit
async def test_without_polkits_leave_a_scenario_waits_and_records_why(machine: Machine, scene: Scene) -> None:
    await install_units(machine)
    (machine.root / f"etc/polkit-1/rules.d/{USER}.rules").unlink()
    await done(machine, "systemctl", "restart", "polkit.service")
    async with open_fleet(machine, scene, "systemd", orchestrator=OF_UNITS, runner=RUNNER) as fleet:
        scenario_id = await fleet.submit(VIDEO)

        async def why() -> str:
            error = (await fleet.scene.ledger.existing(scenario_id))["last_error"]
            return str(error["message"]) if error else ""

        assert f"{USER}.rules" in await until(why, described="why it is not started")
        assert not (machine.configs / f"{scenario_id}.toml").exists()


def kernel_statuses(machine: Machine) -> list[set[str]]:
    """Of the orchestrator and its children, in lines (proc_pid_status(5))."""
    paths = [Path(f"/proc/{process.pid}/status") for process in machine.processes(NAME)]
    return [set(path.read_text().splitlines()) for path in paths]


async def uid_of(machine: Machine) -> int:
    done = await machine.run("id", "-u", USER)
    return int(done.text)


async def refusals(machine: Machine) -> None:
    """By the same user, and one for each condition of the rule."""
    for command in (
        ("start", "other.service"),
        ("start", "trio-runner@x.service"),
        ("restart", "trio-runner@1.service"),
        ("reload", "trio-runner@1.service"),
        ("daemon-reload",),
        ("stop", NAME),
    ):
        done = await machine.run(
            "setpriv",
            f"--reuid={USER}",
            f"--regid={USER}",
            "--clear-groups",
            "systemctl",
            "--no-ask-password",
            *command,
        )
        assert "authentication required" in done.text, (command, done)

"""The unit as shipped under systemd as PID 1, where its sandbox and its limits hold.

They take root and a minute, and are left out where nobody asks for them: `TRIO_RUNNER_TEST_PID1=1`.
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from typing import Any

import psutil
import pytest

from tests.support import clips
from tests.support.fake_inference import open_fake
from tests.support.harness import Servers
from tests.support.scene import Scene
from tests.support.service_machine import ASKED, UNIFIED, Machine, open_machine, why_not
from tests.support.service_unit import FRAMES, SIZE, Ending, Unit, at_work, open_unit

reason = why_not() if os.environ.get(ASKED) else f"a stage of its own, which sets {ASKED}=1"
pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(reason), reason=reason)]

MEMORY_MAX = 768 * 2**20
VIDEO = "/srv/videos/clip.mp4"
ELSEWHERE = ("/srv/clip.mp4", "/home/somebody/clip.mp4", "/root/clip.mp4", "/var/cache/clip.mp4")


@pytest.fixture(scope="module")
def machine(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    clip = clips.with_large_frames(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=FRAMES)
    with open_machine(dict.fromkeys((VIDEO, *ELSEWHERE), clip), servers.password) as machine:
        yield machine


@pytest.fixture
def memory(machine: Machine) -> None:
    need(machine, "memory")


@pytest.fixture
def pids(machine: Machine) -> None:
    need(machine, "pids")


def need(machine: Machine, controller: str) -> None:
    if controller not in machine.controllers:
        pytest.skip(f"the kernel's cgroups do not give this machine the {controller} controller")


@pytest.fixture
async def unit(machine: Machine, scene: Scene) -> AsyncIterator[Unit]:
    base: dict[str, dict[str, Any]] = {
        "runner": {"data_dir": f"/var/lib/trio-runner/{scene.scenario_id}"},
        "video": {"path": VIDEO, "root": "/srv/videos"},
        "database": {"batch_frames": 4, "password_file": "$CREDENTIALS_DIRECTORY/database-password"},
        "kafka": {"spool_dir": "/var/lib/trio-runner/spool"},
    }
    async with open_unit(machine, scene, base) as unit:
        yield unit


async def test_a_scenario_completes(unit: Unit) -> None:
    async with open_fake(held=lambda number: number >= 5) as fake:
        unit.configure(fake.url)
        done = await unit.start()
        assert done.code == 0, done.text + unit.log()
        await unit.active()
        fake.gate.set()
        assert await unit.ended() == Ending(result="success", how="exited", status="0")
    await unit.scene.check_rows(FRAMES, SIZE)
    assert (await unit.scene.ledger.existing(unit.scene.scenario_id))["outcome"] == "completed"
    await unit.scene.ledger.check_invariants(unit.scene.scenario_id)


async def test_the_kernel_has_the_memory_limit(memory: None, unit: Unit, machine: Machine) -> None:
    async with at_work(unit) as fake:
        assert (await machine.show(unit.name))["MemoryMax"] == str(MEMORY_MAX)
        assert machine.limit(unit.name, "memory.max", "memory.limit_in_bytes") == str(MEMORY_MAX)
        fake.gate.set()
        assert await unit.ended() == Ending(result="success", how="exited", status="0")
    await unit.scene.check_rows(FRAMES, SIZE)


# Twice the limit, and not all that the real machine has.
GROWS_ON_REQUEST = """\
import signal, sys
hoard = []
signal.signal(signal.SIGUSR1, lambda *_: [hoard.append(b"x" * 2**24) for _ in range(96)])
from trio_runner.cli.main import main
sys.exit(main())
"""


@pytest.mark.parametrize(("result", "code"), [
    pytest.param("oom-kill", "runner_out_of_memory", marks=pytest.mark.skipif(
        not UNIFIED, reason="cgroup v1: for systemd it is a signal like any other, so `runner_killed`"
    )),
    pytest.param("signal", "runner_killed", marks=pytest.mark.skipif(UNIFIED, reason="of cgroup v1 only")),
])  # fmt: skip
async def test_one_that_exceeds_the_memory_limit_is_killed_and_reported(
    memory: None, unit: Unit, result: str, code: str
) -> None:
    await unit.run_program(GROWS_ON_REQUEST)
    async with at_work(unit):
        await unit.signal_main(signal.SIGUSR1)
        assert await unit.ended() == Ending(result=result, how="killed", status="9")
    await unit.reported(code, by="stop-post")
    await unit.completes()


SPAWNS = """\
import subprocess
children = []
try:
    while True:
        children.append(subprocess.Popen(["sleep", "600"]))
except OSError as error:
    print(error)
finally:
    for child in children:
        child.kill()
        child.wait()
"""


async def test_there_are_no_more_tasks_than_the_limit(pids: None, unit: Unit, machine: Machine) -> None:
    async with at_work(unit) as fake:
        assert (await machine.show(unit.name))["TasksMax"] == "64"
        assert machine.limit(unit.name, "pids.max") == "64"
        done = await machine.run_among(unit.name, machine.interpreter, "-c", SPAWNS)
        assert "Resource temporarily unavailable" in done.text
        fake.gate.set()
        # The unit has not noticed.
        assert await unit.ended() == Ending(result="success", how="exited", status="0")
    await unit.scene.check_rows(FRAMES, SIZE)


READ_ONLY = [
    "/",
    "/etc/trio-runner",
    "/opt/trio-runner",
    "/run",
    "/run/lock",
    "/srv/videos",
    "/usr",
    "/usr/bin",
    "/var/cache",
]
WRITABLE = ["/dev/shm", "/tmp", "/var/tmp", "/var/lib/trio-runner/spool", "/var/lib/trio-runner/videos"]  # noqa: S108 - the unit's own, or looked at only


async def test_only_its_own_directories_can_be_written_and_nothing_there_executed(unit: Unit, machine: Machine) -> None:
    own = f"trio-runner/{unit.scene.scenario_id}"
    async with at_work(unit) as fake:
        for directory in READ_ONLY:
            # Root's capabilities are no help.
            done = await machine.run_beside(unit.name, "touch", f"{directory}/new")
            assert "Read-only file system" in done.text, directory
        for directory in [*WRITABLE, f"/var/lib/{own}", f"/run/{own}"]:
            done = await machine.run_beside(unit.name, "cp", "/usr/bin/true", f"{directory}/new")
            assert done.code == 0, done.text
            done = await machine.run_beside(unit.name, f"{directory}/new")
            assert "Permission denied" in done.text, directory
        fake.gate.set()
        assert await unit.ended() == Ending(result="success", how="exited", status="0")


OUTWARD = [
    address.address
    for addresses in psutil.net_if_addrs().values()
    for address in addresses
    if address.family == socket.AF_INET and not address.address.startswith("127.")
]

CONNECTS = """\
import socket, sys
with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=2):
    print("connected")
"""


@pytest.mark.skipif(not OUTWARD, reason="this machine has no address but the loopback's")
async def test_no_other_host_can_be_reached(unit: Unit, machine: Machine) -> None:
    """This one, by the address that others know it by, counts as another."""
    async with at_work(unit) as fake:
        for address, reached in (("127.0.0.1", True), (OUTWARD[0], False)):
            with socket.create_server((address, 0)) as listener:
                command = machine.interpreter, "-c", CONNECTS, address, str(listener.getsockname()[1])
                assert "connected" in (await machine.run(*command)).text
                assert ("connected" in (await machine.run_among(unit.name, *command)).text) == reached
        fake.gate.set()
        assert await unit.ended() == Ending(result="success", how="exited", status="0")


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("/srv/clip.mp4", "video_missing"),
        ("/home/somebody/clip.mp4", "video_missing"),
        ("/root/clip.mp4", "video_missing"),
        ("/var/cache/clip.mp4", "video_refused"),
    ],
)
async def test_a_video_from_elsewhere_is_not_read(unit: Unit, path: str, code: str) -> None:
    async with open_fake() as fake:
        unit.configure(fake.url, video={"path": path})
        done = await unit.start()
        assert done.code != 0
        assert await unit.ended() == Ending(result="exit-code", how="exited", status="65")
        assert fake.numbers == []
    await unit.reported(code, by="runner")


async def test_a_stop_leaves_nobody(unit: Unit, machine: Machine) -> None:
    """Not even one that ignores SIGTERM."""
    # An executed program inherits ignored signals, so `sleep` ignores SIGTERM from its start.
    stray = "trap '' TERM; sleep 600 >/dev/null 2>&1 &"
    async with at_work(unit) as fake:
        done = await machine.run_among(unit.name, "sh", "-c", stray)
        assert done.code == 0, done.text
        assert len(machine.processes(unit.name)) == 3
        fake.gate.set()
        await unit.stop()
        assert await unit.ended() == Ending(result="success", how="exited", status="0")
    await unit.reported("interrupted", by="runner")
    await unit.completes()

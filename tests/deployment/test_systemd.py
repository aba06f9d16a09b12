"""The shipped unit under a real systemd: what `systemctl start` waits for, what a death leaves, and who reports it."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import trio

from tests.support import clips
from tests.support.fake_inference import Fault, at_frame, open_fake
from tests.support.harness import read_topic, until
from tests.support.proxy import Breakdown, Proxy, open_proxy
from tests.support.scene import Scene, held_run, own_broker
from tests.support.service_manager import Manager, Output, open_manager, why_not
from tests.support.service_unit import FRAMES, SIZE, Ending, Unit, at_work, open_unit

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(why_not()), reason=why_not())]

MEMORY = Path("/sys/fs/cgroup/memory")


@pytest.fixture(scope="module")
def manager() -> Iterator[Manager]:
    with open_manager() as manager:
        yield manager


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return clips.with_large_frames(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=FRAMES)


@pytest.fixture
async def unit(manager: Manager, scene: Scene, clip: Path) -> AsyncIterator[Unit]:
    base = {"runner": {"data_dir": str(scene.directory / "data")}, "video": {"path": str(clip)}}
    async with open_unit(manager, scene, base) as unit:
        yield unit


@asynccontextmanager
async def frozen(url: str) -> AsyncIterator[tuple[Proxy, str]]:
    """A proxy before the server at `url` that takes connections and lets nothing pass; and the url that leads there."""
    parts = urlsplit(url)
    assert parts.hostname is not None
    assert parts.port is not None
    async with open_proxy(parts.hostname, parts.port) as proxy:
        proxy.break_down(Breakdown.FREEZE)
        user = f"{parts.username}@" if parts.username else ""
        yield proxy, parts._replace(netloc=f"{user}{proxy.address}").geturl()


async def connected(proxy: Proxy) -> None:
    async def has_connected() -> int:
        return proxy.connections

    await until(has_connected, described="the unit has connected")


async def test_a_start_returns_at_the_claim_and_the_end_is_a_success(unit: Unit) -> None:
    output: list[Output] = []
    async with (
        frozen(unit.scene.servers.database_url) as (proxy, url),
        open_fake(held=lambda number: number >= 5) as fake,
        trio.open_nursery() as nursery,
    ):
        unit.configure(fake.url, database={"url": url, "connect_timeout_seconds": 30.0})

        async def start() -> None:
            output.append(await unit.start())

        nursery.start_soon(start)
        await connected(proxy)
        assert (await unit.manager.show(unit.name))["ActiveState"] == "activating"
        assert output == []
        proxy.recover()

        async def returned() -> bool:
            return bool(output)

        await until(returned, described="systemctl start has returned")
        assert output[0].code == 0, output[0].text + unit.log()
        assert (await unit.scene.ledger.existing(unit.scene.scenario_id))["instance_id"] is not None

        async def status() -> bool:
            shown = await unit.manager.show(unit.name)
            assert shown["ActiveState"] == "active"
            return shown["StatusText"].endswith(f"of {FRAMES}") and not shown["StatusText"].startswith("frame 0 ")

        await until(status, described="STATUS shows progress")
        # The sandbox is around both, the daemon and its decoder.
        confined = {"NoNewPrivs:\t1", "Seccomp:\t2", "CapBnd:\t0000000000000000"}
        assert [confined <= status for status in unit.kernel_statuses()] == [True, True]
        fake.gate.set()
        assert await unit.ended() == Ending(result="success", how="exited", status="0")
    await unit.scene.check_rows(FRAMES, SIZE)
    assert await read_topic(unit.scene.servers.brokers, unit.scene.topic) == []
    await unit.scene.ledger.check_invariants(unit.scene.scenario_id)


async def test_a_start_fails_where_the_claim_is_refused(unit: Unit, scene: Scene, clip: Path) -> None:
    async with held_run(scene, clip) as held:
        before = await scene.ledger.existing(scene.scenario_id)
        unit.configure(held.fake.url)
        output = await unit.start()
        assert output.code != 0
        assert await unit.ended() == Ending(result="exit-code", how="exited", status="79")
        after = await scene.ledger.existing(scene.scenario_id)
        assert (after["instance_id"], after["epoch"]) == (before["instance_id"], 1)
        held.fake.gate.set()
        assert (await held.running.wait()).code == 0
    await scene.check_rows(FRAMES, SIZE)
    assert await read_topic(scene.servers.brokers, scene.topic) == []


async def test_a_killed_runner_is_reported_by_the_manager(unit: Unit) -> None:
    async with at_work(unit):
        await unit.signal_main(signal.SIGKILL)
        assert await unit.ended() == Ending(result="signal", how="killed", status="9")
    await unit.reported("runner_killed", by="stop-post")
    await unit.completes()


BLOCKS_ON_REQUEST = """\
import signal, sys, time
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(600))
from trio_runner.cli.main import main
sys.exit(main())
"""


async def test_a_loop_that_is_blocked_is_ended_and_reported(unit: Unit) -> None:
    await unit.run_program(BLOCKS_ON_REQUEST, "WatchdogSec=10")
    async with at_work(unit):
        await unit.signal_main(signal.SIGUSR1)
        assert await unit.ended() == Ending(result="watchdog", how="killed", status="6")
    assert "Fatal Python error: Aborted" in unit.log(), "the journal does not say where it stood"
    await unit.reported("runner_hung", by="stop-post")
    await unit.completes()


async def test_a_decoder_that_crashes_is_reported_by_the_runner(unit: Unit) -> None:
    async with at_work(unit) as fake:
        unit.decoder().send_signal(signal.SIGSEGV)
        fake.gate.set()
        assert await unit.ended() == Ending(result="exit-code", how="exited", status="75")
    await unit.reported("decoder_killed", by="runner")
    await unit.completes()


GROWS_ON_REQUEST = """\
import os, pathlib, signal, sys
pathlib.Path({procs!r}).write_text(str(os.getpid()))
def grow(*_):
    hoard = []
    while True:
        hoard.append(b"x" * 2**24)
signal.signal(signal.SIGUSR1, grow)
from trio_runner.cli.main import main
sys.exit(main())
"""


@pytest.mark.skipif(
    not (MEMORY / "memory.limit_in_bytes").exists(), reason="the memory controller of cgroup v1 is not mounted"
)
async def test_one_that_the_kernel_kills_for_want_of_memory_is_reported(unit: Unit) -> None:
    """In cgroup v1 a user's manager has no controllers: MemoryMax= is done by hand, and it only sees a signal."""
    cgroup = MEMORY / unit.manager.directory.name
    cgroup.mkdir()
    try:
        (cgroup / "memory.limit_in_bytes").write_text(str(768 * 2**20))
        await unit.run_program(
            GROWS_ON_REQUEST.format(procs=str(cgroup / "cgroup.procs")),
            "ProtectControlGroups=no",
            f"ReadWritePaths={cgroup}",
        )
        async with at_work(unit):
            await unit.signal_main(signal.SIGUSR1)
            assert await unit.ended() == Ending(result="signal", how="killed", status="9")
        assert "oom_kill 1\n" in (cgroup / "memory.oom_control").read_text()
    finally:
        cgroup.rmdir()
    await unit.reported("runner_killed", by="stop-post")
    await unit.completes()


async def test_stopped_at_work_it_drains(unit: Unit) -> None:
    async with at_work(unit) as fake:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(unit.stop)

            async def stopping() -> bool:
                return (await unit.manager.show(unit.name))["ActiveState"] == "deactivating"

            await until(stopping, described="deactivating")
            fake.gate.set()
        assert await unit.ended() == Ending(result="success", how="exited", status="0")
    await unit.reported("interrupted", by="runner")
    await unit.completes()


async def test_stopped_while_it_starts_it_reports_that(unit: Unit) -> None:
    """Database and Kafka have answered; the inference service's TLS has not."""
    async with frozen(unit.scene.servers.inference_url) as (proxy, url):
        unit.configure(url.replace("http:", "https:"), inference={"connect_timeout_seconds": 30.0})
        assert (await unit.start("--no-block")).code == 0
        await connected(proxy)
        await unit.stop()
        assert await unit.ended() == Ending(result="success", how="exited", status="0")
    await unit.reported("interrupted", by="runner")
    await unit.completes()


async def test_stopped_while_it_reports_a_failure_it_finishes_that(unit: Unit) -> None:
    """Kafka stands still meanwhile, so the event goes to the spool, and the next start sends it."""
    async with own_broker(unit.scene) as (kafka, server):
        kafka |= {"publish_timeout_seconds": 3.0, "connect_timeout_seconds": 2.0}
        async with open_fake(plan=at_frame(20, Fault.STATUS_500), held=lambda number: number >= 5) as fake:
            unit.configure(fake.url, kafka=kafka)
            assert (await unit.start()).code == 0
            server.suspend()
            fake.gate.set()

            async def failing() -> bool:
                return bool(await unit.scene.ledger.retry_events(unit.scene.scenario_id))

            await until(failing, described="the ledger knows of the failure")
            await unit.stop()
            assert await unit.ended() == Ending(result="exit-code", how="exited", status="74")
        server.resume()
    assert await read_topic(unit.scene.servers.brokers, unit.scene.topic) == []
    await unit.completes()
    (record,) = await unit.scene.ledger.retry_events(unit.scene.scenario_id)
    assert record["body"]["error"]["code"] == "inference_unavailable"
    assert (await unit.scene.the_event()).headers["ce_id"] == str(record["event_id"])


async def test_a_start_that_does_not_get_ready_in_time_is_reported(unit: Unit) -> None:
    """The database does not answer: the manager loses patience, and the death cannot be recorded."""
    await unit.drop_in("TimeoutStartSec=8")
    async with frozen(unit.scene.servers.database_url) as (_, url), open_fake() as fake:
        unit.configure(fake.url, database={"url": url, "connect_timeout_seconds": 30.0})
        output = await unit.start()
        assert output.code != 0
        assert await unit.ended() == Ending(result="timeout", how="exited", status="0")
    event = await unit.scene.the_event()
    assert event.body["error"]["code"] == "interrupted"
    assert await unit.scene.ledger.scenario(unit.scene.scenario_id) is None
    await unit.completes()


@pytest.mark.parametrize(
    ("program", "lines", "ending", "code"),
    [
        (
            "import time\ntime.sleep(600)",
            ["TimeoutStartSec=1"],
            Ending(result="timeout", how="killed", status="15"),
            "runner_hung",
        ),
        ("import nonesuch", [], Ending(result="exit-code", how="exited", status="1"), "internal"),
    ],
    ids=["hangs", "fails"],
)
async def test_one_that_dies_before_it_is_a_runner_is_reported(
    unit: Unit, program: str, lines: list[str], ending: Ending, code: str
) -> None:
    await unit.run_program(program, *lines)
    unit.configure(unit.scene.servers.inference_url)
    assert (await unit.start()).code != 0
    assert await unit.ended() == ending
    await unit.reported(code, by="stop-post")
    await unit.completes()

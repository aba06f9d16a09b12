"""The orchestrator as a real process on real PostgreSQL and Kafka: nothing is lost or doubled, whatever dies."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import sys
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import trio

from tests.support.database_server import DatabaseServer
from tests.support.fake_inference import Fake, Fault, once, open_fake
from tests.support.fleet import Fleet, open_fleet, prepare
from tests.support.harness import Cli, Running, Servers, as_toml, free_port, open_service_manager, until
from trio_runner.errors import ErrorCode
from trio_runner.kafka import retry_event as retry
from trio_runner.model import Claim, Failure, Progress

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(server: DatabaseServer) -> DatabaseServer:
    """With the schema; each fleet has a copy of it."""
    trio.run(prepare, server)
    return server


@pytest.fixture
async def fake() -> AsyncIterator[Fake]:
    async with open_fake() as opened:
        yield opened


@pytest.fixture
async def fleet(server: DatabaseServer, servers: Servers, cli: Cli, tmp_path: Path, fake: Fake) -> AsyncIterator[Fleet]:
    async with open_fleet(server, servers, cli, tmp_path, fake.url) as opened:
        yield opened


async def test_what_is_submitted_is_completed(fleet: Fleet, clip: Path) -> None:
    asked = await fleet.cli("submit", fleet.config("dba"), "--video", clip, "--set", "video.stride=2")
    given = int(asked.out.split()[1])
    async with fleet.orchestrator() as running:
        assert await fleet.ended([given]) == {given: "completed"}
        running.send_signal(signal.SIGTERM)
        done = await running.wait()
    assert done.code == 0, done.err
    assert fleet.runners() == []
    assert [row["frame_index"] for row in await fleet.ledger.predictions(given)] == list(range(0, 60, 2))
    (attempt,) = await fleet.ledger.attempts(given)
    assert (attempt["runner_id"], attempt["outcome"]) == (f"node_1-{given}", "completed")
    assert not list((fleet.directory / "node_1.data" / "runners").iterdir())
    started = [line for line in done.log() if line["event"] == "started"]
    assert [(line["scenario_id"], line["epoch"], line["why"]) for line in started] == [(given, 1, "submitted")]
    ended = [line for line in done.log() if line["event"] == "ended: exit code 0"]
    assert [(line["scenario_id"], line["epoch"]) for line in ended] == [(given, 1)]


async def held(fleet: Fleet, fake: Fake, scenario_id: int, frames: int = 4) -> psutil.Process:
    """Wait until so many frames are stored, while the service holds back further answers; returns the runner."""
    await fleet.has("id = $1 AND next_frame >= $2 AND instance_id IS NOT NULL", scenario_id, frames)
    return await fleet.runner(scenario_id)


def hold(fake: Fake, number: int = 6) -> None:
    """Hold back the answers from this frame on until the gate opens."""
    fake.held = lambda each: each >= number


# configs that cannot be used


@pytest.mark.parametrize(
    ("orchestrator", "named"),
    [
        ({"spawner": "systemd"}, ':2: orchestrator.runner_config: missing, because orchestrator.spawner is "systemd"'),
        ({"runner_config": "runner.toml"}, "runner.toml:2: video.stride: "),
    ],
)
async def test_a_config_that_cannot_be_used_is_exit_code_78_and_opens_nothing(
    cli: Cli, tmp_path: Path, orchestrator: dict[str, Any], named: str
) -> None:
    (tmp_path / "runner.toml").write_text("[video]\nstride = 0\n")
    config = tmp_path / "orchestrator.toml"
    config.write_text(as_toml({"orchestrator": orchestrator, "runner": {"data_dir": "data"}}))
    done = await cli("orchestrate", config)
    assert (done.code, "Traceback" in done.err) == (78, False), done.err
    assert named in done.err
    assert not (tmp_path / "data").exists(), "the embedded servers were started"
    if "spawner" in orchestrator:
        assert named in (await cli("validate", config)).err


# commands on Kafka


@pytest.mark.kafka
async def test_commands_start_and_stop_and_a_repeated_one_changes_nothing(fleet: Fleet, fake: Fake, clip: Path) -> None:
    hold(fake)
    await fleet.command("start", 7, "first", video_path=str(clip), settings={"scenario": {"max_failures": 3}})
    async with fleet.orchestrator():
        await held(fleet, fake, 7)
        assert (await fleet.ledger.existing(7))["max_failures"] == 3
        await fleet.command("stop", 7, "second")
        await fleet.has("id = 7 AND status = 'inactive'")
        await fleet.no_runners()
        (attempt,) = await fleet.ledger.attempts(7)
        assert attempt["outcome"] == "interrupted"
        assert (await fleet.ledger.existing(7))["outcome"] is None
        await fleet.command("start", 7, "first", video_path=str(clip))
        await fleet.command("start", 8, "third", video_path=str(clip))
        await fleet.has("id = 8 AND instance_id IS NOT NULL")
        # The command before it on the topic was applied once, and is not applied again.
        assert (await fleet.ledger.existing(7))["status"] == "inactive"
        fake.gate.set()
        await fleet.command("start", 7, "fourth", video_path=str(clip), settings={"scenario": {"max_failures": 3}})
        await fleet.completed([7, 8])
    assert await fleet.messages(fleet.dead_letter_topic) == []


def start_headers(command_id: str) -> list[tuple[str, bytes]]:
    return [("ce_id", command_id.encode()), ("ce_type", b"trio-runner.start.v1")]


@pytest.mark.kafka
async def test_hostile_messages_are_put_aside_with_their_reason_and_do_not_come_again(fleet: Fleet, clip: Path) -> None:
    hostile: list[dict[str, Any]] = [{"self": {}}, {"inference": {"url": "http://evil"}}, {"video": {"stride": 0}}]
    evil = [
        json.dumps({"scenario_id": 7, "video_path": str(clip), "settings": settings}).encode() for settings in hostile
    ]
    evil += [b"\xff\xfe", b"{}", b"[" * 10_000, b"x" * 100_000]
    records: list[tuple[str, bytes | None, bytes | None, list[tuple[str, bytes]]]] = [
        (fleet.command_topic, b"7", value, start_headers(f"c{n}")) for n, value in enumerate(evil)
    ]
    records += [
        (fleet.command_topic, b"7", None, []),
        (fleet.command_topic, b"9", b'{"scenario_id": 9}', [("ce_id", b"s"), ("ce_type", b"trio-runner.stop.v1")]),
        (fleet.retry_topic, b"7", b"no event", []),
        (fleet.retry_topic, b"7", evil[0], start_headers("x")),
    ]
    await fleet.send(*records)
    await fleet.command("start", 8, video_path=str(clip))
    async with fleet.orchestrator() as running:
        await fleet.completed([8])

        async def committed() -> bool:
            return not await fleet.lag(fleet.command_topic) + await fleet.lag(fleet.retry_topic)

        await until(committed, described="all offsets committed")
        asides = await fleet.messages(fleet.dead_letter_topic)
        running.send_signal(signal.SIGTERM)
        done = await running.wait()
    assert done.code == 0
    assert await fleet.rows([7, 9]) == []
    assert {each.headers["ce_type"] for each in asides} == {"trio-runner.refused.v1"}
    assert len(asides) == len(records)
    sources = {aside.headers["refused-at"].rpartition("/")[0].rpartition("/")[0]: aside for aside in asides}
    assert sources.keys() == {fleet.command_topic, fleet.retry_topic}
    reasons = " ".join(aside.headers["refused-because"] for aside in asides)
    for because in ("self: not for", "inference.url: not for", "video.stride: bad value", "does not exist", "bytes"):
        assert because in reasons
    assert b"\xff\xfe" in [aside.value for aside in asides]
    async with fleet.orchestrator():
        await fleet.command("start", 10, video_path=str(clip))
        await fleet.completed([10])
    assert len(await fleet.messages(fleet.dead_letter_topic)) == len(records)


# deaths


async def test_a_killed_runner_is_reported_within_seconds_and_the_next_goes_on(
    fleet: Fleet, fake: Fake, clip: Path
) -> None:
    hold(fake)
    given = await fleet.submit(clip)
    # If the report were left to the lease, this test would wait for an hour.
    async with fleet.orchestrator(database={"lease_seconds": 3600.0}):
        (await held(fleet, fake, given)).kill()
        await fleet.has("id = $1 AND epoch = 2", given)
        fake.gate.set()
        await fleet.completed([given])
    (death,) = await fleet.ledger.retry_events(given)
    assert (death["reporter"], death["body"]["error"]["code"]) == ("stop-post", "runner_killed")
    assert death["published_at"] is not None
    first, second = await fleet.ledger.attempts(given)
    assert (first["outcome"], second["outcome"], second["first_frame"]) == ("lost", "completed", first["end_frame"])
    assert first["end_frame"] >= 4


async def test_a_runner_that_a_nameless_signal_ends_does_not_end_the_orchestrator(
    fleet: Fleet, fake: Fake, clip: Path
) -> None:
    hold(fake)
    given = await fleet.submit(clip)
    async with fleet.orchestrator():
        (await held(fleet, fake, given)).send_signal(signal.SIGRTMIN + 5)
        await fleet.has("id = $1 AND epoch = 2", given)
        fake.gate.set()
        await fleet.completed([given])


async def test_a_poison_scenario_has_max_failures_attempts_and_one_dead_letter(
    fleet: Fleet, fake: Fake, clip: Path
) -> None:
    fake.plan = lambda _, painted: Fault.STATUS_500 if painted == 0 else None
    await fleet.submit(clip, 7, "scenario.max_failures=3")
    async with fleet.orchestrator("node_1"), fleet.orchestrator("node_2"):
        assert await fleet.ended([7]) == {7: "failed"}
        await fleet.has("id = 7 AND dead_letter_due IS NULL")
        row = await fleet.ledger.existing(7)
        assert (row["status"], row["failures"], row["epoch"]) == ("inactive", 3, 4)
        assert len(await fleet.ledger.attempts(7)) == 3
        (letter,) = await fleet.messages(fleet.dead_letter_topic)
        body = json.loads(letter.value)
        assert (letter.key, letter.headers["ce_type"]) == (b"7", "trio-runner.given-up.v1")
        assert (letter.headers["ce_epoch"], body["epoch"], body["failures"]) == ("3", 3, 3)
        assert body["error"]["code"] == "inference_unavailable"
        # A person tries again once the service answers.
        fake.plan = lambda *_: None
        done = await fleet.cli("retry", fleet.config("dba"), "7")
        assert done.code == 0
        await fleet.completed([7])
    assert len(await fleet.messages(fleet.dead_letter_topic)) == 1


async def test_a_scenario_that_always_makes_progress_finishes(fleet: Fleet, fake: Fake, clip: Path) -> None:
    # Each of these frames is further from the attempt's first one than the window is wide, so it is sent only after
    # something is stored.
    fake.plan = once(*range(9, 60, 20))
    given = await fleet.submit(clip, 0, "scenario.max_failures=1", "inference.in_flight=1")
    async with fleet.orchestrator():
        await fleet.completed([given])
    assert len(await fleet.ledger.attempts(given)) == 4


async def test_a_permanent_error_is_the_last(fleet: Fleet) -> None:
    given = await fleet.submit(fleet.directory / "no-such-video.mp4")
    async with fleet.orchestrator():
        assert await fleet.ended([given]) == {given: "failed"}
        await fleet.has("id = $1 AND dead_letter_due IS NULL", given)
    assert len(await fleet.ledger.attempts(given)) == 1
    (letter,) = await fleet.messages(fleet.dead_letter_topic)
    assert json.loads(letter.value)["error"]["code"] == "video_missing"


async def test_a_runner_that_cannot_use_its_config_is_recorded_as_such(fleet: Fleet, clip: Path) -> None:
    """As during an update: the orchestrator writes a config that the runner cannot use."""
    given = await fleet.submit(clip)
    # A key that only a later version knows.
    await fleet.ledger.query("UPDATE scenarios SET settings = $2 WHERE id = $1", given, {"video": {"strides": 2}})
    async with fleet.orchestrator():
        assert await fleet.ended([given]) == {given: "failed"}
    row = await fleet.ledger.existing(given)
    assert row["last_error"]["code"] == "config_invalid"
    assert "video.strides" in row["last_error"]["message"]
    (death,) = await fleet.ledger.retry_events(given)
    assert death["reporter"] == "orchestrator"


EXIT_78 = """\
import sys
from trio_runner.orchestrator.spawners import runner_directories
as_toml = runner_directories.as_toml
runner_directories.as_toml = lambda config: as_toml(config) + "[surprise]\\n"
from trio_runner.cli.main import main
sys.exit(main())
"""


async def test_exit_code_78_is_recorded_by_the_orchestrator(fleet: Fleet, clip: Path) -> None:
    given = await fleet.submit(clip)
    wrapper = fleet.directory / "surprise.py"
    wrapper.write_text(EXIT_78)
    async with fleet.cli.started("orchestrate", fleet.config(), program=[sys.executable, str(wrapper)]):
        assert await fleet.ended([given]) == {given: "failed"}
    row = await fleet.ledger.existing(given)
    assert (row["last_error"]["code"], row["epoch"]) == ("config_invalid", 2)
    assert len(await fleet.ledger.attempts(given)) == 1


# stopping


async def test_stop_drains_and_submit_goes_on(fleet: Fleet, fake: Fake, clip: Path) -> None:
    hold(fake)
    given = await fleet.submit(clip)
    async with fleet.orchestrator():
        await held(fleet, fake, given)
        done = await fleet.cli("stop", fleet.config("dba"), str(given))
        assert done.code == 0
        await fleet.has("id = $1 AND status = 'inactive'", given)
        row = await fleet.ledger.existing(given)
        assert (row["outcome"], row["epoch"], row["failures"]) == (None, 2, 0)
        assert row["next_frame"] >= 4
        fake.gate.set()
        assert await fleet.submit(clip, given) == given
        await fleet.completed([given])
    assert len(await fleet.ledger.attempts(given)) == 2


async def test_an_orchestrator_that_is_stopped_lets_its_runners_drain(fleet: Fleet, fake: Fake, clip: Path) -> None:
    hold(fake)
    ids = [await fleet.submit(clip) for _ in range(2)]
    async with fleet.orchestrator() as running:
        for each in ids:
            await held(fleet, fake, each)
        running.send_signal(signal.SIGTERM)
        done = await running.wait()
        assert done.code == 0, done.err
        assert fleet.runners() == []
    for row in await fleet.rows(ids):
        assert (row["status"], row["instance_id"], row["failures"], row["epoch"]) == ("init_startup", None, 0, 2)
    fake.gate.set()
    async with fleet.orchestrator():
        await fleet.completed(ids)


async def test_a_second_ctrl_c_ends_runners_that_drain_at_once(fleet: Fleet, fake: Fake, clip: Path) -> None:
    hold(fake)
    given = await fleet.submit(clip)
    async with fleet.orchestrator(
        runner={"drain_seconds": 600.0},
        inference={"timeout_seconds": 600.0},
        orchestrator={"stop_timeout_seconds": 900.0},
    ) as running:
        await held(fleet, fake, given)
        running.send_signal(signal.SIGINT)
        await trio.sleep(2)
        assert len(fleet.runners()) == 1, "its runner drains"
        assert not running.exited()
        running.send_signal(signal.SIGINT)
        done = await running.wait()
    assert done.code == 0, done.err
    assert fleet.runners() == []
    (attempt,) = await fleet.ledger.attempts(given)
    assert attempt["outcome"] == "interrupted"
    (row,) = await fleet.rows([given])
    assert (row["status"], row["instance_id"], row["failures"], row["epoch"]) == ("init_startup", None, 0, 2)


async def test_a_runner_that_is_stopped_before_it_claims_holds_nothing_up(fleet: Fleet, clip: Path) -> None:
    given = await fleet.submit(clip)
    patient = {"start_timeout_seconds": 3600.0}
    async with fleet.orchestrator(orchestrator=patient) as running:
        await fleet.runner(given)
        running.send_signal(signal.SIGTERM)
        assert (await running.wait()).code == 0
    async with fleet.orchestrator(orchestrator=patient):
        await fleet.completed([given])


BUG = """\
import sys
from pathlib import Path
from trio_runner.database.backlog import Backlog
from trio_runner.cli.main import main

shutdowns = Backlog.shutdowns

async def broken(self):
    assert not Path(__file__).with_suffix(".now").exists(), "a bug"
    return await shutdowns(self)

Backlog.shutdowns = broken
sys.exit(main())
"""


@pytest.mark.parametrize("why", ["a signal", "a bug"])
async def test_the_service_manager_is_notified_for_as_long_as_runners_drain(
    fleet: Fleet, fake: Fake, clip: Path, why: str
) -> None:
    hold(fake)
    given = await fleet.submit(clip)
    wrapper = fleet.directory / "bug.py"
    wrapper.write_text(BUG)
    # A runner that needs longer to drain is killed, even if it was the machine that stood still.
    config = fleet.config(database={"lease_seconds": 3600.0}, orchestrator={"stop_timeout_seconds": 600.0})
    async with open_service_manager() as manager:
        variables = manager.variables | {"WATCHDOG_USEC": "300000"}
        program = [sys.executable, str(wrapper)]
        async with fleet.cli.started("orchestrate", config, program=program, variables=variables) as running:
            runner = await held(fleet, fake, given)
            runner.suspend()
            if why == "a bug":
                wrapper.with_suffix(".now").touch()
            else:
                running.send_signal(signal.SIGTERM)

            async def asked() -> bool:
                """Whether SIGTERM is pending for the stopped runner (proc_pid_status(5))."""
                status = await trio.Path(f"/proc/{runner.pid}/status").read_text()
                (pending,) = re.findall(r"ShdPnd:\t(\w+)", status)
                return bool(int(pending, 16) & 1 << signal.SIGTERM - 1)

            await until(asked, described="its runner is asked to drain")
            so_far = manager.states.count("WATCHDOG=1")

            async def fed() -> bool:
                return manager.states.count("WATCHDOG=1") >= so_far + 2

            await until(fed, described="the watchdog is fed")
            assert "STOPPING=1" not in manager.states
            runner.resume()
            fake.gate.set()
            done = await running.wait()
            await manager.wait_for("STOPPING=1")
    assert (done.code == 0) == (why == "a signal"), done.err
    assert ("a bug" in done.err) == (why == "a bug")
    (attempt,) = await fleet.ledger.attempts(given)
    assert attempt["outcome"] == "interrupted"


# dying orchestrators


async def test_runners_of_a_killed_orchestrator_drain_and_the_next_one_goes_on(
    fleet: Fleet, fake: Fake, clip: Path
) -> None:
    hold(fake)
    ids = [await fleet.submit(clip) for _ in range(2)]
    async with fleet.orchestrator(database={"lease_seconds": 3600.0}) as running:
        for each in ids:
            await held(fleet, fake, each)
        os.kill(running.pid, signal.SIGKILL)
        await fleet.no_runners()
    for each in ids:
        (death,) = await fleet.ledger.retry_events(each)
        assert (death["reporter"], death["body"]["error"]["code"]) == ("runner", "interrupted")
    fake.gate.set()
    async with fleet.orchestrator():
        await fleet.completed(ids)


async def test_runners_killed_together_with_their_orchestrator_are_reported_by_the_next(
    fleet: Fleet, fake: Fake, clip: Path
) -> None:
    hold(fake)
    ids = [await fleet.submit(clip) for _ in range(2)]
    patient = {"lease_seconds": 3600.0}
    async with fleet.orchestrator(database=patient) as running:
        runners = [await held(fleet, fake, each) for each in ids]
        os.kill(running.pid, signal.SIGSTOP)
        for runner in runners:
            runner.kill()
        os.kill(running.pid, signal.SIGKILL)
    assert [row["epoch"] for row in await fleet.rows(ids)] == [1, 1]
    fake.gate.set()
    async with fleet.orchestrator(database=patient):
        await fleet.completed(ids)
    for each in ids:
        (death,) = await fleet.ledger.retry_events(each)
        assert (death["reporter"], death["body"]["error"]["code"]) == ("stop-post", "runner_killed")


DAEMON = "trio_runner.orchestrator"
STEPS = {
    "due attempts are taken, nothing is started": "trio_runner.database.backlog:Backlog:due:after:wanted",
    "a runner is started": f"{DAEMON}.spawners.process:ProcessSpawner:start:after:",
    "before a runner is started": f"{DAEMON}.spawners.process:ProcessSpawner:start:before:",
    "a command is applied, its offset not committed": "trio_runner.database.backlog:Backlog:apply:after:",
    "offsets are committed": "trio_runner.kafka.inbox:Inbox:commit:after:",
    "before a runner's end is reported": f"{DAEMON}.spawners.process:ProcessSpawner:_report:before:",
    "a runner's end is reported": f"{DAEMON}.spawners.process:ProcessSpawner:_report:after:",
    "a runner has ended": f"{DAEMON}.daemon:Orchestrator:on_ended:before:",
    "an event is read": f"{DAEMON}.listener:Listener:_reconcile:before:",
    "an event is reconciled": f"{DAEMON}.listener:Listener:_reconcile:after:",
}


@pytest.mark.parametrize("step", STEPS)
async def test_an_orchestrator_killed_at_a_step_loses_and_doubles_nothing(
    fleet: Fleet, fake: Fake, clip: Path, step: str
) -> None:
    # At the other steps no runner has ended yet, and of what they do with a death other tests are.
    if "an event" in step or "end" in step:
        fake.plan = once(20, 40)
    for each in (7, 8):
        if "command" in step or "offset" in step:
            await fleet.command("start", each, video_path=str(clip))
        else:
            await fleet.submit(clip, each)
    reported = "end is reported" in step
    if reported:
        hold(fake)
    async with fleet.orchestrator(dying=STEPS[step]) as running:
        if reported:
            # The gate keeps the runner from its end until it is killed. A runner that reported itself would leave the
            # orchestrator nothing to report.
            (await fleet.runner(7)).kill()
            fake.gate.set()

        async def dead() -> bool:
            await fleet.hurry()
            return running.exited()

        await until(dead, described=f"killed when {step}")
        assert (await running.wait()).code == -signal.SIGKILL
    async with fleet.orchestrator(orchestrator={"start_timeout_seconds": 8.0}):
        await fleet.completed([7, 8])
    assert await fleet.messages(fleet.dead_letter_topic) == []


# peers that are away


async def test_an_orchestrator_without_kafka_finishes_everything_by_the_ledger(
    fleet: Fleet, fake: Fake, clip: Path
) -> None:
    fake.plan = once(20)
    given = await fleet.submit(clip)
    missing = await fleet.submit(fleet.directory / "missing.mp4")
    nowhere = {
        "brokers": f"127.0.0.1:{free_port()}",
        "connect_timeout_seconds": 0.5,
        "publish_timeout_seconds": 0.5,
    }
    async with fleet.orchestrator(kafka=nowhere):
        assert await fleet.ended([given, missing]) == {given: "completed", missing: "failed"}
    assert len(await fleet.ledger.attempts(given)) == 2
    await fleet.ledger.check_invariants(given)
    # The next orchestrator that has Kafka publishes the dead letter, once the first one's lease on it is over.
    await fleet.ledger.query("UPDATE scenarios SET dead_letter_due = now() WHERE dead_letter_due IS NOT NULL")
    async with fleet.orchestrator():
        await fleet.has("id = $1 AND dead_letter_due IS NULL", missing)
    assert len(await fleet.messages(fleet.dead_letter_topic)) == 1


async def test_a_database_that_drops_its_connections_is_waited_for(
    fleet: Fleet, fake: Fake, clip: Path, server: DatabaseServer
) -> None:
    hold(fake)
    first = await fleet.submit(clip)
    async with fleet.orchestrator() as running:
        await held(fleet, fake, first)
        await server.as_superuser(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'trio-runner orchestrate'"
        )
        fake.gate.set()
        second = await fleet.submit(clip)
        await fleet.completed([first, second])
        assert not running.exited()


# forged events


async def forged(fleet: Fleet, scenario_id: int, **changes: Any) -> None:
    """A retry event of the right shape about the attempt that is under way."""
    row = await fleet.ledger.existing(scenario_id)
    claim = Claim(
        scenario_id=scenario_id,
        epoch=row["epoch"],
        instance_id=changes.get("instance_id", str(row["instance_id"])),
        next_frame=0,
        frames_stored=0,
    )
    failure = Failure(code=ErrorCode.INFERENCE_TIMEOUT, type="X", message="forged")
    event = retry.build_event(failure, claim=claim, runner_id="r", progress=Progress(), reporter="runner")
    await fleet.send((fleet.retry_topic, str(scenario_id).encode(), msgspec.json.encode(event), retry.headers(event)))


@pytest.mark.kafka
async def test_an_event_of_another_instance_changes_nothing_and_one_of_the_right_is_recorded(
    fleet: Fleet, fake: Fake, clip: Path
) -> None:
    hold(fake)
    given = await fleet.submit(clip)
    # Kafka needs a while for a new topic, and the lease must not end first.
    async with fleet.orchestrator(database={"lease_seconds": 3600.0}):
        runner = await held(fleet, fake, given)
        await forged(fleet, given, instance_id=str(uuid.uuid4()))

        async def read() -> bool:
            return not await fleet.lag(fleet.retry_topic)

        await until(read, described="the event is read")
        row = await fleet.ledger.existing(given)
        assert (row["epoch"], str(row["status"])) == (1, "active")
        assert runner.is_running()
        # As from a runner that could not reach the ledger.
        runner.suspend()
        await forged(fleet, given)
        await fleet.has("id = $1 AND epoch = 2", given)

        async def published() -> bool:
            (death,) = await fleet.ledger.retry_events(given)
            assert death["body"]["error"]["message"] == "forged"
            return death["published_at"] is not None

        # The mark comes after the death, in a statement of its own.
        await until(published, described="it is marked published")
        # It may have been killed to make room for the next attempt.
        with suppress(psutil.NoSuchProcess):
            runner.resume()
        fake.gate.set()
        await fleet.completed([given])
    assert await fleet.messages(fleet.dead_letter_topic) == []


# how many


async def test_there_are_no_more_runners_than_allowed_and_one_node_more_takes_the_rest(
    fleet: Fleet, fake: Fake, clip: Path
) -> None:
    hold(fake)
    ids = [await fleet.submit(clip) for _ in range(4)]
    at_most = {"max_runners": 2}
    async with AsyncExitStack() as stack:
        await stack.enter_async_context(fleet.orchestrator("node_1", orchestrator=at_most))
        for each in ids[:2]:
            await fleet.has("id = $1 AND next_frame >= 4", each)

        async def running() -> int:
            (row,) = await fleet.ledger.query("SELECT count(*) AS n FROM scenarios WHERE next_frame > 0")
            return int(row["n"])

        assert await running() == len(fleet.runners()) == 2
        await stack.enter_async_context(fleet.orchestrator("node_2", orchestrator=at_most))
        for each in ids[2:]:
            await fleet.has("id = $1 AND next_frame >= 4", each)
        nodes = [row["node"] for row in await fleet.rows(ids)]
        assert nodes == ["node_1", "node_1", "node_2", "node_2"]
        fake.gate.set()
        await fleet.completed(ids)
    await check_each_ran_once(fleet, ids)


async def check_each_ran_once(fleet: Fleet, ids: list[int]) -> None:
    attempts = await fleet.ledger.query("SELECT scenario_id, outcome, error FROM attempts ORDER BY scenario_id, epoch")
    assert [tuple(attempt.values()) for attempt in attempts] == [(each, "completed", None) for each in ids]


async def test_a_second_one_on_a_data_directory_waits_until_the_first_has_left(
    fleet: Fleet, fake: Fake, clip: Path
) -> None:
    hold(fake)
    ids = [await fleet.submit(clip) for _ in range(2)]
    async with fleet.orchestrator("node_1", orchestrator={"max_runners": 1}) as first:
        await fleet.has("node = 'node_1' AND next_frame >= 4")
        async with fleet.orchestrator("node_2", runner={"data_dir": "node_1.data"}) as second:

            async def waits() -> bool:
                return "another orchestrator's runners live there" in second.err()

            await until(waits, described="the second waits")
            assert [row["node"] for row in await fleet.rows(ids) if row["node"]] == ["node_1"]
            first.send_signal(signal.SIGTERM)
            assert (await first.wait()).code == 0
            fake.gate.set()
            await fleet.completed(ids)


async def test_a_dead_service_is_tried_by_one_at_a_time_and_all_complete_when_it_is_back(
    fleet: Fleet, fake: Fake, clip: Path
) -> None:
    fake.plan = lambda *_: Fault.STATUS_500
    ids = list(range(1, 17))
    await fleet.insert(clip, ids, {"video": {"max_frames": 4}})
    async with fleet.orchestrator(orchestrator={"starts_per_second": 3.0, "max_runners": 3}) as running:
        await until(lambda: logged(running, "the breaker is open"), described="the breaker is open")
        await fleet.has("epoch > 1")
        (row,) = await fleet.ledger.query(
            "SELECT count(*) AS n FROM scenarios WHERE epoch > 1 OR instance_id IS NOT NULL"
        )
        fake.plan = lambda *_: None
        await until(lambda: logged(running, "the breaker is closed"), described="the breaker is closed")
        await fleet.completed(ids, frames=4)
    attempts = await fleet.ledger.query("SELECT extract(epoch FROM started_at)::float8 AS at FROM attempts ORDER BY 1")
    moments = [attempt["at"] for attempt in attempts]
    # The ledger has the times of claims and not of starts. On a busy machine a few claims come together.
    for first in range(len(moments)):
        in_five_seconds = sum(moments[first] <= moment < moments[first] + 5 for moment in moments)
        assert in_five_seconds <= 3 * (5 + 1) + 3
    assert row["n"] <= 3 + 10


async def logged(running: Running, event: str) -> bool:
    return event in running.err()


@pytest.mark.kafka
async def test_two_orchestrators_run_every_scenario_once(fleet: Fleet, clip: Path) -> None:
    ids = list(range(1, 9))
    for each in ids:
        await fleet.command("start", each, video_path=str(clip), settings={"video": {"max_frames": 10}})
    async with fleet.orchestrator("node_1"), fleet.orchestrator("node_2"):
        await fleet.completed(ids, frames=10)
    await check_each_ran_once(fleet, ids)


# secrets


async def test_a_runners_config_is_its_users_alone_and_holds_no_secret(fleet: Fleet, fake: Fake, clip: Path) -> None:
    hold(fake)
    given = await fleet.submit(clip)
    async with fleet.orchestrator():
        runner = await held(fleet, fake, given)
        place = fleet.directory / "node_1.data" / "runners" / str(given)
        (config,) = place.glob("*.toml")
        assert stat.S_IMODE(config.stat().st_mode) == 0o600
        assert stat.S_IMODE(place.stat().st_mode) == 0o700
        password = fleet.servers.password
        given_to_it = [*runner.cmdline(), *runner.environ().values(), config.read_text()]
        for child in runner.children(recursive=True):
            # The decoder may have ended.
            with suppress(psutil.NoSuchProcess):
                given_to_it += [*child.cmdline(), *child.environ().values()]
        assert not any(password in text for text in given_to_it)
        fake.gate.set()
        await fleet.completed([given])


async def test_a_runner_that_was_frozen_past_its_lease_makes_room_for_the_next(
    fleet: Fleet, fake: Fake, clip: Path
) -> None:
    hold(fake)
    given = await fleet.submit(clip)
    async with fleet.orchestrator(database={"lease_seconds": 1.0}, orchestrator={"reap_seconds": 0.5}):
        await held(fleet, fake, given)
        # On a busy machine so short a lease may have ended before, and this is not the first attempt.
        row = await fleet.has("id = $1 AND instance_id IS NOT NULL", given)
        frozen = await fleet.runner(given)
        frozen.suspend()
        await fleet.has("id = $1 AND epoch > $2", given, row["epoch"])
        fake.gate.set()
        await fleet.completed([given])
    assert not frozen.is_running()
    await fleet.ledger.check_invariants(given)


@pytest.mark.parametrize("settings", [{"inference": {"url": "http://127.0.0.1:1"}}, {"video": {"stride": None}}])
async def test_a_row_with_a_setting_that_is_not_allowed_is_given_up_and_ends_no_other(
    fleet: Fleet, fake: Fake, clip: Path, settings: dict[str, Any]
) -> None:
    fake.gate.set()
    await fleet.ledger.query(
        "INSERT INTO scenarios (id, video_path, settings) VALUES (901, $1, $2)", str(clip), settings
    )
    given = await fleet.submit(clip)
    async with fleet.orchestrator():
        assert await fleet.ended([901, given]) == {901: "failed", given: "completed"}
    (death,) = await fleet.ledger.retry_events(901)
    assert death["body"]["error"]["code"] == "config_invalid"

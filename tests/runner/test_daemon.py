"""Signals and the watchdog, with a fake runner that the test controls; real processes are tested elsewhere."""

from __future__ import annotations

import os
import signal
import socket
import uuid
from collections.abc import Iterator
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.harness import PATIENCE_SECONDS
from trio_runner.base.notify import Notifier
from trio_runner.config.load import Config
from trio_runner.errors import ClaimRefusedError, ErrorCode
from trio_runner.model import Claim, Progress
from trio_runner.pipeline.run import STALLED_SECONDS, stalled_seconds
from trio_runner.runner import daemon
from trio_runner.runner.last_resort import LastResort
from trio_runner.runner.outcome import Ending, Outcome
from trio_runner.runner.runner import Runner


class Manager:
    """The service manager's end of NOTIFY_SOCKET."""

    def __init__(self, listener: socket.socket, environ: dict[str, str]) -> None:
        self._listener = listener
        self.notifier = Notifier(environ)

    def states(self) -> list[str]:
        """What has come since the last time."""
        messages = []
        while True:
            try:
                messages.append(self._listener.recv(4096).decode())
            except BlockingIOError:
                return messages


async def states_within(manager: Manager, seconds: float) -> list[str]:
    """All that comes in so many virtual seconds; read often, since the kernel keeps ten datagrams for a slow reader."""
    states: list[str] = []
    end = trio.current_time() + seconds
    while (now := trio.current_time()) < end:
        await trio.sleep(min(0.1, end - now))
        states += manager.states()
    return states


@pytest.fixture
def manager() -> Iterator[Manager]:
    name = f"trio-runner-test-{uuid.uuid4()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(0)
        listener.bind(f"\0{name}")
        yield Manager(listener, {"NOTIFY_SOCKET": f"@{name}", "WATCHDOG_USEC": "3000000"})


class FakeRunner:
    """What the daemon uses of a runner."""

    def __init__(self, ending: Ending = Ending.COMPLETED) -> None:
        self.claimed = trio.Event()
        self.progress = Progress()
        self.outcome: Outcome | None = None
        self.claim: Claim | None = None
        self.asked: list[str] = []
        self.was_asked = trio.Event()
        self.go_on = trio.Event()
        self._ending = ending

    async def process_scenario(self) -> bool:
        self.asked.append("process")
        await self.go_on.wait()
        self.outcome = Outcome(ending=self._ending, claim=None)
        if self._ending is Ending.REFUSED:
            raise ClaimRefusedError(ErrorCode.CLAIM_REFUSED, "another runner's")
        return self._ending is Ending.COMPLETED

    async def stop(self) -> None:
        await trio.lowlevel.checkpoint()
        self.asked.append("stop")
        self.was_asked.set()

    def abort(self) -> None:
        self.asked.append("abort")
        self.was_asked.set()


def as_runner(fake: FakeRunner) -> Runner:
    return cast("Runner", fake)


class FakeDisplay:
    def __init__(self) -> None:
        self.did: list[str] = []

    def note(self, text: str) -> None:
        pass

    async def watch(self, runner: Runner) -> None:
        self.did.append(f"watch {runner.progress.next_frame}")
        try:
            await trio.sleep_forever()
        finally:
            self.did.append("leave")

    async def summarise(self, config: Config, runner: Runner) -> None:
        pass


# signals


async def test_the_first_signal_drains_the_second_cancels_and_a_third_changes_nothing(manager: Manager) -> None:
    fake = FakeRunner()
    stopping = trio.CancelScope()
    send, receive = trio.open_memory_channel[int](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon._handle_signals, receive, [as_runner(fake)], stopping, manager.notifier)
        for expected in (["stop"], ["stop", "abort"], ["stop", "abort", "abort"]):
            await send.send(signal.SIGTERM)
            await wait_all_tasks_blocked()
            assert fake.asked == expected
        await send.aclose()
    assert not stopping.cancel_called
    assert manager.states()[0] == "STOPPING=1"


async def test_a_signal_while_there_is_no_runner_ends_the_wait_for_servers(manager: Manager) -> None:
    stopping = trio.CancelScope()
    send, receive = trio.open_memory_channel[int](1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon._handle_signals, receive, [], stopping, manager.notifier)
        with stopping:
            await send.send(signal.SIGINT)
            await trio.sleep_forever()
        await send.aclose()
    assert stopping.cancelled_caught


async def test_a_signal_after_the_runner_is_done_does_not_reach_it(manager: Manager) -> None:
    fake = FakeRunner()
    running = [as_runner(fake)]
    stopping = trio.CancelScope()
    send, receive = trio.open_memory_channel[int](0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon._handle_signals, receive, running, stopping, manager.notifier)
        running.clear()
        await send.send(signal.SIGTERM)
        await send.aclose()
    assert stopping.cancel_called
    assert fake.asked == []


async def test_real_signals_arrive(manager: Manager) -> None:
    fake = FakeRunner()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(daemon._handle_signals, signals, [as_runner(fake)], trio.CancelScope(), manager.notifier)
            for number, expected in ((signal.SIGINT, ["stop"]), (signal.SIGTERM, ["stop", "abort"])):
                os.kill(os.getpid(), number)
                with trio.fail_after(PATIENCE_SECONDS):
                    await fake.was_asked.wait()
                fake.was_asked = trio.Event()
                assert fake.asked == expected
            nursery.cancel_scope.cancel()


# the service manager


async def test_ready_is_notified_when_the_claim_is_held_and_not_before(
    manager: Manager, autojump_clock: MockClock
) -> None:
    fake = FakeRunner()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon._notify_manager, as_runner(fake), manager.notifier, LastResort(60), STALLED_SECONDS)
        await trio.sleep(100)
        assert manager.states() == []
        fake.progress = Progress(declared_frames=20, last_advance=trio.current_time())
        fake.claimed.set()
        await wait_all_tasks_blocked()
        assert manager.states() == ["READY=1", "WATCHDOG=1", "STATUS=frame 0 of 20"]
        nursery.cancel_scope.cancel()


async def test_while_a_service_is_waited_for_the_manager_allows_the_start_more_time(
    manager: Manager, autojump_clock: MockClock
) -> None:
    fake = FakeRunner()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon._notify_manager, as_runner(fake), manager.notifier, LastResort(60), STALLED_SECONDS)
        fake.progress.activity = "waiting for the inference service"
        states = await states_within(manager, 10)
        assert states.count("EXTEND_TIMEOUT_USEC=30000000") >= 9
        assert set(states) == {"STATUS=waiting for the inference service", "EXTEND_TIMEOUT_USEC=30000000"}
        fake.progress.activity = ""
        await states_within(manager, 2)
        assert await states_within(manager, 10) == []
        fake.claimed.set()
        await wait_all_tasks_blocked()
        assert "READY=1" in manager.states()
        nursery.cancel_scope.cancel()


async def test_the_watchdog_is_fed_only_while_there_is_progress(manager: Manager, autojump_clock: MockClock) -> None:
    fake = FakeRunner()
    fake.claimed.set()
    fake.progress.last_advance = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon._notify_manager, as_runner(fake), manager.notifier, LastResort(60), STALLED_SECONDS)
        states = await states_within(manager, STALLED_SECONDS - 0.5)
        assert states.count("WATCHDOG=1") >= STALLED_SECONDS - 1
        await states_within(manager, 1)
        states = await states_within(manager, 100)
        assert "WATCHDOG=1" not in states
        # The status line still names the frame.
        assert "STATUS=frame 0 of unknown" in states
        fake.progress.last_advance = trio.current_time()
        fake.progress.next_frame = 7
        states = await states_within(manager, 2)
        assert "WATCHDOG=1" in states
        assert "STATUS=frame 7 of unknown" in states
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("watchdog_seconds", [0.3, 3.0, 30.0])
async def test_the_watchdog_is_fed_well_within_its_interval(
    manager: Manager, watchdog_seconds: float, autojump_clock: MockClock
) -> None:
    fake = FakeRunner()
    fake.claimed.set()
    fake.progress.last_advance = trio.current_time()
    manager.notifier.watchdog_seconds = watchdog_seconds
    async with trio.open_nursery() as nursery:
        nursery.start_soon(daemon._notify_manager, as_runner(fake), manager.notifier, LastResort(60), STALLED_SECONDS)
        for _ in range(10):
            # Progress goes on, as it were.
            fake.progress.last_advance = trio.current_time()
            assert "WATCHDOG=1" in await states_within(manager, watchdog_seconds / 2)
        nursery.cancel_scope.cancel()


def test_what_the_config_grants_a_step_is_no_stall() -> None:
    assert stalled_seconds(Config()) == STALLED_SECONDS
    for section, key in (
        ("inference", "timeout_seconds"),
        ("database", "command_timeout_seconds"),
        ("video", "frame_timeout_seconds"),
    ):
        assert stalled_seconds(Config().replace(**{section: {key: 600.0}})) > 600


@pytest.mark.parametrize(
    ("keys", "seconds"),
    [
        ({"retry_seconds": 300.0}, 300 + 10),
        ({"requests_per_minute": 2.0, "in_flight": 4}, 4 * 30 + 10),
        ({"requests_per_second": 0.1, "in_flight": 10}, 10 * 10 + 10),
        ({"max_failed_frames": 1, "timeout_seconds": 100.0}, 2 * 100),
    ],
)
def test_waiting_for_a_turn_and_sending_again_are_no_stall(keys: dict[str, float], seconds: float) -> None:
    """`seconds` may pass between the moment when a frame is read and its answer; the one before it may need as much."""
    assert stalled_seconds(Config().replace(inference=keys)) > 2 * seconds


# around one scenario


@pytest.mark.parametrize("ending", Ending)
async def test_whatever_the_ending_it_is_returned_and_the_watchers_are_gone(manager: Manager, ending: Ending) -> None:
    fake, display = FakeRunner(ending), FakeDisplay()
    config = Config().replace(scenario={"id": 7})
    fake.progress.last_advance = trio.current_time()
    outcomes: list[Any] = []

    async def process() -> None:
        outcomes.append(await daemon._process(config, as_runner(fake), display, manager.notifier))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(process)
        fake.claimed.set()
        await wait_all_tasks_blocked()
        assert display.did == ["watch 0"]
        assert manager.states()[0] == "READY=1"
        fake.go_on.set()
    assert fake.asked == ["process"]
    assert outcomes == [fake.outcome]
    assert outcomes[0].ending is ending
    assert display.did == ["watch 0", "leave"]
    assert manager.states()[-1] == "STOPPING=1"

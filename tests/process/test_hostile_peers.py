"""Each peer of the real process fails at each stage: how that ends, how soon, and the run after it.

Which breakdown leads to which code is held lower down, for every breakdown and in this process: `test_postgres.py`,
`test_kafka_errors.py`, and the inference service's `test_client.py` and `test_hostile_answers.py`. Here a few of each
kind are enough: a connection that is refused, one that ends, one that falls silent.
"""

from __future__ import annotations

import json
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest
import trio

from tests.support import clips, fake_inference
from tests.support.fake_inference import Fake, Fault, at_frame, open_fake
from tests.support.harness import (
    Cli,
    Finished,
    Ledger,
    Running,
    Servers,
    WriteConfig,
    open_service_manager,
    until,
)
from tests.support.proxy import Breakdown, Proxy, Way, open_proxy
from tests.support.scene import Scene
from trio_runner.errors import ErrorCode
from trio_runner.failure.report import RECORD_SECONDS
from trio_runner.kafka.connection import STOP_SECONDS
from trio_runner.video.child import START_ALLOWANCE_SECONDS
from trio_runner.video.process import END_SECONDS

pytestmark = pytest.mark.slow

AT_ONCE = 4
FRAMES = 20
MIDDLE, END, FAULTY = 5, FRAMES - 4, 10
TIGHT_SECONDS = 3.0
"""Every deadline of the peer at fault; the others keep their defaults, so that a busy machine is not one more fault."""
SLACK_SECONDS = 5.0
WHOLE_RUN_SECONDS = 20.0
"""From the start to the end, where the peer was never there and no breakdown was felt."""

REFUSE, RESET, CUT, FREEZE, SWALLOW, DRIP = Breakdown
SILENT = (FREEZE, SWALLOW, DRIP)
TO_SERVER, TO_CLIENT = Way


@dataclass(frozen=True, kw_only=True)
class Proxies:
    """The proxies between the process and each of its peers."""

    database: Proxy
    kafka: Proxy
    inference: Proxy


Strike = Callable[[Proxies, Proxy, Any], None]
"""Breaks the proxy down in the given way, now or when something passes it."""


@dataclass(frozen=True)
class Case:
    """One line of the table: when and how a peer fails, and what that must lead to."""

    when: str
    how: Breakdown | signal.Signals
    strike: Strike
    codes: str
    """The error codes that are right, separated by spaces; none where it must complete."""
    exits: tuple[int, ...] = (75,)
    ledger: bool | None = True
    """Whether the ledger must know of the death; None: either way."""
    hold_from: int | None = None
    """The strike comes when the service has been asked about this frame and has not answered; else before the start."""
    dies: bool = False
    """The service fails with status 500: the cause of the death on whose way out the peer fails."""


def at_once(*, lasting: bool = True) -> Strike:
    return lambda _, proxy, how: proxy.break_down(how, lasting=lasting)


def after(count: int, way: Way = TO_CLIENT) -> Strike:
    """When so many bytes have passed."""
    return lambda _, proxy, how: proxy.arm(partial(proxy.break_down, how), way, after=count)


def when_asked(statement: bytes, *, lasting: bool = True) -> Strike:
    """When the process sends `statement` to its peer, which does not get it."""
    return lambda _, proxy, how: proxy.arm(partial(proxy.break_down, how, lasting=lasting), TO_SERVER, at=statement)


def when_done(statement: bytes, answer: bytes = b"", *, lasting: bool = True) -> Strike:
    """The peer gets `statement` and does it; from its `answer` (or its first byte) on, nothing comes back."""

    def strike(_: Proxies, proxy: Proxy, how: Breakdown) -> None:
        act = partial(proxy.break_down, how, ways=(TO_CLIENT,), lasting=lasting)
        proxy.arm(partial(proxy.arm, act, TO_CLIENT, at=answer), TO_SERVER, at=statement, passing=True)

    return strike


def when_finishing(proxies: Proxies, proxy: Proxy, how: Breakdown) -> None:
    """When the work is done and the ledger has recorded its completion."""
    proxies.database.arm(partial(proxy.break_down, how), TO_SERVER, at=FINISH, passing=True)


def when_leaving(_: Proxies, proxy: Proxy, how: Breakdown) -> None:
    """When the process takes its leave of the ledger; before, in an array of floats, the same bytes mean nothing."""
    act = partial(proxy.break_down, how)
    proxy.arm(partial(proxy.arm, act, TO_SERVER, at=GOODBYE), TO_SERVER, at=FINISH, passing=True)


FINISH, FAIL, GOODBYE = b"SELECT finish(", b"SELECT fail(", b"X\0\0\0\4"
HAVE_ROW = b"s\0\0\0\4"
"""PortalSuspended: the one row that was asked for is there, so the function has run."""

DIED = b"trio-runner.died"

NO_STORE = "store_unreachable store_lost store_timeout"
UNAVAILABLE = "inference_unavailable inference_unreachable"
TIMEOUT = "inference_timeout"

DATABASE_START = (
    # Nothing is claimed: the event has no epoch, and the ledger no row.
    Case("connect", REFUSE, at_once(), NO_STORE, ledger=False),
    Case("first byte", CUT, after(1), NO_STORE, ledger=False),
    Case("byte 600", FREEZE, after(600), NO_STORE, ledger=False),
)

DATABASE_WORK = (
    *(Case("middle", how, at_once(), NO_STORE, ledger=False, hold_from=MIDDLE) for how in (REFUSE, CUT, DRIP)),
    *(Case("middle, once", how, at_once(lasting=False), NO_STORE, hold_from=MIDDLE) for how in (RESET, FREEZE)),
)

DATABASE_END = (
    Case("end, once", RESET, when_asked(FINISH, lasting=False), NO_STORE),
    Case("end, once", FREEZE, when_asked(FINISH, lasting=False), NO_STORE),
    Case("end", SWALLOW, when_asked(FINISH), NO_STORE, ledger=False),
    # The ledger knows that the scenario is complete; the runner finds out, if it can ask.
    Case("end, reply once", SWALLOW, when_done(FINISH, HAVE_ROW, lasting=False), NO_STORE, exits=(0,)),
    Case("end, reply", SWALLOW, when_done(FINISH, HAVE_ROW), NO_STORE, ledger=False),
    *(Case("death", how, when_asked(FAIL), UNAVAILABLE, ledger=False, dies=True) for how in (REFUSE, RESET, FREEZE)),
    Case("death", DRIP, when_asked(FAIL), UNAVAILABLE, ledger=None, dies=True),
    Case("close", RESET, when_leaving, "", exits=(0,)),
    Case("close", FREEZE, when_leaving, "", exits=(0,)),
)

KAFKA_START = (
    Case("connect", REFUSE, at_once(), "kafka_unreachable", exits=(74,)),
    Case("first byte", CUT, after(1), "kafka_unreachable", exits=(74,)),
    Case("byte 100", FREEZE, after(100), "kafka_unreachable", exits=(74,)),
)

KAFKA_END = (
    # Nobody speaks to Kafka while the work is under way, so nobody is hurt.
    *(Case("middle", how, at_once(), "", exits=(0,), hold_from=MIDDLE) for how in (REFUSE, FREEZE)),
    *(
        Case("death", how, at_once(), UNAVAILABLE, exits=(74,), hold_from=MIDDLE, dies=True)
        for how in (REFUSE, CUT, SWALLOW)
    ),
    *(Case("event", how, when_asked(DIED), UNAVAILABLE, exits=(74,), dies=True) for how in (RESET, FREEZE, DRIP)),
    # aiokafka sends it again, over a new connection.
    Case("event, once", RESET, when_asked(DIED, lasting=False), UNAVAILABLE, exits=(74, 75), dies=True),
    # The broker has the event, and the runner does not get the acknowledgement.
    Case("event, reply", SWALLOW, when_done(DIED), UNAVAILABLE, exits=(74,), dies=True),
)

INFERENCE_START = (
    Case("connect", REFUSE, at_once(), UNAVAILABLE),
    Case("first byte", CUT, after(1), UNAVAILABLE),
    Case("first byte", FREEZE, after(1), TIMEOUT),
)

INFERENCE_WORK = (
    Case("in a picture", RESET, after(10_000, TO_SERVER), UNAVAILABLE),
    Case("in a picture", FREEZE, after(10_000, TO_SERVER), TIMEOUT),
    Case("in an answer", CUT, after(900), UNAVAILABLE),
    Case("in an answer", SWALLOW, after(900), TIMEOUT),
    *(
        Case(when, how, at_once(), TIMEOUT if how in SILENT else UNAVAILABLE, hold_from=frame)
        for when, frame, hows in (("middle", MIDDLE, (REFUSE, RESET, SWALLOW, DRIP)), ("end", END, (CUT, FREEZE)))
        for how in hows
    ),
    Case("close", RESET, when_finishing, "", exits=(0,)),
    Case("close", FREEZE, when_finishing, "", exits=(0,)),
)

DECODER = {
    "decoder at the start": (
        *(Case("start", how, at_once(), "decoder_killed") for how in (signal.SIGKILL, signal.SIGSEGV)),
        Case("start", signal.SIGSTOP, at_once(), "decoder_stalled"),
    ),
    "decoder at work": (
        *(
            Case("middle", how, at_once(), "decoder_killed", hold_from=MIDDLE)
            for how in (signal.SIGKILL, signal.SIGABRT)
        ),
        Case("middle", signal.SIGSTOP, at_once(), "decoder_stalled", hold_from=MIDDLE),
    ),
}

TABLE = {
    "database at the start": DATABASE_START,
    "database at work": DATABASE_WORK,
    "database at the end": DATABASE_END,
    "kafka at the start": KAFKA_START,
    "kafka at the end": KAFKA_END,
    "inference at the start": INFERENCE_START,
    "inference at work": INFERENCE_WORK,
}

TIGHT: dict[str, dict[str, Any]] = {
    "database": {
        "connect_timeout_seconds": TIGHT_SECONDS,
        "command_timeout_seconds": TIGHT_SECONDS,
        "lease_seconds": 4.0,
    },
    "kafka": {"connect_timeout_seconds": TIGHT_SECONDS, "publish_timeout_seconds": TIGHT_SECONDS},
    "inference": {"connect_timeout_seconds": TIGHT_SECONDS, "timeout_seconds": TIGHT_SECONDS},
    "decoder": {"frame_timeout_seconds": TIGHT_SECONDS},
}
LONGEST_SECONDS = {
    # A statement under way, then the ledger once more to record the death.
    "database": TIGHT_SECONDS + RECORD_SECONDS,
    # The preflight, then the event, and each has a producer to stop.
    "kafka at the start": 2 * (TIGHT_SECONDS + STOP_SECONDS),
    "kafka at the end": TIGHT_SECONDS + STOP_SECONDS,
    "inference": TIGHT_SECONDS,
    # Until the file is open it is given more time.
    "decoder at the start": TIGHT_SECONDS + START_ALLOWANCE_SECONDS + END_SECONDS,
    "decoder at work": TIGHT_SECONDS + END_SECONDS,
}
"""What may pass between the breakdown and the end while all others answer: the deadlines on the way, added up."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What all cases share."""

    servers: Servers
    ledger: Ledger
    cli: Cli
    write_config: WriteConfig
    new_scenario_id: Callable[[], int]
    topic: str
    """One for all: a runner that starts publishes on its topic what waits in the ledger, whosever it is."""
    directory: Path

    def scene(self, clip: Path, frames: int = FRAMES) -> Scene:
        """A scenario of its own, with its own spool and config files."""
        scenario_id = self.new_scenario_id()
        own: dict[str, dict[str, Any]] = {
            "runner": {"data_dir": f"data-{scenario_id}"},
            "scenario": {"id": scenario_id},
            "video": {"path": str(clip), "max_frames": frames},
            "kafka": {"retry_topic": self.topic},
        }

        def write(name: str = "runner.toml", **sections: dict[str, Any]) -> Path:
            merged = {key: own.get(key, {}) | sections.get(key, {}) for key in {*own, *sections}}
            return self.write_config(f"{scenario_id}-{name}", **merged)

        return Scene(
            scenario_id=scenario_id,
            topic=self.topic,
            servers=self.servers,
            ledger=self.ledger,
            cli=self.cli,
            write_config=write,
            directory=self.directory,
        )


@pytest.fixture
def stage(
    servers: Servers,
    ledger: Ledger,
    cli: Cli,
    write_config: WriteConfig,
    new_scenario_id: Callable[[], int],
    topic: str,
    tmp_path: Path,
) -> Stage:
    return Stage(
        servers=servers,
        ledger=ledger,
        cli=cli,
        write_config=write_config,
        new_scenario_id=new_scenario_id,
        topic=topic,
        directory=tmp_path,
    )


def has_ended(running: Running) -> bool:
    """Cheaper than asking for its family, which looks at every process there is."""
    try:
        return psutil.Process(running.pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def check_lives(running: Running) -> None:
    assert not has_ended(running), f"it ended before the breakdown\n{running.err()}"


def named_codes(done: Finished) -> set[str]:
    """The error codes that stderr names."""
    events = [line["event"] for line in done.log() if line["level"] == "error"]
    return {code for code in ErrorCode if any(event.startswith(f"{code}: ") for event in events)}


@dataclass(frozen=True, kw_only=True)
class Play:
    """One case on the real process, from the first byte to the run after it."""

    part: str
    case: Case
    scene: Scene
    frames: int = FRAMES
    size: tuple[int, int] = (320, 240)

    @property
    def peer(self) -> str:
        return self.part.partition(" ")[0]

    def _check_wait(self, seconds: float, done: Finished) -> None:
        """From the breakdown to the end no more than what the deadlines on the way allow."""
        longest = LONGEST_SECONDS.get(self.part) or LONGEST_SECONDS[self.peer]
        assert seconds <= longest + SLACK_SECONDS, f"{seconds:.1f} s\n{done.err}"

    async def run(self) -> None:
        done = await self._first_run()
        assert done.code in self.case.exits, f"exit code {done.code}\n{done.err}"
        assert "Traceback" not in done.err, done.err
        self.scene.check_secrets(done.out, done.err)
        codes = named_codes(done)
        assert codes <= set(self.case.codes.split()), done.err
        if done.code == 0:
            await self.scene.check_rows(self.frames, self.size)
            assert await self.scene.events() == []
            return
        assert codes, done.err
        await self._check_ledger()
        event_ids = await self._check_topic(done)
        await self._run_again()
        events = await self.scene.events()
        assert events, "the event did not get out of the spool"
        assert event_ids <= {event.headers["ce_id"] for event in events}
        assert len({event.headers["ce_id"] for event in events}) == 1

    async def _first_run(self) -> Finished:
        """How the process ended, soon enough after the breakdown."""
        case = self.case
        plan = at_frame(FAULTY, Fault.STATUS_500) if case.dies else fake_inference.never
        first_held = FRAMES if case.hold_from is None else case.hold_from
        async with AsyncExitStack() as stack:
            fake = await stack.enter_async_context(open_fake(plan=plan, held=lambda number: number >= first_held))
            proxies, config = await self._stand_between(stack, fake)
            proxy: Proxy = getattr(proxies, self.peer)
            if case.hold_from is None:
                case.strike(proxies, proxy, case.how)
            started = trio.current_time()
            running = await stack.enter_async_context(self.scene.cli.started("run", config))
            if case.hold_from is not None:

                async def asked() -> bool:
                    check_lives(running)
                    return case.hold_from in fake.numbers

                await until(asked, described=f"frame {case.hold_from} asked about")
                case.strike(proxies, proxy, case.how)
                fake.gate.set()
            done = await running.wait()
            ended = trio.current_time()
            if proxy.broken_at:
                self._check_wait(ended - proxy.broken_at, done)
            else:
                # Nobody was spoken to, so nothing was felt; a peer that is not needed is not missed.
                assert case.how is REFUSE or case.hold_from, f"it ended before the breakdown\n{done.err}"
                assert ended - started <= WHOLE_RUN_SECONDS, f"{ended - started:.1f} s\n{done.err}"
            assert running.family() == [], "a child outlived the runner"
        return done

    async def _stand_between(self, stack: AsyncExitStack, fake: Fake) -> tuple[Proxies, Path]:
        servers = self.scene.servers
        where = {
            "database": servers.database["url"].rpartition("@")[2].partition("/")[0],
            "kafka": servers.brokers,
            "inference": fake.url.removeprefix("http://"),
        }
        proxies = {}
        for peer, address in where.items():
            host, _, port = address.rpartition(":")
            # A broker sends its clients to the address that it gives itself.
            named = [host.encode() + struct.pack(">i", int(port))]
            rewrite = partial(_rename_broker, named)
            proxies[peer] = await stack.enter_async_context(open_proxy(host, int(port), rewrite=rewrite))
            named.append(b"127.0.0.1" + struct.pack(">i", proxies[peer].port))
        addresses: dict[str, dict[str, Any]] = {
            "database": {"url": servers.database["url"].replace(where["database"], proxies["database"].address)},
            "kafka": {"brokers": proxies["kafka"].address},
            "inference": {"url": f"http://{proxies['inference'].address}"},
        }
        addresses[self.peer] |= TIGHT[self.peer]
        addresses["database"] |= {"batch_frames": 4}
        return Proxies(**proxies), self.scene.write_config("first.toml", **addresses)

    async def _check_ledger(self) -> None:
        deaths = await self.scene.ledger.retry_events(self.scene.scenario_id)
        if self.case.ledger is False:
            assert deaths == []
        if self.case.ledger:
            (death,) = deaths
            assert death["body"]["error"]["code"] in self.case.codes.split()
            await self.scene.ledger.check_invariants(self.scene.scenario_id)

    async def _check_topic(self, done: Finished) -> set[str]:
        """The ids of the events that Kafka has."""
        if done.code == 75:
            event = await self.scene.the_event()
            assert event.body["error"]["code"] in self.case.codes.split()
            return {event.headers["ce_id"]}
        events = await self.scene.events()
        assert bool(events) == (self.case.when == "event, reply" or bool(events and "once" in self.case.when))
        return {event.headers["ce_id"] for event in events}

    async def _run_again(self) -> None:
        """With peers that are well it completes; where the ledger knows of no death, once the lease has ended."""

        async def free() -> bool:
            row = await self.scene.ledger.query(
                "SELECT lease_until > clock_timestamp() AS held FROM scenarios WHERE id = $1", self.scene.scenario_id
            )
            return not (row and row[0]["held"])

        await until(free, described="nobody holds the scenario")
        async with open_fake() as fake:
            done = await self.scene.run_to_the_end(self.scene.write_config("second.toml", inference={"url": fake.url}))
        assert done.code == 0, done.err
        await self.scene.check_rows(self.frames, self.size)
        await self.scene.ledger.check_invariants(self.scene.scenario_id)


class DecoderPlay(Play):
    """The decoder child gets a signal: at the start when it is there, else when frame `hold_from` is asked about."""

    async def _first_run(self) -> Finished:
        assert isinstance(self.case.how, signal.Signals)
        first_held = self.case.hold_from or 0
        async with open_fake(held=lambda number: number >= first_held) as fake:
            config = self.scene.write_config(
                "first.toml",
                video=TIGHT["decoder"],
                inference={"url": fake.url},
                database={"batch_frames": 4},
                pipeline={"max_buffered_frames": 8},
            )
            async with self.scene.cli.started("run", config) as running:

                async def ready() -> psutil.Process | None:
                    check_lives(running)
                    # Between two looks it may be a fork of the runner that is not yet, or no longer, the decoder.
                    with suppress(psutil.NoSuchProcess):
                        return running.decoder() if self.case.hold_from is None or first_held in fake.numbers else None
                    return None

                decoder = await until(ready, described="a decoder, at work")
                assert decoder is not None
                decoder.send_signal(self.case.how)
                struck = trio.current_time()
                fake.gate.set()
                done = await running.wait()
                self._check_wait(trio.current_time() - struck, done)
                assert running.family() == [], "a child outlived the runner"
        return done


def _rename_broker(named: list[bytes], data: bytes) -> bytes:
    return data.replace(named[0], named[-1]) if len(named[0]) == len(named[-1]) else data


async def play_all(plays: list[Play], at_once: int = AT_ONCE) -> None:
    """A few at once, because each mostly waits; names every one that went wrong."""
    wrong: list[str] = []
    limiter = trio.CapacityLimiter(at_once)

    async def play_one(play: Play) -> None:
        async with limiter:
            try:
                await play.run()
            except (AssertionError, ExceptionGroup, ValueError, KeyError):
                wrong.append(f"=== {play.part}: {play.case.when}, {play.case.how.name}\n{traceback.format_exc(-3)}")

    async with trio.open_nursery() as nursery:
        for play in plays:
            nursery.start_soon(play_one, play)
    assert not wrong, "\n\n".join([f"{len(wrong)} of {len(plays)} went wrong", *wrong])


@pytest.mark.parametrize("part", TABLE)
async def test_a_peer_that_fails(stage: Stage, clip: Path, part: str) -> None:
    plays = [Play(part=part, case=case, scene=stage.scene(clip)) for case in TABLE[part]]
    # What Kafka did not take, the runner of another case would publish.
    await play_all(plays, at_once=1 if part.startswith("kafka") else AT_ONCE)


async def test_a_decoder_that_fails(stage: Stage, big_clip: Path) -> None:
    """At the end there is no such case: a decoder that has written its last frame into the pipe has ended."""
    await play_all(
        [
            DecoderPlay(part=part, case=case, scene=stage.scene(big_clip, 120), frames=120, size=clips.LARGE_SIZE)
            for part, cases in DECODER.items()
            for case in cases
        ]
    )


async def test_an_inference_process_that_is_stopped(scene: Scene, clip: Path) -> None:
    """Not the proxy freezes but the process itself; its kernel goes on taking connections and bytes."""
    service = [sys.executable, "-m", "tests.support.fake_inference", "--delay", "0.1"]
    async with scene.cli.started(program=service) as host, open_service_manager() as manager:

        async def address() -> str:
            return host.out()

        port = json.loads(await until(address, described="the service's port"))["port"]
        config = scene.write_config(
            video={"path": str(clip)},
            inference={"url": f"http://127.0.0.1:{port}", "timeout_seconds": TIGHT_SECONDS},
            database={"batch_frames": 1},
        )
        async with scene.cli.started("run", config, variables=manager.variables) as running:
            await manager.wait_for("READY=1")
            psutil.Process(host.pid).suspend()
            stopped = trio.current_time()
            done = await running.wait()
            assert trio.current_time() - stopped <= TIGHT_SECONDS + SLACK_SECONDS
            assert running.family() == []
        psutil.Process(host.pid).resume()
    assert done.code == 75, done.err
    await scene.check_death(done, "inference_timeout", named=f"127.0.0.1:{port}")
    await scene.check_resume(frames=60, video={"path": str(clip)})

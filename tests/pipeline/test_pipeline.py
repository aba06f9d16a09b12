from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NoReturn

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from tests.support.makers import make_claim, make_frame, make_result
from trio_runner.config.load import Config
from trio_runner.errors import ErrorCode, RunnerError, SupersededError
from trio_runner.model import Claim, End, Frame, FrameResult, Progress
from trio_runner.pipeline.reader import read_frames
from trio_runner.pipeline.run import STALLED_GRACE_SECONDS, STALLED_SECONDS, run_pipeline
from trio_runner.pipeline.window import Window

CONFIG = Config().replace(
    # The fakes keep no deadlines and are slower than real clients may be.
    inference={"in_flight": 4, "timeout_seconds": 200.0},
    database={"batch_frames": 4, "batch_seconds": 0.25, "lease_seconds": 30.0},
    pipeline={"max_buffered_frames": 8, "max_buffered_bytes": 2**16},
    runner={"drain_seconds": 10.0},
)


class FakeSource:
    """Frames of the given sizes, then the ending: an End, or an error to raise."""

    def __init__(
        self, sizes: Sequence[int], *, seconds_per_frame: float = 0.0, ending: RunnerError | None = None
    ) -> None:
        self._sizes, self._seconds, self._ending = sizes, seconds_per_frame, ending
        self.read = 0
        self.cancelled = False

    async def receive(self) -> Frame | End:
        try:
            await trio.sleep(self._seconds)
        except trio.Cancelled:
            self.cancelled = True
            raise
        if self.read < len(self._sizes):
            frame = make_frame(self.read, content=bytes(self._sizes[self.read]))
            self.read += 1
            return frame
        if self._ending is not None:
            raise self._ending
        return End(decoded=len(self._sizes), selected=len(self._sizes), skipped_corrupt=0)


class FakeInference:
    """Answers each frame after a delay that the test chooses, and notes what was under way at the same time."""

    def __init__(self, seconds: Callable[[int], float] = lambda _: 0.01) -> None:
        self._seconds = seconds
        self.under_way: dict[int, int] = {}
        self.most_frames = self.most_bytes = 0
        self.started: list[int] = []
        self.cancelled = 0

    max_frames = 1

    async def infer(self, frames: Sequence[Frame]) -> list[FrameResult]:
        (frame,) = frames
        self.started.append(frame.sequence)
        self.under_way[frame.sequence] = len(frame.content)
        self.most_frames = max(self.most_frames, len(self.under_way))
        self.most_bytes = max(self.most_bytes, sum(self.under_way.values()))
        try:
            await trio.sleep(self._seconds(frame.sequence))
            return [await self.answer(frame)]
        except trio.Cancelled:
            self.cancelled += 1
            raise
        finally:
            del self.under_way[frame.sequence]

    async def answer(self, frame: Frame) -> FrameResult:
        return make_result(frame.sequence)


class FakeLedger:
    """Stores in memory, as strictly as the real one."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds = seconds
        self.stored: list[int] = []
        self.heartbeats: list[float] = []

    async def store(self, claim: Claim, expected_frame: int, results: Sequence[FrameResult]) -> None:
        await trio.sleep(self._seconds)
        assert expected_frame == (self.stored[-1] + 1 if self.stored else claim.next_frame)
        self.stored += [result.index for result in results]

    async def heartbeat(self, claim: Claim) -> None:
        await trio.lowlevel.checkpoint()
        assert claim.epoch == 1
        self.heartbeats.append(trio.current_time())


@dataclass
class Run:
    """One pipeline with its fakes."""

    source: FakeSource
    inference: FakeInference = field(default_factory=FakeInference)
    ledger: FakeLedger = field(default_factory=FakeLedger)
    config: Config = CONFIG
    progress: Progress = field(default_factory=Progress)
    drain: trio.Event = field(default_factory=trio.Event)
    failures: int = 0

    def on_failure(self) -> None:
        self.failures += 1

    async def __call__(self) -> End:
        """Run it to its end, in virtual time."""
        with trio.fail_after(10_000):
            return await run_pipeline(
                self.source,
                self.inference,
                self.ledger,
                claim=make_claim(),
                config=self.config,
                progress=self.progress,
                drain=self.drain,
                on_failure=self.on_failure,
            )


def leaves(error: Exception) -> list[Exception]:
    if isinstance(error, ExceptionGroup):
        return [leaf for part in error.exceptions for leaf in leaves(part)]
    return [error]


async def errors_of(run: Callable[[], Awaitable[object]]) -> list[Exception]:
    """The errors in the group that it must raise."""
    try:
        await run()
    except ExceptionGroup as group:
        return leaves(group)
    pytest.fail("no group was raised")


# the good way


async def test_every_frame_is_stored_in_order(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 50), FakeInference(lambda number: (number * 7919 % 10) / 10))
    end = await run()
    assert end == End(decoded=50, selected=50, skipped_corrupt=0)
    assert run.ledger.stored == list(range(50))
    assert (run.progress.frames_read, run.progress.frames_stored, run.progress.next_frame) == (50, 50, 50)


async def test_an_empty_video_is_an_end_too(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([]))
    assert (await run()).selected == 0
    assert run.ledger.stored == []


async def test_in_flight_frames_are_asked_about_at_the_same_time(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 40))
    await run()
    assert run.inference.most_frames == CONFIG.inference.in_flight


async def test_nothing_is_asked_twice(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 40))
    await run()
    assert sorted(run.inference.started) == list(range(40))


# bounds


async def test_one_slow_answer_does_not_let_the_others_run_away(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 50), FakeInference(lambda number: 100.0 if number == 5 else 0.01))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(50)
        # Frames 5 to 12 are unstored: as many as may be buffered; the reader holds one more that it may not pass on.
        assert run.ledger.stored == list(range(5))
        assert sorted(run.inference.started) == list(range(5 + CONFIG.pipeline.max_buffered_frames))
        assert run.source.read == 5 + CONFIG.pipeline.max_buffered_frames + 1
    assert run.ledger.stored == list(range(50))


async def test_a_slow_ledger_slows_the_source_down(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 40), ledger=FakeLedger(seconds=60))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await trio.sleep(59)
        assert run.ledger.stored == []
        assert run.source.read == CONFIG.pipeline.max_buffered_frames + 1
    assert run.ledger.stored == list(range(40))


async def test_batches_that_never_fill_do_not_block_a_small_window(autojump_clock: MockClock) -> None:
    config = CONFIG.replace(database={"batch_frames": 2, "batch_seconds": 5}, pipeline={"max_buffered_frames": 2})
    run = Run(FakeSource([100] * 9), config=config)
    await run()
    assert run.ledger.stored == list(range(9))


@given(
    st.lists(st.tuples(st.integers(1, 40_000), st.floats(0, 5)), max_size=25),
    st.integers(1, 8),
    st.integers(1, 12),
    st.floats(0, 2),
)
def test_the_byte_budget_holds_and_everything_is_stored_whatever_the_sizes_and_delays(
    frames: list[tuple[int, float]], in_flight: int, max_frames: int, ledger_seconds: float
) -> None:
    config = CONFIG.replace(
        inference={"in_flight": in_flight},
        pipeline={"max_buffered_frames": max_frames, "max_buffered_bytes": 2**16},
        database={"batch_frames": min(4, max_frames)},
    )
    run = Run(
        FakeSource([size for size, _ in frames]),
        FakeInference(lambda number: frames[number][1]),
        FakeLedger(ledger_seconds),
        config=config,
    )
    trio.run(run.__call__, clock=MockClock(autojump_threshold=0))
    assert run.ledger.stored == list(range(len(frames)))
    assert run.inference.most_bytes <= 2**16
    assert run.inference.most_frames <= min(in_flight, max_frames)


async def test_a_frame_larger_than_the_budget_goes_alone(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100, 2**20, 2**20, 100]))
    await run()
    assert run.ledger.stored == [0, 1, 2, 3]
    assert run.inference.most_bytes == 2**20


# the lease


async def test_the_lease_is_renewed_while_a_service_is_slow(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100]), FakeInference(lambda _: 100.0))
    began = trio.current_time()
    await run()
    assert [moment - began for moment in run.ledger.heartbeats] == pytest.approx(
        [10 * n for n in range(1, 11)], abs=0.5
    )


async def test_no_heartbeat_after_the_end(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 3))
    await run()
    await trio.sleep(1_000)
    assert run.ledger.heartbeats == []


# one for all


class FailingInference(FakeInference):
    async def answer(self, frame: Frame) -> FrameResult:
        if frame.sequence == 6:
            raise RunnerError(ErrorCode.INFERENCE_BAD_ANSWER, "six")
        return await super().answer(frame)


class FailingLedger(FakeLedger):
    async def store(self, claim: Claim, expected_frame: int, results: Sequence[FrameResult]) -> None:
        if expected_frame > 0:
            raise RunnerError(ErrorCode.STORE_LOST, "cable")
        await super().store(claim, expected_frame, results)


class SupersededLedger(FakeLedger):
    async def heartbeat(self, claim: Claim) -> None:
        await super().heartbeat(claim)
        raise SupersededError("gone")


class BuggyInference(FakeInference):
    async def answer(self, frame: Frame) -> FrameResult:
        raise ZeroDivisionError(frame.sequence)


@pytest.mark.parametrize(
    ("inference", "ledger", "expected"),
    [
        (FailingInference, FakeLedger, RunnerError),
        (FakeInference, FailingLedger, RunnerError),
        (lambda: FakeInference(lambda _: 1_000.0), SupersededLedger, SupersededError),
        (BuggyInference, FakeLedger, ZeroDivisionError),
    ],
    ids=["sender", "writer", "heartbeat", "bug"],
)
async def test_the_first_that_fails_cancels_the_rest_and_comes_out_in_a_group(
    inference: Callable[[], FakeInference],
    ledger: Callable[[], FakeLedger],
    expected: type[Exception],
    autojump_clock: MockClock,
) -> None:
    run = Run(FakeSource([100] * 10_000, seconds_per_frame=0.001), inference(), ledger())
    assert {type(error) for error in await errors_of(run)} == {expected}
    assert trio.current_time() < 1_000
    assert run.source.read < 10_000
    assert run.inference.under_way == {}
    assert run.failures >= 1
    # The frames stored before are whole, from the start and without a gap.
    assert run.ledger.stored == list(range(len(run.ledger.stored)))


def failed(frame: Frame, code: ErrorCode) -> FrameResult:
    failure = RunnerError(code, str(frame.sequence))
    unclear = code is ErrorCode.INFERENCE_UNAVAILABLE
    return replace(make_result(frame.sequence), error=str(failure), failure=failure, is_unclear=unclear)


class SpoiltBatches(FakeInference):
    """Takes four frames at once; some of them spoil the answer to all that are in the request."""

    max_frames = 4

    def __init__(self, bad: dict[int, ErrorCode]) -> None:
        super().__init__()
        self._bad = bad
        self.requests: list[list[int]] = []

    async def infer(self, frames: Sequence[Frame]) -> list[FrameResult]:
        await trio.sleep(0.01)
        self.requests.append([frame.sequence for frame in frames])
        code = next((self._bad[frame.sequence] for frame in frames if frame.sequence in self._bad), None)
        return [failed(frame, code) if code else make_result(frame.sequence) for frame in frames]


TOLERANT = CONFIG.replace(inference={"max_failed_frames": 3, "in_flight": 2})


class NotInferredLedger(FakeLedger):
    """Notes which frames are stored as not inferred."""

    def __init__(self) -> None:
        super().__init__()
        self.not_inferred: list[int] = []

    async def store(self, claim: Claim, expected_frame: int, results: Sequence[FrameResult]) -> None:
        await super().store(claim, expected_frame, results)
        self.not_inferred += [result.index for result in results if result.error]


async def test_of_a_batch_that_failed_each_frame_is_sent_by_itself(autojump_clock: MockClock) -> None:
    inference = SpoiltBatches({5: ErrorCode.INFERENCE_REJECTED, 19: ErrorCode.INFERENCE_UNAVAILABLE})
    ledger = NotInferredLedger()
    run = Run(FakeSource([100] * 20), inference, ledger, config=TOLERANT)
    await run()
    assert ledger.stored == list(range(20))
    assert ledger.not_inferred == [5, 19]
    assert [5] in inference.requests
    assert [19] in inference.requests
    assert any(len(request) > 1 for request in inference.requests)


async def test_the_last_frame_is_judged_by_the_one_before_it_alone(autojump_clock: MockClock) -> None:
    ledger = NotInferredLedger()
    bad = {3: ErrorCode.INFERENCE_UNAVAILABLE}
    await Run(FakeSource([100] * 4), SpoiltBatches(bad), ledger, config=TOLERANT)()
    assert ledger.not_inferred == [3]
    bad = {2: ErrorCode.INFERENCE_UNAVAILABLE, 3: ErrorCode.INFERENCE_UNAVAILABLE}
    (error,) = await errors_of(Run(FakeSource([100] * 4), SpoiltBatches(bad), NotInferredLedger(), config=TOLERANT))
    assert isinstance(error, RunnerError)
    assert error.code is ErrorCode.INFERENCE_UNAVAILABLE


async def test_a_pipeline_that_stands_still_although_nothing_fails_is_stalled(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 50), FakeInference(lambda _: math.inf), config=Config())
    began = trio.current_time()
    (error,) = await errors_of(run)
    assert isinstance(error, RunnerError)
    assert error.code is ErrorCode.STALLED
    assert trio.current_time() - began == pytest.approx(STALLED_SECONDS + STALLED_GRACE_SECONDS)
    assert len(run.ledger.heartbeats) == 4, "the lease alone is no progress"


async def test_the_first_error_is_reported_before_the_other_tasks_are_cancelled(autojump_clock: MockClock) -> None:
    class Noting(FakeInference):
        async def infer(self, frames: Sequence[Frame]) -> list[FrameResult]:
            (frame,) = frames
            if frame.sequence == 0:
                # When the others are under way.
                await trio.sleep(0.5)
                raise RunnerError(ErrorCode.INFERENCE_BAD_ANSWER, "zero")
            try:
                return await super().infer(frames)
            finally:
                failures_when_cancelled.append(run.failures)

    failures_when_cancelled: list[int] = []
    run = Run(FakeSource([100] * 4), Noting(lambda _: 1.0))
    await errors_of(run)
    assert failures_when_cancelled
    assert 0 not in failures_when_cancelled


async def test_a_failed_frame_is_not_passed_over(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 50), FailingInference())
    await errors_of(run)
    assert all(index < 6 for index in run.ledger.stored)
    assert run.progress.next_frame == len(run.ledger.stored)


async def test_senders_that_all_fail_at_the_same_moment_are_a_failure(autojump_clock: MockClock) -> None:
    class AllFail(FakeInference):
        async def answer(self, frame: Frame) -> FrameResult:
            if len(self.started) == CONFIG.inference.in_flight:
                gone.set()
            await gone.wait()
            raise RunnerError(ErrorCode.INFERENCE_UNREACHABLE, str(frame.sequence))

    gone = trio.Event()
    # Room for more frames than the senders and their channel hold: the reader waits where the channel may break.
    run = Run(FakeSource([100] * 50), AllFail(), config=CONFIG.replace(pipeline={"max_buffered_frames": 50}))
    errors = await errors_of(run)
    assert {getattr(error, "code", error) for error in errors} == {ErrorCode.INFERENCE_UNREACHABLE}
    assert run.ledger.stored == []


async def test_a_reader_whose_senders_have_all_failed_raises_no_error_beside_theirs(autojump_clock: MockClock) -> None:
    frames_in, frames_out = trio.open_memory_channel[Frame](1)
    frames_out.close()
    with trio.move_on_after(1) as scope:
        await read_frames(FakeSource([100]), frames_in, Window(max_frames=1, max_bytes=100), Progress())
    assert scope.cancelled_caught


@pytest.mark.parametrize(("part", "method"), [("source", "receive"), ("inference", "answer"), ("ledger", "store")])
async def test_an_error_of_the_moment_in_which_it_is_cancelled_is_not_lost(
    part: str, method: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def cut(*_: object) -> NoReturn:
        await trio.lowlevel.checkpoint()
        scope.cancel()
        raise ZeroDivisionError("cut")

    run = Run(FakeSource([100] * 50))
    monkeypatch.setattr(getattr(run, part), method, cut)
    errors: list[Exception] = []
    with trio.CancelScope() as scope:
        try:
            await run()
        except* ZeroDivisionError as group:
            errors = leaves(group)
    assert [str(error)[-3:] for error in errors] == ["cut"]
    assert run.failures == 1


async def test_a_cancellation_from_outside_ends_everything_and_is_not_swallowed(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 50), FakeInference(lambda _: 1_000.0))
    with trio.move_on_after(5) as scope:
        await run()
    assert scope.cancelled_caught
    assert run.inference.under_way == {}


# a video that breaks off


async def test_frames_before_a_break_are_stored_and_the_break_comes_out_as_itself(autojump_clock: MockClock) -> None:
    broken = RunnerError(ErrorCode.VIDEO_TRUNCATED, "cut at 3.2 s")
    run = Run(FakeSource([100] * 11, ending=broken), FakeInference(lambda number: float(number % 3)))
    with pytest.raises(RunnerError) as caught:
        await run()
    assert caught.value is broken
    assert run.ledger.stored == list(range(11))


async def test_a_service_that_fails_on_frames_before_the_break_is_what_is_reported(autojump_clock: MockClock) -> None:
    broken = RunnerError(ErrorCode.VIDEO_TRUNCATED, "cut")
    run = Run(FakeSource([100] * 8, ending=broken), FailingInference(lambda _: 1.0))
    assert [str(error) for error in await errors_of(run)] == ["inference_bad_answer: six"]


async def test_a_bug_in_the_source_is_no_end_of_the_video(autojump_clock: MockClock) -> None:
    class Buggy(FakeSource):
        async def receive(self) -> Frame | End:
            if self.read == 3:
                raise ZeroDivisionError
            return await super().receive()

    run = Run(Buggy([100] * 8))
    assert [type(error) for error in await errors_of(run)] == [ZeroDivisionError]


# draining


async def drain_after(run: Run, seconds: float) -> None:
    await trio.sleep(seconds)
    run.drain.set()


async def drained_after(run: Run, seconds: float) -> End | RunnerError:
    """What comes of a run that is drained then."""
    ending: End | RunnerError
    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain_after, run, seconds)
        try:
            ending = await run()
        except RunnerError as error:
            ending = error
        nursery.cancel_scope.cancel()
    return ending


async def interrupted_after(run: Run, seconds: float) -> None:
    ending = await drained_after(run, seconds)
    assert isinstance(ending, RunnerError)
    assert ending.code is ErrorCode.INTERRUPTED


async def test_a_drain_stops_the_source_and_finishes_what_is_under_way(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 10_000, seconds_per_frame=1.0), FakeInference(lambda _: 3.0))
    await interrupted_after(run, 20.5)
    assert run.source.cancelled
    assert run.inference.cancelled == 0
    assert run.ledger.stored == list(range(run.source.read))
    assert run.source.read == 20


async def test_a_drain_is_bounded(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 10_000), FakeInference(lambda _: 1_000.0))
    began = trio.current_time()
    await interrupted_after(run, 5)
    assert trio.current_time() - began == pytest.approx(5 + CONFIG.runner.drain_seconds)
    assert run.inference.under_way == {}
    assert run.ledger.stored == []


async def test_a_drain_renews_the_lease_to_its_end(autojump_clock: MockClock) -> None:
    config = CONFIG.replace(runner={"drain_seconds": 100.0})
    run = Run(FakeSource([100] * 10_000), FakeInference(lambda _: 90.0), config=config)
    await interrupted_after(run, 5)
    assert len(run.ledger.heartbeats) >= 8


async def test_a_drain_that_was_asked_for_before_the_start_reads_nothing(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 10, seconds_per_frame=1.0))
    run.drain.set()
    with pytest.raises(RunnerError) as caught:
        await run()
    assert caught.value.code is ErrorCode.INTERRUPTED
    assert run.ledger.stored == []


async def test_a_drain_while_the_last_frames_are_under_way_is_a_completed_video(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 4), FakeInference(lambda _: 5.0))
    ending = await drained_after(run, 1)
    assert isinstance(ending, End)
    assert ending.selected == 4
    assert run.ledger.stored == [0, 1, 2, 3]


async def test_a_drain_that_cuts_the_last_frames_off_is_no_completed_video(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 4), FakeInference(lambda _: 50.0))
    await interrupted_after(run, 1)


async def test_a_failure_while_draining_is_a_failure(autojump_clock: MockClock) -> None:
    run = Run(FakeSource([100] * 10_000, seconds_per_frame=0.1), FailingInference(lambda _: 3.0))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(drain_after, run, 1)
        assert [str(error) for error in await errors_of(run)] == ["inference_bad_answer: six"]


@given(st.integers(0, 60), st.integers(1, 4), st.lists(st.floats(0, 3), min_size=1, max_size=5))
def test_whenever_a_drain_comes_what_is_stored_is_whole(tenths: int, in_flight: int, delays: list[float]) -> None:
    run = Run(
        FakeSource([100] * 30, seconds_per_frame=0.1),
        FakeInference(lambda number: delays[number % len(delays)]),
        config=CONFIG.replace(inference={"in_flight": in_flight}, runner={"drain_seconds": 2.0}),
    )

    async def main() -> End | RunnerError:
        # The event belongs to a run of Trio's.
        run.drain = trio.Event()
        return await drained_after(run, tenths / 10)

    ending = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert isinstance(ending, End) or ending.code is ErrorCode.INTERRUPTED
    assert run.ledger.stored == list(range(len(run.ledger.stored)))
    assert run.progress.frames_stored == len(run.ledger.stored)
    assert isinstance(ending, RunnerError) or len(run.ledger.stored) == 30

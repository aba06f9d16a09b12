from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.support.harness import PATIENCE_SECONDS
from tests.support.makers import make_claim, make_result
from trio_runner.config.load import Config
from trio_runner.errors import ErrorCode, RunnerError, SupersededError
from trio_runner.model import Claim, FrameResult, Progress
from trio_runner.pipeline.not_inferred import storable
from trio_runner.pipeline.window import Window
from trio_runner.pipeline.writer import Reorder, write_results

CONFIG = Config().replace(database={"batch_frames": 4, "batch_seconds": 0.25})


class FakeLedger:
    """Keeps what is stored, and refuses what does not go on where the last batch ended."""

    def __init__(self, next_frame: int = 0) -> None:
        self.batches: list[list[int]] = []
        self.times: list[float] = []
        self._next_frame = next_frame

    async def store(self, claim: Claim, expected_frame: int, results: Sequence[FrameResult]) -> None:
        await trio.lowlevel.checkpoint()
        assert results
        assert claim.epoch == 1
        assert expected_frame == self._next_frame
        indices = [result.index for result in results]
        assert indices == sorted(set(indices))
        assert indices[0] >= expected_frame
        self._next_frame = indices[-1] + 1
        self.batches.append(indices)
        self.times.append(trio.current_time())


class Writing:
    """A writer under way: results go in, batches come out at the ledger."""

    def __init__(self, ledger: FakeLedger, results: trio.MemorySendChannel[FrameResult]) -> None:
        self.ledger, self.results = ledger, results
        self.window = Window(max_frames=1_000, max_bytes=10**9)
        self.progress = Progress()

    async def send(self, *sequences: int) -> None:
        for sequence in sequences:
            await self.window.admit(1)
            await self.results.send(make_result(sequence))
        await wait_all_tasks_blocked()


@asynccontextmanager
async def writing(
    config: Config = CONFIG, ledger: FakeLedger | None = None, has_ended: Callable[[], bool] = lambda: True
) -> AsyncIterator[Writing]:
    send, receive = trio.open_memory_channel[FrameResult](1_000)
    under_way = Writing(ledger or FakeLedger(), send)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(
            write_results,
            under_way.ledger,
            make_claim(),
            receive,
            under_way.window,
            under_way.progress,
            config,
            has_ended,
        )
        async with send:
            yield under_way


# order


@given(st.permutations(range(20)))
def test_any_permutation_comes_out_in_order(sequence: list[int]) -> None:
    reorder = Reorder()
    out = []
    for arrived, number in enumerate(sequence, start=1):
        ready = [result.sequence for result in reorder.add(make_result(number))]
        out += ready
        # Nothing is held back that could go: what is out is the longest unbroken run of what has arrived.
        present = set(sequence[:arrived])
        assert out == list(range(next(n for n in range(21) if n not in present)))
    assert out == list(range(20))


@given(st.permutations(range(12)), st.integers(1, 5))
def test_whatever_the_order_of_answers_the_ledger_sees_frames_in_order(order: list[int], batch_frames: int) -> None:
    async def main() -> list[list[int]]:
        async with writing(CONFIG.replace(database={"batch_frames": batch_frames})) as under_way:
            await under_way.send(*order)
        return under_way.ledger.batches

    batches = trio.run(main, clock=MockClock(autojump_threshold=0))
    assert [index for batch in batches for index in batch] == list(range(12))


# batches


async def test_the_first_result_is_stored_at_once_and_alone_if_it_is_alone(autojump_clock: MockClock) -> None:
    async with writing() as under_way:
        await under_way.send(0)
        assert under_way.ledger.batches == [[0]]
        assert under_way.ledger.times == [trio.current_time()]


async def test_a_batch_is_stored_when_it_is_full(autojump_clock: MockClock) -> None:
    async with writing() as under_way:
        began = trio.current_time()
        await under_way.send(0, 1, 2, 3)
        assert under_way.ledger.batches == [[0]]
        await under_way.send(4)
        assert under_way.ledger.batches == [[0], [1, 2, 3, 4]]
        assert trio.current_time() == began


async def test_a_batch_is_stored_when_its_first_result_is_old_enough(autojump_clock: MockClock) -> None:
    async with writing() as under_way:
        await under_way.send(0)
        await trio.sleep(10)
        began = trio.current_time()
        await under_way.send(1)
        await trio.sleep(0.2)
        await under_way.send(2)
        assert under_way.ledger.batches == [[0]]
        await trio.sleep(0.04)
        assert under_way.ledger.batches == [[0]]
        await trio.sleep(1)
        assert under_way.ledger.batches == [[0], [1, 2]]
        # Its age counts from the first, a late one does not hold it up.
        assert under_way.ledger.times[1] == pytest.approx(began + 0.25)


async def test_early_results_neither_start_the_clock_nor_are_lost(autojump_clock: MockClock) -> None:
    async with writing() as under_way:
        await under_way.send(0, 2, 3)
        await trio.sleep(100)
        assert under_way.ledger.batches == [[0]]
        await under_way.send(1)
        await trio.sleep(1)
        assert under_way.ledger.batches == [[0], [1, 2, 3]]


async def test_a_late_result_lets_all_that_wait_for_it_go_together(autojump_clock: MockClock) -> None:
    async with writing() as under_way:
        await under_way.send(*range(9, 0, -1), 0)
        assert under_way.ledger.batches == [list(range(10))]


async def test_what_is_left_is_stored_when_the_channel_closes(autojump_clock: MockClock) -> None:
    async with writing() as under_way:
        await under_way.send(0, 1, 2)
    assert under_way.ledger.batches == [[0], [1, 2]]


async def test_no_results_nothing_stored(autojump_clock: MockClock) -> None:
    async with writing() as under_way:
        pass
    assert under_way.ledger.batches == []


# progress and window


async def test_progress_counts_what_is_stored_and_not_what_has_come(autojump_clock: MockClock) -> None:
    async with writing() as under_way:
        progress = under_way.progress
        await trio.sleep(5)
        await under_way.send(0, 1)
        assert (progress.next_frame, progress.frames_stored) == (1, 1)
        assert progress.last_advance == trio.current_time()
        await trio.sleep(1)
        assert (progress.next_frame, progress.frames_stored) == (2, 2)
        assert progress.last_advance < trio.current_time()


async def test_progress_follows_the_index_of_the_source_and_not_the_sequence(autojump_clock: MockClock) -> None:
    async with writing(ledger=FakeLedger(next_frame=0)) as under_way:
        for sequence, index in enumerate([10, 13, 16]):
            await under_way.results.send(make_result(sequence, index=index))
    assert under_way.ledger.batches == [[10], [13, 16]]
    assert (under_way.progress.next_frame, under_way.progress.frames_stored) == (17, 3)


async def test_detections_are_counted_when_they_are_stored(autojump_clock: MockClock) -> None:
    """Not by label: a service may put an id into each, and a runner works for days."""
    async with writing() as under_way:
        await under_way.results.send(make_result(0, labels=("dog", "dog", "cat")))
        await under_way.results.send(make_result(1))
        await under_way.results.send(make_result(2, labels=("cat",)))
    assert under_way.progress.detections == 4


async def test_frames_that_were_not_inferred_clipped_boxes_and_tokens_are_counted(autojump_clock: MockClock) -> None:
    async with writing() as under_way:
        under_way.progress.frames_not_inferred = 2
        await under_way.results.send(replace(make_result(0, labels=("dog", "dog")), clipped=1, tokens=900))
        await under_way.results.send(replace(make_result(1), error="inference_timeout: 1 s"))
        await under_way.results.send(replace(make_result(2, labels=("dog", "dog")), clipped=2, tokens=100))
    assert (under_way.progress.frames_stored, under_way.progress.detections) == (3, 4)
    assert (under_way.progress.frames_not_inferred, under_way.progress.boxes_clipped) == (3, 3)
    assert under_way.progress.tokens == 1000


async def test_stored_frames_make_room_in_the_window(autojump_clock: MockClock) -> None:
    send, receive = trio.open_memory_channel[FrameResult](10)
    window = Window(max_frames=2, max_bytes=1_000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(write_results, FakeLedger(), make_claim(), receive, window, Progress(), CONFIG, lambda: True)
        async with send:
            with trio.fail_after(PATIENCE_SECONDS):
                for sequence in range(20):
                    await window.admit(1)
                    await send.send(make_result(sequence))


# frames that were not inferred

UNANSWERED = RunnerError(ErrorCode.INFERENCE_TIMEOUT, "no answer")
REJECTED = RunnerError(ErrorCode.INFERENCE_REJECTED, "too large")
SOME_ALLOWED = CONFIG.replace(inference={"max_failed_frames": 3})


def of_kind(sequence: int, kind: str) -> FrameResult:
    """A result: `a` answered, `u` failed for an unclear reason, `f` failed for its own sake."""
    result = make_result(sequence)
    if kind == "a":
        return result
    failure = UNANSWERED if kind == "u" else REJECTED
    return replace(result, error=str(failure), failure=failure, is_unclear=kind == "u")


@given(st.text("auf", min_size=1, max_size=12), st.sampled_from(["", "a", "u", "f"]), st.sampled_from(["end", ""]))
def test_an_unclear_failure_is_stored_only_between_frames_that_the_service_answered(
    kinds: str, before: str, end: str
) -> None:
    if before == "u" and kinds.startswith("u"):
        # The one before would not have been stored.
        before = ""
    results = [of_kind(number, kind) for number, kind in enumerate(kinds, start=1)]
    decide = partial(storable, of_kind(0, before) if before else None, results, is_last=bool(end))
    if "uu" in before + kinds or before + kinds + end == "uend":
        with pytest.raises(RunnerError, match="no answer"):
            decide()
    else:
        assert decide() == len(results) - (kinds + end).endswith("u")


async def stored_of(
    kinds: str, config: Config = SOME_ALLOWED, *, has_ended: bool = True, earlier: int = 0
) -> list[int]:
    """The frames that the ledger has at the end of these results; raises an ExceptionGroup as a nursery does."""
    ledger = FakeLedger()
    async with writing(config, ledger, has_ended=lambda: has_ended) as under_way:
        under_way.progress.frames_not_inferred = earlier
        for sequence, kind in enumerate(kinds):
            await under_way.results.send(of_kind(sequence, kind))
            await trio.sleep(1)
    return [index for batch in ledger.batches for index in batch]


@pytest.mark.parametrize("kinds", ["f", "fff", "aua", "ua", "au", "uaua", "fuf", "aaaaauaaaaafaaaaau", "uf"])
async def test_frames_that_failed_for_their_own_sake_are_stored(autojump_clock: MockClock, kinds: str) -> None:
    assert await stored_of(kinds) == list(range(len(kinds)))


@pytest.mark.parametrize("kinds", ["u", "uu", "auua", "aauu", "faaauua"])
async def test_frames_around_which_nothing_was_answered_end_the_attempt(autojump_clock: MockClock, kinds: str) -> None:
    with pytest.RaisesGroup(RunnerError) as caught:
        await stored_of(kinds)
    assert caught.value.exceptions == (UNANSWERED,)


async def test_one_failed_frame_more_than_allowed_ends_the_attempt(autojump_clock: MockClock) -> None:
    for kinds in ("ffff", "fafafafa", "aauafafau"):
        with pytest.RaisesGroup(RunnerError) as caught:
            await stored_of(kinds)
        assert str(caught.value.exceptions[0]).endswith(
            " (this would be frame no. 4 that is not inferred; inference.max_failed_frames = 3)"
        )
    with pytest.RaisesGroup(RunnerError):
        await stored_of("af", CONFIG)


async def test_failed_frames_of_earlier_attempts_count(autojump_clock: MockClock) -> None:
    assert await stored_of("fa", earlier=2) == [0, 1]
    for earlier, number in ((2, 4), (3, 4), (7, 8)):
        with pytest.RaisesGroup(RunnerError) as caught:
            await stored_of("faf", earlier=earlier)
        (error,) = caught.value.exceptions
        assert isinstance(error, RunnerError)
        assert error.code is ErrorCode.INFERENCE_REJECTED
        assert f"frame no. {number} that is not inferred" in error.message


async def test_after_a_drain_an_unclear_failure_at_the_end_is_left_to_the_next_attempt(
    autojump_clock: MockClock,
) -> None:
    assert await stored_of("aaau", has_ended=False) == [0, 1, 2]


# failing


class LostLedger(FakeLedger):
    async def store(self, claim: Claim, expected_frame: int, results: Sequence[FrameResult]) -> None:
        await trio.lowlevel.checkpoint()
        raise SupersededError(f"{len(results)} results from {expected_frame} on, but {claim.epoch} is over")


async def test_a_failing_ledger_ends_the_writer_and_closes_its_channel(autojump_clock: MockClock) -> None:
    send, receive = trio.open_memory_channel[FrameResult](10)
    progress = Progress()
    window = Window(max_frames=2, max_bytes=10)
    await send.send(make_result(0))
    with pytest.raises(SupersededError):
        await write_results(LostLedger(), make_claim(), receive, window, progress, CONFIG, lambda: True)
    assert (progress.next_frame, progress.frames_stored) == (0, 0)
    with pytest.raises(trio.BrokenResourceError):
        await send.send(make_result(1))

"""Pacing and sending again, in virtual time."""

from __future__ import annotations

import math
import re
from collections.abc import Awaitable, Callable
from itertools import pairwise

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from trio_runner.config.inference import InferenceSection
from trio_runner.errors import ErrorCode
from trio_runner.inference.pacing import MARGIN, Pace
from trio_runner.inference.retrying import FIRST_PAUSE_SECONDS, LONGEST_PAUSE_SECONDS, Sending
from trio_runner.inference.statuses import InferenceError

TOO_MANY = InferenceError(ErrorCode.INFERENCE_UNAVAILABLE, "answered 429", transient=True, status=429)
BUSY = InferenceError(ErrorCode.INFERENCE_UNAVAILABLE, "answered 503", transient=True, status=503)
NOT_FOUND = InferenceError(ErrorCode.INFERENCE_REJECTED, "answered 404", status=404)


def asking_for(seconds: float, status: int = 429) -> InferenceError:
    """An answer with Retry-After."""
    return InferenceError(
        ErrorCode.INFERENCE_UNAVAILABLE, f"answered {status}", transient=True, status=status, retry_after=seconds
    )


class Service:
    """Answers each request with the next of these outcomes, the last one for ever, and notes the times."""

    def __init__(self, *outcomes: InferenceError | None, seconds: float = 0.0) -> None:
        self._outcomes = list(outcomes)
        self._seconds = seconds
        self.times: list[float] = []

    async def exchange(self) -> str:
        self.times.append(trio.current_time())
        await trio.sleep(self._seconds)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if outcome:
            raise outcome
        return "answer"


# pace


@given(
    st.floats(0.01, 1_000),
    st.floats(0.01, 100_000),
    st.lists(st.floats(0, 30), min_size=1, max_size=200),
    st.lists(st.tuples(st.integers(0, 199), st.floats(0, 100)), max_size=5),
)
def test_in_no_window_of_time_there_are_more_requests_than_its_length_allows(
    per_second: float, per_minute: float, pauses: list[float], holds: list[tuple[int, float]]
) -> None:
    """However long the senders do something else, and whenever all of them are held back."""
    pace, now, times = Pace(0.0, per_second=per_second, per_minute=per_minute), 0.0, []
    for number, pause in enumerate(pauses):
        for _, seconds in (hold for hold in holds if hold[0] == number):
            pace.hold(now + seconds)
            assert pace.earliest >= now + seconds
        now = max(now + pause, pace.earliest)
        pace.count(now)
        times.append(now)
    for rate, window in ((per_second, 1.0), (per_minute, 60.0)):
        allowed = math.ceil(rate)
        for first, beyond in zip(times, times[allowed:], strict=False):
            assert beyond - first >= window * 0.999999, f"more than {allowed} requests within {window} s"


def test_the_first_request_waits_for_the_last_one_of_the_runner_before() -> None:
    assert Pace(100.0, per_minute=20).earliest == 100 + MARGIN * 3


def test_without_a_limit_nothing_waits() -> None:
    pace = Pace(5.0)
    for _ in range(3):
        assert pace.earliest <= 5.0
        pace.count(5.0)


async def test_all_senders_together_keep_the_rate(autojump_clock: MockClock) -> None:
    sending = Sending(InferenceSection(requests_per_minute=20.0))
    service = Service(None, seconds=7.0)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        for _ in range(40):
            nursery.start_soon(sending.persistently, service.exchange)
    assert [round(time - began, 6) for time in service.times] == [
        round(3 * MARGIN * number, 6) for number in range(1, 41)
    ]


# sending again


async def outcome_of(sending: Sending, exchange: Callable[[], Awaitable[str]]) -> str:
    with pytest.raises(InferenceError) as caught:
        await sending.persistently(exchange)
    return caught.value.message


async def test_by_default_nothing_is_sent_again(autojump_clock: MockClock) -> None:
    service = Service(BUSY)
    with pytest.raises(InferenceError) as caught:
        await Sending(InferenceSection()).persistently(service.exchange)
    assert caught.value is BUSY
    assert len(service.times) == 1


async def test_a_request_is_sent_again_until_it_is_answered(autojump_clock: MockClock) -> None:
    service = Service(*[BUSY] * 6, None)
    assert await Sending(InferenceSection(retry_seconds=60.0)).persistently(service.exchange) == "answer"
    pauses = [later - earlier for earlier, later in pairwise(service.times)]
    for number, pause in enumerate(pauses):
        longest = min(FIRST_PAUSE_SECONDS * 2**number, LONGEST_PAUSE_SECONDS)
        assert longest / 2 <= pause <= longest


async def test_after_retry_seconds_the_last_error_is_raised(autojump_clock: MockClock) -> None:
    service = Service(BUSY)
    message = await outcome_of(Sending(InferenceSection(retry_seconds=30.0)), service.exchange)
    assert message == f"answered 503 (sent {len(service.times)} times in inference.retry_seconds = 30)"
    assert service.times[-1] - service.times[0] == pytest.approx(30)


@pytest.mark.parametrize("error", [NOT_FOUND, InferenceError(ErrorCode.INFERENCE_TIMEOUT, "no answer")])
async def test_an_error_that_will_not_pass_is_raised_at_once(autojump_clock: MockClock, error: InferenceError) -> None:
    service = Service(error)
    assert await outcome_of(Sending(InferenceSection(retry_seconds=30.0)), service.exchange) == error.message
    assert len(service.times) == 1


async def test_retry_after_is_waited_for_where_it_fits(autojump_clock: MockClock) -> None:
    service = Service(asking_for(25), None)
    await Sending(InferenceSection(retry_seconds=30.0)).persistently(service.exchange)
    assert service.times[1] - service.times[0] == pytest.approx(25)


async def test_a_retry_after_that_does_not_fit_fails_at_once(autojump_clock: MockClock) -> None:
    service = Service(BUSY, asking_for(29.9))
    sending = Sending(InferenceSection(retry_seconds=30.0))
    with pytest.raises(InferenceError) as caught:
        await sending.persistently(service.exchange)
    assert len(service.times) == 2
    assert caught.value.retry_after_seconds == 29.9


@pytest.mark.parametrize("error", [asking_for(20), asking_for(20, 503), TOO_MANY])
async def test_one_sender_that_is_told_to_wait_holds_back_all(autojump_clock: MockClock, error: InferenceError) -> None:
    sending = Sending(InferenceSection(retry_seconds=60.0))
    service = Service(error, None)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(sending.persistently, service.exchange)
        await trio.sleep(0.01)
        for _ in range(5):
            nursery.start_soon(sending.persistently, service.exchange)
    least = 20 if error.retry_after else FIRST_PAUSE_SECONDS / 2
    assert len(service.times) == 7
    assert min(service.times[1:]) - service.times[0] >= least - 1e-6


async def test_a_request_in_a_long_queue_gives_up_in_time(autojump_clock: MockClock) -> None:
    sending = Sending(InferenceSection(retry_seconds=10.0, requests_per_minute=1.0))
    service = Service(BUSY)
    message = await outcome_of(sending, service.exchange)
    assert message.startswith("answered 503 (sent 1 times")
    assert trio.current_time() - service.times[0] == pytest.approx(10)


async def test_a_cancelled_sender_leaves_its_turn_to_the_others(autojump_clock: MockClock) -> None:
    sending = Sending(InferenceSection(requests_per_minute=20.0))
    service = Service(None)
    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        with trio.move_on_after(1):
            await sending.persistently(service.exchange)
        nursery.start_soon(sending.persistently, service.exchange)
    assert [round(time - began, 6) for time in service.times] == [round(3 * MARGIN, 6)]


async def test_requests_that_are_sent_again_are_logged_once_a_minute(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    sending = Sending(InferenceSection(retry_seconds=600.0))
    busy = InferenceError(
        ErrorCode.INFERENCE_UNAVAILABLE, "answered 503", transient=True, status=503, remedy="set a key"
    )
    message = await outcome_of(sending, Service(busy).exchange)
    assert message.startswith("answered 503: set a key (sent ")
    lines = [record.getMessage() for record in caplog.records]
    assert 9 <= len(lines) <= 10
    first = r"answered 503; the request is sent again in 0\.[12] s, for up to 600 s \(1 so far\)"
    assert re.fullmatch(first, lines[0])
    assert "(1 so far)" not in lines[1]


@pytest.mark.parametrize("retry_after", [True, False], ids=["with Retry-After", "without Retry-After"])
@pytest.mark.parametrize("limits", [{}, {"requests_per_minute": 20.0}], ids=["unpaced", "paced"])
async def test_a_bucket_of_20_requests_a_minute_answers_2000_frames_in_one_attempt(
    autojump_clock: MockClock, limits: dict[str, float], *, retry_after: bool
) -> None:
    """As in the field: every further request of a minute is answered by 429, which counts as none."""
    sending = Sending(InferenceSection(retry_seconds=120.0, **limits))  # type: ignore[arg-type]
    counted: list[float] = []
    refused = answered = 0

    async def exchange() -> None:
        nonlocal refused
        now = trio.current_time()
        await trio.sleep(0.05)
        if len(recent := [time for time in counted[-20:] if time > now - 60]) == 20:
            refused += 1
            raise asking_for(math.ceil(recent[0] + 60 - now)) if retry_after else TOO_MANY
        counted.append(now)

    async def sender() -> None:
        nonlocal answered
        while answered < 2000:
            answered += 1
            await sending.persistently(exchange)

    async with trio.open_nursery() as nursery:
        for _ in range(4):
            nursery.start_soon(sender)
    assert len(counted) == 2000
    if limits:
        assert refused == 0

"""How many runners are started now, and when it is tried again, whatever comes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from trio_runner.database.backlog import RecentAttempt
from trio_runner.errors import ErrorCode, Stage
from trio_runner.orchestrator.policy import (
    BREAKER_WINDOW,
    MAX_DELAY_SECONDS,
    StartBudget,
    allowed_starts,
    breaker_code,
    delay_seconds,
)

SHARED = [code for code in ErrorCode if code.stage in {Stage.INFERENCE, Stage.STORE, Stage.KAFKA, Stage.STORAGE}]
OTHERS = [code for code in ErrorCode if code not in SHARED]

attempts = st.builds(
    RecentAttempt,
    code=st.none() | st.sampled_from([*SHARED[:2], *OTHERS[:2], "a code of a later version"]),
    progressed=st.booleans(),
)


def died(code: str, count: int = 1) -> list[RecentAttempt]:
    return [RecentAttempt(code=code, progressed=False)] * count


PROGRESS = RecentAttempt(code=None, progressed=True)
UNDER_WAY = RecentAttempt(code=None, progressed=False)


# the budget


@given(
    st.floats(0.01, 1000),
    st.lists(st.tuples(st.floats(0, 10), st.integers(0, 2000)), max_size=50),
)
def test_in_no_window_of_time_there_are_more_starts_than_its_length_allows(
    rate: float, calls: list[tuple[float, int]]
) -> None:
    now = 1000.0
    budget = StartBudget(rate, now)
    started = []
    for pause, wanted in calls:
        now += pause
        spent = min(wanted, budget.available(now))
        assert spent >= 0
        budget.spend(spent)
        started.append((now, spent))
    totals = [0, *itertools.accumulate(spent for _, spent in started)]
    for first, last in itertools.combinations_with_replacement(range(len(started)), 2):
        length = started[last][0] - started[first][0]
        assert totals[last + 1] - totals[first] <= rate * length + max(1.0, rate) + 1e-6


@given(st.floats(0.01, 1000), st.floats(0, 1e6))
def test_unused_starts_are_saved_up_for_a_second_at_most(rate: float, idle: float) -> None:
    budget = StartBudget(rate, 0.0)
    assert budget.available(idle) == int(max(1.0, rate))


@given(st.floats(0.01, 1000))
def test_a_spent_budget_allows_a_start_again_in_its_time(rate: float) -> None:
    budget = StartBudget(rate, 0.0)
    budget.spend(budget.available(0.0))
    assert budget.available(1 / rate + 1e-6) >= 1


def test_asking_often_spends_nothing() -> None:
    budget = StartBudget(5, 0.0)
    assert [budget.available(0.001 * step) for step in range(100)] == [5] * 100


# the breaker


@given(st.lists(attempts, max_size=40))
@example(died("inference_unreachable", 10))
def test_the_breaker_opens_for_half_of_a_window_of_one_shared_code_and_nothing_else(
    recent: list[RecentAttempt],
) -> None:
    since = list(itertools.takewhile(lambda attempt: not attempt.progressed, recent[:BREAKER_WINDOW]))
    counts = {str(code): sum(attempt.code == code for attempt in since) for code in SHARED}
    code = breaker_code(recent)
    if max(counts.values()) >= BREAKER_WINDOW / 2:
        assert code is not None
        assert counts[code] == max(counts.values())
    else:
        assert code is None


@pytest.mark.parametrize("code", SHARED)
def test_every_code_of_a_peer_that_all_share_can_open_it(code: ErrorCode) -> None:
    assert breaker_code(died(code, 9)) is None
    assert breaker_code(died(code, 10)) == code


@pytest.mark.parametrize("code", [*OTHERS, "a code of a later version", "not_started"])
def test_no_other_code_opens_it(code: str) -> None:
    assert breaker_code(died(code, BREAKER_WINDOW)) is None


def test_an_attempt_that_stores_something_closes_it_at_once() -> None:
    storm = died("inference_timeout", BREAKER_WINDOW)
    assert breaker_code([UNDER_WAY, *storm]) == "inference_timeout"
    assert breaker_code([PROGRESS, *storm]) is None
    assert breaker_code([*died("inference_timeout", 9), PROGRESS, *storm]) is None


def test_attempts_older_than_the_window_do_not_count() -> None:
    assert breaker_code([UNDER_WAY] * 15 + died("store_lost", 30)) is None


@given(st.integers(0, 1000), st.lists(attempts, max_size=30), st.integers(0, 50))
@example(5, died("store_unreachable", 20), 0)
@example(5, died("store_unreachable", 20), 1)
def test_while_it_is_open_one_attempt_is_tried_at_a_time(
    available: int, recent: list[RecentAttempt], unproven: int
) -> None:
    starts = allowed_starts(available, recent, unproven)
    if breaker_code(recent) is None:
        assert starts == available
    else:
        assert starts == (min(1, available) if unproven == 0 else 0)


# trying again


@given(st.integers(0, 10**6), st.floats(0, 1))
def test_a_refused_start_is_tried_again_within_bounds(refusals: int, random: float) -> None:
    delay = delay_seconds(refusals, random)
    assert 0 <= delay <= MAX_DELAY_SECONDS
    assert delay <= delay_seconds(refusals + 1, random)
    assert delay == random * delay_seconds(refusals, 1.0)
    assert delay_seconds(refusals, 1.0) == min(MAX_DELAY_SECONDS, 2.0 ** min(refusals, 12))

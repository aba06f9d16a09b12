"""An orchestrator's sessions end with their peers and begin again; only a bug ends it."""

from __future__ import annotations

import itertools

import pytest
import trio
from trio.testing import MockClock

from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.orchestrator.daemon import MAX_PAUSE_SECONDS, _keep


async def pauses(*lasting: float) -> list[float]:
    """The pauses after sessions that last so long and end with their peer; one more session ends with a bug."""
    began: list[float] = []

    async def session() -> None:
        began.append(trio.current_time())
        if len(began) > len(lasting):
            raise ZeroDivisionError
        await trio.sleep(lasting[len(began) - 1])
        raise RunnerError(ErrorCode.KAFKA_UNREACHABLE, "away")

    with pytest.raises(ZeroDivisionError):
        await _keep("Kafka", session)
    return [
        next_one - last - lasted for (last, next_one), lasted in zip(itertools.pairwise(began), lasting, strict=True)
    ]


async def test_a_peer_that_is_away_for_long_is_asked_every_half_minute(autojump_clock: MockClock) -> None:
    found = await pauses(*[0.0] * 1100)
    assert found[:6] == pytest.approx([1, 2, 4, 8, 16, MAX_PAUSE_SECONDS])
    assert found[6:] == pytest.approx([MAX_PAUSE_SECONDS] * 1094)


async def test_a_session_that_lasted_is_followed_soon(autojump_clock: MockClock) -> None:
    found = await pauses(0, 0, 0, MAX_PAUSE_SECONDS + 1, 0, MAX_PAUSE_SECONDS - 1, 0)
    assert found == pytest.approx([1, 2, 4, 0.5, 1, 2, 4])

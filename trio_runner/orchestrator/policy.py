"""How many runners to start now, and when to try again: decisions without input or output."""

from __future__ import annotations

from collections import Counter
from itertools import takewhile
from typing import TYPE_CHECKING, Final

from trio_runner.errors import ErrorCode, Stage

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.database.backlog import RecentAttempt

BREAKER_WINDOW: Final = 20
"""The number of last attempts that decide whether the breaker is open."""

BREAKER_SHARE: Final = 0.5
"""The share of them that opens it."""

SHARED: Final = frozenset({Stage.INFERENCE, Stage.STORE, Stage.KAFKA, Stage.STORAGE})
"""The stages that depend on a peer of all runners. A broken video or a lost host says nothing about other scenarios."""

MAX_DELAY_SECONDS: Final = 300.0


class StartBudget:
    """A token bucket: so many starts a second, and at most one second's worth at once."""

    def __init__(self, starts_per_second: float, now: float) -> None:
        """A full bucket; `now`, in seconds, is of a clock that only goes forward."""
        self._rate = starts_per_second
        self._most = max(1.0, starts_per_second)
        self._tokens, self._filled = self._most, now

    def available(self, now: float) -> int:
        """How many may start now."""
        self._tokens = min(self._most, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return int(self._tokens)

    def spend(self, starts: int) -> None:
        """Take the tokens of so many starts."""
        self._tokens -= starts


def breaker_code(recent: Sequence[RecentAttempt]) -> str | None:
    """The error code that keeps the breaker open; None while it is closed. `recent` has the newest attempt first.

    The breaker opens when half of a full window of attempts died of one code of a shared peer. Attempts older than the
    newest one that stored something do not count.
    """
    since_success = takewhile(lambda attempt: not attempt.progressed, recent[:BREAKER_WINDOW])
    shared = Counter(attempt.code for attempt in since_success if attempt.code is not None and _is_shared(attempt.code))
    if not shared:
        return None
    ((code, count),) = shared.most_common(1)
    return code if count >= BREAKER_WINDOW * BREAKER_SHARE else None


def allowed_starts(available: int, recent: Sequence[RecentAttempt], unproven: int) -> int:
    """How many runners may start: as many as the budget has, but one at a time while the breaker is open."""
    if breaker_code(recent) is None:
        return available
    return min(available, 1) if unproven == 0 else 0


def delay_seconds(refusals: int, random: float) -> float:
    """The pause after so many refusals in a row: exponential, with full jitter; `random` is from 0 to 1."""
    return random * min(MAX_DELAY_SECONDS, 2.0 ** min(refusals, 12))


def _is_shared(code: str) -> bool:
    # The ledger may have codes of a later version.
    return any(known.stage in SHARED for known in ErrorCode if known == code)

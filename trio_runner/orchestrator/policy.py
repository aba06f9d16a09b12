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
"""How many of the last attempts the breaker judges by."""

BREAKER_SHARE: Final = 0.5

SHARED: Final = frozenset({Stage.INFERENCE, Stage.STORE, Stage.KAFKA})
"""What all runners lean on. A broken video or a lost host says nothing about the next scenario."""

MAX_DELAY_SECONDS: Final = 300.0


class StartBudget:
    """A token bucket: so many starts a second, and at most one second's worth at once."""

    def __init__(self, starts_per_second: float, now: float) -> None:
        """Full at first, `now` by a clock that only goes forward."""
        self._rate = starts_per_second
        self._most = max(1.0, starts_per_second)
        self._tokens, self._filled = self._most, now

    def available(self, now: float) -> int:
        """How many may start now."""
        self._tokens = min(self._most, self._tokens + (now - self._filled) * self._rate)
        self._filled = now
        return int(self._tokens)

    def spend(self, starts: int) -> None:
        """They have started."""
        self._tokens -= starts


def breaker_code(recent: Sequence[RecentAttempt]) -> str | None:
    """What holds the fleet back, if so many of the last attempts died of it; `recent` has the newest first.

    Half of a full window, of one code of a peer that all share, and nothing stored. The newest attempt that stored
    something ends it: what is older is history.
    """
    since_success = takewhile(lambda attempt: not attempt.progressed, recent[:BREAKER_WINDOW])
    shared = Counter(attempt.code for attempt in since_success if attempt.code is not None and _is_shared(attempt.code))
    if not shared:
        return None
    ((code, count),) = shared.most_common(1)
    return code if count >= BREAKER_WINDOW * BREAKER_SHARE else None


def allowed_starts(available: int, recent: Sequence[RecentAttempt], unproven: int) -> int:
    """How many runners may be started: what the budget has, but one probe at a time while the breaker is open."""
    if breaker_code(recent) is None:
        return available
    return min(available, 1) if unproven == 0 else 0


def delay_seconds(refusals: int, random: float) -> float:
    """How long to wait after so many refusals in a row: exponential with full jitter; `random` is from 0 to 1."""
    return random * min(MAX_DELAY_SECONDS, 2.0 ** min(refusals, 12))


def _is_shared(code: str) -> bool:
    # A later version may know codes that this one does not.
    return any(known.stage in SHARED for known in ErrorCode if known == code)

"""Sends a request when its turn has come, and again for `retry_seconds` where the service may answer it later."""

from __future__ import annotations

import logging
import math
import random
from typing import TYPE_CHECKING, Final, TypeVar

import trio

from trio_runner.inference.pacing import Pace
from trio_runner.inference.statuses import InferenceError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from trio_runner.config.inference import InferenceSection

logger = logging.getLogger(__name__)

T = TypeVar("T")

FIRST_PAUSE_SECONDS: Final = 0.25
LONGEST_PAUSE_SECONDS: Final = 5.0
LOG_SECONDS: Final = 60.0
TOO_MANY_REQUESTS: Final = 429


class Sending:
    """The turns of all senders of one client."""

    def __init__(self, config: InferenceSection) -> None:
        """Begin with no request sent; the rate counts from now on."""
        self._retry_seconds = config.retry_seconds
        self._pace = Pace(
            trio.current_time(), per_second=config.requests_per_second, per_minute=config.requests_per_minute
        )
        self._sent_again, self._next_log = 0, -math.inf
        # Fair: the sender that has waited longest has the next turn.
        self._turn = trio.Lock()

    async def once(self, exchange: Callable[[], Awaitable[T]]) -> T:
        """Wait for a turn, and call `exchange`, which sends one request."""
        await self._await_turn()
        return await exchange()

    async def persistently(self, exchange: Callable[[], Awaitable[T]]) -> T:
        """Call `exchange` in its turn, and again while its error is transient, for `retry_seconds` after the first one.

        Between two calls there is a pause with jitter, which doubles each time, or what Retry-After asks for. After a
        Retry-After, and after a 429 in any case, all senders pause.

        Raises:
            InferenceError: The last one; at once where Retry-After asks for more than what is left of `retry_seconds`.
        """
        pauses = _pauses()
        deadline, tries = math.inf, 0
        last: InferenceError | None = None
        while True:
            with trio.move_on_at(deadline) as waiting:
                await self._await_turn()
            if last and waiting.cancelled_caught:
                raise self._in_vain(last, tries)
            tries += 1
            try:
                return await exchange()
            except InferenceError as error:
                now = trio.current_time()
                deadline = min(deadline, now + self._retry_seconds)
                asked = error.retry_after or 0.0
                if not error.transient or now >= deadline or now + asked > deadline:
                    if tries == 1:
                        raise
                    raise self._in_vain(error, tries) from error
                last = error
            pause = min(max(asked, next(pauses)), deadline - now)
            self._log(last, pause)
            if last.status == TOO_MANY_REQUESTS or last.retry_after is not None:
                self._pace.hold(now + pause)
            await trio.sleep(pause)

    async def _await_turn(self) -> None:
        """Return when a request may be sent, and count it; without a limit, at once."""
        if not self._turn.locked() and trio.current_time() >= self._pace.earliest:
            self._pace.count(trio.current_time())
            return
        async with self._turn:
            # A hold may begin while this sender waits.
            while trio.current_time() < self._pace.earliest:  # noqa: ASYNC110 - a clock wakes nobody
                await trio.sleep_until(self._pace.earliest)
            self._pace.count(trio.current_time())

    def _log(self, error: InferenceError, pause: float) -> None:
        """Log that a request is sent again, at most once a minute: a service may answer 429 all day long."""
        self._sent_again += 1
        if trio.current_time() >= self._next_log:
            self._next_log = trio.current_time() + LOG_SECONDS
            logger.warning(
                "%s; the request is sent again in %.1f s, for up to %g s (%d so far)",
                error.without_remedy,
                pause,
                self._retry_seconds,
                self._sent_again,
            )

    def _in_vain(self, error: InferenceError, tries: int) -> InferenceError:
        return error.with_note(f"(sent {tries} times in inference.retry_seconds = {self._retry_seconds:g})")


def _pauses() -> Iterator[float]:
    """The seconds between two tries: twice as many each time, each shortened by chance so that senders spread out."""
    longest = FIRST_PAUSE_SECONDS
    while True:
        yield longest * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        longest = min(2 * longest, LONGEST_PAUSE_SECONDS)

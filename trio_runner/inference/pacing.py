"""The rate at which all senders of one client together send requests; pure, so that a test needs no clock."""

from __future__ import annotations

from typing import Final

MARGIN: Final = 1.01
"""Requests are this much further apart than the limit asks. Without it, one request that takes longer than the next to
reach the service would bring one request too many into a window of time as the service counts it."""


class Pace:
    """Computes when the next request may be sent.

    Requests are spread evenly: a service that counts the requests of the last minute allows no more at once when a
    minute begins. The first request waits as well, because the runner before this one may just have sent its last.
    """

    def __init__(self, now: float, *, per_second: float = 0.0, per_minute: float = 0.0) -> None:
        """Begin at the time `now`; a rate of 0 is no limit, and of two limits both hold."""
        shortest = [period / rate for period, rate in ((1, per_second), (60, per_minute)) if rate]
        self._interval = MARGIN * max(shortest, default=0.0)
        self._earliest = now + self._interval

    @property
    def earliest(self) -> float:
        """The time before which no request may be sent."""
        return self._earliest

    def count(self, now: float) -> None:
        """Count a request that is sent at the time `now`."""
        self._earliest = max(self._earliest, now + self._interval)

    def hold(self, until: float) -> None:
        """Let no request be sent before the time `until`."""
        self._earliest = max(self._earliest, until)

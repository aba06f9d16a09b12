"""A disk that hangs until a test lets it answer, and the proof that the event loop goes on meanwhile."""

from __future__ import annotations

import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import ParamSpec, TypeVar

import trio

HANG_SECONDS = 20.0
"""How long a call hangs at most: in the event loop, where it must not be, it would hold up the test for that long."""

P = ParamSpec("P")
R = TypeVar("R")


class HangingDisk:
    """The functions that it holds up do not return before `answers` is set."""

    def __init__(self) -> None:
        self.answers = threading.Event()
        self.beats = 0
        """How often another task ran while a function was held up."""
        self._held = 0

    def holding_up(self, function: Callable[P, R]) -> Callable[P, R]:
        def held(*args: P.args, **kwargs: P.kwargs) -> R:
            self._held += 1
            self.answers.wait(HANG_SECONDS)
            self._held -= 1
            return function(*args, **kwargs)

        return held

    async def beat(self) -> None:
        while True:
            await trio.sleep(0.01)
            self.beats += self._held > 0


@asynccontextmanager
async def hanging_disk() -> AsyncIterator[HangingDisk]:
    """A disk that answers at the end of the block at the latest; other tasks must have run while it hung."""
    disk = HangingDisk()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(disk.beat)
        try:
            yield disk
        finally:
            disk.answers.set()
            nursery.cancel_scope.cancel()
    assert disk.beats > 0, "the event loop stood still while the disk hung"

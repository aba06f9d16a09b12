"""SIGTERM and Ctrl-C as an orderly end."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def until_signal() -> AsyncIterator[None]:
    """The first SIGINT or SIGTERM cancels the block, which is a normal end."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:

            async def cancel() -> None:
                async for _ in signals:
                    nursery.cancel_scope.cancel()

            nursery.start_soon(cancel)
            yield
            nursery.cancel_scope.cancel()

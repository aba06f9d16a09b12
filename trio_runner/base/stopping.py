"""SIGTERM and Ctrl-C as an orderly end."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def until_signal() -> AsyncIterator[trio.Event]:
    """The first SIGINT or SIGTERM cancels the block, which is a normal end.

    Yields:
        An event that the second signal sets. A shielded cleanup that may take long waits for it, and then cuts itself
        short.
    """
    second_signal = trio.Event()
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            # Shielded: it goes on listening while the cancelled block cleans up.
            listening = trio.CancelScope(shield=True)

            async def listen() -> None:
                with listening:
                    async for _ in signals:
                        if nursery.cancel_scope.cancel_called:
                            second_signal.set()
                        nursery.cancel_scope.cancel()

            nursery.start_soon(listen)
            try:
                yield second_signal
            finally:
                listening.cancel()

"""SIGTERM and Ctrl-C as an orderly end."""

from __future__ import annotations

import signal
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@asynccontextmanager
async def until_signal(*, die: bool = False) -> AsyncIterator[trio.Event]:
    """The first SIGINT or SIGTERM cancels the block.

    Args:
        die: Once the block has ended, let the signal act as though it had not been caught: SIGTERM ends the process,
            and SIGINT raises KeyboardInterrupt. Without `die` a signal is a normal end of the block.

    Yields:
        An event that the second signal sets. A shielded cleanup that may take long waits for it, and then cuts itself
        short.
    """
    second_signal = trio.Event()
    first_signal: int | None = None
    try:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with trio.open_nursery() as nursery:
                # Shielded: it goes on listening while the cancelled block cleans up.
                listening = trio.CancelScope(shield=True)

                async def listen() -> None:
                    nonlocal first_signal
                    with listening:
                        async for number in signals:
                            if first_signal is not None:
                                second_signal.set()
                            first_signal = first_signal or number
                            nursery.cancel_scope.cancel()

                nursery.start_soon(listen)
                try:
                    yield second_signal
                finally:
                    listening.cancel()
    finally:
        if die and first_signal is not None:
            signal.raise_signal(first_signal)

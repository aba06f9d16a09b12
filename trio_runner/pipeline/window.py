"""Bounds the work under way: the bytes of frames not yet answered, and the number of frames not yet stored."""

from __future__ import annotations

from trio.lowlevel import ParkingLot, checkpoint


class Window:
    """Admits a frame while both bounds hold; a frame larger than the byte bound is admitted alone.

    The byte bound keeps a slow service from filling memory. The frame bound keeps later results from piling up in the
    writer behind one slow answer. The reader holds one frame more: the frame that waits in `admit`.
    """

    def __init__(self, *, max_frames: int, max_bytes: int) -> None:
        """Start empty."""
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._frames = self._bytes = 0
        self._waiting = ParkingLot()

    async def admit(self, size: int) -> None:
        """Wait until there is room for a frame of `size` bytes, then count it. Only one task may wait here."""
        await checkpoint()
        while self._frames >= self._max_frames or (self._bytes and self._bytes + size > self._max_bytes):
            await self._waiting.park()
        self._frames += 1
        self._bytes += size

    def release_bytes(self, size: int) -> None:
        """Count out the bytes of a frame that was answered: its picture is no longer needed."""
        self._bytes -= size
        self._waiting.unpark_all()

    def release_frames(self, count: int) -> None:
        """Count out `count` frames whose results are stored."""
        self._frames -= count
        self._waiting.unpark_all()

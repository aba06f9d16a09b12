"""Bounds what is under way: bytes of frames not yet answered, and frames not yet stored."""

from __future__ import annotations

from trio.lowlevel import ParkingLot, checkpoint


class Window:
    """Admits a frame while both bounds hold; a frame larger than the byte bound goes alone.

    The byte bound keeps a slow service from filling memory; the frame bound keeps one slow answer from piling up all
    the later ones in the writer. The reader may hold one frame more, the one that waits here.
    """

    def __init__(self, *, max_frames: int, max_bytes: int) -> None:
        """Start empty."""
        self._max_frames, self._max_bytes = max_frames, max_bytes
        self._frames = self._bytes = 0
        self._waiting = ParkingLot()

    async def admit(self, size: int) -> None:
        """Wait until there is room for a frame of `size` bytes, then count it in. Only one task may wait here."""
        await checkpoint()
        while self._frames >= self._max_frames or (self._bytes and self._bytes + size > self._max_bytes):
            await self._waiting.park()
        self._frames += 1
        self._bytes += size

    def release_bytes(self, size: int) -> None:
        """A frame was answered, its picture is no longer needed."""
        self._bytes -= size
        self._waiting.unpark_all()

    def release_frames(self, count: int) -> None:
        """`count` results are stored."""
        self._frames -= count
        self._waiting.unpark_all()

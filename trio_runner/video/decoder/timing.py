"""When each picture is presented: the container's times from its start on, completed and put in order.

1. A picture's time is that of its packet. Where the packet has none, or where such times went back more often than the
   times of decoding, the time of decoding stands in, as in FFmpeg's own program.
2. AVI holds no times, only an order of decoding. Its packets' places in time are given to the pictures in the order in
   which these come out.
3. A stream without a container, and a picture without any time: the time before plus one frame.
4. Times count from the start of the container, which is the earliest of its streams, as in a player.
5. Time does not go back. A time that does becomes the one before plus half a frame, and so do the next ones until the
   container's times have caught up. If time goes back by more than ten seconds, as where two recordings were joined,
   all later times move with it; in a transport or program stream a leap forward by as much is such a join, too.
"""

from __future__ import annotations

import heapq
import math
from fractions import Fraction
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

JOIN_SECONDS: Final = 10.0
MAX_FPS: Final = 1000
"""A higher rate is FFmpeg's guess."""

USUAL_INTERVAL: Final = Fraction(1, 25)

NO_TIMESTAMPS, TS_DISCONT = 0x0080, 0x0200
"""FFmpeg's flags of a container: AVFMT_NOTIMESTAMPS, AVFMT_TS_DISCONT."""


class Clock:
    """Gives each picture, in the order of presentation, its time in seconds."""

    def __init__(self, container: InputContainer, stream: VideoStream) -> None:
        flags = container.format.flags
        self._counts_only, self._joins = bool(flags & NO_TIMESTAMPS), bool(flags & TS_DISCONT)
        self._in_decoding_order, self._decoder = container.format.name == "avi", stream.codec_context
        self._unit = Fraction(stream.time_base or 1)
        rate = stream.average_rate or stream.guessed_rate
        if self._counts_only:
            rate = stream.codec_context.framerate or rate
        self._interval = 1 / Fraction(rate) if rate and 0 < rate <= MAX_FPS else USUAL_INTERVAL
        self._start = _start(container, stream)
        self._waiting: list[int] = []
        self._shift = Fraction(0)
        self._last: Fraction | None = None
        self._guess = _Guess()

    def sent(self, packet: Packet[Any]) -> None:
        """A packet goes to the decoder."""
        if self._in_decoding_order and packet.dts is not None:
            heapq.heappush(self._waiting, packet.dts)

    def lost(self, packet: Packet[Any]) -> None:
        """The decoder has made no picture of the packet that was sent last, and will not."""
        if self._in_decoding_order and packet.dts in self._waiting:
            self._waiting.remove(packet.dts)
            heapq.heapify(self._waiting)

    def time(self, pts: int | None, dts: int | None, *, trusted: bool = True) -> float:
        """The time of the next picture, whose own times are these; those of a damaged one are not to be trusted."""
        own = self._own(pts, dts, trusted=trusted)
        if own is not None:
            time = self._from_start(own * self._unit)
        else:
            time = Fraction(0) if self._last is None else self._last + self._interval
        self._last = time
        return round(float(time), 6)

    def plain(self, raw: int) -> float:
        """The time in seconds of a picture in a file whose times are all sound."""
        return round(float(raw * self._unit - (self._start or 0)), 6)

    def raw(self, seconds: float) -> int:
        """The last time in units of the stream, as the container has it, that is not after `seconds`."""
        # Times in seconds are rounded to microseconds.
        return math.floor((Fraction(seconds) + Fraction(1, 2_000_000) + (self._start or 0)) / self._unit)

    def _own(self, pts: int | None, dts: int | None, *, trusted: bool) -> int | None:
        if self._counts_only:
            return None
        if self._in_decoding_order:
            if dts is not None and not self._decoder.has_b_frames:
                # A damaged packet may give no picture, and its time then belongs to none.
                self._waiting.clear()
                return dts
            return heapq.heappop(self._waiting) if self._waiting else None
        return self._guess.best(pts, dts) if trusted or pts is None else pts

    def _from_start(self, raw: Fraction) -> Fraction:
        if self._start is None:
            self._start = raw
        time = raw - self._start + self._shift
        if self._last is None:
            return time
        leap = float(time - self._last)
        if leap < -JOIN_SECONDS or (self._joins and leap > JOIN_SECONDS):
            self._shift += self._last + self._interval - time
            return self._last + self._interval
        return time if leap >= 0 else self._last + self._interval / 2


def _start(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Where the container's time begins; None where it does not say."""
    declared: int | None = container.start_time
    if declared is None:
        return None
    start = Fraction(declared, 1_000_000)
    if stream.start_time is not None and stream.time_base is not None:
        own = Fraction(stream.start_time * stream.time_base)
        # FFmpeg rounds the container's start to whole microseconds.
        if abs(own - start) <= Fraction(1, 1_000_000):
            return own
    return start


class _Guess:
    """FFmpeg's choice between a picture's own time and its time of decoding: whichever has gone back less often."""

    def __init__(self) -> None:
        self._last_pts: int | None = None
        self._last_dts: int | None = None
        self._faulty_pts = self._faulty_dts = 0

    def best(self, pts: int | None, dts: int | None) -> int | None:
        if dts is not None:
            self._faulty_dts += self._last_dts is not None and dts <= self._last_dts
            self._last_dts = dts
        elif pts is not None:
            self._last_dts = pts
        if pts is not None:
            self._faulty_pts += self._last_pts is not None and pts <= self._last_pts
            self._last_pts = pts
        elif dts is not None:
            self._last_pts = dts
        if pts is not None and (dts is None or self._faulty_pts <= self._faulty_dts):
            return pts
        return dts

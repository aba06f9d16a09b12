"""Deinterlacing: pictures that are flagged as interlaced become whole ones, with their number and times kept."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING, Literal

import av
import av.filter

from trio_runner.errors import RunnerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_runner.video.decoder.footage import Picture

SMALLEST = 16
"""FFmpeg's deinterlacer refuses planes of less than 3 columns or 4 lines; those of chroma may be a quarter as large."""

ANY_TIME_BASE = Fraction(1, 1000)


class Deinterlacer:
    """Passes pictures through FFmpeg's bwdif from the first one on that is flagged as interlaced.

    One picture comes out for each one that goes in, in the same order and with the same time. The filter looks at the
    picture before and the one after. So from the first interlaced picture on, each comes out when the next has gone in.
    Pictures that are not flagged come out as they went in.

    Args:
        mode: "off" leaves every picture as it is.
        threads: How many threads the filter may use.
    """

    def __init__(self, mode: Literal["auto", "off"] = "auto", threads: int = 1) -> None:
        self._off, self._threads = mode == "off", threads
        self._graph: av.filter.Graph | None = None
        self._shape: tuple[int, int, str] | None = None
        self._previous: av.VideoFrame | None = None
        self._inside: deque[tuple[int | None, Fraction | None]] = deque()
        self._came_out_before = 0

    def feed(self, frame: av.VideoFrame) -> list[av.VideoFrame]:
        """The pictures that are ready after `frame` has gone in, none or more."""
        if self._off:
            return [frame]
        shape = (frame.width, frame.height, frame.format.name)
        # The filter keeps the size and format that it began with.
        ready = [] if shape == self._shape else self.flush()
        self._shape = shape
        if self._graph is None:
            if not frame.interlaced_frame or min(frame.width, frame.height) < SMALLEST:
                self._previous = frame
                return [*ready, frame]
            self._graph = self._build(frame)
            if self._previous is not None:
                # The filter needs the picture before this one, and returns it, although it has come out already.
                self._push(self._graph, self._previous)
                self._came_out_before, self._previous = 1, None
        self._push(self._graph, frame)
        return ready + self._pull(self._graph)

    def flush(self) -> list[av.VideoFrame]:
        """The pictures that are still inside: call it after the last picture and before a seek."""
        ready = []
        if self._graph is not None:
            self._graph.vpush(None)
            ready = self._pull(self._graph)
        self._graph = self._previous = self._shape = None
        return ready

    def _build(self, frame: av.VideoFrame) -> av.filter.Graph:
        graph = av.filter.Graph()
        graph.threads = self._threads
        source = graph.add_buffer(
            width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base or ANY_TIME_BASE
        )
        bwdif = graph.add("bwdif", mode="send_frame", parity="auto", deint="interlaced")
        graph.link_nodes(source, bwdif, graph.add("buffersink"))
        graph.configure()
        return graph

    def _push(self, graph: av.filter.Graph, frame: av.VideoFrame) -> None:
        self._inside.append((frame.pts, frame.time_base))
        graph.vpush(frame)

    def _pull(self, graph: av.filter.Graph) -> list[av.VideoFrame]:
        ready = []
        while self._inside:
            try:
                frame = graph.vpull()
            except (av.error.BlockingIOError, av.error.EOFError):
                break
            pts, time_base = self._inside.popleft()
            if self._came_out_before:
                self._came_out_before = 0
                continue
            # The filter counts time in halves, because it may also make two pictures of one.
            frame.pts = pts
            if time_base is not None:
                frame.time_base = time_base
            ready.append(frame)
        return ready


def deinterlaced(pictures: Iterator[Picture], deinterlacer: Deinterlacer) -> Iterator[Picture]:
    """The same pictures after deinterlacing, which may give a picture only when it has seen the next one."""
    inside: deque[Picture] = deque()
    broken: RunnerError | None = None
    try:
        for picture in pictures:
            inside.append(picture)
            for frame in deinterlacer.feed(picture.frame):
                yield replace(inside.popleft(), frame=frame)
    except RunnerError as error:
        broken = error
    # A video that breaks off gives what was read before.
    for frame in deinterlacer.flush():
        yield replace(inside.popleft(), frame=frame)
    if broken is not None:
        raise broken

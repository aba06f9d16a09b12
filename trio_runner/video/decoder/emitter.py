"""Turns pictures into records of JPEGs or tensors and writes them to the daemon in order."""

from __future__ import annotations

import os
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import cv2

from trio_runner.video import messages
from trio_runner.video.decoder.tensors import Tensors

if TYPE_CHECKING:
    from trio_runner.config.sections import VideoSection
    from trio_runner.config.tensor import TensorSection

SIGN_OF_LIFE_SECONDS: Final = 0.5


def write(fd: int, record: messages.Record, body: Any = b"") -> None:
    """Write one whole record; raises BrokenPipeError when nobody reads any more."""
    parts = [memoryview(messages.pack(record, body)), memoryview(body)]
    while parts:
        written = os.writev(fd, parts)
        while parts and written >= len(parts[0]):
            written -= len(parts.pop(0))
        if parts:
            parts[0] = parts[0][written:]


class Emitter:
    """Turns pictures into JPEGs, or into tensors if `tensor` is given, and writes them in order.

    With one encoder thread the decoding thread encodes. That takes less processor time than passing the picture to
    another thread (4.4 against 4.6 ms for a frame of 1280 × 960), and the memory of one picture is free before the next
    one is converted.
    """

    def __init__(self, out: int, options: VideoSection, tensor: TensorSection | None = None) -> None:
        self._out, self._options = out, options
        self._tensors = Tensors(tensor) if tensor else None
        self._threads = options.encoder_threads
        self._pool = ThreadPoolExecutor(self._threads) if self._threads > 1 else None
        self._pending: deque[tuple[messages.FrameHeader, Future[Any]]] = deque()
        self._sequence = 0
        self._written_at = time.monotonic()

    def emit(self, index: int, pts_seconds: float, image: Any) -> None:
        """Encode one picture, and write the frames that are ready, in order."""
        height, width = image.shape[:2]
        if self._tensors:
            sent_width, sent_height = self._tensors.size
            inset = self._tensors.inset(width, height)
        else:
            sent_width = min(width, self._options.max_width or width)
            sent_height, inset = max(1, round(height * sent_width / width)), None
        header = messages.FrameHeader(
            sequence=self._sequence,
            index=index,
            pts_seconds=pts_seconds,
            width=width,
            height=height,
            sent_width=sent_width,
            sent_height=sent_height,
            inset=inset,
        )
        self._sequence += 1
        if self._pool is None:
            self._write(header, self._encode(image, sent_width, sent_height))
            return
        self._pending.append((header, self._pool.submit(self._encode, image, sent_width, sent_height)))
        if len(self._pending) > self._threads:
            self._write_oldest()

    def pass_over(self, decoded: int) -> None:
        """Write a sign of life if nothing was written for a while."""
        if time.monotonic() - self._written_at > SIGN_OF_LIFE_SECONDS:
            self._write(messages.Passed(decoded))

    def before_first(self, decoded: int) -> None:
        """Write a sign of life before the first picture is converted, which may take longer than all later ones."""
        if self._sequence == 0:
            self._write(messages.Passed(decoded))

    def finish(self) -> None:
        """Write the frames that are still being encoded."""
        while self._pending:
            self._write_oldest()

    def _write_oldest(self) -> None:
        header, jpeg = self._pending.popleft()
        self._write(header, jpeg.result())

    def _write(self, record: messages.Record, body: Any = b"") -> None:
        write(self._out, record, body)
        self._written_at = time.monotonic()

    def _encode(self, image: Any, width: int, height: int) -> Any:
        if self._tensors:
            return self._tensors.of(image)
        if image.shape[1] != width:
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
        _, jpeg = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, self._options.jpeg_quality))
        return jpeg

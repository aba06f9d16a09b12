"""The pictures of one video file in order: their times, their damage, and the judgement whether the end was reached."""

from __future__ import annotations

import re
from collections import deque
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import av
import av.logging

from trio_runner.base.text import counted
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.video.decoder.container import check_readable, inspect
from trio_runner.video.decoder.damage import Damage, remedy, reported_by
from trio_runner.video.decoder.formats import limits
from trio_runner.video.decoder.streams import check_size, codec_name
from trio_runner.video.decoder.timing import Clock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from trio_runner.config.sections import VideoSection
    from trio_runner.model import VideoInfo

_CUT: Final = re.compile(r"ended prematurely|partial file")
"""A live recording declares no length. Only the demuxer's message shows that it was cut in the middle of an element."""

MAX_HELD: Final = 32
"""So many pictures wait at most for others to which they may refer; no codec reorders by more than 16."""


@dataclass(frozen=True, slots=True)
class Picture:
    """One presented picture: its number from 0, its time from the video's start, and whether it is undamaged."""

    index: int
    pts_seconds: float
    whole: bool
    frame: VideoFrame


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where decoding begins: at the first of `packets`, which are the rest of the file."""

    packets: Iterator[Packet[Any]]
    floor: int | None = None
    """The time of the key frame that is the first packet, in units of the stream.

    Pictures that are presented before it refer to packets that are not decoded. None at the start of the file.
    """
    index: int = 0
    """The number of the first picture."""
    number: Callable[[VideoFrame], tuple[int, float] | None] | None = None
    """Gives number and time of a picture, None where it is not wanted; without it pictures are counted and timed."""


class Footage:
    """The presented pictures of one stream.

    `decoded` counts the pictures, `damaged` those among them that are not whole, `lost` the packets that gave none
    because the decoder refused them, and `hidden` those whose pictures an edit list hides.
    """

    def __init__(
        self,
        container: InputContainer,
        stream: VideoStream,
        options: VideoSection,
        info: VideoInfo,
        fd: int,
        on_packet: Callable[[int], None] = lambda _: None,
        is_stored: Callable[[], bool] = lambda: False,
    ) -> None:
        """Read `stream`; `is_stored` says, once the video proves damaged, whether frames of it are stored."""
        self.decoded = self.damaged = self.lost = self.hidden = 0
        self.container, self.stream = container, stream
        self._options, self._info, self._fd = options, info, fd
        self._on_packet, self._is_stored = on_packet, is_stored
        self.codec = codec_name(stream)
        self._decoder = _decoder(stream, options)
        self.clock, self._damage = Clock(container, stream), Damage()
        self._extent, self._written_to = inspect(fd), False
        self._log: list[tuple[int, str, str]] = []
        self._packets = self._number = 0
        self._floor: int | None = None
        # The damage of packets up to this number is that of pictures which are not presented.
        self._excused = -1
        # The times of the packets that were sent and whose pictures have not come out, by number.
        self._under_way: dict[int, int | None] = {}
        self.complaint = self._cut = ""
        self._pts = 0.0

    def pictures(self, beginning: Beginning | None = None) -> Iterator[Picture]:
        """Each picture in the order of presentation, from the start of the file or from `beginning` on.

        Raises:
            RunnerError: The video is damaged (unless `on_corrupt` is "skip"), breaks off, or has no picture.
            OSError: The file cannot be read.
            MemoryError: A picture does not fit into the memory limit.
        """
        beginning = beginning or Beginning(self.demuxed())
        self.decoded, self._floor = beginning.index, beginning.floor
        av.logging.set_level(av.logging.WARNING)
        av.logging.set_skip_repeated(False)
        with av.logging.Capture(local=False) as self._log, self._quiet_at_the_end():
            for frame, number in self._settled(beginning.packets):
                whole = self._damage.is_whole(number, key_frame=frame.key_frame)
                if self._options.on_corrupt == "fail" and (not whole or self._damage.is_past(number, frame.pts)):
                    raise self._damaged()
                check_size(frame.width, frame.height, self._options)
                if beginning.number is None:
                    index, self._pts = self.decoded, self.clock.time(frame.pts, frame.dts, trusted=whole)
                elif numbered := beginning.number(frame):
                    index, self._pts = numbered
                else:
                    continue
                self.decoded = max(self.decoded, index + 1)
                self.damaged += not whole
                yield Picture(index, self._pts, whole, frame)
        self._judge_end()

    @contextmanager
    def _quiet_at_the_end(self) -> Iterator[None]:
        """Let the decoder's threads finish before the decoder can be freed.

        PyAV frees a decoder while it holds the GIL, and FFmpeg then waits for the decoder's threads. A thread that logs
        a message takes the GIL. Each would wait for the other for ever. A flush waits for the threads without the GIL.
        """
        try:
            yield
        finally:
            self._decoder.flush_buffers()

    def _settled(self, packets: Iterator[Packet[Any]]) -> Iterator[tuple[VideoFrame, int]]:
        """The pictures in the order of presentation, each once the damage of all to which it may refer is known.

        A picture may refer to one that is presented after it. So it is held back while a packet that was decoded before
        it may still give a picture that is presented later.
        """
        held: deque[tuple[VideoFrame, int]] = deque()
        for frame in self._frames(packets):
            number = frame.opaque[0] if isinstance(frame.opaque, tuple) else self._number - 1
            if self._floor is not None and frame.pts is not None:
                if frame.pts < self._floor:
                    continue
                self._floor = None
            if frame.is_corrupt:
                self._note(number, "FFmpeg reports a damaged picture", frame.pts)
            self._forget(number, frame.pts)
            held.append((frame, number))
            while held and (len(held) > MAX_HELD or not self._waits(held[0][1])):
                yield held.popleft()
        yield from held

    def _waits(self, number: int) -> bool:
        return any(earlier < number for earlier in self._under_way)

    def _forget(self, number: int, pts: int | None) -> None:
        """Packets whose pictures should have come out before this one have given none."""
        self._under_way.pop(number, None)
        gone = [
            other
            for other, time in self._under_way.items()
            if other < number and (time is None or pts is None or time <= pts)
        ]
        for other in gone:
            del self._under_way[other]

    def _frames(self, packets: Iterator[Packet[Any]]) -> Iterator[VideoFrame]:
        """The pictures as the decoder gives them."""
        for packet in packets:
            number, self._number = self._number, self._number + 1
            if self._floor is not None and packet.pts is not None and packet.pts < self._floor:
                # With several threads an error is raised for a later packet.
                self._excused = number + self._options.decoder_threads - 1
            if packet.is_corrupt:
                self._note(number, "a part of the video's data is missing", packet.pts)
            # PyAV finds an opaque object by its id, and forgets it when any decoder is done with it. Small numbers are
            # one object for all decoders, a tuple is not.
            packet.opaque = (number,)
            if not packet.is_discard:
                self._under_way[number] = packet.pts
                self.clock.sent(packet)
            self.hidden += packet.is_discard
            yield from self._decode(packet, number)
        # In a video that breaks off, a picture that still waits in the decoder may have lost those that come before it.
        if not (self._breaks_off() and self._decoder.reorder_depth):
            yield from self._decode(None, self._number - 1)

    def _decode(self, packet: Packet[Any] | None, number: int) -> list[VideoFrame]:
        frames: list[VideoFrame] = []
        try:
            frames = self._decoder.decode(packet)
        except av.error.MemoryError:
            raise
        except av.error.FFmpegError as error:
            message = self._log[0] if self._log else (0, self.codec, error.strerror or str(error))
            self._note(number, f"FFmpeg: {message[1]}: {message[2].strip()}", None if packet is None else packet.pts)
            self.lost += number > self._excused
            self._under_way.pop(number, None)
            if packet is not None:
                self.clock.lost(packet)
        else:
            if complaint := reported_by(self.codec, self._log):
                self._note(number, complaint, None if packet is None else packet.pts)
        self._log.clear()
        return frames

    def _note(self, number: int, complaint: str, pts: int | None) -> None:
        if number <= self._excused:
            return
        self._damage.note(number, pts)
        self.complaint = self.complaint or complaint

    def demuxed(self) -> Iterator[Packet[Any]]:
        """The packets of the stream that hold data, from here to the end or to where the file cannot be read on."""
        packets = self.container.demux(self.stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.MemoryError:
                raise
            except av.error.FFmpegError as error:
                check_readable(self._fd)
                self._cut = f"FFmpeg: {error.strerror or error}"
                return
            for _, name, text in self._log:
                if _CUT.search(text):
                    self._cut = f"FFmpeg: {name}: {text.strip()}"
            self._log.clear()
            if packet is None:
                return
            self._on_packet(self.decoded)
            # The last packet that PyAV gives has neither data nor a time. An empty one with a time stands in AVI for a
            # picture that is shown for longer. A decoder would take either for the end.
            self._packets += packet.size > 0 or packet.dts is not None
            if packet.size:
                yield packet

    def _judge_end(self) -> None:
        """Raise RunnerError if the demuxer's end is not that of the video."""
        if self.decoded == 0:
            declared = self._info.declared_frames or "none"
            why = f"; {self.complaint}" if self.complaint else ""
            message = f"{self._options.path}: no frame could be decoded, {declared} declared{why}. Give another file"
            raise RunnerError(ErrorCode.VIDEO_NO_FRAMES, message)
        if self._breaks_off():
            raise self._broken_off()
        if self.lost and self._options.on_corrupt == "fail":
            raise self._damaged()

    def _breaks_off(self) -> bool:
        """Whether the file ends before the video does, as far as its container counts packets or bytes."""
        if 0 < self.stream.frames <= self._packets:
            return False
        # The file may have been cut short since it was opened, or written to its end only now.
        now = inspect(self._fd)
        self._written_to |= now != self._extent
        self._extent = now
        return bool(now.shortfall or self._cut or self._written_to)

    def _damaged(self) -> RunnerError:
        """The error of a picture, or a packet, that cannot be passed over."""
        last = f", the last whole one at {self._place()}" if self.decoded else ""
        why = f"; {self.complaint}" if self.complaint else ""
        message = f"is damaged after {self._count()}{last}{why}. {remedy(is_stored=self._is_stored())}"
        return RunnerError(ErrorCode.VIDEO_TRUNCATED, f"{self._options.path}: {message}")

    def _broken_off(self) -> RunnerError:
        """The error of a file that ends, or cannot be read on, before the video ends."""
        # The length explains everything else that is reported where the file ends.
        reasons = [self._extent.shortfall] if self._extent.shortfall else [self.complaint, self._cut]
        reasons.append("the file was written to while it was read" if self._written_to else "")
        why = "; ".join(filter(None, reasons))
        then = ", and submit the copy as another scenario" if self._is_stored() else ""
        message = f"ends after {self._count()}, at {self._place()}: {why}. Copy it again{then}"
        return RunnerError(ErrorCode.VIDEO_TRUNCATED, f"{self._options.path}: {message}")

    def _count(self) -> str:
        """The number of pictures so far, and of how many."""
        declared = self._info.declared_frames
        return f"{self.decoded} of {counted(declared, 'frame')}" if declared else counted(self.decoded, "frame")

    def _place(self) -> str:
        """The time of the last picture, and the video's duration."""
        seconds = self._info.duration_seconds
        return f"{self._pts:.3f} s of {seconds:.3f} s" if seconds else f"{self._pts:.3f} s"


def _decoder(stream: VideoStream, options: VideoSection) -> Any:
    """The stream's decoder, within the limits."""
    decoder = stream.codec_context
    decoder.options = limits(options)
    decoder.thread_count = options.decoder_threads
    # Threads that each decode another picture report damage later than one would, and not always equally late. So they
    # share one picture where damage is passed over: each attempt must pass over the same frames.
    frames = options.decoder_threads > 1 and options.on_corrupt == "fail"
    decoder.thread_type = "FRAME" if frames else "SLICE"
    # Each picture brings the number of its packet.
    decoder.copy_opaque = True
    return decoder

"""Reads a video to its end and describes what a reader finds: rates, sizes, key frames, damage, the frames selected."""

from __future__ import annotations

import os
from collections import deque
from contextlib import suppress
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import msgspec
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, Colorspace, ColorTrc

from trio_runner.base.text import counted, printable
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.video import messages
from trio_runner.video.decoder.damage import remedy
from trio_runner.video.decoder.interlace import Deinterlacer, deinterlaced
from trio_runner.video.decoder.observer import Observer, Seen
from trio_runner.video.decoder.picture import Converter, Orientation, UnsupportedPictureError
from trio_runner.video.decoder.sheet import Sheet, encode
from trio_runner.video.decoder.streams import check_size
from trio_runner.video.report import MAX_LISTED, Declared, Measured, Picture, Report, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from enum import IntEnum

    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from trio_runner.config.sections import VideoSection
    from trio_runner.model import VideoInfo
    from trio_runner.video.decoder.footage import Footage
    from trio_runner.video.decoder.footage import Picture as FootagePicture
    from trio_runner.video.decoder.images import ImageSequence
    from trio_runner.video.decoder.sampling import Sampler

UNSPECIFIED: Final = 2
"""In H.273, of a matrix, a transfer characteristic and primaries."""

TURNS: Final = MappingProxyType(
    {
        Orientation(): 0,
        Orientation(transposed=True, mirrored=True): 90,
        Orientation(mirrored=True, upside_down=True): 180,
        Orientation(transposed=True, upside_down=True): 270,
    }
)
"""Degrees, clockwise, of the orientations that are no mirror images."""

MAX_LANGUAGE: Final = 40
"""Characters of the name of a stream's language, which may be any text."""


class Inspection:
    """Reads one video as `Inspect` asks, and describes it."""

    def __init__(self, options: VideoSection, info: VideoInfo, sampler: Sampler, command: messages.Inspect) -> None:
        self._options, self._info, self._command = options, info, command
        self._observer = Observer(sampler, key_frames_only=options.key_frames_only)
        self._wanted = frozenset(command.frames)
        self._last = max(command.frames, default=0)
        self._sheet = Sheet(len(command.frames)) if command.frames else None
        self._picture: Picture | None = None
        self._whole = False

    def of_file(
        self, footage: Footage, container: InputContainer, stream: VideoStream, fd: int
    ) -> tuple[messages.Inspected, bytes]:
        """Read a video file. `footage` must pass over damage, so that all of it is found."""
        problem = self._read(self._frames(footage, stream))
        measured = self._observer.measured(footage.lost)
        report = self._report(problem, measured)
        described = msgspec.structs.replace(
            report,
            container=f"{container.format.long_name} ({container.format.name})",
            size_bytes=os.fstat(fd).st_size,
            streams=_streams(container, stream.index),
            profile=str(stream.codec_context.profile or ""),
            edit_list_packets=footage.hidden,
        )
        return messages.Inspected(described), self._drawn()

    def of_images(self, sequence: ImageSequence, on_decoded: Callable[[int], None]) -> tuple[messages.Inspected, bytes]:
        """Read a directory or archive of images, and call `on_decoded` with the number of those that were read."""
        sequence.on_corrupt = "skip"
        problem = self._read(self._stills(sequence, on_decoded))
        report = self._report(problem, self._observer.measured(0), sequence.complaint)
        described = msgspec.structs.replace(
            report,
            container=f"{sequence.store.kind} of images",
            codec=", ".join(sorted(sequence.formats)) or report.codec,
            size_bytes=sum(member.size for member in sequence.store.members),
            other_files=sequence.store.others,
        )
        return messages.Inspected(described), self._drawn()

    def _frames(self, footage: Footage, stream: VideoStream) -> Iterator[Seen]:
        converter = Converter(stream, square_pixels=self._options.square_pixels)
        # Deinterlacing gives a picture later, and without the mark that it was interlaced.
        marks: deque[tuple[bool, bool]] = deque()

        def as_stored() -> Iterator[FootagePicture]:
            for picture in footage.pictures():
                frame = picture.frame
                if self._picture is None:
                    self._picture = _first_picture(frame, stream, converter)
                marks.append((frame.key_frame, frame.interlaced_frame))
                yield picture

        for picture in deinterlaced(as_stored(), Deinterlacer(self._options.deinterlace)):
            key_frame, interlaced = marks.popleft()
            size = converter.size(picture.frame)
            check_size(*size, self._options)
            yield Seen(
                index=picture.index,
                seconds=picture.pts_seconds,
                whole=picture.whole,
                size=size,
                key_frame=key_frame,
                interlaced=interlaced,
                image=partial(converter.convert, picture.frame),
            )

    def _stills(self, sequence: ImageSequence, on_decoded: Callable[[int], None]) -> Iterator[Seen]:
        for still in sequence.pictures():
            image = still.image
            on_decoded(sequence.decoded)
            yield Seen(
                index=still.index,
                seconds=still.pts_seconds,
                whole=still.whole,
                size=None if image is None else (image.shape[1], image.shape[0]),
                key_frame=True,
                interlaced=False,
                image=partial(getattr, still, "image"),
            )

    def _read(self, frames: Iterable[Seen]) -> str:
        """Read up to the end, or as far as is wanted; returns the error with which a run would have ended before."""
        try:
            for frame in frames:
                self._observer.see(frame)
                if self._sheet and frame.index in self._wanted:
                    self._sheet.add(frame.index, frame.seconds, frame.image(), whole=frame.whole)
                if self._command.quick and frame.index >= self._last:
                    return ""
        except RunnerError as error:
            return str(error)
        except UnsupportedPictureError as error:
            return f"{ErrorCode.VIDEO_REFUSED}: {self._options.path}: {error}"
        self._whole = True
        return ""

    def _report(self, problem: str, measured: Measured, complaint: str = "") -> Report:
        info, options = self._info, self._options
        if not problem and (measured.damaged_frames or measured.lost_packets) and options.on_corrupt == "fail":
            problem = f"{ErrorCode.VIDEO_TRUNCATED}: {complaint or self._damage(measured)}"
        elif not problem and self._whole and not self._observer.selected:
            start = f"video.start_seconds = {options.start_seconds:g}"
            problem = f"{ErrorCode.VIDEO_NO_FRAMES}: {options.path}: no frame is as late as {start}. Lower it"
        return Report(
            path=printable(options.path),
            container="",
            size_bytes=0,
            identity=info.identity,
            streams=(),
            codec=info.codec,
            profile="",
            other_files=0,
            edit_list_packets=0,
            declared=Declared(frames=info.declared_frames, fps=info.fps, duration_seconds=info.duration_seconds),
            measured=measured,
            picture=self._picture,
            selected=self._observer.selected,
            whole=self._whole,
            problem=printable(problem),
        )

    def _damage(self, measured: Measured) -> str:
        what = remedy(is_stored=False)
        if not measured.damaged:
            return f"{self._options.path}: {counted(measured.lost_packets, 'packet')} cannot be decoded. {what}"
        first = measured.damaged[0]
        where = f"the first is frame {first.index}, at {first.seconds:.3f} s"
        found = counted(measured.damaged_frames, "damaged frame")
        return f"{self._options.path}: has {found}, {where}. {what}"

    def _drawn(self) -> bytes:
        if self._sheet is None or self._sheet.is_empty:
            return b""
        return encode(self._sheet.draw(), self._command.suffix)


def _streams(container: InputContainer, chosen: int) -> tuple[Stream, ...]:
    """All streams of the container; `chosen` is the number of the one whose pictures are read."""
    return tuple(
        Stream(
            index=stream.index,
            kind=stream.type,
            codec=_codec(stream),
            detail=_detail(stream),
            language=(stream.language or "")[:MAX_LANGUAGE],
            marks=", ".join(mark.name for mark in Disposition if mark in stream.disposition and mark.name),
            chosen=stream.index == chosen,
        )
        for stream in list(container.streams)[:MAX_LISTED]
    )


def _codec(stream: Any) -> str:
    context = stream.codec_context
    return "" if context is None else str(context.codec.canonical_name)


def _detail(stream: Any) -> str:
    context = stream.codec_context
    if context is not None and stream.type == "video":
        rate = f", {float(stream.average_rate):g} frames/s" if stream.average_rate else ""
        return f"{context.width} x {context.height}{rate}"
    if context is not None and stream.type == "audio":
        return f"{context.sample_rate} Hz, {context.layout.name}"
    return ""


def _turn(how: Orientation) -> tuple[int, bool]:
    """Degrees by which a player turns the picture clockwise, and whether it then exchanges left and right."""
    mirrored = how.transposed ^ how.mirrored ^ how.upside_down
    return TURNS[how._replace(mirrored=how.mirrored ^ mirrored)], mirrored


def _first_picture(frame: VideoFrame, stream: VideoStream, converter: Converter) -> Picture:
    aspect, (rotation, mirrored) = stream.sample_aspect_ratio, _turn(converter.orientation(frame))
    return Picture(
        pixel_format=frame.format.name,
        width=frame.width,
        height=frame.height,
        rotation=rotation,
        mirrored=mirrored,
        pixel_aspect=f"{aspect.numerator}:{aspect.denominator}" if aspect else "",
        matrix=_name(Colorspace, frame.colorspace),
        range={1: "limited", 2: "full"}.get(frame.color_range, ""),
        transfer=_name(ColorTrc, frame.color_trc),
        primaries=_name(ColorPrimaries, frame.color_primaries),
    )


def _name(kind: type[IntEnum], value: int) -> str:
    """The standard's name for a number in a picture, "" where the file does not say."""
    if value == UNSPECIFIED:
        return ""
    with suppress(ValueError):
        return kind(value).name.lower()
    return str(value)

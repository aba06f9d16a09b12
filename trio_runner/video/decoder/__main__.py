"""The decoder child: a video in, selected frames as records out; PyAV and OpenCV and nothing else.

    python -m trio_runner.video.decoder OPTIONS [TENSOR]

OPTIONS is the `[video]` section as JSON; with TENSOR, a `TensorSection`, the frames are tensors in place of JPEGs. The
child writes records (module `messages`) to standard output: `Passed` as soon as it has started, then `Opened` or
`Fault`. After a `Start` line on standard input it writes the frames, and then `End` or `Fault`; after an `Inspect`
line, `Inspected` or `Fault`. Any other error is a traceback on standard error and exit code 1.
"""

from __future__ import annotations

import json
import os
import resource
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import msgspec

from trio_runner.base.leash import tie_to_parent
from trio_runner.base.text import counted
from trio_runner.config.sections import VideoSection
from trio_runner.config.tensor import TensorSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import End
from trio_runner.video import messages
from trio_runner.video.decoder.damage import PassedOver
from trio_runner.video.decoder.emitter import Emitter, write
from trio_runner.video.decoder.footage import Footage
from trio_runner.video.decoder.formats import conversion, open_container
from trio_runner.video.decoder.identity import identify
from trio_runner.video.decoder.images import ImageSequence
from trio_runner.video.decoder.interlace import Deinterlacer, deinterlaced
from trio_runner.video.decoder.opening import open_video
from trio_runner.video.decoder.picture import Converter, UnsupportedPictureError
from trio_runner.video.decoder.reading import Reading
from trio_runner.video.decoder.sampling import Sampler
from trio_runner.video.decoder.stores import open_store
from trio_runner.video.decoder.streams import check_size, choose_stream, describe, look

if TYPE_CHECKING:
    from collections.abc import Callable

    from trio_runner.model import VideoInfo
    from trio_runner.video.decoder.inspection import Inspection

STDERR_LIMIT_BYTES = 2**20


def main(arguments: list[str]) -> int:
    """Run the child; returns its exit code."""
    tie_to_parent()
    # From here on standard output is standard error, so that no text which a library prints gets between the records.
    out = os.dup(1)
    os.dup2(2, 1)
    # Python's own JSON, because a path that is not UTF-8 has lone surrogates, and msgspec refuses those.
    options = msgspec.convert(json.loads(arguments[0]), VideoSection)
    tensor = msgspec.json.decode(arguments[1], type=TensorSection) if arguments[1:] else None
    limit_resources(options.limit_memory_mib)
    try:
        _report_faults(options, tensor, out)
    except BrokenPipeError:
        # The daemon wants no more frames, or is gone.
        return 0
    return 0


def _report_faults(options: VideoSection, tensor: TensorSection | None, out: int) -> None:
    try:
        _run(options, tensor, out)
    except RunnerError as error:
        code, message = error.code, error.message
    except BrokenPipeError:
        raise
    except OSError as error:
        code = ErrorCode.DECODER_FAILED
        message = f"{options.path}: cannot be read: {error.strerror}. Check the storage that it lies on"
    except (MemoryError, cv2.error) as error:
        if isinstance(error, cv2.error) and error.code != cv2.Error.STS_NO_MEM:
            raise
        # This is not always the video's fault: threads, fragmentation and leaks take memory, too. The next attempt may
        # succeed. If none ever does, `scenario.max_failures` ends the attempts.
        limit = f"video.limit_memory_mib = {options.limit_memory_mib}"
        message = f"{options.path}: decoding takes more memory than {limit}. Raise it, or scale the video down"
        code = ErrorCode.DECODER_FAILED
    else:
        return
    write(out, messages.Fault(code=code, message=message.encode(errors="backslashreplace").decode()))


def _run(options: VideoSection, tensor: TensorSection | None, out: int) -> None:
    write(out, messages.Passed(0))
    # OpenCV would start a thread for each core.
    cv2.setNumThreads(1)
    fd = open_video(options.path, options.root)
    emitter = Emitter(out, options, tensor)
    if (store := open_store(fd, options, lambda: emitter.pass_over(0))) is not None:
        _run_images(ImageSequence(store, options), options, emitter, out)
        return
    looks = look(fd, options)
    container = open_container(fd, options)
    stream = choose_stream(container, looks, options, fd)
    info = describe(container, stream, looks[stream.index], options, fd)
    identity = identify(fd, codec=info.codec, width=info.width, height=info.height)
    info = msgspec.structs.replace(info, identity=identity)
    write(out, messages.Opened(info))
    match _read_command():
        case messages.Start() as start:
            number = container.streams.video.index(stream)
            container.close()

            def open_footage() -> Footage:
                opened = open_container(fd, options)
                return Footage(
                    opened,
                    opened.streams.video[number],
                    options,
                    info,
                    fd,
                    on_packet=emitter.pass_over,
                    # An earlier attempt has stored what is selected, or this one will before the error ends it.
                    is_stored=lambda: reading.sampler.selected > 0,
                )

            reading = Reading(open_footage, options, start, partial(_note, out))
            write(out, decode(reading, options, emitter))
        case messages.Inspect() as command:
            tolerant = msgspec.structs.replace(options, on_corrupt="skip")
            footage = Footage(container, stream, tolerant, info, fd, on_packet=emitter.pass_over)
            write(out, *_inspection(options, info, command).of_file(footage, container, stream, fd))


def _run_images(sequence: ImageSequence, options: VideoSection, emitter: Emitter, out: int) -> None:
    info = sequence.describe()
    write(out, messages.Opened(info))
    match _read_command():
        case messages.Start() as start:
            write(out, emit_images(sequence, options, emitter, start, partial(_note, out)))
        case messages.Inspect() as command:
            write(out, *_inspection(options, info, command).of_images(sequence, emitter.pass_over))


def _note(out: int, text: str) -> None:
    write(out, messages.Note(text.encode(errors="backslashreplace").decode()))


def _read_command() -> messages.Command | None:
    """What the daemon asks for; None if it has closed the pipe."""
    line = sys.stdin.buffer.readline(4096)
    return msgspec.json.decode(line, type=messages.Command) if line else None


def _inspection(options: VideoSection, info: VideoInfo, command: messages.Inspect) -> Inspection:
    from trio_runner.video.decoder.inspection import Inspection  # noqa: PLC0415 - a run has no use for it

    return Inspection(options, info, Sampler.of(options), command)


def limit_resources(memory_mib: int) -> None:
    """Allow `memory_mib` more address space than the imports have taken, and bound the size of standard error."""
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    memory = pages * resource.getpagesize() + memory_mib * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_FSIZE, (STDERR_LIMIT_BYTES, STDERR_LIMIT_BYTES))


def emit_images(
    sequence: ImageSequence, options: VideoSection, emitter: Emitter, start: messages.Start, note: Callable[[str], None]
) -> End:
    """Emit the selected images from image `first_frame` on; no other image is read. `note` takes a line of the log."""
    sampler, passed_over = Sampler.of(options), PassedOver(note)
    if start.first_frame:
        last = start.first_frame - 1
        sampler.resume(last, sequence.seconds(last), start.frames_stored)
    sequence.is_stored = sampler.selected > 0
    try:
        for still in sequence.pictures(start.first_frame):
            if sampler.exhausted:
                break
            is_due = sampler.due(still.index, still.pts_seconds)
            if is_due:
                passed_over.see(still.index, whole=still.whole)
            if is_due and still.whole:
                sampler.take(still.index, still.pts_seconds)
                sequence.is_stored = True
                emitter.emit(still.index, still.pts_seconds, still.image)
            else:
                emitter.pass_over(still.index)
    finally:
        emitter.finish()
        passed_over.end()
    if sampler.selected == 0:
        raise sequence.nothing_selected()
    return End(decoded=sequence.decoded, selected=sampler.selected, skipped_corrupt=sequence.damaged)


def decode(reading: Reading, options: VideoSection, emitter: Emitter) -> End:
    """Emit the selected frames; raises RunnerError for a broken video."""
    sampler, stream = reading.sampler, None
    converter, passed_over = Converter(), PassedOver(reading.note)
    try:
        for picture in deinterlaced(reading.pictures(), Deinterlacer(options.deinterlace)):
            if picture.index >= reading.start.first_frame:
                passed_over.see(picture.index, whole=picture.whole)
            # A picture that is not selected is decoded where later ones refer to it, but it is not converted.
            if reading.selects(picture):
                if stream is not reading.footage.stream:
                    stream = reading.footage.stream
                    converter = Converter(stream, square_pixels=options.square_pixels)
                check_size(*converter.size(picture.frame), options)
                emitter.before_first(reading.footage.decoded)
                emitter.emit(picture.index, picture.pts_seconds, converter.convert(picture.frame))
            if sampler.exhausted:
                break
    except UnsupportedPictureError as error:
        message = f"{options.path}: {error}. Convert the video: {conversion(options, stream)}"
        raise RunnerError(ErrorCode.VIDEO_REFUSED, message) from error
    finally:
        emitter.finish()
        passed_over.end()
    footage = reading.footage
    if sampler.selected == 0:
        if footage.damaged:
            damaged = f"{footage.damaged} of {counted(footage.decoded, 'frame')}"
            why = f"no undamaged frame is selected, {damaged} {'is' if footage.damaged == 1 else 'are'} damaged"
            remedy = "Give a whole file"
        else:
            start = f"video.start_seconds = {options.start_seconds:g}"
            why = f"none of {counted(footage.decoded, 'frame')} is as late as {start}"
            remedy = "Lower it"
        raise RunnerError(ErrorCode.VIDEO_NO_FRAMES, f"{options.path}: {why}. {remedy}")
    skipped = footage.damaged + footage.lost
    return End(decoded=footage.decoded, selected=sampler.selected, skipped_corrupt=skipped)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Decides how a video is read: from where on, and how much of it is decoded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trio_runner.errors import RunnerError
from trio_runner.video.decoder.announced import CannotSeekError, check_seekable, packets_of, prove_start
from trio_runner.video.decoder.footage import Beginning
from trio_runner.video.decoder.needed import Needed
from trio_runner.video.decoder.sampling import Sampler
from trio_runner.video.decoder.skimming import resume, skip_to

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from trio_runner.config.sections import VideoSection
    from trio_runner.video.decoder.footage import Footage, Picture
    from trio_runner.video.messages import Start


@dataclass(slots=True)
class Reading:
    """One reading of a video for an attempt.

    Args:
        open_footage: Opens the file; called again for each further try.
        options: Which frames are wanted.
        start: What is stored already.
        note: Called with a sentence for the log where more is decoded than the wanted frames should need.
    """

    open_footage: Callable[[], Footage]
    options: VideoSection
    start: Start
    note: Callable[[str], None]
    sampler: Sampler = field(init=False)
    footage: Footage = field(init=False)
    """The file that the last picture came from."""
    _latest: int = -1
    """The last frame that was stored, or that `selects` has seen."""
    _everything: bool = False
    """Whether every frame is decoded, so that `key_frames_only` leaves out most pictures."""

    def __post_init__(self) -> None:
        self.sampler = self._sampler(self.options)
        if self.start.last_pts_seconds is not None:
            self._latest = self.start.first_frame - 1

    def _sampler(self, options: VideoSection) -> Sampler:
        sampler, start = Sampler.of(options), self.start
        if start.last_pts_seconds is not None:
            sampler.resume(start.first_frame - 1, start.last_pts_seconds, start.frames_stored)
        return sampler

    def pictures(self) -> Iterator[Picture]:
        """All pictures that `selects` may select, in order, with others between and before them; called once.

        At least the picture before each of them is there, because a deinterlacer looks at it. `key_frames_only` and
        sampling leave it out where the video is not interlaced.

        Raises:
            RunnerError: The video cannot be opened, is damaged (unless `on_corrupt` is "skip") or breaks off.
            OSError: The file cannot be read.
            MemoryError: A picture does not fit into the memory limit.
        """
        if self.sampler.exhausted:
            self.footage = self.open_footage()
            self.footage.decoded = self.start.first_frame
            return
        try:
            yield from self._sought()
        except CannotSeekError as error:
            self.note(f"every frame is decoded from the video's start on, because {error}")
            self.footage, self._everything = self.open_footage(), True
            yield from self.footage.pictures()

    def selects(self, picture: Picture) -> bool:
        """Whether this picture is wanted; called once for each picture, in order."""
        if picture.index <= self._latest or not picture.whole:
            return False
        self._latest = picture.index
        if self.options.key_frames_only and self._everything and not picture.frame.key_frame:
            return False
        return self.sampler.select(picture.index, picture.pts_seconds) and picture.index >= self.start.first_frame

    def _sought(self) -> Iterator[Picture]:
        options, start = self.options, self.start
        last = start.last_pts_seconds
        if start.first_frame and last is None:
            # The rows of the last stored frame were deleted.
            raise CannotSeekError("the time of the last stored frame is not known")
        thinned = options.stride > 1 or options.max_fps > 0
        if options.key_frames_only or (thinned and options.on_corrupt == "fail"):
            yield from self._needed()
        elif last is not None:
            self.footage, pictures = resume(self.open_footage, start.first_frame - 1, last)
            yield from pictures
        elif options.start_seconds > 0:
            self.footage, pictures = skip_to(self.open_footage, options.start_seconds)
            yield from pictures
        else:
            self.footage = self.open_footage()
            yield from self.footage.pictures()

    def _needed(self) -> Iterator[Picture]:
        footage = self.footage = self.open_footage()
        check_seekable(footage.container, footage.stream)
        first_time = prove_start(self.open_footage())
        # Whether a damaged key frame is passed over is known only once it is decoded. So all are decoded then.
        certain = self.options.on_corrupt == "fail"
        sampler = self._sampler(self.options) if certain else Sampler()
        needed = Needed(
            footage,
            sampler,
            first_time=first_time,
            first_frame=self.start.first_frame,
            last_seconds=self.start.last_pts_seconds,
            key_frames_only=self.options.key_frames_only,
            deinterlaces=self.options.deinterlace == "auto",
        )
        try:
            yield from footage.pictures(Beginning(needed.packets(packets_of(footage)), number=needed.number))
        except RunnerError as error:
            if footage.complaint:
                # Whether frames are missing because of damage or because they were left out shows if all are decoded.
                raise CannotSeekError("it seems damaged") from error
            raise
        needed.check_end()

"""A directory or zip archive of images as a video: image k is the frame k, presented at k / fps seconds."""

from __future__ import annotations

import hashlib
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import cv2

from trio_runner.base.text import counted
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.model import VideoInfo
from trio_runner.video.decoder.damage import remedy
from trio_runner.video.decoder.still import decode_still

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_runner.config.sections import VideoSection
    from trio_runner.video.decoder.stores import Store

SIGNATURES: Final = re.compile(
    rb"(?P<JPEG>\xff\xd8\xff)|(?P<PNG>\x89PNG\r\n\x1a\n)|(?P<WebP>RIFF.{4}WEBP)|(?P<BMP>BM)"
    rb"|(?P<TIFF>II\*\0|MM\0\*|II\+\0|MM\0\+)",
    re.DOTALL,
)
"""How JPEG, PNG, WebP, BMP, TIFF and BigTIFF begin. By itself OpenCV would decode many more formats."""


class Still:
    """One image of a sequence, read and decoded when it is first asked for."""

    def __init__(self, sequence: ImageSequence, index: int) -> None:
        self.index = index
        self.pts_seconds = sequence.seconds(index)
        self._sequence = sequence

    @property
    def whole(self) -> bool:
        """Whether it can be decoded; raises RunnerError where not, unless `on_corrupt` is "skip"."""
        return self.image is not None

    @cached_property
    def image(self) -> Any:
        """The picture as a BGR array as a viewer shows it, None where it is damaged."""
        return self._sequence.decode(self.index)


class ImageSequence:
    """The images of a directory or archive in natural order, and how many of them are damaged."""

    def __init__(self, store: Store, options: VideoSection) -> None:
        self.store, self.fps = store, options.fps
        self.decoded = self.damaged = 0
        self.on_corrupt = options.on_corrupt
        self.is_stored = False
        """Whether images are stored already, or will be before damage ends the attempt."""
        self.formats: set[str] = set()
        """The formats of the images that were read."""
        self.complaint = ""
        """About the first image that is damaged."""
        self._options = options
        # Damage is found in what OpenCV logs, so OPENCV_LOG_LEVEL must not silence it.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_ERROR)

    def describe(self) -> VideoInfo:
        """The properties of the sequence; raises RunnerError if its first image or its rate is beyond the limits.

        Images may differ in size. Width and height are those of the first one, or 0 if that is damaged.
        """
        if self.fps > self._options.limit_fps:
            message = f"{self._options.path}: video.fps = {self.fps:g} is over video.limit_fps. Correct one of them"
            raise RunnerError(ErrorCode.VIDEO_REFUSED, message)
        image, _ = self._read(0)
        height, width = (0, 0) if image is None else image.shape[:2]
        count = len(self.store.members)
        return VideoInfo(
            codec="images",
            width=width,
            height=height,
            fps=self.fps,
            declared_frames=count,
            duration_seconds=count / self.fps,
            identity=self._identify(),
        )

    def pictures(self, first_frame: int = 0) -> Iterator[Still]:
        """The images from this index on. None is decoded before its `whole` or `image` is asked for."""
        for index in range(first_frame, len(self.store.members)):
            self.decoded = index + 1
            yield Still(self, index)

    def seconds(self, index: int) -> float:
        """When the image with this index is presented."""
        return round(index / self.fps, 6)

    def nothing_selected(self) -> RunnerError:
        """The error of an attempt for which no image was selected."""
        count = len(self.store.members)
        if self.damaged:
            why = f"none of {counted(count, 'image')} can be decoded. Give other ones"
        else:
            start = f"video.start_seconds = {self._options.start_seconds:g}"
            why = f"none of {counted(count, 'image')} is as late as {start} at video.fps = {self.fps:g}. Lower it"
        return RunnerError(ErrorCode.VIDEO_NO_FRAMES, f"{self._options.path}: {why}")

    def decode(self, index: int) -> Any:
        """The image as a BGR array; if it is damaged None, or RunnerError where `on_corrupt` is "fail"."""
        image, problem = self._read(index)
        if image is None:
            self.damaged += 1
            members = self.store.members
            where = f"{self.store.shown(members[index].name)}: image {index + 1} of {len(members)} (frame {index})"
            message = f"{where} {problem}. {remedy(is_stored=self.is_stored)}"
            self.complaint = self.complaint or message
            if self.on_corrupt == "fail":
                raise RunnerError(ErrorCode.VIDEO_TRUNCATED, message)
        return image

    def _read(self, index: int) -> tuple[Any, str]:
        """The image as a BGR array, or None and what is wrong with it."""
        member = self.store.members[index]
        content = self.store.read(index)
        if not content:
            return None, "is empty or damaged"
        if len(content) != member.size:
            return None, "was written to while it was read"
        signature = SIGNATURES.match(content)
        if not signature:
            return None, "is no JPEG, PNG, WebP, BMP or TIFF"
        self.formats.add(str(signature.lastgroup))
        try:
            image, damage = decode_still(content)
        except cv2.error as error:
            if error.code == cv2.Error.STS_ASSERT and "CV_IO_MAX_IMAGE" in str(error):
                raise self._too_large(index) from error
            if error.code == cv2.Error.STS_NO_MEM:
                raise
            return None, "is damaged"
        if image is None:
            return None, "is damaged or cut short"
        height, width = image.shape[:2]
        if width > self._options.limit_width or height > self._options.limit_height:
            raise self._too_large(index)
        return (None, f"is damaged: {damage}") if damage else (image, "")

    def _too_large(self, index: int) -> RunnerError:
        options = self._options
        limits = f"is larger than {options.limit_width} x {options.limit_height}"
        advice = "Raise video.limit_width and video.limit_height, or scale it down"
        message = f"{self.store.shown(self.store.members[index].name)}: {limits}. {advice}"
        return RunnerError(ErrorCode.VIDEO_REFUSED, message)

    def _identify(self) -> str:
        """SHA-256 of the names, sizes and samples of the content, the same wherever directory or archive lies."""
        digest = hashlib.sha256()
        for member in self.store.members:
            digest.update(f"{member.size} {len(member.name)} {member.name}".encode(errors="surrogateescape"))
        for sample in self.store.fingerprint():
            digest.update(sample)
        return digest.hexdigest()

"""Pictures as a player shows them: a decoded frame becomes an array of blue, green and red bytes.

What is the same for every player is done as FFmpeg does it: the display matrix, colour matrix and range, and alpha,
which FFmpeg ignores (what lies under it is shown). A matrix that the file does not state is that of BT.601, in HD, too.
Pixels that are not square are made so by a change of the width, as in FFmpeg's `scale=iw*sar:ih` and in ffplay.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import av
import cv2
import numpy as np
from av.filter import Graph
from av.sidedata.sidedata import Type
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from trio_runner.video.decoder.tone import HLG, PQ, ToneMap

if TYPE_CHECKING:
    from collections.abc import Mapping
    from fractions import Fraction

    from av.video.stream import VideoStream
    from numpy.typing import NDArray

BT709, UNSPECIFIED = 1, 2
"""Colour spaces by the number that H.273 gives them."""

LIMITED = 1
"""FFmpeg's number for a range of 16 to 235."""

SIDE_DATA_KINDS = 64
"""No kind of side data of FFmpeg has a number as high as this."""


SMALL = 16
"""Width and height of the copy from which side data are read."""


class UnsupportedPictureError(Exception):
    """FFmpeg cannot convert pictures of a format; the message names it."""


class Orientation(NamedTuple):
    """How a decoded picture is turned before it is shown: rows and columns are exchanged first, then it is flipped."""

    transposed: bool = False
    mirrored: bool = False
    """Left and right are exchanged."""
    upside_down: bool = False
    """Top and bottom are exchanged."""


def orientation(matrix: bytes) -> Orientation:
    """The one of the eight orientations that is closest to a display matrix, as FFmpeg stores it in a frame.

    The matrix moves the pixel at (x, y) to (ax + cy, bx + dy). An angle that is no multiple of 90 degrees is rounded.
    """
    a, b, _, c, d = struct.unpack_from("=5i", matrix)
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(transposed=False, mirrored=a < 0, upside_down=d < 0)
    return Orientation(transposed=True, mirrored=c < 0, upside_down=b < 0)


class Converter:
    """Converts the pictures of one video; their size and format may change from one to the next.

    Args:
        stream: Where the pictures come from. It knows the shape of their pixels, which they do not say themselves.
        square_pixels: Whether a picture whose pixels are not square is scaled so that they are.
        threads: How many threads FFmpeg's scaler may use.
    """

    def __init__(self, stream: VideoStream | None = None, *, square_pixels: bool = True, threads: int = 1) -> None:
        self._codec = stream.codec_context if stream and square_pixels else None
        self._declared_aspect: Fraction | None = None
        if self._codec and stream and stream.sample_aspect_ratio != self._codec.sample_aspect_ratio:
            # The container's own ratio precedes the codec's, as in FFmpeg. The codec's may change in mid-stream.
            self._declared_aspect = stream.sample_aspect_ratio
        self._threads = threads
        # A scaler for each kind of conversion: with other parameters than the last time it is built again.
        self._scaler, self._to_ten_bits = VideoReformatter(), VideoReformatter()
        self._tone_map: ToneMap | None = None
        self._tone: tuple[int, int] | None = None
        self._seen: tuple[int, int, int, str] | None = None
        self._turn = Orientation()
        self._unsited: tuple[tuple[int, int, str, int, int], Graph] | None = None

    def size(self, frame: av.VideoFrame) -> tuple[int, int]:
        """Width and height of the array that `convert` would return, to be compared with limits before."""
        width, height = self._square(frame)
        return (height, width) if self.orientation(frame).transposed else (width, height)

    def convert(self, frame: av.VideoFrame) -> NDArray[np.uint8]:
        """The picture as an array of shape (height, width, 3) with the bytes blue, green, red.

        The array may have padding between its rows.

        Raises:
            UnsupportedPictureError: FFmpeg's scaler cannot convert pictures of this format.
            MemoryError: There is no room for the picture.
        """
        how = self.orientation(frame)
        width, height = self._square(frame)
        frame = self._for_display(frame) if frame.color_trc in (HLG, PQ) else self._without_siting(frame)
        image: Any = self._reformat(self._scaler, frame, format="bgr24", width=width, height=height).to_ndarray()
        if how.transposed:
            image = cv2.transpose(image)
        if how.mirrored or how.upside_down:
            # OpenCV's codes: 0 exchanges top and bottom, 1 left and right, -1 does both.
            image = cv2.flip(image, int(how.mirrored) if how.mirrored != how.upside_down else -1)
        return cast("NDArray[np.uint8]", image)

    def _square(self, frame: av.VideoFrame) -> tuple[int, int]:
        aspect = self._declared_aspect or (self._codec.sample_aspect_ratio if self._codec else None)
        if not aspect or aspect < 0:
            return frame.width, frame.height
        return max(1, round(frame.width * aspect)), frame.height

    def orientation(self, frame: av.VideoFrame) -> Orientation:
        """How the picture is turned before it is shown."""
        seen = (frame.rotation, frame.width, frame.height, frame.format.name)
        if self._seen != seen:
            self._seen, self._turn = seen, self._read_orientation(frame)
        return self._turn

    def _read_orientation(self, frame: av.VideoFrame) -> Orientation:
        # Reading its side data makes a frame refer to itself, so that it is not freed before the next collection of
        # garbage. They are read from a small copy instead, and only when something about the frame has changed.
        frame = self._reformat(VideoReformatter(), frame, width=SMALL, height=SMALL, format="gray")
        try:
            side_data = frame.side_data
        except ValueError:
            # PyAV refuses to list side data among which there is a kind that it does not know.
            side_data = _without_unknown(frame).side_data
        matrix = cast("Mapping[Type, Any]", side_data).get(Type.DISPLAYMATRIX)
        return Orientation() if matrix is None else orientation(bytes(matrix))

    def _without_siting(self, frame: av.VideoFrame) -> av.VideoFrame:
        """The picture without what it says on where its chroma samples lie, which FFmpeg's program does not use.

        FFmpeg's scaler would use it, so that edges of colours would lie elsewhere than in FFmpeg's own pictures.
        """
        if (frame.width, frame.height) == self._square(frame) and frame.format.name in ("yuv420p", "yuvj420p"):
            # The scaler has code for these that does not interpolate chroma.
            return frame
        shape = (frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        if self._unsited is None or self._unsited[0] != shape:
            self._unsited = shape, _filters(frame, ("setparams", "chroma_location=unspecified"))
        self._unsited[1].vpush(frame)
        return self._unsited[1].vpull()

    def _for_display(self, frame: av.VideoFrame) -> av.VideoFrame:
        """A picture for a BT.709 display, of 8 bits and 4:2:0, which is what becomes of it in a JPEG."""
        tone = frame.color_trc, frame.color_primaries
        if self._tone_map is None or self._tone != tone:
            self._tone_map, self._tone = ToneMap(*tone), tone
        # Video with these characteristics has the matrix of BT.2020, so none is computed. (The scaler, asked for
        # another matrix than the picture's, leaves the last column of an odd width uninitialised.)
        matrix = {"dst_colorspace": Colorspace.BT2020} if frame.format.is_rgb else {}
        ten_bits = self._reformat(
            self._to_ten_bits, frame, format="yuv420p10le", dst_color_range=ColorRange.MPEG, **matrix
        )
        y, u, v = planes(ten_bits, np.uint16)
        odd_rows, odd_columns = frame.height % 2, frame.width % 2
        if odd_rows or odd_columns:
            y = cast("Any", cv2.copyMakeBorder(y, 0, odd_rows, 0, odd_columns, cv2.BORDER_REPLICATE))
        shown = av.VideoFrame(frame.width, frame.height, "yuv420p")
        shown.colorspace, shown.color_range = BT709, LIMITED
        for plane, mapped in zip(planes(shown, np.uint8), self._tone_map.apply(y, u, v), strict=True):
            plane[:] = mapped[: plane.shape[0], : plane.shape[1]]
        return shown

    def _reformat(self, scaler: VideoReformatter, frame: av.VideoFrame, **to: Any) -> av.VideoFrame:
        to |= {"interpolation": Interpolation.BICUBIC, "threads": self._threads}
        try:
            return scaler.reformat(frame, **to)
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, MemoryError):
                raise
        # A colour matrix that the scaler does not know may be nonsense, and is taken as not stated.
        frame.colorspace = UNSPECIFIED
        try:
            return scaler.reformat(frame, **to)
        except (av.error.FFmpegError, ValueError) as error:
            if isinstance(error, MemoryError):
                raise
            message = f"pictures of {frame.width} x {frame.height} in {frame.format.name} cannot be converted"
            raise UnsupportedPictureError(message) from error


def _without_unknown(frame: av.VideoFrame) -> av.VideoFrame:
    """The same picture without the kinds of side data that PyAV has no name for."""
    known: set[Any] = {kind.value for kind in Type}
    unknown = [kind for kind in range(SIDE_DATA_KINDS) if kind not in known]
    graph = _filters(frame, *(("sidedata", f"mode=delete:type={kind}") for kind in unknown))
    graph.vpush(frame)
    return graph.vpull()


def _filters(frame: av.VideoFrame, *filters: tuple[str, str]) -> Graph:
    """FFmpeg's filters for pictures like `frame`."""
    graph = Graph()
    graph.threads = 1
    about = f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}:time_base=1/1000"
    # Without these two, FFmpeg logs that the picture differs from what was announced.
    about += f":colorspace={frame.colorspace}:range={frame.color_range}"
    nodes = [graph.add("buffer", about), *(graph.add(*each) for each in filters), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


def planes(frame: av.VideoFrame, dtype: type[np.uint8 | np.uint16]) -> list[NDArray[Any]]:
    """The planes of a planar picture, without a copy; they are valid as long as the picture is."""
    found = []
    for plane in frame.planes:
        rows: NDArray[Any] = np.frombuffer(cast("Any", plane), dtype).reshape(plane.height, -1)
        # A negative line size means that the last line comes first in memory.
        found.append((rows[::-1] if plane.line_size < 0 else rows)[:, : plane.width])
    return found

"""The form of a tensor that is made of a picture; the decoder child loads this module too."""

from __future__ import annotations

from typing import Annotated, Final, Literal

from msgspec import Meta

from trio_runner.config.kinds import Section

MAX_TENSOR_SIDE: Final = 8192
MAX_TENSOR_BYTES: Final = 64 * 2**20
"""The largest body of a record of the decoder child."""

Offset = Annotated[float, Meta(ge=-(10**6), le=10**6)]
Deviation = Annotated[float, Meta(gt=0, le=10**6)]


class TensorSection(Section, frozen=True, kw_only=True):
    """The form in which the decoder child makes a tensor of a picture; a JPEG is sent where `datatype` is BYTES."""

    datatype: Literal["BYTES", "UINT8", "FP32"] = "BYTES"
    width: Annotated[int, Meta(ge=0, le=MAX_TENSOR_SIDE)] = 0
    height: Annotated[int, Meta(ge=0, le=MAX_TENSOR_SIDE)] = 0
    layout: Literal["NHWC", "NCHW"] = "NCHW"
    fit: Literal["letterbox", "stretch"] = "letterbox"
    fill: Annotated[int, Meta(ge=0, le=255)] = 114
    order: Literal["RGB", "BGR"] = "RGB"
    divisor: Annotated[float, Meta(gt=0, le=10**6)] = 255.0
    mean: Annotated[tuple[Offset, Offset, Offset], Meta(description="three numbers, in the order of the channels")] = (
        0.0,
        0.0,
        0.0,
    )
    std: Annotated[
        tuple[Deviation, Deviation, Deviation], Meta(description="three numbers above 0, in the order of the channels")
    ] = (1.0, 1.0, 1.0)

    @property
    def size(self) -> int:
        """The bytes of one frame's tensor; 0 where a JPEG is sent."""
        return {"BYTES": 0, "UINT8": 3, "FP32": 12}[self.datatype] * self.width * self.height

"""Pictures as the input tensors of a model: fitted into its size, with its channels, its numbers and its layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeAlias

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from trio_runner.config.tensor import TensorSection

Inset: TypeAlias = tuple[int, int, int, int]


class Tensors:
    """Makes tensors of pictures, whose sizes may differ.

    Pixels are interpolated linearly, whether the picture becomes smaller or larger: Ultralytics, NanoDet and OpenCV's
    `blobFromImage` do so, and a detector finds most in pictures like those that it was trained with.
    """

    def __init__(self, form: TensorSection) -> None:
        self._form = form
        self.size = form.width, form.height
        """Width and height of every tensor."""
        std = np.array(form.std, np.float64)
        # (pixel / divisor - mean) / std, as one multiplication and one addition.
        self._factor = (1 / (form.divisor * std)).astype(np.float32)
        self._offset = (-np.array(form.mean, np.float64) / std).astype(np.float32)

    def inset(self, width: int, height: int) -> Inset | None:
        """Left, top, width and height of a picture of this size in its tensor; None where it fills the tensor."""
        across, down = self.size
        if self._form.fit == "stretch":
            return None
        scale = min(across / width, down / height)
        inner = min(across, max(1, round(width * scale))), min(down, max(1, round(height * scale)))
        if inner == self.size:
            return None
        return (across - inner[0]) // 2, (down - inner[1]) // 2, *inner

    def of(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The bytes of the tensor of a picture in BGR."""
        height, width = image.shape[:2]
        inset = self.inset(width, height)
        left, top, inner_width, inner_height = inset or (0, 0, *self.size)
        fitted = image
        if (inner_width, inner_height) != (width, height):
            fitted = np.asarray(
                cv2.resize(image, (inner_width, inner_height), interpolation=cv2.INTER_LINEAR), np.uint8
            )
        if inset:
            right, bottom = self.size[0] - left - inner_width, self.size[1] - top - inner_height
            fill = (self._form.fill,) * 3
            fitted = np.asarray(
                cv2.copyMakeBorder(fitted, top, bottom, left, right, cv2.BORDER_CONSTANT, value=fill), np.uint8
            )
        channels = fitted[:, :, ::-1] if self._form.order == "RGB" else fitted
        values: NDArray[Any] = channels
        if self._form.datatype == "FP32":
            values = channels * self._factor + self._offset
        if self._form.layout == "NCHW":
            values = values.transpose(2, 0, 1)
        return np.ascontiguousarray(values).reshape(-1).view(np.uint8)

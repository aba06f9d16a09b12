"""A Triton model of the Python backend: it reads the number in each picture, given as a JPEG or as a tensor.

The model `jpeg` takes one JPEG (BYTES, no batch); `tensor` takes a batch of UINT8 pictures, rows first, RGB.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
import triton_python_backend_utils as pb_utils

from tests.support.numbers import answer_for, read_frame_number


class TritonPythonModel:
    """The class that Triton looks for."""

    def execute(self, requests: list[Any]) -> list[Any]:
        """One response for each request."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        given = pb_utils.get_input_tensor_by_name(request, "image").as_numpy()
        if given.dtype == np.object_:
            pictures = [cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR) for jpeg in given.reshape(-1)]
        else:
            pictures = list(given)
        try:
            answers = [answer_for(read_frame_number(picture), *picture.shape[1::-1]) for picture in pictures]
        except ValueError as error:
            return pb_utils.InferenceResponse(error=pb_utils.TritonError(str(error)))
        boxes = np.array([answer["bbox"] for answer in answers], np.float32)
        scores = np.array([answer["confidence"] for answer in answers], np.float32)
        labels = np.array([answer["class"].encode() for answer in answers], np.object_)
        if given.dtype != np.object_:
            boxes, scores, labels = boxes[:, None], scores[:, None], labels[:, None]
        outputs = {"boxes": boxes, "scores": scores, "labels": labels}
        return pb_utils.InferenceResponse([pb_utils.Tensor(name, value) for name, value in outputs.items()])

"""A runtime for MLServer: it reads the number in a JPEG."""

from __future__ import annotations

import cv2
import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec, StringCodec
from mlserver.types import InferenceRequest, InferenceResponse

from tests.support.numbers import answer_for, read_frame_number


class Detector(MLModel):
    """The class that model-settings.json names."""

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """The answer for the first picture of the input `image`."""
        (jpeg, *_) = Base64Codec.decode_input(payload.inputs[0])
        picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
        answer = answer_for(read_frame_number(picture), *picture.shape[1::-1])
        return InferenceResponse(
            model_name=self.name,
            outputs=[
                NumpyCodec.encode_output("boxes", np.array([answer["bbox"]], np.float32)),
                NumpyCodec.encode_output("scores", np.array([answer["confidence"]], np.float32)),
                StringCodec.encode_output("labels", [answer["class"]]),
            ],
        )

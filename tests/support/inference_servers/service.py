"""A service as people write one with FastAPI: the same detector in the shapes of three APIs."""

from __future__ import annotations

from typing import Annotated, Any

import cv2
import numpy as np
from fastapi import FastAPI, File, Form, Request, UploadFile

from tests.support.numbers import answer_for, read_frame_number

app = FastAPI()


def detect(jpeg: bytes) -> tuple[dict[str, Any], int, int]:
    """The one detection in the picture, and its width and height."""
    picture = cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR)
    height, width = picture.shape[:2]
    return answer_for(read_frame_number(picture), width, height), width, height


@app.post("/predict")
async def predict(frame: Annotated[UploadFile, File()]) -> dict[str, Any]:
    """The protocol `predict`."""
    answer, _, _ = detect(await frame.read())
    return {"predictions": [answer]}


@app.post("/ultralytics/predict")
async def ultralytics(file: Annotated[UploadFile, File()], conf: Annotated[float, Form()] = 0.25) -> dict[str, Any]:
    """The shape of the Ultralytics Platform."""
    answer, width, height = detect(await file.read())
    corners = dict(zip(("x1", "y1", "x2", "y2"), answer["bbox"], strict=True))
    result = {"class": 0, "name": answer["class"], "confidence": answer["confidence"], "box": corners}
    return {"images": [{"shape": [height, width], "speed": {}, "results": [result]}], "metadata": {"conf": conf}}


@app.post("/huggingface")
async def huggingface(request: Request) -> list[dict[str, Any]]:
    """The shape of a Hugging Face endpoint for object detection: a raw JPEG in, a bare list out."""
    answer, _, _ = detect(await request.body())
    corners = dict(zip(("xmin", "ymin", "xmax", "ymax"), answer["bbox"], strict=True))
    return [{"label": answer["class"], "score": answer["confidence"], "box": corners}]

"""Tensors that the decoder child makes of pictures, against OpenCV's own."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from tests.support import clips
from tests.support.clips import read_frame_number
from tests.support.makers import make_frame
from trio_runner.config.inference import BoxKeys
from trio_runner.config.sections import VideoSection
from trio_runner.config.tensor import TensorSection
from trio_runner.inference.boxes import place
from trio_runner.model import End, Frame
from trio_runner.video.child import spawn_decoder
from trio_runner.video.decoder.tensors import Tensors

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
PICTURE = np.random.default_rng(1).integers(0, 256, (240, 320, 3), np.uint8)


def tensor_of(picture: np.ndarray[Any, Any], **form: Any) -> np.ndarray[Any, Any]:
    section = TensorSection(**form)
    kind = {"UINT8": "u1", "FP32": "<f4"}[section.datatype]
    channels = (3, section.height, section.width) if section.layout == "NCHW" else (section.height, section.width, 3)
    return np.frombuffer(Tensors(section).of(picture).tobytes(), kind).reshape(channels)


@pytest.mark.parametrize("size", [(320, 240), (160, 120), (416, 416), (64, 200)])
@pytest.mark.parametrize("order", ["RGB", "BGR"])
def test_a_stretched_tensor_is_the_one_of_blob_from_image(size: tuple[int, int], order: str) -> None:
    blob = cv2.dnn.blobFromImage(PICTURE, 1 / 255, size, (0, 0, 0), swapRB=order == "RGB")
    made = tensor_of(PICTURE, datatype="FP32", fit="stretch", width=size[0], height=size[1], order=order)
    assert np.abs(made - np.asarray(blob)[0]).max() <= 1e-6


def test_mean_and_deviation_are_in_the_order_of_the_channels() -> None:
    form = {"datatype": "FP32", "width": 320, "height": 240, "mean": MEAN, "std": STD}
    expected = (PICTURE[:, :, ::-1].astype(np.float64) / 255 - MEAN) / STD
    assert np.abs(tensor_of(PICTURE, layout="NHWC", **form) - expected).max() <= 1e-5
    assert np.abs(tensor_of(PICTURE, layout="NCHW", **form) - expected.transpose(2, 0, 1)).max() <= 1e-5


def test_bytes_are_the_pixels() -> None:
    form = {"datatype": "UINT8", "width": 320, "height": 240}
    assert (tensor_of(PICTURE, layout="NHWC", order="BGR", **form) == PICTURE).all()
    assert (tensor_of(PICTURE, layout="NCHW", order="RGB", **form) == PICTURE[:, :, ::-1].transpose(2, 0, 1)).all()


@pytest.mark.parametrize(
    ("picture", "size", "inset"),
    [
        ((320, 240), (320, 320), (0, 40, 320, 240)),
        ((1280, 720), (640, 640), (0, 140, 640, 360)),
        ((720, 1280), (640, 640), (140, 0, 360, 640)),
        ((641, 479), (416, 416), (0, 52, 416, 311)),
        ((320, 240), (320, 240), None),
        ((640, 480), (320, 240), None),
        ((5000, 2), (416, 416), (0, 207, 416, 1)),
    ],
)
def test_a_letterboxed_picture_lies_in_the_middle(
    picture: tuple[int, int], size: tuple[int, int], inset: tuple[int, int, int, int] | None
) -> None:
    tensors = Tensors(TensorSection(datatype="UINT8", layout="NHWC", width=size[0], height=size[1], fill=7))
    assert tensors.inset(*picture) == inset
    image = np.full((picture[1], picture[0], 3), 200, np.uint8)
    made = np.asarray(tensors.of(image)).reshape(size[1], size[0], 3)
    left, top, width, height = inset or (0, 0, *size)
    assert (made[top : top + height, left : left + width] == 200).all()
    assert (made != 7).sum() == 3 * width * height


@pytest.mark.parametrize("picture", [(1280, 720), (720, 1280), (641, 479), (320, 240), (1920, 1080)])
def test_a_box_on_the_tensor_maps_back_within_a_pixel(picture: tuple[int, int]) -> None:
    """A square that is drawn into the picture is found in the tensor, and its place there mapped back."""
    width, height = picture
    square = (width // 4, height // 4, width // 4 + height // 3, height // 4 + height // 3)
    image = np.zeros((height, width, 3), np.uint8)
    image[square[1] : square[3], square[0] : square[2]] = 255
    section = TensorSection(datatype="UINT8", layout="NHWC", width=640, height=640, fill=0)
    tensors = Tensors(section)
    made = np.asarray(tensors.of(image)).reshape(640, 640, 3)[:, :, 0].astype(float) / 255
    across, down = made.max(axis=0), made.max(axis=1)
    # A pixel that the edge goes through is as bright as the part of it that lies inside.
    left, top = float(np.argmax(across > 0.5)), float(np.argmax(down > 0.5))
    found = (left, top, left + float((across > 0.5).sum()), top + float((down > 0.5).sum()))
    frame = dataclasses.replace(make_frame(size=picture, sent=(640, 640)), inset=tensors.inset(width, height))
    ((box,), _) = place([("$", found)], frame, BoxKeys(), "inference.oip")
    assert box is not None
    scale = max(width, height) / 640
    assert max(abs(one - other) for one, other in zip(box, square, strict=True)) <= max(1.0, scale)


@pytest.mark.parametrize("threads", [1, 3])
async def test_the_child_sends_tensors_in_place_of_jpegs(tmp_path: Path, threads: int) -> None:
    path = clips.pixel_coded(tmp_path / "clip.mp4", frames=12)
    form = TensorSection(datatype="FP32", layout="NCHW", width=320, height=320)
    frames = []
    options = VideoSection(path=str(path), encoder_threads=threads)
    async with spawn_decoder(options, tensor=form) as video:
        await video.open()
        video.start(0)
        while isinstance(item := await video.receive(), Frame):
            frames.append(item)
    assert item == End(decoded=12, selected=12, skipped_corrupt=0)
    for number, frame in enumerate(frames):
        assert (frame.width, frame.height, frame.sent_width, frame.sent_height) == (320, 240, 320, 320)
        assert frame.inset == (0, 40, 320, 240)
        assert len(frame.content) == form.size == 3 * 320 * 320 * 4
        values = np.frombuffer(frame.content, "<f4").reshape(3, 320, 320)
        assert values.max() <= 1
        picture = (values.transpose(1, 2, 0)[40:280, :, ::-1] * 255).round().astype(np.uint8)
        assert read_frame_number(picture) == number

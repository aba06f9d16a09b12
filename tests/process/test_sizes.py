"""A video whose pictures change their size: each row has the size of its own picture, and boxes in its pixels."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import cv2
import pytest

from tests.support import clips
from tests.support.fake_inference import open_fake, stored_for
from tests.support.scene import Scene

SIZES = [(320, 240)] * 3 + [(176, 208)] * 3 + [(640, 480)] * 3


def directory_of_images(path: Path) -> Path:
    path.mkdir()
    for number, size in enumerate(SIZES):
        assert cv2.imwrite(str(path / f"{number}.png"), clips.paint(number, size))
    return path


def raw_h264(path: Path) -> Path:
    """Three encoders' pictures, one after the other: each begins with a key frame and the parameters of its size."""
    path = path.with_suffix(".h264")
    with path.open("wb") as file:
        for first in range(0, len(SIZES), 3):
            encoder = av.CodecContext.create("libx264", "w")
            assert isinstance(encoder, av.VideoCodecContext)
            encoder.width, encoder.height = SIZES[first]
            encoder.pix_fmt, encoder.time_base, encoder.options = "yuv420p", Fraction(1, 25), clips.FAST["libx264"]
            for number in range(first, first + 3):
                frame = av.VideoFrame.from_ndarray(clips.paint(number, SIZES[first]), format="gray").reformat(
                    format="yuv420p"
                )
                frame.pts = number
                file.writelines(map(bytes, encoder.encode(frame)))
            file.writelines(map(bytes, encoder.encode()))
    return path


@pytest.mark.parametrize("make", [directory_of_images, raw_h264])
@pytest.mark.parametrize("max_width", [0, 100], ids=["sent whole", "sent small"])
async def test_each_row_has_the_size_of_its_own_picture_in_a_whole_run(
    scene: Scene, tmp_path: Path, make: Callable[[Path], Path], max_width: int
) -> None:
    video = {"path": str(make(tmp_path / "video")), "max_width": max_width}
    async with open_fake() as fake:
        done = await scene.run_to_the_end(scene.write_config(video=video, inference={"url": fake.url}))
    assert done.code == 0, done.err
    rows = await scene.ledger.predictions(scene.scenario_id)
    assert [(row["width"], row["height"]) for row in rows] == SIZES
    for row, size in zip(rows, SIZES, strict=True):
        assert row["detections"] == stored_for(row["frame_index"], *size)

"""Runs against the embedded inference service by each of its protocols, with no address and no model in the config."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.scene import Scene

VIDEO = Path(__file__).parents[2] / "test_videos" / "test_video.mp4"
STRIDE = 20
FRAMES = 34
LABELS = {"person", "cup", "cat"}


async def run(scene: Scene, number: int, protocol: str, **keys: Any) -> list[dict[str, Any]]:
    """The rows of a scenario of its own, which the embedded service has answered by this protocol."""
    scenario_id = scene.scenario_id + number * 10**17
    config = scene.write_config(
        f"{number}.toml",
        scenario={"id": scenario_id},
        video={"path": str(VIDEO), "stride": STRIDE},
        inference={"url": "embedded", "protocol": protocol, **keys},
    )
    done = await scene.run_to_the_end(config)
    assert done.code == 0, done.err
    return await scene.ledger.predictions(scenario_id)


def found(rows: list[dict[str, Any]]) -> list[tuple[int, int, int, Any]]:
    return [(row["frame_index"], row["width"], row["height"], row["detections"]) for row in rows]


def labels(rows: list[tuple[int, int, int, Any]]) -> set[str]:
    return {each["label"] for *_, detections in rows for each in detections}


async def test_every_protocol_stores_the_same_rows(scene: Scene) -> None:
    expected = found(await run(scene, 1, "predict"))
    assert len(expected) == FRAMES
    assert labels(expected) >= LABELS
    for number, encoding in ((2, "json"), (3, "binary")):
        assert found(await run(scene, number, "oip", oip={"encoding": encoding})) == expected


async def test_pixels_as_a_tensor(scene: Scene) -> None:
    # The metadata of the service have the datatype of an encoded picture.
    oip = {"metadata": False, "input": "image"}
    tensor = {"datatype": "UINT8", "layout": "NHWC", "width": 640, "height": 360}
    rows = found(await run(scene, 1, "oip", oip={**oip, "tensor": tensor}))
    assert len(rows) == FRAMES
    # No JPEG lies between the video and the service, so confidences and boxes are not those of `predict`.
    assert labels(rows) >= LABELS


@pytest.mark.parametrize("protocol", ["http", "openai"])
async def test_another_protocol_is_refused(scene: Scene, protocol: str) -> None:
    # Of all keys only the protocol is wrong.
    inference = {"url": "embedded", "protocol": protocol, "http": {"raw": True}}
    config = scene.write_config(inference=inference, video={"path": str(VIDEO)})
    done = await scene.run_to_the_end(config)
    assert done.code == 78
    assert "inference.protocol" in done.err
    assert "the embedded service speaks predict and oip alone" in done.err


async def test_a_model_that_the_service_does_not_have(scene: Scene) -> None:
    inference = {"url": "embedded", "protocol": "oip", "oip": {"model": "yolo"}}
    config = scene.write_config(inference=inference, video={"path": str(VIDEO)})
    done = await scene.run_to_the_end(config)
    assert done.code != 0
    assert "Request for unknown model: 'yolo' is not found" in done.err

"""The Open Inference Protocol with the real program: whatever the form of the frames, the ledger has the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_oip import open_fake_oip
from tests.support.scene import Scene

TENSOR = {"width": 320, "height": 240}
SQUARE = {"width": 320, "height": 320}
BELOW = (0, 40, 320, 240)


@pytest.mark.parametrize(
    ("oip", "tensor", "service"),
    [
        ({"encoding": "binary"}, {}, {}),
        ({"encoding": "json"}, {}, {}),
        ({"batch": 4}, {}, {"shape": (-1, 1)}),
        (
            {},
            TENSOR | {"datatype": "UINT8", "layout": "NHWC"},
            {"datatype": "UINT8", "shape": (-1, 240, 320, 3), "layout": "NHWC"},
        ),
        (
            {"batch": 2},
            SQUARE | {"datatype": "FP32", "layout": "NCHW"},
            {"datatype": "FP32", "shape": (-1, 3, 320, 320), "layout": "NCHW", "inset": BELOW},
        ),
        (
            {"encoding": "json"},
            TENSOR | {"datatype": "UINT8", "layout": "NCHW"},
            {"datatype": "UINT8", "shape": (-1, 3, 240, 320), "layout": "NCHW"},
        ),
    ],
    ids=["binary JPEG", "JSON JPEG", "batch of JPEGs", "binary UINT8", "binary FP32, letterboxed", "JSON UINT8"],
)
async def test_every_form_ends_in_the_same_rows(
    scene: Scene, clip: Path, oip: dict[str, Any], tensor: dict[str, Any], service: dict[str, Any]
) -> None:
    async with open_fake_oip(**service) as fake:
        keys = {"model": "painted", "tensor": tensor, **oip}
        config = scene.write_config(
            "runner.toml",
            video={"path": str(clip)},
            inference={
                "url": fake.url,
                "protocol": "oip",
                "oip": keys,
                "ready_timeout_seconds": 30.0,
                "timeout_seconds": 60.0,
            },
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 0, done.err
    # The rows that the same clip has by the protocol `predict`.
    await scene.check_rows(60)
    assert sorted(fake.numbers) == list(range(60))
    assert max(fake.batches) <= oip.get("batch", 1)


async def test_a_stateful_model_is_told_the_start_and_the_end(scene: Scene, clip: Path) -> None:
    async with open_fake_oip() as fake:
        keys = {"model": "painted", "sequence": True}
        config = scene.write_config(
            "runner.toml",
            video={"path": str(clip)},
            inference={"url": fake.url, "protocol": "oip", "oip": keys, "in_flight": 1},
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 0, done.err
    await scene.check_rows(60)
    assert fake.numbers == list(range(60))
    assert len({each["sequence_id"] for each in fake.parameters}) == 1
    assert [place for place, each in enumerate(fake.parameters) if each["sequence_start"]] == [0]
    assert [place for place, each in enumerate(fake.parameters) if each["sequence_end"]] == [59]


async def test_a_model_that_does_not_fit_is_found_before_the_claim(scene: Scene, clip: Path) -> None:
    async with open_fake_oip(datatype="FP32", shape=(-1, 3, 320, 320)) as fake:
        keys = {"model": "painted"}
        config = scene.write_config(
            "runner.toml", video={"path": str(clip)}, inference={"url": fake.url, "protocol": "oip", "oip": keys}
        )
        checked = await scene.cli("check", config)
        done = await scene.run_to_the_end(config)
    assert checked.code != 0
    assert done.code != 0
    assert "inference.oip.tensor.datatype" in checked.out + checked.err
    assert "inference.oip.tensor.datatype" in done.err
    assert fake.numbers == []

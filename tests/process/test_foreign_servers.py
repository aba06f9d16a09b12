"""The same clip through inference servers that nobody here wrote ends in the same rows, whatever the protocol.

`tests/support/inference_servers.sh` starts the servers and sets the variables that this module reads.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.numbers import answer_for
from tests.support.scene import Scene

FRAMES, WIDTH, HEIGHT = 60, 320, 240
TENSOR = {"datatype": "UINT8", "layout": "NHWC", "width": WIDTH, "height": HEIGHT, "fit": "stretch"}

WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "predict": ("FASTAPI", {"protocol": "predict"}),
    "http, written by hand": (
        "FASTAPI",
        {
            "protocol": "http",
            "http": {
                "path": "/huggingface",
                "image": "raw",
                "list": "@",
                "label": "label",
                "score": "score",
                "box": "box.[xmin, ymin, xmax, ymax]",
            },
        },
    ),
    "preset ultralytics": (
        "FASTAPI",
        {"protocol": "http", "http": {"preset": "ultralytics", "path": "/ultralytics/predict"}},
    ),
    "preset huggingface": (
        "FASTAPI",
        {"protocol": "http", "http": {"preset": "huggingface", "path": "/huggingface"}},
    ),
    "oip binary, Triton": ("TRITON", {"protocol": "oip", "oip": {"model": "jpeg"}}),
    "oip JSON, Triton": (
        "TRITON",
        {"protocol": "oip", "oip": {"model": "tensor", "encoding": "json", "tensor": TENSOR}},
    ),
    "oip tensors in batches, Triton": (
        "TRITON",
        {"protocol": "oip", "oip": {"model": "tensor", "batch": 4, "tensor": TENSOR}},
    ),
    # A custom runtime of MLServer lists no inputs.
    "oip JSON, MLServer": (
        "MLSERVER",
        {"protocol": "oip", "oip": {"model": "jpeg", "encoding": "json", "input": "image"}},
    ),
}


def address(server: str) -> str:
    """The server's address; skips the test where the server does not run."""
    variable = f"TRIO_RUNNER_TEST_{server}"
    url = os.environ.get(variable)
    if not url:
        pytest.skip(f"{variable} is not set: tests/support/inference_servers.sh starts this server")
    return url


@pytest.mark.parametrize("way", WAYS)
async def test_the_rows_are_the_same_whatever_the_protocol(scene: Scene, clip: Path, way: str) -> None:
    server, keys = WAYS[way]
    config = scene.write_config(video={"path": str(clip)}, inference={"url": address(server), **keys})
    done = await scene.cli("run", config)
    assert done.code == 0, done.err
    rows = await scene.ledger.predictions(scene.scenario_id)
    assert [row["frame_index"] for row in rows] == list(range(FRAMES))
    for number, row in enumerate(rows):
        (found,) = row["detections"]
        expected = answer_for(number, WIDTH, HEIGHT)
        assert (found["label"], found["bbox"]) == (expected["class"], expected["bbox"])
        # A tensor holds the score as FP32.
        assert found["confidence"] == pytest.approx(expected["confidence"], abs=1e-6)


@pytest.mark.parametrize(
    ("server", "keys", "code", "named"),
    [
        ("TRITON", {"model": "nonesuch"}, "inference_rejected", "nonesuch"),
        ("TRITON", {"model": "tensor"}, "", "datatype"),
        ("MLSERVER", {"model": "nonesuch", "encoding": "json"}, "inference_rejected", "nonesuch"),
    ],
)
async def test_what_the_server_refuses_is_named(
    scene: Scene, clip: Path, server: str, keys: dict[str, Any], code: str, named: str
) -> None:
    inference = {"url": address(server), "protocol": "oip", "oip": keys}
    done = await scene.cli("run", scene.write_config(video={"path": str(clip)}, inference=inference))
    assert done.code not in {0, 1}
    assert named in done.err
    assert code in done.err
    assert await scene.ledger.predictions(scene.scenario_id) == []

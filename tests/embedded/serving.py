"""The embedded inference service as a process, and pictures for it."""

from __future__ import annotations

import json
import select
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import httpx
import numpy as np
import numpy.typing as npt

from tests.support.harness import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]
TEST_VIDEO = ROOT / "test_videos" / "test_video.mp4"
SHOTS = tomllib.loads(TEST_VIDEO.with_suffix(".toml").read_text(encoding="utf-8"))["shot"]
COMMAND = [sys.executable, "-m", "trio_runner.embedded.inference", "--listen", "127.0.0.1:0"]

Image = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Service:
    process: subprocess.Popen[bytes]
    port: int
    client: httpx.Client

    def predict(self, **request: Any) -> httpx.Response:
        return self.client.post("/predict", **request)


def read_port(stdout: Any) -> int:
    assert select.select([stdout], [], [], PATIENCE_SECONDS)[0], "no ready line"
    ready = json.loads(stdout.readline())
    assert ready.keys() == {"port"}
    port: int = ready["port"]
    return port


def start_service(*options: str) -> Service:
    process = subprocess.Popen([*COMMAND, *options], stdout=subprocess.PIPE, cwd=ROOT)
    try:
        port = read_port(process.stdout)
    except BaseException:
        process.kill()
        process.wait()
        raise
    return Service(process, port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=PATIENCE_SECONDS))


def stop_service(service: Service) -> None:
    service.client.close()
    service.process.kill()
    service.process.wait()
    assert service.process.stdout
    service.process.stdout.close()


def read_frames(clip: Path, count: int) -> list[Image]:
    capture = cv2.VideoCapture(str(clip))
    decoded = [capture.read() for _ in range(count)]
    capture.release()
    assert all(there for there, _ in decoded)
    return [frame.astype(np.uint8, copy=False) for _, frame in decoded]


def encode(image: npt.NDArray[Any], extension: str = ".jpg") -> bytes:
    return bytes(cv2.imencode(extension, image)[1])


def error(response: httpx.Response, status: int) -> str:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    answer = response.json()
    assert answer.keys() == {"error"}
    message: str = answer["error"]
    return message

"""What a frame costs by each protocol: bytes on the wire, CPU of the daemon's side, and time beyond the server's own.

Every protocol is asked in turns, against one server in a process of its own that answers at once with what that
protocol calls five boxes. So the time of an exchange is all client, kernel and loopback. CPU is that of this process:
building the request, sending it, reading the answer and mapping it to detections.

    .venv/bin/python benchmarks/protocols.py [--frames 1000]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import struct
import time
from contextlib import AsyncExitStack
from typing import Any

import msgspec
import trio
from peer import Sizes, open_peer

from trio_runner.config.inference import InferenceSection
from trio_runner.inference.client import open_client
from trio_runner.model import Frame

WIDTH, HEIGHT, JPEG_BYTES, BOXES, EACH = 640, 480, 60_000, 5, 20
BOX = [10.0, 20.0, 110.0, 220.0]
TENSOR = {"datatype": "UINT8", "layout": "NHWC", "width": WIDTH, "height": HEIGHT, "fit": "stretch"}


def tensor_answer() -> bytes:
    """An answer of the Open Inference Protocol with binary outputs, and its head."""
    parts = {
        "boxes": ("FP32", [BOXES, 4], struct.pack("<4f", *BOX) * BOXES),
        "scores": ("FP32", [BOXES], struct.pack("<f", 0.5) * BOXES),
        "labels": ("BYTES", [BOXES], (struct.pack("<I", 3) + b"car") * BOXES),
    }
    outputs = [
        {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": len(data)}}
        for name, (datatype, shape, data) in parts.items()
    ]
    head = json.dumps({"model_name": "m", "outputs": outputs}).encode()
    body = head + b"".join(data for _, _, data in parts.values())
    return b"Inference-Header-Content-Length: %d\r\nContent-Length: %d\r\n\r\n%b" % (len(head), len(body), body)


def json_answer(answer: Any) -> bytes:
    """An answer in JSON, and the end of its head."""
    body = json.dumps(answer).encode()
    return b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


PLAIN = [{"class": "car", "confidence": 0.5, "bbox": BOX}] * BOXES
OUTPUTS = [
    {"name": "boxes", "datatype": "FP32", "shape": [BOXES, 4], "data": BOX * BOXES},
    {"name": "scores", "datatype": "FP32", "shape": [BOXES], "data": [0.5] * BOXES},
    {"name": "labels", "datatype": "BYTES", "shape": [BOXES], "data": ["car"] * BOXES},
]
CHAT = json.dumps([{"label": "car", "bbox_2d": BOX}] * BOXES)
WAYS: dict[str, tuple[dict[str, Any], bytes, int]] = {
    "predict": ({"protocol": "predict"}, json_answer({"predictions": PLAIN}), JPEG_BYTES),
    "http, multipart": (
        {
            "protocol": "http",
            "http": {
                "path": "/",
                "image": "multipart",
                "image_at": "file",
                "list": "predictions",
                "label": "class",
                "score": "confidence",
                "box": "bbox",
            },
        },
        json_answer({"predictions": PLAIN}),
        JPEG_BYTES,
    ),
    "http, base64": (
        {
            "protocol": "http",
            "http": {
                "path": "/",
                "image": "base64",
                "image_at": "image",
                "list": "predictions",
                "label": "class",
                "score": "confidence",
                "box": "bbox",
            },
        },
        json_answer({"predictions": PLAIN}),
        JPEG_BYTES,
    ),
    "oip JSON, JPEG": (
        {"protocol": "oip", "oip": {"model": "m", "input": "image", "encoding": "json"}},
        json_answer({"model_name": "m", "outputs": OUTPUTS}),
        JPEG_BYTES,
    ),
    "oip binary, JPEG": (
        {"protocol": "oip", "oip": {"model": "m", "input": "image"}},
        tensor_answer(),
        JPEG_BYTES,
    ),
    "oip binary, UINT8": (
        {"protocol": "oip", "oip": {"model": "m", "input": "image", "tensor": TENSOR}},
        tensor_answer(),
        WIDTH * HEIGHT * 3,
    ),
    "openai": (
        {"protocol": "openai", "openai": {"model": "m", "dialect": "qwen3-vl", "box_scale": "pixels"}},
        json_answer(
            {"choices": [{"finish_reason": "stop", "message": {"content": CHAT}}], "usage": {"total_tokens": 900}}
        ),
        JPEG_BYTES,
    ),
}


async def measure(ports: list[int], sizes: Sizes, frames: int) -> None:
    """Print a row for each protocol."""
    async with AsyncExitStack() as stack:
        clients, pictures = {}, {}
        for (name, (keys, _, size)), port in zip(WAYS.items(), ports, strict=True):
            section = msgspec.convert({"url": f"http://127.0.0.1:{port}", **keys}, InferenceSection)
            clients[name] = await stack.enter_async_context(open_client(section))
            pictures[name] = Frame(
                sequence=0,
                index=0,
                pts_seconds=0.0,
                width=WIDTH,
                height=HEIGHT,
                sent_width=WIDTH,
                sent_height=HEIGHT,
                content=os.urandom(size),
            )
        cpu: dict[str, list[float]] = {name: [] for name in WAYS}
        waits: dict[str, list[float]] = {name: [] for name in WAYS}
        for turn in range(frames // EACH + 1):
            for name, client in clients.items():
                begun = time.process_time()
                for _ in range(EACH):
                    started = time.perf_counter()
                    (result,) = await client.infer([pictures[name]])
                    waits[name].append(time.perf_counter() - started)
                    assert len(result.detections) == BOXES, (name, result)
                if turn:
                    cpu[name].append((time.process_time() - begun) / EACH)
        print(
            f"{'protocol':<20} {'picture, bytes':>14} {'request':>8} {'CPU, µs':>8} {'of predict':>10} {'p50, µs':>8}"
        )
        base = min(cpu["predict"])
        for place, (name, (_, _, size)) in enumerate(WAYS.items()):
            least, middle = min(cpu[name]), statistics.median(waits[name])
            print(f"{name:<20} {size:>14} {sizes[place]:>8}", end="")
            print(f" {1e6 * least:>8.0f} {least / base:>10.2f} {1e6 * middle:>8.0f}")


def main() -> None:
    """Measure against a server of our own on loopback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=1000, help="of each protocol")
    options = parser.parse_args()
    with open_peer([b"HTTP/1.1 200 OK\r\n" + answer for _, answer, _ in WAYS.values()]) as (ports, sizes):
        trio.run(measure, ports, sizes, options.frames)


if __name__ == "__main__":
    main()

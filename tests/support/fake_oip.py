"""A fake service of the Open Inference Protocol v2 that reads the painted number out of each picture.

It answers with the same objects as `fake_inference`, and shares no code with the client's protocol, so that a mistake
in one of them shows.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import h11
import numpy as np
import trio

from tests.support.clips import Image, read_frame_number
from tests.support.fake_inference import answer_for

LENGTH = b"inference-header-content-length"
Inset = tuple[int, int, int, int]


@dataclass
class FakeOip:
    """The service's state; `inset` is the place of the picture in a tensor, where it does not fill it."""

    datatype: str = "BYTES"
    shape: tuple[int, ...] = (-1,)
    layout: str = "NHWC"
    inset: Inset | None = None
    url: str = ""
    numbers: list[int] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    """How many frames each request had."""
    bytes_received: list[int] = field(default_factory=list)
    """The size of each request's body."""
    parameters: list[dict[str, Any]] = field(default_factory=list)

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer the requests of one connection until it ends."""
        async with stream:
            connection = h11.Connection(h11.SERVER)
            try:
                while (asked := await _receive(connection, stream)) is not None:
                    await self._respond(connection, stream, *asked)
                    connection.start_next_cycle()
            except (trio.BrokenResourceError, h11.ProtocolError):
                return

    async def _respond(
        self, connection: h11.Connection, stream: trio.abc.Stream, head: h11.Request, body: bytes
    ) -> None:
        headers = dict(head.headers)
        answer_headers = []
        match head.method, head.target:
            case b"GET", b"/v2/models/painted":
                answer = json.dumps(self._metadata()).encode()
            case b"GET", b"/v2/models/painted/ready":
                answer = b""
            case b"POST", b"/v2/models/painted/infer":
                answer, length = self._infer(body, int(headers.get(LENGTH, b"-1")))
                if length is not None:
                    answer_headers.append((LENGTH, str(length).encode()))
            case _:
                raise AssertionError(head.target)
        length_header = (b"content-length", str(len(answer)).encode())
        await stream.send_all(
            (connection.send(h11.Response(status_code=200, headers=[length_header, *answer_headers])) or b"")
            + (connection.send(h11.Data(data=answer)) or b"")
            + (connection.send(h11.EndOfMessage()) or b"")
        )

    def _metadata(self) -> dict[str, Any]:
        outputs = [("boxes", "FP32", [-1, -1, 4]), ("scores", "FP32", [-1, -1]), ("labels", "BYTES", [-1, -1])]
        return {
            "name": "painted",
            "versions": ["1"],
            "platform": "painted",
            "inputs": [{"name": "picture", "datatype": self.datatype, "shape": list(self.shape)}],
            "outputs": [{"name": name, "datatype": kind, "shape": shape} for name, kind, shape in outputs],
        }

    def _infer(self, body: bytes, length: int) -> tuple[bytes, int | None]:
        self.bytes_received.append(len(body))
        asked = json.loads(body if length < 0 else body[:length])
        self.parameters.append(asked.get("parameters", {}))
        (given,) = asked["inputs"]
        assert (given["name"], given["datatype"]) == ("picture", self.datatype)
        pictures = self._pictures(given, None if length < 0 else body[length:])
        numbers = [read_frame_number(self._inner(picture)) for picture in pictures]
        self.numbers += numbers
        self.batches.append(len(numbers))
        objects = [self._object(number, picture) for number, picture in zip(numbers, pictures, strict=True)]
        count = len(objects)
        boxes = [number for each in objects for number in each["bbox"]]
        scores, labels = ([each[key] for each in objects] for key in ("confidence", "class"))
        tensors = [
            ("boxes", "FP32", [count, 1, 4], boxes, struct.pack(f"<{len(boxes)}f", *boxes)),
            ("scores", "FP32", [count, 1], scores, struct.pack(f"<{count}f", *scores)),
            (
                "labels",
                "BYTES",
                [count, 1],
                labels,
                b"".join(struct.pack("<I", len(each)) + each.encode() for each in labels),
            ),
        ]
        binary = {each["name"] for each in asked["outputs"] if each.get("parameters", {}).get("binary_data")}
        described = [
            {"name": name, "datatype": kind, "shape": shape}
            | ({"parameters": {"binary_data_size": len(packed)}} if name in binary else {"data": data})
            for name, kind, shape, data, packed in tensors
        ]
        head = json.dumps({"model_name": "painted", "id": asked["id"], "outputs": described}).encode()
        rest = b"".join(packed for name, *_, packed in tensors if name in binary)
        return head + rest, len(head) if binary else None

    def _pictures(self, given: dict[str, Any], rest: bytes | None) -> list[Image]:
        count = given["shape"][0]
        if self.datatype == "BYTES":
            if rest is None:
                assert given["parameters"] == {"content_type": "base64"}
                return [_decoded(base64.b64decode(each)) for each in given["data"]]
            jpegs = []
            while rest:
                (size,) = struct.unpack_from("<I", rest)
                jpegs.append(rest[4 : 4 + size])
                rest = rest[4 + size :]
            assert len(jpegs) == count
            return [_decoded(jpeg) for jpeg in jpegs]
        kind = {"UINT8": "u1", "FP32": "<f4"}[self.datatype]
        values = np.array(given["data"], kind) if rest is None else np.frombuffer(rest, kind)
        pictures = []
        for each in values.reshape(given["shape"]):
            rows = each.transpose(1, 2, 0) if self.layout == "NCHW" else each
            scale = 255 if self.datatype == "FP32" else 1
            pictures.append(np.ascontiguousarray((rows[:, :, ::-1] * scale).round().astype(np.uint8)))
        return pictures

    def _inner(self, picture: Image) -> Image:
        left, top, width, height = self.inset or (0, 0, picture.shape[1], picture.shape[0])
        return picture[top : top + height, left : left + width]

    def _object(self, number: int, picture: Image) -> dict[str, Any]:
        left, top, width, height = self.inset or (0, 0, picture.shape[1], picture.shape[0])
        found = answer_for(number, width, height)
        x1, y1, x2, y2 = found["bbox"]
        return found | {"bbox": [x1 + left, y1 + top, x2 + left, y2 + top]}


@asynccontextmanager
async def open_fake_oip(**options: Any) -> AsyncIterator[FakeOip]:
    """The service on a free port of the loopback, in this process."""
    fake = FakeOip(**options)
    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, fake.serve, 0, host="127.0.0.1")
        )
        fake.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield fake
        nursery.cancel_scope.cancel()


async def _receive(connection: h11.Connection, stream: trio.abc.Stream) -> tuple[h11.Request, bytes] | None:
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(2**20)))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            assert head is not None
            return head, bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            return None


def _decoded(jpeg: bytes) -> Image:
    return np.asarray(cv2.imdecode(np.frombuffer(jpeg, np.uint8), cv2.IMREAD_COLOR), np.uint8)

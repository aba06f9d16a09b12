"""A fake inference service that reads the painted number out of each picture, and misbehaves on demand.

What it answers is a pure function of that number (`answer_for`), so a test can tell whether each row of the ledger
belongs to its frame. In a test: `async with open_fake(...) as fake`. As a process, for tests that have no Trio:
`python fake_inference.py --listen 127.0.0.1:0`, which prints one line on stdout, the JSON object {"port": N}.
"""

from __future__ import annotations

import argparse
import enum
import json
import random
import sys
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import h11
import numpy as np
import trio
from clips import Image, read_frame_number

READ_BYTES = 2**16
HUGE_BYTES = 4 * 2**20
DRIP_SECONDS = 0.05


class Fault(enum.StrEnum):
    """A way in which a service lets its client down."""

    STATUS_500 = "status_500"
    STATUS_429 = "status_429"
    STATUS_404 = "status_404"
    REDIRECT = "redirect"
    HANG = "hang"
    DRIP = "drip"
    CUT = "cut"
    GARBAGE = "garbage"
    EMPTY = "empty"
    WRONG_TYPE = "wrong_type"
    NAN = "nan"
    HUGE = "huge"


RETRY_AFTER_SECONDS = 7

_STATUS: Mapping[Fault, tuple[int, list[tuple[str, str]]]] = {
    Fault.STATUS_500: (500, []),
    Fault.STATUS_429: (429, [("Retry-After", str(RETRY_AFTER_SECONDS))]),
    Fault.STATUS_404: (404, []),
    # Link-local, where clouds keep their credentials: a client that follows this is an exploit.
    Fault.REDIRECT: (307, [("Location", "http://169.254.169.254/predict")]),
}

_BODY: Mapping[Fault, bytes] = {
    Fault.GARBAGE: b"<html>It works!</html>",
    Fault.EMPTY: b"",
    Fault.WRONG_TYPE: b'{"predictions": [{"class": "a", "confidence": "high", "bbox": [0, 0, 1, 1]}]}',
    Fault.NAN: b'{"predictions": [{"class": "a", "confidence": 0.5, "bbox": [0, 0, NaN, 1]}]}',
    Fault.HUGE: b'{"predictions": [' + b" " * HUGE_BYTES + b"]}",
}

Plan = Callable[[int, int], "Fault | None"]
"""From (number of the request, from 0; number painted into its picture) to what shall go wrong, if anything."""


def never(_request: int, _number: int) -> Fault | None:
    """Everything goes well."""
    return None


def at_frame(number: int, fault: Fault) -> Plan:
    """The picture with this number painted into it meets `fault`, every time."""
    return lambda _, painted: fault if painted == number else None


def at_request(index: int, fault: Fault) -> Plan:
    """Request number `index`, from 0, meets `fault`; no other does."""
    return lambda request, _: fault if request == index else None


def random_delays(seed: int, longest_seconds: float) -> Callable[[int], float]:
    """A delay for each frame number, the same for the same seed, so that answers overtake each other."""
    return lambda number: random.Random(f"{seed}:{number}").uniform(0, longest_seconds)


def answer_for(number: int, width: int, height: int) -> dict[str, Any]:
    """The one detection in the picture `number`, in pixels of a picture of `width` × `height`."""
    left, top = (number % 8) / 16, (number // 8 % 8) / 16
    box = [left * width, top * height, (left + 0.25) * width, (top + 0.25) * height]
    return {"class": f"frame-{number}", "confidence": number % 100 / 100, "bbox": box}


def stored_for(number: int, width: int, height: int) -> list[dict[str, Any]]:
    """What the ledger holds for the picture `number` of a video of `width` × `height` pixels."""
    answer = answer_for(number, width, height)
    return [{"label": answer["class"], "confidence": answer["confidence"], "bbox": answer["bbox"]}]


@dataclass
class Fake:
    """The service's state, for a test to look at: numbers in the order of arrival, how many were under way at once."""

    plan: Plan = never
    delay: Callable[[int], float] = lambda _: 0.0
    held: Callable[[int], bool] = lambda _: False
    url: str = ""
    numbers: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    """Width and height of each picture received."""
    answered: list[int] = field(default_factory=list)
    under_way: list[int] = field(default_factory=list)
    """Bytes of each picture received and not yet being answered."""
    most_under_way: int = 0
    most_bytes_under_way: int = 0
    gate: trio.Event = field(default_factory=trio.Event)
    """The answers to the numbers that are `held` wait for it."""

    async def serve(self, stream: trio.SocketStream) -> None:
        """Answer the requests of one connection until it ends."""
        async with stream:
            try:
                connection = h11.Connection(h11.SERVER)
                while (body := await _read_request(connection, stream)) is not None:
                    await self._respond(connection, stream, body)
                    connection.start_next_cycle()
            except (trio.BrokenResourceError, h11.ProtocolError):
                # The client went away, or we have cut it off: both are what some tests are about.
                return

    async def _respond(self, connection: h11.Connection, stream: trio.SocketStream, body: bytes) -> None:
        jpeg = _find_jpeg(body)
        picture = _decode(jpeg)
        height, width = picture.shape[:2]
        number = read_frame_number(picture)
        fault = self.plan(len(self.numbers), number)
        self.numbers.append(number)
        self.sizes.append((width, height))
        self.under_way.append(len(jpeg))
        self.most_under_way = max(self.most_under_way, len(self.under_way))
        self.most_bytes_under_way = max(self.most_bytes_under_way, sum(self.under_way))
        try:
            await trio.sleep(self.delay(number))
            if self.held(number):
                await self.gate.wait()
        finally:
            # Before the answer is sent: whoever has it may ask the next question at once.
            self.under_way.remove(len(jpeg))
        whole = json.dumps({"predictions": [answer_for(number, width, height)]}).encode()
        match fault:
            case Fault.HANG:
                await trio.sleep_forever()
            case Fault.DRIP:
                await _send_head(connection, stream, 200, len(whole))
                for byte in whole:
                    await _send(connection, stream, h11.Data(data=bytes([byte])))
                    await trio.sleep(DRIP_SECONDS)
            case Fault.CUT:
                await _send_head(connection, stream, 200, len(whole))
                await _send(connection, stream, h11.Data(data=whole[: len(whole) // 2]))
                raise trio.BrokenResourceError
            case None:
                # Counted before it is sent: once the client has the answer, a test may look at any moment.
                self.answered.append(number)
                await _send_whole(connection, stream, 200, [], whole)
            case _:
                status, headers = _STATUS.get(fault, (200, []))
                await _send_whole(connection, stream, status, headers, _BODY.get(fault, b"{}"))


@asynccontextmanager
async def open_fake(
    *,
    plan: Plan = never,
    delay: Callable[[int], float] = lambda _: 0.0,
    held: Callable[[int], bool] = lambda _: False,
    port: int = 0,
) -> AsyncIterator[Fake]:
    """The service on a free port (or `port`) of the loopback, in this process."""
    fake = Fake(plan=plan, delay=delay, held=held)
    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, fake.serve, port, host="127.0.0.1")
        )
        fake.url = f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield fake
        nursery.cancel_scope.cancel()


async def _read_request(connection: h11.Connection, stream: trio.SocketStream) -> bytes | None:
    """The next request's body; None where the client has no more requests."""
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await stream.receive_some(READ_BYTES))
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return bytes(body)
        elif isinstance(event, h11.ConnectionClosed):
            return None


def _find_jpeg(body: bytes) -> bytes:
    """The JPEG in a multipart body, by its own markers (how the body is built is tested elsewhere)."""
    return body[body.index(b"\xff\xd8\xff") : body.rindex(b"\xff\xd9") + 2]


def _decode(jpeg: bytes) -> Image:
    picture = cv2.imdecode(np.frombuffer(jpeg, dtype=np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None, "the request holds no whole JPEG"
    return np.asarray(picture, np.uint8)


async def _send(connection: h11.Connection, stream: trio.SocketStream, event: h11.Event) -> None:
    await stream.send_all(connection.send(event) or b"")


async def _send_head(connection: h11.Connection, stream: trio.SocketStream, status: int, length: int) -> None:
    headers = [("Content-Type", "application/json"), ("Content-Length", str(length))]
    await _send(connection, stream, h11.Response(status_code=status, headers=headers))


async def _send_whole(
    connection: h11.Connection, stream: trio.SocketStream, status: int, headers: list[tuple[str, str]], body: bytes
) -> None:
    lengthy = [*headers, ("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    await _send(connection, stream, h11.Response(status_code=status, headers=lengthy))
    if body:
        await _send(connection, stream, h11.Data(data=body))
    await _send(connection, stream, h11.EndOfMessage())


async def _main(port: int, plan: Plan, delay: Callable[[int], float]) -> None:
    async with open_fake(port=port, plan=plan, delay=delay) as fake:
        sys.stdout.write(json.dumps({"port": int(fake.url.rpartition(":")[2])}) + "\n")
        sys.stdout.flush()
        await trio.sleep_forever()


def main() -> int:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--listen", default="127.0.0.1:0", metavar="127.0.0.1:PORT")
    parser.add_argument("--fault", type=Fault, choices=list(Fault))
    parser.add_argument("--at-frame", type=int, metavar="NUMBER", help="the picture that meets --fault; default: each")
    parser.add_argument(
        "--delay", type=float, default=0.0, metavar="SECONDS", help="before each answer, at the longest"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the delays")
    options = parser.parse_args()
    plan: Plan = never
    if options.fault:
        plan = (lambda *_: options.fault) if options.at_frame is None else at_frame(options.at_frame, options.fault)
    port = int(options.listen.rpartition(":")[2])
    trio.run(_main, port, plan, random_delays(options.seed, options.delay))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""A fake inference service that reads the painted number out of each picture, and misbehaves on demand.

What it answers is a pure function of that number (`answer_for`), so a test can check whether each row of the ledger
belongs to its frame. In a test: `async with open_fake(...) as fake`. As a process, for tests that have no Trio:
`python fake_inference.py --listen 127.0.0.1:0`, which prints one line on stdout, the JSON object {"port": N}.
"""

from __future__ import annotations

import argparse
import json
import random
import ssl
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import cv2
import h11
import numpy as np
import trio

from tests.support.faults import ELSEWHERE, HARMLESS, RETRY_AFTER_SECONDS, Fault, send_answer
from tests.support.numbers import Image, answer_for, read_frame_number

__all__ = [
    "RETRY_AFTER_SECONDS",
    "Fake",
    "Fault",
    "Plan",
    "answer_for",
    "at_frame",
    "at_request",
    "never",
    "open_fake",
    "random_delays",
    "stored_for",
]

READ_BYTES = 2**16

GREY = -1
"""In the place of the number of a picture without one, by which a runner finds out whether the service is ready."""


Plan = Callable[[int, int], "Fault | bytes | None"]
"""From (number of the request, from 0; number painted into its picture) to what shall go wrong, if anything: a fault,
or the body of an answer that is none."""


def never(_request: int, _number: int) -> Fault | bytes | None:
    """Everything goes well."""
    return None


def at_frame(number: int, fault: Fault | bytes) -> Plan:
    """The picture with this number painted into it meets `fault`, every time."""
    return lambda _, painted: fault if painted == number else None


def at_request(index: int, fault: Fault | bytes) -> Plan:
    """Request number `index`, from 0, meets `fault`; no other does."""
    return lambda request, _: fault if request == index else None


def once(*numbers: int) -> Plan:
    """Each of these pictures meets a failing service the first time."""
    left = set(numbers)

    def plan(_: int, painted: int) -> Fault | None:
        if painted not in left:
            return None
        left.remove(painted)
        return Fault.STATUS_500

    return plan


def random_delays(seed: int, longest_seconds: float) -> Callable[[int], float]:
    """A delay for each frame number, the same for the same seed, so that answers overtake each other."""
    return lambda number: random.Random(f"{seed}:{number}").uniform(0, longest_seconds)


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
    early: bytes = b""
    elsewhere: str = ELSEWHERE
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

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Answer the requests of one connection until it ends."""
        async with stream:
            try:
                connection = h11.Connection(h11.SERVER)
                while (body := await _read_request(connection, stream, self.early)) is not None:
                    await self._respond(connection, stream, body)
                    connection.start_next_cycle()
            except (trio.BrokenResourceError, h11.ProtocolError):
                # The client went away, or we have cut it off: both are what some tests are about.
                return

    async def _respond(self, connection: h11.Connection, stream: trio.abc.Stream, body: bytes) -> None:
        jpeg = _find_jpeg(body)
        picture = _decode(jpeg)
        height, width = picture.shape[:2]
        if picture.min() == picture.max():
            fault = self.plan(len(self.numbers), GREY)
            await send_answer(connection, stream, fault, b'{"predictions": []}', self.elsewhere)
            return
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
            # Before the answer is sent: a client that has it may send the next request at once.
            self.under_way.remove(len(jpeg))
        whole = json.dumps({"predictions": [answer_for(number, width, height)]}).encode()
        if fault is None or fault in HARMLESS:
            # Counted before it is sent: once the client has the answer, a test may look at any moment.
            self.answered.append(number)
        await send_answer(connection, stream, fault, whole, self.elsewhere)


@asynccontextmanager
async def open_fake(
    *,
    plan: Plan = never,
    delay: Callable[[int], float] = lambda _: 0.0,
    held: Callable[[int], bool] = lambda _: False,
    early: bytes = b"",
    elsewhere: str = ELSEWHERE,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
) -> AsyncIterator[Fake]:
    """The service on a free port (or `port`) of the loopback, in this process; over TLS with a context for it.

    It answers every request with `early`, if set, before it has read the body, and closes; redirects lead
    `elsewhere`.
    """
    fake = Fake(plan=plan, delay=delay, held=held, early=early, elsewhere=elsewhere)
    async with trio.open_nursery() as nursery:
        listeners: list[trio.SocketListener] = await nursery.start(
            partial(trio.serve_tcp, partial(_over_tls, fake, tls) if tls else fake.serve, port, host="127.0.0.1")
        )
        fake.url = f"{'https' if tls else 'http'}://127.0.0.1:{listeners[0].socket.getsockname()[1]}"
        yield fake
        nursery.cancel_scope.cancel()


async def _over_tls(fake: Fake, tls: ssl.SSLContext, stream: trio.SocketStream) -> None:
    secured = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
    try:
        await secured.do_handshake()
    except trio.BrokenResourceError:
        # A client that does not trust us: what some tests are about.
        return
    await fake.serve(secured)


async def _read_request(connection: h11.Connection, stream: trio.abc.Stream, early: bytes = b"") -> bytes | None:
    """The next request's body; None where the client has no more requests."""
    body = bytearray()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(bytes(await stream.receive_some(READ_BYTES)))
        elif isinstance(event, h11.Request) and early:
            await stream.send_all(early)
            raise trio.BrokenResourceError
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

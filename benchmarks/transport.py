"""CPU of a frame's exchange: the client's own transport beside httpx's, in turns, against one server in a process.

Each builds the same request, sends it and reads the answer. The time is that of this process, system calls included;
over loopback these contain a part of the receiver's half of TCP as well.

    .venv/bin/python benchmarks/transport.py [--exchanges 2000]
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Awaitable, Callable
from contextlib import aclosing
from functools import partial

import httpx
import trio
from peer import open_peer

from trio_runner.inference.multipart import form
from trio_runner.inference.transport import Body, TrioTransport

SIZES = (30_000, 150_000, 400_000)
EACH = 25
"""Exchanges of one side in a turn."""
TIMEOUT = httpx.Timeout(None, connect=3.0)
TARGET = 0.4
ANSWER = b'{"predictions": [' + b", ".join([b'{"class": "car", "confidence": 0.9, "bbox": [1, 2, 3, 4]}'] * 5) + b"]}"
RESPONSE = (
    b"HTTP/1.1 200 OK\r\ndate: Mon, 30 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
    b"content-length: %d\r\ncontent-type: application/json\r\n\r\n%b" % (len(ANSWER), ANSWER)
)

Send = Callable[[httpx.Request], Awaitable[httpx.Response]]
Exchange = Callable[[bytes], Awaitable[bytes]]


async def read(response: httpx.Response) -> bytes:
    """The body, as the inference client reads it."""
    body = bytearray()
    async with aclosing(aiter(response.stream)) as chunks:  # type: ignore[type-var, arg-type]
        async for chunk in chunks:
            body += chunk
    await response.aclose()
    return bytes(body)


def sending(send: Send, url: str, *, joined: bool) -> Exchange:
    """An exchange as the inference client makes it; with httpx's transport, pieces would be a system call for each."""

    async def exchange(picture: bytes) -> bytes:
        content_type, body = form("0123456789abcdef" * 2, "frame", picture)
        length = str(sum(map(len, body)))
        headers = {"Content-Type": content_type, "Accept-Encoding": "identity", "Content-Length": length}
        request = httpx.Request("POST", url, headers=headers, stream=Body(b"".join(body)) if joined else Body(*body))
        request.headers["Host"] = request.url.netloc.decode()
        request.extensions["timeout"] = TIMEOUT.as_dict()
        return await read(await send(request))

    return exchange


async def measure(url: str, exchanges: int) -> None:
    """Print the CPU of an exchange, and the ratios."""
    limits = httpx.Limits(max_connections=1, max_keepalive_connections=1, keepalive_expiry=2.0)
    async with (
        httpx.AsyncClient(verify=False, trust_env=False, limits=limits, timeout=TIMEOUT) as client,  # noqa: S501
        httpx.AsyncHTTPTransport(verify=False, trust_env=False, limits=limits) as theirs,
        TrioTransport() as ours,
    ):
        ways = {
            "client": sending(partial(client.send, stream=True), url, joined=True),
            "httpx": sending(theirs.handle_async_request, url, joined=True),
            "ours": sending(ours.handle_async_request, url, joined=False),
        }
        print("CPU µs of an exchange: httpx's client with its transport, its transport alone, ours")
        print(f"{'bytes':>8} {'client':>8} {'httpx':>8} {'ours':>8} {'ours/client':>12} {'ours/httpx':>11}")
        for size in SIZES:
            picture = os.urandom(size)
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for turn in range(exchanges // EACH + 1):
                for name, exchange in ways.items():
                    begun = time.process_time()
                    for _ in range(EACH):
                        assert await exchange(picture) == ANSWER
                    if turn:
                        seconds[name].append((time.process_time() - begun) / EACH)
            # The least: whatever else the machine does adds to a turn and takes nothing away.
            before, alone, now = (1e6 * min(seconds[name]) for name in ways)
            verdict = "" if now / alone <= TARGET else f"  above {TARGET}"
            print(f"{size:>8} {before:>8.0f} {alone:>8.0f} {now:>8.0f}", end="")
            print(f" {now / before:>12.2f} {now / alone:>11.2f}{verdict}")


def main() -> None:
    """Measure against a server of our own on loopback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--exchanges", type=int, default=2000, help="of each kind and size")
    options = parser.parse_args()
    with open_peer([RESPONSE]) as (ports, _):
        trio.run(measure, f"http://127.0.0.1:{ports[0]}/predict", options.exchanges)


if __name__ == "__main__":
    main()

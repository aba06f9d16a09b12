"""The server that benchmarks of the inference client talk to: a process that answers at once, whatever is asked."""

from __future__ import annotations

import multiprocessing
import socket
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from multiprocessing.connection import Connection

BUFFER_BYTES = 2**23
Sizes = Any
"""Shared memory with an integer for each response."""


@contextmanager
def open_peer(responses: Sequence[bytes]) -> Iterator[tuple[list[int], Sizes]]:
    """A port of the loopback for each of these responses, and the sizes of the last requests there, in bytes."""
    ours, theirs = multiprocessing.Pipe()
    sizes = multiprocessing.Array("q", len(responses))
    server = multiprocessing.Process(target=_serve, args=(theirs, responses, sizes), daemon=True)
    server.start()
    try:
        yield ours.recv(), sizes
    finally:
        server.kill()


def _serve(ports: Connection, responses: Sequence[bytes], sizes: Sizes) -> None:
    """Until killed."""
    listeners = [socket.create_server(("127.0.0.1", 0)) for _ in responses]
    for place, (listener, response) in enumerate(zip(listeners, responses, strict=True)):
        threading.Thread(target=_accept, args=(listener, response, sizes, place), daemon=True).start()
    ports.send([listener.getsockname()[1] for listener in listeners])
    threading.Event().wait()


def _accept(listener: socket.socket, response: bytes, sizes: Sizes, place: int) -> None:
    while True:
        connection, _ = listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=_answer, args=(connection, response, sizes, place), daemon=True).start()


def _answer(connection: socket.socket, response: bytes, sizes: Sizes, place: int) -> None:
    """Read each request by its Content-Length, note its size, and send the response."""
    buffer = bytearray(BUFFER_BYTES)
    with connection:
        while True:
            got = 0
            whole = None
            while whole is None or got < whole:
                count = connection.recv_into(memoryview(buffer)[got:])
                if not count:
                    return
                got += count
                if whole is None and (end := buffer.find(b"\r\n\r\n", 0, got)) >= 0:
                    head = bytes(buffer[:end]).lower()
                    length = head.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]
                    whole = end + 4 + int(length)
            sizes[place] = got
            connection.sendall(response)

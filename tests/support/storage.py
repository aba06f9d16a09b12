"""A web server with one object: ranges, conditions, and the ways in which a storage lets its client down."""

from __future__ import annotations

import enum
import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.support.certificates import Certificate

PREFIX = "/videos/"
"""The directory that a test lists; the object lies at `/videos/` with whatever name it is asked for."""

PIECE_BYTES = 64 * 1024


class Fault(enum.StrEnum):
    """What is wrong with one answer."""

    CUT = "cut"
    STALL = "stall"
    LESS = "less"
    """Announces a byte more than the object has, and closes."""
    CHANGED = "changed"
    """Another object from now on, of the same size."""
    OTHER_PART = "other part"
    """Answers a range with a part of another version, in spite of If-Range."""
    WRONG_RANGE = "wrong range"
    REDIRECT = "redirect"
    REDIRECT_INSIDE = "redirect inside"
    REDIRECT_CIRCLE = "redirect circle"
    GZIP = "gzip"
    ENDLESS = "endless"
    NO_LENGTH = "no length"
    EMPTY = "empty"
    NOT_HTTP = "not HTTP"
    WRONG_CHECKSUM = "wrong checksum"
    HUGE = "huge"
    DRIP = "drip"


class Storage:
    """What it serves, how, and what it was asked for."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.etag: str | None = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'
        self.plan: Callable[[int], Fault | int | None] = lambda _number: None
        """From the number of a request to its fault, or to the status that it is answered with."""
        self.checksums: dict[str, str] = {}
        """Headers that name checksums of the object."""
        self.cut_at = len(content) // 2
        """How many bytes of a body come before it is cut or stalls."""
        self.elsewhere = "http://169.254.169.254/latest/meta-data/"
        self.asked: list[dict[str, str]] = []
        """The headers of each request, by names in small letters; `:path` is the path with its query."""
        self.sent = 0
        """Bytes of bodies that were sent."""
        self.pause = 0.0
        """Seconds between two pieces of 64 KiB."""
        self.url = ""
        self.released = threading.Event()

    def serve(self, file: Path, etag: str) -> None:
        """Have this content from now on."""
        self.content, self.etag = file.read_bytes(), etag


@contextmanager
def open_storage(
    content: bytes, *, certificate: Certificate | None = None, name: str = "127.0.0.1"
) -> Iterator[Storage]:
    """Serve `content` for as long as the block lasts; over TLS with a certificate."""
    storage = Storage(content)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None:
            pass

        def do_GET(self) -> None:
            with suppress(OSError):
                _Exchange(storage, self).answer()
            self.close_connection = True

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: Any) -> None:
            """A client that hangs up, or does not like the certificate, is what some tests are about."""

    server = Server(("127.0.0.1", 0), Handler)
    if certificate is not None:
        server.socket = certificate.server_context().wrap_socket(
            server.socket, server_side=True, do_handshake_on_connect=False
        )
    scheme = "https" if certificate else "http"
    storage.url = f"{scheme}://{name}:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield storage
    finally:
        storage.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Exchange:
    def __init__(self, storage: Storage, handler: BaseHTTPRequestHandler) -> None:
        self._storage, self._handler = storage, handler
        storage.asked.append({name.lower(): value for name, value in handler.headers.items()} | {":path": handler.path})
        self._fault = storage.plan(len(storage.asked) - 1)

    def answer(self) -> None:  # noqa: C901, PLR0912 - one case for each fault
        storage, fault, headers = self._storage, self._fault, self._storage.asked[-1]
        if isinstance(fault, int):
            self._head(fault, {"Content-Length": "0", "Retry-After": "7"})
            return
        if fault is Fault.CHANGED:
            storage.content = bytes(255 - byte for byte in storage.content)
            storage.etag = '"another"'
        match fault:
            case Fault.REDIRECT:
                self._head(302, {"Location": storage.elsewhere, "Content-Length": "0"})
            case Fault.REDIRECT_INSIDE | Fault.REDIRECT_CIRCLE:
                self._head(307, {"Location": f"{PREFIX}moved.mp4?token=again", "Content-Length": "0"})
            case Fault.NOT_HTTP:
                self._handler.wfile.write(b"SSH-2.0-OpenSSH_10.0\r\n")
            case Fault.GZIP:
                self._head(200, {"Content-Encoding": "gzip", "Content-Length": "10"})
                self._handler.wfile.write(bytes(10))
            case Fault.EMPTY:
                self._head(200, {"Content-Length": "0"})
            case Fault.HUGE:
                self._head(200, {"Content-Length": str(2**50)})
            case Fault.NO_LENGTH:
                self._head(200, {})
                self._handler.wfile.write(storage.content)
            case Fault.ENDLESS:
                self._head(200, {"Transfer-Encoding": "chunked"})
                while not storage.released.is_set():
                    self._handler.wfile.write(b"%x\r\n%b\r\n" % (PIECE_BYTES, bytes(PIECE_BYTES)))
            case _ if headers.get("if-none-match") == storage.etag and storage.etag:
                self._head(304, {"ETag": storage.etag})
            case _:
                self._send_object(headers)

    def _send_object(self, headers: dict[str, str]) -> None:
        storage, fault = self._storage, self._fault
        size, begin = len(storage.content), 0
        more = {**storage.checksums, **({"ETag": storage.etag} if storage.etag else {})}
        if fault is Fault.WRONG_CHECKSUM:
            more["x-amz-checksum-sha256"] = "AAAA"
        wanted = headers.get("range", "")
        if wanted and (headers.get("if-range") == storage.etag or fault is Fault.OTHER_PART):
            begin = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if begin >= size:
                self._head(416, {"Content-Length": "0", "Content-Range": f"bytes */{size}"})
                return
            first = begin + 1 if fault is Fault.WRONG_RANGE else begin
            more["Content-Range"] = f"bytes {first}-{size - 1}/{size}"
            if fault is Fault.OTHER_PART:
                more["ETag"] = '"another"'
        length = size - begin + (fault is Fault.LESS)
        self._head(206 if begin else 200, {**more, "Content-Length": str(length)})
        self._send_body(begin)

    def _send_body(self, begin: int) -> None:
        storage = self._storage
        end = begin + storage.cut_at if self._fault in {Fault.CUT, Fault.STALL} else len(storage.content)
        step = 1 if self._fault is Fault.DRIP else PIECE_BYTES
        while begin < end:
            piece = storage.content[begin : min(begin + step, end)]
            self._handler.wfile.write(piece)
            begin += len(piece)
            storage.sent += len(piece)
            time.sleep(0.05 if self._fault is Fault.DRIP else storage.pause)
        if self._fault is Fault.STALL:
            storage.released.wait(60)

    def _head(self, status: int, headers: dict[str, str]) -> None:
        self._handler.send_response(status)
        for name, value in headers.items():
            self._handler.send_header(name, value)
        self._handler.send_header("Connection", "close")
        self._handler.end_headers()
        self._handler.wfile.flush()

"""The embedded inference service: the detector behind an HTTP API, in a process of its own.

`POST /predict` takes one encoded picture, as a field of a form or as the raw body, and answers with what is in it;
`GET /healthz` answers while the model computes. An error is JSON as well: `{"error": "what was wrong and expected"}`.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

import anyio
import anyio.to_thread
import uvicorn
from python_multipart import FormParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import File, parse_options_header

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from python_multipart.multipart import Field

    from trio_runner.embedded.detector import Detector, Image

    Receive = Callable[[], Awaitable[Any]]
    Send = Callable[[Any], Awaitable[None]]

log = logging.getLogger(__name__)

DEFAULT_LISTEN = "127.0.0.1:8001"
ROUTES = {"/predict": "POST", "/healthz": "GET"}
PICTURE_FIELDS = (b"frame", b"file", b"image")
MAX_BODY_BYTES = 32 * 1024**2
MAX_PIXELS = 64 * 1024**2
MAX_WAITING = 64
"""How many requests may wait for the model; each holds a picture in memory."""
BODY_SECONDS = 30.0
DRAIN_SECONDS = 5.0
STOP_SECONDS = 1
KEEP_ALIVE_SECONDS = 75
"""Longer than clients keep an idle connection (httpx: 5 s), so that no request meets a connection just closed."""

EXPECTED = "expected one encoded picture (JPEG, PNG, WebP, BMP or TIFF)"


class RequestError(Exception):
    """A request that cannot be answered: the HTTP status, and a sentence for the client."""

    def __init__(self, status: HTTPStatus, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Application:
    """The ASGI application: routes, limits, and the queue in front of the model."""

    detector: Detector
    computing: anyio.CapacityLimiter
    model: str

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one request; the server is told not to offer the other kinds of scope."""
        try:
            status, answer = await self._answer(scope, receive)
        except RequestError as error:
            status, answer = error.status, {"error": str(error)}
        except Exception:  # one bad request must not end the others
            log.exception("%s %s failed", scope["method"], scope["path"])
            status = HTTPStatus.INTERNAL_SERVER_ERROR
            answer = {"error": "the service failed on this request; its log says why"}
        body = json.dumps(answer, separators=(",", ":")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append((b"allow", ROUTES[scope["path"]].encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Any, receive: Receive) -> tuple[HTTPStatus, dict[str, Any]]:
        path, method = scope["path"], scope["method"]
        # Whatever the answer, the body is read first: see _drain.
        body = await read_body(receive)
        if path not in ROUTES:
            raise RequestError(HTTPStatus.NOT_FOUND, f"no such path {path!r}; there are POST /predict and GET /healthz")
        if method != ROUTES[path]:
            raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {ROUTES[path]}, not {method}")
        if path == "/healthz":
            return HTTPStatus.OK, {"status": "ok", "model": self.model}
        content_type = dict(scope["headers"]).get(b"content-type", b"")
        if self.computing.statistics().tasks_waiting >= MAX_WAITING:
            busy = f"{MAX_WAITING} requests are waiting already; try again later"
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, busy)
        compute = partial(predict, self.detector, content_type, body)
        # In a thread, so that this one goes on answering; the limiter lets those who wait through in order.
        found = await anyio.to_thread.run_sync(compute, limiter=self.computing)
        return HTTPStatus.OK, {**found, "model": self.model}


async def read_body(receive: Receive) -> bytes:
    """Read a request's body.

    Raises:
        RequestError: it is too long (413), comes too slowly (408), or the client went away.
    """
    body = bytearray()
    with anyio.move_on_after(BODY_SECONDS):
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(HTTPStatus.BAD_REQUEST, "the connection was closed before the body was complete")
            body += message["body"]
            more = message["more_body"]
            if len(body) > MAX_BODY_BYTES:
                await _drain(receive)
                too_long = f"the body is over {MAX_BODY_BYTES} bytes; {EXPECTED}"
                raise RequestError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_long)
        return bytes(body)
    raise RequestError(HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {BODY_SECONDS:g} s")


async def _drain(receive: Receive) -> None:
    # A connection closed on unread data is reset, and the reset can overtake the answer that says why.
    with anyio.move_on_after(DRAIN_SECONDS):
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass


def predict(detector: Detector, content_type: bytes, body: bytes) -> dict[str, Any]:
    """Detect what is in the picture a request carries, in the form it is sent back.

    Raises:
        RequestError: 400, with what was expected, when there is no such picture.
    """
    image = read_picture(find_picture(content_type, body))
    start = time.perf_counter()
    detections = detector.detect(image)
    elapsed = time.perf_counter() - start
    return {
        "predictions": [
            {"class": label, "confidence": round(confidence, 4), "bbox": [round(side, 2) for side in box]}
            for label, confidence, box in detections
        ],
        "image": {"width": image.shape[1], "height": image.shape[0]},
        "inference_ms": round(elapsed * 1000, 2),
    }


def find_picture(content_type: bytes, body: bytes) -> bytes:
    """Return the bytes of the picture in a request's body: those of the form's field, or the whole of it.

    Raises:
        RequestError: 400: nothing there, or a form that is broken or lacks the field.
    """
    kind, options = parse_options_header(content_type)
    if not body:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the body is empty; {EXPECTED}")
    if kind != b"multipart/form-data":
        return body
    fields = read_form(options.get(b"boundary", b""), body)
    for name in PICTURE_FIELDS:
        if fields.get(name):
            return fields[name]
    wanted = ", ".join(repr(name.decode()) for name in PICTURE_FIELDS)
    there = ", ".join(repr(name.decode(errors="replace")) for name in fields) or "none"
    missing = f"no picture in the form (fields there: {there}); {EXPECTED} in one of the fields {wanted}"
    raise RequestError(HTTPStatus.BAD_REQUEST, missing)


def read_form(boundary: bytes, body: bytes) -> dict[bytes, bytes]:
    """Split a multipart form into its fields.

    Raises:
        RequestError: 400: it is not a well-formed one.
    """
    fields: dict[bytes, bytes] = {}
    whole = False

    def keep(part: Field | File) -> None:
        if isinstance(part, File):
            part.file_object.seek(0)
            fields[part.field_name or b""] = part.file_object.read()
        else:
            fields[part.field_name or b""] = part.value or b""

    def end() -> None:
        nonlocal whole
        whole = True

    try:
        in_memory = {"MAX_MEMORY_FILE_SIZE": MAX_BODY_BYTES}
        form = FormParser("multipart/form-data", keep, keep, end, boundary=boundary, config=in_memory)
        form.write(body)
    except FormParserError as error:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the multipart form is broken: {error}") from error
    if not whole:
        raise RequestError(HTTPStatus.BAD_REQUEST, "the multipart form is broken: it lacks its closing boundary")
    return fields


def read_picture(encoded: bytes) -> Image:
    """Decode a picture to height x width x 3 bytes (blue, green, red).

    Raises:
        RequestError: 400: no picture, or one of more than `MAX_PIXELS` pixels.
    """
    import cv2
    import numpy as np

    try:
        image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        too_big = f"the picture has more than {MAX_PIXELS} pixels; {EXPECTED} of no more than that"
        raise RequestError(HTTPStatus.BAD_REQUEST, too_big) from error
    if image is None:
        raise RequestError(HTTPStatus.BAD_REQUEST, f"the {len(encoded)} bytes are not a picture; {EXPECTED}")
    return cast("Image", image)


def serve(listen: str = DEFAULT_LISTEN, *, threads: int = 2, concurrency: int = 1, min_confidence: float = 0.45) -> int:
    """Serve until SIGTERM or SIGINT, and return the process's exit code.

    Once the service answers, prints one line on stdout: the JSON object `{"port": N}`.

    Args:
        listen: `HOST:PORT`; port 0 takes a free one.
        threads: how many threads the model uses for one picture.
        concurrency: how many pictures are computed at once; further requests wait in order.
        min_confidence: detections below it are left out.
    """
    try:
        listener = listen_on(listen)
    except (OSError, ValueError) as error:
        log.error("cannot listen on %s: %s; --listen takes another HOST:PORT", listen, error)  # noqa: TRY400
        return os.EX_CONFIG
    # OpenCV reads this once, when it is loaded: a small file can claim a picture of gigabytes.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_PIXELS)
    import numpy as np

    from trio_runner.embedded.detector import MODEL_NAME, Detector

    detector = Detector(threads=threads, min_confidence=min_confidence)
    detector.detect(np.zeros((64, 64, 3), dtype=np.uint8))
    application = Application(detector, anyio.CapacityLimiter(concurrency), MODEL_NAME)
    config = uvicorn.Config(
        application,
        loop="asyncio",
        http="h11",
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=STOP_SECONDS,
    )
    # When it has shut down, uvicorn raises the signal again that it was stopped with; that was a wish, and is granted.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    _Server(config).run(sockets=[listener])
    return 0


class _Server(uvicorn.Server):
    """Says so when it serves."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            print(json.dumps({"port": listener.getsockname()[1]}), flush=True)


def listen_on(address: str) -> socket.socket:
    """Open a listening socket on `HOST:PORT`; raises ValueError for a bad port, OSError for one that cannot be had."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) >= 2**16:
        # An empty host would mean every interface, which nobody should open by leaving something out.
        raise ValueError(f"{address!r} is not HOST:PORT with a port from 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, int(port)), family=family, backlog=MAX_WAITING)
    # Inherited by the connections. The server writes head and body of an answer one by one, and asyncio sets this only
    # on sockets made with their protocol spelled out: without it Nagle's algorithm waits for the client's delayed
    # acknowledgement, and every request takes 40 ms more.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service from the command line."""
    parser = argparse.ArgumentParser(prog="python -m trio_runner.embedded.inference", description=__doc__)
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="for one picture; default: %(default)s")
    parser.add_argument("--min-confidence", type=float, default=0.45, help="default: %(default)s")
    parser.add_argument("--tied", action="store_true", help="die when the parent process dies")
    options = parser.parse_args(arguments)
    if options.tied:
        from trio_runner.base.leash import tie_to_parent

        tie_to_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return serve(options.listen, threads=options.threads, min_confidence=options.min_confidence)


if __name__ == "__main__":
    sys.exit(main())

"""The embedded inference service: the detector behind an HTTP API, in a process of its own.

``POST /predict`` takes one encoded picture, as a multipart field or as the raw body, and answers with what is in it;
``GET /healthz`` answers while the model computes. Every error is JSON: ``{"error": "what was wrong and what was expected"}``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import signal
import sys
import time
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import trio
from hypercorn.config import Config
from hypercorn.trio import serve as serve_asgi
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from trio_runner.embedded.detector import Detector, Image

    Scope = dict[str, Any]
    Receive = Callable[[], Awaitable[dict[str, Any]]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

log = logging.getLogger(__name__)

DEFAULT_LISTEN = "127.0.0.1:8001"
PICTURE_FIELDS = (b"frame", b"file", b"image")
MAX_BODY_BYTES = 32 * 1024**2
MAX_PIXELS = 64 * 1024**2
MAX_WAITING = 64
BODY_TIMEOUT_SECONDS = 30
DRAIN_TIMEOUT_SECONDS = 5
STOP_GRACE_SECONDS = 1.0
KEEP_ALIVE_SECONDS = 75

EXPECTED = "expected one encoded picture (JPEG, PNG, WebP, BMP or TIFF)"


class RequestError(Exception):
    """A request that cannot be answered: the HTTP status, and a sentence for the client."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


@dataclass(frozen=True)
class Application:
    """The ASGI application: routes, limits, and the queue in front of the model."""

    detector: Detector
    computing: trio.CapacityLimiter
    model: dict[str, Any]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; the server's other scopes are told that they are not supported, as ASGI asks."""
        if scope["type"] != "http":
            raise NotImplementedError(scope["type"])
        try:
            status, answer = await self._answer(scope, receive)
        except RequestError as error:
            status, answer = error.status, {"error": str(error)}
        except Exception:  # one request must not take the others down with it; the log has the reason
            log.exception("%s %s failed", scope["method"], scope["path"])
            status, answer = 500, {"error": "the service failed on this request; its log says why"}
        body = json.dumps(answer, separators=(",", ":")).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        if status == 405:
            headers.append((b"allow", ROUTES[scope["path"]].encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _answer(self, scope: Scope, receive: Receive) -> tuple[int, dict[str, Any]]:
        path, method = scope["path"], scope["method"]
        if path not in ROUTES:
            raise RequestError(404, f"no such path {path!r}; there are POST /predict and GET /healthz")
        if method != ROUTES[path]:
            raise RequestError(405, f"{path} takes {ROUTES[path]}, not {method}")
        if path == "/healthz":
            return 200, {"status": "ok", **self.model}
        content_type = dict(scope["headers"]).get(b"content-type", b"")
        body = await read_body(receive)
        if self.computing.statistics().tasks_waiting >= MAX_WAITING:
            raise RequestError(503, f"{MAX_WAITING} requests are waiting already; try again later")
        compute = partial(predict, self.detector, content_type, body)
        return 200, {**await trio.to_thread.run_sync(compute, limiter=self.computing), **self.model}


ROUTES = {"/predict": "POST", "/healthz": "GET"}


async def read_body(receive: Receive) -> bytes:
    """Read a request's body.

    Raises:
        RequestError: it is too long (413), comes too slowly (408), or the client went away.
    """
    body = bytearray()
    with trio.move_on_after(BODY_TIMEOUT_SECONDS):
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RequestError(400, "the client closed the connection before the body was complete")
            body += message["body"]
            more = message["more_body"]
            if len(body) > MAX_BODY_BYTES:
                await _drain(receive)
                raise RequestError(413, f"the body is over {MAX_BODY_BYTES} bytes; {EXPECTED}")
        return bytes(body)
    raise RequestError(408, f"the body did not arrive within {BODY_TIMEOUT_SECONDS} s")


async def _drain(receive: Receive) -> None:
    # A connection closed on unread data is reset, and the reset can overtake the answer that says why.
    with trio.move_on_after(DRAIN_TIMEOUT_SECONDS):
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
        raise RequestError(400, f"the body is empty; {EXPECTED}")
    if kind != b"multipart/form-data":
        return body
    fields = read_form(options.get(b"boundary", b""), body)
    for name in PICTURE_FIELDS:
        if fields.get(name):
            return fields[name]
    wanted = ", ".join(repr(name.decode()) for name in PICTURE_FIELDS)
    there = ", ".join(repr(name.decode(errors="replace")) for name in fields) or "none"
    raise RequestError(400, f"no picture in the form (fields there: {there}); {EXPECTED} in one of the fields {wanted}")


def read_form(boundary: bytes, body: bytes) -> dict[bytes, bytes]:
    """Split a multipart form into its fields.

    Raises:
        RequestError: 400: it is not a well-formed one.
    """
    fields: dict[bytes, bytes] = {}
    header, value, content = bytearray(), bytearray(), bytearray()
    name = b""

    def on_header_end() -> None:
        nonlocal name
        if header.lower() == b"content-disposition":
            name = parse_options_header(bytes(value))[1].get(b"name", b"")
        header.clear()
        value.clear()

    def on_part_end() -> None:
        fields[name] = bytes(content)
        content.clear()

    def append_to(buffer: bytearray) -> Callable[[bytes, int, int], None]:
        return lambda data, start, end: buffer.extend(memoryview(data)[start:end])

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_header_field": append_to(header),
                "on_header_value": append_to(value),
                "on_header_end": on_header_end,
                "on_part_data": append_to(content),
                "on_part_end": on_part_end,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError(400, f"the multipart form is broken: {error}") from error
    return fields


def read_picture(encoded: bytes) -> Image:
    """Decode a picture to height x width x 3 bytes (blue, green, red).

    Raises:
        RequestError: 400: no picture, or one of more than ``MAX_PIXELS`` pixels.
    """
    import cv2
    import numpy as np

    try:
        image = cv2.imdecode(np.frombuffer(encoded, dtype=np.uint8), cv2.IMREAD_COLOR)
    except cv2.error as error:
        raise RequestError(400, f"the picture has more than {MAX_PIXELS} pixels, or none") from error
    if image is None:
        raise RequestError(400, f"the {len(encoded)} bytes are not a picture; {EXPECTED}")
    return image


def serve(
    listen: str = DEFAULT_LISTEN, *, threads: int = 2, concurrency: int = 1, min_confidence: float = 0.45
) -> int:
    """Serve until SIGTERM or SIGINT, and return the process's exit code.

    Once the service answers, prints one line on stdout: the JSON object ``{"port": N}``.

    Args:
        listen: ``HOST:PORT``; port 0 takes a free one.
        threads: how many threads the model uses for one picture.
        concurrency: how many pictures are computed at once; further requests wait in order.
        min_confidence: detections below it are left out.
    """
    # OpenCV reads this once, when it is loaded: a small file can claim a picture of gigabytes.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_PIXELS)
    import numpy as np

    from trio_runner.embedded.detector import MODEL_NAME, Detector

    detector = Detector(threads=threads, min_confidence=min_confidence)
    detector.detect(np.zeros((64, 64, 3), dtype=np.uint8))
    trio.run(_serve_until_signalled, detector, MODEL_NAME, concurrency, listen)
    return 0


async def _serve_until_signalled(detector: Detector, model_name: str, concurrency: int, listen: str) -> None:
    application = Application(detector, trio.CapacityLimiter(concurrency), {"model": model_name})
    config = Config()
    config.bind = [listen]
    config.errorlog = logging.getLogger("hypercorn.error")
    config.graceful_timeout = STOP_GRACE_SECONDS
    config.keep_alive_timeout = KEEP_ALIVE_SECONDS
    config.keep_alive_max_requests = sys.maxsize
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with trio.open_nursery() as nursery:
            run = partial(serve_asgi, application, config, shutdown_trigger=signals.__anext__, mode="asgi")
            bound: list[str] = await nursery.start(run)
            print(json.dumps({"port": int(bound[0].rpartition(":")[2])}), flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service from the command line."""
    parser = argparse.ArgumentParser(prog="python -m trio_runner.embedded.inference", description=__doc__)
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--min-confidence", type=float, default=0.45)
    parser.add_argument("--tied", action="store_true", help="die when the parent process dies")
    options = parser.parse_args(arguments)
    if options.tied:
        from trio_runner.leash import tie_to_parent

        tie_to_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return serve(options.listen, threads=options.threads, min_confidence=options.min_confidence)


if __name__ == "__main__":
    sys.exit(main())

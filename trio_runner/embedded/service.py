"""The embedded inference service as an ASGI application: routes, limits, and the queue in front of the model."""

from __future__ import annotations

import hmac
import json
import logging
import os
import signal
import time
from dataclasses import dataclass
from functools import cached_property, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

import anyio
import anyio.to_thread
import uvicorn

from trio_runner import __version__
from trio_runner.embedded import open_inference
from trio_runner.embedded.pictures import (
    EXPECTED,
    MAX_BODY_BYTES,
    MAX_PIXELS,
    RequestError,
    find_picture,
    read_picture,
)

if TYPE_CHECKING:
    import socket
    from collections.abc import Awaitable, Callable, Mapping

    from trio_runner.embedded.detector import Detector

    Receive = Callable[[], Awaitable[Any]]
    Send = Callable[[Any], Awaitable[None]]

log = logging.getLogger(__name__)

PREDICT: Final = "/predict"
HEALTH: Final = "/healthz"
MAX_WAITING: Final = 64
"""How many requests may wait for the model; each holds a picture in memory."""
BODY_SECONDS: Final = 30.0
DRAIN_SECONDS: Final = 5.0
STOP_SECONDS: Final = 1
KEEP_ALIVE_SECONDS: Final = 75
"""Longer than clients keep an idle connection (httpx: 5 s), so that no request meets a connection just closed."""


@dataclass(frozen=True)
class Reply:
    """What is answered to a request."""

    status: HTTPStatus
    headers: list[tuple[bytes, bytes]]
    body: bytes

    @classmethod
    def of_json(cls, value: Any, status: HTTPStatus = HTTPStatus.OK) -> Reply:
        """The reply with this value as JSON."""
        body = json.dumps(value, separators=(",", ":")).encode()
        return cls(status, [(b"content-type", b"application/json")], body)


@dataclass(frozen=True)
class Application:
    """The ASGI application: routes, limits, and the queue in front of the model."""

    detector: Detector
    computing: anyio.CapacityLimiter
    model: str
    token: str = ""
    """Requests must bring it as a bearer; empty: none is asked for."""

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        """Answer one HTTP request; uvicorn is configured to offer no other kind of scope."""
        try:
            reply = await self._answer(scope, receive)
        except RequestError as error:
            reply = Reply.of_json({"error": str(error)}, error.status)
        except Exception:  # one bad request must not end the others
            log.exception("%s %s failed", scope["method"], scope["path"])
            failed = {"error": "the service failed on this request; its log says why"}
            reply = Reply.of_json(failed, HTTPStatus.INTERNAL_SERVER_ERROR)
        headers = [*reply.headers, (b"content-length", str(len(reply.body)).encode())]
        if reply.status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append((b"allow", self.routes[scope["path"]].encode()))
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": reply.body})

    @cached_property
    def routes(self) -> dict[str, str]:
        """The method of each path."""
        return {PREDICT: "POST", HEALTH: "GET", **open_inference.routes(self.model)}

    async def _answer(self, scope: Any, receive: Receive) -> Reply:
        path, method = scope["path"], scope["method"]
        # The body is read before any answer, also before a refusal, for the reason given in `_drain`.
        body = await read_body(receive)
        if path not in self.routes:
            unknown = f"no such path {path!r}; there are POST {PREDICT}, GET {HEALTH}, and /v2 with the paths below it"
            if path.startswith("/v2/models/"):
                unknown = open_inference.unknown_model(path)
            raise RequestError(HTTPStatus.NOT_FOUND, unknown)
        if method != self.routes[path]:
            raise RequestError(HTTPStatus.METHOD_NOT_ALLOWED, f"{path} takes {self.routes[path]}, not {method}")
        headers = dict(scope["headers"])
        if self.token and not hmac.compare_digest(headers.get(b"authorization", b""), b"Bearer " + self.token.encode()):
            raise RequestError(HTTPStatus.UNAUTHORIZED, "this service answers only requests that bring its token")
        if path == HEALTH:
            return Reply.of_json({"status": "ok", "model": self.model})
        if path == PREDICT:
            return await self._compute(partial(predict, self.detector, self.model, headers, body))
        if path.endswith("/infer"):
            return await self._compute(partial(infer, self.detector, self.model, headers, body))
        return Reply.of_json(open_inference.describe(path, self.model, __version__))

    async def _compute(self, compute: Callable[[], Reply]) -> Reply:
        if self.computing.statistics().tasks_waiting >= MAX_WAITING:
            busy = f"{MAX_WAITING} requests are waiting already; try again later"
            raise RequestError(HTTPStatus.SERVICE_UNAVAILABLE, busy)
        # The model computes in another thread, so that the event loop goes on answering. The limiter keeps the order.
        return await anyio.to_thread.run_sync(compute, limiter=self.computing)


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
    # Closing a connection with unread data resets it, and the client may see the reset before the answer.
    with anyio.move_on_after(DRAIN_SECONDS):
        while (message := await receive())["type"] == "http.request" and message["more_body"]:
            pass


def predict(detector: Detector, model: str, headers: Mapping[bytes, bytes], body: bytes) -> Reply:
    """Detect the objects in the picture of a request to `/predict`.

    Raises:
        RequestError: 400, with what was expected, when there is no such picture.
    """
    image = read_picture(find_picture(headers.get(b"content-type", b""), body))
    start = time.perf_counter()
    objects = detector.detect(image)
    elapsed = time.perf_counter() - start
    answer = {
        "predictions": [{"class": each.label, "confidence": each.confidence, "bbox": each.box} for each in objects],
        "image": {"width": image.shape[1], "height": image.shape[0]},
        "inference_ms": round(elapsed * 1000, 2),
        "model": model,
    }
    return Reply.of_json(answer)


def infer(detector: Detector, model: str, headers: Mapping[bytes, bytes], body: bytes) -> Reply:
    """Detect the objects in the picture of an inference request of the Open Inference Protocol; raises RequestError."""
    image, wanted = open_inference.read_request(headers.get(open_inference.JSON_LENGTH, b""), body)
    described, content = open_inference.write_answer(model, wanted, detector.detect(image))
    return Reply(HTTPStatus.OK, described, content)


def run(
    listener: socket.socket, *, model: str, threads: int, concurrency: int, min_confidence: float, token: str
) -> None:
    """Serve on this socket until SIGTERM or SIGINT; the other arguments are those of `inference.serve`.

    Args:
        listener: The socket.
        model: The name that answers and paths give to the model.
        threads: How many threads the model uses for one picture.
        concurrency: How many pictures are computed at once.
        min_confidence: Detections below it are left out.
        token: What requests must bring as a bearer; "" answers everybody.
    """
    # OpenCV reads this once, when it is loaded: a small file can claim to be a picture of gigabytes.
    os.environ["OPENCV_IO_MAX_IMAGE_PIXELS"] = str(MAX_PIXELS)
    import numpy as np

    from trio_runner.embedded.detector import Detector

    detector = Detector(threads=threads, min_confidence=min_confidence)
    # The first picture takes longer than any other; a client should not wait for that.
    detector.detect(np.zeros((64, 64, 3), dtype=np.uint8))
    application = Application(detector, anyio.CapacityLimiter(concurrency), model, token)
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
    # After its shutdown uvicorn raises the signal once more that it was stopped with. The process then ends normally.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: None)
    _Server(config).run(sockets=[listener])


class _Server(uvicorn.Server):
    """Prints its port as soon as it serves."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            print(json.dumps({"port": listener.getsockname()[1]}), flush=True)

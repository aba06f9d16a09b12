"""The embedded inference service: the detector behind an HTTP API, in a process of its own.

`POST /predict` takes one encoded picture, as a field of a form or as the raw body, and answers with what is in it;
`GET /healthz` answers while the model computes. `/v2` and the paths below it are the Open Inference Protocol v2 with
the binary tensor extension, for the model `nanodet-g-coco80`: `GET /v2/models/nanodet-g-coco80` describes it, and
`POST /v2/models/nanodet-g-coco80/infer` takes a picture as its input `image`. An error is JSON as well:
`{"error": "what was wrong and expected"}`.
"""

from __future__ import annotations

import argparse
import importlib.util
import logging
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

log = logging.getLogger(__name__)

MODEL_NAME: Final = "nanodet-g-coco80"
DEFAULT_LISTEN: Final = "127.0.0.1:8001"
PACKAGES: Final = ("anyio", "numpy", "onnxruntime", "python_multipart", "uvicorn")
"""Packages that the service imports and only the extra `embedded` installs for certain."""

BACKLOG: Final = 64
"""How many connections the kernel keeps for the service until it accepts them."""


def serve(
    listen: str = DEFAULT_LISTEN,
    *,
    threads: int = 2,
    concurrency: int = 1,
    min_confidence: float = 0.45,
    token_file: str = "",
) -> int:
    """Serve until SIGTERM or SIGINT, and return the process's exit code.

    Once the service answers, prints one line on stdout: the JSON object `{"port": N}`. If a package of the extra
    `embedded` is missing, or the address cannot be used, logs one sentence and returns 78.

    Args:
        listen: `HOST:PORT`; port 0 takes a free one.
        threads: how many threads the model uses for one picture.
        concurrency: how many pictures are computed at once; further requests wait in order.
        min_confidence: detections below it are left out.
        token_file: a file with the token that requests must bring as a bearer; "" answers everybody.
    """
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        needs = "the embedded inference service needs %s, not installed here: pip install 'trio_runner[embedded]'"
        log.error(needs, ", ".join(missing))
        return os.EX_CONFIG
    try:
        listener = listen_on(listen)
    except (OSError, ValueError) as error:
        log.error("cannot listen on %s: %s; --listen takes another HOST:PORT", listen, error)  # noqa: TRY400
        return os.EX_CONFIG
    try:
        token = Path(token_file).read_text(encoding="ascii").strip() if token_file else ""
    except (OSError, ValueError) as error:
        log.error("cannot read the token in %s: %s", token_file, error)  # noqa: TRY400
        return os.EX_CONFIG
    from trio_runner.embedded.service import run

    run(
        listener,
        model=MODEL_NAME,
        threads=threads,
        concurrency=concurrency,
        min_confidence=min_confidence,
        token=token,
    )
    return 0


def listen_on(address: str) -> socket.socket:
    """Open a listening socket on `HOST:PORT`; raises ValueError for a bad port, OSError for one that cannot be had."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    if not host or not port.isdecimal() or int(port) >= 2**16:
        # An empty host would mean every interface, which nobody should open by leaving something out.
        raise ValueError(f"{address!r} is not HOST:PORT with a port from 0 to 65535")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, int(port)), family=family, backlog=BACKLOG)
    # Connections inherit this option. uvicorn writes head and body of an answer one after the other, and asyncio sets
    # the option only on sockets that name their protocol. Without it Nagle's algorithm waits for the client's delayed
    # acknowledgement, and every request takes 40 ms more.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the service from the command line."""
    parser = argparse.ArgumentParser(prog="python -m trio_runner.embedded.inference", description=__doc__)
    parser.add_argument("--listen", default=DEFAULT_LISTEN, metavar="HOST:PORT", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, help="for one picture; default: %(default)s")
    parser.add_argument("--min-confidence", type=float, default=0.45, help="default: %(default)s")
    parser.add_argument(
        "--token-file", default="", metavar="FILE", help="the token that requests must bring as a bearer"
    )
    parser.add_argument("--tied", action="store_true", help="die when the parent process dies")
    options = parser.parse_args(arguments)
    if options.tied:
        from trio_runner.base.leash import tie_to_parent

        tie_to_parent()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    return serve(
        options.listen,
        threads=options.threads,
        min_confidence=options.min_confidence,
        token_file=options.token_file,
    )


if __name__ == "__main__":
    sys.exit(main())

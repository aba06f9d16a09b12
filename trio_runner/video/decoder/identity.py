"""Distinguishes video files without reading them whole, however large they are."""

from __future__ import annotations

import hashlib
import os
from typing import Final

SAMPLE_BYTES: Final = 64 * 1024
SAMPLES: Final = 16
"""Evenly spread from the first byte to the last: 1 MiB of any file."""


def identify(fd: int, *, codec: str, width: int, height: int) -> str:
    """SHA-256 of size, codec, geometry and samples of the content: the same wherever the file lies."""
    size = os.fstat(fd).st_size
    digest = hashlib.sha256(f"{size} {codec} {width}x{height}".encode())
    last = max(0, size - SAMPLE_BYTES)
    for number in range(SAMPLES):
        digest.update(os.pread(fd, SAMPLE_BYTES, last * number // (SAMPLES - 1)))
    return digest.hexdigest()

"""Decodes one image, and finds the damage that OpenCV reports on standard error alone."""

from __future__ import annotations

import os
import re
from typing import Any, Final

import cv2
import numpy as np

_DAMAGE: Final = re.compile(
    r"Premature end of JPEG file"
    # Some cameras write bytes of no meaning before the end of the image (0xd9), and between application segments.
    r"|Corrupt JPEG data: (?!\d+ extraneous bytes before marker 0x(?:d9|e.|fe)).*"
    r"|TIFF_Error .*"
)
"""What libjpeg and libtiff print where they fill in a damaged part of the picture, and go on."""

_LOG_BYTES: Final = 64 * 1024


def decode_still(content: bytes) -> tuple[Any, str]:
    """Decode an image; raises cv2.error.

    Nothing else may write to standard error meanwhile, because it leads to a file in memory for as long as this takes.

    Returns:
        The picture as a BGR array, None where there is none, and the first message about damage, or "".
    """
    log, stderr = os.memfd_create("log"), os.dup(2)
    try:
        os.dup2(log, 2)
        try:
            # This flag makes a BGR picture of 8 bits of any image, and turns it as its EXIF orientation says.
            image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
        finally:
            os.dup2(stderr, 2)
        found = _DAMAGE.search(os.pread(log, _LOG_BYTES, 0).decode(errors="replace"))
    finally:
        os.close(log)
        os.close(stderr)
    return image, found.group().strip() if found else ""

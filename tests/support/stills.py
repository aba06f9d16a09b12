"""Images made at test time, and directories and zip archives of them; image k shows the number k."""

from __future__ import annotations

import struct
import zipfile
from typing import TYPE_CHECKING

import cv2
import numpy as np

from tests.support.clips import Image, paint

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

SUFFIXES = (".jpg", ".png", ".webp", ".bmp", ".tiff")

TURNS = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, 1),
    7: lambda image: np.rot90(image, 1)[:, ::-1],
    8: lambda image: np.rot90(image, -1),
}
"""How an upright picture is stored, by the value of EXIF's Orientation that makes a viewer turn it upright again."""


def encode(image: Image, suffix: str = ".png") -> bytes:
    """The image as a file of this kind."""
    encoded = cv2.imencode(suffix, image)[1]
    return bytes(encoded.tobytes())


def numbered(number: int, suffix: str = ".png", size: tuple[int, int] = (320, 240)) -> bytes:
    """An image file that shows this number."""
    return encode(paint(number, size), suffix)


def oriented(number: int, suffix: str, orientation: int) -> bytes:
    """An image file that shows this number as soon as it is turned as its EXIF data say."""
    stored = np.ascontiguousarray(TURNS[orientation](paint(number, (320, 240))))
    entry = struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0)
    if suffix == ".tiff":
        return tiff(stored, entry)
    exif = np.frombuffer(b"II*\0\x08\0\0\0\x01\0" + entry + bytes(4), np.uint8)
    encoded = cv2.imencodeWithMetadata(suffix, stored, [cv2.IMAGE_METADATA_EXIF], [exif])[1]
    return bytes(encoded.tobytes())


def tiff(image: Image, *entries: bytes) -> bytes:
    """An uncompressed grey TIFF with these further entries of its directory, which are sorted by tag."""
    height, width = image.shape
    values = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: image.size}
    listed = sorted([*(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()), *entries], key=tag_of)
    directory = struct.pack("<H", len(listed)) + b"".join(listed) + bytes(4)
    return struct.pack("<2sHI", b"II", 42, 8 + image.size) + image.tobytes() + directory


def tag_of(entry: bytes) -> int:
    """The tag of a TIFF directory's entry."""
    return int.from_bytes(entry[:2], "little")


def cmyk_jpeg(colour: Sequence[int], size: tuple[int, int] = (48, 32)) -> bytes:
    """A JPEG of four channels and one colour, as image editors write it for print: inverted, with Adobe's marker.

    Args:
        colour: cyan, magenta, yellow, black, each from 0 (full ink) to 255 (none).
        size: (width, height), multiples of 8.
    """
    width, height = size
    bits, before = "", [0, 0, 0, 0]
    for _ in range(width // 8 * (height // 8)):
        for channel, value in enumerate(colour):
            # With a quantiser of 8 the coefficient of a flat block is the value itself. Each of the eight lengths that
            # a difference may have is a code of four bits; the code of one bit ends the block.
            difference, before[channel] = value - 128 - before[channel], value - 128
            length = abs(difference).bit_length()
            bits += f"{length:04b}"
            if length:
                bits += f"{difference if difference > 0 else difference + 2**length - 1:0{length}b}"
            bits += "0"
    bits += "1" * (-len(bits) % 8)
    scan = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\x00")
    components = b"".join(bytes([channel, 0x11, 0]) for channel in (1, 2, 3, 4))

    def segment(marker: int, content: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(content) + 2) + content

    return b"".join(
        [
            b"\xff\xd8",
            segment(0xEE, b"Adobe" + bytes([0, 100, 0, 0, 0, 0, 0])),
            segment(0xDB, bytes([0] + [8] * 64)),
            segment(0xC0, struct.pack(">BHHB", 8, height, width, 4) + components),
            segment(0xC4, bytes([0, 0, 0, 0, 9, *[0] * 12, *range(9)])),
            segment(0xC4, bytes([0x10, 1, *[0] * 15, 0])),
            segment(0xDA, bytes([4, 1, 0, 2, 0, 3, 0, 4, 0, 0, 63, 0])),
            scan,
            b"\xff\xd9",
        ]
    )


def directory_of(path: Path, files: Mapping[str, bytes]) -> Path:
    """Make a directory with these files, whose names may have directories in them."""
    for name, content in files.items():
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    return path


def zip_of(path: Path, files: Mapping[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    """Make a zip archive with these files."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path

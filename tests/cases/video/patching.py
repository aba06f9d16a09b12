"""Changes the bytes of a written file: boxes of MP4, elements of Matroska, chunks of AVI, cuts and flipped bits."""

from __future__ import annotations

import struct
from collections.abc import Collection
from pathlib import Path

import av

CONTAINER_BOXES = {b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"}


def find_boxes(content: bytes | bytearray, kind: bytes, start: int = 0, end: int | None = None) -> list[int]:
    """The positions of the payloads of all boxes of this kind in an MP4 file, in order."""
    found, position, end = [], start, len(content) if end is None else end
    while position + 8 <= end:
        size = int.from_bytes(content[position : position + 4])
        name = bytes(content[position + 4 : position + 8])
        if size < 8:
            break
        if name == kind:
            found.append(position + 8)
        if name in CONTAINER_BOXES:
            found += find_boxes(content, kind, position + 8, position + size)
        position += size
    return found


def limit_edit(path: Path, milliseconds: int) -> None:
    """Let the edit list of the first track present only its first `milliseconds`."""
    content = bytearray(path.read_bytes())
    edits = find_boxes(content, b"elst")[0]
    version_and_flags, count = struct.unpack_from(">II", content, edits)
    assert version_and_flags == 0
    assert count == 1
    struct.pack_into(">I", content, edits + 8, milliseconds)
    path.write_bytes(content)


def replace_all(path: Path, old: bytes, new: bytes) -> None:
    """Replace bytes by as many others; there must be some to replace."""
    content = path.read_bytes()
    assert old in content
    assert len(old) == len(new)
    path.write_bytes(content.replace(old, new))


def drop_default_duration(path: Path) -> None:
    """Turn DefaultDuration of each track of a Matroska file into Void."""
    content = bytearray(path.read_bytes())
    position, dropped = content.find(b"\x23\xe3\x83"), 0
    while position >= 0:
        size = content[position + 3] & 0x7F
        # ID (1 byte), size (1 byte), payload: as many bytes as the ID of 3, the size of 1 and the payload were.
        content[position : position + 2] = bytes([0xEC, 0x80 | size + 2])
        dropped += 1
        position = content.find(b"\x23\xe3\x83", position + 4 + size)
    assert dropped
    path.write_bytes(content)


def append_empty_chunks(path: Path, count: int) -> None:
    """Append chunks of length 0 to the frames of an AVI file of one video stream, in its index and its counts, too."""
    content = bytearray(path.read_bytes())
    movi = content.index(b"movi")
    index = content.index(b"idx1")
    entries = struct.unpack_from("<I", content, index + 4)[0] // 16
    offset = struct.unpack_from("<I", content, index + 8 + 16 * (entries - 1) + 8)[0]
    length = struct.unpack_from("<I", content, index + 8 + 16 * (entries - 1) + 12)[0]
    end = movi + offset + 8 + length + length % 2
    offsets = [end - movi + 8 * number for number in range(count)]
    added = b"".join(struct.pack("<4sIII", b"00dc", 0, offset, 0) for offset in offsets)
    content[index + 8 + 16 * entries : index + 8 + 16 * entries] = added
    struct.pack_into("<I", content, index + 4, 16 * (entries + count))
    content[end:end] = struct.pack("<4sI", b"00dc", 0) * count
    _add(content, 4, (16 + 8) * count)  # the file
    _add(content, movi - 4, 8 * count)  # the list of frames
    _add(content, content.index(b"avih") + 8 + 16, count)  # dwTotalFrames
    _add(content, content.index(b"strh") + 8 + 32, count)  # dwLength
    path.write_bytes(content)


def _add(content: bytearray, position: int, number: int) -> None:
    struct.pack_into("<I", content, position, struct.unpack_from("<I", content, position)[0] + number)


def cut(path: Path, *, part: float | None = None, off: int = 0) -> None:
    """Keep the first `part` of a file's bytes, less `off` bytes."""
    content = path.read_bytes()
    path.write_bytes(content[: round(len(content) * (1 if part is None else part)) - off])


def cut_last_frame(path: Path) -> None:
    """Cut a Matroska file within its last frame: the index that follows it goes, and four bytes more."""
    content = path.read_bytes()
    path.write_bytes(content[: content.rindex(b"\x1c\x53\xbb\x6b") - 4])


def flip(path: Path, packets: Collection[int]) -> None:
    """Flip every bit in the second half of some packets of the first video stream, counted in the order of the file."""
    content = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    for number in packets:
        position, size = places[number]
        assert position is not None
        for place in range(position + size // 2, position + size):
            content[place] ^= 0xFF
    path.write_bytes(content)

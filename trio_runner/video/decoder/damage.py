"""Which pictures are damaged: those that FFmpeg reports, and those that refer to them, up to the next key frame."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import av.logging

if TYPE_CHECKING:
    from collections.abc import Callable

MAX_NOTES: Final = 20

_MESSAGE_ONLY: Final = frozenset(
    {"hevc", "mjpeg", "ffv1", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "wmv1", "wmv2", "wmv3", "vc1", "dvvideo"}
)
"""FFmpeg's decoders of these codecs conceal damage and report it in an error message alone.

The message is logged while the damaged packet is decoded, before the call returns, so it names the packet.
"""

_HARMLESS: Final = re.compile(r"SEI type|unable to decode APP fields|VPS 0 does not exist|skipped|not implemented")
"""Errors about parts of a packet that are not its picture."""

_DROPPED: Final = "Skipping invalid undecodable NALU"
"""A warning of the decoder of HEVC, which then leaves out a part of the picture, or all of it."""


def reported_by(codec: str, messages: list[tuple[int, str, str]]) -> str:
    """The first message that reports damage of the packet just decoded; empty where none does."""
    if codec in _MESSAGE_ONLY:
        for level, name, text in messages:
            if text.startswith(_DROPPED) or (level <= av.logging.ERROR and not _HARMLESS.search(text)):
                return f"FFmpeg: {name}: " + text.strip(" .\n")
    return ""


def remedy(*, is_stored: bool) -> str:
    """What to do about a damaged video, of which frames are stored or not.

    Stored frames fix the video and its options: a scenario that has some goes on with neither another file nor another
    `on_corrupt`.
    """
    if is_stored:
        return 'Submit a whole copy, or this one with video.on_corrupt = "skip", as another scenario'
    return 'Give a whole copy, or set video.on_corrupt = "skip"'


class PassedOver:
    """Names for the log the frames that are passed over because they are damaged, each run of them once it ends.

    Args:
        note: Called with a sentence for each of the first `MAX_NOTES` runs.
    """

    def __init__(self, note: Callable[[str], None]) -> None:
        self._note, self._notes = note, 0
        self._run: tuple[int, int] | None = None

    def see(self, index: int, *, whole: bool) -> None:
        """The next frame, in order, has this number."""
        if whole:
            self.end()
        else:
            self._run = (index if self._run is None else self._run[0], index)

    def end(self) -> None:
        """No further frame follows directly."""
        if self._run is None:
            return
        (first, last), self._run = self._run, None
        self._notes += 1
        if self._notes <= MAX_NOTES:
            more = "; further ones are not named" if self._notes == MAX_NOTES else ""
            which = f"frame {first} is" if first == last else f"frames {first} to {last} are"
            self._note(f"{which} damaged and passed over{more}")


class Damage:
    """Remembers the damaged packets, and decides for each picture in the order of presentation whether it is whole.

    Packets are numbered from 0 in the order of decoding, and a picture has the number of its packet. A picture refers
    to others of smaller numbers, but not past the last key frame that was presented: those that come out before a key
    frame although they were decoded after it still refer to the pictures before.
    """

    def __init__(self) -> None:
        self._first: tuple[int, int | None] | None = None
        self._damaged: list[int] = []
        self._whole_from = 0

    def note(self, number: int, pts: int | None) -> None:
        """The packet of this number and time is damaged."""
        self._first = self._first or (number, pts)
        if number not in self._damaged[-1:]:
            self._damaged.append(number)

    def is_whole(self, number: int, *, key_frame: bool) -> bool:
        """Whether the next picture is whole; all damage of packets before it must have been noted."""
        if not self._damaged:
            return True
        if key_frame and number not in self._damaged:
            self._whole_from = number
            self._damaged = [damaged for damaged in self._damaged if damaged > number]
        return not any(self._whole_from <= damaged <= number for damaged in self._damaged)

    def is_past(self, number: int, pts: int | None) -> bool:
        """Whether a picture is decoded or presented after the first damaged packet, which may have given no picture."""
        if self._first is None:
            return False
        first, first_pts = self._first
        return number >= first or (pts is not None and first_pts is not None and pts > first_pts)

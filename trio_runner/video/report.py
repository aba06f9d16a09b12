"""What `inspect` finds in a video: the decoder child fills it in, and the command line shows it."""

from __future__ import annotations

from typing import Final

import msgspec

MAX_PICTURES: Final = 144
"""On one contact sheet."""

MAX_LISTED: Final = 50
"""Streams, places of damage and changes of size that a report lists at most."""


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """One stream of the container."""

    index: int
    kind: str
    codec: str
    detail: str
    """Size and rate of a video stream, layout and rate of an audio stream."""
    language: str
    marks: str
    """As the container marks it: default, attached_pic …"""
    chosen: bool
    """Whether its pictures are read."""


class Place(msgspec.Struct, frozen=True):
    """A frame: its number, and its time in seconds."""

    index: int
    seconds: float


class Size(msgspec.Struct, frozen=True):
    """The size of the pictures from one frame on, in pixels as they are shown."""

    index: int
    width: int
    height: int


class Declared(msgspec.Struct, frozen=True, kw_only=True):
    """What the container says; None or 0 where it says nothing."""

    frames: int | None
    fps: float
    duration_seconds: float | None


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What reading has shown, of the frames that were read."""

    frames: int
    fps: float
    """0 where there are fewer than two frames."""
    shortest_seconds: float
    longest_seconds: float
    """The least and the greatest time between two frames that follow each other."""
    first_seconds: float
    last_seconds: float
    """The times of the first and of the last frame."""
    key_frames: int
    key_frame_seconds: float
    """The greatest time from one key frame to the next."""
    interlaced: int
    damaged: tuple[Place, ...]
    """At most MAX_LISTED of them."""
    damaged_frames: int
    lost_packets: int
    """Packets that the decoder refused."""
    sizes: tuple[Size, ...]
    """At most MAX_LISTED: the first size, and each change."""


class Picture(msgspec.Struct, frozen=True, kw_only=True):
    """How the first picture is stored, and how it is shown."""

    pixel_format: str
    width: int
    height: int
    """As it is stored."""
    rotation: int
    """Degrees, clockwise, by which a player turns it."""
    mirrored: bool
    pixel_aspect: str
    matrix: str
    range: str
    transfer: str
    primaries: str


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """Everything about one video."""

    path: str
    container: str
    """Its names; that it is a directory or zip archive of images."""
    size_bytes: int
    identity: str
    """By this the runners tell whether a file is the video that they began with."""
    streams: tuple[Stream, ...]
    codec: str
    profile: str
    other_files: int
    """Beside the images of a directory or archive."""
    edit_list_packets: int
    """Packets that are decoded and not shown, because the container's edit list leaves them out."""
    declared: Declared
    measured: Measured
    picture: Picture | None
    selected: int
    """Frames that the options of `[video]` select."""
    whole: bool
    """Whether the video was read to its end."""
    problem: str
    """The error code and message with which a run that decodes all of it would end; "" where it would complete."""

"""Which frames of a video a scenario consists of: the options that say so, as JSON, and how two of these differ."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import msgspec

from trio_runner.config.sections import VideoSection

if TYPE_CHECKING:
    from collections.abc import Iterator

KEYS: Final = (
    "stream",
    "square_pixels",
    "fps",
    "key_frames_only",
    "stride",
    "max_fps",
    "start_seconds",
    "max_frames",
    "on_corrupt",
)
"""The keys of `[video]` that must not change between the attempts at one scenario."""


def sampling_of(video: VideoSection) -> str:
    """The options of this section as a JSON object."""
    return msgspec.json.encode({key: getattr(video, key) for key in KEYS}).decode()


def differences(stored: str | None, now: str | None) -> list[str]:
    """The options that choose other frames than before, each with both values; none where the choice is the same.

    A key that one side does not have stands for its default there, so that a version with one option more goes on with
    what a version without it began. An option that this version does not know counts as off where it is null, false, 0
    or "": an option that is added must mean by these that everything is chosen as without it.
    """
    return list(_differences(_decoded(stored), _decoded(now)))


def _differences(stored: dict[str, Any], now: dict[str, Any]) -> Iterator[str]:
    defaults = {key: getattr(VideoSection(), key) for key in KEYS}
    for key in (*KEYS, *sorted((stored.keys() | now.keys()) - set(KEYS))):
        before, after = (side.get(key, defaults.get(key)) for side in (stored, now))
        if before != after and (key in defaults or before or after):
            yield f"{key} was {_shown(before)} and is {_shown(after)}"


def _decoded(text: str | None) -> dict[str, Any]:
    return msgspec.json.decode(text, type=dict[str, Any]) if text else {}


def _shown(value: Any) -> str:
    return "not known" if value is None else msgspec.json.encode(value).decode()

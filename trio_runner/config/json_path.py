"""Places in a JSON body that a config names, as `instances[0].content`."""

from __future__ import annotations

import re
from copy import deepcopy
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Mapping

_STEP: Final = re.compile(r"""(?:(?:^|\.)(?:([^\s."\[\]]+)|"([^"]+)"))|\[([0-9]{1,2})\]""")


class JsonPathError(ValueError):
    """A path is none, or does not go together with the paths before it."""


def parse_path(text: str) -> tuple[str | int, ...]:
    """The keys and indexes of a path: keys between dots, in quotes where they hold one, and indexes in brackets."""
    steps: list[str | int] = []
    position = 0
    while matched := _STEP.match(text, position):
        bare, quoted, index = matched.groups()
        steps.append(int(index) if index is not None else bare or quoted)
        position = matched.end()
    if not steps or position < len(text) or isinstance(steps[0], int):
        raise JsonPathError(f"{text!r} is not of the form key.key[0].key")
    return tuple(steps)


def filled(values: Mapping[str, Any]) -> dict[str, Any]:
    """A JSON object with each value at its path; raises JsonPathError.

    An index is that of an item that is there already, or of the next one.
    """
    body: dict[str, Any] = {}
    for text, value in values.items():
        path = parse_path(text)
        holder: Any = body
        for step, following in pairwise(path):
            holder = _put(holder, step, [] if isinstance(following, int) else {}, text, keep=True)
        # A later path may lead into this value, which belongs to the config.
        _put(holder, path[-1], deepcopy(value), text, keep=False)
    return body


def _put(holder: Any, step: str | int, value: Any, text: str, *, keep: bool) -> Any:
    """What stands at `step` afterwards: `value`, or with `keep` what stood there already."""
    if isinstance(holder, list) and isinstance(step, int):
        if step == len(holder):
            holder.append(value)
        elif step > len(holder):
            raise JsonPathError(f"{text!r} leaves a gap: the list has {len(holder)} items")
        elif not keep:
            holder[step] = value
        return holder[step]
    if isinstance(holder, dict) and isinstance(step, str):
        if keep:
            return holder.setdefault(step, value)
        holder[step] = value
        return value
    raise JsonPathError(f"{text!r} does not go together with the other fields")

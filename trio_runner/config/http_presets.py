"""The presets of the protocol `http`: files of TOML with keys of `[inference.http]`, which a config may override."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

import msgspec
import tomli

from trio_runner.config.expressions import is_switched_off
from trio_runner.config.inference import HttpSection
from trio_runner.config.kinds import PLACEHOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from importlib.resources.abc import Traversable

DEFAULTS: Final = {
    "method": "POST",
    "path": "/",
    "image": "multipart",
    "content_type": "image/jpeg",
    "box_format": "xyxy",
}
"""What a key that is "" stands for where no preset says otherwise; `box_scale` keeps its "" (see runner.toml)."""

IMAGE_AT: Final = {"multipart": "file", "raw": "", "base64": "image", "data-url": "image"}
"""The same for `image_at`, which depends on `image`."""

REQUEST_KEYS: Final = frozenset({"method", "path", "image", "image_at", "content_type", "ready_path"})
NOT_EXPRESSIONS: Final = REQUEST_KEYS | {
    *("preset", "fields", "field_files", "box_format", "box_scale", "min_score", "raw"),
}
EXPRESSIONS: Final = tuple(
    field.name for field in msgspec.structs.fields(HttpSection) if field.name not in NOT_EXPRESSIONS
)
"""The keys whose values are JMESPath expressions."""

_SUGGESTION: Final = "#: "


@dataclass(frozen=True, slots=True)
class Preset:
    """One preset."""

    name: str
    summary: str
    """One line: the service."""
    suggestions: tuple[str, ...]
    """Lines of TOML for `[inference]`, such as a usual address."""
    lines: tuple[str, ...]
    """Its lines of TOML for `[inference.http]`, each with one key."""
    keys: HttpSection

    def as_toml(self) -> str:
        """A config to paste: the keys that the user must set, and the others as comments."""
        lines = [line if line.startswith("#") or PLACEHOLDER.search(line) else f"# {line}" for line in self.lines]
        return "\n".join(
            [
                f"# {self.summary}",
                "[inference]",
                *self.suggestions,
                'protocol = "http"',
                "",
                "[inference.http]",
                f'preset = "{self.name}"',
                *lines,
            ]
        )


def preset_names() -> list[str]:
    """The names of all presets, in the order of the alphabet."""
    return sorted(each.name.removesuffix(".toml") for each in _folder().iterdir() if each.name.endswith(".toml"))


def read_preset(name: str) -> Preset:
    """The preset of this name, which is one of `preset_names()`.

    The file's first line is a comment with the summary. Lines that begin with "#: " are suggestions for `[inference]`.
    """
    text = _folder().joinpath(f"{name}.toml").read_text(encoding="utf-8")
    summary, *lines = text.splitlines()
    return Preset(
        name=name,
        summary=summary.removeprefix("# "),
        suggestions=tuple(line.removeprefix(_SUGGESTION) for line in lines if line.startswith(_SUGGESTION)),
        lines=tuple(line for line in lines if line and not line.startswith(_SUGGESTION)),
        keys=msgspec.convert(tomli.loads(text), HttpSection),
    )


def resolved(http: HttpSection) -> HttpSection:
    """The keys as they are applied: those of the config, else those of the preset, else the defaults."""
    below = read_preset(http.preset).keys if http.preset else HttpSection()
    keys: dict[str, Any] = {}
    for field in msgspec.structs.fields(HttpSection):
        name = field.name
        value = getattr(http, name) or getattr(below, name) or DEFAULTS.get(name, getattr(http, name))
        keys[name] = "" if name in EXPRESSIONS and is_switched_off(value) else value
    keys["fields"] = {**below.fields, **http.fields}
    keys["image_at"] = keys["image_at"] or IMAGE_AT[keys["image"]]
    return HttpSection(**keys)


def placeholders(http: HttpSection) -> Iterator[tuple[str, str]]:
    """Each key, or `fields.NAME`, that still holds a placeholder of the preset, and the placeholder."""
    below = read_preset(http.preset).keys
    pairs = [(name, getattr(below, name), getattr(http, name)) for name in ("path", *EXPRESSIONS)]
    pairs += [
        (f"fields.{name}", value, http.fields.get(name))
        for name, value in below.fields.items()
        if isinstance(value, str) and name not in http.field_files
    ]
    for name, preset, configured in pairs:
        found = PLACEHOLDER.search(preset)
        # A printed config may have been pasted as it is.
        if found and (not configured or found[0] in str(configured)):
            yield name, found[0]


def _folder() -> Traversable:
    return resources.files("trio_runner").joinpath("config/presets")

"""Services of one's own, recognised by the description that FastAPI, LitServe and BentoML write of them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from trio_runner.inference.replies import Guess, Reply, as_list, as_text, at, comment, good, is_name, paths_of, quoted

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_PRESETS: Final = "`trio-runner protocols` lists presets, docs/protocols.md explains the keys"
_IMAGE_FIELDS: Final = ("image", "image_base64", "img", "frame", "picture", "photo", "file", "data", "b64")

_SOUND: Final = re.compile("audio|speech|transcri", re.IGNORECASE)
"""Paths such as vLLM's /v1/audio/transcriptions, whose file is no picture."""


def described_by_openapi(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    """Services of one's own, as FastAPI, LitServe and BentoML describe them."""
    page = good(replies, "GET /openapi.json")
    document = page.json if page else None
    if not isinstance(document, dict):
        return
    title = as_text((document.get("info") or {}).get("title")) if isinstance(document.get("info"), dict) else ""
    for path, methods in list(paths_of(page).items()):
        post = methods.get("post") if isinstance(methods, dict) else None
        if not isinstance(post, dict) or not re.fullmatch(r"/((?![?#{}])[!-~])*", path) or _SOUND.search(path):
            continue
        content = at(_resolved(post.get("requestBody"), document), "content")
        what = f"a service of its own{f' ({title})' if title else ''}, POST {path}"
        if (field := _file_field(at(content, "multipart/form-data", "schema"), document)) is not None:
            yield Guess(
                f"{what} with a picture as the form's field {field}",
                (
                    'protocol = "predict"' + comment(f'if its answer has another shape: "http"; {_PRESETS}'),
                    *("", "[inference.predict]", f"path = {quoted(path)}", f"field = {quoted(field)}"),
                ),
            )
        elif isinstance(content, dict) and any(str(kind).startswith("image/") for kind in content):
            yield Guess(
                f"{what} with a picture as its body",
                (
                    *(
                        'protocol = "http"',
                        "",
                        "[inference.http]",
                        f"# {_PRESETS}",
                        f"path = {quoted(path)}",
                        'image = "raw"',
                    ),
                    "raw = true"
                    + comment("until list, label, score and box say where the detections are in its answer"),
                ),
            )
        elif (field := _text_field(at(content, "application/json", "schema"), document)) is not None:
            yield Guess(
                f"{what} with a picture in the JSON key {field}",
                (
                    *('protocol = "http"', "", "[inference.http]", f"# {_PRESETS}", f"path = {quoted(path)}"),
                    'image = "base64"' + comment('a guess: or "data-url"'),
                    f"image_at = {quoted(field)}",
                    "raw = true"
                    + comment("until list, label, score and box say where the detections are in its answer"),
                ),
            )


def _file_field(schema: Any, document: dict[str, Any]) -> str | None:
    for name, kind in _properties(schema, document).items():
        each = _resolved(kind, document)
        kinds = [each, at(each, "items"), *as_list(at(each, "anyOf"))]
        is_file = any(at(one, "format") == "binary" or at(one, "contentMediaType") for one in kinds)
        if is_file and is_name(name):
            return str(name)
    return None


def _text_field(schema: Any, document: dict[str, Any]) -> str | None:
    names = [
        name
        for name, kind in _properties(schema, document).items()
        if at(_resolved(kind, document), "type") == "string"
    ]
    return next((name for name in _IMAGE_FIELDS if name in names), None)


def _properties(schema: Any, document: dict[str, Any]) -> dict[str, Any]:
    found = at(_resolved(schema, document), "properties")
    return found if isinstance(found, dict) else {}


def _resolved(value: Any, document: dict[str, Any]) -> Any:
    """The value, or the part of the document that its `$ref` names."""
    reference = at(value, "$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return value
    return at(document, *reference[2:].split("/"))

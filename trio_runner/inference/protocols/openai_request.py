"""The request of the protocol `openai`: the prompt, the JSON Schema of the answer, and the dialects of boxes."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_runner.config.inference import OpenaiSection

PICTURE: Final = "\N{WHITE SQUARE}picture\N{WHITE SQUARE}"
"""Stands where the picture comes."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """How a family of models writes boxes."""

    key: str
    form: Literal["xyxy", "yxyx"]
    scale: Literal["", "0-1000"]
    """Empty for pixels, where an answer within 0 to 1 is refused."""
    order: str


_QWEN: Final = Dialect("bbox_2d", "xyxy", "", "[x1, y1, x2, y2] in pixels")
DIALECTS: Final[Mapping[str, Dialect]] = MappingProxyType(
    {
        "plain": Dialect("bbox", "xyxy", "", "[x1, y1, x2, y2] in pixels"),
        "qwen2.5-vl": _QWEN,
        "qwen3-vl": replace(_QWEN, scale="0-1000", order="[x1, y1, x2, y2] from 0 to 1000"),
        "gemini": Dialect("box_2d", "yxyx", "0-1000", "[ymin, xmin, ymax, xmax] from 0 to 1000"),
    }
)


def request(keys: OpenaiSection, dialect: Dialect, classes: Sequence[str]) -> dict[str, Any]:
    """The whole request as JSON, with PICTURE in the place of the picture in base64."""
    picture = {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{PICTURE}"}}
    prompt = {"type": "text", "text": keys.prompt or _prompt(keys, dialect, classes)}
    # The picture stands before the prompt, as in the examples of Qwen and Gemini.
    request: dict[str, Any] = {"messages": [{"role": "user", "content": [picture, prompt]}]}
    if keys.model:
        request["model"] = keys.model
    if keys.max_tokens:
        request["max_tokens"] = keys.max_tokens
    if keys.temperature != "default":
        request["temperature"] = keys.temperature
    if keys.answer in {"boxes", "labels"} and keys.response_format == "json_schema":
        schema = {"name": "detections", "strict": True, "schema": _schema(keys, dialect, classes)}
        request["response_format"] = {"type": "json_schema", "json_schema": schema}
    elif keys.answer != "text" and keys.response_format != "none":
        request["response_format"] = {"type": "json_object"}
    return {**request, **keys.extra}


def _prompt(keys: OpenaiSection, dialect: Dialect, classes: Sequence[str]) -> str:
    wanted = ", ".join(json.dumps(name, ensure_ascii=False) for name in classes)
    label = json.dumps(classes[0] if classes else "person", ensure_ascii=False)
    match keys.answer:
        case "text":
            return "Describe this picture in one or two sentences."
        case "raw":
            return "Describe this picture as one JSON object."
        case "labels":
            example = f'{{"detections": [{{"label": {label}}}]}}'
            task = f"Say which of these this picture shows: {wanted}." if wanted else "Say what this picture shows."
        case _:
            example = f'{{"detections": [{{"label": {label}, "{dialect.key}": {dialect.order.partition("]")[0]}]}}]}}'
            what = f"every object of these classes: {wanted}" if wanted else "every object"
            task = f"Find {what} in this picture. Give the box of each as {dialect.order}."
            if "[" not in dialect.order:
                example = f'{{"detections": [{{"label": {label}, "{dialect.key}": […]}}]}}'
    return f'{task} Answer with JSON alone, of this form: {example}. If there is none, answer {{"detections": []}}.'


def _schema(keys: OpenaiSection, dialect: Dialect, classes: Sequence[str]) -> dict[str, Any]:
    item: dict[str, Any] = {"label": {"type": "string", **({"enum": list(classes)} if classes else {})}}
    if keys.answer == "boxes":
        # Whole numbers, because some models do not stop writing the digits of others.
        kind = {"type": "number" if keys.box_scale == "0-1" else "integer"}
        item[dialect.key] = {"type": "array", "items": kind, "minItems": 4, "maxItems": 4}
    return _object(detections={"type": "array", "items": _object(**item)})


def _object(**properties: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }

"""The `openai` protocol: a chat with the picture, answered by a language model that sees.

    POST {url}/v1/chat/completions  {"model", "messages": [{"role": "user", "content": [picture, prompt]}], …}
    200 {"choices": [{"finish_reason": "stop", "message": {"content": "JSON, often with prose around it"}}]}

vLLM, SGLang, llama.cpp, Ollama, LM Studio, OpenAI, Azure, OpenRouter and Gemini's compatible API speak it. Models
differ in how they write boxes: a dialect is the key, the order and the scale that a family of models was trained on.
No model gives a confidence that means anything, so that none is asked for.
"""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from trio_runner.config.inference import BoxKeys
from trio_runner.inference.answer import (
    BadAnswerError,
    confidence,
    items,
    json_kind,
    named,
    number,
    parse_json,
    quoted,
    refuse_empty_failure,
    refuse_failure,
    storable,
)
from trio_runner.inference.boxes import SPANS, Found, reading
from trio_runner.inference.prose import json_in, without_thinking
from trio_runner.inference.protocol import Call, Reading
from trio_runner.inference.protocols.openai_request import DIALECTS, PICTURE, request
from trio_runner.inference.smart_resize import smart_resize
from trio_runner.model import Detection

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.config.inference import InferenceSection, OpenaiSection
    from trio_runner.inference.protocol import Answer, WireProtocol
    from trio_runner.model import Frame

TABLE: Final = "inference.openai"
CONTENT: Final = "$.choices[0].message.content"
LABEL_KEYS: Final = ("label", "class", "class_name", "name")
SCORE_KEYS: Final = ("confidence", "score")
RUNAWAY: Final = 10
"""A coordinate of more than so many sides of the picture is digits that the model could not stop."""
MAX_TOKENS_COUNTED: Final = 2**31


BOX_KEYS: Final = ("bbox", "box", "bbox_2d", "box_2d")


def open_protocol(config: InferenceSection, names: Sequence[str]) -> WireProtocol:
    """The protocol with the table `[inference.openai]`; `names` are looked for where it names no classes."""
    keys = config.openai
    dialect = DIALECTS[keys.dialect]
    form, scale = keys.box_format or dialect.form, keys.box_scale or dialect.scale
    if keys.box_format or keys.box_scale:
        dialect = replace(dialect, order=f"{form} with a scale of {scale or 'pixels'}")
    classes = keys.classes or tuple(filter(None, names))
    head, _, tail = json.dumps(request(keys, dialect, classes)).partition(json.dumps(PICTURE)[1:-1])
    return Openai(
        keys, tuple(names), dialect.key, BoxKeys(box_format=form, box_scale=scale), (head.encode(), tail.encode())
    )


@dataclass(frozen=True, slots=True)
class Openai:
    """One service of this kind, and the model that it is asked for."""

    keys: OpenaiSection
    names: tuple[str, ...]
    box_key: str
    boxes: BoxKeys
    around: tuple[bytes, bytes]
    """The request before the picture and behind it."""
    max_answer_bytes: int = 2**20
    max_frames: int = 1

    def call(self, frames: Sequence[Frame]) -> Call:
        """`POST {url}{path}` with the JPEG in a data URL."""
        (frame,) = frames
        head, tail = self.around
        body = (head, base64.b64encode(frame.content), tail)
        return Call(path=self.keys.path, headers=(("Content-Type", "application/json"),), body=body)

    def read(self, answer: Answer, frames: Sequence[Frame]) -> Sequence[Reading]:
        """What the model said about the frame; raises BadAnswerError with the JSON path of the wrong value."""
        (frame,) = frames
        whole = parse_json(answer.body)
        text = _text(whole)
        tokens = _tokens(whole.get("usage"))
        try:
            said = without_thinking(text)
            if self.keys.answer == "text":
                return [Reading((Detection("text", None, None, None, {"text": storable(said, "$")}),), tokens=tokens)]
            value = json_in(said)
            if self.keys.answer == "raw":
                return [Reading((Detection("raw", None, None, None, {"raw": storable(value, "$")}),), tokens=tokens)]
            if isinstance(value, dict):
                refuse_failure(value, list(value))
            found = [self._found(item, path) for item, path in _listed(value, (*LABEL_KEYS, *BOX_KEYS))]
            if not found:
                refuse_empty_failure(value)
            seen = self._seen(frame)
            self._refuse_scale(found, seen)
            return [reading(found, seen, self.boxes, TABLE, tokens=tokens)]
        except BadAnswerError as error:
            raise BadAnswerError(f"{CONTENT}: {error}; the model wrote {quoted(text)}") from error

    def readiness(self) -> Call | None:
        """`GET /v1/health` beside the path of the chat, and `GET /v1/models` where there is no such path.

        llama.cpp lists its models while it loads them, and answers 503 to any other request. `/health` itself is not
        asked, because LiteLLM then asks every model that it knows.
        """
        base, _, _ = self.keys.path.rpartition("/chat/completions")
        models = Call(method="GET", path=f"{base}/models")
        return Call(method="GET", path=f"{base}/health", otherwise=models) if base else None

    def _found(self, item: Any, path: str) -> Found:
        if isinstance(item, str | int) and self.keys.answer == "labels":
            item, path_of_label = {"label": item}, path
        elif isinstance(item, dict):
            path_of_label = f"{path}.{(key := _one_of(item, LABEL_KEYS, path))}"
            item = {**item, "label": item[key]}
        else:
            raise BadAnswerError(f"{path}: expected an object, got {json_kind(item)}")
        label, class_id = named(item["label"], path_of_label, self.names)
        score = next((key for key in SCORE_KEYS if item.get(key) is not None), None)
        return Found(
            path=path,
            label=label,
            class_id=class_id,
            confidence=None if score is None else confidence(item[score], f"{path}.{score}"),
            box=self._box(item, path) if self.keys.answer == "boxes" else None,
        )

    def _box(self, item: dict[str, Any], path: str) -> tuple[str, tuple[float, float, float, float]]:
        key = _one_of(item, BOX_KEYS, path)
        if key.endswith("_2d") and key != self.box_key and not self.keys.box_format:
            dialects = " or ".join(f'"{name}"' for name, each in DIALECTS.items() if each.key == key)
            raise BadAnswerError(f"{path}.{key}: not of this dialect: set {TABLE}.dialect = {dialects}")
        path, corners = f"{path}.{key}", item[key]
        if isinstance(corners, list) and len(corners) == 1:
            (corners,) = corners
        if not isinstance(corners, list) or len(corners) != len("xyxy"):
            raise BadAnswerError(f"{path}: expected four numbers")
        x1, y1, x2, y2 = (number(corner, f"{path}[{place}]") for place, corner in enumerate(corners))
        return path, (x1, y1, x2, y2)

    def _seen(self, frame: Frame) -> Frame:
        """The frame with the size of the picture in whose pixels the model counts.

        For Qwen2.5-VL that is the picture that the service makes of the one that was sent.
        """
        if self.keys.dialect != "qwen2.5-vl":
            return frame
        width, height = smart_resize(
            frame.sent_width, frame.sent_height, min_pixels=self.keys.min_pixels, max_pixels=self.keys.max_pixels
        )
        return replace(frame, sent_width=width, sent_height=height)

    def _refuse_scale(self, found: Sequence[Found], seen: Frame) -> None:
        """Raise BadAnswerError for runaway digits, and where all boxes lie within 0 to 1 of a scale up to 1000."""
        boxes = [each.box for each in found if each.box is not None]
        most = RUNAWAY * (SPANS[self.boxes.box_scale or "pixels"] or max(seen.sent_width, seen.sent_height))
        for path, box in boxes:
            for place, each in enumerate(box):
                if abs(each) > most:
                    raise BadAnswerError(f"{path}[{place}]: {each:g} has more digits than a place in the picture")
        given = not self.keys.box_scale and self.boxes.box_scale == "0-1000"
        if given and boxes and all(0 <= each <= 1 for _, box in boxes for each in box):
            raise BadAnswerError(
                f'{boxes[0][0]}: all boxes lie within 0 to 1: set {TABLE}.box_scale = "0-1", or "0-1000" if that is '
                "the scale all the same"
            )


def _text(whole: Any) -> str:
    """What the model wrote, thinking included; raises BadAnswerError where it was cut off or is no answer."""
    if not isinstance(whole, dict):
        raise BadAnswerError(f"$: expected an object, got {json_kind(whole)}")
    if whole.get("error"):
        raise BadAnswerError(f"$.error: the service reports a failure with status 200: {_complaint(whole['error'])}")
    choices = items(whole.get("choices"), "$.choices")
    if len(choices) != 1 or not isinstance(choices[0], dict):
        raise BadAnswerError(f"$.choices: expected one object, got {len(choices)} values")
    (choice,) = choices
    if choice.get("error"):
        raise BadAnswerError(f"$.choices[0].error: the service reports a failure: {_complaint(choice['error'])}")
    message = choice.get("message")
    if not isinstance(message, dict):
        raise BadAnswerError("$.choices[0].message: expected an object")
    reason = choice.get("finish_reason")
    if reason in ("length", "max_tokens", "model_length"):
        raise BadAnswerError(
            f'$.choices[0].finish_reason: "{reason}": the answer was cut off: raise {TABLE}.max_tokens, or the '
            "service's own limit of the context"
        )
    if message.get("refusal"):
        raise BadAnswerError(f"$.choices[0].message.refusal: the model refused: {_complaint(message['refusal'])}")
    if reason not in (None, "stop", "eos", "end_turn", "STOP", "eos_token", "stop_sequence"):
        raise BadAnswerError(f"$.choices[0].finish_reason: {quoted(reason)}: the service gave no whole answer")
    content = message.get("content")
    text = content if isinstance(content, str) else "".join(_parts(content))
    if not text.strip():
        thought = any(message.get(key) for key in ("reasoning_content", "reasoning"))
        raise BadAnswerError(f"{CONTENT}: empty" + (", although the model thought; turn that off" if thought else ""))
    return text


def _parts(content: Any) -> Sequence[str]:
    """The texts of a content in parts; thinking is left out."""
    texts: list[str] = []
    for place, part in enumerate(items(content or [], CONTENT)):
        path = f"{CONTENT}[{place}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "refusal":
            raise BadAnswerError(f"{path}: the model refused: {_complaint(part.get('refusal'))}")
        if kind in ("text", "output_text") and isinstance(part.get("text"), str):
            texts.append(part["text"])
        elif kind not in ("thinking", "reasoning"):
            raise BadAnswerError(f"{path}: expected a text")
    return texts


def _complaint(value: Any) -> str:
    return quoted(value.get("message") or value) if isinstance(value, dict) else quoted(value)


def _tokens(usage: Any) -> int:
    """The tokens that the service counted; 0 where it did not, as that is no reason to refuse its answer."""
    counts = usage if isinstance(usage, dict) else {}
    total, *parts = (
        count if isinstance(count := counts.get(key), int) and 0 < count < MAX_TOKENS_COUNTED else 0
        for key in ("total_tokens", "prompt_tokens", "completion_tokens")
    )
    return total or sum(parts)


def _listed(value: Any, of_an_item: Sequence[str]) -> list[tuple[Any, str]]:
    """The items and their paths: of a list, of the one list in an object, or the object itself where it is an item."""
    path = "$"
    if isinstance(value, dict):
        if not value.keys().isdisjoint(of_an_item):
            return [(value, path)]
        lists = [key for key, each in value.items() if isinstance(each, list)]
        if len(lists) != 1:
            raise BadAnswerError(f"$: expected one list in the object, got {len(lists)}")
        path, value = f"$.{quoted(lists[0])}", value[lists[0]]
    return [(item, f"{path}[{place}]") for place, item in enumerate(items(value, path))]


def _one_of(item: dict[str, Any], keys: Sequence[str], path: str) -> str:
    found = [key for key in keys if key in item]
    if len(found) != 1:
        raise BadAnswerError(f"{path}: " + (f"both {' and '.join(found)}" if found else f"none of {', '.join(keys)}"))
    return found[0]

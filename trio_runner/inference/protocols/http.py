"""The protocol `http`: a request that the config describes, and an answer that it maps by JMESPath."""

from __future__ import annotations

import base64
import json
import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgspec

from trio_runner.config.http_presets import resolved
from trio_runner.config.inference import BoxKeys
from trio_runner.config.json_path import filled
from trio_runner.inference.answer import parse_json
from trio_runner.inference.boxes import reading
from trio_runner.inference.mapping import TABLE, AnswerMapping
from trio_runner.inference.multipart import form
from trio_runner.inference.protocol import Call

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.config.inference import HttpSection, InferenceSection
    from trio_runner.inference.protocol import Answer, Reading, WireProtocol
    from trio_runner.model import Frame


def open_protocol(config: InferenceSection, names: Sequence[str]) -> WireProtocol:
    """The protocol with the table `[inference.http]`, whose `fields` hold the secrets of `field_files` too."""
    keys = resolved(config.http)
    box_keys = BoxKeys(box_format=keys.box_format or "xyxy", box_scale=keys.box_scale)
    return Http(keys, AnswerMapping(keys, tuple(names)), box_keys, *_around_the_picture(keys))


@dataclass(frozen=True, slots=True)
class Http:
    """One service."""

    keys: HttpSection
    mapping: AnswerMapping
    box_keys: BoxKeys
    content_type: str
    head: bytes
    """The body up to the picture."""
    tail: bytes
    """The body behind it."""
    max_answer_bytes: int = 4 * 2**20
    """Masks and keypoints take more room than boxes."""
    max_frames: int = 1

    def call(self, frames: Sequence[Frame]) -> Call:
        """The request with the picture in the place that `image` and `image_at` name."""
        (frame,) = frames
        is_text = self.keys.image in {"base64", "data-url"}
        picture = base64.b64encode(frame.content) if is_text else frame.content
        return Call(
            method=self.keys.method or "POST",
            path=self.keys.path,
            headers=(("Content-Type", self.content_type),),
            body=tuple(filter(None, (self.head, picture, self.tail))),
        )

    def read(self, answer: Answer, frames: Sequence[Frame]) -> Sequence[Reading]:
        """The frame's detections; raises BadAnswerError with the key whose expression does not fit."""
        (frame,) = frames
        return [reading(self.mapping.found(parse_json(answer.body), frame), frame, self.box_keys, TABLE)]

    def readiness(self) -> Call | None:
        """A GET of `ready_path`, if there is one."""
        return Call(method="GET", path=self.keys.ready_path) if self.keys.ready_path else None


def _around_the_picture(keys: HttpSection) -> tuple[str, bytes, bytes]:
    """The Content-Type, and the body before and behind the picture, which are the same for every frame."""
    if keys.image == "raw":
        return keys.content_type, b"", b""
    if keys.image == "multipart":
        texts = {name: _form_text(value) for name, value in keys.fields.items()}
        content_type, (head, _, tail) = form(secrets.token_hex(16), keys.image_at, b"", texts)
        return content_type, head, tail
    # Random, so that no field holds it.
    mark = secrets.token_hex(16)
    body = msgspec.json.encode(filled({**keys.fields, keys.image_at: mark}))
    head, _, tail = body.partition(mark.encode())
    return "application/json", head + (b"data:image/jpeg;base64," if keys.image == "data-url" else b""), tail


def _form_text(value: Any) -> str:
    """A field of a form: texts as they are, anything else as JSON, so that true is `true`."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)

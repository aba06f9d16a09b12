"""The Open Inference Protocol v2, which Triton, KServe, MLServer and OpenVINO Model Server speak.

    POST {url}/v2/models/MODEL/infer
    {"inputs": [{"name": "image", "datatype": "BYTES", "shape": [1], …}], "outputs": [{"name": "boxes"}, …]}
    200 {"outputs": [{"name": "boxes", "datatype": "FP32", "shape": [4, 4], "data": […]}, …]}

With the binary tensor extension the bytes of the tensors follow the JSON, whose length is in the header
`Inference-Header-Content-Length`, in the request as in the answer. The protocol says nothing of detections: the config
names the outputs, and `oip_answers` reads them.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import quote

import msgspec
import numpy as np

from trio_runner.inference.answer import BadAnswerError, parse_json, quoted
from trio_runner.inference.protocol import Call
from trio_runner.inference.protocols.oip_answers import readings
from trio_runner.inference.protocols.oip_model import Model, check_model
from trio_runner.inference.protocols.oip_tensors import BYTES, NUMBERS, Tensor, announced, read_tensors, to_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_runner.config.inference import InferenceSection, OipSection
    from trio_runner.inference.protocol import Answer, Reading, WireProtocol
    from trio_runner.model import Frame

JSON_LENGTH: Final = "Inference-Header-Content-Length"
MAX_ANSWER_BYTES: Final = 64 * 2**20
"""The head of a YOLO with 84 fields for 8,400 candidates is 2.8 MB in FP32."""
MAX_JSON_BYTES: Final = 16 * 2**20
"""So much JSON costs up to 0.5 GB of memory and 4 s, in which every other task of the daemon waits."""


def open_protocol(config: InferenceSection, names: Sequence[str]) -> WireProtocol:
    """The protocol with the table `[inference.oip]` and the names of the classes.

    A new sequence begins with each attempt: each is a process of its own, and the number is random.
    """
    max_json_bytes = config.max_response_bytes or MAX_JSON_BYTES
    return Oip(config.oip, tuple(names), 1 + secrets.randbelow(2**63 - 1), max_json_bytes=max_json_bytes)


@dataclass(frozen=True, slots=True)
class Oip:
    """One model of a service."""

    keys: OipSection
    names: tuple[str, ...]
    sequence_id: int
    model: Model = field(default_factory=Model)
    """What the service says about the model; the defaults until `described`."""
    max_answer_bytes: int = MAX_ANSWER_BYTES
    max_json_bytes: int = MAX_JSON_BYTES

    @property
    def max_frames(self) -> int:
        """`batch`."""
        return self.keys.batch

    def call(self, frames: Sequence[Frame]) -> Call:
        """`POST {url}/v2/models/MODEL/infer` with one input tensor, which holds all frames."""
        frames = self._filled(frames)
        whole: dict[str, Any] = {"id": str(frames[0].index)}
        if parameters := self._parameters(frames):
            whole["parameters"] = parameters
        wanted = [{"name": name} for name in self.outputs]
        if self.keys.encoding == "json":
            body = msgspec.json.encode({**whole, "inputs": [self._json_input(frames)], "outputs": wanted})
            return Call(path=self._path("/infer"), headers=(("Content-Type", "application/json"),), body=(body,))
        described, pieces = self._binary_input(frames)
        outputs = [{**each, "parameters": {"binary_data": True}} for each in wanted]
        head = msgspec.json.encode({**whole, "inputs": [described], "outputs": outputs})
        headers = (("Content-Type", "application/octet-stream"), (JSON_LENGTH, str(len(head))))
        return Call(path=self._path("/infer"), headers=headers, body=(head, *pieces))

    def read(self, answer: Answer, frames: Sequence[Frame]) -> Sequence[Reading]:
        """The detections of each frame; raises BadAnswerError with the JSON path of the wrong value."""
        text, binary = _split(answer)
        if len(text) > self.max_json_bytes:
            raise BadAnswerError(
                f"$: {len(text)} bytes of JSON, more than {self.max_json_bytes}: {_remedy_of_size(self.keys)}"
            )
        whole = parse_json(text)
        if not isinstance(whole, dict):
            raise BadAnswerError(f"$: expected an object, got {type(whole).__name__}")
        if whole.get("error"):
            raise BadAnswerError(f"$.error: the service reports a failure with status 200: {quoted(whole['error'])}")
        tensors = read_tensors(whole.get("outputs"), binary, "$.outputs")
        return readings(tensors, self._filled(frames), self.keys, self.names)[: len(frames)]

    def readiness(self) -> Call | None:
        """`GET {url}/v2/models/MODEL/ready`."""
        return Call(method="GET", path=self._path("/ready"))

    def description(self) -> Call | None:
        """`GET {url}/v2/models/MODEL`, unless the service has no metadata."""
        return Call(method="GET", path=self._path("")) if self.keys.metadata else None

    def described(self, answer: Answer) -> Self:
        """The protocol for the model that the answer to `description` describes; raises BadAnswerError."""
        return replace(self, model=check_model(parse_json(answer.body), self.keys, self.outputs))

    @property
    def outputs(self) -> list[str]:
        """The names of the outputs that are read."""
        keys = self.keys
        match keys.decode:
            case "yolo":
                names = [keys.boxes]
            case "detr":
                names = [keys.boxes, keys.scores]
            case _:
                names = [keys.boxes, keys.scores, keys.labels, keys.count]
        return [name for name in names if name]

    def _path(self, end: str) -> str:
        version = f"/versions/{quote(self.keys.version, safe='')}" if self.keys.version else ""
        return f"/v2/models/{quote(self.keys.model, safe='')}{version}{end}"

    def _filled(self, frames: Sequence[Frame]) -> Sequence[Frame]:
        """The frames, and the last one again where the model takes no fewer than a certain number."""
        return [*frames, *[frames[-1]] * (self.model.frames - len(frames))]

    def _parameters(self, frames: Sequence[Frame]) -> Mapping[str, Any]:
        if not self.keys.sequence:
            return self.keys.parameters
        (frame,) = frames
        return {
            **self.keys.parameters,
            "sequence_id": self.sequence_id,
            "sequence_start": frame.sequence == 0,
            "sequence_end": frame.last,
        }

    def _shape(self, frames: Sequence[Frame]) -> list[int]:
        tensor, count = self.keys.tensor, len(frames)
        if tensor.datatype == BYTES:
            return [count, 1] if self.model.input_rank == 2 else [count]  # noqa: PLR2004 - batch and element
        sides = [tensor.height, tensor.width]
        of_one = [3, *sides] if tensor.layout == "NCHW" else [*sides, 3]
        return of_one if self.model.input_rank == len(of_one) else [count, *of_one]

    def _json_input(self, frames: Sequence[Frame]) -> dict[str, Any]:
        datatype, name = self.keys.tensor.datatype, self._input
        if datatype == BYTES:
            values = np.empty(len(frames), object)
            values[:] = [frame.content for frame in frames]
        else:
            values = np.concatenate([np.frombuffer(frame.content, NUMBERS[datatype]) for frame in frames])
        described = to_json(Tensor(name, datatype, values.reshape(self._shape(frames))))
        if datatype == BYTES and self.keys.content_type:
            described["parameters"] = {"content_type": self.keys.content_type}
        return described

    def _binary_input(self, frames: Sequence[Frame]) -> tuple[dict[str, Any], list[bytes]]:
        """The JSON object of the input, and the contents of the frames, which are not copied."""
        datatype, pieces = self.keys.tensor.datatype, []
        for frame in frames:
            if datatype == BYTES:
                pieces.append(len(frame.content).to_bytes(4, "little"))
            pieces.append(frame.content)
        size = sum(map(len, pieces))
        return announced(self._input, datatype, self._shape(frames), size), pieces

    @property
    def _input(self) -> str:
        return self.keys.input or self.model.input


def _remedy_of_size(keys: OipSection) -> str:
    if keys.encoding == "json":
        return 'set inference.oip.encoding = "binary" if the service speaks that, or raise inference.max_response_bytes'
    return 'encoding = "binary" asks for binary tensors, but the service sends JSON: raise inference.max_response_bytes'


def _split(answer: Answer) -> tuple[bytes, bytes]:
    """The JSON of an answer, and the bytes that follow it."""
    length = next((value for name, value in answer.headers.items() if name.lower() == JSON_LENGTH.lower()), "")
    if not length:
        return answer.body, b""
    if not (length.isascii() and length.isdigit() and len(length) < 12 and int(length) <= len(answer.body)):  # noqa: PLR2004 - digits
        raise BadAnswerError(f"$: {JSON_LENGTH} is {quoted(length)}, and the answer has {len(answer.body)} bytes")
    return answer.body[: int(length)], answer.body[int(length) :]

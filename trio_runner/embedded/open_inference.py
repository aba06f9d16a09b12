"""The Open Inference Protocol v2 for the embedded service: requests to pictures, and objects to output tensors.

A request has one input, `image`: a BYTES tensor [1] with one encoded picture (in base64 where it stands in the JSON),
or a UINT8 tensor [1, height, width, 3] with red, green and blue of each pixel. The outputs are `boxes` FP32 [n, 4]
(x1, y1, x2, y2 in pixels of that picture), `scores` FP32 [n], `labels` BYTES [n] and `class_ids` INT64 [n].

With the binary tensor extension the bytes of tensors follow the JSON, whose length is in the header
`Inference-Header-Content-Length`. If that length is 0, the whole body is the one element of a BYTES tensor.

Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md; triton-inference-server/server,
docs/protocol/extension_binary_data.md. The client's reader of this protocol shares no code with this module, so that a
mistake in one of them shows.
"""

from __future__ import annotations

import struct
from base64 import b64decode
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType

from trio_runner.embedded.pictures import MAX_PIXELS, RequestError, read_picture

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_runner.embedded.detector import Detection, Image

JSON_LENGTH: Final = b"inference-header-content-length"
"""The header, as ASGI writes names."""

INPUT: Final = "image"
OUTPUTS: Final = {
    "boxes": ("FP32", [-1, 4]),
    "scores": ("FP32", [-1]),
    "labels": ("BYTES", [-1]),
    "class_ids": ("INT64", [-1]),
}
"""Datatype and shape of each output; -1 is any length."""

CHANNELS: Final = 3
LENGTH_BYTES: Final = 4
"""The length before each element of a BYTES tensor."""

MAX_DIGITS: Final = 12
Dimension = Annotated[int, Meta(ge=0, le=2**31)]
Byte = Annotated[int, Meta(ge=0, le=255)]


class InputParameters(msgspec.Struct):
    """The parameters of an input that matter here; others are ignored, as the protocol allows."""

    binary_data_size: Annotated[int, Meta(ge=0, le=2**31)] | None = None


class Input(msgspec.Struct):
    """An input tensor of a request."""

    name: str
    datatype: str
    shape: Annotated[list[Dimension], Meta(max_length=16)]
    parameters: InputParameters | None = None
    data: Raw | UnsetType = UNSET


class OutputParameters(msgspec.Struct):
    """The parameters of a requested output that matter here."""

    binary_data: bool | None = None


class Output(msgspec.Struct):
    """An output that a request asks for."""

    name: str
    parameters: OutputParameters | None = None


class RequestParameters(msgspec.Struct):
    """The parameters of a request that matter here."""

    binary_data_output: bool | None = None


class Request(msgspec.Struct):
    """The JSON of a request."""

    inputs: list[Input]
    id: str = ""
    parameters: RequestParameters | None = None
    outputs: list[Output] | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """How a request is to be answered: its own id, and for each output whether its tensor is to follow the JSON."""

    id: str
    binary: Mapping[str, bool]


def routes(model: str) -> dict[str, Literal["GET", "POST"]]:
    """The method of each path of the protocol."""
    found: dict[str, Literal["GET", "POST"]] = {
        "/v2": "GET",
        "/v2/health/live": "GET",
        "/v2/health/ready": "GET",
        "/v2/repository/index": "POST",
    }
    for path in (f"/v2/models/{model}", f"/v2/models/{model}/versions/1"):
        found |= {path: "GET", f"{path}/ready": "GET", f"{path}/infer": "POST"}
    return found


def describe(path: str, model: str, version: str) -> Any:
    """The JSON that answers a path of `routes` other than `/infer`; `version` is that of this package."""
    match path.split("/")[2:]:
        case []:
            return {"name": "trio_runner", "version": version, "extensions": ["binary_tensor_data"]}
        case ["health", "live"]:
            return {"live": True}
        case ["health", "ready"]:
            return {"ready": True}
        case ["repository", "index"]:
            return [{"name": model, "version": "1", "state": "READY", "reason": ""}]
        case [*_, "ready"]:
            return {"name": model, "ready": True}
    outputs = [{"name": name, "datatype": kind, "shape": shape} for name, (kind, shape) in OUTPUTS.items()]
    return {
        "name": model,
        "versions": ["1"],
        "platform": "onnxruntime",
        "inputs": [{"name": INPUT, "datatype": "BYTES", "shape": [1]}],
        "outputs": outputs,
    }


def unknown_model(path: str) -> str:
    """What the answer to a path below `/v2/models/` says that is none of `routes`."""
    name, *rest = path.removeprefix("/v2/models/").split("/")
    version = f" version {rest[1][:100]!r}" if rest[:1] == ["versions"] and len(rest) > 1 else ""
    return f"Request for unknown model: {name[:100]!r}{version} is not found"


def read_request(json_length: bytes, body: bytes) -> tuple[Image, Wanted]:
    """The picture of an inference request (blue, green, red), and how the request is to be answered.

    Args:
        json_length: The value of the header `JSON_LENGTH`, empty where there is none.
        body: The JSON, and the tensor that follows it.

    Raises:
        RequestError: 400: The request is not sound, or has no such picture. No size that a request claims is used
            before it is compared with the bytes that are there.
    """
    length = _json_length(json_length, body) if json_length else len(body)
    if json_length and length == 0:
        return read_picture(body), Wanted("", dict.fromkeys(OUTPUTS, True))
    request: Request = _decoded(body[:length], Request, "failed to parse the request JSON")
    wanted = _wanted(request)
    if len(request.inputs) != 1:
        raise _bad(f"expected 1 input, {INPUT!r}, but got {len(request.inputs)}")
    return _picture(request.inputs[0], memoryview(body)[length:]), wanted


def write_answer(model: str, wanted: Wanted, objects: Sequence[Detection]) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """The headers of an answer, and its body."""
    tensors: list[dict[str, Any]] = []
    pieces: list[bytes] = []
    for name, binary in wanted.binary.items():
        datatype, shape = OUTPUTS[name]
        tensor = {"name": name, "datatype": datatype, "shape": [len(objects), *shape[1:]]}
        if binary:
            content = _to_bytes(name, objects)
            tensors.append({**tensor, "parameters": {"binary_data_size": len(content)}})
            pieces.append(content)
        else:
            tensors.append({**tensor, "data": _to_list(name, objects)})
    of_request = {"id": wanted.id} if wanted.id else {}
    head = msgspec.json.encode({**of_request, "model_name": model, "model_version": "1", "outputs": tensors})
    if not any(wanted.binary.values()):
        return [(b"content-type", b"application/json")], head
    headers = [(b"content-type", b"application/octet-stream"), (JSON_LENGTH, str(len(head)).encode())]
    return headers, b"".join((head, *pieces))


def _json_length(header: bytes, body: bytes) -> int:
    if not (header.isdigit() and len(header) <= MAX_DIGITS and int(header) <= len(body)):
        found = header[:100].decode("latin-1")
        raise _bad(f"Inference-Header-Content-Length is {found!r}, and the body has {len(body)} bytes")
    return int(header)


def _wanted(request: Request) -> Wanted:
    binary = bool(request.parameters and request.parameters.binary_data_output)
    listed = request.outputs or [Output(name) for name in OUTPUTS]
    wanted: dict[str, bool] = {}
    for output in listed:
        if output.name not in OUTPUTS:
            raise _bad(f"unexpected inference output {output.name[:100]!r}; there are {', '.join(OUTPUTS)}")
        own = output.parameters.binary_data if output.parameters else None
        wanted[output.name] = binary if own is None else own
    return Wanted(request.id, wanted)


def _picture(tensor: Input, binary: memoryview) -> Image:
    if tensor.name != INPUT:
        raise _bad(f"unexpected inference input {tensor.name[:100]!r}; the only one is {INPUT!r}")
    size = tensor.parameters.binary_data_size if tensor.parameters else None
    if (size is None) == (tensor.data is UNSET):
        raise _bad(f"input {INPUT!r} must have either data, or binary_data_size and that many bytes after the JSON")
    if (size or 0) != len(binary):
        raise _bad(f"{len(binary)} bytes follow the JSON, but binary_data_size is {size or 0}")
    match tensor.datatype:
        case "BYTES" if tensor.shape == [1]:
            return read_picture(_element(tensor.data, binary))
        case "UINT8" if len(tensor.shape) == 1 + 2 + 1 and (tensor.shape[0], tensor.shape[-1]) == (1, CHANNELS):
            return _from_pixels(tensor.data, binary, tensor.shape[1], tensor.shape[2])
        case "BYTES" | "UINT8":
            raise _bad(f"input {INPUT!r} has shape {tensor.shape}; it takes BYTES [1] or UINT8 [1, height, width, 3]")
    raise _bad(f"input {INPUT!r} data-type is {tensor.datatype[:100]!r}; it takes BYTES or UINT8")


def _element(data: Raw | UnsetType, binary: memoryview) -> bytes:
    """The one element of a BYTES tensor."""
    if isinstance(data, Raw):
        (text,) = _decoded(data, Annotated[list[str], Meta(min_length=1, max_length=1)])
        try:
            return b64decode(text, validate=True)
        except ValueError as error:
            raise _bad(f"data of input {INPUT!r} must be the picture in base64: {error}") from error
    length = int.from_bytes(binary[:LENGTH_BYTES], "little")
    if len(binary) < LENGTH_BYTES or length != len(binary) - LENGTH_BYTES:
        raise _bad(f"input {INPUT!r}: the {len(binary)} bytes must be one element with its length in 4 bytes before it")
    return bytes(binary[LENGTH_BYTES:])


def _from_pixels(data: Raw | UnsetType, binary: memoryview, height: int, width: int) -> Image:
    """The picture of a UINT8 tensor, whose channels are red, green and blue."""
    if not 0 < height * width <= MAX_PIXELS:
        raise _bad(f"a picture of {width} x {height} pixels; it must have at least one and at most {MAX_PIXELS}")
    import numpy as np

    pixels = _numbers(data) if isinstance(data, Raw) else binary
    if len(pixels) != height * width * CHANNELS:
        raise _bad(f"{len(pixels)} bytes of pixels, but the shape [1, {height}, {width}, 3] has others")
    return np.ascontiguousarray(np.frombuffer(pixels, np.uint8).reshape(height, width, CHANNELS)[:, :, ::-1])


def _numbers(data: Raw) -> bytes:
    """The elements of a list, flat or nested, in their order; no check that nested lists have the same length."""
    # Lists inside the list would take a hundred bytes for a few of the body.
    return bytes(_decoded(b"[%b]" % bytes(data).translate(None, b"[]"), list[Byte]))


def _decoded(text: bytes | Raw, kind: Any, failure: str = f"data of input {INPUT!r}") -> Any:
    try:
        return msgspec.json.decode(text, type=kind)
    # msgspec lets the UnicodeDecodeError of a string through.
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise _bad(f"{failure}: {error}") from error


def _to_list(name: str, objects: Sequence[Detection]) -> list[Any]:
    match name:
        case "boxes":
            return [side for each in objects for side in each.box]
        case "scores":
            return [each.confidence for each in objects]
        case "labels":
            return [each.label for each in objects]
    return [each.class_id for each in objects]


def _to_bytes(name: str, objects: Sequence[Detection]) -> bytes:
    values = _to_list(name, objects)
    if name == "labels":
        texts = [label.encode() for label in values]
        return b"".join(len(text).to_bytes(LENGTH_BYTES, "little") + text for text in texts)
    return struct.pack(f"<{len(values)}{'q' if name == 'class_ids' else 'f'}", *values)


def _bad(message: str) -> RequestError:
    return RequestError(HTTPStatus.BAD_REQUEST, message)

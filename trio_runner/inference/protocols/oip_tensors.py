"""Tensors of the Open Inference Protocol v2, in JSON and in the binary tensor extension.

The JSON form has a tensor's numbers in `data`, flat or nested. In the binary form they follow the JSON in the order of
the tensors, little-endian and row-major, and `parameters.binary_data_size` counts their bytes. An element of a BYTES
tensor has its length before it there, in four bytes.

Sources: kserve/open-inference-protocol, specification/protocol/inference_rest.md; triton-inference-server/server,
docs/protocol/extension_binary_data.md.
"""

from __future__ import annotations

import math
import struct
from base64 import b64decode, b64encode
from binascii import Error as Base64Error
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from trio_runner.inference.answer import BadAnswerError, json_kind, quoted

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

BYTES: Final = "BYTES"
MAX_RANK: Final = 16
MAX_ELEMENTS: Final = 2**26
"""Ten times the head of a detector; a shape with more of them is taken for nonsense before anything is read by it."""

NUMBERS: Final[Mapping[str, np.dtype[Any]]] = MappingProxyType(
    {
        "BOOL": np.dtype("?"),
        **{f"UINT{8 * size}": np.dtype(f"<u{size}") for size in (1, 2, 4, 8)},
        **{f"INT{8 * size}": np.dtype(f"<i{size}") for size in (1, 2, 4, 8)},
        "FP16": np.dtype("<f2"),
        "FP32": np.dtype("<f4"),
        "FP64": np.dtype("<f8"),
    }
)
BF16: Final = "BF16"
"""The upper half of an FP32, which numpy has no type for."""

_LENGTH: Final = struct.Struct("<I")
_CONTENTS: Final[Mapping[str, tuple[type, ...]]] = MappingProxyType({"f": (int, float), "b": (bool,)})
"""The types that JSON numbers may have, by the kind of the tensor; all others take whole numbers alone."""


@dataclass(frozen=True, slots=True, eq=False)
class Tensor:
    """A named array. Its elements are numbers, or `bytes` where `datatype` is BYTES."""

    name: str
    datatype: str
    values: np.ndarray[Any, Any]

    @property
    def shape(self) -> tuple[int, ...]:
        """The length of each dimension."""
        return tuple(self.values.shape)


def to_json(tensor: Tensor) -> dict[str, Any]:
    """The tensor as a JSON object; the elements of a BYTES tensor, which may be any bytes, as text in base64."""
    flat = tensor.values.reshape(-1)
    data = [b64encode(each).decode() for each in flat] if tensor.datatype == BYTES else flat.tolist()
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "data": data}


def to_binary(tensor: Tensor) -> tuple[dict[str, Any], list[bytes]]:
    """The JSON object of the tensor, and its bytes in pieces, among them each element of a BYTES tensor uncopied."""
    pieces = []
    if tensor.datatype == BYTES:
        for each in tensor.values.reshape(-1):
            pieces += [_LENGTH.pack(len(each)), each]
    else:
        values = np.ascontiguousarray(tensor.values)
        if tensor.datatype == BF16:
            values = (values.astype("<f4").view("<u4") >> 16).astype("<u2")
        pieces.append(values.tobytes())
    return announced(tensor.name, tensor.datatype, tensor.shape, sum(map(len, pieces))), pieces


def announced(name: str, datatype: str, shape: Sequence[int], size: int) -> dict[str, Any]:
    """The JSON object of a tensor whose `size` bytes follow the JSON."""
    return {"name": name, "datatype": datatype, "shape": list(shape), "parameters": {"binary_data_size": size}}


def read_tensors(described: Any, binary: bytes, path: str) -> dict[str, Tensor]:
    """The tensors by their names.

    Args:
        described: The list of JSON objects.
        binary: What follows the JSON in the body.
        path: The JSON path of the list, for messages.

    Raises:
        BadAnswerError: A tensor is not sound, two have the same name, or `binary` is shorter or longer than their data.
    """
    if not isinstance(described, list):
        raise BadAnswerError(f"{path}: expected a list of tensors, got {json_kind(described)}")
    tensors: dict[str, Tensor] = {}
    rest = memoryview(binary)
    for place, each in enumerate(described):
        tensor, used = _read_tensor(each, rest, f"{path}[{place}]")
        if tensor.name in tensors:
            raise BadAnswerError(f"{path}[{place}].name: {quoted(tensor.name)} occurs twice")
        tensors[tensor.name] = tensor
        rest = rest[used:]
    if rest:
        raise BadAnswerError(f"{path}: {len(rest)} bytes follow the last tensor")
    return tensors


def _read_tensor(described: Any, rest: memoryview, path: str) -> tuple[Tensor, int]:
    """The tensor, and how many of the bytes in `rest` are its data."""
    if not isinstance(described, dict):
        raise BadAnswerError(f"{path}: expected an object, got {json_kind(described)}")
    name, datatype = described.get("name"), described.get("datatype")
    if not isinstance(name, str) or not name:
        raise BadAnswerError(f"{path}.name: expected the name of a tensor")
    if not isinstance(datatype, str) or datatype not in (*NUMBERS, BYTES, BF16):
        raise BadAnswerError(f"{path}.datatype: {quoted(datatype)} is not a datatype of the protocol")
    shape = _shape(described.get("shape"), f"{path}.shape")
    parameters = described.get("parameters") or {}
    if not isinstance(parameters, dict):
        raise BadAnswerError(f"{path}.parameters: expected an object, got {json_kind(parameters)}")
    size = parameters.get("binary_data_size")
    if size is None:
        in_base64 = parameters.get("content_type") == "base64"
        values = _from_json(described.get("data", []), datatype, shape, f"{path}.data", in_base64=in_base64)
        return Tensor(name, datatype, values), 0
    at = f"{path}.parameters.binary_data_size"
    if "data" in described:
        raise BadAnswerError(f"{at}: the tensor has its data in the JSON too")
    if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= len(rest):
        raise BadAnswerError(f"{at}: {quoted(size)}, and {len(rest)} bytes follow")
    return Tensor(name, datatype, _from_binary(rest[:size], datatype, shape, at)), size


def _shape(value: Any, path: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) > MAX_RANK:
        raise BadAnswerError(f"{path}: expected a list of at most {MAX_RANK} dimensions")
    if not all(isinstance(each, int) and not isinstance(each, bool) and 0 <= each <= MAX_ELEMENTS for each in value):
        raise BadAnswerError(f"{path}: {quoted(value)} has a dimension that is none of 0 to {MAX_ELEMENTS}")
    # Without the zeros: numpy refuses a shape whose other dimensions are too large together.
    if math.prod(filter(None, value)) > MAX_ELEMENTS:
        raise BadAnswerError(f"{path}: {quoted(value)} has more than {MAX_ELEMENTS} elements")
    return tuple(value)


def _from_binary(data: memoryview, datatype: str, shape: tuple[int, ...], path: str) -> np.ndarray[Any, Any]:
    count = math.prod(shape)
    if datatype == BYTES:
        return _objects(_elements(data, count, path), shape)
    kind = np.dtype("<u2") if datatype == BF16 else NUMBERS[datatype]
    if count * kind.itemsize != len(data):
        raise BadAnswerError(
            f"{path}: {len(data)}, but {quoted(list(shape))} of {datatype} are {count * kind.itemsize}"
        )
    if datatype == "BOOL":
        # A byte other than 0 and 1 would be a truth value that numpy does not expect.
        return np.frombuffer(data, "u1").astype("?").reshape(shape)
    values: np.ndarray[Any, Any] = np.frombuffer(data, kind).reshape(shape)
    return (values.astype("<u4") << 16).view("<f4") if datatype == BF16 else values


def _elements(data: memoryview, count: int, path: str) -> list[bytes]:
    elements: list[bytes] = []
    offset = 0
    while offset < len(data):
        if len(data) - offset < _LENGTH.size:
            raise BadAnswerError(f"{path}: the length of element {len(elements)} is cut off")
        (length,) = _LENGTH.unpack_from(data, offset)
        offset += _LENGTH.size
        if length > len(data) - offset:
            raise BadAnswerError(f"{path}: element {len(elements)} has {length} bytes, and {len(data) - offset} follow")
        elements.append(bytes(data[offset : offset + length]))
        offset += length
    if len(elements) != count:
        raise BadAnswerError(f"{path}: {len(elements)} elements, but the shape has {count}")
    return elements


def _from_json(data: Any, datatype: str, shape: tuple[int, ...], path: str, *, in_base64: bool) -> np.ndarray[Any, Any]:
    flat = _flat(data, path)
    if len(flat) != math.prod(shape):
        raise BadAnswerError(
            f"{path}: {len(flat)} elements, but the shape {quoted(list(shape))} has {math.prod(shape)}"
        )
    if datatype == BYTES:
        if not all(isinstance(each, str) for each in flat):
            raise BadAnswerError(f"{path}: an element of {BYTES} is no text")
        return _objects([_decoded(each, path) if in_base64 else each.encode() for each in flat], shape)
    kind = np.dtype("<f4") if datatype == BF16 else NUMBERS[datatype]
    if not {*map(type, flat)} <= {*_CONTENTS.get(kind.kind, (int,))}:
        raise BadAnswerError(f"{path}: an element is no {datatype}")
    try:
        # A number beyond the range of a short float becomes infinite, which is refused where it is used.
        with np.errstate(over="ignore"):
            return np.array(flat, np.float64 if kind.kind == "f" else kind).astype(kind).reshape(shape)
    except OverflowError:
        raise BadAnswerError(f"{path}: a number is beyond the range of {datatype}") from None


def _flat(data: Any, path: str) -> list[Any]:
    """The elements of a list, or of lists of lists; no check that all have the same length."""
    if not isinstance(data, list):
        raise BadAnswerError(f"{path}: expected a list, got {json_kind(data)}")
    flat: list[Any] = data
    for _ in range(MAX_RANK):
        if not any(isinstance(each, list) for each in flat):
            return flat
        if not all(isinstance(each, list) for each in flat):
            raise BadAnswerError(f"{path}: lists beside single elements")
        flat = [element for each in flat for element in each]
    raise BadAnswerError(f"{path}: nested too deeply")


def _decoded(text: str, path: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except (Base64Error, ValueError):
        raise BadAnswerError(f"{path}: {quoted(text)} is not base64") from None


def _objects(elements: Sequence[bytes], shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    values = np.empty(len(elements), object)
    values[:] = elements
    return values.reshape(shape)

"""The metadata of a model in the Open Inference Protocol, compared with the config before the first frame is sent.

GET {url}/v2/models/MODEL
200 {"name": "nanodet", "platform": "python", "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}], …}
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from trio_runner.inference.answer import BadAnswerError, quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.config.inference import OipSection

TABLE: Final = "inference.oip"
ANY: Final = -1
"""A dimension that may have any length."""
CHANNELS: Final = 3
SENT: Final = ("BYTES", "UINT8", "FP32")
"""The datatypes that `tensor.datatype` may have."""


@dataclass(frozen=True, slots=True)
class Model:
    """What of a model's metadata decides on the form of a request."""

    input: str = ""
    input_rank: int = 0
    """How many dimensions the input has; 0 where that is not known."""
    frames: int = 0
    """How many frames a request must carry; 0 where it may be any number."""


def check_model(metadata: Any, keys: OipSection, outputs: Sequence[str]) -> Model:
    """The model that the metadata describe.

    Args:
        metadata: The JSON of the answer.
        keys: What the config says about the model.
        outputs: The names of the outputs that are read.

    Raises:
        BadAnswerError: The metadata are not those of this protocol, or the config does not fit them; the message names
            the key to change.
    """
    inputs, given = (_tensors(metadata, name) for name in ("inputs", "outputs"))
    if not inputs and keys.input:
        # MLServer lists none where the model does not declare them.
        return Model(keys.input)
    for name in outputs:
        if given and name not in given:
            raise BadAnswerError(
                f"$.outputs: the model has no output {quoted(name)}, but {_listed(given)}: {_keys(name, keys)}"
            )
    chosen = keys.input
    if not chosen:
        if len(inputs) != 1:
            raise BadAnswerError(f"$.inputs: the model has {_listed(inputs)}: set {TABLE}.input")
        chosen = next(iter(inputs))
    if chosen not in inputs:
        raise BadAnswerError(
            f"$.inputs: the model has no input {quoted(chosen)}, but {_listed(inputs)}: set {TABLE}.input"
        )
    datatype, shape = inputs[chosen]
    path = f"$.inputs.{chosen}"
    if keys.tensor.datatype == datatype:
        return Model(chosen, len(shape), _check_shape(shape, keys, path))
    if not (keys.tensor.datatype == "BYTES" and _decodes(metadata, shape)):
        if datatype not in SENT:
            raise BadAnswerError(
                f"{path}.datatype: the model takes {quoted(datatype)}, which is not supported: give it an input of "
                f"{', '.join(SENT)}"
            )
        raise BadAnswerError(
            f"{path}.datatype: the model takes {quoted(datatype)}: set {TABLE}.tensor.datatype, which is "
            f"{keys.tensor.datatype}"
        )
    return Model(chosen, len(shape))


def _decodes(metadata: Any, shape: Sequence[int]) -> bool:
    """Whether the service makes tensors of JPEGs by itself, as OpenVINO Model Server does for images in NHWC."""
    return metadata.get("platform") == "OpenVINO" and len(shape) == CHANNELS + 1 and shape[-1] in {ANY, CHANNELS}


def _check_shape(shape: Sequence[int], keys: OipSection, path: str) -> int:
    """How many frames a request must carry, 0 for any number; raises BadAnswerError."""
    tensor = keys.tensor
    if tensor.datatype == "BYTES":
        wanted: list[int] = []
        fits = len(shape) in {1, 2} and shape[1:] in ([], [1], [ANY])
    else:
        sides = [tensor.height, tensor.width]
        wanted = [CHANNELS, *sides] if tensor.layout == "NCHW" else [*sides, CHANNELS]
        inner = shape[-len(wanted) :]
        fits = len(shape) in {len(wanted), len(wanted) + 1} and all(
            each in {ANY, length} for each, length in zip(inner, wanted, strict=True)
        )
    if not fits:
        sent = f"[{keys.batch}{''.join(f', {length}' for length in wanted)}]"
        raise BadAnswerError(
            f"{path}.shape: the model takes {quoted(shape)}, and {sent} would be sent: set layout, width and height of "
            f"[{TABLE}.tensor]"
        )
    frames = shape[0] if len(shape) > len(wanted) else 1
    if frames not in {ANY, keys.batch}:
        raise BadAnswerError(
            f"{path}.shape: the model takes {quoted(shape)}, so set {TABLE}.batch, which is {keys.batch}, to {frames}"
        )
    return max(frames, 0)


def _tensors(metadata: Any, key: str) -> dict[str, tuple[str, list[int]]]:
    """Datatype and shape of each input, or output, by its name."""
    listed = (metadata.get(key) or []) if isinstance(metadata, dict) and "name" in metadata else None
    if not isinstance(listed, list):
        raise BadAnswerError(
            f"$.{key}: not the metadata of a model: check inference.url and {TABLE}.model, or set "
            f"{TABLE}.metadata = false"
        )
    found = {}
    for place, each in enumerate(listed):
        match each:
            case {"name": str(name), "datatype": str(datatype), "shape": list(shape)} if all(
                isinstance(length, int) for length in shape
            ):
                found[name] = (datatype, shape)
            case _:
                raise BadAnswerError(f"$.{key}[{place}]: expected a name, a datatype and a shape")
    return found


def _keys(name: str, keys: OipSection) -> str:
    key = next(key for key in ("boxes", "scores", "labels", "count") if getattr(keys, key) == name)
    return f"set {TABLE}.{key}"


def _listed(tensors: dict[str, Any]) -> str:
    return quoted(", ".join(tensors) or "none")

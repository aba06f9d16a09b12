"""Rules of `[inference.oip]` that span keys: what a tensor needs, and what does not go together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from trio_runner.config.broken import broken
from trio_runner.config.kinds import EMBEDDED, PLACEHOLDER
from trio_runner.config.tensor import MAX_TENSOR_BYTES, TensorSection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_runner.config.errors import Problem
    from trio_runner.config.inference import InferenceSection, OipSection
    from trio_runner.config.sections import PipelineSection, VideoSection

TABLE: Final = "inference.oip"
TENSOR: Final = f"{TABLE}.tensor"
_OURS: Final = frozenset({"sequence_id", "sequence_start", "sequence_end", "binary_data_output"})


def oip_rules(inference: InferenceSection, video: VideoSection, pipeline: PipelineSection) -> Iterator[Problem]:
    """The model has a name, a tensor has a size, and no key contradicts another."""
    if inference.protocol != "oip":
        return
    keys = inference.oip
    # `embedded.addresses` fills in the name of the only model that the embedded service has.
    if not keys.model and inference.url != EMBEDDED:
        yield broken(f"{TABLE}.model", "missing", "name the model of the service", "inference.protocol")
    yield from _placeholders(keys)
    if not keys.input and not keys.metadata:
        yield broken(f"{TABLE}.input", "missing, because metadata = false", "name it", f"{TABLE}.metadata")
    if not (keys.boxes or (keys.scores and keys.decode == "boxes")):
        yield broken(f"{TABLE}.boxes", "no output is named", "name the output that has the boxes", f"{TABLE}.scores")
    if keys.decode == "detr" and not keys.scores:
        yield broken(f"{TABLE}.scores", "missing", "name the output that has the logits", f"{TABLE}.decode")
    is_raw = keys.decode == "detr" or (keys.decode == "yolo" and keys.yolo_head != "end-to-end")
    if is_raw and not (inference.labels or inference.labels_file):
        remedy = "set it or labels_file: the number of classes says where they end"
        if keys.decode == "yolo":
            remedy += f'; or set {TABLE}.yolo_head = "end-to-end" for an output [N, 6]'
        yield broken("inference.labels", "missing", remedy, f"{TABLE}.decode")
    for name in sorted(_OURS.intersection(keys.parameters)):
        yield broken(f"{TABLE}.parameters", f"{name} is set by the protocol", "remove it", f"{TABLE}.sequence")
    if keys.sequence:
        yield from _sequence_rules(inference)
    yield from _tensor_rules(inference, video, pipeline)


def _placeholders(keys: OipSection) -> Iterator[Problem]:
    """`probe --detect` prints a placeholder where the name of no output fits."""
    for name in ("boxes", "scores", "labels"):
        if PLACEHOLDER.search(output := getattr(keys, name)):
            yield broken(f"{TABLE}.{name}", f"{output} is a placeholder", "write the name of the output")


def _sequence_rules(inference: InferenceSection) -> Iterator[Problem]:
    """A stateful model takes one frame after another, each once."""
    sequence = f"{TABLE}.sequence"
    why = f"{sequence} is set, and a stateful model takes one frame after another"
    if inference.in_flight != 1:
        yield broken("inference.in_flight", why, "set it to 1", sequence)
    if inference.oip.batch != 1:
        yield broken(f"{TABLE}.batch", why, "set it to 1", sequence)
    if inference.retry_seconds:
        why = f"{sequence} is set, and a stateful model must not be given a frame twice"
        yield broken("inference.retry_seconds", why, "set it to 0", sequence)


def _tensor_rules(inference: InferenceSection, video: VideoSection, pipeline: PipelineSection) -> Iterator[Problem]:
    tensor, batch = inference.oip.tensor, inference.oip.batch
    datatype = f"{TENSOR}.datatype"
    if inference.tensor is None:
        return
    for key in ("width", "height"):
        if not getattr(tensor, key):
            yield broken(f"{TENSOR}.{key}", "missing", "set it to that of the model's input", datatype)
    if tensor.size > MAX_TENSOR_BYTES:
        problem = f"a tensor of {tensor.size} bytes, and {MAX_TENSOR_BYTES} are the most"
        yield broken(f"{TENSOR}.width", problem, "lower width or height", datatype)
    elif tensor.size * batch > pipeline.max_buffered_bytes:
        problem = f"{batch} tensors of {tensor.size} bytes are more than pipeline.max_buffered_bytes"
        yield broken(f"{TABLE}.batch", problem, "lower it, or raise the other", "pipeline.max_buffered_bytes", datatype)
    for key in ("max_width", "jpeg_quality"):
        if getattr(video, key) != getattr(type(video)(), key):
            problem = f"of no effect, because {datatype} is {tensor.datatype}"
            yield broken(f"video.{key}", problem, f"remove it; {TENSOR}.width is the size that is sent", datatype)
    for key in ("divisor", "mean", "std"):
        if tensor.datatype == "UINT8" and getattr(tensor, key) != getattr(TensorSection(), key):
            problem = f"of no effect, because {datatype} is UINT8"
            yield broken(f"{TENSOR}.{key}", problem, "remove it, or send FP32", datatype)

# /// script
# requires-python = ">=3.11"
# dependencies = ["numpy", "onnx"]
# ///
"""Converts NanoDet's TensorFlow.js graph to ONNX: `python tfjs_to_onnx.py nanodet.json OUT.onnx [HEIGHT WIDTH]`.

It knows the sixteen operations of that one graph and stops at any other. TensorFlow's layout (NHWC) is kept, with a
transposition around each operation that ONNX defines for NCHW; onnxruntime removes the pairs that cancel out. The
graph was made for 416 x 416; HEIGHT and WIDTH (multiples of 32, 256 and 416 if not given) put another size in its
place. Weights are stored as float16, as they come, and cast when the model is loaded.
"""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx  # type: ignore[import-not-found, unused-ignore]
from onnx import TensorProto, helper, numpy_helper  # type: ignore[import-not-found, unused-ignore]

MADE_FOR = 416
STRIDES = (8, 16, 32)
SMALL = 64


class Converter:
    """One graph on its way from TensorFlow.js to ONNX."""

    def __init__(self, source: Path, height: int, width: int) -> None:
        self.model = json.loads(source.read_text(encoding="utf-8"))
        self.height, self.width = height, width
        self.cells = {(MADE_FOR // stride) ** 2: (height // stride) * (width // stride) for stride in STRIDES}
        self.weights = dict(_read_weights(self.model, source.parent))
        self.nodes: list[Any] = []
        self.initializers: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.names = 0

    def convert(self) -> Any:
        """Return the ONNX model, checked."""
        for node in self.model["modelTopology"]["node"]:
            self._node(node)
        (source,) = self.model["signature"]["inputs"].values()
        name = _tensor(source["name"])
        inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, self.height, self.width])]
        outputs = []
        for target in self.model["signature"]["outputs"].values():
            batch, cells, columns = _shape(target)
            shape = [batch, self.cells[cells], columns]
            outputs.append(helper.make_tensor_value_info(_tensor(target["name"]), TensorProto.FLOAT, shape))
        nodes, used = self._reaching({output.name for output in outputs})
        initializers = [initializer for initializer in self.initializers if initializer.name in used]
        graph = helper.make_graph(nodes, "g", inputs, outputs, initializers)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
        onnx.checker.check_model(model)
        return model

    def _reaching(self, wanted: set[str]) -> tuple[list[Any], set[str]]:
        kept = []
        for node in reversed(self.nodes):
            if wanted.intersection(node.output):
                kept.append(node)
                wanted.update(node.input)
        return kept[::-1], wanted

    def _node(self, node: dict[str, Any]) -> None:  # noqa: C901, PLR0912 - a table of operations, one case each
        kind, name = node["op"], node["name"]
        inputs = [_tensor(tensor) for tensor in node.get("input", [])]
        match kind:
            case "Const":
                value = self.weights[name]
                self._constant(value.astype(np.int64) if value.dtype == np.int32 else value, name)
            case "Placeholder":
                pass
            case "Conv2D":
                self._convolution(node, inputs, name)
            case "MaxPool":
                window, strides = _integers(node, "ksize")[1:3], _integers(node, "strides")[1:3]
                pooled = self._op("MaxPool", [self._nchw(inputs[0])], kernel_shape=window, strides=strides)
                self._nhwc(pooled, name)
            case "LeakyRelu":
                self._op("LeakyRelu", inputs[:1], name, alpha=float(node["attr"]["alpha"]["f"]))
            case "Add" | "AddV2" if inputs[0] in self.constants and inputs[1] in self.constants:
                self._constant(self.constants[inputs[0]] + self.constants[inputs[1]], name)
            case "Add" | "AddV2":
                self._op("Add", inputs[:2], name)
            case "Transpose":
                self._op("Transpose", inputs[:1], name, perm=self.constants[inputs[1]].tolist())
            case "Pad" | "PadV2":
                pads = self._constant(self.constants[inputs[1]].T.ravel().astype(np.int64))
                self._op("Pad", [inputs[0], pads, *inputs[2:]], name)
            case "ConcatV2":
                self._op("Concat", inputs[:-1], name, axis=int(self.constants[inputs[-1]]))
            case "Reshape":
                sizes = [self.cells.get(int(size), int(size)) for size in self.constants[inputs[1]]]
                self._op("Reshape", [inputs[0], self._constant(np.array(sizes, dtype=np.int64))], name)
            case "Identity" | "Sigmoid":
                self._op(kind, inputs, name)
            case "SplitV":
                parts = self.constants[inputs[1]].astype(np.int64)
                names = [name, *(f"{name}_o{i}" for i in range(1, len(parts)))]
                split = [inputs[0], self._constant(parts)]
                self.nodes.append(helper.make_node("Split", split, names, axis=int(self.constants[inputs[2]])))
            case "SparseToDense":
                places, shape, values, default = (self.constants[tensor] for tensor in inputs)
                dense = np.full(tuple(shape.tolist()), default)
                dense[tuple(np.atleast_2d(places).T)] = values
                self._constant(dense, name)
            case "ResizeBilinear":
                self._resize(inputs, name)
            case _:
                sys.exit(f"{name} is a {kind}, which this converter does not know: it is made for NanoDet alone")

    def _convolution(self, node: dict[str, Any], inputs: list[str], name: str) -> None:
        kernel = self.constants[inputs[1]]
        options: dict[str, Any] = {
            "strides": _integers(node, "strides")[1:3],
            "dilations": _integers(node, "dilations")[1:3],
            "group": 1,
            "kernel_shape": list(kernel.shape[:2]),
        }
        if _text(node, "padding") != "VALID" or _text(node, "data_format") != "NHWC":
            sys.exit(f"{name} is padded or not NHWC, which this converter does not know")
        source = self._nchw(inputs[0])
        self._nhwc(self._op("Conv", [source, self._constant(kernel.transpose(3, 2, 0, 1))], **options), name)

    def _resize(self, inputs: list[str], name: str) -> None:
        height, width = (int(size) for size in self.constants[inputs[1]])
        size = np.array([self.height * height // MADE_FOR, self.width * width // MADE_FOR], dtype=np.int64)
        source = self._nchw(inputs[0])
        shape = self._op("Shape", [source])
        ends = [self._constant(np.array([0])), self._constant(np.array([2]))]
        batch_and_channels = self._op("Slice", [shape, *ends])
        sizes = self._op("Concat", [batch_and_channels, self._constant(size)], axis=0)
        mode = "half_pixel"
        resized = self._op("Resize", [source, "", "", sizes], mode="linear", coordinate_transformation_mode=mode)
        self._nhwc(resized, name)

    def _constant(self, value: np.ndarray, name: str | None = None) -> str:
        name = name or self._fresh("c")
        self.constants[name] = value
        halved = value.astype(np.float16) if value.dtype == np.float32 and value.size > SMALL else None
        if halved is not None and np.array_equal(halved.astype(np.float32), value):
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(halved), f"{name}_h"))
            self._op("Cast", [f"{name}_h"], name, to=TensorProto.FLOAT)
        else:
            self.initializers.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def _op(self, kind: str, inputs: list[str], name: str | None = None, **attributes: Any) -> str:
        name = name or self._fresh(kind)
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def _nchw(self, tensor: str) -> str:
        return self._op("Transpose", [tensor], perm=[0, 3, 1, 2])

    def _nhwc(self, tensor: str, name: str) -> None:
        self._op("Transpose", [tensor], name, perm=[0, 2, 3, 1])

    def _fresh(self, stem: str) -> str:
        self.names += 1
        return f"{stem}_{self.names}"


def _read_weights(model: dict[str, Any], directory: Path) -> Any:
    for group in model["weightsManifest"]:
        stored = b"".join((directory / path).read_bytes() for path in group["paths"])
        offset = 0
        for weight in group["weights"]:
            stored_as = np.dtype(weight.get("quantization", weight)["dtype"])
            count = int(np.prod(weight["shape"], dtype=np.int64))
            values = np.frombuffer(stored, stored_as, count, offset).reshape(weight["shape"])
            offset += values.nbytes
            yield weight["name"], values.astype(weight["dtype"])


def _tensor(name: str) -> str:
    """The name in ONNX: the first output of an operation is called as it is, the next is `_o1`."""
    return name.removesuffix(":0").replace(":", "_o")


def _shape(tensor: dict[str, Any]) -> list[int]:
    return [int(dimension["size"]) for dimension in tensor["tensorShape"]["dim"]]


def _integers(node: dict[str, Any], key: str) -> list[int]:
    return [int(number) for number in node["attr"][key]["list"]["i"]]


def _text(node: dict[str, Any], key: str) -> str:
    return base64.b64decode(node["attr"][key]["s"]).decode()


if __name__ == "__main__":
    source, target, *size = sys.argv[1:]
    height, width = (int(number) for number in size or ("256", "416"))
    onnx.save(Converter(Path(source), height, width).convert(), target)

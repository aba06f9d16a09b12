"""What real services answer to the questions of `probe --detect`, shortened, with the place where each is written."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from trio_runner.inference.replies import Reply


@dataclass(frozen=True, kw_only=True)
class Described:
    """A service: its answers by question, how its description begins, and lines of the config for it."""

    name: str
    source: str
    answers: dict[str, Any]
    what: str
    lines: tuple[str, ...]

    def replies(self) -> dict[str, Reply]:
        """The answers in the form of the recogniser: a number is a status without a body."""
        return {question: _reply(answer) for question, answer in self.answers.items()}


def _reply(answer: Any) -> Reply:
    match answer:
        case int():
            return Reply(answer, {}, b"")
        case (int() as status, body):
            return Reply(status, {}, body if isinstance(body, bytes) else json.dumps(body).encode())
        case bytes():
            return Reply(200, {}, answer)
        case _:
            return Reply(200, {}, json.dumps(answer).encode())


def upload(path: str, field: str, kind: dict[str, Any]) -> dict[str, Any]:
    """A document as FastAPI writes it for `async def route(FIELD: UploadFile)`."""
    name = "Body_route"
    content = {"multipart/form-data": {"schema": {"$ref": f"#/components/schemas/{name}"}}}
    return {
        "openapi": "3.1.0",
        "info": {"title": "FastAPI", "version": "0.1.0"},
        "paths": {path: {"post": {"requestBody": {"content": content, "required": True}}}, "/health": {"get": {}}},
        "components": {"schemas": {name: {"properties": {"name": {"type": "string"}, field: kind}, "type": "object"}}},
    }


KSERVE = {"name": "triton", "version": "2.51.0", "extensions": ["classification", "binary_tensor_data", "statistics"]}

DESCRIBED = (
    Described(
        name="Triton with a model of JPEGs",
        source="Triton 2.51.0: docs/protocol/extension_model_repository.md; open-inference-protocol inference_rest.md",
        answers={
            "GET /v2": KSERVE,
            "POST /v2/repository/index": [{"name": "nanodet", "version": "1", "state": "READY"}, {"name": "other"}],
            "GET /v2/models/nanodet": {
                "name": "nanodet",
                "versions": ["1"],
                "platform": "python",
                "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}],
                "outputs": [
                    {"name": "boxes", "datatype": "FP32", "shape": [-1, 4]},
                    {"name": "scores", "datatype": "FP32", "shape": [-1]},
                    {"name": "labels", "datatype": "BYTES", "shape": [-1]},
                ],
            },
        },
        what="triton 2.51.0, the Open Inference Protocol v2",
        lines=(
            *('protocol = "oip"', "[inference.oip]", 'model = "nanodet"  # or other', 'encoding = "binary"'),
            *('input = "image"', "# input: image BYTES [1]", 'boxes = "boxes"  # a guess by its name'),
        ),
    ),
    Described(
        name="Triton with an exported YOLO",
        source="docs.ultralytics.com/guides/triton-inference-server (images 1x3x640x640, output0 1x84x8400)",
        answers={
            "GET /v2": KSERVE,
            "POST /v2/repository/index": [{"name": "yolo"}],
            "GET /v2/models/yolo": {
                "name": "yolo",
                "inputs": [{"name": "images", "datatype": "FP32", "shape": [1, 3, 640, 480]}],
                "outputs": [{"name": "output0", "datatype": "FP32", "shape": [1, 84, 8400]}],
            },
        },
        what="triton 2.51.0, the Open Inference Protocol v2",
        lines=(
            *(
                'labels_file = "classes.txt"  # the name of each class in a line of its own',
                'decode = "yolo"  # a guess: one output of three dimensions',
                'boxes = "output0"',
                "[inference.oip.tensor]",
            ),
            *('datatype = "FP32"', 'layout = "NCHW"', "width = 480", "height = 640"),
        ),
    ),
    Described(
        name="Triton with an exported RF-DETR",
        source="roboflow/rf-detr: rfdetr/export/main.py (input; dets, labels)",
        answers={
            "GET /v2": KSERVE,
            "POST /v2/repository/index": [{"name": "rfdetr"}],
            "GET /v2/models/rfdetr": {
                "name": "rfdetr",
                "inputs": [{"name": "input", "datatype": "FP32", "shape": [1, 3, 560, 560]}],
                "outputs": [
                    {"name": "dets", "datatype": "FP32", "shape": [1, 300, 4]},
                    {"name": "labels", "datatype": "FP32", "shape": [1, 300, 91]},
                ],
            },
        },
        what="triton 2.51.0, the Open Inference Protocol v2",
        lines=(
            'decode = "detr"  # a guess: RF-DETR calls its boxes and logits so',
            'boxes = "dets"',
            'scores = "labels"',
        ),
    ),
    Described(
        name="Triton with outputs whose names say nothing",
        source="TensorFlow's SavedModels: names of outputs by number",
        answers={
            "GET /v2": KSERVE,
            "POST /v2/repository/index": [{"name": "tf"}],
            "GET /v2/models/tf": {
                "name": "tf",
                "inputs": [{"name": "x", "datatype": "BYTES", "shape": [1]}],
                "outputs": [
                    {"name": "output_0", "datatype": "FP32", "shape": [-1, 4]},
                    {"name": "output_1", "datatype": "FP32", "shape": [-1]},
                ],
            },
        },
        what="triton 2.51.0, the Open Inference Protocol v2",
        lines=(
            'boxes = "<OUTPUT>"  # one of output_0, output_1',
            'scores = "<OUTPUT>"  # one of output_0, output_1, or "" if there is none',
            'labels = "<OUTPUT>"  # one of output_0, output_1, or "" if there is none',
        ),
    ),
    Described(
        name="MLServer",
        source="MLServer 1.7.1: it has no binary tensors; docs.seldon.ai/mlserver model repository extension",
        answers={
            "GET /v2": {"name": "mlserver", "version": "1.7.1", "extensions": []},
            "POST /v2/repository/index": [{"name": "detector", "state": "READY"}],
            "GET /v2/models/detector": {"name": "detector", "inputs": [], "outputs": []},
        },
        what="mlserver 1.7.1, the Open Inference Protocol v2",
        lines=('model = "detector"', 'encoding = "json"'),
    ),
    Described(
        name="OpenVINO Model Server, without an index",
        source="openvinotoolkit/model_server: docs/model_server_rest_api_kfs.md",
        answers={"GET /v2": {"name": "OpenVINO Model Server", "version": "2026.2"}, "POST /v2/repository/index": 404},
        what="OpenVINO Model Server 2026.2, the Open Inference Protocol v2",
        lines=('model = "<MODEL>"  # its name: this server lists none',),
    ),
    Described(
        name="Roboflow Inference",
        source="roboflow/inference: core/interfaces/http/http_api.py (/info, /healthz)",
        answers={
            "GET /info": {"name": "Roboflow Inference Server", "version": "0.51.0", "uuid": "a"},
            "GET /healthz": {"status": "healthy"},
        },
        what="Roboflow Inference",
        lines=('protocol = "http"', "[inference.http]", 'preset = "roboflow"'),
    ),
    Described(
        name="CodeProject.AI",
        source="codeproject/CodeProject.AI-Server: src/server/Controllers/StatusController.cs",
        answers={
            "GET /v1/status/ping": {"success": True, "message": "Ready when you are", "code": 200},
            "GET /v1/vision/detection": 405,
        },
        what="CodeProject.AI, /v1/vision/detection",
        lines=('preset = "codeproject"',),
    ),
    Described(
        name="DeepStack",
        source="johnolafenwa/DeepStack: server/server.go, its page at /",
        answers={"GET /": b"<html><title>DeepStack</title></html>", "GET /v1/vision/detection": 404},
        what="DeepStack, /v1/vision/detection",
        lines=('preset = "codeproject"',),
    ),
    Described(
        name="vLLM with Qwen2.5-VL",
        source="docs.vllm.ai: serving/openai_compatible_server, GET /v1/models",
        answers={
            "GET /v1/models": {
                "object": "list",
                "data": [{"id": "Qwen/Qwen2.5-VL-7B-Instruct", "object": "model", "owned_by": "vllm"}],
            },
            "GET /health": 200,
            "GET /openapi.json": {"paths": {"/v1/chat/completions": {"post": {}}}},
        },
        what="a chat API like OpenAI's, of vllm",
        lines=(
            *('protocol = "openai"', 'model = "Qwen/Qwen2.5-VL-7B-Instruct"  # it must see pictures'),
            *("timeout_seconds = 60.0  # language models take 10 to 60 s", "[inference.openai]"),
            'dialect = "qwen2.5-vl"  # a guess by the model\'s name: probe draws the boxes',
        ),
    ),
    Described(
        name="Ollama with two models",
        source="docs.ollama.com/api/openai-compatibility (GET /v1/models), its page at /",
        answers={
            "GET /": b"Ollama is running",
            "GET /v1/models": {
                "object": "list",
                "data": [{"id": "qwen3-vl:8b", "owned_by": "library"}, {"id": "llava:7b", "owned_by": "library"}],
            },
        },
        what="a chat API like OpenAI's, of library",
        lines=('model = "qwen3-vl:8b"  # or llava:7b; it must see pictures',),
    ),
    Described(
        name="LocalAI",
        source="mudler/LocalAI: core/http/routes/localai.go (GET /system), docs object-detection.md",
        answers={
            "GET /system": {"backends": ["rfdetr"], "loaded_models": [{"id": "rfdetr-base"}]},
            "GET /v1/models": {"object": "list", "data": [{"id": "rfdetr-base", "object": "model"}]},
        },
        what="LocalAI, /v1/detection",
        lines=('preset = "localai"', 'fields = { model = "rfdetr-base" }  # one that detects objects'),
    ),
    Described(
        name="TensorFlow Serving",
        source="tensorflow/serving: model_servers/http_rest_api_handler.cc (malformed requests)",
        answers={"GET /v1/models": (404, {"error": "Malformed request: GET /v1/models"})},
        what="TensorFlow Serving",
        lines=('preset = "tfserving"', 'path = "/v1/models/<MODEL>:predict"  # the name of your model'),
    ),
    Described(
        name="TorchServe",
        source="pytorch/serve: docs/inference_api.md (health check)",
        answers={"GET /ping": {"status": "Healthy"}},
        what="TorchServe",
        lines=('preset = "torchserve"', 'path = "/predictions/<MODEL>"  # the name of your model'),
    ),
    Described(
        name="a FastAPI with an upload",
        source="FastAPI 0.115: OpenAPI of UploadFile (format: binary)",
        answers={"GET /openapi.json": upload("/detect", "file", {"type": "string", "format": "binary"})},
        what="a service of its own (FastAPI), POST /detect with a picture as the form's field file",
        lines=("[inference.predict]", 'path = "/detect"', 'field = "file"'),
    ),
    Described(
        name="a newer FastAPI with an upload",
        source="FastAPI 0.129: OpenAPI of UploadFile (contentMediaType)",
        answers={
            "GET /openapi.json": upload(
                "/predict", "frame", {"type": "string", "contentMediaType": "application/octet-stream"}
            )
        },
        what="a service of its own (FastAPI), POST /predict with a picture as the form's field frame",
        lines=('path = "/predict"', 'field = "frame"'),
    ),
    Described(
        name="a BentoML with a raw body",
        source="bentoml/BentoML: docs/source/build-with-bentoml/iotypes.rst (root input)",
        answers={
            "GET /openapi.json": {
                "info": {"title": "detector"},
                "paths": {"/detect": {"post": {"requestBody": {"content": {"image/*": {"schema": {}}}}}}},
            }
        },
        what="a service of its own (detector), POST /detect with a picture as its body",
        lines=("[inference.http]", 'path = "/detect"', 'image = "raw"'),
    ),
    Described(
        name="a FastAPI with base64",
        source="FastAPI 0.115: OpenAPI of a pydantic model",
        answers={
            "GET /openapi.json": {
                "paths": {
                    "/infer": {
                        "post": {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/a/In"}}}}}
                    }
                },
                "a": {"In": {"properties": {"image_base64": {"type": "string"}}}},
            }
        },
        what="a service of its own, POST /infer with a picture in the JSON key image_base64",
        lines=('image = "base64"  # a guess: or "data-url"', 'image_at = "image_base64"'),
    ),
)

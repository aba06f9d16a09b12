"""What a service is, by its answers to harmless questions; pure, so that a test needs no network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from trio_runner.inference.recognise_openapi import described_by_openapi
from trio_runner.inference.replies import (
    OK,
    Guess,
    Reply,
    as_list,
    as_text,
    at,
    comment,
    good,
    is_name,
    paths_of,
    quoted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

METHOD_NOT_ALLOWED: Final = 405
MAX_MODELS: Final = 5
"""So many models are looked at and listed."""


QUESTIONS: Final = (
    "GET /v2",
    "POST /v2/repository/index",
    "GET /v2/models",
    "GET /healthz",
    "GET /info",
    "GET /v1/models",
    "GET /system",
    "GET /v1/vision/detection",
    "GET /v1/status/ping",
    "GET /",
    "GET /ping",
    "GET /openapi.json",
)
"""None of them sends a picture. Replies are held by question; one without an answer is absent."""


def models_in(replies: Mapping[str, Reply]) -> list[str]:
    """The models of a server of the Open Inference Protocol, if it lists them: further questions are `GET` of these."""
    reply = good(replies, "POST /v2/repository/index") or good(replies, "GET /v2/models")
    listed = reply.json if reply else None
    if isinstance(listed, dict):
        listed = listed.get("models")
    names = [each.get("name") if isinstance(each, dict) else each for each in as_list(listed)]
    return [name for name in dict.fromkeys(map(as_text, names)) if is_name(name)][:MAX_MODELS]


def guesses(replies: Mapping[str, Reply]) -> list[Guess]:
    """What the service may be, the most certain first."""
    recognisers: tuple[Callable[[Mapping[str, Reply]], Iterator[Guess]], ...] = (
        _oip,
        _vision,
        _roboflow,
        _localai,
        _openai,
        _tf_serving,
        _torchserve,
        described_by_openapi,
    )
    found = [guess for recogniser in recognisers for guess in recogniser(replies)]
    return list({guess.what: guess for guess in found}.values())


def _oip(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    server = good(replies, "GET /v2")
    described = server.json if server else None
    if not (isinstance(described, dict) and isinstance(described.get("extensions", described.get("name")), list | str)):
        return
    name = as_text(described.get("name")) or "a server"
    version = as_text(described.get("version"))
    binary = "binary_tensor_data" in as_list(described.get("extensions"))
    models = models_in(replies)
    what = f"{name} {version}".strip() + ", the Open Inference Protocol v2"
    lines = ['protocol = "oip"', "", "[inference.oip]"]
    metadata = next((reply.json for model in models if (reply := good(replies, f"GET /v2/models/{model}"))), None)
    if models:
        lines.append(f"model = {quoted(models[0])}" + comment(f"or {', '.join(models[1:])}" if models[1:] else ""))
    else:
        lines.append('model = "<MODEL>"' + comment("its name: this server lists none"))
    lines.append(f"encoding = {quoted('binary' if binary else 'json')}")
    if isinstance(metadata, dict):
        lines += _tensors(metadata)
    if any(line.startswith("decode") for line in lines):
        lines.insert(1, 'labels_file = "classes.txt"' + comment("the name of each class in a line of its own"))
    yield Guess(what, tuple(lines))


def _tensors(metadata: dict[str, Any]) -> Iterator[str]:
    """The keys for a model's inputs and outputs, as its metadata describe them."""
    inputs, outputs = (
        [
            (name, as_text(each.get("datatype")), _shape(each))
            for each in as_list(metadata.get(key))
            if (name := _name_of(each))
        ]
        for key in ("inputs", "outputs")
    )
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for name, datatype, shape in tensors[:8]:
            yield f"# {kind}: {name} {datatype} {list(shape)}"
    names = [name for name, _, _ in outputs]
    if len(outputs) == 1 and len(outputs[0][2]) == 3:  # noqa: PLR2004 - batch, boxes and their numbers
        yield 'decode = "yolo"' + comment("a guess: one output of three dimensions")
        yield f"boxes = {quoted(names[0])}"
    elif any("logits" in name for name in names):
        yield 'decode = "detr"' + comment("a guess: it has logits")
        yield _output("boxes", names, "box")
        yield _output("scores", names, "logits")
    elif set(names) == {"dets", "labels"}:
        yield 'decode = "detr"' + comment("a guess: RF-DETR calls its boxes and logits so")
        yield 'boxes = "dets"'
        yield 'scores = "labels"'
    elif names:
        yield _output("boxes", names, "box")
        yield _output("scores", names, "score")
        yield _output("labels", names, "label" if "label" in str(names) else "class")
    if inputs:
        name, datatype, shape = inputs[0]
        yield f"input = {quoted(name)}"
        if datatype in {"UINT8", "FP32"} and len(shape) >= 3:  # noqa: PLR2004 - height, width and channels
            is_last = shape[-1] in {1, 3}
            height, width = shape[-3:-1] if is_last else shape[-2:]
            yield ""
            yield "[inference.oip.tensor]"
            yield f'datatype = "{datatype}"'
            yield f'layout = "{"NHWC" if is_last else "NCHW"}"'
            yield f"width = {max(width, 0) or 640}" + comment("" if width > 0 else "a guess: the model takes any")
            yield f"height = {max(height, 0) or 640}" + comment("" if height > 0 else "a guess: the model takes any")


def _vision(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    ping, page, path = (replies.get(f"GET {name}") for name in ("/v1/status/ping", "/", "/v1/vision/detection"))
    said = ping.json if ping and ping.status == OK else None
    is_codeproject = isinstance(said, dict) and said.get("success") is True
    is_deepstack = page is not None and b"DeepStack" in page.body
    if is_codeproject or is_deepstack or (path is not None and path.status == METHOD_NOT_ALLOWED):
        what = "CodeProject.AI" if is_codeproject else "DeepStack" if is_deepstack else "CodeProject.AI or DeepStack"
        yield Guess(
            f"{what}, /v1/vision/detection", ('protocol = "http"', "", "[inference.http]", 'preset = "codeproject"')
        )


def _roboflow(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    info, health, page = (good(replies, f"GET {name}") for name in ("/info", "/healthz", "/openapi.json"))
    said = info.json if info else None
    by_name = isinstance(said, dict) and "roboflow" in str(said.get("name", "")).lower()
    paths = paths_of(page)
    if by_name or (health is not None and "/infer/object_detection" in paths):
        yield Guess(
            "Roboflow Inference",
            (
                *('protocol = "http"', "", "[inference.http]", 'preset = "roboflow"'),
                'fields = { model_id = "<PROJECT/VERSION>", "image.type" = "base64" }' + comment("of your model"),
                '# field_files = { api_key = "/etc/keys/roboflow" }  # if the model wants one',
            ),
        )


def _localai(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    system = good(replies, "GET /system")
    said = system.json if system else None
    if isinstance(said, dict) and isinstance(said.get("backends"), list):
        model = next(iter(_chat_models(replies)), "<MODEL>")
        yield Guess(
            "LocalAI, /v1/detection",
            (
                *('protocol = "http"', "", "[inference.http]", 'preset = "localai"'),
                f"fields = {{ model = {quoted(model)} }}" + comment("one that detects objects"),
            ),
        )


def _openai(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    models = _chat_models(replies)
    reply = good(replies, "GET /v1/models")
    said = reply.json if reply else None
    if not models and not (
        isinstance(said, dict) and said.get("object") == "list" and isinstance(said.get("data"), list)
    ):
        return
    owner = next(
        (as_text(each.get("owned_by")) for each in as_list(said and said.get("data")) if isinstance(each, dict)), ""
    )
    model = next(iter(models), "")
    dialect = _dialect(model)
    yield Guess(
        "a chat API like OpenAI's" + (f", of {owner}" if owner else ""),
        (
            'protocol = "openai"',
            "timeout_seconds = 60.0" + comment("language models take 10 to 60 s"),
            "",
            "[inference.openai]",
            f"model = {quoted(model or '<MODEL>')}" + comment(_others(models)),
            'classes = ["person"]' + comment("what you look for"),
            f"dialect = {quoted(dialect)}" + comment("a guess by the model's name: probe draws the boxes"),
        ),
    )


def _others(models: list[str]) -> str:
    return f"or {', '.join(models[1:])}; it must see pictures" if models[1:] else "it must see pictures"


def _dialect(model: str) -> str:
    name = model.lower().replace("_", "-")
    for part, dialect in (("qwen2.5-vl", "qwen2.5-vl"), ("qwen2.5vl", "qwen2.5-vl"), ("qwen3", "qwen3-vl")):
        if part in name:
            return dialect
    return "gemini" if "gemini" in name else "plain"


def _tf_serving(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    reply = replies.get("GET /v1/models")
    said = reply.json if reply and reply.status != OK else None
    if isinstance(said, dict) and str(said.get("error", "")).startswith("Malformed request"):
        yield Guess(
            "TensorFlow Serving",
            (
                *('protocol = "http"', "", "[inference.http]", 'preset = "tfserving"'),
                'path = "/v1/models/<MODEL>:predict"' + comment("the name of your model"),
            ),
        )


def _torchserve(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    reply = good(replies, "GET /ping")
    said = reply.json if reply else None
    if isinstance(said, dict) and said.get("status") in ("Healthy", "Unhealthy"):
        yield Guess(
            "TorchServe",
            (
                *('protocol = "http"', "", "[inference.http]", 'preset = "torchserve"'),
                'path = "/predictions/<MODEL>"' + comment("the name of your model"),
            ),
        )


def _chat_models(replies: Mapping[str, Reply]) -> list[str]:
    reply = good(replies, "GET /v1/models")
    listed = as_list(at(reply.json, "data")) if reply else []
    names = [as_text(at(each, "id")) for each in listed]
    return [name for name in dict.fromkeys(names) if name][:MAX_MODELS]


def _name_of(tensor: Any) -> str:
    return as_text(at(tensor, "name"))


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(side for side in as_list(at(tensor, "shape")) if isinstance(side, int) and abs(side) < 2**31)


def _output(key: str, names: list[str], part: str) -> str:
    """The line for an output whose name holds `part`; without one, a placeholder and the names to choose from."""
    if name := next((name for name in names if part in name.lower()), ""):
        return f"{key} = {quoted(name)}" + comment("a guess by its name")
    none = "" if key == "boxes" else ', or "" if there is none'
    return f'{key} = "<OUTPUT>"' + comment(f"one of {', '.join(names[:8])}{none}")

"""What a service is, by its answers to harmless questions; pure, so that a test needs no network."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import msgspec

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

OK: Final = 200
METHOD_NOT_ALLOWED: Final = 405
MAX_MODELS: Final = 5
"""So many models are looked at and listed."""
_NAME: Final = re.compile(r"[A-Za-z0-9._:@-]{1,200}\Z")
_PLAIN: Final = re.compile(r"[ -~]{1,200}\Z")
_IMAGE_FIELDS: Final = ("image", "image_base64", "img", "frame", "picture", "photo", "file", "data", "b64")


@dataclass(frozen=True, slots=True)
class Reply:
    """The answer to one question: its status, its headers, and the beginning of its body."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON; None where it is none."""
        try:
            return msgspec.json.decode(self.body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None


@dataclass(frozen=True, slots=True)
class Guess:
    """What the service may be, and the lines of the config for it; a comment marks what is not known."""

    what: str
    lines: tuple[str, ...]


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
    reply = _good(replies, "POST /v2/repository/index") or _good(replies, "GET /v2/models")
    listed = reply.json if reply else None
    if isinstance(listed, dict):
        listed = listed.get("models")
    names = [each.get("name") if isinstance(each, dict) else each for each in _list(listed)]
    return [name for name in dict.fromkeys(map(_text, names)) if _is_name(name)][:MAX_MODELS]


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
        _openapi,
    )
    found = [guess for recogniser in recognisers for guess in recogniser(replies)]
    return list({guess.what: guess for guess in found}.values())


def _oip(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    server = _good(replies, "GET /v2")
    described = server.json if server else None
    if not (isinstance(described, dict) and isinstance(described.get("extensions", described.get("name")), list | str)):
        return
    name = _text(described.get("name")) or "a server"
    version = _text(described.get("version"))
    binary = "binary_tensor_data" in _list(described.get("extensions"))
    models = models_in(replies)
    what = f"{name} {version}".strip() + ", the Open Inference Protocol v2"
    lines = ['protocol = "oip"', "", "[inference.oip]"]
    metadata = next((reply.json for model in models if (reply := _good(replies, f"GET /v2/models/{model}"))), None)
    if models:
        lines.append(f"model = {_quoted(models[0])}" + _comment(f"or {', '.join(models[1:])}" if models[1:] else ""))
    else:
        lines.append('model = "MODEL"' + _comment("its name: this server lists none"))
    lines.append(f"encoding = {_quoted('binary' if binary else 'json')}")
    if isinstance(metadata, dict):
        lines += _tensors(metadata)
    yield Guess(what, tuple(lines))


def _tensors(metadata: dict[str, Any]) -> Iterator[str]:
    """The keys for a model's inputs and outputs, as its metadata describe them."""
    inputs, outputs = (
        [
            (name, _text(each.get("datatype")), _shape(each))
            for each in _list(metadata.get(key))
            if (name := _name_of(each))
        ]
        for key in ("inputs", "outputs")
    )
    for kind, tensors in (("input", inputs), ("output", outputs)):
        for name, datatype, shape in tensors[:8]:
            yield f"# {kind}: {name} {datatype} {list(shape)}"
    names = [name for name, _, _ in outputs]
    if len(outputs) == 1 and len(outputs[0][2]) == 3:  # noqa: PLR2004 - batch, boxes and their numbers
        yield 'decode = "yolo"' + _comment("a guess: one output of three dimensions")
        yield f"boxes = {_quoted(names[0])}"
    elif any("logits" in name for name in names):
        yield 'decode = "detr"' + _comment("a guess: it has logits")
        yield f"boxes = {_quoted(_best(names, 'box'))}"
        yield f"scores = {_quoted(_best(names, 'logits'))}"
    elif names:
        for key, part in (
            ("boxes", "box"),
            ("scores", "score"),
            ("labels", "label" if "label" in str(names) else "class"),
        ):
            yield f"{key} = {_quoted(_best(names, part))}" + _comment("a guess by its name")
    if inputs:
        name, datatype, shape = inputs[0]
        yield f"input = {_quoted(name)}"
        if datatype in {"UINT8", "FP32"} and len(shape) >= 3:  # noqa: PLR2004 - height, width and channels
            is_last = shape[-1] in {1, 3}
            height, width = shape[-3:-1] if is_last else shape[-2:]
            yield ""
            yield "[inference.oip.tensor]"
            yield f'datatype = "{datatype}"'
            yield f'layout = "{"NHWC" if is_last else "NCHW"}"'
            yield f"width = {max(width, 0) or 640}" + _comment("" if width > 0 else "a guess: the model takes any")
            yield f"height = {max(height, 0) or 640}" + _comment("" if height > 0 else "a guess: the model takes any")


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
    info, health, page = (_good(replies, f"GET {name}") for name in ("/info", "/healthz", "/openapi.json"))
    said = info.json if info else None
    by_name = isinstance(said, dict) and "roboflow" in str(said.get("name", "")).lower()
    paths = _paths(page)
    if by_name or (health is not None and "/infer/object_detection" in paths):
        yield Guess(
            "Roboflow Inference",
            (
                *('protocol = "http"', "", "[inference.http]", 'preset = "roboflow"'),
                'fields = { model_id = "PROJECT/VERSION", "image.type" = "base64" }' + _comment("of your model"),
                '# field_files = { api_key = "/etc/keys/roboflow" }  # if the model wants one',
            ),
        )


def _localai(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    system = _good(replies, "GET /system")
    said = system.json if system else None
    if isinstance(said, dict) and isinstance(said.get("backends"), list):
        model = next(iter(_chat_models(replies)), "")
        yield Guess(
            "LocalAI, /v1/detection",
            (
                *('protocol = "http"', "", "[inference.http]", 'preset = "localai"'),
                f"fields = {{ model = {_quoted(model)} }}" + _comment("one that detects objects"),
            ),
        )


def _openai(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    models = _chat_models(replies)
    reply = _good(replies, "GET /v1/models")
    said = reply.json if reply else None
    if not models and not (
        isinstance(said, dict) and said.get("object") == "list" and isinstance(said.get("data"), list)
    ):
        return
    owner = next(
        (_text(each.get("owned_by")) for each in _list(said and said.get("data")) if isinstance(each, dict)), ""
    )
    model = next(iter(models), "")
    dialect = _dialect(model)
    yield Guess(
        "a chat API like OpenAI's" + (f", of {owner}" if owner else ""),
        (
            'protocol = "openai"',
            "timeout_seconds = 60.0" + _comment("language models take 10 to 60 s"),
            "",
            "[inference.openai]",
            f"model = {_quoted(model)}" + _comment(_others(models)),
            'classes = ["person"]' + _comment("what you look for"),
            f"dialect = {_quoted(dialect)}" + _comment("a guess by the model's name: probe draws the boxes"),
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
                'path = "/v1/models/MODEL:predict"' + _comment("the name of your model"),
            ),
        )


def _torchserve(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    reply = _good(replies, "GET /ping")
    said = reply.json if reply else None
    if isinstance(said, dict) and said.get("status") in {"Healthy", "Unhealthy"}:
        yield Guess(
            "TorchServe",
            (
                *('protocol = "http"', "", "[inference.http]", 'preset = "torchserve"'),
                'path = "/predictions/MODEL"' + _comment("the name of your model"),
            ),
        )


def _openapi(replies: Mapping[str, Reply]) -> Iterator[Guess]:
    """Services of one's own, as FastAPI, LitServe and BentoML describe them."""
    page = _good(replies, "GET /openapi.json")
    document = page.json if page else None
    if not isinstance(document, dict):
        return
    title = _text((document.get("info") or {}).get("title")) if isinstance(document.get("info"), dict) else ""
    for path, methods in list(_paths(page).items()):
        post = methods.get("post") if isinstance(methods, dict) else None
        if not isinstance(post, dict) or not re.fullmatch(r"/((?![?#{}])[!-~])*", path):
            continue
        content = _at(_resolved(post.get("requestBody"), document), "content")
        what = f"a service of its own{f' ({title})' if title else ''}, POST {path}"
        if (field := _file_field(_at(content, "multipart/form-data", "schema"), document)) is not None:
            yield Guess(
                f"{what} with a picture as the form's field {field}",
                (
                    'protocol = "predict"' + _comment('if the answer has another form: "http", see docs/protocols.md'),
                    *("", "[inference.predict]", f"path = {_quoted(path)}", f"field = {_quoted(field)}"),
                ),
            )
        elif isinstance(content, dict) and any(str(kind).startswith("image/") for kind in content):
            yield Guess(
                f"{what} with a picture as its body",
                (
                    *('protocol = "http"', "", "[inference.http]", f"path = {_quoted(path)}", 'image = "raw"'),
                    "raw = true"
                    + _comment("until list, label, score and box say where the detections are in its answer"),
                ),
            )
        elif (field := _text_field(_at(content, "application/json", "schema"), document)) is not None:
            yield Guess(
                f"{what} with a picture in the JSON key {field}",
                (
                    *('protocol = "http"', "", "[inference.http]", f"path = {_quoted(path)}"),
                    'image = "base64"' + _comment('a guess: or "data-url"'),
                    f"image_at = {_quoted(field)}",
                    "raw = true"
                    + _comment("until list, label, score and box say where the detections are in its answer"),
                ),
            )


def _file_field(schema: Any, document: dict[str, Any]) -> str | None:
    for name, kind in _properties(schema, document).items():
        each = _resolved(kind, document)
        kinds = [each, _at(each, "items"), *_list(_at(each, "anyOf"))]
        is_file = any(_at(one, "format") == "binary" or _at(one, "contentMediaType") for one in kinds)
        if is_file and _is_name(name):
            return str(name)
    return None


def _text_field(schema: Any, document: dict[str, Any]) -> str | None:
    names = [
        name
        for name, kind in _properties(schema, document).items()
        if _at(_resolved(kind, document), "type") == "string"
    ]
    return next((name for name in _IMAGE_FIELDS if name in names), None)


def _properties(schema: Any, document: dict[str, Any]) -> dict[str, Any]:
    found = _at(_resolved(schema, document), "properties")
    return found if isinstance(found, dict) else {}


def _resolved(value: Any, document: dict[str, Any]) -> Any:
    """The value, or the part of the document that its `$ref` names."""
    reference = _at(value, "$ref")
    if not isinstance(reference, str) or not reference.startswith("#/"):
        return value
    return _at(document, *reference[2:].split("/"))


def _at(value: Any, *keys: str) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def _paths(page: Reply | None) -> dict[str, Any]:
    found = _at(page.json, "paths") if page else None
    return found if isinstance(found, dict) else {}


def _chat_models(replies: Mapping[str, Reply]) -> list[str]:
    reply = _good(replies, "GET /v1/models")
    listed = _list(_at(reply.json, "data")) if reply else []
    names = [_text(_at(each, "id")) for each in listed]
    return [name for name in dict.fromkeys(names) if name][:MAX_MODELS]


def _good(replies: Mapping[str, Reply], question: str) -> Reply | None:
    reply = replies.get(question)
    return reply if reply and reply.status == OK else None


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _text(value: Any) -> str:
    """A short printable text of ASCII; empty for anything else."""
    return value if isinstance(value, str) and _PLAIN.fullmatch(value) else ""


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def _name_of(tensor: Any) -> str:
    return _text(_at(tensor, "name"))


def _shape(tensor: Any) -> tuple[int, ...]:
    return tuple(side for side in _list(_at(tensor, "shape")) if isinstance(side, int) and abs(side) < 2**31)


def _best(names: list[str], part: str) -> str:
    return next((name for name in names if part in name.lower()), "")


def _quoted(text: str) -> str:
    """A basic string of TOML: ASCII as JSON writes it is one."""
    return json.dumps(text)


def _comment(text: str) -> str:
    return f"  # {text}" if text else ""

"""The tables of `[inference]`: the service, and one for each wire protocol."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from trio_runner.config.kinds import (
    EMBEDDED,
    FilePath,
    FileTable,
    HeaderTable,
    Name,
    NotNegative,
    OptionalUrlPath,
    PeerSection,
    QueryTable,
    Seconds,
    SecondsOrNone,
    Section,
    UrlPath,
)
from trio_runner.config.tensor import TensorSection

OptionalName = Annotated[
    str,
    Meta(
        max_length=200,
        pattern=r"^[A-Za-z0-9._:@-]*\Z",
        description='at most 200 letters, digits or any of . _ : @ -; "" for none',
    ),
]
TensorName = Annotated[str, Meta(max_length=200, description='the name of a tensor of the model; "" for none')]
ParameterTable = Annotated[
    dict[
        Annotated[str, Meta(min_length=1, max_length=100)],
        bool | int | Annotated[float, Meta(ge=-1e300, le=1e300)] | str,
    ],
    Meta(max_length=40, description="a table of at most 40 parameters, as { confidence = 0.4 }"),
]


class BoxKeys(Section, frozen=True, kw_only=True):
    """How a service writes boxes."""

    box_format: Literal["xyxy", "xywh", "cxcywh", "yxyx", "xxyy"] = "xyxy"
    box_scale: Literal["", "pixels", "0-1", "0-1000"] = ""


class PredictSection(BoxKeys, frozen=True, kw_only=True):
    """The protocol `predict`: where the picture is posted, and in which field."""

    path: UrlPath = "/predict"
    field: Name = "frame"


JmesPath = Annotated[str, Meta(max_length=1000, description="a JMESPath expression of at most 1000 characters")]
FieldTable = Annotated[
    dict[Annotated[str, Meta(min_length=1, max_length=200)], Any],
    Meta(max_length=40, description="a table of at most 40 names and values, as { confidence = 0.4 }"),
]
OptionalPath = Annotated[
    str, Meta(pattern=r"^(/((?![?#])[!-~])*)?\Z", description="a path that begins with /, without blanks, ? and #")
]


class HttpSection(Section, frozen=True, kw_only=True):
    """The protocol `http`: any request with a picture in it, and where the detections are in the answer.

    `http_presets.resolved` says what an empty text stands for.
    """

    preset: Annotated[
        str,
        Meta(max_length=100, pattern=r"^[a-z0-9-]*\Z", description='"", or a name that `trio-runner protocols` lists'),
    ] = ""
    method: Literal["", "POST", "PUT"] = ""
    path: OptionalPath = ""
    image: Literal["", "multipart", "raw", "base64", "data-url"] = ""
    image_at: Annotated[str, Meta(max_length=200)] = ""
    content_type: Annotated[
        str,
        Meta(max_length=200, pattern=r"^([!-~]([ -~]*[!-~])?)?\Z", description="a media type, as image/jpeg"),
    ] = ""
    fields: FieldTable = msgspec.field(default_factory=dict)
    field_files: FileTable = msgspec.field(default_factory=dict)
    ready_path: OptionalPath = ""
    list: JmesPath = ""
    label: JmesPath = ""
    class_id: JmesPath = ""
    score: JmesPath = ""
    box: JmesPath = ""
    keypoints: JmesPath = ""
    polygon: JmesPath = ""
    rle: JmesPath = ""
    track_id: JmesPath = ""
    text: JmesPath = ""
    boxes: JmesPath = ""
    labels: JmesPath = ""
    class_ids: JmesPath = ""
    scores: JmesPath = ""
    box_format: Literal["", "xyxy", "xywh", "cxcywh", "yxyx", "xxyy"] = ""
    box_scale: Literal["", "pixels", "0-1", "0-1000"] = ""
    min_score: Annotated[float, Meta(ge=0, le=1)] = 0.0
    failure: JmesPath = ""
    failure_message: JmesPath = ""
    raw: bool = False


class OpenaiSection(Section, frozen=True, kw_only=True):
    """The protocol `openai`: what a language model that sees pictures is asked, and how it writes boxes."""

    path: UrlPath = "/v1/chat/completions"
    model: Annotated[str, Meta(max_length=500)] = ""
    answer: Literal["boxes", "labels", "text", "raw"] = "boxes"
    classes: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...],
        Meta(max_length=1000, description='a list of names, as ["person", "bicycle"]'),
    ] = ()
    prompt: Annotated[str, Meta(max_length=100_000)] = ""
    prompt_file: FilePath = ""
    response_format: Literal["json_schema", "json_object", "none"] = "json_schema"
    max_tokens: NotNegative = 2048
    temperature: Annotated[
        Annotated[float, Meta(ge=0, le=10)] | Literal["default"],
        Meta(description='a number from 0 to 10, or "default"'),
    ] = 0.0
    extra: Annotated[
        dict[Annotated[str, Meta(min_length=1, max_length=100)], Any],
        Meta(max_length=40, description="a table of at most 40 keys, as { seed = 1 }"),
    ] = msgspec.field(default_factory=dict)
    dialect: Literal["plain", "qwen2.5-vl", "qwen3-vl", "gemini"] = "plain"
    box_format: Literal["", "xyxy", "xywh", "cxcywh", "yxyx", "xxyy"] = ""
    box_scale: Literal["", "pixels", "0-1", "0-1000"] = ""
    min_pixels: Annotated[int, Meta(ge=28 * 28, le=2**31 - 1)] = 56 * 56
    max_pixels: Annotated[int, Meta(ge=28 * 28, le=2**31 - 1)] = 28 * 28 * 16_384


class OipSection(BoxKeys, frozen=True, kw_only=True):
    """The Open Inference Protocol v2: the model, the form of its tensors, and what its outputs mean."""

    model: OptionalName = ""
    version: OptionalName = ""
    encoding: Literal["binary", "json"] = "binary"
    input: TensorName = ""
    content_type: OptionalName = "base64"
    batch: Annotated[int, Meta(ge=1, le=256)] = 1
    metadata: bool = True
    decode: Literal["boxes", "yolo", "detr"] = "boxes"
    boxes: TensorName = "boxes"
    scores: TensorName = "scores"
    labels: TensorName = "labels"
    count: TensorName = ""
    score_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.0
    nms_threshold: Annotated[float, Meta(ge=0, le=1)] = 0.45
    yolo_head: Literal["auto", "v5", "v8", "end-to-end"] = "auto"
    activation: Literal["auto", "sigmoid", "softmax"] = "auto"
    sequence: bool = False
    parameters: ParameterTable = msgspec.field(default_factory=dict)
    tensor: TensorSection = TensorSection()


class InferenceSection(PeerSection, frozen=True, kw_only=True):
    """Where frames are sent, and how long an answer may take; a table inside for each protocol."""

    url: str = EMBEDDED
    protocol: Literal["predict", "http", "openai", "oip"] = "predict"
    in_flight: Annotated[int, Meta(ge=1, le=256)] = 4
    connect_timeout_seconds: Seconds = 3.0
    timeout_seconds: Seconds = 10.0
    retry_seconds: SecondsOrNone = 0.0
    requests_per_second: Annotated[float, Meta(ge=0, le=100_000)] = 0.0
    requests_per_minute: Annotated[float, Meta(ge=0, le=1_000_000)] = 0.0
    ready_timeout_seconds: SecondsOrNone = 0.0
    ready_path: OptionalUrlPath = ""
    max_failed_frames: NotNegative = 0
    max_response_bytes: Annotated[int, Meta(ge=0, le=2**30)] = 0
    labels: Annotated[
        tuple[Annotated[str, Meta(min_length=1, max_length=200)], ...],
        Meta(max_length=10_000, description='a list of names, as ["person", "bicycle"]'),
    ] = ()
    labels_file: FilePath = ""
    proxy: str = ""
    http2: bool = False
    token_file: FilePath = ""
    allow_plaintext_token: bool = False
    headers: HeaderTable = msgspec.field(default_factory=dict)
    header_files: FileTable = msgspec.field(default_factory=dict)
    query: QueryTable = msgspec.field(default_factory=dict)
    query_files: FileTable = msgspec.field(default_factory=dict)
    predict: PredictSection = PredictSection()
    http: HttpSection = HttpSection()
    openai: OpenaiSection = OpenaiSection()
    oip: OipSection = OipSection()

    @property
    def tensor(self) -> TensorSection | None:
        """The tensor that the decoder child makes of each picture; None where it makes a JPEG."""
        tensor = self.oip.tensor
        return tensor if self.protocol == "oip" and tensor.datatype != "BYTES" else None

    @property
    def is_stateful(self) -> bool:
        """Whether the service must be told which frame is the last."""
        return self.protocol == "oip" and self.oip.sequence

"""The tables of `[inference]`: the service, and one for each wire protocol."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from trio_runner.config.kinds import (
    EMBEDDED,
    FilePath,
    FileTable,
    HeaderTable,
    Name,
    PeerSection,
    QueryTable,
    Seconds,
    Section,
    UrlPath,
)


class BoxKeys(Section, frozen=True, kw_only=True):
    """How a service writes boxes."""

    box_format: Literal["xyxy", "xywh", "cxcywh", "yxyx", "xxyy"] = "xyxy"
    box_scale: Literal["", "pixels", "0-1", "0-1000"] = ""


class PredictSection(BoxKeys, frozen=True, kw_only=True):
    """The protocol `predict`: where the picture is posted, and in which field."""

    path: UrlPath = "/predict"
    field: Name = "frame"


class InferenceSection(PeerSection, frozen=True, kw_only=True):
    """Where frames are sent, and how long an answer may take; a table inside for each protocol."""

    url: str = EMBEDDED
    protocol: Literal["predict"] = "predict"
    in_flight: Annotated[int, Meta(ge=1, le=256)] = 4
    connect_timeout_seconds: Seconds = 3.0
    timeout_seconds: Seconds = 10.0
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

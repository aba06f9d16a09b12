"""The tables of a config file: every key with its type and its default."""

from __future__ import annotations

from types import MappingProxyType
from typing import Annotated, Final, Literal

from msgspec import Meta

from trio_runner.config.kinds import (
    EMBEDDED,
    DnsName,
    FilePath,
    Name,
    NotNegative,
    PeerSection,
    Positive,
    Quantity,
    Seconds,
    Section,
    Topic,
)

CACHE_NAME: Final = "videos"
"""Where in `runner.data_dir` fetched videos lie, unless `storage.cache_dir` says otherwise."""

OPTIONAL_PATHS: Final = MappingProxyType(
    {
        "video": ("root",),
        "inference": (
            "ca_file",
            "certificate_file",
            "header_files",
            "key_file",
            "labels_file",
            "query_files",
            "token_file",
        ),
        "inference.http": ("field_files",),
        "inference.openai": ("prompt_file",),
        "database": ("ca_file", "certificate_file", "key_file", "password_file"),
        "kafka": ("ca_file", "certificate_file", "key_file", "password_file", "spool_dir"),
        "storage": (
            "ca_file",
            "cache_dir",
            "certificate_file",
            "key_file",
            "s3_key_id_file",
            "s3_secret_key_file",
            "s3_session_token_file",
        ),
        "orchestrator": ("runner_config",),
        "systemd": ("config_dir",),
        "kubernetes": ("kubeconfig",),
    }
)
"""Keys that may be empty; a relative path in them starts from the config's directory."""


class RunnerSection(Section, frozen=True, kw_only=True):
    """The name of this process and where it keeps its state."""

    id: Name = "runner_1"
    data_dir: FilePath = ".trio-runner"
    drain_seconds: Seconds = 10.0


class LogSection(Section, frozen=True, kw_only=True):
    """The log lines on stderr: from which level on, and in which form."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["auto", "console", "json"] = "auto"


class ScenarioSection(Section, frozen=True, kw_only=True):
    """The scenario that this process serves."""

    id: Annotated[int, Meta(ge=1, le=2**63 - 1)] = 1
    epoch: Annotated[int, Meta(ge=0, le=2**63 - 1)] = 0
    on_complete: Literal["active", "inactive"] = "active"
    max_failures: Positive = 5


class VideoSection(Section, frozen=True, kw_only=True):
    """The video, which of its frames are sent, in what form, and within what limits."""

    path: Annotated[FilePath, Meta(min_length=1, description="the path of a file or directory, or a URL")] = (
        "test_videos/test_video.mp4"
    )
    root: FilePath = ""
    stream: Annotated[
        Annotated[int, Meta(ge=0)] | Literal["auto"], Meta(description='"auto", or an integer from 0')
    ] = "auto"
    deinterlace: Literal["auto", "off"] = "auto"
    square_pixels: bool = True
    fps: Annotated[float, Meta(gt=0, le=1000)] = 1.0
    stride: Positive = 1
    key_frames_only: bool = False
    max_fps: Annotated[float, Meta(ge=0, le=1000)] = 0.0
    start_seconds: Annotated[float, Meta(ge=0, le=10**7)] = 0.0
    max_frames: NotNegative = 0
    max_width: Annotated[int, Meta(ge=0, le=16_384)] = 0
    jpeg_quality: Annotated[int, Meta(ge=1, le=100)] = 90
    on_corrupt: Literal["fail", "skip"] = "fail"
    frame_timeout_seconds: Seconds = 10.0
    decoder_threads: Annotated[int, Meta(ge=1, le=16)] = 1
    encoder_threads: Annotated[int, Meta(ge=1, le=16)] = 1
    limit_width: Annotated[int, Meta(ge=1, le=16_384)] = 4096
    limit_height: Annotated[int, Meta(ge=1, le=16_384)] = 4096
    limit_fps: Annotated[float, Meta(gt=0, le=1000)] = 240.0
    limit_memory_mib: Annotated[int, Meta(ge=256, le=2**20)] = 2048


class StorageSection(PeerSection, frozen=True, kw_only=True):
    """From where a `video.path` that is a URL may be fetched, and the cache that holds the copies."""

    url_prefixes: Annotated[
        tuple[Annotated[str, Meta(max_length=500)], ...],
        Meta(max_length=40, description='a list of at most 40, as ["https://media.example/videos/", "s3://bucket/"]'),
    ] = ()
    cache_dir: FilePath = ""
    cache_max_mib: Annotated[int, Meta(ge=1, le=2**30)] = 20_480
    connect_timeout_seconds: Seconds = 5.0
    stall_timeout_seconds: Seconds = 20.0
    fetch_timeout_seconds: Seconds = 3600.0
    s3_endpoint: Annotated[str, Meta(max_length=4096)] = ""
    s3_region: Annotated[
        str, Meta(max_length=100, pattern=r"^[a-z0-9-]+\Z", description="a region's name, as us-east-1")
    ] = "us-east-1"
    s3_key_id_file: FilePath = ""
    s3_secret_key_file: FilePath = ""
    s3_session_token_file: FilePath = ""


class PipelineSection(Section, frozen=True, kw_only=True):
    """How many frames and bytes may be under way at once."""

    max_buffered_bytes: Annotated[int, Meta(ge=2**16, le=2**40)] = 32 * 2**20
    max_buffered_frames: Positive = 64


class DatabaseSection(PeerSection, frozen=True, kw_only=True):
    """The ledger: its address, and how it is written."""

    url: str = EMBEDDED
    password_file: FilePath = ""
    sslmode: Literal["disable", "require", "verify-ca", "verify-full"] = "verify-full"
    allow_plaintext_password: bool = False
    create_schema: bool = True
    connect_timeout_seconds: Seconds = 5.0
    command_timeout_seconds: Seconds = 10.0
    batch_frames: Annotated[int, Meta(ge=1, le=1000)] = 16
    batch_seconds: Seconds = 0.25
    lease_seconds: Annotated[float, Meta(ge=1, le=86_400)] = 30.0


class KafkaSection(PeerSection, frozen=True, kw_only=True):
    """Kafka: where retry events are published."""

    brokers: str = EMBEDDED
    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "SCRAM-SHA-512"
    username: Annotated[
        str,
        Meta(
            max_length=200,
            # SASL/PLAIN separates name and password by a NUL (RFC 4616).
            pattern=r"^[^\x00-\x1f\x7f]*\Z",
            description="at most 200 characters, none of them a control character",
        ),
    ] = ""
    password_file: FilePath = ""
    allow_plaintext_password: bool = False
    spool_dir: FilePath = ""
    retry_topic: Topic = "runner.retry"
    required: bool = True
    connect_timeout_seconds: Seconds = 5.0
    publish_timeout_seconds: Seconds = 15.0


class OrchestratorSection(Section, frozen=True, kw_only=True):
    """The orchestrator: how it starts runners, and how many."""

    node: Annotated[
        str,
        Meta(
            max_length=200,
            pattern=r"^[A-Za-z0-9._:@-]*\Z",
            description="at most 200 letters, digits or any of . _ : @ -",
        ),
    ] = ""
    spawner: Literal["process", "systemd", "kubernetes"] = "process"
    runner_config: FilePath = ""
    group: Topic = "trio-runner-orchestrator"
    command_topic: Topic = "runner.commands"
    dead_letter_topic: Topic = "runner.dead-letter"
    max_runners: Positive = 8
    max_epochs: Positive = 50
    starts_per_second: Annotated[float, Meta(gt=0, le=1000)] = 5.0
    start_timeout_seconds: Seconds = 30.0
    poll_seconds: Annotated[float, Meta(ge=0.05, le=60)] = 0.5
    reap_seconds: Seconds = 5.0
    stop_timeout_seconds: Seconds = 60.0


class SystemdSection(Section, frozen=True, kw_only=True):
    """The `systemd` spawner: under which manager runners are units."""

    manager: Literal["system", "user"] = "system"
    unit: Annotated[
        str,
        Meta(pattern=r"^[A-Za-z0-9:_.-]{1,200}@\Z", description="the name of a template, such as name@"),
    ] = "trio-runner@"
    config_dir: Annotated[FilePath, Meta(min_length=1, description="the path of a directory")] = "/etc/trio-runner"


class KubernetesSection(Section, frozen=True, kw_only=True):
    """The `kubernetes` spawner: where it starts runners, and what each gets."""

    kubeconfig: FilePath = ""
    namespace: DnsName = "trio-runner"
    image: Annotated[str, Meta(max_length=500, pattern=r"^[!-~]*\Z", description="an image's name, without blanks")] = (
        "trio-runner"
    )
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    config_map: DnsName = "trio-runner"
    secret_name: DnsName = "trio-runner"  # noqa: S105 - an object's name
    service_account: DnsName = "default"
    videos_claim: DnsName = ""
    videos_host_path: FilePath = ""
    videos_mount: FilePath = "/videos"
    cpu_request: Quantity = "500m"
    cpu_limit: Quantity = ""
    memory_request: Quantity = "512Mi"
    memory_limit: Quantity = "3Gi"
    startup_seconds: Seconds = 120.0
    ttl_seconds: NotNegative = 3600

"""Rules of `[inference]` beyond the type of one key: the address, and secrets in the open."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from trio_runner.config.address import socket_path, split_url
from trio_runner.config.broken import broken, lonely_key_file, no_tls_files
from trio_runner.config.errors import SECRET_NAME, shown
from trio_runner.config.kinds import EMBEDDED, PLACEHOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_runner.config.errors import Problem
    from trio_runner.config.inference import InferenceSection
    from trio_runner.config.sections import KubernetesSection, OrchestratorSection, PipelineSection

MAX_SOCKET_PATH_BYTES: Final = 107
"""What fits into sockaddr_un on Linux."""

SECRET_FILES: Final = ("token_file", "header_files", "query_files")
_SECRET_HEADER: Final = re.compile(r"authorization|cookie|[-_]key$|^key$|[-_]auth$", re.IGNORECASE)
_OURS: Final = frozenset(
    {"accept-encoding", "connection", "content-length", "content-type", "host", "transfer-encoding"}
)
_OF_A_CHAT: Final = frozenset({"max_tokens", "messages", "model", "n", "response_format", "stream", "temperature"})

_FRAME_AND_NEXT: Final = 2


def failed_frames_rule(inference: InferenceSection, pipeline: PipelineSection) -> Iterator[Problem]:
    """A failed frame waits for the answer to the next one, so there must be room for both."""
    if inference.max_failed_frames and pipeline.max_buffered_frames < _FRAME_AND_NEXT:
        yield broken(
            "inference.max_failed_frames",
            "pipeline.max_buffered_frames leaves no room for the frame behind a failed one",
            f"set that to {_FRAME_AND_NEXT} or more, or remove this",
            "pipeline.max_buffered_frames",
        )


def readiness_rule(
    inference: InferenceSection, orchestrator: OrchestratorSection, kubernetes: KubernetesSection
) -> Iterator[Problem]:
    """A pod is not ended while its runner waits for the service."""
    if orchestrator.spawner == "kubernetes" and inference.ready_timeout_seconds >= kubernetes.startup_seconds:
        startup = "kubernetes.startup_seconds"
        yield broken(
            "inference.ready_timeout_seconds",
            f"not below {startup}, after which a pod that has not claimed is ended",
            f"raise {startup}, or lower this",
            startup,
            "orchestrator.spawner",
        )


def inference_rules(inference: InferenceSection) -> Iterator[Problem]:
    """The address, the labels, and whether secrets are written here or would be sent unencrypted."""
    key = "inference.url"
    yield from _headers(inference)
    yield from _http(inference)
    yield from _openai(inference)
    if inference.ready_path and not inference.ready_timeout_seconds:
        timeout = "inference.ready_timeout_seconds"
        yield broken("inference.ready_path", f"of no use without {timeout}", f"set {timeout}, or remove this", timeout)
    if inference.labels and inference.labels_file:
        yield broken("inference.labels_file", "labels and labels_file are both set", "choose one", "inference.labels")
    yield from _way_to_the_service(inference)
    if inference.url == EMBEDDED:
        yield from no_tls_files(inference, "inference", "the embedded service speaks no TLS", "remove it", key)
        if inference.token_file:
            yield broken("inference.token_file", "the embedded service wants no token", "remove it", key)
        if inference.protocol not in {"predict", "oip"}:
            problem = "the embedded service speaks predict and oip alone"
            yield broken("inference.protocol", problem, f"write one of them, or an address in {key}", key)
        return
    if path := socket_path(inference.url):
        yield from no_tls_files(inference, "inference", "no TLS is spoken at a Unix socket", "remove it", key)
        if not path.startswith("/") or len(path.encode()) > MAX_SOCKET_PATH_BYTES or "\0" in path:
            problem = f"not an absolute path of at most {MAX_SOCKET_PATH_BYTES} bytes"
            yield broken(key, problem, "write unix: and the path of a socket")
        return
    yield from _address(inference, key)


def _address(inference: InferenceSection, key: str) -> Iterator[Problem]:
    parts = split_url(inference.url, {"http", "https"})
    if parts is None or not parts.hostname:
        found = shown(("inference", "url"), inference.url)
        allowed = 'http://host:port, https://host:port, unix:/path, "embedded"'
        yield broken(key, "not a usable address", found=found, allowed=allowed)
        return
    if "@" in parts.netloc:
        yield broken(key, "holds a user name or a secret", "remove it; a token is read from inference.token_file")
        return
    if parts.query or parts.fragment:
        yield broken(key, "has a query or a fragment", "write the address alone, and parameters in inference.query")
    path_key = f"inference.{inference.protocol}.path"
    path = getattr(getattr(inference, inference.protocol), "path", "")
    if path.strip("/") and inference.url.rstrip("/").endswith(path):
        yield broken(key, f"ends with {path_key}", "write the address alone", path_key)
    yield from _version(inference, parts.path.rstrip("/"), key)
    if parts.scheme == "https":
        yield from lonely_key_file(inference, "inference")
        return
    why, remedy = f"{key} begins with http://", "write https:// there, or remove this"
    yield from no_tls_files(inference, "inference", why, remedy, key)
    files = (*SECRET_FILES, "http.field_files") if inference.protocol == "http" else SECRET_FILES
    secret = next((f"inference.{name}" for name in files if attrgetter(name)(inference)), "")
    if secret and not inference.allow_plaintext_token:
        what = "the token" if secret.endswith("token_file") else f"the secrets of {secret}"
        yield broken(
            key,
            f"{what} would be sent over a connection that is not encrypted",
            "write https://, or set inference.allow_plaintext_token = true",
            secret,
            "inference.allow_plaintext_token",
        )


def _version(inference: InferenceSection, path: str, key: str) -> Iterator[Problem]:
    """Documentation of services gives addresses that end with the version with which the protocol's path begins."""
    if inference.protocol == "oip" and path.endswith("/v2"):
        problem = "ends with /v2, with which every path of the protocol oip begins"
        yield broken(key, problem, "write the address alone", "inference.protocol")
    path_key = "inference.openai.path"
    if inference.protocol == "openai" and path.endswith("/v1") and inference.openai.path.startswith("/v1/"):
        yield broken(key, f"ends with /v1, with which {path_key} begins", "write the address alone", path_key)


def _way_to_the_service(inference: InferenceSection) -> Iterator[Problem]:
    """A proxy forwards to a host, by HTTP/1.1; neither it nor HTTP/2 is used within this machine."""
    proxy, http2 = "inference.proxy", "inference.http2"
    local = inference.url == EMBEDDED or socket_path(inference.url)
    for key in (proxy, http2):
        if local and getattr(inference, key.removeprefix("inference.")):
            where = "the embedded one" if inference.url == EMBEDDED else "at a Unix socket"
            yield broken(key, f"of no use, for the service is {where}", "remove it", "inference.url")
    if inference.proxy:
        parts = split_url(inference.proxy, {"http"})
        if parts is None or not parts.hostname or "@" in parts.netloc or parts.path.strip("/") or parts.query:
            found = shown(("inference", "proxy"), inference.proxy)
            yield broken(proxy, "not a usable address", found=found, allowed="http://host:port")
        if inference.http2:
            yield broken(http2, "inference.proxy is set", "choose one", proxy)
    if inference.http2 and find_spec("h2") is None:
        yield broken(http2, "the package h2 is not installed", "install trio_runner[http2], or remove it")


def _http(inference: InferenceSection) -> Iterator[Problem]:
    if inference.protocol == "http":
        # No other protocol needs jmespath, whose import takes 15 ms.
        from trio_runner.config.http_rules import http_rules  # noqa: PLC0415 - see above

        yield from http_rules(inference.http)


def _headers(inference: InferenceSection) -> Iterator[Problem]:
    """No secret stands in the config, no header is set twice, and none is set that the client sets."""
    for table, files, is_secret in (("headers", "header_files", _SECRET_HEADER), ("query", "query_files", SECRET_NAME)):
        for name in getattr(inference, table):
            key = f"inference.{table}"
            if is_secret.search(name) or SECRET_NAME.search(name.replace("-", "_")):
                remedy = f"write the value into a file and name that in inference.{files}"
                yield broken(key, f"{name} looks like a secret", remedy, f"inference.{files}")
            if name in getattr(inference, files):
                yield broken(key, f"{name} is set in inference.{files} too", "choose one", f"inference.{files}")
    names = [name.lower() for name in (*inference.headers, *inference.header_files)]
    for name in sorted(_OURS.intersection(names)):
        yield broken("inference.headers", f"{name} is set by the client", "remove it", "inference.header_files")
    if inference.token_file and "authorization" in names:
        yield broken("inference.token_file", "Authorization is set twice", "choose one", "inference.header_files")


def _openai(inference: InferenceSection) -> Iterator[Problem]:
    """One question, a model's limits that can be kept, and no further key that is a secret or has a key of its own."""
    keys, table = inference.openai, "inference.openai"
    if inference.protocol == "openai" and PLACEHOLDER.search(keys.model):
        # `probe --detect` prints one where the service lists no model.
        yield broken(f"{table}.model", f"{keys.model} is a placeholder", "write the name of the model")
    if keys.prompt and keys.prompt_file:
        yield broken(f"{table}.prompt_file", "prompt and prompt_file are both set", "choose one", f"{table}.prompt")
    if keys.min_pixels > keys.max_pixels:
        yield broken(f"{table}.min_pixels", "larger than max_pixels", "lower it", f"{table}.max_pixels")
    try:
        json.dumps(keys.extra, allow_nan=False)
    except (TypeError, ValueError):
        yield broken(f"{table}.extra", "holds a date, nan or inf, which JSON has not", "write text or a number")
    for name in keys.extra:
        if name in _OF_A_CHAT:
            yield broken(f"{table}.extra", f"{name} is set by the protocol", "remove it")
        if SECRET_NAME.search(name):
            remedy = "write the value into a file and name that in inference.token_file or inference.header_files"
            yield broken(f"{table}.extra", f"{name} looks like a secret", remedy)

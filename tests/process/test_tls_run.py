"""Whole runs over TLS, and the end of a run whose peer it does not trust."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.support.certificates import Authority
from tests.support.database_server import DatabaseServer, authority_of
from tests.support.fake_inference import Fake, open_fake
from tests.support.harness import Ledger, Servers
from tests.support.scene import Scene
from tests.support.tls_database import pytestmark, tls_server, unknown_authority  # noqa: F401 - pytest looks for them


@pytest.fixture
def scene(scene: Scene, servers: Servers, server: DatabaseServer) -> Iterator[Scene]:
    """As everywhere, but its ledger is in the database with TLS."""
    mine = server.servers(servers)
    with Ledger(mine) as ledger:
        yield dataclasses.replace(scene, servers=mine, ledger=ledger)


class Recording(trio.abc.Stream):
    """A stream that keeps what came in by it."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self._stream = stream
        self.bytes = bytearray()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        chunk = await self._stream.receive_some(max_bytes)
        self.bytes += chunk
        return chunk

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def authorised_fake(authority: Authority) -> AsyncIterator[tuple[Fake, list[Recording]]]:
    """The fake service over TLS, which wants a client's certificate; with the bytes of every client."""
    tls = authority.issue("localhost").server_context(client_ca=authority.ca_file)
    clients: list[Recording] = []

    async def handle(stream: trio.SocketStream) -> None:
        secured = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
        clients.append(Recording(secured))
        await fake.serve(clients[-1])

    async with open_fake() as fake, trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        fake.url = f"https://localhost:{listeners[0].socket.getsockname()[1]}"
        yield fake, clients
        nursery.cancel_scope.cancel()


async def test_a_whole_run_over_tls_with_a_token(
    scene: Scene, server: DatabaseServer, clip: Path, tmp_path: Path
) -> None:
    (tmp_path / "token").write_text("c4n4ry.token-~+/=\n")
    authority = authority_of(server)
    mine = authority.issue("runner")
    async with authorised_fake(authority) as (fake, clients):
        config = scene.write_config(
            video={"path": str(clip)},
            database=server.section(),
            inference={
                "url": fake.url,
                "ca_file": str(authority.ca_file),
                "certificate_file": str(mine.chain_file),
                "key_file": str(mine.key_file),
                "token_file": "token",
            },
            log={"level": "debug"},
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 0, done.err
    await scene.check_rows(60)
    await scene.ledger.check_invariants(scene.scenario_id)
    requests = b"".join(client.bytes for client in clients).lower()
    assert requests.count(b"post /predict http/1.1\r\n") == 60
    assert requests.count(b"\r\nauthorization: bearer c4n4ry.token-~+/=\r\n") == 60
    assert "c4n4ry" not in done.out + done.err


async def test_a_run_dies_of_a_database_that_it_does_not_trust(
    scene: Scene, server: DatabaseServer, stranger: Authority, clip: Path
) -> None:
    async with open_fake() as fake:
        config = scene.write_config(
            video={"path": str(clip)},
            database=server.section(ca_file=str(stranger.ca_file)),
            inference={"url": fake.url},
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 75, done.err
    assert fake.numbers == []
    event = await scene.the_event()
    assert (event.body["epoch"], event.body["error"]["code"]) == (0, "store_tls")
    assert "database.ca_file" in event.body["error"]["message"]
    scene.check_secrets(done.out, done.err, event.raw.decode())


async def test_a_run_dies_of_a_service_that_it_does_not_trust(
    scene: Scene, server: DatabaseServer, stranger: Authority, clip: Path
) -> None:
    async with open_fake(tls=stranger.issue("127.0.0.1").server_context()) as fake:
        config = scene.write_config(
            video={"path": str(clip)},
            database=server.section(),
            inference={"url": fake.url, "ca_file": str(authority_of(server).ca_file)},
        )
        done = await scene.run_to_the_end(config)
    assert done.code == 75, done.err
    assert fake.numbers == []
    body = await scene.check_death(done, "inference_tls", named=fake.url)
    assert "inference.ca_file" in body["error"]["message"]

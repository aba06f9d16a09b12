"""TLS to a real PostgreSQL: what each `sslmode` accepts, which code each refusal has, what has no influence."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.database.test_postgres import backend, proxy_to, refusal
from tests.support.certificates import Authority
from tests.support.database_server import CERTIFIED, OWNER_PASSWORD, DatabaseServer, authority_of
from tests.support.harness import PATIENCE_SECONDS
from tests.support.proxy import Breakdown
from tests.support.tls_database import pytestmark, tls_server, unknown_authority  # noqa: F401 - pytest looks for them
from trio_runner.base import aio
from trio_runner.config.sections import DatabaseSection
from trio_runner.database.store import open_store
from trio_runner.errors import ErrorCode


def section_of(keys: dict[str, Any]) -> DatabaseSection:
    return DatabaseSection(**keys)


async def is_encrypted(section: dict[str, Any]) -> bool:
    """Connect by these keys and ask the server."""
    async with aio.open_loop(), open_store(section_of(section), application_name="x") as store:
        (row,) = await store.fetch_all("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    return bool(row["ssl"])


# what is accepted


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", "require"])
async def test_a_right_certificate_is_accepted(server: DatabaseServer, sslmode: str) -> None:
    assert await is_encrypted(server.section(sslmode=sslmode))


async def test_verify_ca_accepts_a_wrong_name(server: DatabaseServer) -> None:
    assert await is_encrypted(server.section(host="127.0.0.1", sslmode="verify-ca"))


async def test_require_accepts_any_server(server: DatabaseServer, stranger: Authority) -> None:
    assert await is_encrypted(server.section(host="127.0.0.1", sslmode="require", ca_file=str(stranger.ca_file)))
    assert await is_encrypted(server.section(host="127.0.0.1", sslmode="require", ca_file=""))


async def test_a_certificate_of_ones_own_takes_the_place_of_a_password(server: DatabaseServer) -> None:
    mine = authority_of(server).issue("runner")
    apart = {"certificate_file": str(mine.chain_file), "key_file": str(mine.key_file)}
    for files in (apart, {"certificate_file": str(mine.both_file)}):
        assert await is_encrypted(server.section(database=CERTIFIED, password_file="", **files))


# what is refused


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca"])
@pytest.mark.parametrize("trusted", ["stranger", "system"])
async def test_an_unknown_authority_is_refused(
    server: DatabaseServer, stranger: Authority, sslmode: str, trusted: str
) -> None:
    ca_file = str(stranger.ca_file) if trusted == "stranger" else ""
    error = await refusal(section_of(server.section(sslmode=sslmode, ca_file=ca_file)))
    assert error.code is ErrorCode.STORE_TLS
    assert f"localhost:{server.port}" in error.message
    assert "database.ca_file" in error.message


async def test_a_wrong_name_is_refused(server: DatabaseServer) -> None:
    error = await refusal(section_of(server.section(host="127.0.0.1")))
    assert error.code is ErrorCode.STORE_TLS
    assert "not valid for '127.0.0.1'" in error.message
    assert "database.url" in error.message


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca"])
async def test_an_expired_certificate_is_refused(server: DatabaseServer, sslmode: str) -> None:
    server.present(authority_of(server).issue("localhost", expired=True))
    try:
        error = await refusal(section_of(server.section(sslmode=sslmode)))
    finally:
        server.present(authority_of(server).issue("localhost"))
    assert error.code is ErrorCode.STORE_TLS
    assert "expired" in error.message


async def test_a_missing_certificate_of_ones_own_is_refused(server: DatabaseServer) -> None:
    error = await refusal(section_of(server.section(database=CERTIFIED)))
    assert error.code is ErrorCode.STORE_TLS
    assert "valid client certificate" in error.message
    assert "database.certificate_file" in error.message


async def test_a_certificate_of_ones_own_from_an_unknown_authority_is_refused(
    server: DatabaseServer, stranger: Authority
) -> None:
    foreign = stranger.issue("runner")
    section = server.section(database=CERTIFIED, certificate_file=str(foreign.both_file))
    error = await refusal(section_of(section))
    assert error.code is ErrorCode.STORE_TLS
    # The server says "unknown ca", which does not always arrive.
    assert "database.certificate_file" in error.message


async def test_a_server_that_wants_tls_refuses_to_do_without(server: DatabaseServer) -> None:
    error = await refusal(section_of(server.section(sslmode="disable", allow_plaintext_password=True)))
    assert error.code is ErrorCode.STORE_AUTH
    assert "no encryption" in error.message
    assert "database.sslmode" in error.message


async def test_a_wrong_password_is_no_matter_of_tls(server: DatabaseServer, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("c4n4ryc4n4ry")
    error = await refusal(section_of(server.section(password_file=str(tmp_path / "password"))))
    assert error.code is ErrorCode.STORE_AUTH
    assert "database.password_file" in error.message
    assert "c4n4ry" not in repr((error, error.__cause__, error.__context__))


# hostile peers


@asynccontextmanager
async def replying(reply: bytes, *, closes: bool = False) -> AsyncIterator[tuple[int, bytearray]]:
    """A port where the request for TLS is answered with `reply`, and the bytes that arrive there after it."""
    received = bytearray()

    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            assert len(await stream.receive_some(8)) == 8
            await stream.send_all(reply)
            if closes:
                return
            try:
                async for chunk in stream:
                    received.extend(chunk)
            except trio.BrokenResourceError:
                return

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1], received
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("sslmode", ["verify-full", "verify-ca", "require"])
@pytest.mark.parametrize("reply", [b"N", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_a_server_without_tls_is_sent_not_a_byte_unencrypted(sslmode: str, reply: bytes, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("c4n4ry")
    async with replying(reply) as (port, received):
        error = await refusal(
            section_of(
                {
                    "url": f"postgresql://me@127.0.0.1:{port}/x",
                    "sslmode": sslmode,
                    "password_file": str(tmp_path / "password"),
                }
            )
        )
    assert error.code is ErrorCode.STORE_TLS
    assert "speaks no TLS" in error.message
    assert "database.sslmode" in error.message
    assert received == b""


@pytest.mark.parametrize(
    ("reply", "closes", "code"),
    [
        (b"S", False, ErrorCode.STORE_UNREACHABLE),
        (b"S", True, ErrorCode.STORE_UNREACHABLE),
        (b"", False, ErrorCode.STORE_UNREACHABLE),
        (b"", True, ErrorCode.STORE_UNREACHABLE),
        (b"EFATAL", False, ErrorCode.STORE_UNREACHABLE),
    ],
    ids=["hangs in the handshake", "hangs up in it", "says nothing", "hangs up at once", "an error before TLS"],
)
async def test_a_server_that_fails_in_the_handshake_is_unreachable_in_time(
    reply: bytes, code: ErrorCode, *, closes: bool
) -> None:
    async with replying(reply, closes=closes) as (port, _):
        url = f"postgresql://me@127.0.0.1:{port}/x"
        error = await refusal(DatabaseSection(url=url, sslmode="require", connect_timeout_seconds=0.3))
    assert error.code is code
    assert f"127.0.0.1:{port}" in error.message


async def test_leaving_a_frozen_server_is_bounded_through_tls_too(server: DatabaseServer) -> None:
    section = section_of(server.section(sslmode="verify-ca"))
    with trio.fail_after(PATIENCE_SECONDS):
        async with (
            aio.open_loop(),
            proxy_to(section) as (proxy, through_proxy),
            open_store(through_proxy, application_name="x") as store,
        ):
            await backend(store)
            proxy.break_down(Breakdown.FREEZE)


# what has no influence on it


async def test_no_variable_and_no_file_of_the_home_directory_lets_a_password_in(
    server: DatabaseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", OWNER_PASSWORD)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in (".pgpass", "passfile"):
        (tmp_path / name).write_text(f"*:*:*:*:{OWNER_PASSWORD}\n")
        (tmp_path / name).chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(tmp_path / "passfile"))
    for variable in ("PGPASSWORD", "PGPASSFILE", "NONE"):
        error = await refusal(section_of(server.section(password_file="")))
        assert error.code is ErrorCode.STORE_AUTH
        monkeypatch.delenv(variable, raising=False)


async def test_no_variable_and_no_file_of_the_home_directory_lets_an_authority_or_a_certificate_in(
    server: DatabaseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = authority_of(server)
    mine = authority.issue("runner")
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".postgresql").mkdir()
    for name, source in (("root.crt", authority.ca_file), ("postgresql.crt", mine.both_file)):
        (tmp_path / ".postgresql" / name).write_text(source.read_text())
    for name, value in (("ROOTCERT", authority.ca_file), ("CERT", mine.chain_file), ("KEY", mine.key_file)):
        monkeypatch.setenv(f"PGSSL{name}", str(value))
    error = await refusal(section_of(server.section(ca_file="")))
    assert error.code is ErrorCode.STORE_TLS
    error = await refusal(section_of(server.section(database=CERTIFIED)))
    assert error.code is ErrorCode.STORE_TLS
    assert "valid client certificate" in error.message


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require", "nonsense"])
async def test_no_variable_changes_the_mode(
    server: DatabaseServer, stranger: Authority, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("PGSSLMODE", mode)
    assert await is_encrypted(server.section())
    error = await refusal(section_of(server.section(ca_file=str(stranger.ca_file))))
    assert error.code is ErrorCode.STORE_TLS
    async with replying(b"N") as (port, received):
        error = await refusal(DatabaseSection(url=f"postgresql://me@127.0.0.1:{port}/x", sslmode="require"))
    assert error.code is ErrorCode.STORE_TLS
    assert received == b""


async def test_no_variable_leads_elsewhere(
    server: DatabaseServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "services").write_text("[mine]\nhost=nowhere.invalid\nuser=nobody\ndbname=none\npassword=wrong\n")
    for name, value in {
        "PGHOST": "nowhere.invalid",
        "PGPORT": "1",
        "PGUSER": "nobody",
        "PGDATABASE": "none",
        "PGSERVICE": "mine",
        "PGSERVICEFILE": str(tmp_path / "services"),
        "PGSSLNEGOTIATION": "direct",
        "PGTARGETSESSIONATTRS": "standby",
        "PGGSSLIB": "nonsense",
        "PGSSLMINPROTOCOLVERSION": "nonsense",
    }.items():
        monkeypatch.setenv(name, value)
    assert await is_encrypted(server.section())


async def test_a_socket_needs_no_tls_whatever_the_mode(server: DatabaseServer, tmp_path: Path) -> None:
    """The server's socket is the superuser's; what is behind it is the same."""
    section = {"url": f"postgresql://postgres@/postgres?host={server.socket_directory}&port={server.port}"}
    for sslmode in ("verify-full", "disable"):
        # The certificate files are not even read.
        nowhere = str(tmp_path / "no such file")
        assert not await is_encrypted(section | {"sslmode": sslmode, "ca_file": nowhere})


# the process

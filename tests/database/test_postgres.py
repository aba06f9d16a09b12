"""The connection to PostgreSQL, on a real one: addresses, refusals, and what becomes of who loses it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import msgspec
import pytest
import trio

from tests.support.harness import PATIENCE_SECONDS, Ledger, Servers, free_port, full_backlog, until
from tests.support.makers import attempt, make_result
from tests.support.proxy import Breakdown, Proxy, Way, open_proxy
from trio_runner.base import aio
from trio_runner.config.address import DatabaseAddress
from trio_runner.config.sections import DatabaseSection
from trio_runner.database.connection import address_of
from trio_runner.database.store import Store, open_store
from trio_runner.errors import ErrorCode, RunnerError


@pytest.fixture
def config(servers: Servers) -> DatabaseSection:
    return DatabaseSection(**servers.database)


# connecting


async def refusal(config: DatabaseSection) -> RunnerError:
    async with aio.open_loop():
        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RunnerError) as caught:
            async with open_store(config, application_name="x"):
                pytest.fail("it opened")
    return caught.value


def at_port(config: DatabaseSection, port: int) -> DatabaseSection:
    parts = urlsplit(config.url)
    return msgspec.structs.replace(config, url=f"{parts.scheme}://{parts.username}@127.0.0.1:{port}{parts.path}")


@pytest.mark.parametrize(
    ("url", "hosts", "port", "user", "database"),
    [
        ("postgresql://me@db.example:5433/x", ("db.example",), 5433, "me", "x"),
        ("postgres://me@db.example", ("db.example",), 5432, "me", "me"),
        ("postgresql://m%C3%A9%40x@[::1]:5433/a%2Fb", ("::1",), 5433, "mé@x", "a/b"),
        ("postgresql://me@%2FRun%2Fpg:5433/x", ("/Run/pg",), 5433, "me", "x"),
        ("postgresql:///x?host=/run/pg&port=5433&user=me", ("/run/pg",), 5433, "me", "x"),
        ("postgresql://me@?dbname=x", ("/run/postgresql", "/var/run/postgresql"), 5432, "me", "x"),
    ],
)
def test_an_address_is_taken_apart(
    monkeypatch: pytest.MonkeyPatch, url: str, hosts: tuple[str, ...], port: int, user: str, database: str
) -> None:
    for name in ("HOST", "PORT", "USER", "DATABASE"):
        monkeypatch.setenv(f"PG{name}", "7")
    address = address_of(url)
    assert address == DatabaseAddress(hosts=hosts, port=port, user=user, database=database)
    assert address.is_socket is hosts[0].startswith("/")


@pytest.mark.parametrize(
    "parameter", ["sslmode=disable", "passfile=x", "service=x", "sslrootcert=x", "options=x", "port=x", "target=x"]
)
def test_a_parameter_that_would_count_for_nothing_is_refused(parameter: str) -> None:
    with pytest.raises(RunnerError, match=r"database\.url") as caught:
        address_of(
            f"postgresql://me@db.example/x?{parameter}" if "port" not in parameter else f"postgresql://?{parameter}"
        )
    assert caught.value.code is ErrorCode.STORE_UNREACHABLE


async def test_a_closed_port_is_unreachable(config: DatabaseSection) -> None:
    port = free_port()
    error = await refusal(at_port(config, port))
    assert error.code is ErrorCode.STORE_UNREACHABLE
    assert f"127.0.0.1:{port}" in error.message


async def test_a_wrong_password_is_named_and_not_repeated(config: DatabaseSection, tmp_path: Path) -> None:
    if not config.password_file:
        pytest.skip("the database given asks for no password")
    (tmp_path / "password").write_text("c4n4ryc4n4ry\n")
    error = await refusal(msgspec.structs.replace(config, password_file=str(tmp_path / "password")))
    assert error.code is ErrorCode.STORE_AUTH
    assert "password authentication failed" in error.message
    assert "database.password_file" in error.message
    assert "c4n4ry" not in repr((error, error.__cause__, error.__context__))


async def test_a_database_that_is_not_there_is_named(config: DatabaseSection) -> None:
    error = await refusal(msgspec.structs.replace(config, url=config.url + "_no_such_one"))
    assert error.code is ErrorCode.STORE_UNREACHABLE
    assert "_no_such_one" in error.message


@pytest.mark.parametrize("content", [None, b"\xff\xfe"])
async def test_a_password_file_that_cannot_be_read_is_named(
    config: DatabaseSection, tmp_path: Path, content: bytes | None
) -> None:
    path = tmp_path / "password"
    if content is not None:
        path.write_bytes(content)
    error = await refusal(msgspec.structs.replace(config, password_file=str(path)))
    assert error.code is ErrorCode.CREDENTIAL_UNREADABLE
    assert str(path) in error.message


async def test_a_peer_that_accepts_no_connection_is_unreachable_in_time(config: DatabaseSection) -> None:
    async with full_backlog() as address:
        hole = at_port(config, int(address.rpartition(":")[2]))
        error = await refusal(msgspec.structs.replace(hole, connect_timeout_seconds=0.3))
    assert error.code is ErrorCode.STORE_UNREACHABLE
    assert "0.3 s" in error.message


@pytest.mark.parametrize("reply", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"S", b"NE" + bytes(100)])
async def test_a_peer_that_is_no_postgresql_is_unreachable_in_time(config: DatabaseSection, reply: bytes) -> None:
    async def handle(stream: trio.SocketStream) -> None:
        async with stream:
            if reply:
                await stream.send_all(reply)
            await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(partial(trio.serve_tcp, handle, 0, host="127.0.0.1"))
        peer = at_port(config, listeners[0].socket.getsockname()[1])
        error = await refusal(msgspec.structs.replace(peer, connect_timeout_seconds=0.3))
        nursery.cancel_scope.cancel()
    assert error.code is ErrorCode.STORE_UNREACHABLE


# losing the connection


async def backend(store: Store) -> int:
    (row,) = await store.fetch_all("SELECT pg_backend_pid() AS pid")
    pid: int = row["pid"]
    return pid


async def test_a_backend_that_was_killed_is_a_lost_connection(
    config: DatabaseSection, ledger: Ledger, scenario_id: int
) -> None:
    async def lose() -> None:
        async with open_store(config, application_name="x") as store:
            claim = await store.claim(attempt(scenario_id))
            await ledger.query("SELECT pg_terminate_backend($1, 5000)", await backend(store))
            await store.heartbeat(claim)

    async with aio.open_loop():
        with pytest.raises(RunnerError) as caught:
            await lose()
    assert caught.value.code is ErrorCode.STORE_LOST


async def test_a_backend_that_is_killed_in_the_middle_of_a_verb_is_a_lost_connection(
    config: DatabaseSection, ledger: Ledger
) -> None:
    caught: list[RunnerError] = []

    async def sleep(store: Store) -> None:
        try:
            await store.fetch_all("SELECT pg_sleep(60)")
        except RunnerError as error:
            caught.append(error)

    async def is_asleep() -> bool:
        rows = await ledger.query("SELECT wait_event FROM pg_stat_activity WHERE pid = $1", pid)
        return bool(rows[0]["wait_event"] == "PgSleep")

    async with aio.open_loop(), open_store(config, application_name="x") as store:
        pid = await backend(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(sleep, store)
            await until(is_asleep, described="the backend sleeps")
            await ledger.query("SELECT pg_terminate_backend($1, 5000)", pid)
    assert [error.code for error in caught] == [ErrorCode.STORE_LOST]


async def test_leaving_after_the_backend_was_killed_is_no_error(config: DatabaseSection, ledger: Ledger) -> None:
    async with aio.open_loop(), open_store(config, application_name="x") as store:
        await ledger.query("SELECT pg_terminate_backend($1, 5000)", await backend(store))


async def test_a_statement_that_takes_too_long_is_a_timeout(config: DatabaseSection) -> None:
    hasty = msgspec.structs.replace(config, command_timeout_seconds=0.3)
    async with aio.open_loop():
        with pytest.raises(RunnerError) as caught:
            async with open_store(hasty, application_name="x") as store:
                await store.fetch_all("SELECT pg_sleep(60)")
    assert caught.value.code is ErrorCode.STORE_TIMEOUT


async def test_a_cancelled_verb_leaves_in_time_and_nothing_half_done(
    config: DatabaseSection, ledger: Ledger, scenario_id: int
) -> None:
    with trio.fail_after(PATIENCE_SECONDS):
        async with aio.open_loop(), open_store(config, application_name="x") as store:
            claim = await store.claim(attempt(scenario_id))
            with trio.move_on_after(0.1) as scope:
                await store.fetch_all("SELECT pg_sleep(60)")
            assert scope.cancelled_caught
            with trio.CancelScope() as cancelled:
                cancelled.cancel()
                await store.store(claim, 0, [make_result(0)])
    assert await ledger.predictions(scenario_id) == []


@asynccontextmanager
async def proxy_to(config: DatabaseSection) -> AsyncIterator[tuple[Proxy, DatabaseSection]]:
    parts = urlsplit(config.url)
    async with open_proxy(parts.hostname or "127.0.0.1", parts.port or 5432) as proxy:
        yield proxy, at_port(config, proxy.port)


OUT_OF_REACH = {ErrorCode.STORE_UNREACHABLE, ErrorCode.STORE_LOST, ErrorCode.STORE_TIMEOUT}


@pytest.mark.parametrize("after", [0, 1, 600])
@pytest.mark.parametrize("how", Breakdown)
async def test_a_connection_that_breaks_down_while_it_opens(
    config: DatabaseSection, how: Breakdown, after: int
) -> None:
    """Before the first byte, or when so many bytes have come from the server."""

    async def open_and_ask(section: DatabaseSection) -> None:
        async with open_store(section, application_name="x") as store:
            await store.fetch_all("SELECT 1")

    with trio.fail_after(PATIENCE_SECONDS):
        async with aio.open_loop(), proxy_to(config) as (proxy, through_proxy):
            hasty = msgspec.structs.replace(through_proxy, connect_timeout_seconds=0.5, command_timeout_seconds=0.5)
            if after:
                proxy.arm(partial(proxy.break_down, how), Way.TO_CLIENT, after=after)
            else:
                proxy.break_down(how)
            with pytest.raises(RunnerError) as caught:
                await open_and_ask(hasty)
    assert caught.value.code in OUT_OF_REACH


@pytest.mark.parametrize("lasting", [True, False])
@pytest.mark.parametrize("how", Breakdown)
async def test_a_connection_that_breaks_down_at_work(
    config: DatabaseSection, scenario_id: int, how: Breakdown, *, lasting: bool
) -> None:
    async def store_a_row(proxy: Proxy, section: DatabaseSection) -> None:
        async with open_store(section, application_name="x") as store:
            claim = await store.claim(attempt(scenario_id))
            proxy.break_down(how, lasting=lasting)
            await store.store(claim, 0, [make_result(0)])

    with trio.fail_after(PATIENCE_SECONDS):
        async with aio.open_loop(), proxy_to(config) as (proxy, through_proxy):
            hasty = msgspec.structs.replace(through_proxy, command_timeout_seconds=0.5)
            with pytest.raises(RunnerError) as caught:
                await store_a_row(proxy, hasty)
    assert caught.value.code in OUT_OF_REACH


async def test_a_frozen_server_is_a_timeout_and_closing_is_bounded(config: DatabaseSection, scenario_id: int) -> None:
    async def freeze(proxy: Proxy, section: DatabaseSection) -> None:
        async with open_store(section, application_name="x") as store:
            claim = await store.claim(attempt(scenario_id))
            proxy.break_down(Breakdown.FREEZE)
            await store.heartbeat(claim)

    with trio.fail_after(PATIENCE_SECONDS):
        async with aio.open_loop(), proxy_to(config) as (proxy, through_proxy):
            hasty = msgspec.structs.replace(through_proxy, command_timeout_seconds=0.5)
            with pytest.raises(RunnerError) as caught:
                await freeze(proxy, hasty)
    assert caught.value.code is ErrorCode.STORE_TIMEOUT


async def test_leaving_a_frozen_server_is_bounded(config: DatabaseSection) -> None:
    async def freeze(proxy: Proxy, section: DatabaseSection) -> None:
        async with open_store(section, application_name="x") as store:
            await backend(store)
            proxy.break_down(Breakdown.FREEZE)

    with trio.fail_after(PATIENCE_SECONDS):
        async with aio.open_loop(), proxy_to(config) as (proxy, through_proxy):
            await freeze(proxy, through_proxy)


async def test_an_error_in_the_block_comes_out_as_itself(config: DatabaseSection) -> None:
    class MineError(Exception):
        pass

    with pytest.RaisesGroup(MineError, flatten_subgroups=True, allow_unwrapped=True):
        async with aio.open_loop(), open_store(config, application_name="x"):
            raise MineError

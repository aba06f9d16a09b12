"""Fixtures of the end-to-end tests: real servers once a session; id, topic, config and command line for each test.

The servers are the embedded ones. To run the tests against others, set

- TRIO_RUNNER_TEST_DATABASE to `postgresql://user@host:port/database`, and TRIO_RUNNER_TEST_PASSWORD_FILE to a file that
  holds the password; the user must be allowed to create a schema and to end its own connections;
- TRIO_RUNNER_TEST_KAFKA to `host:port[,host:port]`, brokers that create a topic when it is first used;
  TRIO_RUNNER_TEST_KAFKA_DIRECTORY to where `apache_kafka.sh` started one, for the tests of TLS and SASL;
- TRIO_RUNNER_TEST_KUBERNETES to a kubeconfig, and TRIO_RUNNER_TEST_KUBERNETES_NODE where that cluster has a node: see
  `kubernetes.sh`.

Scenario ids and topics are new in every session, so nothing has to be cleaned up between two of them.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import trio

from tests.support import clips
from tests.support.database_server import DatabaseServer, programs_of_the_wheel, serving_database
from tests.support.forking import ForkServer, open_fork_server
from tests.support.harness import (
    PATIENCE_SECONDS,
    Cli,
    Ledger,
    Servers,
    WriteConfig,
    as_toml,
    check_what_is_stored,
    command,
    environment,
    from_toml,
)
from tests.support.scene import Scene
from trio_runner.base import aio, leash
from trio_runner.config.sections import DatabaseSection
from trio_runner.database.store import open_store

# No example is too slow on a busy machine.
hypothesis.settings.register_profile("trio_runner", deadline=None)
hypothesis.settings.register_profile("few", deadline=None, max_examples=20)
hypothesis.settings.load_profile("trio_runner")

# Microseconds since 1970: no two sessions on one database count from the same number.
_scenario_ids = itertools.count(time.time_ns() // 1000)


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call() -> Generator[None, object, object]:
    """A skip keeps its reason: pytest-trio raises that of an async test or fixture anew, without its reason."""
    try:
        return (yield)
    except pytest.skip.Exception as skipped:
        group: BaseException | None = skipped.__context__
        while isinstance(group, BaseExceptionGroup) and len(group.exceptions) == 1:
            (group,) = group.exceptions
        if isinstance(group, pytest.skip.Exception):
            raise group from None
        raise


@pytest.fixture(scope="session")
def canaries() -> set[str]:
    """Every secret of the session that a process is given; none may be in what any of them prints, logs or stores."""
    return set()


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory, canaries: set[str]) -> Iterator[Servers]:
    """The session's servers, hosted by a `trio-runner embedded` process that must end well.

    Their database has the program's schema, so no test depends on another one to have made it first. A test that
    needs a database without tables makes one with `harness.new_database`.
    """
    directory = tmp_path_factory.mktemp("servers")
    given: dict[str, dict[str, Any]] = {"runner": {"data_dir": "data"}}
    if url := os.environ.get("TRIO_RUNNER_TEST_DATABASE"):
        given["database"] = {
            "url": url,
            "password_file": os.environ.get("TRIO_RUNNER_TEST_PASSWORD_FILE", ""),
            "sslmode": "disable",
            "allow_plaintext_password": True,
        }
    if brokers := os.environ.get("TRIO_RUNNER_TEST_KAFKA"):
        given["kafka"] = {"brokers": brokers}
    config = directory / "servers.toml"
    config.write_text(as_toml(given))
    with (directory / "out").open("wb") as out, (directory / "err").open("wb") as err:
        # In a session of its own: Ctrl-C on the tests must not take the servers away from under them. The leash stops
        # them where the tests are killed.
        leashed = [
            sys.executable,
            "-I",
            "-S",
            leash.__file__,
            "--signal",
            "INT",
            "--",
            *command("embedded", str(config)),
        ]
        process = subprocess.Popen(leashed, stdout=out, stderr=err, env=environment(), start_new_session=True)
    try:
        _wait_for_addresses(process, directory)
        live = given | from_toml((directory / "out").read_text())
        password_file = live["database"].get("password_file")
        servers = Servers(
            database_url=live["database"]["url"],
            password_file=Path(password_file) if password_file else None,
            brokers=live["kafka"]["brokers"],
            inference_url=live["inference"]["url"],
            inference_token_file=Path(live["inference"]["token_file"]),
        )
        canaries |= {servers.password} - {""}
        trio.run(_create_schema, servers)
        yield servers
        trio.run(check_what_is_stored, servers, canaries)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 0, (directory / "err").read_text()
    finally:
        process.kill()
        process.wait()


async def _create_schema(servers: Servers) -> None:
    async with aio.open_loop(), open_store(DatabaseSection(**servers.database), application_name="the tests") as store:
        await store.create_schema()


def _wait_for_addresses(process: subprocess.Popen[bytes], directory: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "# until Ctrl-C" not in (directory / "out").read_text():
        output = (directory / "out").read_text() + (directory / "err").read_text()
        assert process.poll() is None, f"the servers did not start: {output}"
        assert time.monotonic() < deadline, f"the servers did not start in time: {output}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def database_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
    """A PostgreSQL server that has a superuser, which the session's other one has not."""
    with serving_database(tmp_path_factory.mktemp("database"), programs_of_the_wheel()) as started:
        yield started


@pytest.fixture(scope="module")
def server(database_server: DatabaseServer) -> Iterator[DatabaseServer]:
    """That server with a database of the module's own, so that no scenario of another module is in it."""
    with database_server.new_database() as mine:
        yield mine


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 numbered frames of 320 × 240 at 25 a second."""
    return clips.pixel_coded(tmp_path_factory.mktemp("clips") / "clip.mp4", frames=60)


@pytest.fixture(scope="session")
def big_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """120 numbered frames whose JPEGs, 20 kB each, do not fit into the pipe between decoder and daemon."""
    return clips.with_large_frames(tmp_path_factory.mktemp("clips") / "big.mp4", frames=120)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB."""
    directory = tmp_path / "disk"
    directory.mkdir()
    mounting = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(directory)], capture_output=True, text=True, check=False
    )
    if mounting.returncode != 0:
        pytest.skip(f"a file system cannot be mounted here: {mounting.stderr.strip()}")
    yield directory
    subprocess.run(["umount", "--lazy", str(directory)], check=True)


@pytest.fixture
def scenario_id() -> int:
    """An id that no other test uses."""
    return next(_scenario_ids)


@pytest.fixture
def new_scenario_id() -> Callable[[], int]:
    """Further such ids."""
    return lambda: next(_scenario_ids)


@pytest.fixture
def topic(scenario_id: int) -> str:
    """A retry topic that no other test uses."""
    return f"runner.retry.{scenario_id}"


@pytest.fixture(scope="session")
def ledger(servers: Servers) -> Iterator[Ledger]:
    """The session's database, read raw."""
    with Ledger(servers) as kept:
        yield kept


@pytest.fixture(scope="session")
def fork_server() -> Iterator[ForkServer]:
    """Starts the program by forking a process that has imported it."""
    with open_fork_server(environment()) as server:
        yield server


@pytest.fixture
def cli(tmp_path: Path, canaries: set[str], fork_server: ForkServer) -> Cli:
    """The command line, run from the test's directory."""
    return Cli(tmp_path, canaries, fork_server)


@pytest.fixture
def write_config(tmp_path: Path, servers: Servers, scenario_id: int, topic: str) -> WriteConfig:
    """Writes configs that name the session's servers, this test's scenario and topic, and what the test adds."""
    base: dict[str, dict[str, Any]] = {
        "runner": {"id": "runner_under_test", "data_dir": "data"},
        "scenario": {"id": scenario_id},
        "inference": servers.inference,
        "database": servers.database,
        "kafka": {"brokers": servers.brokers, "retry_topic": topic},
    }

    def write(name: str = "runner.toml", **sections: dict[str, Any]) -> Path:
        # The token belongs to the session's own service.
        without_token = {"token_file": None} if "url" in sections.get("inference", {}) else {}
        sections["inference"] = without_token | sections.get("inference", {})
        merged = {
            section: {
                key: value
                for key, value in (base.get(section, {}) | sections.get(section, {})).items()
                if value is not None
            }
            for section in [*base, *(section for section in sections if section not in base)]
        }
        path = tmp_path / name
        path.write_text(as_toml(merged))
        return path

    return write


@pytest.fixture
def scene(
    scenario_id: int,
    topic: str,
    servers: Servers,
    ledger: Ledger,
    cli: Cli,
    write_config: WriteConfig,
    tmp_path: Path,
) -> Scene:
    return Scene(
        scenario_id=scenario_id,
        topic=topic,
        servers=servers,
        ledger=ledger,
        cli=cli,
        write_config=write_config,
        directory=tmp_path,
    )

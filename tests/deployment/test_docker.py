"""The image and deploy/compose.yaml on a real Docker engine: a whole system that survives the death of a runner.

They take root and minutes, and are left out where no engine was started for them:
`tests/deployment/docker.sh start DIRECTORY`.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.support.harness import PATIENCE_SECONDS, REPOSITORY

ASKED = "TRIO_RUNNER_TEST_DOCKER"
"""The address of the engine, which tests/deployment/docker.sh sets."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        ASKED not in os.environ, reason=f"a stage of its own, which sets {ASKED} (tests/deployment/docker.sh)"
    ),
]

IMAGE = "trio-runner"
CONFIG = "/etc/trio-runner/orchestrator.toml"
VIDEO = "/srv/videos/test_video.mp4"
FRAMES = 250
UID = 10001
PYTHON = ("/opt/trio-runner/bin/python", "-c")
SLOW_SECONDS = 3 * PATIENCE_SECONDS
"""Bounds what starts several containers, or looks at every frame of the video."""

# Run inside a container, which has no tool but Python. Any process but the container's first may end meanwhile.
KILL_RUNNER = """
import contextlib, os, pathlib, signal, sys
for process in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        if f"\\0run\\0/var/lib/trio-runner/runners/{sys.argv[1]}/" in (process / "cmdline").read_text():
            os.kill(int(process.name), signal.SIGKILL)
            print(process.name)
"""
PROCESSES = """
import contextlib, json, pathlib
found = []
for process in pathlib.Path("/proc").glob("[0-9]*"):
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        lines = dict(line.split(":\\t", 1) for line in (process / "status").read_text().splitlines())
        # The engine itself, on its way to a health check: it gives up its rights before the check begins.
        if not lines["Name"].startswith("runc:["):
            names = ("Name", "State", "Uid", "CapEff", "CapBnd", "NoNewPrivs")
            found.append({name: lines[name].split()[0] for name in names})
print(json.dumps(found))
"""
SIGNAL_MAIN = """
import os, pathlib, sys
(main,) = pathlib.Path("/proc/1/task/1/children").read_text().split()
os.kill(int(main), int(sys.argv[1]))
"""
TOOLS_FOUND = """
import importlib.util, json, shutil
tools = filter(shutil.which, "gcc g++ cc c++ clang ld as make cmake rustc go pip pip3 uv git".split())
modules = [name for name in ("pip", "setuptools", "uv", "flit_core", "pytest") if importlib.util.find_spec(name)]
print(json.dumps([*tools, *modules]))
"""
FILES = """
import json, pathlib, trio_runner
package = pathlib.Path(trio_runner.__file__).parent
files = [path for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"]
print(json.dumps([str(path.relative_to(package)) for path in files]))
"""
WRITABLE = """
import json, os
walked = [found for root in ("/etc", "/opt", "/usr") for found in os.walk(root)]
places = [os.path.join(top, name) for top, _, names in walked for name in ("", *names)]
print(json.dumps([place for place in places if os.access(place, os.W_OK) and not os.path.islink(place)]))
"""
FIND_SECRET = """
import contextlib, os, pathlib
secret = pathlib.Path("/run/secrets/database-password").read_bytes().strip()
places = [process / name for process in pathlib.Path("/proc").glob("[0-9]*") for name in ("cmdline", "environ")]
for top, _, names in os.walk("/"):
    if not top.startswith(("/proc", "/sys", "/run/secrets")):
        places += [path for name in names if (path := pathlib.Path(top, name)).is_file() and os.access(path, os.R_OK)]
for place in places:
    # Not permitted: the engine itself, on its way to a health check.
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
        if secret in place.read_bytes():
            print(place)
"""


def docker(*arguments: str, seconds: float = PATIENCE_SECONDS, check: bool = True) -> subprocess.CompletedProcess[str]:
    return call("docker", *arguments, seconds=seconds, check=check)


def call(
    *command: str, seconds: float = PATIENCE_SECONDS, check: bool = True, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    environ = os.environ | {"DOCKER_HOST": os.environ[ASKED]} | (variables or {})
    done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, check=False, env=environ)
    assert not check or done.returncode == 0, f"{' '.join(command)}\n{done.stdout}\n{done.stderr}"
    return done


def in_image(program: str, image: str = IMAGE) -> Any:
    return json.loads(docker("run", "--rm", "--network=none", "--entrypoint", PYTHON[0], image, "-c", program).stdout)


def wait(condition: Callable[[], bool], described: str, seconds: float = PATIENCE_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {described}"
        time.sleep(0.1)


@dataclass(frozen=True, kw_only=True)
class System:
    """The compose file, brought up."""

    command: tuple[str, ...]
    variables: dict[str, str] = field(repr=False)
    secret: str = field(repr=False)

    def compose(self, *arguments: str, seconds: float = SLOW_SECONDS) -> str:
        return call(*self.command, *arguments, seconds=seconds, variables=self.variables).stdout

    def container(self, service: str) -> str:
        """Its id, running or not."""
        label = f"label=com.docker.compose.service={service}"
        return docker("ps", "--all", "--quiet", "--no-trunc", "--filter", label).stdout.strip()

    def state(self, service: str) -> Any:
        return json.loads(docker("inspect", "--format", "{{json .State}}", self.container(service)).stdout)

    def inside(self, service: str, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return docker("exec", self.container(service), *command, check=check)

    def health_check(self, service: str) -> list[str]:
        """The health check, which the engine runs in the container every few seconds."""
        configured = docker("inspect", "--format", "{{json .Config.Healthcheck.Test}}", self.container(service)).stdout
        kind, *command = json.loads(configured)
        assert kind == "CMD"
        return [str(argument) for argument in command]

    def trio_runner(self, verb: str, *arguments: str) -> str:
        return self.inside("orchestrator", "trio-runner", verb, CONFIG, *arguments).stdout

    def rows(self, query: str) -> Any:
        """What PostgreSQL answers, as JSON."""
        statement = f"SELECT coalesce(json_agg(r), '[]') FROM ({query}) r"  # noqa: S608 - ours
        psql = ("psql", "--username=postgres", "--dbname=trio_runner", "--no-align", "--tuples-only", "--quiet")
        return json.loads(self.inside("postgres", *psql, "--command", statement).stdout)

    def scenario(self, scenario_id: int) -> Any:
        (row,) = self.rows(f"SELECT * FROM trio_runner.scenarios WHERE id = {scenario_id}")  # noqa: S608 - ours
        return row

    def submitted(self, scenario_id: int) -> None:
        """Submit it, and wait until it is at work: something is stored, and much is not."""
        assert "is submitted" in self.trio_runner(
            "submit", "--video", VIDEO, "--id", str(scenario_id), "--set", f"video.max_frames={FRAMES}"
        )
        wait(lambda: self.scenario(scenario_id)["frames_stored"] > 0, "frames are stored")

    def completed(self, scenario_id: int) -> None:
        """Wait until it is, and look at what is stored."""
        wait(lambda: bool(self.scenario(scenario_id)["outcome"]), "an outcome", SLOW_SECONDS)
        row = self.scenario(scenario_id)
        assert (row["status"], row["outcome"], row["last_error"]) == ("active", "completed", None)
        stored = self.rows(
            "SELECT frame_index, epoch FROM trio_runner.predictions"  # noqa: S608 - ours
            f" WHERE scenario_id = {scenario_id} ORDER BY frame_index"
        )
        assert [frame["frame_index"] for frame in stored] == list(range(FRAMES))
        epochs = [frame["epoch"] for frame in stored]
        assert epochs == sorted(epochs)
        assert len(set(epochs)) > 1, "it went on from where it was"

    def attempts(self, scenario_id: int) -> list[tuple[str, str | None]]:
        """Outcome and error code of each."""
        rows = self.rows(f"SELECT * FROM trio_runner.attempts WHERE scenario_id = {scenario_id} ORDER BY epoch")  # noqa: S608 - ours
        return [(row["outcome"], (row["error"] or {}).get("code")) for row in rows]

    def events(self, scenario_id: int) -> list[Any]:
        """Those on Kafka's topic."""
        events = map(json.loads, self.trio_runner("events", "--json").splitlines())
        return [event["body"] for event in events if event["body"]["scenario_id"] == scenario_id]


@pytest.fixture(scope="module")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    """Up as a user brings it up, but for two images and where the password lies."""
    secret = secrets.token_hex(24)
    password_file = tmp_path_factory.mktemp("secrets") / "database-password"
    password_file.write_text(secret)
    password_file.chmod(0o400)
    os.chown(password_file, UID, -1)
    plugin = call("docker", "compose", "version", check=False).returncode == 0
    files = (REPOSITORY / "deploy/compose.yaml", REPOSITORY / "tests/deployment/docker/compose.override.yaml")
    system = System(
        command=(
            *(("docker", "compose") if plugin else ("docker-compose",)),
            *(f"--file={file}" for file in files),
            "--project-name=trio-runner-test",
        ),
        variables={"DATABASE_PASSWORD_FILE": str(password_file)},
        secret=secret,
    )
    try:
        system.compose("up", "--detach", "--no-build")
        yield system
    finally:
        system.compose("down", "--volumes", "--timeout=5")


def test_the_image_prints_its_version() -> None:
    done = docker("run", "--rm", "--network=none", "--read-only", "--cap-drop=ALL", IMAGE, "--version")
    assert done.stdout.startswith("trio-runner ")


def test_the_image_has_an_ordinary_user_and_nothing_that_builds_or_installs() -> None:
    (image,) = json.loads(docker("image", "inspect", IMAGE).stdout)
    assert image["Config"]["User"] == f"{UID}:{UID}"
    assert in_image(WRITABLE) == []
    assert in_image(TOOLS_FOUND) == []


def test_the_image_has_the_package_as_it_is_here() -> None:
    package = REPOSITORY / "trio_runner"
    here = {str(path.relative_to(package)) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert set(in_image(FILES)) == here


def test_what_is_not_meant_for_the_image_does_not_even_reach_its_build(tmp_path: Path) -> None:
    """With the shipped .dockerignore, on a tree in which secrets lie about."""
    shutil.copy(REPOSITORY / ".dockerignore", tmp_path)
    wanted = {"trio_runner/cli/main.py", "deploy/healthcheck.py", "requirements-runtime.lock", "pyproject.toml"}
    lying_about = {"deploy/secrets/database-password", ".env", "trio_runner/__pycache__/a.pyc", "k.pem", ".git/HEAD"}
    for name in wanted | lying_about:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "Dockerfile").write_text(f"FROM {IMAGE}\nCOPY . /context/\n")
    docker("build", "--quiet", "--tag=trio-runner-test/context", str(tmp_path))
    program = """
import json, os
print(json.dumps([os.path.relpath(os.path.join(top, name), "/context") for top, _, names in os.walk("/context")
    for name in names]))
"""
    assert set(in_image(program, "trio-runner-test/context")) == wanted
    docker("image", "rm", "trio-runner-test/context")


def test_a_scenario_whose_runner_is_killed_completes(system: System) -> None:
    system.submitted(1)
    assert system.inside("orchestrator", *PYTHON, KILL_RUNNER, "1").stdout.strip().isdecimal()
    system.completed(1)
    assert system.attempts(1) == [("lost", "runner_killed"), ("completed", None)]
    (event,) = system.events(1)
    assert (event["epoch"], event["error"]["code"]) == (1, "runner_killed")
    # Its decoder died with it, and was left to the container's first process.
    wait(lambda: all(process["State"] != "Z" for process in processes(system, "orchestrator")), "no zombie is left")
    (row,) = json.loads(system.trio_runner("status", "--json"))
    assert (row["id"], row["outcome"], row["frames_stored"]) == (1, "completed", FRAMES)


def test_a_stopped_orchestrator_lets_its_runner_drain_and_another_goes_on(system: System) -> None:
    system.submitted(2)
    # It has the grace period of compose.yaml: what is not gone by then is killed, with exit code 137.
    docker("stop", system.container("orchestrator"), seconds=SLOW_SECONDS)
    assert system.state("orchestrator")["ExitCode"] == 0
    assert system.attempts(2) == [("interrupted", "interrupted")]
    docker("start", system.container("orchestrator"))
    system.completed(2)
    assert system.attempts(2)[1:] == [("completed", None)]


def test_a_runner_that_is_process_1_drains_on_term(system: System) -> None:
    """Alone in a container, without an init that would pass signals on."""
    mounts = json.loads(docker("inspect", "--format", "{{json .Mounts}}", system.container("orchestrator")).stdout)
    shared = [f"--volume={m['Source']}:{m['Destination']}:ro" for m in mounts if m["Type"] == "bind"]
    name, network = "trio-runner-test-alone", "trio-runner-test_default"
    docker("run", "--detach", "--name", name, "--network", network, *shared, IMAGE, "run", CONFIG, "--scenario=3")
    try:
        # Before it claims there is no row.
        wait(lambda: bool(system.rows("SELECT 1 FROM trio_runner.predictions WHERE scenario_id = 3 LIMIT 1")), "active")
        assert "trio-runner" in docker("exec", name, *PYTHON, "print(open('/proc/1/cmdline').read())").stdout
        docker("stop", "--time=50", name)
        assert docker("inspect", "--format", "{{.State.ExitCode}}", name).stdout.strip() == "0"
    finally:
        docker("rm", "--force", name)
    assert system.attempts(3)[0] == ("interrupted", "interrupted")
    # The orchestrator of the same ledger goes on with it, which need not be waited for.
    system.trio_runner("stop", "3")


@pytest.mark.parametrize("service", ["inference", "orchestrator"])
def test_a_frozen_process_makes_its_container_unhealthy(system: System, service: str) -> None:
    wait(lambda: bool(system.state(service)["Health"]["Status"] == "healthy"), "healthy")
    check = system.health_check(service)
    assert system.inside(service, *check).returncode == 0
    system.inside(service, *PYTHON, SIGNAL_MAIN, "19")
    try:
        done = system.inside(service, *check, check=False)
        assert done.returncode == 1
        assert "stopped: trio-runner" in done.stderr
    finally:
        system.inside(service, *PYTHON, SIGNAL_MAIN, "18")
    assert system.inside(service, *check).returncode == 0


def test_an_inference_service_that_does_not_answer_is_unhealthy(system: System) -> None:
    *check, _ = system.health_check("inference")
    done = system.inside("inference", *check, "http://127.0.0.1:1/", check=False)
    assert done.returncode == 1
    assert "http://127.0.0.1:1/" in done.stderr


@pytest.mark.parametrize("service", ["inference", "orchestrator"])
def test_nothing_has_rights_that_it_does_not_need(system: System, service: str) -> None:
    for process in processes(system, service):
        assert process["Uid"] == str(UID)
        assert int(process["CapEff"], 16) == int(process["CapBnd"], 16) == 0
        assert process["NoNewPrivs"] == "1"
    assert "Read-only" in system.inside(service, *PYTHON, "open('/var/new', 'w')", check=False).stderr


def test_the_password_is_in_its_file_and_nowhere_else(system: System) -> None:
    for service in ("postgres", "kafka", "inference", "init-db", "orchestrator"):
        container = system.container(service)
        logs = docker("logs", container)
        assert system.secret not in docker("inspect", container).stdout + logs.stdout + logs.stderr
    assert system.secret not in docker("history", "--no-trunc", IMAGE).stdout
    assert system.inside("orchestrator", "cat", "/run/secrets/database-password").stdout == system.secret
    assert system.inside("orchestrator", *PYTHON, FIND_SECRET).stdout == ""


def test_the_ledgers_owner_is_no_superuser(system: System) -> None:
    (owner,) = system.rows(
        "SELECT rolname, rolsuper FROM pg_namespace n JOIN pg_roles r ON r.oid = nspowner WHERE nspname = 'trio_runner'"
    )
    assert owner == {"rolname": "trio_runner", "rolsuper": False}
    (superuser,) = system.rows("SELECT rolpassword FROM pg_authid WHERE rolname = 'postgres'")
    assert superuser == {"rolpassword": None}


def processes(system: System, service: str) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads(system.inside(service, *PYTHON, PROCESSES).stdout)
    assert len(found) > 1
    return found

"""A real systemd in namespaces of its own: `systemd --user` with the shipped unit; nothing of the machine's is touched.

Mounts, process ids and cgroups are its own, `/run` is an empty tmpfs, its files lie in a temporary directory; only the
network is shared, so that the session's servers are reached. It ends with the block that opened it, or with the process
that did, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import trio

from tests.support.harness import PATIENCE_SECONDS, REPOSITORY, environment

UNIT = REPOSITORY / "systemd" / "trio-runner@.service"
ORCHESTRATOR = REPOSITORY / "systemd" / "trio-runner-orchestrator.service"

SYSTEMD = Path("/usr/lib/systemd/systemd")
TOOLS = ("nsenter", "systemctl", "unshare")

REPLACED = {
    "/opt/trio-runner/bin/trio-runner": f"{sys.executable} -m trio_runner",
    "%t/trio-runner/%i/credentials/config.toml": "%t/configs/%i.toml",
    "%d": "%t/configs",
}
"""In the units' commands: the program is not installed and the configs lie in the manager's directory."""

LEFT_OUT = re.compile(
    # A user's manager has no users to choose from, no place for credentials, no controllers and no packet filter.
    r"^(?:DynamicUser|User|LoadCredential|IPAddress\w+"
    # What it cannot mount in namespaces of its own (systemd 252: 226/NAMESPACE).
    r"|InaccessiblePaths|ProtectKernelLogs|ProtectKernelTunables"
    # The tests' interpreter and files lie where nothing may be executed, or seen.
    r"|NoExecPaths|ExecPaths|ProtectHome|PrivateTmp"
    r")=.*\n",
    re.MULTILINE,
)
"""Lines of the unit that a user's manager cannot do, or that shut out the tests' own files; the others hold."""

KEEP = "[Unit]\nAfter=trio-runner@%i.service\n"
"""As long as such a target is active, what became of a unit is not forgotten (CollectMode=), and can be asked."""

# Its standard input is a pipe that nobody writes into: it ends when the one at the other end does.
INIT = """\
for hierarchy in $HIERARCHIES; do mount --bind "$hierarchy/$NAME" "$hierarchy" || exit; done
mount -t tmpfs tmpfs /run && mkdir -p /run/systemd/system || exit
"$SYSTEMD" --user --unit=basic.target </dev/null &
read -r _
"""
# Child processes inherit the cgroups.
OUTSIDE = """\
for hierarchy in $HIERARCHIES; do echo $$ >"$hierarchy/$NAME/cgroup.procs" || exit; done
exec unshare --mount --pid --cgroup --fork --mount-proc --kill-child sh -c "$0"
"""


def why_not() -> str:
    """What keeps a manager from running here; empty where nothing does."""
    if os.geteuid():
        return "a systemd manager in namespaces of its own takes root"
    missing = [tool for tool in TOOLS if shutil.which(tool) is None]
    if missing or not SYSTEMD.exists():
        return f"not installed: {', '.join(missing) or SYSTEMD}"
    if not _hierarchies():
        return "no cgroup hierarchy that systemd could use is mounted"
    if closed := [path for path in _hierarchies() if not os.access(path, os.W_OK)]:
        return f"no cgroup can be made in {closed[0]}"
    tried = refused("--mount", "--pid", "--cgroup", "--fork", "--mount-proc", "mount", "-t", "tmpfs", "tmpfs", "/run")
    return tried and f"no namespaces can be had: {tried}"


def refused(*arguments: str) -> str:
    """The error of `unshare`; empty where it works."""
    tried = subprocess.run(
        ["unshare", *arguments], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    return tried.stderr.strip()


def _hierarchies() -> list[Path]:
    """Where systemd keeps its units' processes: cgroup v2, and the one without controllers of v1."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return [
        Path(where)
        for _, where, kind, options, *_ in mounts
        if kind == "cgroup2" or (kind == "cgroup" and "name=systemd" in options.split(","))
    ]


@dataclass(frozen=True, kw_only=True)
class Output:
    """A command that has ended."""

    code: int
    text: str


@dataclass(frozen=True, kw_only=True)
class Manager:
    """A running manager; made by `open_manager`."""

    directory: Path
    cgroups: tuple[Path, ...]
    """Its own, one a hierarchy."""
    init: int
    """The first process of its namespaces."""

    @property
    def configs(self) -> Path:
        """What the unit knows as /etc/trio-runner."""
        return self.directory / "configs"

    @property
    def configs_inside(self) -> Path:
        """The same directory, as processes of the unit find it."""
        return self.configs

    @property
    def interpreter(self) -> str:
        """The Python that the unit runs."""
        return sys.executable

    @property
    def units(self) -> Path:
        """Where its units lie."""
        return self.directory / "units"

    async def systemctl(self, *arguments: str) -> Output:
        """Run `systemctl` inside, bounded."""
        return await self.run("systemctl", "--user", *arguments)

    async def run(self, *command: str) -> Output:
        """Run a command inside, bounded."""
        done = await trio.to_thread.run_sync(self._call, command)
        return Output(code=done.returncode, text=done.stdout + done.stderr)

    def _call(self, command: tuple[str, ...]) -> subprocess.CompletedProcess[str]:
        # From outside it would be refused: the manager cannot know who a process of no number is.
        enter = ["nsenter", "--target", str(self.init), "--pid", "--mount", "--cgroup"]
        return subprocess.run(
            [*enter, *command],
            env=_environment(self.directory),
            capture_output=True,
            text=True,
            timeout=2 * PATIENCE_SECONDS,
            check=False,
        )

    async def drop_in(self, unit: str, *lines: str) -> None:
        """These are the unit's further `[Service]` lines from now on, in place of those from before."""
        directory = self.units / f"{unit}.d"
        directory.mkdir(exist_ok=True)
        (directory / "test.conf").write_text("\n".join(["[Service]", *lines, ""]))
        assert (await self.systemctl("daemon-reload")).code == 0

    async def show(self, unit: str) -> dict[str, str]:
        """The unit's properties."""
        done = await self.systemctl("show", unit)
        assert done.code == 0, done.text
        return dict(line.split("=", 1) for line in done.text.splitlines() if "=" in line)

    def processes(self, unit: str) -> list[psutil.Process]:
        """Every process of the unit, as it is known out here."""
        found: dict[int, psutil.Process] = {}
        for place in (place for cgroup in self.cgroups for place, _, _ in os.walk(cgroup) if Path(place).name == unit):
            # Cgroup or process may be gone since it was listed.
            with contextlib.suppress(OSError):
                for pid in map(int, Path(place, "cgroup.procs").read_text().split()):
                    with contextlib.suppress(psutil.NoSuchProcess):
                        found[pid] = psutil.Process(pid)
        return list(found.values())

    def log(self, unit: str) -> str:
        """What the unit's processes wrote."""
        return (self.directory / f"{unit}.log").read_text()


@contextlib.contextmanager
def open_manager() -> Iterator[Manager]:
    """Run a manager that knows the shipped unit."""
    # Not pytest's directory: a socket's path may have 107 bytes.
    with tempfile.TemporaryDirectory(prefix="trio-runner-systemd-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        _write_units(directory)
        mounted = _hierarchies()
        cgroups = tuple(hierarchy / directory.name for hierarchy in mounted)
        for cgroup in cgroups:
            cgroup.mkdir()
            stack.callback(remove_cgroup, cgroup)
        log = stack.enter_context((directory / "manager.log").open("wb"))
        variables = {"HIERARCHIES": " ".join(map(str, mounted)), "NAME": directory.name, "SYSTEMD": str(SYSTEMD)}
        process = subprocess.Popen(
            ["sh", "-c", OUTSIDE, INIT],
            env=_environment(directory) | variables,
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        stack.callback(_end, process)
        wait(lambda: (directory / "systemd/private").exists() or process.poll() is not None, "the manager's socket")
        assert process.poll() is None, (directory / "manager.log").read_text()
        (init,) = psutil.Process(process.pid).children()
        yield Manager(directory=directory, cgroups=cgroups, init=init.pid)


def _environment(directory: Path) -> dict[str, str]:
    inherited = {name: value for name, value in environment().items() if name in {"PATH", "PYTHONPATH", "LANG"}}
    return inherited | {
        "HOME": str(directory),
        "XDG_RUNTIME_DIR": str(directory),
        # Where StateDirectory= lies: systemd took the first until version 253, and takes the second since.
        "XDG_CONFIG_HOME": str(directory / "state"),
        "XDG_STATE_HOME": str(directory / "state"),
        "DBUS_SESSION_BUS_ADDRESS": "disabled:",
        "SYSTEMD_UNIT_PATH": str(directory / "units"),
        "SYSTEMD_LOG_TARGET": "console",
    }


def _write_units(directory: Path) -> None:
    # Without a journal it would write nowhere; data_dir is a test's own directory.
    places = (
        f"[Service]\nStandardOutput=append:{directory}/%n.log\nStandardError=inherit\n"
        f"ReadWritePaths={tempfile.gettempdir()}\n"
    )
    for path, content in {
        "units/basic.target": "[Unit]\nDefaultDependencies=no\n",
        "units/keep@.target": KEEP,
        "units/trio-runner@.service": without_what_it_cannot(UNIT),
        "units/trio-runner@.service.d/places.conf": places,
        "units/trio-runner-orchestrator.service": without_what_it_cannot(ORCHESTRATOR),
        "units/trio-runner-orchestrator.service.d/places.conf": places,
    }.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_text(content)
    (directory / "configs").mkdir()


def without_what_it_cannot(unit: Path) -> str:
    """The shipped unit, as far as a user's manager goes with it."""
    text = LEFT_OUT.sub("", unit.read_text())
    for shipped, here in REPLACED.items():
        text = re.sub(rf"^(Exec.*){re.escape(shipped)}", rf"\g<1>{here}", text, flags=re.MULTILINE)
    return text


def _end(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        process.wait(PATIENCE_SECONDS)
    finally:
        process.kill()
        process.wait()


def remove_cgroup(cgroup: Path) -> None:
    """Remove it with all that systemd made in it; the kernel lets go of the last processes a little later."""

    def is_removed() -> bool:
        with contextlib.suppress(OSError):
            for directory in sorted(cgroup.rglob("*/"), reverse=True):
                directory.rmdir()
            cgroup.rmdir()
        return not cgroup.exists()

    wait(is_removed, f"an empty {cgroup}")


def wait(condition: Callable[[], bool], described: str) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"not within {PATIENCE_SECONDS:g} s: {described}"
        time.sleep(0.02)

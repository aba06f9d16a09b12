"""A machine of its own for the shipped unit: the installed systemd as PID 1, of which nothing reaches the real one.

Its root is a tmpfs. In it are the system's /usr under an overlay, the tests' packages as /opt/trio-runner, and the unit
as shipped; mounts, processes, cgroups, host name and IPC are its own. Only the network is shared, so that the session's
servers are reached. It ends with the block that opened it, or with the process that did, however that ends.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.support import service_manager
from tests.support.harness import REPOSITORY
from tests.support.service_manager import (
    KEEP,
    ORCHESTRATOR,
    SYSTEMD,
    UNIT,
    Manager,
    Output,
    refused,
    remove_cgroup,
    wait,
)

ASKED = "TRIO_RUNNER_TEST_PID1"
"""Set where the tests that take such a machine are to run."""

CONTROLLERS = {"name=systemd", "blkio", "cpu", "cpuacct", "devices", "memory", "pids"}
"""The hierarchies of cgroup v1 that systemd puts units into (CGROUP_MASK_V1)."""

UNIFIED = Path("/sys/fs/cgroup/cgroup.controllers").exists()
"""Whether the kernel's cgroups are those of version 2 alone."""

VENV = Path("/opt/trio-runner")
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"

LAUNCHER = f"""\
#!{VENV}/bin/python
import sys
from trio_runner.cli.main import main
sys.exit(main())
"""

# The unit wants an interpreter under /usr. In a container systemd leaves it to others to share mounts, without which no
# credential arrives, and to close /proc/sys, which is the real machine's.
INSIDE = """\
mount -t tmpfs -o mode=755 tmpfs "$ROOT"
cd "$ROOT"
mkdir dev etc home opt proc root run srv sys tmp usr var .outside .upper .work
chmod 1777 tmp
for link in bin lib lib32 lib64 sbin; do if [ -h "/$link" ]; then cp -P "/$link" .; fi; done
mount -t overlay -o "lowerdir=/usr,upperdir=$ROOT/.upper,workdir=$ROOT/.work" overlay usr
if [ "$PREFIX" != /usr ]; then mount --bind -o ro "$PREFIX" usr/local; fi

mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs -o ro sysfs sys
mount -t tmpfs tmpfs sys/fs/cgroup
echo "$HIERARCHIES" | while read -r where kind options; do
    mkdir -p "$ROOT$where"
    mount -t "$kind" -o "$options" cgroup "$ROOT$where"
done
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs -o mode=755 tmpfs dev
ln -s pts/ptmx dev/ptmx
for node in full null random tty urandom zero; do
    : >"dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done

cp -R "$FILES"/. .
mount --bind -o ro "$PACKAGES" "$ROOT$VENV/packages"
mount --bind -o ro "$PACKAGE" "$ROOT$VENV/lib/$PYTHON/site-packages/trio_runner"
chroot . /sbin/ldconfig
pivot_root . .outside
umount -l /.outside
mount --make-rshared /
exec env -i PATH=/usr/bin:/usr/sbin container=other "$SYSTEMD" --unit=sysinit.target
"""
# Child processes inherit the cgroups; neither setpriv nor unshare outlives its parent.
OUTSIDE = """\
for cgroup in $CGROUPS; do echo $$ >"$cgroup/cgroup.procs"; done
exec setpriv --pdeathsig KILL unshare --mount --pid --cgroup --uts --ipc --fork --kill-child sh -ec "$0"
"""


def why_not() -> str:
    """What keeps such a machine from running here; empty where nothing does."""
    if missing := service_manager.why_not():
        return missing
    if shutil.which("setpriv") is None:
        return "not installed: setpriv"
    overlay = "mount -t overlay -o lowerdir=/usr,upperdir=/run/upper,workdir=/run/work overlay /usr"
    tried = refused("--mount", "sh", "-ec", f"mount -t tmpfs tmpfs /run; mkdir /run/upper /run/work; {overlay}")
    return tried and f"no overlay can be mounted: {tried}"


@dataclass(frozen=True, kw_only=True)
class Machine(Manager):
    """A running machine; made by `open_machine`."""

    @property
    def root(self) -> Path:
        """Its file system, from out here."""
        return Path(f"/proc/{self.init}/root")

    @property
    def configs(self) -> Path:
        return self.root / "etc/trio-runner"

    @property
    def configs_inside(self) -> Path:
        return Path("/etc/trio-runner")

    @property
    def interpreter(self) -> str:
        return f"{VENV}/bin/python"

    @property
    def units(self) -> Path:
        return self.root / "etc/systemd/system"

    async def systemctl(self, *arguments: str) -> Output:
        return await self.run("systemctl", *arguments)

    def log(self, unit: str) -> str:
        return self._call(("journalctl", "--output=cat", f"--unit={unit}")).stdout

    @property
    def controllers(self) -> set[str]:
        """Those that the kernel's cgroups give to this machine."""
        found = {name for _, kind, options in _hierarchies() if kind == "cgroup" for name in options.split(",")}
        for path in (cgroup / "cgroup.controllers" for cgroup in self.cgroups):
            found |= set(path.read_text().split()) if path.exists() else set()
        return found

    def limit(self, unit: str, *names: str) -> str:
        """The kernel's value of a limit of the unit, which has one of these names."""
        (limit,) = (path for name in names for cgroup in self.cgroups for path in cgroup.rglob(f"{unit}/{name}"))
        return limit.read_text().strip()

    async def run_among(self, unit: str, *command: str) -> Output:
        """Run a command inside, as root, in the unit's cgroups."""
        joined = [
            f"echo $$ >{shlex.quote(str(cgroup.parent / path.relative_to(cgroup)))}"
            for cgroup in self.cgroups
            for path in cgroup.rglob(f"{unit}/cgroup.procs")
        ]
        return await self.run("sh", "-ec", "\n".join([*joined, 'exec "$@"']), "sh", *command)

    async def run_beside(self, unit: str, *command: str) -> Output:
        """Run a command inside, as root, with the file system that the unit's main process has."""
        main = (await self.show(unit))["MainPID"]
        return await self.run("nsenter", "--target", main, "--mount", *command)


@contextlib.contextmanager
def open_machine(videos: dict[str, Path], password: str) -> Iterator[Machine]:
    """Boot one that has these videos, by where they lie in it, and the database's password as the unit's credential."""
    with tempfile.TemporaryDirectory(prefix="trio-runner-machine-") as name, contextlib.ExitStack() as stack:
        directory = Path(name)
        for part in ("root", "files"):
            (directory / part).mkdir()
        _write_files(directory / "files", videos, password)
        mounted = _hierarchies()
        cgroups = tuple(Path(where) / directory.name for where, *_ in mounted)
        for cgroup in cgroups:
            cgroup.mkdir()
            stack.callback(remove_cgroup, cgroup)
        log = stack.enter_context((directory / "boot.log").open("wb"))
        process = subprocess.Popen(
            ["sh", "-ec", OUTSIDE, INSIDE],
            env={
                "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
                "CGROUPS": " ".join(map(str, cgroups)),
                "HIERARCHIES": "\n".join(map(" ".join, mounted)),
                "ROOT": str(directory / "root"),
                "FILES": str(directory / "files"),
                "SYSTEMD": str(SYSTEMD),
                "VENV": str(VENV),
                "PYTHON": PYTHON,
                "PREFIX": "/usr" if _is_systems() else sys.base_prefix,
                "PACKAGES": sysconfig.get_path("purelib"),
                "PACKAGE": str(REPOSITORY / "trio_runner"),
            },
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
        stack.callback(_end, process)
        machine: list[Machine] = []

        def is_up() -> bool:
            assert process.poll() is None, (directory / "boot.log").read_text()
            for child in psutil.Process(process.pid).children():
                if child.name() == "systemd":
                    machine[:] = [Machine(directory=directory, cgroups=cgroups, init=child.pid)]
                    output = machine[0]._call(("systemctl", "is-system-running", "--wait"))
                    return output.stdout.strip() in {"running", "degraded"}
            return False

        wait(is_up, "a machine that has booted")
        yield machine[0]


def _hierarchies() -> list[tuple[str, str, str]]:
    """Mount point, kind and options of the cgroup hierarchies that the machine is given a part of."""
    found = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        _, where, kind, options, *_ = line.split()
        wanted = ",".join(sorted(CONTROLLERS & {*options.split(",")})) if kind == "cgroup" else "rw"
        if kind in {"cgroup", "cgroup2"} and wanted:
            found.append((where, kind, wanted))
    return found


def _is_systems() -> bool:
    """Whether the tests' interpreter lies where the unit wants it."""
    return Path(sys.base_prefix).is_relative_to("/usr")


def _write_files(root: Path, videos: dict[str, Path], password: str) -> None:
    prefix = sys.base_prefix if _is_systems() else "/usr/local"
    venv = str(VENV).removeprefix("/")
    for path, content in {
        "etc/systemd/system/keep@.target": KEEP,
        "etc/trio-runner/credentials/database-password": password,
        "etc/ld.so.conf": "/usr/local/lib\n",
        "etc/machine-id": f"{uuid.uuid4().hex}\n",
        f"{venv}/bin/trio-runner": LAUNCHER,
        f"{venv}/pyvenv.cfg": f"home = {prefix}/bin\ninclude-system-site-packages = false\n",
        f"{venv}/lib/{PYTHON}/site-packages/packages.pth": f"{VENV}/packages\n",
    }.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(content)
    (root / venv / "bin/trio-runner").chmod(0o755)
    (root / venv / "bin/python").symlink_to(f"{prefix}/bin/{PYTHON}")
    (root / venv / f"lib/{PYTHON}/site-packages/trio_runner").mkdir()
    (root / venv / "packages").mkdir()
    for unit in (UNIT, ORCHESTRATOR):
        shutil.copy(unit, root / "etc/systemd/system")
    (root / "etc/trio-runner/credentials").chmod(0o700)
    for path, video in videos.items():
        (root / path.removeprefix("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(video, root / path.removeprefix("/"))


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


if __name__ == "__main__":
    sys.stdout.write(why_not())

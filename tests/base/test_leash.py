"""The leash: a child does not outlive its parent, whatever kills the parent and whatever the child is."""

from __future__ import annotations

import os
import pwd
import select
import signal
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from tests.support.harness import PATIENCE_SECONDS
from trio_runner.base import leash

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

LEASH = (sys.executable, "-m", "trio_runner.base.leash")
PARENT = """
import subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE)
print(child.pid, child.stdout.readline().decode(), flush=True)
sys.stdin.read()
"""
UP_AND_WAIT = "import signal; print('up', flush=True); signal.pause()"
TIED = f"from trio_runner.base.leash import tie_to_parent; tie_to_parent(); {UP_AND_WAIT}"
FAREWELL = """
import pathlib, signal, sys
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
print("up", flush=True)
signal.sigwait({signal.SIGTERM})
pathlib.Path(sys.argv[1]).write_text("asked to leave")
"""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can change its user")


def orphan(*command: str) -> bool:
    """Start `command` below a parent, SIGKILL the parent, and return whether the child ended within 20 s."""
    parent = subprocess.Popen(
        (sys.executable, "-c", PARENT, *command), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with parent:
        assert parent.stdout is not None
        pid, state = parent.stdout.readline().split()
        assert state == "up"
        child = os.pidfd_open(int(pid))
        try:
            parent.kill()
            ended = bool(select.select([child], [], [], 20)[0])
            if not ended:
                signal.pidfd_send_signal(child, signal.SIGKILL)
        finally:
            os.close(child)
    return ended


def run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False)


def test_our_own_child_dies_with_its_parent() -> None:
    assert orphan(sys.executable, "-c", TIED)


def test_a_foreign_program_dies_with_its_parent() -> None:
    assert orphan(*LEASH, "--", "sh", "-c", "echo up; exec sleep 1000")


@needs_root
def test_the_leash_survives_the_change_of_user() -> None:
    assert orphan(*LEASH, "--user", "nobody", "--", "sh", "-c", "echo up; exec sleep 1000")


def test_the_child_may_be_given_a_signal_that_it_can_handle(tmp_path: Path) -> None:
    farewell = tmp_path / "farewell"
    assert orphan(*LEASH, "--signal", "TERM", "--", sys.executable, "-c", FAREWELL, str(farewell))
    assert farewell.read_text() == "asked to leave"


def test_a_child_whose_parent_is_gone_already_does_not_start(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    mark = tmp_path / "started"
    try:
        late = subprocess.run([*LEASH, "--", "touch", str(mark)], stdout=writer, timeout=PATIENCE_SECONDS, check=False)
    finally:
        os.close(writer)
    assert late.returncode == 1
    assert not mark.exists()


def test_the_program_gets_its_arguments_as_they_are() -> None:
    arguments = ["--user", "root", "--", "--signal=KILL", "a b", ""]
    done = run([*LEASH, "--", sys.executable, "-c", "import sys; print(sys.argv[1:])", *arguments])
    assert done.stdout.strip() == repr(arguments)


def test_it_needs_no_package_and_no_site() -> None:
    done = run([sys.executable, "-I", "-S", leash.__file__, "--", "echo", "hello"])
    assert (done.returncode, done.stdout) == (0, "hello\n")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--", "/nonexistent/program"], 1, "cannot run /nonexistent/program as this user"),
        (["--user", "no-such-user", "--", "true"], 1, "cannot run true as user no-such-user"),
        (["--signal", "SLEEP", "--", "true"], 2, "no signal is called 'SLEEP'"),
        (["--signal", "TERM"], 2, "no program is given"),
    ],
)
def test_the_leash_names_what_it_cannot_do(arguments: list[str], code: int, message: str) -> None:
    done = run([*LEASH, *arguments])
    assert done.returncode == code
    assert message in done.stderr


@needs_root
@pytest.mark.parametrize("user", ["nobody", str(pwd.getpwnam("nobody").pw_uid)])
def test_of_root_only_the_right_to_pass_permissions_is_left(user: str, tmp_path: Path) -> None:
    secret = tmp_path / "closed" / "file"
    secret.parent.mkdir(mode=0o700)
    secret.write_text("reached")
    # `test -r` asks access(2), as PostgreSQL does, which counts capabilities differently from open(2).
    script = f"cat /proc/self/status; test -r {secret} && cat {secret}"
    done = run([*LEASH, "--user", user, "--", "sh", "-c", script])
    status = dict(line.split(":\t", 1) for line in done.stdout.splitlines() if ":\t" in line)
    nobody = pwd.getpwnam("nobody")
    assert status["Uid"].split() == [str(nobody.pw_uid)] * 4
    assert status["Gid"].split() == [str(nobody.pw_gid)] * 4
    assert status["Groups"].split() in ([], [str(nobody.pw_gid)])
    assert {int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")} == {1 << 1}
    assert done.stdout.endswith("reached")

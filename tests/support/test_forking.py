"""A forked process is what an executed one is, as far as the program and a test can see."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from tests.support.harness import Cli, until

LOOK = """
import os, signal, sys
print(os.getpid() == os.getsid(0), os.getcwd(), sorted(os.listdir("/proc/self/fd")), len(os.listdir("/proc/self/task")))
print(sys.argv[1:], os.environ.get("GIVEN"), os.environ.get("COLUMNS"), os.umask(0o22))
print([signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD)])
print(signal.pthread_sigmask(signal.SIG_BLOCK, []), open(0).read())
sys.exit(7)
"""


async def test_it_starts_as_an_executed_one_does(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "below").mkdir()
    seen = []
    for executed in (False, True):
        async with cli.started(
            "--given", "ü", cwd=tmp_path / "below", patch=LOOK, variables={"GIVEN": "too"}, executed=executed
        ) as running:
            done = await running.wait()
        assert (done.code, done.err) == (7, "")
        seen.append(done.out)
    assert seen[0] == seen[1]
    assert str(tmp_path / "below") in seen[0]


async def test_no_two_shuffle_their_tasks_alike(cli: Cli) -> None:
    outs = set()
    for _ in range(2):
        look = "import random, trio\nprint(trio._core._run._r.random(), random.random())\nraise SystemExit(0)"
        async with cli.started(patch=look) as running:
            outs.add((await running.wait()).out)
    assert len(outs) == 2


async def test_a_patch_comes_before_the_modules_that_import_what_it_replaces(cli: Cli) -> None:
    patch = "import trio_runner\ntrio_runner.__version__ = 'patched'"
    async with cli.started("--version", patch=patch) as running:
        assert (await running.wait()).out == "trio-runner patched\n"
    assert "patched" not in (await cli("--version")).out


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_its_death_is_seen_and_its_children_are_of_its_family(cli: Cli, number: signal.Signals) -> None:
    patch = "import subprocess, time\nprint(subprocess.Popen(['sleep', '1000']).pid, flush=True)\ntime.sleep(1000)"
    async with cli.started(patch=patch) as running:

        async def child() -> int:
            return int(running.out() or 0)

        pid = await until(child, described="its child")
        assert {process.pid for process in running.family()} == {running.pid, pid}
        assert not running.exited()
        running.send_signal(number)
        assert (await running.wait()).code == -number
        assert running.exited()
        assert psutil.pid_exists(pid)
    assert not psutil.pid_exists(running.pid)

"""Machines for a fleet: network namespaces with an address each, joined by a bridge to servers on this one's loopback.

In each, a forwarder listens on 127.0.0.1 at the servers' own ports, so the addresses that servers give themselves are
right everywhere, and every byte crosses the machine's one link, which can be cut. `why_not()` names what is missing;
`python -m tests.campaign.fleet_network HOST PORT...` is that forwarder.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

from tests.support.harness import environment

CHUNK_BYTES = 2**16


@dataclass(eq=False, kw_only=True)
class Machine:
    """A network namespace and everything that runs in it."""

    name: str
    link: str
    """The end of its link that lies on the bridge."""
    fate: str = ""
    most_runners: int = 0
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self, arguments: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Run a program in there."""
        with log.open("ab") as file:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env=environment(),
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def plug(self, state: str) -> None:
        """`down` cuts the cable, `up` mends it."""
        _ip("link", "set", self.link, state)

    def signal_all(self, number: signal.Signals) -> None:
        """Signal every process, and then those that were started in the meantime."""
        seen: set[int] = set()
        while new := set(self._pids()) - seen:
            for pid in new:
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    continue
            seen |= new

    def runners(self) -> int:
        """How many runners live in there, by their configs."""
        configs = set()
        for pid in self._pids():
            with suppress(OSError):
                # A process that is about to become a decoder still looks like its runner.
                arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
                if arguments[1:4] == [b"-m", b"trio_runner", b"run"]:
                    configs.add(arguments[4])
        return len(configs)

    def reap(self) -> None:
        """Bury what was started from here and has ended."""
        for process in self.processes:
            process.wait(30)

    def _pids(self) -> list[int]:
        return [int(pid) for pid in _ip("netns", "pids", self.name).split()]


def why_not() -> str:
    """What keeps this machine from having such machines; nothing where it can."""
    if os.geteuid() != 0:
        return "network namespaces take root"
    if shutil.which("ip") is None:
        return "there is no program ip (package iproute2)"
    probe = f"tr-probe-{os.getpid()}"
    tried = subprocess.run(["ip", "netns", "add", probe], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        return f"ip netns: {tried.stderr.strip()}"
    _ip("netns", "del", probe)
    return ""


@asynccontextmanager
async def open_machines(names: Sequence[str], ports: Sequence[int], directory: Path) -> AsyncIterator[list[Machine]]:
    """Machines that reach these ports of this one's loopback; whatever runs in them ends with the block."""
    number = os.getpid() % 10_000
    bridge, subnet = f"trb{number}", f"10.77.{number % 250}"
    machines = [Machine(name=f"tr{number}-{name}", link=f"trl{number}{index}") for index, name in enumerate(names)]
    try:
        _ip("link", "add", bridge, "type", "bridge")
        _ip("addr", "add", f"{subnet}.1/24", "dev", bridge)
        _ip("link", "set", bridge, "up")
        for index, machine in enumerate(machines):
            _ip("netns", "add", machine.name)
            _ip("link", "add", machine.link, "type", "veth", "peer", "name", "uplink", "netns", machine.name)
            _ip("link", "set", machine.link, "master", bridge)
            machine.plug("up")
            inside = partial(_ip, "-n", machine.name)
            inside("addr", "add", f"{subnet}.{index + 2}/24", "dev", "uplink")
            inside("link", "set", "uplink", "up")
            inside("link", "set", "lo", "up")
        async with trio.open_nursery() as nursery:
            for port in ports:
                await nursery.start(partial(trio.serve_tcp, _forwarder("127.0.0.1", port), port, host=f"{subnet}.1"))
            for machine in machines:
                log = directory / f"{machine.name}.forwarder.log"
                machine.start(
                    [sys.executable, "-m", "tests.campaign.fleet_network", f"{subnet}.1", *map(str, ports)], log
                )
            yield machines
            nursery.cancel_scope.cancel()
    finally:
        for machine in machines:
            if machine.name in _ip("netns", "list"):
                machine.signal_all(signal.SIGKILL)
                machine.reap()
                _ip("netns", "del", machine.name)
        _ip("link", "del", bridge)


def _ip(*arguments: str) -> str:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True).stdout


def _forwarder(target: str, port: int) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """Passes on what comes to that port of `target`."""

    async def serve(client: trio.SocketStream) -> None:
        async with client:
            try:
                server = await trio.open_tcp_stream(target, port)
            except OSError:
                # Refused there, refused here.
                return
            async with server, trio.open_nursery() as both:
                both.start_soon(_pump, client, server)
                both.start_soon(_pump, server, client)

    return serve


async def _pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
    try:
        async for data in source:
            await sink.send_all(data)
        await sink.send_eof()
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        await trio.aclose_forcefully(sink)
        await trio.aclose_forcefully(source)


async def _main(target: str, ports: Sequence[int]) -> None:
    async with trio.open_nursery() as nursery:
        for port in ports:
            nursery.start_soon(partial(trio.serve_tcp, _forwarder(target, port), port, host="127.0.0.1"))


if __name__ == "__main__":
    trio.run(_main, sys.argv[1], [int(port) for port in sys.argv[2:]])

"""Ties a child process to its parent: when the parent dies, in whatever way, the kernel ends the child.

Our own Python children call `tie_to_parent()` first thing. A foreign program is started through this module:

    python -m trio_runner.base.leash [--signal NAME] [--user NAME] [--invocation ID] -- PROGRAM [ARGUMENT ...]

It imports the standard library only and can be run by its path, without the package, as `python -I -S
leash.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import pwd
import select
import signal
import sys
from typing import NoReturn

# <linux/prctl.h>, <linux/securebits.h>, <linux/capability.h>
_PR_SET_PDEATHSIG = 1
_PR_SET_SECUREBITS = 28
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_RAISE = 2
_SECBIT_NO_SETUID_FIXUP = 1 << 2
_CAP_DAC_OVERRIDE = 1
_CAPABILITY_VERSION_3 = 0x20080522


def tie_to_parent(signal_number: int = signal.SIGKILL) -> None:
    """Ask the kernel to signal this process when its parent dies; exit at once if that has happened already.

    The kernel watches the *thread* that spawned this process, so the parent must spawn it on a thread that lasts. A
    change of credentials clears the request, so drop privileges before this call (prctl(2), PR_SET_PDEATHSIG).

    Two signs show that the parent died before the request: another process has adopted this one, or standard output is
    a pipe that nobody reads any more. A parent with pid 1 would prove nothing: in a container the real parent may be
    process 1, and a subreaper that adopts orphans is not process 1.

    Systems other than Linux have no such request, and this does nothing there. Children then live until their parent
    stops them or their pipe breaks.
    """
    if sys.platform != "linux":
        return
    parent = os.getppid()
    _prctl(_PR_SET_PDEATHSIG, signal_number)
    if os.getppid() != parent or _stdout_has_no_reader():
        os._exit(1)


def drop_to(user: str) -> None:
    """Become `user` (name or id) for good, keeping nothing of root but the right to pass file permissions.

    Root's checkout or virtual environment often lies under a directory that is closed to all others (/root is 0700).
    After a plain change of user the program could not even be reached there. So CAP_DAC_OVERRIDE is kept as an ambient
    capability, which survives execve and fork. SECBIT_NO_SETUID_FIXUP keeps it through setuid, and makes access(2)
    count it: PostgreSQL looks for its own files with that call. A plain Docker container grants the rights that this
    needs; it would not grant a user or mount namespace.

    Raises:
        LookupError: There is no such user.
        OSError: This process lacks a capability that this takes.
    """
    if user.isdecimal():
        uid = gid = int(user)
        with contextlib.suppress(KeyError):
            gid = pwd.getpwuid(uid).pw_gid
    else:
        entry = pwd.getpwnam(user)
        uid, gid = entry.pw_uid, entry.pw_gid
    _prctl(_PR_SET_SECUREBITS, _SECBIT_NO_SETUID_FIXUP)
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
    # With SECBIT_NO_SETUID_FIXUP, setuid has kept every capability. This call drops all but one.
    _set_capabilities(1 << _CAP_DAC_OVERRIDE)
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE, _CAP_DAC_OVERRIDE)


def _prctl(option: int, *arguments: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    words = [ctypes.c_ulong(word) for word in (*arguments, 0, 0, 0, 0)[:4]]
    if libc.prctl(ctypes.c_int(option), *words) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}): {os.strerror(number)}")


def _set_capabilities(mask: int) -> None:
    """Make the low 32 capabilities in `mask` effective, permitted and inheritable, and give up all others."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(mask, mask, mask, 0, 0, 0)
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.capset(header, data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"capset: {os.strerror(number)}")


def _stdout_has_no_reader() -> bool:
    poller = select.poll()
    poller.register(1, 0)
    return any(event & select.POLLERR for _, event in poller.poll(0))


def _signal(name: str) -> signal.Signals:
    try:
        return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
    except KeyError:
        raise argparse.ArgumentTypeError(f"no signal is called {name!r}") from None


def main(arguments: list[str] | None = None) -> NoReturn:
    """Drop to the user if one is given, tie this process to its parent, and become the program."""
    ours = sys.argv[1:] if arguments is None else arguments
    # Split by hand, because argparse's treatment of `--` before a remainder differs between Python releases.
    command: list[str] = []
    if "--" in ours:
        middle = ours.index("--")
        ours, command = ours[:middle], ours[middle + 1 :]
    parser = argparse.ArgumentParser(
        prog="python -m trio_runner.base.leash",
        usage="%(prog)s [--signal NAME] [--user NAME] [--invocation ID] -- PROGRAM [ARGUMENT ...]",
        description="Run a program that ends when the parent of this process does.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--signal", type=_signal, default=signal.SIGKILL, metavar="NAME", help="the signal that ends it"
    )
    parser.add_argument("--user", metavar="NAME", help="run it as this user (name or id); needs root")
    parser.add_argument("--invocation", metavar="ID", help="name this start of it, in variables, as systemd does")
    options = parser.parse_args(ours)
    if not command:
        parser.error("no program is given after `--`")
    try:
        if options.user is not None:
            drop_to(options.user)
        tie_to_parent(options.signal)
        if options.invocation is not None:
            # The two variables of systemd.exec(5). A process that inherits them sees by the pid that the id is not
            # its own.
            os.environ |= {"INVOCATION_ID": options.invocation, "SYSTEMD_EXEC_PID": str(os.getpid())}
        os.execvp(command[0], command)  # noqa: S606
    except (OSError, LookupError) as error:
        who = "this user" if options.user is None else f"user {options.user}"
        remedy = "" if options.user is None else ". Only root, with its usual capabilities, can do that"
        sys.exit(f"leash: cannot run {command[0]} as {who}: {error}{remedy}")


if __name__ == "__main__":
    main()

"""A real S3 server, versitygw, that serves a folder; built from the Go module proxy where it is not installed."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.certificates import Certificate
from tests.support.harness import PATIENCE_SECONDS, free_port

MODULE = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"
BUILD_SECONDS = 300.0
"""Building takes a minute or two; on a busy machine it took eleven. What go has compiled by then stays in its cache."""

KEY_ID = "AKIATESTTESTTESTTEST"
SECRET_KEY = "s3cr3t/of+the/tests0123456789abcdefghij"


@dataclass(frozen=True, kw_only=True)
class S3Server:
    """Where it listens, and the folder whose subfolders are its buckets."""

    endpoint: str
    folder: Path

    def put(self, bucket: str, key: str, file: Path) -> None:
        """Make an object of the file: a file in the folder is one."""
        path = self.folder / bucket / key
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, path)


def find_versitygw() -> str:
    """The program; built into the user's cache if need be. Skips the test, with the reason, where it cannot be had."""
    if found := os.environ.get("TRIO_RUNNER_TEST_VERSITYGW") or shutil.which("versitygw"):
        return found
    go = shutil.which("go") or shutil.which("/usr/local/go/bin/go")
    if go is None:
        pytest.skip("versitygw is not installed, and there is no go to build it with")
    directory = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "trio_runner-tests"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        program = directory / "versitygw"
        if not program.exists():
            try:
                building = subprocess.run(
                    [go, "install", MODULE],
                    env=os.environ | {"GOBIN": str(directory)},
                    capture_output=True,
                    text=True,
                    timeout=BUILD_SECONDS,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                pytest.skip(f"versitygw was not built within {BUILD_SECONDS:g} s")
            if building.returncode != 0:
                pytest.skip(f"versitygw cannot be built: {building.stderr.strip()[-300:]}")
        return str(program)


@contextmanager
def open_s3(directory: Path, *, certificate: Certificate | None = None) -> Iterator[S3Server]:
    """Serve a new folder below `directory` for as long as the block lasts."""
    program = find_versitygw()
    folder, port = directory / "s3", free_port()
    folder.mkdir()
    tls = [f"--cert={certificate.chain_file}", f"--key={certificate.key_file}"] if certificate else []
    with (directory / "s3.log").open("wb") as log:
        process = subprocess.Popen(
            [program, "--port", f"127.0.0.1:{port}", *tls, "posix", str(folder)],
            stdout=log,
            stderr=log,
            env=os.environ | {"ROOT_ACCESS_KEY": KEY_ID, "ROOT_SECRET_KEY": SECRET_KEY},
        )
        try:
            _wait(process, port, directory / "s3.log")
            yield S3Server(
                endpoint=f"https://localhost:{port}/" if certificate else f"http://127.0.0.1:{port}/", folder=folder
            )
        finally:
            process.kill()
            process.wait()


def _wait(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            time.sleep(0.05)
        else:
            return
    raise AssertionError(f"versitygw does not answer: {log.read_text()}")

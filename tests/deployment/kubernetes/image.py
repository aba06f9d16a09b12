"""Images without a registry: this tree, its packages, its interpreter, as the archive that `ctr images import` reads.

python image.py BINARIES DIRECTORY
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

RUNNER = "docker.io/trio-runner-test/trio-runner:1"
PAUSE = "docker.io/trio-runner-test/pause:1"

REPOSITORY = Path(__file__).parents[3]
VENV = Path("/opt/trio-runner")
SITE_PACKAGES = VENV / f"lib/python{sys.version_info.major}.{sys.version_info.minor}/site-packages"

LAUNCHER = f"""\
#!{VENV}/bin/python
import sys
from trio_runner.cli.main import main
sys.exit(main())
"""

Contents = dict[Path, Path | bytes]
"""What lies where in an image: a file of this machine, or bytes of a program or a text."""


def main(binaries: Path, directory: Path) -> None:
    """Write both images into `directory`."""
    write_image(directory / "pause.tar", PAUSE, {Path("/pause"): binaries / "pause"}, {}, ["/pause"])
    interpreter = Path(os.path.realpath(sys.executable))
    links = {VENV / "bin/python": interpreter}
    write_image(directory / "trio-runner.tar", RUNNER, runner_contents(interpreter), links, ["trio-runner"])


def runner_contents(interpreter: Path) -> Contents:
    """The interpreter where it lies here, with a virtual environment that holds the runner and what it requires."""
    stdlib = Path(sysconfig.get_path("stdlib"))
    contents: Contents = {
        interpreter: interpreter,
        VENV / "pyvenv.cfg": f"home = {interpreter.parent}\n".encode(),
        VENV / "bin/trio-runner": LAUNCHER.encode(),
        Path("/etc/passwd"): b"trio-runner:x:10001:10001::/nonexistent:/bin/false\n",
        **{path: path for path in files_below(stdlib, without={"site-packages", "test", "idlelib", "ensurepip"})},
        **{SITE_PACKAGES / path.relative_to(REPOSITORY): path for path in files_below(REPOSITORY / "trio_runner")},
    }
    for name in required():
        for file in importlib.metadata.distribution(name).files or []:
            path = Path(str(file.locate()))
            if ".." not in file.parts and path.is_file():
                contents[SITE_PACKAGES / file] = path
    programs = [path for path in contents.values() if isinstance(path, Path) and ".so" in path.name]
    for library in libraries([interpreter, *programs]):
        contents.setdefault(library, library)
    return contents


def files_below(directory: Path, without: Iterable[str] = ()) -> Iterator[Path]:
    """Every file, apart from those in a directory that has one of these names."""
    for parent, directories, names in os.walk(directory):
        directories[:] = [name for name in directories if name not in without]
        yield from (Path(parent, name) for name in names)


def required() -> set[str]:
    """What pyproject.toml names as dependencies, and what these require here, and so on."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    found: set[str] = set()
    waiting = [*project["dependencies"], *project["optional-dependencies"]["kubernetes"]]
    while waiting:
        requirement = waiting.pop()
        matched = re.match(r"[\w.-]+", requirement)
        name = matched[0].lower() if matched else ""
        if name in found or "extra ==" in requirement:
            continue
        try:
            waiting += importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            # For another system or Python.
            continue
        found.add(name)
    return found


def libraries(programs: Iterable[Path]) -> set[Path]:
    """The system's shared libraries that these need, the loader included."""
    said = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True, check=False).stdout
    inside = tuple(path for path in (sys.prefix, str(REPOSITORY)))
    found = re.findall(r"(?:=> |^\t)(/\S+) \(0x", said, re.MULTILINE)
    return {Path(os.path.normpath(path)) for path in found if not path.startswith(inside)}


def write_image(path: Path, name: str, contents: Contents, links: dict[Path, Path], command: list[str]) -> None:
    """One layer, its config, and the manifest that `docker save` writes."""
    layer = path.with_suffix(".layer")
    with tarfile.open(layer, "w") as tar:
        for directory in sorted({parent for file in [*contents, *links] for parent in file.parents}):
            add(tar, directory, tarfile.DIRTYPE)
        for file, content in contents.items():
            add(tar, file, tarfile.REGTYPE, content)
        for link, target in links.items():
            add(tar, link, tarfile.SYMTYPE, target=str(target))
    with layer.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    config = {
        "architecture": "amd64" if os.uname().machine == "x86_64" else "arm64",
        "os": "linux",
        "config": {"Cmd": command, "Env": [f"PATH={VENV}/bin:/usr/bin:/bin"], "User": "10001"},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        tar.add(layer, "layer.tar")
        add(tar, Path("/config.json"), tarfile.REGTYPE, json.dumps(config).encode())
        add(tar, Path("/manifest.json"), tarfile.REGTYPE, json.dumps(manifest).encode())
    layer.unlink()


def add(tar: tarfile.TarFile, path: Path, kind: bytes, content: Path | bytes = b"", target: str = "") -> None:
    """Root's, and everybody may read and run it."""
    entry = tarfile.TarInfo(str(path).lstrip("/") or ".")
    entry.type, entry.mode, entry.linkname = kind, 0o755, target
    if isinstance(content, bytes):
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
        return
    with content.open("rb") as opened:
        entry.size = os.fstat(opened.fileno()).st_size
        tar.addfile(entry, opened)


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

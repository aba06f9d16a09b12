"""What is not loaded costs no time: each command imports its own needs and nothing of the others'."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.harness import environment
from trio_runner.cli.parser import make_parser

LIBRARIES = frozenset(
    {
        "aiokafka",
        "asyncio",
        "asyncpg",
        "httpx",
        "msgspec",
        "rich",
        "structlog",
        "tomli",
        "trio",
        "trio_asyncio",
        "typing",
    }
)

# httpx loads rich for a command line of its own, if click is installed, as it is beside the embedded servers.
PROGRAM = """
import json, sys
if "embedded.inference" not in sys.argv[1]:
    sys.modules["click"] = None
before = set(sys.modules)
exec(sys.argv[1])
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded_by(text: str) -> set[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, text], env=environment(), capture_output=True, text=True, check=True
    )
    return set(json.loads(done.stdout.splitlines()[-1]))


def called(*arguments: str) -> set[str]:
    return loaded_by(f"""
from trio_runner.cli.main import main
try:
    main({list(arguments)!r})
except SystemExit:
    pass
""")


def test_the_package_itself_loads_nothing() -> None:
    assert loaded_by("import trio_runner") == {"__future__", "trio_runner"}


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["run", "--help"], ["walk"]], ids=" ".join)
def test_what_prints_and_ends_loads_no_library(arguments: list[str]) -> None:
    loaded = called(*arguments)
    assert loaded & (LIBRARIES - {"typing"}) == set()
    assert {name for name in loaded if name.startswith("trio_runner")} == {
        *("trio_runner", "trio_runner.cli", "trio_runner.cli.main", "trio_runner.cli.parser", "trio_runner.errors"),
    }


def test_validate_loads_the_config_and_no_client(tmp_path: Path) -> None:
    config = tmp_path / "runner.toml"
    config.touch()
    loaded = called("validate", str(config))
    assert loaded & LIBRARIES == {"msgspec", "tomli", "typing"} & loaded
    packages = {name.split(".")[1] for name in loaded if name.startswith("trio_runner.")}
    assert packages == {"base", "cli", "config", "errors"}


FOREIGN = {
    "run": {"rich", "structlog", "kr8s", "onnxruntime", "cv2"},
    "check": {"structlog", "kr8s", "onnxruntime", "cv2"},
    "inspect": {"structlog", "aiokafka", "asyncpg", "httpx", "kr8s", "cv2", "av"},
    "probe": {"structlog", "aiokafka", "asyncpg", "asyncio", "kr8s", "onnxruntime", "cv2"},
    "protocols": {"structlog", "aiokafka", "asyncpg", "asyncio", "httpx", "kr8s", "onnxruntime", "cv2"},
    "show": {"structlog", "aiokafka", "httpx", "kr8s", "cv2"},
    "status": {"structlog", "aiokafka", "httpx", "kr8s", "cv2"},
    "events": {"rich", "structlog", "httpx", "kr8s", "cv2"},
    "init-db": {"rich", "structlog", "httpx", "kr8s", "cv2"},
    "flush-spool": {"rich", "structlog", "httpx", "kr8s", "cv2"},
    "report-death": {"rich", "structlog", "httpx", "kr8s", "cv2"},
    "reap": {"rich", "structlog", "httpx", "kr8s", "cv2"},
    "submit": {"rich", "structlog", "aiokafka", "httpx", "kr8s", "cv2"},
    "stop": {"rich", "structlog", "aiokafka", "httpx", "kr8s", "cv2"},
    "retry": {"rich", "structlog", "aiokafka", "httpx", "kr8s", "cv2"},
    "embedded": {"rich", "structlog", "aiokafka", "asyncpg", "httpx", "kr8s", "cv2"},
    "orchestrate": {"rich", "structlog", "httpx", "kr8s", "cv2"},
    "serve-inference": {"rich", "structlog", "aiokafka", "asyncpg", "httpx", "kr8s"},
}
"""What each verb has no use for, on a machine without a terminal."""


@pytest.mark.parametrize("verb", FOREIGN)
def test_a_verb_does_not_load_what_only_others_need(verb: str) -> None:
    further = {"stop": ["1"], "retry": ["1"], "submit": ["--video", "a.mp4"]}.get(verb, [])
    options = make_parser().parse_args([verb, *([] if verb == "serve-inference" else ["a.toml"]), *further])
    module = options.function.partition(":")[0]
    loaded = loaded_by(f"import {module}, trio_runner.base.logs, trio_runner.config.load")
    assert loaded & FOREIGN[verb] == set()
    assert verb == "orchestrate" or not any(name.startswith("trio_runner.orchestrator") for name in loaded)
    assert verb in {"run", "check"} or "trio_runner.runner.runner" not in loaded


def test_every_verb_names_a_function_that_takes_what_the_parser_gives() -> None:
    (verbs,) = (action.choices for action in make_parser()._actions if action.dest == "==SUPPRESS==" and action.choices)
    assert set(verbs or ()) == {*FOREIGN, "validate"}


def test_the_decoder_child_loads_neither_rules_nor_trio() -> None:
    loaded = loaded_by("import trio_runner.video.decoder.__main__")
    unwanted = {"trio", "trio_asyncio", "asyncio", "tomli", "structlog", "rich", "trio_runner.base.logs"}
    assert loaded & unwanted == set()
    assert {name for name in loaded if name.startswith("trio_runner.config")} <= {
        *("trio_runner.config", "trio_runner.config.kinds", "trio_runner.config.sections", "trio_runner.config.tensor"),
    }

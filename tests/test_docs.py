"""The documents name everything there is, and nothing that is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trio_runner.cli.parser import make_parser
from trio_runner.errors import ErrorCode, Stage
from trio_runner.failure.publication import Publication
from trio_runner.model import Failure
from trio_runner.runner.outcome import Ending, Outcome, exit_code

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONTRACT = (ROOT / "docs" / "contract.md").read_text()
GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text()
DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


ROWS = re.findall(r"^\| `(\w+)` \| (\w+) \| (\d+) \| ([^|]+) \| ([^|]+) \|$", CONTRACT, re.MULTILINE)
"""Of the contract's table of error codes: code, class, exit code, when, what to do."""


def test_the_contract_lists_every_error_code_in_the_order_of_the_model() -> None:
    assert [row[0] for row in ROWS] == [str(code) for code in ErrorCode]


@pytest.mark.parametrize("row", ROWS, ids=[row[0] for row in ROWS])
def test_the_contract_has_each_code_as_the_program_does(row: tuple[str, ...]) -> None:
    (code,) = (code for code in ErrorCode if code == row[0])
    assert row[1] == code.error_class
    if code in {ErrorCode.CONFIG_INVALID, ErrorCode.CLAIM_REFUSED, ErrorCode.SUPERSEDED}:
        assert int(row[2]) == {"config_invalid": 78}.get(code, 79)
        return
    failure = Failure(code=code, type="X", message="x")
    outcome = Outcome(
        ending=Ending.DRAINED if code is ErrorCode.INTERRUPTED else Ending.FAILED,
        claim=None,
        failure=failure,
        # What Kafka did not let us check it does not confirm either.
        event=Publication.RECORDED if code.stage is Stage.KAFKA else Publication.PUBLISHED,
    )
    assert int(row[2]) == exit_code(outcome)


def test_readme_and_contract_list_the_same_exit_codes() -> None:
    # The contract's table is that of `run`; 1 is an exit code of the other verbs.
    for text, codes in ((README, ["0", "1", "64", "65"]), (CONTRACT, ["0", "64", "65"])):
        table = text[text.index("| exit code |") :].partition("\n\n")[0]
        assert re.findall(r"^\| (\d+)", table, re.MULTILINE) == [*codes, "74", "75", "78", "79"]


def test_the_readme_lists_every_verb() -> None:
    shown = set(re.findall(r"^\| `trio-runner ([a-z-]+)", README, re.MULTILINE))
    (verbs,) = (action.choices for action in make_parser()._actions if action.dest == "==SUPPRESS==" and action.choices)
    assert shown == set(verbs or ())


def test_every_package_has_its_row_in_the_architecture() -> None:
    packages = {f"{path.name}/" for path in (ROOT / "trio_runner").iterdir() if (path / "__init__.py").exists()}
    modules = {path.name for path in (ROOT / "trio_runner").glob("*.py")} - {"__init__.py", "__main__.py"}
    rows = ARCHITECTURE[ARCHITECTURE.index("| package |") :].splitlines()
    named = {name for row in rows if row.startswith("|") for name in re.findall(r"`([a-z_./]+)`", row.split("|")[1])}
    assert named == packages | modules


def test_what_shows_a_promise_is_there() -> None:
    """Each promise names a test or a command."""
    rows = re.findall(r"^\| (?!promise|---)(.+) \|$", GUARANTEES, re.MULTILINE)
    assert len(rows) > 10
    source = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    previous = ""
    for row in rows:
        shown = row.rpartition(" | ")[2].replace("the same test", previous)
        previous = shown
        tests, commands = re.findall(r"`(test_\w+)`", shown), re.findall(r"`make (\w+)`", shown)
        assert tests or commands, row
        assert [name for name in tests if f"def {name}(" not in source] == []
        assert [name for name in commands if f"\n{name}:" not in (ROOT / "Makefile").read_text()] == []


def test_the_readmes_docker_section_agrees_with_the_compose_file() -> None:
    compose = (ROOT / "deploy" / "compose.yaml").read_text()
    section = README[README.index("### Docker") :]
    (exec_service,) = set(re.findall(r" exec (\w+)", section))
    assert f"\n  {exec_service}:\n" in compose
    assert set(re.findall(r"\$\{(\w+)", compose)) >= set(re.findall(r"`([A-Z]+)=/", section))
    for path in re.findall(r"/(?:etc/trio-runner|srv/videos)\b", section):
        assert f":{path}" in compose
    (secret,) = set(re.findall(r"deploy/(secrets/[\w-]+)", section))
    assert f"./{secret}" in compose
    (user,) = re.findall(r"^USER (\d+):", DOCKERFILE, re.MULTILINE)
    assert f"-o {user} " in section
    (lock,) = re.findall(r"^ARG LOCK=(\S+)$", DOCKERFILE, re.MULTILINE)
    assert re.findall(r"requirements[\w.-]*", section) == [lock, "requirements.lock"]


def test_no_place_is_left_to_be_filled_in() -> None:
    documents = [README, *(path.read_text() for path in (ROOT / "docs").glob("*.md"))]
    assert not any(re.findall(r"@[A-Z]+@", text) for text in documents)


@pytest.mark.parametrize(
    "document",
    [
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/contract.md",
        "docs/guarantees.md",
        "docs/protocols.md",
        "docs/scaling.md",
        "docs/model/README.md",
        "THIRD_PARTY_NOTICES.md",
    ],
)
def test_the_files_that_documents_name_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in path:
            assert ((ROOT / document).parent / path).exists(), path
    for path in re.findall(r"`((?:deploy|docs|systemd|test_videos|tests|trio_runner)/[\w./@-]*)`", text):
        assert (ROOT / path).exists(), path

"""The documents name everything there is, and nothing that is not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from trio_runner.cli import _parser
from trio_runner.model import ErrorCode

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text()


def test_the_readme_lists_every_error_code_of_a_run() -> None:
    table = README[README.index("| code | when") : README.index("The retry event goes to")]
    named = set(re.findall(r"`([a-z]+(?:_[a-z]+)*)`", table)) & {str(code) for code in ErrorCode}
    # A refused claim is not an attempt's failure: it has an exit code and no event.
    assert named == {str(code) for code in ErrorCode} - {"claim_refused", "superseded"}


def test_the_readme_says_of_each_code_whether_it_is_permanent() -> None:
    for row in re.findall(r"^\| (`[^|]+) \| [^|]+ \| ([^|]+) \|$", README, re.MULTILINE):
        for name in re.findall(r"`(\w+)`", row[0]):
            code = {str(code): code for code in ErrorCode}[name]
            assert ("permanent" in row[1]) == (code.error_class == "permanent"), name


def test_the_readme_lists_every_verb() -> None:
    shown = set(re.findall(r"^\| `trio-runner ([a-z-]+)", README, re.MULTILINE))
    (verbs,) = (action.choices for action in _parser()._actions if action.dest == "==SUPPRESS==" and action.choices)
    assert shown == set(verbs or ())


def test_every_module_has_its_row_in_the_architecture() -> None:
    rooms = {path.stem for path in (ROOT / "trio_runner").glob("*.py")} - {"__init__"}
    rooms |= {f"{path.name}/" for path in (ROOT / "trio_runner").iterdir() if (path / "__init__.py").exists()}
    rows = ARCHITECTURE[ARCHITECTURE.index("| module |") :].splitlines()
    named = {name for row in rows if row.startswith("|") for name in re.findall(r"`([a-z_]+/?)`", row.split("|")[1])}
    assert named - {"sql/"} == rooms


def test_no_place_is_left_to_be_filled_in() -> None:
    assert not re.findall(r"@[A-Z]+@", README)


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md", "docs/architecture.md", "THIRD_PARTY_NOTICES.md"])
def test_the_files_that_documents_name_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    for path in re.findall(r"\]\(([^)#]+)\)", text):
        if "://" not in path:
            assert (ROOT / path).exists(), path
    for path in re.findall(r"`((?:docs|systemd|test_videos|tests|trio_runner)/[\w./@-]*)`", text):
        assert (ROOT / path).exists(), path

"""The verb `protocols`: its table, and what it prints is a config."""

from __future__ import annotations

import json

import msgspec
import pytest
import tomli

from trio_runner.cli.main import main
from trio_runner.cli.protocols import as_toml, protocol_sections
from trio_runner.config.http_presets import preset_names, read_preset
from trio_runner.config.inference import InferenceSection, PredictSection
from trio_runner.errors import ExitCode


def test_protocols_lists_every_protocol_and_every_preset(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols"]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[2:]] == [*protocol_sections(), *preset_names()]
    assert lines[0].split() == ["name", "kind", "for"]
    assert all(len(line.split()) > 3 for line in lines[2:])
    assert {"predict", "http"} <= protocol_sections().keys()


@pytest.mark.parametrize("name", preset_names())
def test_a_preset_is_printed_as_a_config(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols", name]) == ExitCode.OK
    printed = tomli.loads(capsys.readouterr().out)["inference"]
    assert (printed["protocol"], printed["http"]["preset"]) == ("http", name)
    assert printed["url"].startswith("http")


@pytest.mark.parametrize("name", protocol_sections())
def test_a_protocol_is_printed_with_every_key_and_its_default(name: str) -> None:
    section = protocol_sections()[name]
    text = as_toml(name, section)
    # With the comment signs removed it is the defaults.
    keys = tomli.loads("\n".join(line.removeprefix("# ") for line in text.splitlines()))["inference"][name]
    assert keys == json.loads(msgspec.json.encode(getattr(InferenceSection(), name)))
    assert tomli.loads(text)["inference"]["protocol"] == name


def test_predict_is_printed_so() -> None:
    assert as_toml("predict", PredictSection).splitlines() == [
        "[inference]",
        'url = "http://localhost:8000"',
        'protocol = "predict"',
        "",
        "[inference.predict]",
        '# box_format = "xyxy"  # "xyxy" | "xywh" | "cxcywh" | "yxyx" | "xxyy"',
        '# box_scale = ""  # "" | "pixels" | "0-1" | "0-1000"',
        '# path = "/predict"  # a path that begins with /, without blanks, ? and #',
        '# field = "frame"  # 1 to 200 letters, digits or any of . _ : @ -',
    ]


def test_a_name_that_is_neither_is_refused_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["protocols", "robflow"]) == ExitCode.NOTHING
    assert capsys.readouterr().out == "there is no protocol or preset 'robflow'; did you mean 'roboflow'?\n"
    assert main(["protocols", "zzz"]) == ExitCode.NOTHING
    assert "`trio-runner protocols` lists them" in capsys.readouterr().out


def test_the_files_of_presets_have_a_summary_and_an_address() -> None:
    for name in preset_names():
        preset = read_preset(name)
        assert preset.summary
        assert not preset.summary.startswith("#")
        assert preset.suggestions[0].startswith("url = ")

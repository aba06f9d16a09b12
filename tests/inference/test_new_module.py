"""The example of a new protocol module in docs/protocols.md works as it stands there."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.harness import REPOSITORY
from tests.support.hostile_answers import assert_refusal, assert_sound
from tests.support.makers import make_frame
from trio_runner.config.inference import BoxKeys, InferenceSection
from trio_runner.config.kinds import UrlPath
from trio_runner.inference import answer, boxes, protocol
from trio_runner.inference.answer import BadAnswerError
from trio_runner.inference.protocol import Answer, WireProtocol
from trio_runner.model import Detection, Frame


class LinesSection(BoxKeys, frozen=True, kw_only=True):
    path: UrlPath = "/detect"


class WithLines(InferenceSection, frozen=True, kw_only=True):
    lines: LinesSection = LinesSection()


def opened(**keys: Any) -> WireProtocol:
    page = (REPOSITORY / "docs/protocols.md").read_text().partition("## A new module")[2]
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    scope: dict[str, Any] = {
        **vars(answer), **vars(boxes), **vars(protocol),
        "dataclass": dataclass, "Sequence": Sequence, "LinesSection": LinesSection, "Frame": Frame,
        "InferenceSection": WithLines, "__name__": __name__,
    }  # fmt: skip
    exec(code, scope)  # noqa: S102 - our own page
    made: WireProtocol = scope["open_protocol"](msgspec.convert({"lines": keys}, WithLines), ())
    return made


FRAME = make_frame(size=(1280, 960), sent=(640, 480))


def test_the_example_sends_the_picture_and_reads_the_lines() -> None:
    lines = opened(path="/v1/find")
    call = lines.call([FRAME])
    assert (call.method, call.path, b"".join(call.body)) == ("POST", "/v1/find", FRAME.content)
    (reading,) = lines.read(Answer({}, b"person 0.93 10 20 110 220\ncar 0.5 -4 0 64 48\n"), [FRAME])
    assert reading.detections == (
        Detection("person", 0.93, (20.0, 40.0, 220.0, 440.0)),
        Detection("car", 0.5, (0.0, 0.0, 128.0, 96.0)),
    )
    assert reading.clipped == 1
    assert lines.read(Answer({}, b""), [FRAME])[0].detections == ()


@pytest.mark.parametrize(
    "body", [b"person", b"person 0.9 1 2 3", b"person 2 1 2 3 4", b"person nan 1 2 3 4", b"a 1 1 2 3 inf"]
)
def test_the_example_refuses_what_is_no_such_line(body: bytes) -> None:
    with pytest.raises(BadAnswerError, match=r"^\$\[0\]: "):
        opened().read(Answer({}, body), [FRAME])


@given(st.binary(max_size=100) | st.text("ab 019.-\n", max_size=60).map(str.encode))
def test_any_bytes_are_sound_detections_or_a_refusal(body: bytes) -> None:
    try:
        (reading,) = opened().read(Answer({}, body), [FRAME])
    except BadAnswerError as error:
        assert_refusal(str(error))
    else:
        assert_sound(reading.detections, FRAME)

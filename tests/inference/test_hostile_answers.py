"""What an inference service may send in place of an answer, from the decoder up to the real process."""

from __future__ import annotations

import json

import cv2
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support import clips
from tests.support.fake_inference import open_fake
from tests.support.faults import HARMLESS, Fault
from tests.support.hostile_answers import CASES, Case, assert_refusal, assert_sound
from tests.support.makers import make_frame
from trio_runner.config.inference import InferenceSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.inference.answer import BadAnswerError
from trio_runner.inference.client import open_client
from trio_runner.inference.protocol import Answer
from trio_runner.inference.protocols import open_protocol
from trio_runner.model import Detection, Frame

MEBIBYTE = 2**20
FRAME = make_frame()
PROTOCOL = open_protocol(InferenceSection())


def painted(number: int) -> Frame:
    """A frame that the fake can read, of the size that the cases are about."""
    coded, jpeg = cv2.imencode(".jpg", clips.paint(number, (FRAME.width, FRAME.height)))
    assert coded
    return make_frame(number, content=jpeg.tobytes())


def ending(body: bytes) -> tuple[Detection, ...] | str:
    """What the decoder makes of it, proven sound, or its refusal, proven sayable."""
    try:
        (reading,) = PROTOCOL.read(Answer({}, body), [FRAME])
    except BadAnswerError as error:
        assert_refusal(str(error))
        return str(error)
    assert_sound(reading.detections, FRAME)
    return reading.detections


# the decoder


def test_there_are_many_cases_and_no_two_are_one() -> None:
    assert len(CASES) >= 200
    assert len({case.body for case in CASES}) == len({case.name for case in CASES}) == len(CASES)


@pytest.mark.parametrize("case", CASES, ids=lambda case: ascii(case.name)[:60])
def test_a_hostile_answer_has_a_known_end(case: Case) -> None:
    end = ending(case.body)
    if case.refused:
        assert isinstance(end, str), "it was taken"
        assert end.startswith(case.refused)
    else:
        assert end == case.accepted


@given(st.sampled_from(CASES), st.integers(0, 2000), st.binary(max_size=8), st.integers(0, 8))
def test_a_mutation_of_any_case_is_sound_detections_or_a_bad_answer(
    case: Case, place: int, inserted: bytes, removed: int
) -> None:
    ending(case.body[:place] + inserted + case.body[place + removed :])


@given(st.data())
def test_a_key_twice_is_refused_wherever_it_is(data: st.DataObject) -> None:
    """Against the one parser that can be asked about it: json, with a hook that sees the pairs."""
    keys = st.sampled_from(["a", "b:", "\\u0061", 'x\\"', "\\u003a", ":"])
    scalars = st.sampled_from(["1", '":"', '"\\u003a"', "null", '"\\\\"'])
    values = st.recursive(
        scalars,
        lambda inner: (
            st.lists(inner, max_size=3).map(lambda parts: f"[{','.join(parts)}]")
            | st.lists(st.tuples(keys, inner), max_size=3).map(
                lambda pairs: "{" + ", ".join(f'"{key}" : {value}' for key, value in pairs) + "}"
            )
        ),
    )
    body = f'{{"predictions": [], "extra": {data.draw(values)}}}'
    repeated = []

    def look(pairs: list[tuple[str, object]]) -> None:
        repeated.append(len(pairs) != len({key for key, _ in pairs}))

    json.loads(body, object_pairs_hook=look)
    end = ending(body.encode())
    assert "appears twice" in end if any(repeated) else end == (), end


# the client


async def test_every_case_has_the_same_end_when_it_comes_over_http() -> None:
    async with (
        open_fake(plan=lambda request, _: CASES[request].body) as fake,
        open_client(InferenceSection(url=fake.url, in_flight=1, timeout_seconds=60)) as client,
    ):
        for number, case in enumerate(CASES):
            if case.refused:
                with pytest.raises(RunnerError) as caught:
                    await client.infer([painted(number)])
                assert caught.value.code is ErrorCode.INFERENCE_BAD_ANSWER
                assert caught.value.message.startswith(f"{fake.url}: {case.refused}"), case.name
            else:
                assert (await client.infer([painted(number)]))[0].detections == case.accepted, case.name
    assert len(fake.numbers) == len(CASES)


FAULTS: dict[Fault, set[str]] = {
    Fault.STATUS_500: {"inference_unavailable"},
    Fault.STATUS_429: {"inference_unavailable"},
    Fault.STATUS_429_SOON: {"inference_unavailable"},
    Fault.STATUS_429_BARE: {"inference_unavailable"},
    Fault.STATUS_503: {"inference_unavailable"},
    Fault.STATUS_404: {"inference_rejected"},
    Fault.STATUS_413: {"inference_rejected"},
    Fault.FAILURE: {"inference_bad_answer"},
    Fault.REDIRECT: {"inference_rejected"},
    Fault.HANG: {"inference_timeout"},
    Fault.DRIP: {"inference_timeout"},
    Fault.CUT: {"inference_unavailable"},
    Fault.GARBAGE: {"inference_bad_answer"},
    Fault.EMPTY: {"inference_bad_answer"},
    Fault.WRONG_TYPE: {"inference_bad_answer"},
    Fault.NAN: {"inference_bad_answer"},
    Fault.HUGE: {"inference_bad_answer"},
    Fault.BIG: {"inference_bad_answer"},
    Fault.BIG_CHUNKED: {"inference_bad_answer"},
    Fault.GZIP_BOMB: {"inference_bad_answer"},
    Fault.GZIP_BOMB_AS_IDENTITY: {"inference_bad_answer"},
    Fault.NO_CONTENT: {"inference_bad_answer", "inference_rejected"},
    Fault.NO_STATUS_LINE: {"inference_unavailable"},
    Fault.OTHER_PROTOCOL: {"inference_unavailable"},
    Fault.CHUNKED_GARBAGE: {"inference_unavailable"},
    Fault.TWO_LENGTHS: {"inference_unavailable"},
    # Chunked wins (RFC 9112 §6.3), and the body is no chunks.
    Fault.LENGTH_AND_CHUNKED: {"inference_unavailable"},
    Fault.SWITCHED: {"inference_rejected", "inference_unavailable"},
    Fault.BIG_HEADER: {"inference_unavailable"},
    Fault.ENDLESS_HEADERS: {"inference_unavailable"},
    Fault.ENDLESS_INFORMATION: {"inference_timeout", "inference_unavailable"},
}
"""What each fault is called; where HTTP leaves it open, more than one name is right."""


def test_every_fault_of_the_fake_is_here() -> None:
    assert FAULTS.keys() | HARMLESS | {Fault.TWO_ANSWERS} == set(Fault)


@pytest.mark.parametrize("fault", FAULTS, ids=str)
async def test_a_fault_has_a_name_and_the_client_is_well_after_it(fault: Fault) -> None:
    # Where it is not what the test is about, no busy machine runs into it.
    timeout_seconds = 2.0 if "inference_timeout" in FAULTS[fault] else 60.0
    async with open_fake() as elsewhere:
        plan = {0: fault}
        async with (
            open_fake(plan=lambda request, _: plan.get(request), elsewhere=elsewhere.url) as fake,
            open_client(InferenceSection(url=fake.url, timeout_seconds=timeout_seconds)) as client,
        ):
            with pytest.raises(RunnerError) as caught:
                await client.infer([painted(0)])
            assert caught.value.code in FAULTS[fault], caught.value
            assert fake.url in caught.value.message
            result = (await client.infer([painted(1)]))[0]
        assert [found.label for found in result.detections] == ["frame-1"]
        assert elsewhere.numbers == [], "a redirect was followed"
    assert fake.numbers == [0, 1]


@pytest.mark.parametrize("fault", sorted(HARMLESS))
async def test_what_is_only_unusual_is_an_answer_every_time(fault: Fault) -> None:
    async with (
        open_fake(plan=lambda *_: fault) as fake,
        open_client(InferenceSection(url=fake.url, timeout_seconds=60)) as client,
    ):
        for number in range(5):
            result = (await client.infer([painted(number)]))[0]
            assert [found.label for found in result.detections] == [f"frame-{number}"]


async def test_an_answer_too_many_is_not_the_next_frames() -> None:
    """Both come in one piece, so that the second one is at hand when the next question is asked."""
    labels = []
    async with (
        open_fake(plan=lambda request, _: Fault.TWO_ANSWERS if request == 0 else None) as fake,
        open_client(InferenceSection(url=fake.url, in_flight=1, timeout_seconds=60)) as client,
    ):
        for number in range(3):
            try:
                labels.append([found.label for found in (await client.infer([painted(number)]))[0].detections])
            except RunnerError as error:
                labels.append([error.code])
    assert labels[0] in (["frame-0"], ["inference_bad_answer"])
    assert labels[1:] == [["frame-1"], ["frame-2"]]


@pytest.mark.parametrize("size", [1_000, 8 * MEBIBYTE])
async def test_an_answer_that_comes_before_the_body_was_read_is_accepted(size: int) -> None:
    early = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    async with (
        open_fake(early=early) as fake,
        open_client(InferenceSection(url=fake.url, timeout_seconds=60)) as client,
    ):
        with pytest.raises(RunnerError) as caught:
            await client.infer([make_frame(content=bytes(size))])
    assert caught.value.code is ErrorCode.INFERENCE_UNAVAILABLE


# the process

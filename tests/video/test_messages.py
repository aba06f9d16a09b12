from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_runner.errors import ErrorCode
from trio_runner.model import End, Frame, VideoInfo
from trio_runner.video import messages

numbers = st.integers(0, 2**53)
seconds = st.floats(-1e9, 1e9)
all_records: st.SearchStrategy[messages.Record] = st.one_of(
    st.builds(
        messages.Opened,
        st.builds(
            VideoInfo,
            codec=st.text(st.characters(exclude_categories=["Cs"])),
            width=numbers,
            height=numbers,
            fps=seconds,
            declared_frames=st.none() | numbers,
            duration_seconds=st.none() | seconds,
        ),
    ),
    st.builds(messages.FrameHeader, numbers, numbers, seconds, numbers, numbers, numbers, numbers),
    st.builds(messages.Passed, numbers),
    st.builds(End, numbers, numbers, numbers),
    st.builds(messages.Fault, st.sampled_from(ErrorCode), st.text(st.characters(exclude_categories=["Cs"]))),
)


@given(all_records, st.binary(max_size=100))
def test_what_is_packed_comes_out_again(record: messages.Record, body: bytes) -> None:
    packed = messages.pack(record, body)
    header_bytes, body_bytes = messages.unpack_prefix(packed[: messages.PREFIX.size])
    assert body_bytes == len(body)
    assert messages.PREFIX.size + header_bytes == len(packed)
    assert messages.unpack_header(packed[messages.PREFIX.size :]) == record


def test_a_frame_header_has_the_fields_of_a_frame() -> None:
    assert set(messages.FrameHeader.__struct_fields__) | {"content", "last"} == set(Frame.__dataclass_fields__)


@pytest.mark.parametrize(
    ("header", "body"), [(0, 0), (messages.MAX_HEADER_BYTES + 1, 0), (1, messages.MAX_BODY_BYTES + 1)]
)
def test_lengths_that_cannot_be_real_are_refused(header: int, body: int) -> None:
    with pytest.raises(messages.BadRecordError, match=rf"{header} header and {body} body"):
        messages.unpack_prefix(messages.PREFIX.pack(header, body))


def test_the_largest_lengths_are_taken() -> None:
    largest = messages.MAX_HEADER_BYTES, messages.MAX_BODY_BYTES
    assert messages.unpack_prefix(messages.PREFIX.pack(*largest)) == largest


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"null",
        b"{}",
        b'{"type":"opened"}',
        b'{"type":"unknown"}',
        b'{"type":"passed","decoded":1.5}',
        b'{"type":"fault","code":"gremlins","message":""}',
        b'{"type":"fault","code":"decoder_failed","message":"\xff"}',
        b'{"type":"passed","x":' + b"[" * 30_000 + b"]" * 30_000 + b',"decoded":1}',
    ],
    ids=lambda header: repr(header[:40]),
)
def test_what_is_no_record_is_refused(header: bytes) -> None:
    with pytest.raises(messages.BadRecordError):
        messages.unpack_header(header)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_refused(header: bytes) -> None:
    try:
        record = messages.unpack_header(header)
    except messages.BadRecordError:
        return
    assert isinstance(record, messages.Record)

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trio_runner.errors import ErrorCode
from trio_runner.model import End, Frame, VideoInfo
from trio_runner.video import messages as records

numbers = st.integers(0, 2**53)
seconds = st.floats(-1e9, 1e9)
all_records: st.SearchStrategy[records.Record] = st.one_of(
    st.builds(
        records.Opened,
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
    st.builds(records.FrameHeader, numbers, numbers, seconds, numbers, numbers, numbers, numbers),
    st.builds(records.Passed, numbers),
    st.builds(End, numbers, numbers, numbers),
    st.builds(records.Fault, st.sampled_from(ErrorCode), st.text(st.characters(exclude_categories=["Cs"]))),
)


@given(all_records, st.binary(max_size=100))
def test_what_is_packed_comes_out_again(record: records.Record, body: bytes) -> None:
    packed = records.pack(record, body)
    header_bytes, body_bytes = records.unpack_prefix(packed[: records.PREFIX.size])
    assert body_bytes == len(body)
    assert records.PREFIX.size + header_bytes == len(packed)
    assert records.unpack_header(packed[records.PREFIX.size :]) == record


def test_a_frame_header_has_the_fields_of_a_frame() -> None:
    assert set(records.FrameHeader.__struct_fields__) | {"jpeg"} == set(Frame.__dataclass_fields__)


@pytest.mark.parametrize(
    ("header", "body"), [(0, 0), (records.MAX_HEADER_BYTES + 1, 0), (1, records.MAX_BODY_BYTES + 1)]
)
def test_lengths_that_cannot_be_real_are_refused(header: int, body: int) -> None:
    with pytest.raises(records.BadRecordError, match=rf"{header} header and {body} body"):
        records.unpack_prefix(records.PREFIX.pack(header, body))


def test_the_largest_lengths_are_taken() -> None:
    largest = records.MAX_HEADER_BYTES, records.MAX_BODY_BYTES
    assert records.unpack_prefix(records.PREFIX.pack(*largest)) == largest


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
    with pytest.raises(records.BadRecordError):
        records.unpack_header(header)


@given(st.binary(max_size=200))
def test_any_bytes_are_a_record_or_refused(header: bytes) -> None:
    try:
        record = records.unpack_header(header)
    except records.BadRecordError:
        return
    assert isinstance(record, records.Record)

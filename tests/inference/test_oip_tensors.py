"""Tensors of the Open Inference Protocol, in both encodings, round trip and broken."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from tests.support.hostile_answers import assert_refusal
from trio_runner.inference.answer import BadAnswerError
from trio_runner.inference.protocols.oip_tensors import NUMBERS, Tensor, read_tensors, to_binary, to_json

FINITE = {"allow_nan": False, "allow_infinity": False}


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    datatype = draw(st.sampled_from(["BYTES", "BF16", *NUMBERS]))
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=4)))
    name = draw(st.text("abcdef", min_size=1))
    if datatype == "BYTES":
        count = math.prod(shape)
        values = np.empty(count, object)
        values[:] = draw(st.lists(st.binary(max_size=9), min_size=count, max_size=count))
        return Tensor(name, datatype, values.reshape(shape))
    if datatype == "BF16":
        halves = draw(arrays.arrays(np.uint16, shape, elements=st.integers(0, 0x7F7F)))
        return Tensor(name, datatype, np.asarray((halves.astype("<u4") << 16).view("<f4")))
    kind = NUMBERS[datatype]
    elements = FINITE if kind.kind == "f" else {}
    return Tensor(name, datatype, draw(arrays.arrays(kind, shape, elements=elements or None)))


def same(one: Tensor, other: Tensor) -> bool:
    return (one.name, one.datatype, one.shape) == (other.name, other.datatype, other.shape) and bool(
        np.array_equal(one.values, other.values)
    )


@given(st.lists(tensors(), max_size=3, unique_by=lambda tensor: tensor.name))
def test_every_datatype_comes_back_from_the_binary_form(given_tensors: list[Tensor]) -> None:
    described, pieces = [], []
    for tensor in given_tensors:
        described.append(to_binary(tensor)[0])
        pieces += to_binary(tensor)[1]
    read = read_tensors(json.loads(json.dumps(described)), b"".join(pieces), "$.outputs")
    assert list(read) == [tensor.name for tensor in given_tensors]
    assert all(same(tensor, read[tensor.name]) for tensor in given_tensors)


@given(tensors())
def test_every_datatype_comes_back_from_json(tensor: Tensor) -> None:
    described = json.loads(json.dumps(to_json(tensor)))
    if tensor.datatype == "BYTES":
        described["parameters"] = {"content_type": "base64"}
    assert same(tensor, read_tensors([described], b"", "$.outputs")[tensor.name])


@given(tensors().filter(lambda tensor: tensor.datatype != "BYTES"))
def test_nested_data_are_the_same_as_flat(tensor: Tensor) -> None:
    described = to_json(tensor) | {"data": tensor.values.tolist() if tensor.shape else [tensor.values.tolist()]}
    assert same(tensor, read_tensors([json.loads(json.dumps(described))], b"", "$.outputs")[tensor.name])


def test_an_element_of_bytes_keeps_its_trailing_zeros() -> None:
    described = {"name": "a", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 7}}
    read = read_tensors([described], b"\x03\0\0\0a\0\0", "$.outputs")
    assert read["a"].values.tolist() == [b"a\0\0"]


def test_a_truth_value_is_any_byte_but_zero() -> None:
    described = {"name": "a", "datatype": "BOOL", "shape": [3], "parameters": {"binary_data_size": 3}}
    assert read_tensors([described], b"\0\1\xff", "$.outputs")["a"].values.tolist() == [False, True, True]


FOUR = {"name": "a", "datatype": "FP32", "shape": [4]}


@pytest.mark.parametrize(
    ("described", "binary", "part"),
    [
        ({}, b"", "expected a list of tensors"),
        ([3], b"", "[0]: expected an object"),
        ([FOUR | {"name": 3, "data": [1, 2, 3, 4]}], b"", ".name"),
        ([FOUR | {"datatype": "FLOAT", "data": [1, 2, 3, 4]}], b"", '"FLOAT" is not a datatype'),
        ([FOUR | {"shape": "4"}], b"", ".shape"),
        ([FOUR | {"shape": [-1], "data": []}], b"", ".shape: [-1] has a dimension"),
        ([FOUR | {"shape": [2**62, 4]}], b"", ".shape"),
        ([FOUR | {"shape": [2**25, 2**25, 0]}], b"", "more than 67108864 elements"),
        ([FOUR | {"shape": [1] * 17}], b"", ".shape"),
        ([FOUR | {"shape": [True]}], b"", ".shape"),
        ([FOUR | {"data": [1, 2, 3]}], b"", ".data: 3 elements, but the shape [4] has 4"),
        ([FOUR | {"data": [[1, 2], 3]}], b"", "lists beside single elements"),
        ([FOUR | {"data": [1, 2, 3, "4"]}], b"", "an element is no FP32"),
        ([FOUR | {"data": [1, 2, 3, True]}], b"", "an element is no FP32"),
        ([FOUR | {"data": [1, 2, 3, None]}], b"", "an element is no FP32"),
        ([FOUR | {"datatype": "INT8", "data": [1, 2, 3, 128]}], b"", "beyond the range of INT8"),
        ([FOUR | {"datatype": "UINT64", "data": [1, 2, 3, -1]}], b"", "beyond the range of UINT64"),
        ([FOUR | {"datatype": "INT8", "data": [1, 2, 3, 1.5]}], b"", "an element is no INT8"),
        ([FOUR | {"data": [1, 2, 3, 10**400]}], b"", "beyond the range of FP32"),
        ([FOUR | {"datatype": "BYTES", "data": [1, 2, 3, 4]}], b"", "no text"),
        ([FOUR], b"", "0 elements"),
        ([FOUR | {"parameters": []}], b"", "0 elements"),
        ([FOUR | {"parameters": {"binary_data_size": 16}}], b"\0" * 15, "16, and 15 bytes follow"),
        ([FOUR | {"parameters": {"binary_data_size": 15}}], b"\0" * 15, "[4] of FP32 are 16"),
        ([FOUR | {"parameters": {"binary_data_size": -1}}], b"\0" * 15, "-1, and 15 bytes follow"),
        ([FOUR | {"parameters": {"binary_data_size": 16}}], b"\0" * 17, "1 bytes follow the last tensor"),
        ([FOUR | {"parameters": {"binary_data_size": 16}, "data": []}], b"\0" * 16, "in the JSON too"),
        ([FOUR | {"parameters": {"binary_data_size": 16}}] * 2, b"\0" * 32, '"a" occurs twice'),
    ],
)
def test_what_is_no_tensor_is_refused(described: Any, binary: bytes, part: str) -> None:
    with pytest.raises(BadAnswerError) as caught:
        read_tensors(described, binary, "$.outputs")
    assert_refusal(str(caught.value))
    assert part.replace('"', "") in str(caught.value).replace('"', "")


@pytest.mark.parametrize(
    ("binary", "part"),
    [
        (b"\3\0\0", "the length of element 0 is cut off"),
        (b"\3\0\0\0ab", "element 0 has 3 bytes, and 2 follow"),
        (b"\xff\xff\xff\xffab", "element 0 has 4294967295 bytes, and 2 follow"),
        (b"\1\0\0\0a", "1 elements, but the shape has 2"),
        (b"\0\0\0\0" * 3, "3 elements, but the shape has 2"),
    ],
)
def test_elements_of_bytes_that_do_not_add_up_are_refused(binary: bytes, part: str) -> None:
    described = {"name": "a", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": len(binary)}}
    with pytest.raises(BadAnswerError) as caught:
        read_tensors([described], binary, "$.outputs")
    assert part in str(caught.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
)


@given(
    st.lists(
        st.fixed_dictionaries(
            {
                "name": st.sampled_from(["a", "b"]) | JSON,
                "datatype": st.sampled_from(["BYTES", *NUMBERS]) | JSON,
                "shape": st.lists(st.integers(-1, 3), max_size=3) | JSON,
            },
            optional={
                "data": JSON,
                "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(0, 40)}) | JSON,
            },
        )
        | JSON,
        max_size=3,
    ),
    st.binary(max_size=40),
)
def test_whatever_comes_is_tensors_or_a_refusal(described: Any, binary: bytes) -> None:
    try:
        read = read_tensors(described, binary, "$.outputs")
    except BadAnswerError as error:
        assert_refusal(str(error))
    else:
        assert all(tensor.values.size == math.prod(tensor.shape) for tensor in read.values())


def test_half_precision_is_read_as_it_is() -> None:
    described = {"name": "a", "datatype": "FP16", "shape": [1], "parameters": {"binary_data_size": 2}}
    assert read_tensors([described], struct.pack("<e", 0.5), "$.outputs")["a"].values.tolist() == [0.5]

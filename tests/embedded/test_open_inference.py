"""The Open Inference Protocol of the embedded service: the objects of `/predict`, and requests that are not sound."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import cv2
import httpx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.embedded.serving import SHOTS, TEST_VIDEO, Service, encode, error, read_frames, start_service, stop_service
from trio_runner.embedded.inference import MODEL_NAME
from trio_runner.embedded.open_inference import read_request
from trio_runner.embedded.pictures import RequestError

MODEL: Final = f"/v2/models/{MODEL_NAME}"
LENGTH: Final = "Inference-Header-Content-Length"
BINARY: Final = {"binary_data_output": True}
NUMBERS: Final = {"FP32": "<f4", "INT64": "<i8"}
MEBIBYTE: Final = 2**20


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    service = start_service()
    yield service
    assert service.process.poll() is None, "the service died of one of these tests"
    stop_service(service)


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """The middle frame of each shot of the test video, as JPEG."""
    frames = read_frames(TEST_VIDEO, SHOTS[-1]["last_frame"] + 1)
    return [encode(frames[(shot["first_frame"] + shot["last_frame"]) // 2]) for shot in SHOTS]


def of_json(datatype: str, shape: list[int], data: Any, **more: Any) -> dict[str, Any]:
    """The request with one tensor in the JSON, as keywords of httpx."""
    return {"json": {"inputs": [{"name": "image", "datatype": datatype, "shape": shape, "data": data}], **more}}


def of_binary(datatype: str, shape: list[int], content: bytes, **more: Any) -> dict[str, Any]:
    """The request with one tensor behind the JSON, as keywords of httpx."""
    size = {"binary_data_size": len(content)}
    tensor = {"name": "image", "datatype": datatype, "shape": shape, "parameters": size}
    head = json.dumps({"inputs": [tensor], **more}).encode()
    return {"content": head + content, "headers": {LENGTH: str(len(head))}}


def element(content: bytes) -> bytes:
    return struct.pack("<I", len(content)) + content


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def rgb(picture: bytes) -> np.ndarray[Any, Any]:
    decoded = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
    assert decoded is not None
    return cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB)


def infer(service: Service, request: dict[str, Any]) -> httpx.Response:
    response = service.client.post(f"{MODEL}/infer", **request)
    assert response.status_code == 200, response.text
    return response


def tensors(response: httpx.Response) -> dict[str, list[Any]]:
    """The elements of each output, read as the specification says."""
    length = int(response.headers.get(LENGTH, len(response.content)))
    assert response.headers["content-type"] == f"application/{'octet-stream' if LENGTH in response.headers else 'json'}"
    answer, rest = json.loads(response.content[:length]), response.content[length:]
    assert answer["model_name"] == MODEL_NAME
    assert answer["model_version"] == "1"
    found: dict[str, list[Any]] = {}
    for tensor in answer["outputs"]:
        values = tensor.get("data")
        if values is None:
            size = tensor["parameters"]["binary_data_size"]
            content, rest = rest[:size], rest[size:]
            if tensor["datatype"] == "BYTES":
                values = []
                while content:
                    (count,) = struct.unpack_from("<I", content)
                    values.append(content[4 : 4 + count].decode())
                    content = content[4 + count :]
            else:
                values = [float(str(each)) for each in np.frombuffer(content, NUMBERS[tensor["datatype"]])]
        assert len(values) == np.prod(tensor["shape"], dtype=int)
        found[tensor["name"]] = values
    assert rest == b""
    return found


FORMS: Final = {
    "JSON, base64": lambda picture: of_json("BYTES", [1], [text(picture)]),
    "binary": lambda picture: of_binary("BYTES", [1], element(picture)),
    "binary both ways": lambda picture: of_binary("BYTES", [1], element(picture), parameters=BINARY),
    "the picture alone": lambda picture: {"content": picture, "headers": {LENGTH: "0"}},
    "pixels, binary": lambda picture: of_binary("UINT8", [1, *rgb(picture).shape], rgb(picture).tobytes()),
    "pixels, flat": lambda picture: of_json("UINT8", [1, *rgb(picture).shape], rgb(picture).reshape(-1).tolist()),
    "pixels, nested": lambda picture: of_json("UINT8", [1, *rgb(picture).shape], [rgb(picture).tolist()]),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_has_the_objects_of_predict(service: Service, pictures: list[bytes], form: str) -> None:
    names = (Path(__file__).parents[2] / "trio_runner/embedded/models/coco_labels.txt").read_text().splitlines()
    # Two megabytes of JSON take the machine of a test a while.
    some = 1 if form in {"pixels, flat", "pixels, nested"} else len(SHOTS)
    for picture, shot in list(zip(pictures, SHOTS, strict=True))[:some]:
        expected = service.predict(content=picture).json()["predictions"]
        found = tensors(infer(service, FORMS[form](picture)))
        assert list(found) == ["boxes", "scores", "labels", "class_ids"]
        assert found["labels"] == [each["class"] for each in expected]
        assert set(found["labels"]) == set(shot["expect"])
        assert found["scores"] == [each["confidence"] for each in expected]
        assert found["boxes"] == [side for each in expected for side in each["bbox"]]
        assert found["class_ids"] == [names.index(label) for label in found["labels"]]


@pytest.mark.parametrize("parameters", [{}, BINARY])
def test_a_picture_with_nothing_in_it_has_empty_tensors(service: Service, parameters: dict[str, bool]) -> None:
    request = of_binary("UINT8", [1, 64, 64, 3], bytes(64 * 64 * 3), parameters=parameters)
    assert tensors(infer(service, request)) == {"boxes": [], "scores": [], "labels": [], "class_ids": []}


def test_the_outputs_that_are_asked_for_come_in_that_order_and_form(service: Service, pictures: list[bytes]) -> None:
    outputs = [
        {"name": "labels", "parameters": {"binary_data": False}},
        {"name": "scores"},
        {"name": "boxes", "parameters": {"binary_data": True}},
    ]
    request = of_binary("BYTES", [1], element(pictures[0]), outputs=outputs, parameters=BINARY, id="frame-7")
    response = infer(service, request)
    length = int(response.headers[LENGTH])
    answer = json.loads(response.content[:length])
    assert answer["id"] == "frame-7"
    count = len(answer["outputs"][0]["data"])
    assert answer["outputs"] == [
        {"name": "labels", "datatype": "BYTES", "shape": [count], "data": ["person"] * count},
        {"name": "scores", "datatype": "FP32", "shape": [count], "parameters": {"binary_data_size": 4 * count}},
        {"name": "boxes", "datatype": "FP32", "shape": [count, 4], "parameters": {"binary_data_size": 16 * count}},
    ]
    assert len(response.content) == length + 20 * count
    assert list(tensors(response)) == ["labels", "scores", "boxes"]


def test_version_and_unknown_parameters(service: Service, pictures: list[bytes]) -> None:
    request = of_json("BYTES", [1], [text(pictures[0])], parameters={"priority": 3}, outputs=None)
    request["json"]["inputs"][0]["parameters"] = {"content_type": "base64"}
    response = service.client.post(f"{MODEL}/versions/1/infer", **request)
    assert tensors(response) == tensors(infer(service, of_binary("BYTES", [1], element(pictures[0]))))


def test_metadata_and_health(service: Service) -> None:
    def get(path: str) -> Any:
        response = service.client.get(path)
        assert response.status_code == 200
        return response.json()

    assert get("/v2").keys() == {"name", "version", "extensions"}
    assert get("/v2")["extensions"] == ["binary_tensor_data"]
    assert get("/v2/health/live") == {"live": True}
    assert get("/v2/health/ready") == {"ready": True}
    for model in (MODEL, f"{MODEL}/versions/1"):
        assert get(f"{model}/ready") == {"name": MODEL_NAME, "ready": True}
        assert get(model) == {
            "name": MODEL_NAME,
            "versions": ["1"],
            "platform": "onnxruntime",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [1]}],
            "outputs": [
                {"name": "boxes", "datatype": "FP32", "shape": [-1, 4]},
                {"name": "scores", "datatype": "FP32", "shape": [-1]},
                {"name": "labels", "datatype": "BYTES", "shape": [-1]},
                {"name": "class_ids", "datatype": "INT64", "shape": [-1]},
            ],
        }
    index = service.client.post("/v2/repository/index", json={"ready": True})
    assert index.json() == [{"name": MODEL_NAME, "version": "1", "state": "READY", "reason": ""}]


def test_unknown_models_and_wrong_methods(service: Service) -> None:
    for method, path in [("GET", ""), ("GET", "/ready"), ("POST", "/infer")]:
        unknown = service.client.request(method, f"/v2/models/nope{path}")
        assert error(unknown, 404) == "Request for unknown model: 'nope' is not found"
    unknown = service.client.post(f"{MODEL}/versions/2/infer")
    assert error(unknown, 404) == f"Request for unknown model: {MODEL_NAME!r} version '2' is not found"
    assert "no such path '/v2/nope'" in error(service.client.get("/v2/nope"), 404)
    refused = service.client.get(f"{MODEL}/infer")
    assert f"{MODEL}/infer takes POST, not GET" in error(refused, 405)
    assert refused.headers["allow"] == "POST"


def test_the_token_is_asked_for_on_every_path(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s3cret-of-this-test\n")
    service = start_service("--token-file", str(tmp_path / "token"))
    try:
        gets = ["/v2", "/v2/health/live", "/v2/health/ready", MODEL, f"{MODEL}/ready"]
        posts = ["/v2/repository/index", f"{MODEL}/infer", f"{MODEL}/versions/1/infer"]
        request = of_binary("UINT8", [1, 8, 8, 3], bytes(192))
        for method, paths in {"GET": gets, "POST": posts}.items():
            for path in paths:
                assert "token" in error(service.client.request(method, path, content=request["content"]), 401)
                headers = {**request["headers"], "Authorization": "Bearer s3cret-of-this-test"}
                answer = service.client.request(method, path, content=request["content"], headers=headers)
                assert answer.status_code == 200, answer.text
    finally:
        stop_service(service)


def raw(head: Any, content: bytes = b"", length: Any = None) -> dict[str, Any]:
    """The request with exactly these bytes."""
    encoded = head if isinstance(head, bytes) else json.dumps(head).encode()
    return {"content": encoded + content, "headers": {LENGTH: str(len(encoded) if length is None else length)}}


def tensor(**changes: Any) -> dict[str, Any]:
    """The JSON of a request with a tensor that differs in these keys; None leaves a key out."""
    keys = {"name": "image", "datatype": "UINT8", "shape": [1, 2, 2, 3], "data": [0] * 12, **changes}
    return {"inputs": [{name: value for name, value in keys.items() if value is not None}]}


def sized(size: Any, **changes: Any) -> dict[str, Any]:
    return tensor(data=None, parameters={"binary_data_size": size}, **changes)


PICTURE: Final = {"datatype": "BYTES", "shape": [1]}
HUGE: Final = 2**31
HOSTILE: Final[dict[str, tuple[dict[str, Any], str]]] = {
    "an empty body": ({"content": b""}, "failed to parse the request JSON"),
    "no JSON": ({"content": b"\xff\xd8\xff"}, "failed to parse the request JSON"),
    "JSON that is cut off": ({"content": json.dumps(tensor()).encode()[:-9]}, "failed to parse the request JSON"),
    "a list": ({"json": []}, "Expected `object`, got `array`"),
    "JSON nested deeply": ({"content": b'{"inputs":' + b"[" * 10**6}, "failed to parse the request JSON"),
    "data nested deeply": ({"content": b'{"inputs":[{"data":' + b"[" * 10**6}, "failed to parse the request JSON"),
    "a name that is not UTF-8": (raw(b'{"inputs":[{"name":"\xff"}]}'), "invalid start byte"),
    "half a surrogate": (raw(b'{"inputs":[{"name":"\\ud800"}]}'), "failed to parse the request JSON"),
    "no input": ({"json": {"inputs": []}}, "expected 1 input, 'image', but got 0"),
    "two inputs": ({"json": {"inputs": tensor()["inputs"] * 2}}, "expected 1 input, 'image', but got 2"),
    "another input": ({"json": tensor(name="x" * 9999)}, "unexpected inference input 'xxx"),
    "another datatype": ({"json": tensor(datatype="FP32")}, "data-type is 'FP32'; it takes BYTES or UINT8"),
    "another output": ({"json": {**tensor(), "outputs": [{"name": "nope"}]}}, "unexpected inference output 'nope'"),
    "no shape": ({"json": tensor(shape=None)}, "missing required field `shape`"),
    "a negative dimension": ({"json": tensor(shape=[1, -2, -2, 3])}, "Expected `int` >= 0"),
    "a dimension of 5,000 digits": (raw(b'{"inputs":[{"shape":[' + b"9" * 5000 + b"]}]}"), "out of range"),
    "many dimensions": ({"json": tensor(shape=[1] * 17)}, "length <= 16"),
    "four channels": ({"json": tensor(shape=[1, 1, 3, 4])}, "UINT8 [1, height, width, 3]"),
    "channels first": ({"json": tensor(shape=[1, 3, 2, 2])}, "UINT8 [1, height, width, 3]"),
    "two pictures": ({"json": tensor(shape=[2, 1, 2, 3])}, "UINT8 [1, height, width, 3]"),
    "two encoded pictures": ({"json": tensor(**{**PICTURE, "shape": [2]}, data=["", ""])}, "it takes BYTES [1]"),
    "no pixels": ({"json": tensor(shape=[1, 0, HUGE, 3], data=[])}, "0 pixels; it must have at least one"),
    "more pixels than are there": ({"json": tensor(shape=[1, 2, 3, 3])}, "12 bytes of pixels, but the shape"),
    "fewer pixels than are there": ({"json": tensor(shape=[1, 1, 3, 3])}, "12 bytes of pixels, but the shape"),
    "a huge picture": ({"json": tensor(shape=[1, HUGE, HUGE, 3])}, "at most 67108864"),
    "a huge picture in binary": (raw(sized(12, shape=[1, 8192, 8192, 3]), bytes(12)), "12 bytes of pixels"),
    "sides whose product overflows": ({"json": tensor(shape=[1, 2**31, 2**31 - 1, 3])}, "at most 67108864"),
    "no list": ({"json": tensor(data={"0": 1})}, "data of input 'image'"),
    "null": (raw(json.dumps(tensor(data=0)).replace('"data": 0', '"data": null').encode()), "got `null`"),
    "numbers above 255": ({"json": tensor(data=[256] * 12)}, "Expected `int` <= 255"),
    "fractions": ({"json": tensor(data=[0.5] * 12)}, "Expected `int`, got `float`"),
    "numbers of 5,000 digits": (raw(b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,1,1,3],"data":[%b]}]}'
                                    % (b"9" * 5000)), "out of range"),
    "lists with gaps": ({"json": tensor(data=[[], [0] * 12])}, "data of input 'image'"),
    "no base64": ({"json": tensor(**PICTURE, data=["*"])}, "must be the picture in base64"),
    "base64 of no picture": ({"json": tensor(**PICTURE, data=["AAAA"])}, "3 bytes are not a picture"),
    "base64 of nothing": ({"json": tensor(**PICTURE, data=[""])}, "0 bytes are not a picture"),
    "text that is not UTF-8": (
        raw(b'{"inputs":[{"name":"image","datatype":"BYTES","shape":[1],"data":["\xff"]}]}'),
        "invalid start byte",
    ),
    "two elements": ({"json": tensor(**PICTURE, data=["AAAA", "AAAA"])}, "length <= 1"),
    "no data": ({"json": tensor(data=None)}, "must have either data, or binary_data_size"),
    "data twice": (raw(tensor(parameters={"binary_data_size": 12}), bytes(12)), "must have either data, or"),
    "data in shared memory": ({"json": tensor(data=None, parameters={"shared_memory_region": "x"})}, "either data"),
    "fewer bytes than announced": (raw(sized(12), bytes(11)), "11 bytes follow the JSON, but binary_data_size is 12"),
    "more bytes than announced": (raw(sized(12), bytes(13)), "13 bytes follow the JSON, but binary_data_size is 12"),
    "bytes behind data in the JSON": (raw(tensor(), bytes(12)), "12 bytes follow the JSON, but binary_data_size is 0"),
    "a negative size": (raw(sized(-1), bytes(12)), "Expected `int` >= 0"),
    "a size that is text": (raw(sized("12"), bytes(12)), "Expected `int | null`, got `str`"),
    "an element beyond the body": (raw(sized(8, **PICTURE), struct.pack("<I", HUGE) + b"abcd"), "must be one element"),
    "an element without its length": (raw(sized(3, **PICTURE), b"abc"), "must be one element"),
    "bytes behind the element": (raw(sized(9, **PICTURE), element(b"abcd") + b"x"), "must be one element"),
    "a JSON longer than the body": (raw(tensor(), length=10**6), "Inference-Header-Content-Length is '1000000'"),
    "a JSON of 5,000 digits": (raw(tensor(), length="9" * 5000), "Inference-Header-Content-Length is '999"),
    "a negative JSON": (raw(tensor(), length=-1), "Inference-Header-Content-Length is '-1'"),
    "a JSON that is text": (raw(tensor(), length="0x10"), "Inference-Header-Content-Length is '0x10'"),
    "a JSON longer than its text": (raw(sized(12), bytes(12), len(json.dumps(sized(12))) + 3), "failed to parse"),
    "a JSON shorter than its text": (raw(sized(12), bytes(12), len(json.dumps(sized(12))) - 3), "failed to parse"),
    "no picture alone": ({"content": b"abc", "headers": {LENGTH: "0"}}, "3 bytes are not a picture"),
    "nothing alone": ({"content": b"", "headers": {LENGTH: "0"}}, "0 bytes are not a picture"),
    "binary_data that is text": (
        {"json": {**tensor(), "outputs": [{"name": "boxes", "parameters": {"binary_data": "yes"}}]}},
        "Expected `bool | null`",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", HOSTILE)
def test_requests_that_are_not_sound(service: Service, case: str) -> None:
    request, words = HOSTILE[case]
    before = most_memory(service)
    message = error(service.client.post(f"{MODEL}/infer", **request), 400)
    assert words in message
    assert len(message) < 400
    assert most_memory(service) - before < 32 * MEBIBYTE
    assert service.client.get("/healthz").status_code == 200


def most_memory(service: Service) -> int:
    """The most memory that the service has held until now, in bytes."""
    lines = Path(f"/proc/{service.process.pid}/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


@pytest.mark.parametrize("sides", [(1, 1), (1, 2**20), (2**20, 1)])
def test_pixels_of_any_proportions(service: Service, sides: tuple[int, int]) -> None:
    request = of_binary("UINT8", [1, *sides, 3], bytes(3 * sides[0] * sides[1]))
    assert tensors(infer(service, request))["boxes"] == []


SOUND: Final = [
    of_binary("UINT8", [1, 2, 2, 3], bytes(12), outputs=[{"name": "boxes", "parameters": {"binary_data": True}}]),
    of_binary("BYTES", [1], element(encode(np.zeros((2, 2, 3), np.uint8), ".png")), parameters=BINARY),
    {"content": json.dumps(tensor()).encode(), "headers": {LENGTH: ""}},
]


@given(st.sampled_from(SOUND), st.data())
def test_a_request_with_other_bytes_is_read_or_refused(request_: dict[str, Any], data: st.DataObject) -> None:
    body = bytearray(request_["content"])
    length = request_["headers"][LENGTH].encode()
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(body)))
        stop = data.draw(st.integers(start, min(start + 4, len(body))))
        body[start:stop] = data.draw(st.binary(max_size=4) | st.sampled_from([b"[", b"]", b"-", b"1e9", b"null", b'"']))
    length = data.draw(st.just(length) | st.integers(0, len(body)).map(lambda number: str(number).encode()))
    # Any other error would be a status 500.
    with contextlib.suppress(RequestError):
        image, wanted = read_request(length, bytes(body))
        assert image.ndim == 3
        assert image.size
        assert wanted.binary

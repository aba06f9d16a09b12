"""The verb `probe`: one exchange shown, its detections drawn, and services recognised."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tomli
import trio

from tests.cases.inference.described import DESCRIBED, Described
from tests.support import clips
from tests.support.fake_inference import open_fake
from tests.support.harness import free_port
from tests.support.http_service import Request, Service, open_service
from trio_runner.cli.main import main
from trio_runner.cli.probe import probe
from trio_runner.config.load import Config
from trio_runner.errors import ExitCode
from trio_runner.model import Detection
from trio_runner.video.decoder.drawing import MAX_LABEL, drawn

CANARY = "canary-7f3a9c51e2"
ITEM = {"class": "dog", "confidence": 0.5, "bbox": [10, 20, 100, 200]}


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "frame.JPG"
    (tmp_path / "frame.JPG").write_bytes(cv2.imencode(".jpg", np.full((240, 320, 3), 90, np.uint8))[1].tobytes())
    return path


async def probed(
    capsys: pytest.CaptureFixture[str], config: Config, **arguments: Any
) -> tuple[ExitCode, list[str], str]:
    """The exit code, the lines on standard output, and what stands on standard error."""
    given: dict[str, Any] = {"config_path": "a.toml", "settings": (), "image": "", "picture": "", "service": ""}
    code = await probe(config, **(given | {"token_file": ""} | arguments))
    out, err = capsys.readouterr()
    return code, out.splitlines(), err


def configured(url: str, **inference: Any) -> Config:
    return Config().replace(inference={"url": url, **inference})


def pixels(path: Path) -> Any:
    return cv2.imread(str(path))


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def answering(status: int, body: Any, **headers: str) -> Any:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return lambda _: (status, headers, content)


# one exchange


async def test_the_exchange_and_the_detections_are_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    video = clips.pixel_coded(tmp_path / "a.mp4")
    async with open_fake() as fake:
        config = configured(fake.url).replace(video={"path": str(video), "max_width": 160})
        code, out, err = await probed(capsys, config, picture=str(tmp_path / "out.png"))
    assert (code, err) == (ExitCode.OK, "")
    assert fake.numbers == [0], "one frame was sent, and the picture for the drawing was not"
    assert out[0] == f"sent: POST {fake.url}/predict"
    assert out[1].startswith("  frame 0 at 0.000 s, 320 x 240, sent as 160 x 120: ")
    assert any(line.startswith("  content-type: multipart/form-data; boundary=") for line in out)
    assert any(line.startswith("came back: 200") for line in out)
    assert any(line.startswith('  | {"predictions":') for line in out)
    assert any(line.startswith("latency: ") and line.endswith(" ms for the exchange") for line in out)
    assert "mapped by the protocol predict, in pixels of the source:" in out
    assert "1 detection" in out
    assert out[-1] == f"picture: {tmp_path / 'out.png'}, 320 x 240"
    assert pixels(tmp_path / "out.png").shape == (240, 320, 3)
    assert names(tmp_path) == ["a.mp4", "out.png"], "nothing is claimed or stored"


async def test_a_picture_may_be_sent_in_place_of_the_video(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answer = {"predictions": [ITEM, ITEM | {"bbox": [300, 0, 330, 240]}]}
    async with open_service(answering(200, answer)) as service:
        config = configured(service.url).replace(video={"path": "/no/such/video.mp4", "start_seconds": 9.0})
        code, out, _ = await probed(capsys, config, image=str(image), picture=str(tmp_path / "out2.png"))
    assert code == ExitCode.OK
    assert "2 detections, 1 box clipped at the border" in out
    assert [line.split()[1] for line in out if line.startswith("dog") and "10, 20, 100, 200" in line] == ["0.500"]
    picture = pixels(tmp_path / "out2.png")
    # The left side of the box is drawn in the first colour, red.
    assert np.allclose(picture[150, 10], (60, 60, 230), atol=60)
    assert np.allclose(picture[150, 60], 90, atol=10)


async def test_a_language_model_is_probed_like_any_service(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = '```json\n[{"label": "dog", "bbox_2d": [0, 0, 500, 1000]}]\n```'
    answer = {"choices": [{"message": {"content": content}, "finish_reason": "stop"}], "usage": {"total_tokens": 777}}
    async with open_service(answering(200, answer)) as service:
        config = configured(service.url, protocol="openai", openai={"dialect": "qwen3-vl", "model": "m"})
        code, out, _ = await probed(capsys, config, image=str(image))
    assert code == ExitCode.OK
    assert out[0] == f"sent: POST {service.url}/v1/chat/completions"
    assert any("0, 0, 160, 240" in line and "none" in line for line in out)
    assert "1 detection, 777 tokens" in out
    assert json.loads(service.requests[0].body)["model"] == "m"


def as_oip(shape: list[int]) -> Any:
    def respond(request: Request) -> tuple[int, dict[str, str], bytes]:
        outputs = [
            {"name": "boxes", "datatype": "FP32", "shape": [1, 4], "data": [6.4, 12, 12.8, 44]},
            {"name": "scores", "datatype": "FP32", "shape": [1], "data": [0.5]},
            {"name": "labels", "datatype": "BYTES", "shape": [1], "data": ["dog"]},
        ]
        described = {
            "name": "m",
            "inputs": [{"name": "images", "datatype": "FP32", "shape": shape}],
            "outputs": [{**output, "shape": [-1, 4] if output["name"] == "boxes" else [-1]} for output in outputs],
        }
        answer = {"model_name": "m", "outputs": outputs} if request.method == "POST" else described
        return 200, {"Content-Type": "application/json"}, json.dumps(answer).encode()

    return respond


async def test_a_tensor_is_sent_and_a_picture_drawn(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tensor = {"datatype": "FP32", "width": 64, "height": 64}
    oip = {"model": "m", "input": "images", "encoding": "json", "tensor": tensor}
    async with open_service(as_oip([1, 3, 64, 64])) as service:
        config = configured(service.url, protocol="oip", oip=oip)
        code, out, _ = await probed(capsys, config, image=str(image), picture=str(tmp_path / "out.png"))
    assert code == ExitCode.OK, out[-1]
    assert [request.method for request in service.requests] == ["GET", "POST"]
    assert [line for line in out if line.startswith("sent")] == [f"sent: POST {service.url}/v2/models/m/infer"]
    # 320 x 240 becomes 64 x 48 with 8 rows of padding above.
    assert "320 x 240, sent as 64 x 64, in it the picture at (0, 8, 64, 48): 49152 bytes" in out[1]
    assert any("32, 20, 64, 180" in line for line in out)
    assert pixels(tmp_path / "out.png").shape == (240, 320, 3)


async def test_a_config_that_does_not_fit_the_model_shows_the_description(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    oip = {"model": "m", "input": "pictures", "encoding": "json"}
    async with open_service(as_oip([1, 3, 64, 64])) as service:
        code, out, _ = await probed(capsys, configured(service.url, protocol="oip", oip=oip), image=str(image))
    assert code == ExitCode.NOTHING
    assert out[0] == f"sent: GET {service.url}/v2/models/m"
    assert "pictures" in out[-1]


async def test_settings_of_the_command_line_count(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with open_service(answering(200, {"predictions": [ITEM | {"bbox": [0, 0, 0.5, 1]}]})) as service:
        settings = ["inference.predict.box_scale=0-1", "inference.predict.path=/v2"]
        code, out, _ = await probed(capsys, configured(service.url), image=str(image), settings=settings)
    assert (code, service.requests[0].path) == (ExitCode.OK, "/v2")
    assert any("0, 0, 160, 240" in line for line in out)


# what goes wrong, and which setting changes it


@pytest.mark.parametrize(
    ("status", "body", "code", "remedy"),
    [
        (401, {"detail": "who are you?"}, "inference_rejected", "inference.token_file"),
        (404, {"detail": "Not Found"}, "inference_rejected", "inference.url"),
        (503, b"loading", "inference_unavailable", "503"),
        (200, {"predictions": [ITEM | {"bbox": [0.1, 0.1, 0.9, 0.9]}]}, "inference_bad_answer", 'box_scale = "0-1"'),
        (200, b"<html>It works!</html>", "inference_bad_answer", "not JSON"),
    ],
)
async def test_a_failure_shows_what_came_back_and_names_the_setting(
    image: Path, capsys: pytest.CaptureFixture[str], status: int, body: Any, code: str, remedy: str
) -> None:
    async with open_service(answering(status, body)) as service:
        exit_code, out, _ = await probed(capsys, configured(service.url), image=str(image))
    assert exit_code == ExitCode.NOTHING
    assert any(line.startswith(f"came back: {status}") for line in out)
    assert any(line.startswith("  | ") for line in out)
    assert out[-1].startswith(f"{code}: ")
    assert remedy in out[-1]


async def test_a_service_that_is_not_there_is_named(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    code, out, _ = await probed(capsys, configured(url), image=str(image))
    assert (code, len(out)) == (ExitCode.NOTHING, 1)
    assert out[0].startswith(f"inference_unreachable: {url}: ")


async def test_an_exchange_that_breaks_off_shows_what_was_sent(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def hang_up(_: Request) -> tuple[int, dict[str, str], bytes]:
        raise trio.BrokenResourceError

    async with open_service(hang_up) as service:
        code, out, _ = await probed(capsys, configured(service.url), image=str(image))
    assert code == ExitCode.NOTHING
    assert out[0].startswith("sent: POST ")
    assert "came back: nothing" in out
    assert out[-1].startswith("inference_unavailable: ")


@pytest.mark.parametrize(("content", "why"), [(None, "cannot read"), (b"no picture", "a.png is no whole picture")])
async def test_a_file_that_is_no_picture_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, why: str
) -> None:
    path = tmp_path / "a.png"
    if content is not None:
        path.write_bytes(content)
    code, out, _ = await probed(capsys, configured("http://127.0.0.1:1"), image=str(path))
    assert code == ExitCode.NOTHING
    assert out[-1].startswith("video_")
    assert why in out[-1]


async def test_what_is_no_text_and_what_is_long_is_shown_in_part(
    image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_service(answering(500, b"\x89PNG\xff" * 100)) as service:
        _, out, _ = await probed(capsys, configured(service.url), image=str(image))
    assert any(line.startswith("  | 89 50 4e 47 ff") and line.endswith("which is no text") for line in out)
    async with open_service(answering(500, "é".encode() * 100_000)) as service:
        _, out, _ = await probed(capsys, configured(service.url), image=str(image))
    assert "  | … and more" in out
    assert len(out) < 50


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["a.toml", "--detect", "http://h"],
        ["a.toml", "--token-file", "x"],
        ["a.toml", "-o", "x.gif"],
        ["a.toml", "-o", "/no/such/directory/x.png"],
        ["--detect", "http://h", "--image", "x.png"],
        ["--detect", "http://h", "--set", "video.stride=2"],
    ],
    ids=" ".join,
)
def test_wrong_usage_is_refused(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.toml").touch()
    assert main(["probe", *arguments]) == ExitCode.USAGE
    assert "trio-runner probe: " in capsys.readouterr().err


# secrets


async def test_no_secret_is_printed_not_even_one_that_the_service_repeats(
    tmp_path: Path, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("token", "header", "query", "short")
    files = {name: tmp_path / name for name in names}
    for name, file in files.items():
        file.write_text("abc" if name == "short" else f"{CANARY}-{name}")
        file.chmod(0o600)

    def repeat(request: Request) -> tuple[int, dict[str, str], bytes]:
        said = f"{request.headers['authorization']} {request.headers['x-key']} {request.path}"
        answer = {"predictions": [ITEM | {"class": f"{CANARY}-token"}], "said": said}
        return 200, {"X-Said": said, "Set-Cookie": "session=abc"}, json.dumps(answer).encode()

    async with open_service(repeat) as service:
        config = configured(
            service.url,
            token_file=str(files["token"]),
            header_files={"X-Key": str(files["header"]), "X-Short": str(files["short"])},
            query_files={"key": str(files["query"])},
            allow_plaintext_token=True,
        )
        code, out, err = await probed(capsys, config, image=str(image))
    assert code == ExitCode.OK
    assert CANARY in service.requests[0].path, "the service was given it"
    shown = "\n".join(out)
    assert CANARY not in shown + err
    assert "  x-short: ***" in out
    assert "  set-cookie: ***" in out
    assert "  authorization: ***" in out


# the picture


def test_whatever_is_detected_is_drawn_inside_the_picture() -> None:
    for size in ((1, 1), (30, 40), (1080, 1920)):
        height, width = size
        picture = cv2.imencode(".jpg", np.full((*size, 3), 90, np.uint8))[1].tobytes()
        detections = [
            Detection("person", 0.9, (0.0, 0.0, float(width), float(height))),
            Detection("ü" * 3 * MAX_LABEL, None, (width - 1.0, height - 1.0, float(width), float(height))),
            Detection("rain", None, None, None, {"text": "much\nrain"}),
            Detection("pose", None, None, None, {"keypoints": [[1, 2, None], [-5, 9, 0.5]]}),
            Detection("mask", None, None, None, {"mask": {"polygon": [[0, 0], [5, 5], [0.5, 9]]}}),
            Detection("mask", None, None, None, {"mask": {"rle": {"size": [1, 1], "counts": [1]}}}),
        ]
        image: Any = cv2.imdecode(np.frombuffer(drawn(picture, detections, ".png"), np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (height, width, 3)


# what a service is


def described(case: Described) -> Any:
    replies = case.replies()

    def respond(request: Request) -> tuple[int, dict[str, str], bytes]:
        reply = replies.get(f"{request.method} {request.path}")
        return (reply.status, {}, reply.body) if reply else (404, {}, b'{"detail":"Not Found"}')

    return respond


async def detected(
    capsys: pytest.CaptureFixture[str], service: Service, **arguments: Any
) -> tuple[ExitCode, list[str], str]:
    return await probed(capsys, Config(), config_path="", service=service.url, **arguments)


@pytest.mark.parametrize("case", DESCRIBED, ids=lambda case: case.name)
async def test_a_service_is_asked_what_it_is(case: Described, capsys: pytest.CaptureFixture[str]) -> None:
    async with open_service(described(case)) as service:
        code, out, err = await detected(capsys, service)
    assert (code, err) == (ExitCode.OK, "")
    assert out[0] == f"# {service.url}: {case.what}"
    assert tomli.loads("\n".join(out))["inference"]["url"] == service.url
    assert set(case.lines) <= set(out)
    assert not any(b"\xff\xd8" in request.body for request in service.requests), "no picture is sent"


async def test_the_suggested_command_names_the_program_as_it_was_called(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["/opt/somewhere/trio-runner"])
    async with open_service(described(DESCRIBED[0])) as service:
        _, out, _ = await detected(capsys, service)
    assert out[-1] == "# try it: /opt/somewhere/trio-runner probe CONFIG --image FILE -o boxes.png"


async def test_an_unknown_service_is_told_apart_with_what_was_asked(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_service(answering(404, b"")) as service:
        code, out, _ = await detected(capsys, service)
    assert code == ExitCode.NOTHING
    assert out[0] == f"{service.url} was not recognised. It was asked:"
    assert "  GET /v2: 404" in out
    assert 'inference.protocol = "http"' in out[-1]


async def test_a_token_is_sent_and_not_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "token"
    file.write_text(CANARY)
    file.chmod(0o600)

    def respond(request: Request) -> tuple[int, dict[str, str], bytes]:
        if request.headers.get("authorization") != f"Bearer {CANARY}":
            return 401, {}, b""
        answer = {"object": "list", "data": [{"id": CANARY}]} if request.path == "/v1/models" else {}
        return 200, {}, json.dumps(answer).encode()

    async with open_service(respond) as service:
        refused, out, _ = await detected(capsys, service)
        assert refused == ExitCode.NOTHING
        assert "--token-file" in out[-1]
        code, out, err = await detected(capsys, service, token_file=str(file))
    assert code == ExitCode.OK
    assert f'token_file = "{file}"' in out
    assert "allow_plaintext_token = true" in out
    assert CANARY not in "\n".join(out) + err
    code, out, _ = await detected(capsys, service, token_file="/no/such/file")
    assert code == ExitCode.NOTHING
    assert "/no/such/file" in out[0]


async def test_a_service_that_does_not_answer_is_asked_once(capsys: pytest.CaptureFixture[str]) -> None:
    service = Service(answering(200, {}), url=f"http://127.0.0.1:{free_port()}")
    code, out, _ = await detected(capsys, service)
    assert code == ExitCode.NOTHING
    assert out == [f"inference_unreachable: {service.url}: nothing listens there"]


async def test_an_endless_answer_is_read_in_part(capsys: pytest.CaptureFixture[str]) -> None:
    body = b'{"paths": {"' + b"x" * 3 * 2**20 + b'": {}}}'
    async with open_service(answering(200, body)) as service:
        code, _, _ = await detected(capsys, service)
    assert code == ExitCode.NOTHING


def test_an_address_that_is_none_is_refused_as_in_a_config(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["probe", "--detect", "nonsense"]) == ExitCode.CONFIG
    out, err = capsys.readouterr()
    assert err.startswith("trio-runner probe: --detect: inference.url: not a usable address")
    assert "--set" not in err
    assert out == ""


def test_a_config_and_an_address_exclude_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.toml").touch()
    assert main(["probe", str(tmp_path / "a.toml"), "--detect", "http://h"]) == ExitCode.USAGE
    assert capsys.readouterr().err == "trio-runner probe: either a config or --detect, not both\n"


@pytest.mark.parametrize("ending", ["/v1", "/v1/", "/v2"])
async def test_an_address_that_ends_with_a_version_is_tried_without_it(
    ending: str, capsys: pytest.CaptureFixture[str]
) -> None:
    case = next(case for case in DESCRIBED if "GET /v1/models" in case.answers and "chat API" in case.what)
    async with open_service(described(case)) as service:
        code, out, _ = await probed(capsys, Config(), config_path="", service=service.url + ending)
    assert code == ExitCode.OK
    assert out[0] == f"# {service.url}: {case.what}"
    assert tomli.loads("\n".join(out))["inference"]["url"] == service.url


async def test_a_name_that_is_no_picture_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "README.md"
    path.write_text("no picture")
    code, out, _ = await probed(capsys, configured("http://127.0.0.1:1"), image=str(path))
    assert code == ExitCode.NOTHING
    assert out == [f"video_no_frames: --image: {path} is no whole picture in JPEG, PNG, WebP, BMP or TIFF"]

"""The rules of `[inference.oip]`: each names the key and its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from trio_runner.config.errors import ConfigError
from trio_runner.config.load import Config, parse_config
from trio_runner.config.tensor import MAX_TENSOR_BYTES
from trio_runner.video.messages import MAX_BODY_BYTES

TENSOR = '[inference.oip.tensor]\ndatatype = "FP32"\nwidth = 640\nheight = 640\n'


def parsed(oip: str, *, inference: str = "", rest: str = "") -> Config:
    text = f'[inference]\nurl = "http://127.0.0.1:1"\nprotocol = "oip"\n{inference}[inference.oip]\n{oip}{rest}'
    return parse_config(text, base_dir=Path("/somewhere"), environ={})


@pytest.mark.parametrize(
    ("oip", "inference", "rest", "key", "line"),
    [
        ("", "", "", "inference.oip.model", 3),
        ('model = "m"\nmetadata = false\n', "", "", "inference.oip.input", 6),
        ('model = "m"\nboxes = ""\ndecode = "yolo"\n', "", "", "inference.oip.boxes", 6),
        ('model = "m"\ndecode = "detr"\nscores = ""\n', "", "", "inference.oip.scores", 7),
        ('model = "m"\ndecode = "detr"\nactivation = "softmax"\n', "", "", "inference.labels", 6),
        ('model = "m"\ndecode = "yolo"\n', "", "", "inference.labels", 6),
        ('model = "m"\ndecode = "yolo"\nyolo_head = "v8"\n', "", "", "inference.labels", 6),
        ('model = "m"\nparameters = { sequence_id = 3 }\n', "", "", "inference.oip.parameters", 6),
        ('model = "m"\nparameters = { a = [1] }\n', "", "", "inference.oip.parameters", 6),
        ('model = "m"\nparameters = { a = nan }\n', "", "", "inference.oip.parameters", 6),
        ('model = "m"\nsequence = true\n', "", "", "inference.in_flight", 6),
        ('model = "m"\nsequence = true\n', "in_flight = 1\nretry_seconds = 5\n", "", "inference.retry_seconds", 5),
        ('model = "m"\nsequence = true\nbatch = 2\n', "in_flight = 1\n", "", "inference.oip.batch", 8),
        (
            'model = "m"\n',
            "",
            '[inference.oip.tensor]\ndatatype = "UINT8"\nheight = 2\n',
            "inference.oip.tensor.width",
            7,
        ),
        ('model = "m"\n', "", TENSOR.replace("640", "8000"), "inference.oip.tensor.width", 8),
        ('model = "m"\nbatch = 8\n', "", TENSOR, "inference.oip.batch", 6),
        ('model = "m"\n', "", TENSOR + "[video]\nmax_width = 640\n", "video.max_width", 11),
        ('model = "m"\n', "", TENSOR + "[video]\njpeg_quality = 80\n", "video.jpeg_quality", 11),
        ('model = "m"\n', "", TENSOR.replace("FP32", "UINT8") + "std = [2, 2, 2]\n", "inference.oip.tensor.std", 10),
        ('model = "m"\n', "", TENSOR + "std = [0, 2, 2]\n", "inference.oip.tensor.std", 10),
        ('model = "m"\n', "", TENSOR + "mean = [0, 2]\n", "inference.oip.tensor.mean", 10),
    ],
)
def test_what_does_not_go_together_is_named(oip: str, inference: str, rest: str, key: str, line: int) -> None:
    with pytest.raises(ConfigError) as caught:
        parsed(oip, inference=inference, rest=rest)
    assert (key, line) in [(problem.key, problem.line) for problem in caught.value.problems]


def test_a_raw_head_has_names_unless_the_model_leaves_one_box_for_each_object() -> None:
    for decode in ("yolo", "detr"):
        parsed(f'model = "m"\ndecode = "{decode}"\n', inference='labels = ["a"]\n')
        parsed(f'model = "m"\ndecode = "{decode}"\n', inference='labels_file = "names.txt"\n')
    parsed('model = "m"\ndecode = "yolo"\nyolo_head = "end-to-end"\n')


def test_a_tensor_is_made_for_this_protocol_alone() -> None:
    config = parsed('model = "m"\n', rest=TENSOR + "mean = [0, 0.5, 1]\n")
    assert config.inference.tensor == config.inference.oip.tensor
    assert config.inference.oip.tensor.size == 640 * 640 * 3 * 4
    assert parsed('model = "m"\n').inference.tensor is None
    other = parsed('model = "m"\n', rest=TENSOR).replace(inference={"protocol": "predict"})
    assert other.inference.tensor is None


def test_the_largest_tensor_is_the_largest_record() -> None:
    assert MAX_TENSOR_BYTES == MAX_BODY_BYTES

"""What language models and the services that run them answer, with the place where each was seen."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """What a service answered about a picture, and the detections it stands for, or how the refusal ends."""

    name: str
    source: str
    content: Any
    size: tuple[int, int] = (640, 480)
    config: dict[str, Any] = field(default_factory=dict)
    choice: dict[str, Any] = field(default_factory=dict)
    message: dict[str, Any] = field(default_factory=dict)
    accepted: tuple[tuple[str, tuple[float, float, float, float] | None], ...] | None = None
    clipped: int = 0
    refused: str = ""

    def answer(self) -> dict[str, Any]:
        """The whole answer as the service sends it."""
        message = {"role": "assistant", "content": self.content, **self.message}
        return {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1739812345,
            "model": "m",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop", "logprobs": None, **self.choice}],
            "usage": {"prompt_tokens": 1250, "completion_tokens": 50, "total_tokens": 1300},
        }


RECORDED = (
    Recorded(
        name="Qwen2.5-VL beyond the border of the resized picture",
        source="https://github.com/QwenLM/Qwen3-VL/issues/1035 (368×434, resized to 364×448)",
        content='```json\n[\n\t{"bbox_2d": [19, 300, 154, 476], "label": "metal head of the trowel"}\n]\n```',
        size=(368, 434),
        config={"dialect": "qwen2.5-vl"},
        accepted=(("metal head of the trowel", (19.21, 290.62, 155.69, 434.0)),),
        clipped=1,
    ),
    Recorded(
        name="Qwen2.5-VL with a second label",
        source="https://github.com/QwenLM/Qwen3-VL/issues/947 (the form that the prompt there asks for)",
        content='[{"bbox_2d": [14, 28, 140, 280], "label": "person", "sub_label": "in a red coat"}]',
        size=(1400, 840),
        config={"dialect": "qwen2.5-vl"},
        accepted=(("person", (14.0, 28.0, 140.0, 280.0)),),
    ),
    Recorded(
        name="Qwen2.5-VL, one object and no list",
        source="https://github.com/QwenLM/Qwen3-VL/issues/773 (the form that the prompt there asks for)",
        content='{"bbox_2d": [28, 28, 56, 84], "label": "cars"}',
        size=(1400, 840),
        config={"dialect": "qwen2.5-vl"},
        accepted=(("cars", (28.0, 28.0, 56.0, 84.0)),),
    ),
    Recorded(
        name="Qwen3-VL relative to 1000",
        source="https://github.com/QwenLM/Qwen3-VL/issues/1741, cookbooks/2d_grounding.ipynb of the repository",
        content='```json\n[\n  {"bbox_2d": [250, 400, 999, 1004], "label": "person"}\n]\n```',
        size=(1920, 1080),
        config={"dialect": "qwen3-vl"},
        accepted=(("person", (480.0, 432.0, 1918.08, 1080.0)),),
        clipped=1,
    ),
    Recorded(
        name="Gemini, y before x",
        source="https://ai.google.dev/gemini-api/docs/image-understanding (box_2d, ymin xmin ymax xmax, 0-1000)",
        content='```json\n[\n  {"box_2d": [100, 200, 500, 400], "label": "dog"}\n]\n```',
        size=(1000, 500),
        config={"dialect": "gemini"},
        accepted=(("dog", (200.0, 50.0, 400.0, 250.0)),),
    ),
    Recorded(
        name="thinking in the content",
        source="https://github.com/vllm-project/vllm/issues/13375 (no reasoning parser)",
        content='<think>\nA car: [1]? {no}\n</think>\n\n{"detections": [{"bbox": [10, 20, 30, 40], "label": "car"}]}',
        accepted=(("car", (10.0, 20.0, 30.0, 40.0)),),
    ),
    Recorded(
        name="thinking that the prompt began",
        source="https://github.com/vllm-project/vllm/issues/12468 (the chat template ends with <think>)",
        content='It shows nothing.\n</think>\n{"detections": []}',
        accepted=(),
    ),
    Recorded(
        name="thinking, cut off",
        source="https://github.com/vllm-project/vllm/issues/52640",
        content=None,
        choice={"finish_reason": "length"},
        message={"reasoning": "The picture shows"},
        refused='$.choices[0].finish_reason: "length": the answer was cut off: raise inference.openai.max_tokens',
    ),
    Recorded(
        name="nothing but thinking",
        source="https://github.com/vllm-project/vllm/issues/17357",
        content=None,
        message={"reasoning_content": '{"detections": []}'},
        refused="$.choices[0].message.content: empty, although the model thought",
    ),
    Recorded(
        name="no content at a clean stop",
        source="https://github.com/vllm-project/vllm/issues/45736",
        content=None,
        refused="$.choices[0].message.content: empty",
    ),
    Recorded(
        name="a filter",
        source="https://www.developersdigest.tech/errors/api/azure-openai/200-finish-reason-content-filter",
        content="",
        choice={"finish_reason": "content_filter"},
        refused="$.choices[0].finish_reason: content_filter: the service gave no whole answer",
    ),
    Recorded(
        name="a refusal",
        source="https://platform.openai.com/docs/guides/structured-outputs (refusals)",
        content=None,
        message={"refusal": "I'm sorry, I cannot assist with that request."},
        refused="$.choices[0].message.refusal: the model refused: I'm sorry, I cannot",
    ),
    Recorded(
        name="a provider that failed half-way",
        source="https://github.com/genkit-ai/genkit/pull/6259, https://github.com/xyOz-dev/Saturn/pull/43 (OpenRouter)",
        content='{"detections": []}',
        choice={"finish_reason": "error", "error": {"code": 502, "message": "Provider disconnected"}},
        refused="$.choices[0].error: the service reports a failure: Provider disconnected",
    ),
    Recorded(
        name="a content in parts",
        source="https://docs.mistral.ai/capabilities/reasoning/ (thinking and text parts)",
        content=[
            {"type": "thinking", "thinking": [{"type": "text", "text": "[1, 2]"}]},
            {"type": "text", "text": '{"detections": [{"label": "cat", "bbox": [1, 2, 3, 4]}]}'},
        ],
        accepted=(("cat", (1.0, 2.0, 3.0, 4.0)),),
    ),
    Recorded(
        name="no finish_reason",
        source="https://github.com/openai/openai-openapi/pull/20",
        content='{"detections": []}',
        choice={"finish_reason": None},
        accepted=(),
    ),
    Recorded(
        name="digits that do not end",
        source="https://github.com/deepseek-ai/DeepSeek-VL2/issues/96",
        content='[{"label": "car", "bbox": [1, 2, 3, 4]}, {"label": "car", "bbox": [1, 2, 3, 9999999999999999]}]',
        refused="$.choices[0].message.content: $[1].bbox[3]: 1e+16 has more digits",
    ),
)

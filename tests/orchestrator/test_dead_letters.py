"""The content of dead letters."""

from __future__ import annotations

import json
from typing import Any

import pytest

from trio_runner.config.load import Config
from trio_runner.database.backlog import GivenUp
from trio_runner.orchestrator import dead_letters


async def test_a_dead_letter_names_the_video_without_the_query_of_its_url(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[bytes] = []

    async def send(*arguments: Any, **_: Any) -> None:
        sent.append(arguments[3])

    monkeypatch.setattr(dead_letters, "send", send)
    path = "https://media.example/7.mp4?X-Amz-Signature=c4n4ry"
    given_up = GivenUp(scenario_id=7, epoch=3, video_path=path, failures=3, frames_stored=0, error={})
    await dead_letters.publish_given_up(Config(), given_up)
    (body,) = sent
    assert json.loads(body)["video_path"] == "https://media.example/7.mp4?***"

from __future__ import annotations

import json
import logging
import subprocess
import sys
import threading
from io import StringIO
from typing import Any

import pytest
import trio

from trio_runner.base import aio
from trio_runner.base.logs import about, identify_process, set_up_logging

logger = logging.getLogger("trio_runner.x")


@pytest.fixture(autouse=True)
def fresh_logging(monkeypatch: pytest.MonkeyPatch) -> None:
    """A root logger of the test's own."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])


def lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


async def test_names_are_on_every_line_of_a_task_its_children_and_their_threads(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging(level="info", form="json")

    async def child() -> None:
        logger.info("child")
        await trio.to_thread.run_sync(logger.info, "thread")

    async with aio.open_loop(), trio.open_nursery() as nursery:
        with about(scenario_id=7):
            nursery.start_soon(child)
            logger.info("task")
        logger.info("outside")
    logged = {line["event"]: line.get("scenario_id") for line in lines(capsys)}
    assert logged == {"task": 7, "child": 7, "thread": 7, "outside": None}


async def test_what_is_added_later_is_on_the_lines_of_tasks_that_run_already(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging(level="info", form="json")
    claimed = trio.Event()

    async def child() -> None:
        await claimed.wait()
        logger.info("child")

    with about(scenario_id=7, runner_id="a") as bound:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            bound["epoch"] = 3
            claimed.set()
    (line,) = lines(capsys)
    assert (line["scenario_id"], line["runner_id"], line["epoch"]) == (7, "a", 3)


async def test_two_tasks_do_not_see_each_others_names(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="info", form="json")

    async def work(scenario_id: int) -> None:
        with about(scenario_id=scenario_id) as bound:
            await trio.lowlevel.checkpoint()
            bound["epoch"] = scenario_id * 10
            await trio.lowlevel.checkpoint()
            logger.info("%d", scenario_id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work, 1)
        nursery.start_soon(work, 2)
    logged = {line["event"]: (line["scenario_id"], line["epoch"]) for line in lines(capsys)}
    assert logged == {"1": (1, 10), "2": (2, 20)}


def test_the_innermost_name_counts_and_none_takes_the_place_of_the_lines_own_fields(
    capsys: pytest.CaptureFixture[str],
) -> None:
    set_up_logging(level="info", form="json")
    with about(scenario_id=1, epoch=1, event="no", level="no"), about(epoch=2):
        logger.info("inner", extra={"code": "x"})
        logger.info("replaced", extra={"scenario_id": 9})
    inner, replaced = lines(capsys)
    assert (inner["scenario_id"], inner["epoch"], inner["code"]) == (1, 2, "x")
    assert (inner["event"], inner["level"], inner["logger"]) == ("inner", "info", "trio_runner.x")
    assert replaced["scenario_id"] == 9


def test_a_process_is_named_on_every_line_whoever_logs_it(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="info", form="json")
    identify_process(scenario_id=7, runner_id="a")
    identify_process(epoch=3)
    thread = threading.Thread(target=logger.info, args=("thread",))
    thread.start()
    thread.join()
    with about(epoch=4):
        logger.info("task")
    logged = {line["event"]: (line["scenario_id"], line["runner_id"], line["epoch"]) for line in lines(capsys)}
    assert logged == {"thread": (7, "a", 3), "task": (7, "a", 4)}


def test_logging_that_somebody_else_set_up_is_given_no_names() -> None:
    handler = logging.StreamHandler(StringIO())
    logging.getLogger().addHandler(handler)
    identify_process(scenario_id=7)
    with about(epoch=4):
        logger.error("foreign")
    assert handler.stream.getvalue() == "foreign\n"


def test_names_and_extra_are_on_a_terminals_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="info", form="console")
    with about(scenario_id=7):
        logger.warning("careful", extra={"code": "x"})
    logged = capsys.readouterr().err
    assert "careful" in logged
    assert "scenario_id" in logged
    assert "code" in logged


def test_an_exception_and_a_value_of_any_type_are_in_the_line(capsys: pytest.CaptureFixture[str]) -> None:
    set_up_logging(level="info", form="json")
    logger.error("failed", exc_info=ValueError("broken"), extra={"codes": frozenset({1})})
    (line,) = lines(capsys)
    assert "ValueError: broken" in line["exception"]
    assert line["codes"] == "frozenset({1})"
    assert line["timestamp"].endswith("Z")


@pytest.mark.parametrize(("form", "loaded"), [("json", False), ("auto", False), ("console", True)])
def test_rich_is_loaded_for_a_terminal_only(form: str, loaded: bool) -> None:  # noqa: FBT001 - a parameter of the case
    program = (
        "import sys, logging; from trio_runner.base.logs import set_up_logging;"
        f"set_up_logging(level='info', form={form!r}); logging.error('x'); print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(loaded)

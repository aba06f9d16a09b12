from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest
import trio

from trio_runner.base.stopping import until_signal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_the_first_signal_cancels_the_block_and_is_a_normal_end(number: signal.Signals) -> None:
    async with until_signal() as second_signal:
        os.kill(os.getpid(), number)
        await trio.Event().wait()
    assert not second_signal.is_set()


async def test_a_block_that_ends_by_itself_is_not_waited_for() -> None:
    with trio.fail_after(5):
        async with until_signal():
            await trio.lowlevel.checkpoint()


async def test_the_second_signal_is_seen_by_a_shielded_cleanup() -> None:
    async with until_signal() as second_signal:
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await trio.Event().wait()
        finally:
            with trio.fail_after(5, shield=True):
                os.kill(os.getpid(), signal.SIGINT)
                await second_signal.wait()


async def test_an_error_in_the_block_is_not_held_up() -> None:
    with trio.fail_after(5), pytest.RaisesGroup(ValueError):
        async with until_signal():
            raise ValueError("broken")


@pytest.fixture
def happened() -> Iterator[list[str]]:
    """What has happened, in its order; SIGTERM acts by adding its name."""
    events: list[str] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: events.append(signal.Signals(number).name))
    yield events
    signal.signal(signal.SIGTERM, before)


async def test_the_signal_acts_once_the_cancelled_block_has_cleaned_up(happened: list[str]) -> None:
    async with until_signal(die=True):
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            await trio.Event().wait()
        finally:
            happened.append("cleaned up")
    assert happened == ["cleaned up", "SIGTERM"]


async def test_the_signal_acts_also_where_the_cleanup_fails(happened: list[str]) -> None:
    with pytest.RaisesGroup(ValueError):
        async with until_signal(die=True):
            os.kill(os.getpid(), signal.SIGTERM)
            try:
                await trio.Event().wait()
            finally:
                raise ValueError("broken")
    assert happened == ["SIGTERM"]


async def test_ctrl_c_is_a_keyboard_interrupt_once_the_cancelled_block_has_cleaned_up(happened: list[str]) -> None:
    async def interrupted() -> None:
        async with until_signal(die=True):
            os.kill(os.getpid(), signal.SIGINT)
            try:
                await trio.Event().wait()
            finally:
                happened.append("cleaned up")

    with pytest.raises(KeyboardInterrupt):
        await interrupted()
    assert happened == ["cleaned up"]


async def test_without_a_signal_nothing_acts(happened: list[str]) -> None:
    async with until_signal(die=True):
        await trio.lowlevel.checkpoint()
    assert happened == []

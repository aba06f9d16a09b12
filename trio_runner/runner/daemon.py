"""Composes the process around one scenario: servers, runner, signals, service manager and display."""

from __future__ import annotations

import logging
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING, Final, NoReturn, Protocol, TypeVarTuple

import trio

from trio_runner.base import aio
from trio_runner.base.logs import identify_process
from trio_runner.base.notify import Notifier
from trio_runner.embedded.addresses import open_addresses
from trio_runner.errors import ClaimRefusedError
from trio_runner.failure.unreported import own_instance_id
from trio_runner.pipeline.run import stalled_seconds
from trio_runner.runner.last_resort import LastResort
from trio_runner.runner.outcome import Ending, Outcome
from trio_runner.runner.runner import Runner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_runner.config.load import Config

logger = logging.getLogger(__name__)

Ts = TypeVarTuple("Ts")

FAILURE_SECONDS: Final = 15.0
"""How long a death may take beside publishing: cancelling 7 (answers and client 4, the decoder 3), PostgreSQL 3, the
producer's stop 2, the spool 3."""

LAST_RESORT_MARGIN_SECONDS: Final = 4.0
START_EXTENSION_SECONDS: Final = 30.0
"""How long the rest of a start may take, from the end of a wait to the claim."""


class Display(Protocol):
    """Shows a run to a person."""

    def note(self, text: str) -> None:
        """Show one line now."""
        ...

    async def watch(self, runner: Runner) -> None:
        """Show the runner's progress until cancelled."""
        ...

    async def summarise(self, config: Config, runner: Runner) -> None:
        """Show how the run ended."""
        ...


async def serve(config: Config, display: Display) -> Outcome | None:
    """Process the configured scenario; the first SIGTERM or SIGINT drains, the second one cancels.

    Returns:
        How the run ended; None where a signal stopped the process before the run had begun.

    Raises:
        ServerError: An embedded server could not be had, perhaps in an exception group.
    """
    notifier = Notifier(os.environ)
    stopping = trio.CancelScope()
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async with aio.open_loop(), trio.open_nursery() as helpers:
            running: list[Runner] = []
            helpers.start_soon(_handle_signals, signals, running, stopping, notifier)
            outcome: Outcome | None = None
            with stopping:
                async with open_addresses(config, on_wait=display.note) as live:
                    # One process makes one attempt, so the service manager's id of this start can be the attempt's.
                    runner = Runner.from_config(live, instance_id=own_instance_id(os.environ, os.getpid()))
                    running.append(runner)
                    outcome = await _process(live, runner, display, notifier)
                    running.clear()
                    await _shown(display.summarise, live, runner)
            helpers.cancel_scope.cancel()
    return outcome


async def _process(config: Config, runner: Runner, display: Display, notifier: Notifier) -> Outcome | None:
    async with trio.open_nursery() as watchers:
        last_resort = LastResort(FAILURE_SECONDS + config.kafka.publish_timeout_seconds + LAST_RESORT_MARGIN_SECONDS)
        watchers.start_soon(_shown, display.watch, runner)
        runner.on_failure = last_resort.arm
        watchers.start_soon(_notify_manager, runner, notifier, last_resort, stalled_seconds(config))
        try:
            # A refused claim is an outcome like the others, and the display shows the reason.
            with suppress(ClaimRefusedError):
                await runner.process_scenario()
        finally:
            last_resort.disarm()
        if runner.outcome is not None and runner.outcome.ending is Ending.ALREADY_COMPLETED:
            # A service manager takes an end before READY for a failed start, even where there was nothing to do.
            notifier.ready()
        notifier.stopping()
        watchers.cancel_scope.cancel()
    return runner.outcome


async def _shown(function: Callable[[*Ts], Awaitable[None]], *args: *Ts) -> None:
    """Call a function of the display; a bug there is logged and ends nothing, because the work does not need it."""
    try:
        await function(*args)
    except Exception:
        logger.exception("the display failed")


async def _handle_signals(
    signals: AsyncIterator[int], running: list[Runner], stopping: trio.CancelScope, notifier: Notifier
) -> None:
    drained = False
    async for _ in signals:
        notifier.stopping()
        # `running` is empty before the runner is made, and again when it is done while other processes still use this
        # one's embedded servers. Then no work can be lost.
        if not running:
            stopping.cancel()
        elif drained:
            running[0].abort()
        else:
            await running[0].stop()
            drained = True


async def _notify_manager(runner: Runner, notifier: Notifier, last_resort: LastResort, stalled_after: float) -> None:
    """Send READY once the scenario is claimed, then STATUS every second, and WATCHDOG only while there is progress.

    Before the claim the manager learns what is being waited for, and allows the start more time meanwhile. Once the
    failure path has begun, `last_resort` bounds it, and WATCHDOG goes on until the death is reported.
    """
    async with trio.open_nursery() as waiting:
        waiting.start_soon(_extend_start, runner, notifier)
        await runner.claimed.wait()
        waiting.cancel_scope.cancel()
    if runner.claim is not None:
        identify_process(epoch=runner.claim.epoch)
    notifier.ready()
    await notifier.keep_notified(
        status=lambda: runner.progress.activity or f"frame {runner.progress.position}",
        is_alive=lambda: last_resort.armed or trio.current_time() - runner.progress.last_advance < stalled_after,
    )


async def _extend_start(runner: Runner, notifier: Notifier) -> NoReturn:
    """While something is waited for, which has a time limit of its own, let the manager's limit not end the start."""
    while True:
        if activity := runner.progress.activity:
            notifier.status(activity)
            notifier.extend_timeout(START_EXTENSION_SECONDS)
        await trio.sleep(1.0)

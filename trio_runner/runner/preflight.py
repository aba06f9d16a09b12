"""Opens and checks everything that the work needs before the claim, each within its own deadline."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from trio_runner.config.credentials import secrets_of
from trio_runner.database.store import Store, open_store
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.failure.failure import flatten
from trio_runner.failure.outbox import flush
from trio_runner.inference.client import InferenceClient, open_client
from trio_runner.kafka.connection import check_broker
from trio_runner.video.child import Video, spawn_decoder
from trio_runner.video.fetcher import look
from trio_runner.video.source import location_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from trio_runner.config.load import Config
    from trio_runner.failure.spool import Spool
    from trio_runner.model import Failure


logger = logging.getLogger(__name__)


@asynccontextmanager
async def open_clients(
    config: Config,
    spool: Spool,
    *,
    prepare: bool = True,
    on_passed: Callable[[], None] = lambda: None,
    on_wait: Callable[[str], None] = lambda _: None,
    secrets: frozenset[str] = frozenset(),
) -> AsyncIterator[tuple[Store, InferenceClient, Video | None]]:
    """The database, the inference service and the video, open and checked.

    The video is None where it has to be fetched: that may take longer than anybody waits for a claim, so it follows
    the claim.

    A runner that could not work, or could not report a failure, does not get as far as a claim.

    Args:
        config: With live addresses.
        spool: Where a reserve is taken.
        prepare: Whether to create the schema, where the config allows that, and to publish the retry events that wait.
        on_passed: See `spawn_decoder`.
        on_wait: Called with what is being waited for, and with "" when that is over.
        secrets: Values that are masked in what is stored.

    Raises:
        RunnerError: The first of them that cannot be used.
    """
    location = location_of(config.video.path, config.storage.url_prefixes)
    # The decoder starts while the peers are asked, because Python and OpenCV take longer than all of them.
    tensor = config.inference.tensor
    decoder = nullcontext() if location else spawn_decoder(config.video, tensor=tensor, on_passed=on_passed)
    async with decoder as video:
        await spool.reserve()
        async with _open_ledger(config, prepare=prepare, secrets=secrets) as store:
            reachable = await _check_kafka(config)
            if prepare and reachable:
                await flush(config, spool, store)
            async with open_client(config.inference) as inference:
                if config.inference.ready_timeout_seconds:
                    await inference.wait_until_ready(on_wait)
                else:
                    await inference.check()
                await inference.describe()
                if video is not None:
                    await video.open()
                elif location is not None and not prepare:
                    await look(config, location)
                yield store, inference, video


async def _check_kafka(config: Config) -> bool:
    """Whether a retry event could be published now; raises where the config requires that."""
    try:
        await check_broker(config.kafka)
    except RunnerError as error:
        if config.kafka.required:
            raise
        logger.warning("a retry event would have to wait: %s", error)
        return False
    return True


@asynccontextmanager
async def _open_ledger(config: Config, *, prepare: bool, secrets: frozenset[str]) -> AsyncIterator[Store]:
    application = f"trio-runner {config.runner.id} scenario {config.scenario.id}"
    async with open_store(config.database, application_name=application, secrets=secrets) as store:
        may_create = config.database.create_schema
        if prepare and may_create:
            await store.create_schema()
        check_rights = partial(store.check_rights, may_create=may_create and not prepare)
        await _in_time(check_rights, config.database.connect_timeout_seconds)
        yield store


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of checking one thing; `failure` is None where it can be used."""

    thing: str
    where: str
    seconds: float
    failure: Failure | None


async def check(config: Config, spool: Spool) -> list[Finding]:
    """Check each thing by itself, all at once; nothing is claimed or sent, and the schema is not completed.

    Two traces stay: the spool's directory with a reserve file in it, and the topic, where the broker creates a topic
    that it is asked about.
    """
    secrets = await secrets_of(config)
    findings: dict[str, Finding] = {}

    async def look(thing: str, where: str, find_out: Callable[[], Awaitable[None]]) -> None:
        started, failure = trio.current_time(), None
        try:
            await find_out()
        except RunnerError as error:
            failure = flatten(error, secrets)
        findings[thing] = Finding(thing=thing, where=where, seconds=trio.current_time() - started, failure=failure)

    things: dict[str, tuple[str, Callable[[], Awaitable[None]]]] = {
        "spool": (str(spool.directory), spool.reserve),
        "database": (config.database.url, partial(_check_ledger, config)),
        "kafka": (f"{config.kafka.brokers}, {config.kafka.retry_topic}", partial(check_broker, config.kafka)),
        "inference": (config.inference.url, partial(_check_inference, config)),
        "video": (config.video.path, partial(_check_video, config)),
    }
    async with trio.open_nursery() as nursery:
        for thing, (where, find_out) in things.items():
            nursery.start_soon(look, thing, where, find_out)
    return [findings[thing] for thing in things]


async def _check_ledger(config: Config) -> None:
    async with open_store(config.database, application_name="trio-runner check") as store:
        await _in_time(
            partial(store.check_rights, may_create=config.database.create_schema),
            config.database.connect_timeout_seconds,
        )


async def _in_time(function: Callable[[], Awaitable[None]], seconds: float) -> None:
    """Call `function`; raises `store_timeout` where PostgreSQL, once connected, does not answer in time."""
    try:
        with trio.fail_after(seconds):
            await function()
    except trio.TooSlowError as error:
        raise RunnerError(ErrorCode.STORE_TIMEOUT, f"PostgreSQL did not answer within {seconds:g} s") from error


async def _check_inference(config: Config) -> None:
    async with open_client(config.inference) as inference:
        await inference.check()
        await inference.describe()


async def _check_video(config: Config) -> None:
    if location := location_of(config.video.path, config.storage.url_prefixes):
        await look(config, location)
        return
    async with spawn_decoder(config.video) as video:
        await video.open()

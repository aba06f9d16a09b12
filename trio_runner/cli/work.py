"""The verbs that hand out work: submit, stop and retry."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from trio_runner.base import aio
from trio_runner.base.redact import redact
from trio_runner.cli.output import say
from trio_runner.cli.suggest import with_commands
from trio_runner.config.settings import check_scenario_settings, parse_settings
from trio_runner.database.backlog import Backlog
from trio_runner.database.store import open_store
from trio_runner.embedded.addresses import open_addresses
from trio_runner.embedded.hosting import Service
from trio_runner.errors import ClaimRefusedError, ExitCode, RunnerError
from trio_runner.video.source import location_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from trio_runner.config.load import Config


async def submit(config: Config, *, config_path: str, scenario: int, video: str, settings: Sequence[str]) -> ExitCode:
    """Ask for a video to be processed; 1 where that scenario is completed, given up, or another video's.

    Args:
        config: where the database is, and what a scenario's settings must fit.
        config_path: the config's path, for the commands that a message suggests.
        scenario: the id; 0 for a new one.
        video: an absolute path on the runner's machine, or a URL.
        settings: `section.key=value`, for this scenario alone.
    """
    sections = parse_settings(settings)
    check_scenario_settings(sections)
    # What the config cannot have is refused now, rather than by each runner.
    named = {name: dict(keys) for name, keys in sections.items()}
    named.setdefault("video", {}).update(path=video)
    if scenario:
        named.setdefault("scenario", {}).update(id=scenario)
    changed = config.replace(**named)
    try:
        # So is a URL that no runner with this config would fetch.
        location_of(video, config.storage.url_prefixes)
    except RunnerError as error:
        return _refused(error, config_path)
    async with _open_backlog(config, create_schema=config.database.create_schema) as backlog:
        try:
            given = await backlog.submit(
                scenario,
                video,
                sections,
                max_failures=changed.scenario.max_failures,
                max_epochs=config.orchestrator.max_epochs,
            )
        except ClaimRefusedError as error:
            return _refused(error, config_path)
    say(f"scenario {given} is submitted")
    return ExitCode.OK


async def stop(config: Config, *, config_path: str, scenario: int) -> ExitCode:
    """Ask for a scenario to be stopped; 1 where it does not exist."""
    async with _open_backlog(config) as backlog:
        try:
            status = await backlog.stop(scenario)
        except ClaimRefusedError as error:
            return _refused(error, config_path)
    say(f"scenario {scenario}: {status}")
    return ExitCode.OK


async def retry(config: Config, *, config_path: str, scenario: int) -> ExitCode:
    """Try a scenario again that was given up or stopped; 1 where it is completed, or a runner works on it."""
    async with _open_backlog(config) as backlog:
        try:
            epoch = await backlog.retry(scenario, max_epochs=config.orchestrator.max_epochs)
        except ClaimRefusedError as error:
            return _refused(error, config_path)
    say(f"scenario {scenario}: attempt {epoch} is due")
    return ExitCode.OK


def _refused(error: RunnerError, config_path: str) -> ExitCode:
    # The message may quote the video of a scenario, a presigned URL perhaps.
    say(with_commands(redact(error.message).replace("\n", " "), config_path))
    return ExitCode.NOTHING


@asynccontextmanager
async def _open_backlog(config: Config, *, create_schema: bool = False) -> AsyncIterator[Backlog]:
    async with (
        aio.open_loop(),
        open_addresses(config, frozenset({Service.DATABASE}), published=False) as live,
        open_store(live.database, application_name="trio-runner") as store,
    ):
        if create_schema:
            await store.create_schema()
        await store.check_schema()
        yield Backlog(store)

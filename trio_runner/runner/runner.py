"""`Runner`: takes scenarios one after another until one of them fails, and is dead then."""

from __future__ import annotations

import os
import uuid
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import trio

from trio_runner.base import aio
from trio_runner.base.logs import about
from trio_runner.config.credentials import secrets_of
from trio_runner.config.load import Config
from trio_runner.config.location import absolute_path
from trio_runner.embedded.addresses import open_addresses
from trio_runner.errors import ClaimRefusedError, RunnerError, ScenarioCompletedError
from trio_runner.failure.failure import flatten
from trio_runner.failure.spool import spool_of
from trio_runner.model import Claim, Progress
from trio_runner.runner.attempt import Controls, run_attempt
from trio_runner.runner.outcome import Ending, Outcome
from trio_runner.runner.preflight import open_clients

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType


class RunnerDead(Exception):  # noqa: N818 - the public name, which reads as what it says
    """This runner has ended; make a new one."""


class Runner:
    """Takes a scenario from its video to stored predictions; after a failure, which is reported, it is dead.

        runner = Runner(runner_id="runner_1", video_path="video.mp4", inference_url="http://localhost:8001")
        await runner.start()
        success = await runner.process_scenario(scenario_id=1)
        await runner.stop()

    `async with Runner(...) as runner:` is the same with `start` and `stop` called for you, and the way to use embedded
    servers: they stay up for the whole block, where each single call would start and stop them.
    """

    def __init__(
        self,
        *,
        runner_id: str | None = None,
        video_path: str | os.PathLike[str] | None = None,
        inference_url: str | None = None,
        database_url: str | None = None,
        kafka_brokers: str | None = None,
        config: Config | None = None,
        instance_id: str | None = None,
    ) -> None:
        """What is named here replaces what `config` says, and without one the defaults of runner.toml.

        By default the database, the broker and the inference service are embedded ones, and relative paths start
        from the current directory.

        Args:
            runner_id: In the place of `runner.id`.
            video_path: In the place of `video.path`: a path or a URL.
            inference_url: In the place of `inference.url`.
            database_url: In the place of `database.url`.
            kafka_brokers: In the place of `kafka.brokers`.
            config: What the other keys say.
            instance_id: The UUID by which the database knows this object's attempts; a new one where it is None. Two
                objects must never have the same: either would be taken for the owner of the other's attempt.

        Raises:
            ConfigError: A value that the config file could not have either.
        """
        named = {
            "runner": {"id": runner_id},
            "video": {"path": None if video_path is None else absolute_path(os.fspath(video_path), Path.cwd())},
            "inference": {"url": inference_url},
            "database": {"url": database_url},
            "kafka": {"brokers": kafka_brokers},
        }
        self._config = (config or Config().with_absolute_paths(Path.cwd())).replace(
            **{name: {key: value for key, value in keys.items() if value is not None} for name, keys in named.items()}
        )
        self._servers = AsyncExitStack()
        self._instance_id = instance_id or str(uuid.uuid4())
        self._drain = trio.Event()
        self._work = trio.CancelScope()
        self._aborted = self._busy = self._dead = False
        self.claimed = trio.Event()
        """Set when the scenario is claimed and work begins."""
        self.claim: Claim | None = None
        self.progress = Progress()
        self.outcome: Outcome | None = None
        self.on_failure: Callable[[], None] = lambda: None
        """Called when the failure path begins, perhaps more than once; must not wait."""

    @classmethod
    def from_config(cls, config: Config, *, instance_id: str | None = None) -> Self:
        """A runner with every setting of `config`; its scenario is the argument of `process_scenario`."""
        return cls(config=config, instance_id=instance_id)

    async def start(self) -> None:
        """Check that everything answers: spool, database, broker, inference service, video. Leaves nothing open.

        It changes nothing but the spool's directory, where it makes the reserve that the first run needs: the schema
        is created, and waiting retry events are published, when a scenario is processed.

        Raises:
            RunnerError: The first thing that does not answer, by its code.
            RunnerDead: This runner has ended.
        """
        self._require_alive()
        problem: RunnerError | None = None
        async with aio.open_loop(), open_addresses(self._config) as config:
            spool = spool_of(config)
            try:
                async with open_clients(config, spool, prepare=False):
                    pass
            except RunnerError as error:
                problem = error
            finally:
                spool.close()
        # Raised out here, where no nursery wraps it into a group.
        if problem is not None:
            raise problem

    async def process_scenario(self, scenario_id: int | None = None) -> bool:
        """Claim the scenario (without a number, the config's), process its video, store every prediction.

        Returns:
            True when the video's end was reached and everything is stored; False when it failed or was stopped: then
            `outcome` says what became of the retry event, and this runner is dead.

        Raises:
            ClaimRefusedError: The scenario is completed, another video's, given up, or owned by a living runner.
            ServerError: An embedded server cannot be had; perhaps in an exception group.
            RunnerDead: This runner has ended.
        """
        self._require_alive()
        if self._busy:
            raise RuntimeError("this runner is processing a scenario already")
        config = self._config if scenario_id is None else self._config.replace(scenario={"id": scenario_id})
        self._busy = True
        try:
            return await self._process_once(config)
        finally:
            # Scopes and events serve once; a runner that is alive may take another scenario.
            self._work, self.claimed, self._busy = trio.CancelScope(), trio.Event(), False

    async def _process_once(self, config: Config) -> bool:
        with about(scenario_id=config.scenario.id, runner_id=config.runner.id) as names:
            return await self._process_about(config, names)

    async def _process_about(self, config: Config, names: dict[str, object]) -> bool:
        """`names` are on each line that is logged here; the epoch joins them once the scenario is claimed."""
        self.progress = Progress(started=trio.current_time(), last_advance=trio.current_time())
        refusal: ClaimRefusedError | None = None
        spool = spool_of(config)
        async with aio.open_loop(), open_addresses(config) as live:
            try:
                secrets = await secrets_of(live)
                outcome = await run_attempt(
                    live,
                    spool,
                    instance_id=self._instance_id,
                    progress=self.progress,
                    controls=self._controls(names),
                    secrets=secrets,
                )
                self.outcome = replace(
                    outcome,
                    frames_not_inferred=self.progress.frames_not_inferred,
                    boxes_clipped=self.progress.boxes_clipped,
                    tokens=self.progress.tokens,
                )
            except ClaimRefusedError as error:
                completed = isinstance(error, ScenarioCompletedError)
                ending = Ending.ALREADY_COMPLETED if completed else Ending.REFUSED
                self.outcome = Outcome(ending=ending, claim=None, failure=flatten(error))
                refusal = error
            except BaseException:
                self._dead = True
                raise
            finally:
                spool.close()
        # Raised out here, where no nursery wraps it into a group.
        if refusal is not None:
            raise refusal
        self._dead = self.outcome.ending is not Ending.COMPLETED
        return not self._dead

    async def stop(self) -> None:
        """Ask the work to end: the source stops, what is under way is finished, within `drain_seconds`.

        Returns at once; `process_scenario` returns when it is done. Nothing more can be started on this runner.
        """
        await trio.lowlevel.checkpoint()
        self._drain.set()
        # Before the claim nothing is under way that could be finished.
        if self._busy and not self.claimed.is_set():
            self.on_failure()
            self._work.cancel()

    def abort(self) -> None:
        """Cancel the work at once; the retry event still goes out."""
        self._aborted = True
        self.on_failure()
        self._work.cancel()

    async def __aenter__(self) -> Self:
        """Keep embedded servers up for the whole block, and `start`."""
        self._config = await self._servers.enter_async_context(open_addresses(self._config))
        try:
            await self.start()
        except BaseException as error:
            await self.__aexit__(type(error), error, error.__traceback__)  # noqa: ASYNC102 - see there
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool | None:
        """`stop`, and let the embedded servers go."""
        self._drain.set()
        if error is None or _is_cancellation(error):
            return await self._servers.__aexit__(kind, error, trace)  # noqa: ASYNC102 - waits for others, if it may
        # The servers' nursery would wrap what passes through it; the caller's own error surfaces as itself.
        await self._servers.__aexit__(None, None, None)  # noqa: ASYNC102 - the same
        return False

    def _controls(self, names: dict[str, object]) -> Controls:
        def on_claimed(claim: Claim) -> None:
            self.claim = claim
            names["epoch"] = claim.epoch
            self.claimed.set()

        self.claim = None
        return Controls(
            work=self._work,
            drain=self._drain,
            on_claimed=on_claimed,
            on_failure=self.on_failure,
            is_aborted=lambda: self._aborted,
        )

    def _require_alive(self) -> None:
        if self._dead or self._drain.is_set():
            raise RunnerDead("this runner has ended; make a new one")


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)

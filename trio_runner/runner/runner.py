"""`Runner`: claims a scenario, works through it, and ends in exactly one outcome."""

from __future__ import annotations

import logging
import uuid
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Self

import trio

from trio_runner.base import aio
from trio_runner.config.credentials import secrets_of
from trio_runner.config.load import Config
from trio_runner.database.store import Attempt
from trio_runner.embedded.addresses import open_addresses
from trio_runner.errors import ClaimRefusedError, ErrorCode, RunnerError, ScenarioCompletedError, SupersededError
from trio_runner.failure.failure import flatten
from trio_runner.failure.report import claim_scenario, report_death
from trio_runner.failure.spool import spool_of
from trio_runner.model import Claim, Progress
from trio_runner.pipeline.run import run_pipeline
from trio_runner.runner.outcome import Ending, Outcome
from trio_runner.runner.preflight import open_clients

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from types import TracebackType

    from trio_runner.config.sections import VideoSection
    from trio_runner.database.store import Store
    from trio_runner.failure.spool import Spool
    from trio_runner.inference.client import InferenceClient
    from trio_runner.video.child import Video

logger = logging.getLogger(__name__)


class RunnerDead(Exception):  # noqa: N818 - the public name, which reads as what it says
    """This runner has ended; make a new one."""


class Runner:
    """Takes one scenario from its video to stored predictions, or says why not and is dead.

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
    ) -> None:
        """What is named here replaces what `config` says, and without one the defaults of runner.toml.

        By default the database, the broker and the inference service are embedded ones, and relative paths start
        from the current directory.

        Raises:
            ConfigError: a value that the config file could not have either.
        """
        named = {
            "runner": {"id": runner_id},
            "video": {"path": None if video_path is None else str(Path.cwd() / video_path)},
            "inference": {"url": inference_url},
            "database": {"url": database_url},
            "kafka": {"brokers": kafka_brokers},
        }
        self._config = (config or Config().with_absolute_paths(Path.cwd())).replace(
            **{name: {key: value for key, value in keys.items() if value is not None} for name, keys in named.items()}
        )
        self._servers = AsyncExitStack()
        self.instance_id = str(uuid.uuid4())
        """Of this object's attempts; the ledger knows them by it."""
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
    def from_config(cls, config: Config) -> Self:
        """A runner with every setting of `config`; its scenario is the argument of `process_scenario`."""
        return cls(config=config)

    async def start(self) -> None:
        """Check that everything answers: spool, database, broker, inference service, video. Leaves nothing open.

        Like the beginning of a run it completes the schema and sends what waits in the spool.

        Raises:
            RunnerError: the first thing that does not, by its code.
            RunnerDead: this runner has ended.
        """
        self._require_alive()
        problem: RunnerError | None = None
        async with aio.open_loop(), open_addresses(self._config) as config:
            spool = spool_of(config)
            try:
                async with open_clients(config, spool):
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
            the retry event is out (see `outcome`) and this runner is dead.

        Raises:
            ClaimRefusedError: the scenario is completed, another video's, given up, or owned by a living runner.
            ServerError: an embedded server cannot be had; perhaps in an exception group.
            RunnerDead: this runner has ended.
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
        self.progress = Progress(started=trio.current_time(), last_advance=trio.current_time())
        refusal: ClaimRefusedError | None = None
        spool = spool_of(config)
        async with aio.open_loop(), open_addresses(config) as live:
            try:
                secrets = await secrets_of(live)
                self.outcome = await self._attempt(live, spool, secrets)
            except ClaimRefusedError as error:
                completed = isinstance(error, ScenarioCompletedError)
                ending = Ending.ALREADY_COMPLETED if completed else Ending.REFUSED
                self.outcome = Outcome(ending=ending, claim=None, failure=flatten(error))
                refusal = error
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
        # Before the claim there is nothing under way that could be finished.
        if not self.claimed.is_set():
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

    def _require_alive(self) -> None:
        if self._dead or self._drain.is_set():
            raise RunnerDead("this runner has ended; make a new one")

    def _advance(self) -> None:
        """Passing over frames that are stored already is progress too."""
        self.progress.last_advance = trio.current_time()

    async def _attempt(self, config: Config, spool: Spool, secrets: frozenset[str]) -> Outcome:
        attempt = Attempt(
            scenario_id=config.scenario.id,
            epoch=config.scenario.epoch,
            video_path=config.video.path,
            runner_id=config.runner.id,
            instance_id=self.instance_id,
            max_failures=config.scenario.max_failures,
        )
        self.claim = None
        try:
            with self._work:
                async with open_clients(config, spool, on_passed=self._advance) as (store, inference, video):
                    attempt = replace(attempt, video_identity=video.info.identity, sampling=_sampling(config.video))
                    try:
                        self.claim = await claim_scenario(store, attempt)
                        _check_same(self.claim, attempt)
                        await self._process(config, self.claim, store, inference, video)
                    except BaseException:
                        # Before the doors are closed, which may be what hangs.
                        self.on_failure()
                        raise
                return Outcome(ending=Ending.COMPLETED, claim=self.claim)
            self.on_failure()
            failure = flatten(RunnerError(ErrorCode.INTERRUPTED, "told to stop"))
        except ClaimRefusedError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever it is, it ends this runner and must be reported
            self.on_failure()
            failure = flatten(error, secrets)
        except BaseException as error:
            self.on_failure()
            # The caller cancels us, or Ctrl-C fell: the death is reported all the same, then theirs goes on. What
            # failed in the same moment is the better reason.
            named = error.subgroup(Exception) if isinstance(error, BaseExceptionGroup) else None
            failure = flatten(named or RunnerError(ErrorCode.INTERRUPTED, "cancelled from outside"), secrets)
            self._dead = True
            with suppress(ClaimRefusedError, SupersededError):
                # It shields and bounds itself.
                await report_death(config, spool, attempt, self.claim, failure, self.progress)  # noqa: ASYNC102
            raise
        level = logging.INFO if failure.code is ErrorCode.INTERRUPTED else logging.ERROR
        logger.log(level, "%s: %s", failure.code, failure.message)
        try:
            report = await report_death(config, spool, attempt, self.claim, failure, self.progress)
        except SupersededError as error:
            return Outcome(ending=Ending.SUPERSEDED, claim=None, failure=flatten(error))
        if report.completed:
            return Outcome(ending=Ending.COMPLETED, claim=report.claim)
        drained = failure.code is ErrorCode.INTERRUPTED and not self._aborted
        return Outcome(
            ending=Ending.SUPERSEDED if report.superseded else Ending.DRAINED if drained else Ending.FAILED,
            claim=report.claim,
            failure=failure,
            event_confirmed=report.event_confirmed,
            event_spooled=report.event_spooled,
        )

    async def _process(
        self, config: Config, claim: Claim, store: Store, inference: InferenceClient, video: Video
    ) -> None:
        self.progress.next_frame = claim.next_frame
        self.progress.frames_stored_before = claim.frames_stored
        self.progress.declared_frames = video.info.declared_frames
        self.progress.last_advance = trio.current_time()
        self.claimed.set()
        video.start(claim.next_frame)
        end = await run_pipeline(
            video,
            inference,
            store,
            claim=claim,
            config=config,
            progress=self.progress,
            drain=self._drain,
            on_failure=self.on_failure,
        )
        if end.skipped_corrupt:
            logger.warning("%d damaged frames were passed over", end.skipped_corrupt)
        await store.finish(claim, end.selected, config.scenario.on_complete)


def _sampling(video: VideoSection) -> str:
    """Which frames are chosen, in words that are the same for the same choice."""
    return (
        f"stride {video.stride}, max_fps {video.max_fps!r}, start_seconds {video.start_seconds!r}, "
        f"max_frames {video.max_frames}"
    )


def _check_same(claim: Claim, attempt: Attempt) -> None:
    """What is stored and what would be stored are of one kind; raises RunnerError where they are not."""
    stored = f"the {claim.frames_stored} frames stored"
    if claim.video_identity != attempt.video_identity:
        raise RunnerError(
            ErrorCode.VIDEO_CHANGED,
            f"{attempt.video_path}: is not the video that {stored} come from. Put that one back, or give the new one "
            "a scenario of its own",
        )
    if claim.sampling != attempt.sampling:
        raise RunnerError(
            ErrorCode.SAMPLING_CHANGED,
            f"{stored} were chosen by: {claim.sampling}; now: {attempt.sampling}. Set [video] as it was, or use "
            "another scenario",
        )


def _is_cancellation(error: BaseException) -> bool:
    if isinstance(error, BaseExceptionGroup):
        return error.subgroup(trio.Cancelled) is not None
    return isinstance(error, trio.Cancelled)

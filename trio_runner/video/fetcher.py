"""The daemon's side of the fetcher child: a video's local file, or a copy of an object that stays while it is read."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from trio_runner.base.files import close_descriptor
from trio_runner.base.logs import conceal
from trio_runner.base.threads import bounded
from trio_runner.config.credentials import read_secret, tls_context
from trio_runner.config.sections import CACHE_NAME
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.video.cache import lock_for_reading
from trio_runner.video.child import spawn_decoder
from trio_runner.video.fetch import messages
from trio_runner.video.process import Child, closing, ending
from trio_runner.video.source import location_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AsyncExitStack

    from trio_runner.config.load import Config
    from trio_runner.config.location import Location
    from trio_runner.config.sections import StorageSection
    from trio_runner.video.child import Video

START_ALLOWANCE_SECONDS: Final = 20.0
"""Added to the time limits of the storage: a busy machine may start Python slowly, or look up a name slowly."""

LOCK_SECONDS: Final = 5.0

logger = logging.getLogger(__name__)


async def open_fetched(
    stack: AsyncExitStack, config: Config, *, on_progress: Callable[[str], None], on_passed: Callable[[], None]
) -> Video:
    """Fetch the video that `video.path` names by its URL, and open the copy; both are closed with `stack`.

    Args:
        stack: Closes the decoder, and lets the copy be evicted.
        config: With a URL.
        on_progress: See `open_copy`.
        on_passed: See `spawn_decoder`.

    Raises:
        RunnerError: What `open_copy` or the decoder raises; messages name the URL, without its query.
    """
    location = location_of(config.video.path, config.storage.url_prefixes)
    if location is None:
        raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{config.video.path}: not a URL")
    path = await stack.enter_async_context(open_copy(config, location, on_progress))
    # `video.root` says where local videos lie; the copy lies in the cache.
    options = msgspec.structs.replace(config.video, path=str(path), root="")
    video = await stack.enter_async_context(
        spawn_decoder(options, tensor=config.inference.tensor, on_passed=on_passed, name=str(location))
    )
    on_progress("the video is being opened")
    await video.open()
    return video


@asynccontextmanager
async def open_copy(
    config: Config, location: Location, on_progress: Callable[[str], None], environ: Mapping[str, str] = os.environ
) -> AsyncIterator[Path]:
    """The path of a whole local copy of the object, which is not evicted while the block lasts.

    Args:
        config: With `video.path`, a URL, and `storage`.
        location: What `location_of` has made of that URL.
        on_progress: Called every second or more often while the object comes, or another process fetches it, with a
            text for people.
        environ: Where the credentials of S3 are taken from if the config names no files.

    Raises:
        RunnerError: One of `storage_*`, `cache_unusable`, `fetcher_failed`, `video_refused`, `credential_unreadable`.
    """
    started = trio.current_time()
    ready, descriptor = await _fetch(config, location, on_progress, environ)
    try:
        how = f"fetched in {trio.current_time() - started:.1f} s" if ready.fetched else "is in the cache already"
        logger.info("%s: %d bytes, %s", location, ready.size_bytes, how)
        yield Path(ready.path)
    finally:
        os.close(descriptor)


async def look(config: Config, location: Location, environ: Mapping[str, str] = os.environ) -> None:
    """Ask whether the object could be fetched, and fetch nothing; raises RunnerError."""
    order = await _order(config, location, environ, only_look=True)
    async with _spawned(order, location) as child:
        await child.result(config.storage, lambda _: None)


async def _fetch(
    config: Config, location: Location, on_progress: Callable[[str], None], environ: Mapping[str, str]
) -> tuple[messages.Ready, int]:
    """The child's last record, and a descriptor that keeps the file from being evicted."""
    order = await _order(config, location, environ, only_look=False)
    reached_by = config.storage.s3_endpoint if location.scheme == "s3" else str(location)
    if reached_by.startswith("http:"):
        logger.warning("%s is fetched over a connection that is not encrypted", location)
    async with _spawned(order, location) as child:
        ready = await child.result(config.storage, on_progress)
        try:
            locking = partial(lock_for_reading, Path(ready.path))
            descriptor = await bounded(locking, seconds=LOCK_SECONDS, late=close_descriptor)
        except OSError as error:
            message = f"{location}: the copy {ready.path} cannot be read: {error.strerror}. Correct storage.cache_dir"
            raise RunnerError(ErrorCode.CACHE_UNUSABLE, message) from error
        if descriptor is None:
            raise RunnerError(ErrorCode.CACHE_UNUSABLE, f"{location}: somebody has removed the copy {ready.path}")
        return ready, descriptor


async def _order(config: Config, location: Location, environ: Mapping[str, str], *, only_look: bool) -> messages.Order:
    # The child reads the same files; this names the one that is at fault.
    await tls_context(config.storage, "storage")
    if location.query:
        conceal(frozenset({location.query}))
    credentials = await _credentials(config.storage, environ) if location.scheme == "s3" else None
    cache_dir = config.storage.cache_dir or str(Path(config.runner.data_dir) / CACHE_NAME)
    storage = msgspec.structs.replace(config.storage, cache_dir=cache_dir)
    return messages.Order(url=config.video.path, storage=storage, credentials=credentials, only_look=only_look)


async def _credentials(storage: StorageSection, environ: Mapping[str, str]) -> messages.Credentials | None:
    """From the files that the config names, else from the variables of the AWS tools; None: requests are not signed."""
    if storage.s3_key_id_file:
        key_id = await read_secret(storage.s3_key_id_file, "storage.s3_key_id_file")
        secret_key = await read_secret(storage.s3_secret_key_file, "storage.s3_secret_key_file")
        session = storage.s3_session_token_file
        token = await read_secret(session, "storage.s3_session_token_file") if session else ""
    else:
        names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
        key_id, secret_key, token = (environ.get(name, "") for name in names)
        conceal(frozenset({secret_key, token} - {""}))
    if not (key_id and secret_key):
        return None
    return messages.Credentials(key_id=key_id, secret_key=secret_key, session_token=token)


class _Child(Child):
    """The fetcher's process, and its records."""

    def __init__(self, order: messages.Order, location: Location) -> None:
        super().__init__(["trio_runner.video.fetch"])
        self._location = location
        # A pipe takes this line whole: it holds one URL, the section [storage] and three secrets.
        self.send(messages.encode(order) + b"\n")

    async def result(self, storage: StorageSection, on_progress: Callable[[str], None]) -> messages.Ready:
        """The last record, `on_progress` being called for each one before it; raises RunnerError."""
        silence = storage.connect_timeout_seconds + storage.stall_timeout_seconds + START_ALLOWANCE_SECONDS
        with trio.move_on_after(storage.fetch_timeout_seconds + silence):
            while True:
                with trio.move_on_after(silence) as patience:
                    record = await self._record()
                if patience.cancelled_caught:
                    break
                match record:
                    case messages.Ready():
                        return record
                    case messages.Fault():
                        raise RunnerError(record.code, record.message, retry_after_seconds=record.retry_after_seconds)
                    case messages.Received():
                        on_progress(f"{record.received_bytes} of {record.total_bytes} bytes fetched")
                    case messages.Waiting():
                        on_progress("another process fetches the video")
                    case None:
                        raise await self._explain_death()
        message = f"{self._location}: nothing came from the fetcher for {silence:g} s, or it took too long altogether"
        raise RunnerError(ErrorCode.STORAGE_TIMEOUT, message)

    async def _record(self) -> messages.Record | None:
        """The next record; None at the end of the pipe."""
        line = await self.read_line(messages.MAX_LINE_BYTES)
        try:
            return messages.decode(line) if line else None
        except msgspec.MsgspecError as error:
            message = f"{self._location}: the fetcher sent something that is no record: {error}"
            raise RunnerError(ErrorCode.FETCHER_FAILED, message) from error

    async def _explain_death(self) -> RunnerError:
        how = ending(await self.wait())
        return RunnerError(ErrorCode.FETCHER_FAILED, f"{self._location}: the fetcher {how}{self.last_output()}")


@asynccontextmanager
async def _spawned(order: messages.Order, location: Location) -> AsyncIterator[_Child]:
    """The child, which is killed when the block ends. What it has fetched so far stays in the cache."""
    try:
        child = _Child(order, location)
    except OSError as error:
        message = f"{location}: the fetcher cannot be started with {sys.executable or 'no Python'}: {error.strerror}"
        raise RunnerError(ErrorCode.FETCHER_FAILED, message) from error
    # The fetcher may be killed: what it has fetched so far can be resumed wherever it ends.
    async with closing(child):
        yield child

"""What is submitted, due, stopped, given up, on a real PostgreSQL: the policy of retries lies there."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import trio

from tests.support.database_server import DatabaseServer
from tests.support.harness import Ledger, Servers
from tests.support.makers import VIDEO, attempt, expire, make_result
from trio_runner.base import aio
from trio_runner.config.sections import DatabaseSection
from trio_runner.database import reading
from trio_runner.database.backlog import Backlog, GivenUp, RecentAttempt, Work
from trio_runner.database.store import Store, open_store
from trio_runner.errors import ClaimRefusedError, ErrorCode, RunnerError, ScenarioCompletedError
from trio_runner.model import Claim

NODE = "node_1"
LEASE_SECONDS = 60.0


@pytest.fixture
def config(server: DatabaseServer) -> DatabaseSection:
    return DatabaseSection(**server.section())


@pytest.fixture
def ledger(server: DatabaseServer, servers: Servers) -> Iterator[Ledger]:
    with Ledger(server.servers(servers)) as kept:
        yield kept


@pytest.fixture
async def store(config: DatabaseSection) -> AsyncIterator[Store]:
    async with aio.open_loop(), open_store(config, application_name="test_backlog") as opened:
        await opened.create_schema()
        await opened.fetch_all("TRUNCATE scenarios, commands CASCADE")
        await opened.fetch_all("ALTER SEQUENCE scenario_ids RESTART")
        yield opened


@pytest.fixture
def backlog(store: Store) -> Backlog:
    return Backlog(store)


@pytest.fixture
async def other(store: Store, config: DatabaseSection) -> AsyncIterator[Backlog]:
    """Another orchestrator's connection."""
    async with open_store(config, application_name="another") as opened:
        yield Backlog(opened)


async def submit(backlog: Backlog, scenario_id: int = 0, video: str = VIDEO, **changes: Any) -> int:
    given: dict[str, Any] = {"settings": {}, "max_failures": 5, "max_epochs": 50} | changes
    settings = given.pop("settings")
    return await backlog.submit(scenario_id, video, settings, **given)


async def due(
    backlog: Backlog, node: str = NODE, *, room: int = 100, limit: int = 100, lease_seconds: float = LEASE_SECONDS
) -> list[Work]:
    return await backlog.due(node, room=room, limit=limit, lease_seconds=lease_seconds)


async def begin(backlog: Backlog, store: Store, scenario_id: int, node: str = NODE) -> Claim:
    """As an orchestrator and its runner do it, whatever else is due, and however long this one was to wait."""
    await store.fetch_all(
        "UPDATE scenarios SET not_before = not_before + interval '100 years' WHERE id <> $1", scenario_id
    )
    await store.fetch_all("UPDATE scenarios SET not_before = 'epoch', spawn_until = NULL WHERE id = $1", scenario_id)
    (work,) = await due(backlog, node, limit=1)
    assert work.scenario_id == scenario_id
    await store.fetch_all(
        "UPDATE scenarios SET not_before = not_before - interval '100 years' WHERE id <> $1", scenario_id
    )
    return await store.claim(attempt(scenario_id, epoch=work.epoch, video=work.video_path))


async def fail(store: Store, claim: Claim, error_class: str = "retriable", code: str = "x", **error: Any) -> bool:
    return await store.fail(
        claim,
        event_id=str(uuid.uuid4()),
        reporter="runner",
        error_class=error_class,
        body=json.dumps({"error": {"code": code, **error}}).encode(),
        retry_after_seconds=0.0,
    )


async def give_up(backlog: Backlog, store: Store, scenario_id: int) -> None:
    assert await fail(store, await begin(backlog, store, scenario_id), "permanent", "video_missing", message="gone")


async def complete(backlog: Backlog, store: Store, scenario_id: int) -> None:
    claim = await begin(backlog, store, scenario_id)
    await store.store(claim, 0, [make_result(0)])
    await store.finish(claim, 1, "active")


async def state(store: Store, scenario_id: int) -> dict[str, Any]:
    (row,) = await reading.scenarios(store, scenario_id)
    return row


# submit


async def test_a_submitted_scenario_is_due(backlog: Backlog, store: Store) -> None:
    given = await submit(backlog, settings={"video": {"stride": 2}}, max_failures=3, max_epochs=7)
    row = await state(store, given)
    assert (row["status"], row["epoch"], row["max_failures"], row["last_epoch"]) == ("init_startup", 1, 3, 7)
    expected = Work(scenario_id=given, epoch=1, video_path=VIDEO, settings={"video": {"stride": 2}})
    assert await due(backlog) == [expected]


async def test_new_ids_pass_over_those_given_by_hand(backlog: Backlog) -> None:
    assert [await submit(backlog, each) for each in (1, 2, 4)] == [1, 2, 4]
    assert [await submit(backlog) for _ in range(3)] == [3, 5, 6]


async def test_submitting_again_changes_nothing(backlog: Backlog, store: Store) -> None:
    settings = {"video": {"stride": 2, "max_fps": 0}}
    await submit(backlog, 7, settings=settings)
    before = await state(store, 7)
    reordered = {"video": {"max_fps": 0.0, "stride": 2}}
    assert await submit(backlog, 7, settings=reordered, max_failures=1, max_epochs=1) == 7
    assert await state(store, 7) == before


@pytest.mark.parametrize("changes", [{"video": "/other.mp4"}, {"settings": {"video": {"stride": 2}}}])
async def test_another_video_or_other_settings_are_refused(backlog: Backlog, changes: dict[str, Any]) -> None:
    await submit(backlog, 7)
    with pytest.raises(ClaimRefusedError, match=rf"scenario 7 exists with another video or other settings: {VIDEO}"):
        await submit(backlog, 7, **changes)


async def test_a_url_that_was_signed_anew_takes_the_place_of_the_old_one(backlog: Backlog, store: Store) -> None:
    old, new = (f"https://media.example/7.mp4?X-Amz-Signature={number}" for number in (1, 2))
    await submit(backlog, 7, video=old)
    await give_up(backlog, store, 7)
    assert await submit(backlog, 7, video=new) == 7
    (work,) = await due(backlog)
    assert (work.scenario_id, work.video_path) == (7, new)
    for other in ("https://media.example/8.mp4?X-Amz-Signature=2", "/srv/7.mp4"):
        with pytest.raises(ClaimRefusedError, match="another video"):
            await submit(backlog, 7, video=other)
    await begin(backlog, store, 7)
    with pytest.raises(ClaimRefusedError, match="another video"):
        await submit(backlog, 7, video=old)
    assert (await state(store, 7))["video_path"] == new


async def test_a_completed_scenario_is_not_done_again(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    await complete(backlog, store, 7)
    with pytest.raises(ScenarioCompletedError, match="1 frames stored"):
        await submit(backlog, 7)


async def test_a_scenario_given_up_takes_a_retry(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    await give_up(backlog, store, 7)
    with pytest.raises(ClaimRefusedError, match=r"given up: video_missing; to try again: trio-runner retry CONFIG 7"):
        await submit(backlog, 7)


async def test_submitting_a_running_scenario_leaves_it_running(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    claim = await begin(backlog, store, 7)
    await store.store(claim, 0, [make_result(0)])
    await submit(backlog, 7)
    assert (await state(store, 7))["status"] == "active"
    await store.heartbeat(claim)


async def test_a_stopped_scenario_goes_on(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    assert await backlog.stop(7) == "init_shutdown"
    assert await backlog.shutdowns() == []
    assert (await state(store, 7))["status"] == "inactive"
    assert await due(backlog) == []
    await submit(backlog, 7)
    assert [work.epoch for work in await due(backlog)] == [1]


async def test_a_stop_that_no_node_has_seen_is_taken_back(backlog: Backlog) -> None:
    await submit(backlog, 7)
    await backlog.stop(7)
    await submit(backlog, 7)
    assert await backlog.shutdowns() == []
    assert len(await due(backlog)) == 1


@pytest.mark.parametrize("stored", [0, 3])
async def test_submitting_while_a_runner_drains_takes_the_stop_back(
    backlog: Backlog, store: Store, stored: int
) -> None:
    await submit(backlog, 7)
    claim = await begin(backlog, store, 7)
    if stored:
        await store.store(claim, 0, [make_result(each) for each in range(stored)])
    await backlog.stop(7)
    assert await backlog.shutdowns() == [(7, 1)]
    await submit(backlog, 7)
    assert (await state(store, 7))["status"] == ("active" if stored else "in_startup_processing")
    assert await backlog.shutdowns() == []
    assert await fail(store, claim, "interrupted")
    assert [(work.epoch, work.failures) for work in await due(backlog)] == [(2, 0)]


# stop


async def test_stop_in_every_status(backlog: Backlog, store: Store) -> None:
    for each in range(1, 5):
        await submit(backlog, each)
    waiting, starting, active, done = 1, 2, 3, 4
    await complete(backlog, store, done)
    await begin(backlog, store, starting)
    await store.store(await begin(backlog, store, active), 0, [make_result(0)])
    assert [await backlog.stop(each) for each in (waiting, starting, active)] == ["init_shutdown"] * 3
    assert [await backlog.stop(each) for each in (waiting, starting, active)] == ["init_shutdown"] * 3
    assert await backlog.shutdowns() == [(starting, 1), (active, 1)]
    assert [await backlog.stop(each) for each in (starting, active)] == ["in_shutdown_processing"] * 2
    assert await backlog.stop(waiting) == "inactive"
    # Stopping a completed scenario makes it inactive.
    assert await backlog.stop(done) == "init_shutdown"
    await backlog.shutdowns()
    row = await state(store, done)
    assert (row["status"], row["outcome"]) == ("inactive", "completed")


async def test_a_scenario_that_does_not_exist_cannot_be_stopped_or_tried_again(backlog: Backlog) -> None:
    with pytest.raises(ClaimRefusedError, match="scenario 7 does not exist"):
        await backlog.stop(7)
    with pytest.raises(ClaimRefusedError, match="scenario 7 does not exist"):
        await backlog.retry(7, max_epochs=50)


async def test_a_runner_that_completes_while_it_is_to_stop_has_completed(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    claim = await begin(backlog, store, 7)
    await store.store(claim, 0, [make_result(0)])
    await backlog.stop(7)
    await store.finish(claim, 1, "active")
    assert await backlog.shutdowns() == []
    row = await state(store, 7)
    assert (row["status"], row["outcome"]) == ("inactive", "completed")


# retry


async def test_a_scenario_given_up_is_tried_again_with_all_its_attempts(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7, max_epochs=3)
    await give_up(backlog, store, 7)
    assert await backlog.retry(7, max_epochs=10) == 2
    row = await state(store, 7)
    assert (row["status"], row["outcome"], row["failures"]) == ("init_startup", None, 0)
    assert (row["last_epoch"], row["dead_letter_due"]) == (11, None)
    assert [(work.epoch, work.last_code) for work in await due(backlog)] == [(2, "video_missing")]


async def test_a_retry_takes_no_attempt_away(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7, max_epochs=50)
    await backlog.retry(7, max_epochs=3)
    assert (await state(store, 7))["last_epoch"] == 50


async def test_a_scenario_that_backs_off_is_due_at_once_after_a_retry(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    await fail(store, await begin(backlog, store, 7))
    await store.fetch_all("UPDATE scenarios SET not_before = now() + interval '1 h', failures = 4")
    assert await due(backlog) == []
    await backlog.retry(7, max_epochs=50)
    assert [(work.epoch, work.failures) for work in await due(backlog)] == [(2, 0)]


async def test_a_stopped_scenario_can_be_tried_again(backlog: Backlog) -> None:
    await submit(backlog, 7)
    await backlog.stop(7)
    await backlog.shutdowns()
    await backlog.retry(7, max_epochs=50)
    assert len(await due(backlog)) == 1


async def test_a_scenario_that_runs_stops_or_is_completed_is_not_tried_again(backlog: Backlog, store: Store) -> None:
    for each in (7, 8):
        await submit(backlog, each)
    await complete(backlog, store, 8)
    with pytest.raises(ScenarioCompletedError):
        await backlog.retry(8, max_epochs=50)
    await begin(backlog, store, 7)
    with pytest.raises(ClaimRefusedError, match="is not dead: it is in_startup_processing"):
        await backlog.retry(7, max_epochs=50)
    await backlog.stop(7)
    with pytest.raises(ClaimRefusedError, match="is not dead: it is init_shutdown"):
        await backlog.retry(7, max_epochs=50)


# due


async def test_two_that_ask_at_once_never_get_the_same(backlog: Backlog, other: Backlog) -> None:
    for _ in range(60):
        await submit(backlog)
    got: list[int] = []

    async def take(which: Backlog, node: str) -> None:
        while works := await due(which, node, limit=3):
            got.extend(work.scenario_id for work in works)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(take, backlog, "node_1")
        nursery.start_soon(take, other, "node_2")
    assert sorted(got) == list(range(1, 61))


async def test_the_longest_due_come_first(backlog: Backlog, store: Store) -> None:
    for _ in range(50):
        await submit(backlog)
    await store.fetch_all("UPDATE scenarios SET not_before = now() - make_interval(secs => (id * 37) % 50)")
    ids = [work.scenario_id for work in await due(backlog, limit=30)]
    assert ids == sorted(range(1, 51), key=lambda each: -(each * 37 % 50))[:30]


async def test_a_scenario_that_began_does_not_queue_behind_those_that_never_did(backlog: Backlog, store: Store) -> None:
    for each in (1, 2, 3):
        await submit(backlog, each)
    await fail(store, await begin(backlog, store, 3), "interrupted")
    await store.fetch_all("UPDATE scenarios SET not_before = now() - interval '1 h' WHERE id < 3")
    assert [work.scenario_id for work in await due(backlog, limit=1)] == [3]
    assert [work.scenario_id for work in await due(backlog, limit=1)] in ([1], [2])


async def test_no_more_than_the_limit_and_the_room(backlog: Backlog, other: Backlog, store: Store) -> None:
    for _ in range(20):
        await submit(backlog)
    assert len(await due(backlog, room=5, limit=3)) == 3
    # Runners that are being started take room, as running ones do.
    (third, *_) = await due(backlog, room=5, limit=9)
    await store.claim(attempt(third.scenario_id, epoch=1))
    assert await due(backlog, room=5, limit=9) == []
    assert await due(backlog, room=1, limit=9) == []
    assert await due(backlog, room=9, limit=0) == []
    assert len(await due(other, "node_2", room=5, limit=9)) == 5
    await complete_all(store, third.scenario_id)
    assert len(await due(backlog, room=5, limit=9)) == 1


async def test_a_scenario_that_was_not_started_in_time_takes_no_room(backlog: Backlog, store: Store) -> None:
    for each in (1, 2):
        await submit(backlog, each)
    (first,) = await due(backlog, room=1)
    assert await due(backlog, room=1) == []
    assert await backlog.postpone(first.scenario_id, 1, NODE, delay_seconds=3600, why="no room")
    (second,) = await due(backlog, room=1)
    assert second.scenario_id != first.scenario_id
    await store.fetch_all("UPDATE scenarios SET spawn_until = now() - interval '1 s' WHERE spawn_until IS NOT NULL")
    assert await due(backlog, room=1) == [second]


async def complete_all(store: Store, scenario_id: int) -> None:
    row = await state(store, scenario_id)
    claim = Claim(
        scenario_id=scenario_id, epoch=row["epoch"], instance_id=str(row["instance_id"]), next_frame=0, frames_stored=0
    )
    await store.store(claim, 0, [make_result(0)])
    await store.finish(claim, 1, "active")


async def test_no_other_node_starts_it_until_the_lease_ends(backlog: Backlog, other: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    assert len(await due(backlog)) == 1
    assert await due(other, "node_2") == []
    await store.fetch_all("UPDATE scenarios SET spawn_until = now() - interval '1 s'")
    assert [work.epoch for work in await due(other, "node_2")] == [1]
    assert (await state(store, 7))["node"] == "node_2"


async def test_nothing_is_due_before_its_time_or_while_it_is_stopped_run_or_over(
    backlog: Backlog, store: Store
) -> None:
    for _ in range(6):
        await submit(backlog)
    await complete(backlog, store, 1)
    await give_up(backlog, store, 2)
    await begin(backlog, store, 3)
    await store.fetch_all("UPDATE scenarios SET spawn_until = NULL")
    await backlog.stop(4)
    await backlog.stop(5)
    await backlog.shutdowns()
    await store.fetch_all("UPDATE scenarios SET status = 'init_shutdown' WHERE id = 5")
    await store.fetch_all("UPDATE scenarios SET not_before = now() + interval '1 min' WHERE id = 6")
    assert await due(backlog) == []
    # As a change by hand: the claim, and that it was given up, still count.
    await store.fetch_all("UPDATE scenarios SET status = 'init_startup', not_before = 'epoch' WHERE id IN (2, 3)")
    assert await due(backlog) == []


# postpone


async def test_a_scenario_that_could_not_be_started_waits_and_shows_why(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    await due(backlog)
    assert await backlog.postpone(7, 1, NODE, delay_seconds=60, why="no [room] here")
    assert await due(backlog) == []
    row = await state(store, 7)
    assert json.loads(row["last_error"]) == {"code": "not_started", "message": "no [room] here"}
    assert (row["epoch"], row["failures"], row["spawn_until"]) == (1, 0, None)
    await store.fetch_all("UPDATE scenarios SET not_before = now()")
    assert [work.last_code for work in await due(backlog)] == ["not_started"]


async def test_only_its_node_postpones_an_attempt_and_only_until_it_is_claimed(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    await due(backlog)
    late = partial(backlog.postpone, delay_seconds=60, why="late")
    assert not await late(7, 1, "node_2")
    assert not await late(7, 2, NODE)
    assert not await late(8, 1, NODE)
    claim = await store.claim(attempt(7, epoch=1))
    assert not await late(7, 1, NODE)
    await fail(store, claim)
    assert not await late(7, 1, NODE)
    assert not await late(7, 2, NODE)
    assert json.loads((await state(store, 7))["last_error"])["code"] == "x"


# shutdowns


async def test_every_node_gets_the_runners_that_are_to_stop(backlog: Backlog, store: Store) -> None:
    """The node in the row may be another than the one whose runner has claimed."""
    for each in (1, 2, 3):
        await submit(backlog, each)
    await begin(backlog, store, 1, "node_1")
    await begin(backlog, store, 2, "node_2")
    for each in (1, 2, 3):
        await backlog.stop(each)
    for _ in range(2):
        assert sorted(await backlog.shutdowns()) == [(1, 1), (2, 1)]
    assert [(await state(store, each))["status"] for each in (1, 2, 3)] == [
        "in_shutdown_processing",
        "in_shutdown_processing",
        "inactive",
    ]


async def test_a_runner_that_starts_when_its_scenario_is_stopped_does_not_begin(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    await due(backlog)
    await backlog.stop(7)
    assert await backlog.shutdowns() == []
    with pytest.raises(ClaimRefusedError, match="scenario 7 is inactive"):
        await store.claim(attempt(7, epoch=1))


async def test_a_runner_that_has_drained_ends_its_shutdown(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    claim = await begin(backlog, store, 7)
    await backlog.stop(7)
    await backlog.shutdowns()
    await fail(store, claim, "interrupted")
    # Any node may ask, because the scenario's own may be gone.
    assert await backlog.shutdowns() == []
    row = await state(store, 7)
    assert (row["status"], row["outcome"], row["epoch"]) == ("inactive", None, 2)


# commands


async def apply(backlog: Backlog, command_id: str, action: str, scenario_id: int = 7, video: str = VIDEO) -> bool:
    return await backlog.apply(command_id, action, scenario_id, video, {}, max_failures=5, max_epochs=50)


async def test_a_command_is_applied_once(backlog: Backlog, store: Store) -> None:
    assert await apply(backlog, "a", "start")
    assert await apply(backlog, "b", "stop", video="")
    await backlog.shutdowns()
    # The first message comes once more, from before the stop, as it does after a lost commit of its offset.
    assert not await apply(backlog, "a", "start")
    assert (await state(store, 7))["status"] == "inactive"
    assert await apply(backlog, "c", "start")
    assert (await state(store, 7))["status"] == "init_startup"
    assert not await apply(backlog, "b", "stop", video="")
    assert (await state(store, 7))["status"] == "init_startup"


async def test_of_two_that_apply_a_command_at_once_one_does(backlog: Backlog, other: Backlog) -> None:
    done: list[bool] = []

    async def do(which: Backlog) -> None:
        done.append(await apply(which, "a", "start"))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(do, backlog)
        nursery.start_soon(do, other)
    assert sorted(done) == [False, True]


async def test_a_refused_command_is_not_taken_for_applied(backlog: Backlog) -> None:
    with pytest.raises(ClaimRefusedError, match="does not exist"):
        await apply(backlog, "a", "stop", video="")
    await apply(backlog, "b", "start")
    assert await apply(backlog, "a", "stop", video="")


# failures


async def test_a_poison_scenario_has_exactly_max_failures_attempts(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7, max_failures=4)
    attempts = 0
    while (await state(store, 7))["outcome"] is None:
        assert await fail(store, await begin(backlog, store, 7))
        attempts += 1
    row = await state(store, 7)
    assert (attempts, row["status"], row["outcome"], row["failures"]) == (4, "inactive", "failed", 4)
    assert len(await reading.attempts(store, 7)) == 4
    assert row["dead_letter_due"] is not None


async def test_a_scenario_that_makes_progress_survives_40_failures(
    backlog: Backlog, store: Store, ledger: Ledger
) -> None:
    await submit(backlog, 7, max_epochs=3)
    for frame in range(40):
        claim = await begin(backlog, store, 7)
        await store.store(claim, frame, [make_result(0, index=frame)])
        await fail(store, claim)
        assert (await state(store, 7))["failures"] == 0
    claim = await begin(backlog, store, 7)
    await store.finish(claim, 40, "active")
    assert (claim.epoch, (await state(store, 7))["outcome"]) == (41, "completed")
    await ledger.check_invariants(7)


async def test_attempts_that_store_nothing_are_counted_however_much_is_stored_already(
    backlog: Backlog, store: Store
) -> None:
    """A runner that is killed while it passes over stored frames has made no progress."""
    await submit(backlog, 7, max_failures=5)
    claim = await begin(backlog, store, 7)
    await store.store(claim, 0, [make_result(number) for number in range(95)])
    await fail(store, claim)
    for count in range(1, 6):
        assert (await state(store, 7))["outcome"] is None
        await fail(store, await begin(backlog, store, 7))
        assert (await state(store, 7))["failures"] == count
    row = await state(store, 7)
    assert (row["outcome"], row["frames_stored"]) == ("failed", 95)
    # Nothing is lost: `retry` continues after the last stored frame.
    await backlog.retry(7, max_epochs=50)
    claim = await begin(backlog, store, 7)
    assert (claim.next_frame, claim.last_pts_seconds) == (95, 94 / 25)


@pytest.mark.parametrize("error_class", ["retriable", "interrupted"])
async def test_the_last_attempt_is_the_last(backlog: Backlog, store: Store, error_class: str) -> None:
    await submit(backlog, 7, max_epochs=3)
    for _ in range(3):
        assert (await state(store, 7))["outcome"] is None
        await fail(store, await begin(backlog, store, 7), error_class)
    row = await state(store, 7)
    assert (row["epoch"], row["last_epoch"], row["outcome"]) == (4, 3, "failed")
    assert row["dead_letter_due"] is not None


@pytest.mark.parametrize("error_class", ["retriable", "interrupted"])
async def test_an_attempt_that_stored_something_does_not_count_towards_giving_up(
    backlog: Backlog, store: Store, error_class: str
) -> None:
    await submit(backlog, 7, max_failures=2, max_epochs=2)
    for frame in range(6):
        claim = await begin(backlog, store, 7)
        await store.store(claim, frame, [make_result(0, index=frame)])
        await fail(store, claim, error_class)
    row = await state(store, 7)
    assert (row["epoch"], row["last_epoch"], row["outcome"], row["failures"]) == (7, 8, None, 0)
    # The attempts that are left are those of the start, for attempts that store nothing.
    for _ in range(2):
        await fail(store, await begin(backlog, store, 7), error_class)
    row = await state(store, 7)
    assert (row["epoch"], row["last_epoch"], row["outcome"]) == (9, 8, "failed")


async def test_an_interrupted_attempt_is_followed_at_once(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    claim = await begin(backlog, store, 7)
    await store.store(claim, 0, [make_result(0)])
    await fail(store, claim, "interrupted")
    assert len(await due(backlog)) == 1


async def test_interruptions_count_neither_as_failures_nor_as_progress(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7, max_failures=2)
    for error_class in ("retriable", "interrupted", "interrupted"):
        await fail(store, await begin(backlog, store, 7), error_class)
    assert (await state(store, 7))["failures"] == 1
    await fail(store, await begin(backlog, store, 7))
    assert (await state(store, 7))["outcome"] == "failed"


async def test_a_death_sets_the_scenario_free_for_every_node(backlog: Backlog, other: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    await fail(store, await begin(backlog, store, 7), "interrupted")
    row = await state(store, 7)
    assert (row["node"], row["spawn_until"]) == (None, None)
    assert len(await due(other, "node_2")) == 1


async def test_the_shutdown_of_a_scenario_given_up_is_over(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    claim = await begin(backlog, store, 7)
    await backlog.stop(7)
    await fail(store, claim, "permanent")
    row = await state(store, 7)
    assert (row["status"], row["outcome"]) == ("inactive", "failed")


# dead letters


async def letters(backlog: Backlog, limit: int = 10) -> list[GivenUp]:
    return await backlog.dead_letters(limit, lease_seconds=60)


async def test_a_dead_letter_is_for_one_until_its_lease_ends_and_over_once_published(
    backlog: Backlog, other: Backlog, store: Store
) -> None:
    await submit(backlog, 7)
    await give_up(backlog, store, 7)
    (letter,) = await letters(backlog)
    error = {"code": "video_missing", "message": "gone"}
    assert letter == GivenUp(scenario_id=7, epoch=1, video_path=VIDEO, failures=1, frames_stored=0, error=error)
    assert await letters(other) == []
    # The node died before it had published the dead letter.
    await store.fetch_all("UPDATE scenarios SET dead_letter_due = now() WHERE dead_letter_due > now()")
    assert await letters(other) == [letter]
    await backlog.mark_dead_letter_published(letter)
    assert (await state(store, 7))["dead_letter_due"] is None
    assert await letters(backlog) == []


async def test_no_more_dead_letters_than_asked_for(backlog: Backlog, store: Store) -> None:
    for each in range(1, 6):
        await submit(backlog, each)
        await give_up(backlog, store, each)
    assert [len(await letters(backlog, 3)) for _ in range(3)] == [3, 2, 0]


async def test_a_retry_takes_the_dead_letter_back(backlog: Backlog, store: Store) -> None:
    await submit(backlog, 7)
    await give_up(backlog, store, 7)
    (letter,) = await letters(backlog)
    await backlog.retry(7, max_epochs=50)
    # This dead letter was being published at that moment; the next one belongs to another attempt.
    await give_up(backlog, store, 7)
    await backlog.mark_dead_letter_published(letter)
    assert [each.epoch for each in await letters(backlog)] == [2]


async def test_a_scenario_started_again_by_hand_is_no_dead_letter(backlog: Backlog, store: Store) -> None:
    """A mistyped path may be corrected by hand; the dead letter of before must not be published for ever."""
    await submit(backlog, 7)
    await give_up(backlog, store, 7)
    claim = await store.claim(attempt(7, video="/right.mp4"))
    assert await letters(backlog) == []
    await store.store(claim, 0, [make_result(0)])
    await store.finish(claim, 1, "active")
    assert await letters(backlog) == []


# what is asked


async def test_the_last_attempts_come_with_their_errors_the_newest_first(backlog: Backlog, store: Store) -> None:
    for each in range(1, 6):
        await submit(backlog, each)
    await fail(store, await begin(backlog, store, 1), code="inference_timeout")
    claim = await begin(backlog, store, 2)
    await store.store(claim, 0, [make_result(0)])
    await fail(store, claim, code="store_lost")
    await complete(backlog, store, 3)
    await begin(backlog, store, 4)
    claim = await begin(backlog, store, 5)
    await store.store(claim, 0, [make_result(0)])
    expected = [
        RecentAttempt(code=None, progressed=True),
        RecentAttempt(code=None, progressed=False),
        RecentAttempt(code=None, progressed=True),
        RecentAttempt(code="store_lost", progressed=True),
        RecentAttempt(code="inference_timeout", progressed=False),
    ]
    assert await backlog.recent_attempts(10) == expected
    assert await backlog.recent_attempts(2) == expected[:2]


async def test_the_backlog_counts_each_condition(backlog: Backlog, store: Store) -> None:
    for each in range(1, 10):
        await submit(backlog, each)
    await complete(backlog, store, 1)
    await give_up(backlog, store, 2)
    await begin(backlog, store, 3)
    await store.store(await begin(backlog, store, 4), 0, [make_result(0)])
    await begin(backlog, store, 5)
    await backlog.stop(5)
    await store.fetch_all("UPDATE scenarios SET spawn_until = NULL WHERE id IN (6, 7)")
    await store.fetch_all("UPDATE scenarios SET not_before = now() + interval '1 h', spawn_until = NULL WHERE id = 8")
    await backlog.stop(9)
    await backlog.shutdowns()
    counts = await backlog.counts()
    assert (counts.due, counts.backing_off) == (2, 1)
    # 3 has stored nothing yet.
    assert (counts.unproven, counts.running, counts.stopping) == (1, 3, 1)
    assert await backlog.unproven() == 1
    assert {work.scenario_id for work in await due(backlog)} == {6, 7}
    counts = await backlog.counts()
    assert (counts.due, counts.backing_off, counts.unproven) == (0, 1, 3)
    assert await backlog.unproven() == 3


async def test_the_overview_has_every_scenario_with_its_last_attempt(backlog: Backlog, store: Store) -> None:
    for each in (9, 7, 8):
        await submit(backlog, each)
    await fail(store, await begin(backlog, store, 7))
    claim = await begin(backlog, store, 7)
    await store.store(claim, 0, [make_result(each) for each in range(3)])
    await complete(backlog, store, 8)
    first, second, third = await backlog.overview()
    assert [row["id"] for row in (first, second, third)] == [7, 8, 9]
    assert (first["epoch"], first["frames_stored"], first["node"]) == (2, 3, NODE)
    assert (str(first["instance_id"]), first["runner_id"]) == (claim.instance_id, "runner_1")
    assert 0 < first["lease_seconds"] <= 30
    assert first["frames_per_second"] > 0
    assert (second["outcome"], second["total_frames"], second["instance_id"]) == ("completed", 1, None)
    assert (third["epoch"], third["runner_id"], third["frames_per_second"]) == (1, None, None)


async def test_only_a_death_that_the_ledger_has_yet_to_record_is_returned(backlog: Backlog, store: Store) -> None:
    for each in (7, 8):
        await submit(backlog, each)
    known, unknown = await begin(backlog, store, 7), await begin(backlog, store, 8)
    await fail(store, known)
    another = str(uuid.uuid4())
    forged = [replace(claim, instance_id=another) for claim in (known, unknown)]
    assert await backlog.reconcile([*forged, replace(unknown, epoch=2), replace(unknown, scenario_id=9)]) == set()
    await store.hand_over([(7, 1)])
    assert await store.unpublished(10, lease_seconds=0.0, scenario_id=8) == []
    assert await store.unpublished(10, lease_seconds=0.0, scenario_id=7) == [(7, 1)]
    assert await backlog.reconcile([known, unknown, unknown]) == {(8, 1)}
    # An event that Kafka has is published by nobody else.
    assert await store.unpublished(10, lease_seconds=0.0) == []


async def test_an_event_that_waits_is_given_to_one_process_at_a_time(backlog: Backlog, store: Store) -> None:
    for each in (7, 8):
        await submit(backlog, each)
        await fail(store, await begin(backlog, store, each))
    assert await store.unpublished(10, lease_seconds=60.0) == [], "their reporters may still publish them"
    assert await store.count_unpublished() == 2
    await store.hand_over([(7, 1), (8, 1)])
    assert await store.unpublished(1, lease_seconds=60.0) == [(7, 1)]
    assert await store.unpublished(10, lease_seconds=60.0) == [(8, 1)]
    assert await store.unpublished(10, lease_seconds=60.0) == []
    await store.hand_over([(8, 1)])
    await store.mark_published(8, 1)
    await store.hand_over([(7, 1), (8, 1)])
    assert await store.unpublished(10, lease_seconds=60.0) == [(7, 1)]
    assert await store.count_unpublished() == 1, "also an event that a process has taken"


async def test_the_claim_on_an_epoch_is_found(backlog: Backlog, store: Store) -> None:
    assert await backlog.holder_of(7, 1) is None
    await submit(backlog, 7)
    holder = await backlog.holder_of(7, 1)
    assert holder is not None
    assert (holder.video_path, holder.claim, holder.runner_id, holder.ended) == (VIDEO, None, "", False)
    claim = await begin(backlog, store, 7)
    await store.store(claim, 0, [make_result(0)])
    holder = await backlog.holder_of(7, 1)
    assert holder is not None
    assert holder.claim is not None
    assert (holder.claim.instance_id, holder.claim.next_frame, holder.ended) == (claim.instance_id, 1, False)
    await fail(store, claim)
    holder = await backlog.holder_of(7, 1)
    assert holder is not None
    assert (holder.ended, holder.runner_id) == (True, "runner_1")
    for epoch in (0, 2, 99):
        holder = await backlog.holder_of(7, epoch)
        assert holder is not None
        assert holder.claim is None


async def test_an_id_that_no_row_can_have_is_an_error_with_a_name(backlog: Backlog) -> None:
    for call in (backlog.stop(2**63), backlog.retry(-(2**70), max_epochs=5), submit(backlog, -1)):
        with pytest.raises(RunnerError) as caught:
            await call
        assert caught.value.code is ErrorCode.STORE_REJECTED


async def test_a_reaped_scenario_goes_to_any_node(
    backlog: Backlog, other: Backlog, store: Store, ledger: Ledger
) -> None:
    await submit(backlog, 7)
    claim = await begin(backlog, store, 7)
    await expire(ledger, 7)
    recorded = await store.fail(
        claim, event_id=str(uuid.uuid4()), reporter="reaper", error_class="retriable", body=b"{}", retry_after_seconds=0
    )
    assert recorded
    await store.fetch_all("UPDATE scenarios SET not_before = now()")
    assert [work.epoch for work in await due(other, "node_2")] == [2]


async def test_settings_that_were_written_by_hand_are_sections_or_refused(backlog: Backlog, store: Store) -> None:
    insert = "INSERT INTO scenarios (id, video_path, settings) VALUES ($1, '/a.mp4', $2)"
    with pytest.raises(RunnerError, match="scenarios_settings_check"):
        await store.fetch_all(insert, 7, '{"video": 3}')
    await store.fetch_all(insert, 8, '{"video": {"stride": 1e999, "max_fps": 99999999999999999999999999}}')
    (work,) = await due(backlog)
    assert work.settings == {"video": {"stride": math.inf, "max_fps": math.inf}}

"""The calls of a runner, on a real PostgreSQL."""

from __future__ import annotations

import math
import socket
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any

import asyncpg
import jsonschema
import msgspec
import pytest
import trio

from tests.support.harness import Ledger, Servers, until
from tests.support.hostile_answers import DETECTIONS_SCHEMA
from tests.support.makers import VIDEO, attempt, expire, make_result, report
from trio_runner.base import aio
from trio_runner.config.sections import DatabaseSection
from trio_runner.database import reading
from trio_runner.database.store import Store, open_store
from trio_runner.errors import ClaimRefusedError, ErrorCode, RunnerError, ScenarioCompletedError, SupersededError
from trio_runner.failure.record import claim_scenario
from trio_runner.kafka.retry_event import event_id
from trio_runner.model import Claim, Detection


@pytest.fixture
def config(servers: Servers) -> DatabaseSection:
    return DatabaseSection(**servers.database)


@pytest.fixture
async def store(config: DatabaseSection) -> AsyncIterator[Store]:
    async with aio.open_loop(), open_store(config, application_name="test_store") as opened:
        yield opened


async def seconds_of_lease(ledger: Ledger, scenario_id: int) -> float:
    rows = await ledger.query(
        "SELECT extract(epoch FROM lease_until - clock_timestamp())::float8 AS left FROM scenarios WHERE id = $1",
        scenario_id,
    )
    left: float = rows[0]["left"]
    return left


# claiming


async def test_a_scenario_that_is_not_there_is_made_and_claimed(store: Store, ledger: Ledger, scenario_id: int) -> None:
    asked = attempt(scenario_id, max_failures=3)
    claim = await store.claim(asked)
    assert claim == Claim(
        scenario_id=scenario_id, epoch=1, instance_id=asked.instance_id, next_frame=0, frames_stored=0
    )
    row = await ledger.existing(scenario_id)
    assert (row["status"], row["outcome"], row["epoch"]) == ("in_startup_processing", None, 1)
    assert (str(row["instance_id"]), row["video_path"], row["max_failures"]) == (asked.instance_id, VIDEO, 3)
    (begun,) = await ledger.attempts(scenario_id)
    assert (begun["epoch"], begun["runner_id"], begun["host"]) == (1, "runner_1", socket.gethostname())
    assert (begun["first_frame"], begun["ended_at"], begun["outcome"]) == (0, None, None)


async def test_a_claim_is_worth_a_lease(
    store: Store, ledger: Ledger, scenario_id: int, config: DatabaseSection
) -> None:
    await store.claim(attempt(scenario_id))
    assert 0 < await seconds_of_lease(ledger, scenario_id) <= config.lease_seconds


async def test_a_named_attempt_at_a_scenario_that_is_not_there_is_refused(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    with pytest.raises(ClaimRefusedError, match="does not exist"):
        await store.claim(attempt(scenario_id, epoch=1))
    assert await ledger.scenario(scenario_id) is None


async def test_a_scenario_of_a_living_runner_is_refused(store: Store, scenario_id: int) -> None:
    await store.claim(attempt(scenario_id))
    with pytest.raises(ClaimRefusedError, match=r"another runner, whose lease ends in \d+ s") as caught:
        await store.claim(attempt(scenario_id))
    assert caught.value.code is ErrorCode.CLAIM_REFUSED
    assert "If that runner is dead, run again then, or let `trio-runner reap CONFIG` report it" in str(caught.value)
    assert not isinstance(caught.value, ScenarioCompletedError)


async def test_a_completed_scenario_is_refused_as_completed(store: Store, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0)])
    await store.finish(claim, 1, "active")
    for epoch in (0, 1, 2):
        with pytest.raises(ScenarioCompletedError, match="1 frames stored"):
            await store.claim(attempt(scenario_id, epoch=epoch))


async def test_a_scenario_of_another_video_is_refused(store: Store, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0)])
    await report(store, claim)
    with pytest.raises(ClaimRefusedError, match=r"another video: /videos/a\.mp4"):
        await store.claim(attempt(scenario_id, video="/videos/b.mp4"))


async def test_a_mistyped_video_does_not_spend_the_scenario(store: Store, ledger: Ledger, scenario_id: int) -> None:
    await report(store, await store.claim(attempt(scenario_id)), "permanent")
    with pytest.raises(ClaimRefusedError, match="another video"):
        await store.claim(attempt(scenario_id, epoch=2, video="/videos/b.mp4"))
    claim = await store.claim(attempt(scenario_id, video="/videos/b.mp4"))
    row = await ledger.existing(scenario_id)
    assert (claim.epoch, row["video_path"], row["failures"]) == (2, "/videos/b.mp4", 0)
    # While a runner works on it, it is that runner's, with or without a frame.
    with pytest.raises(ClaimRefusedError, match="another video"):
        await store.claim(attempt(scenario_id))


async def test_a_claim_has_the_time_of_the_last_stored_frame(store: Store, scenario_id: int) -> None:
    """Exactly, to the last bit: the runner that resumes compares it with the times that it reads from the video."""
    last, next_frame = None, 0
    # A rational of 90 kHz rounded to microseconds, ones that no decimal has, before the start, and after a day.
    for seconds in (0.0, round(1001 / 30000, 6), 1 / 3, -0.041708, 0.1 + 0.2, 86_400.000001, 5e-324):
        asked = attempt(scenario_id)
        claim = await store.claim(asked)
        assert claim.last_pts_seconds == last
        assert await store.claim(asked) == claim, "the reply to the first call was lost"
        frames = [make_result(0, index=next_frame), make_result(1, index=next_frame + 3)]
        await store.store(claim, next_frame, [frames[0], replace(frames[1], pts_seconds=seconds)])
        assert (await store.claim(asked)).last_pts_seconds == seconds
        await report(store, claim)
        last, next_frame = seconds, next_frame + 4


async def test_a_claim_of_a_scenario_that_lost_its_rows_has_no_time(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0), make_result(1)])
    await report(store, claim)
    await ledger.query("DELETE FROM predictions WHERE scenario_id = $1 AND frame_index = 1", scenario_id)
    claim = await store.claim(attempt(scenario_id))
    assert (claim.next_frame, claim.last_pts_seconds) == (2, None)


async def test_a_stopped_scenario_stays_stopped_under_any_path(store: Store, ledger: Ledger, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))
    await report(store, claim)
    await ledger.query("UPDATE scenarios SET status = 'inactive' WHERE id = $1", scenario_id)
    for path in ("/videos/a.mp4", "/videos/other.mp4"):
        with pytest.raises(ClaimRefusedError):
            await store.claim(attempt(scenario_id, video=path))


async def test_a_scenario_given_up_is_refused(store: Store, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))
    await report(store, claim, "permanent")
    for epoch in (0, 2):
        with pytest.raises(ClaimRefusedError, match="given up"):
            await store.claim(attempt(scenario_id, epoch=epoch))


@pytest.mark.parametrize("status", ["init_shutdown", "in_shutdown_processing", "inactive"])
async def test_a_scenario_that_shuts_down_is_refused(
    store: Store, ledger: Ledger, scenario_id: int, status: str
) -> None:
    claim = await store.claim(attempt(scenario_id))
    await report(store, claim)
    await ledger.query("UPDATE scenarios SET status = $2 WHERE id = $1", scenario_id, status)
    with pytest.raises(ClaimRefusedError, match=f"is {status}"):
        await store.claim(attempt(scenario_id))


async def test_a_named_attempt_is_claimed_once_and_by_its_number_only(store: Store, scenario_id: int) -> None:
    await report(store, await store.claim(attempt(scenario_id)))
    for epoch in (1, 3):
        with pytest.raises(SupersededError, match="it is at attempt 2"):
            await store.claim(attempt(scenario_id, epoch=epoch))
    assert (await store.claim(attempt(scenario_id, epoch=2))).epoch == 2
    with pytest.raises(SupersededError):
        await store.claim(attempt(scenario_id, epoch=2))


async def test_a_named_attempt_does_not_take_over(store: Store, ledger: Ledger, scenario_id: int) -> None:
    await store.claim(attempt(scenario_id))
    await expire(ledger, scenario_id)
    with pytest.raises(SupersededError):
        await store.claim(attempt(scenario_id, epoch=1))


async def test_one_process_makes_one_attempt(store: Store, scenario_id: int) -> None:
    """Two reports of one death, which both found no claim, would count it twice."""
    asked = attempt(scenario_id)
    await report(store, await store.claim(asked))
    with pytest.raises(SupersededError, match="the attempt that this process made"):
        await store.claim(asked)
    assert (await store.claim(attempt(scenario_id))).epoch == 2


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "known"])
async def test_of_many_that_claim_at_once_one_wins(
    config: DatabaseSection, store: Store, ledger: Ledger, scenario_id: int, *, is_new: bool
) -> None:
    """Behind a lock that holds them all up, so that they really meet."""
    rivals = f"rivals {scenario_id}"
    won: list[Claim] = []
    refused = 0

    async def claim_once() -> None:
        nonlocal refused
        async with open_store(config, application_name=rivals) as rival:
            try:
                won.append(await rival.claim(attempt(scenario_id)))
            except ClaimRefusedError:
                refused += 1

    async def all_wait() -> bool:
        (row,) = await ledger.query(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name = $1 AND wait_event_type = 'Lock'", rivals
        )
        return bool(row["count"] == 5)

    if not is_new:
        await report(store, await store.claim(attempt(scenario_id)))
    await store.fetch_all("BEGIN")
    # An uncommitted row of this id holds up an INSERT, and a locked one holds up a claim.
    await store.fetch_all(
        "INSERT INTO scenarios (id, video_path) VALUES ($1, $2)"
        " ON CONFLICT (id) DO UPDATE SET video_path = excluded.video_path",
        scenario_id,
        VIDEO,
    )
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(claim_once)
        await until(all_wait, described="all rivals wait")
        await store.fetch_all("COMMIT")
    assert (len(won), refused) == (1, 4)


async def test_values_that_fit_no_column_are_rejected_and_not_called_a_lost_connection(
    store: Store, scenario_id: int
) -> None:
    with pytest.raises(RunnerError) as caught:
        await store.claim(attempt(scenario_id, max_failures=2**31))
    assert caught.value.code is ErrorCode.STORE_REJECTED
    # The connection still works.
    assert (await store.claim(attempt(scenario_id))).epoch == 1


@pytest.mark.parametrize(
    ("state", "code"),
    [
        ("53100", ErrorCode.STORE_REJECTED),
        ("53200", ErrorCode.STORE_REJECTED),
        ("42501", ErrorCode.STORE_AUTH),
        ("55P03", ErrorCode.STORE_TIMEOUT),
        ("57P01", ErrorCode.STORE_LOST),
    ],
)
async def test_a_resource_that_the_server_lacks_has_a_code(store: Store, state: str, code: ErrorCode) -> None:
    with pytest.raises(RunnerError, match="no space") as caught:
        await store.fetch_all(f"DO $$ BEGIN RAISE EXCEPTION 'no space' USING ERRCODE = '{state}'; END $$")
    assert caught.value.code is code


# storing


async def test_the_first_stored_batch_makes_a_scenario_active_and_nothing_else_does(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.heartbeat(claim)
    assert (await ledger.existing(scenario_id))["status"] == "in_startup_processing"
    await store.store(claim, 0, [make_result(0)])
    assert (await ledger.existing(scenario_id))["status"] == "active"


async def test_a_batch_is_rows_and_progress_at_once(store: Store, ledger: Ledger, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0, index=10, labels=("dog", "cat")), make_result(1, index=13)])
    await store.store(claim, 14, [make_result(2, index=16, labels=("dog",))])
    row = await ledger.existing(scenario_id)
    assert (row["next_frame"], row["frames_stored"]) == (17, 3)
    rows = await ledger.predictions(scenario_id)
    assert [(row["frame_index"], row["epoch"], len(row["detections"])) for row in rows] == [
        (10, 1, 2),
        (13, 1, 0),
        (16, 1, 1),
    ]
    assert rows[0]["detections"][0] == {"label": "dog", "confidence": 0.5, "bbox": [1.0, 2.0, 3.0, 4.5]}
    assert [row["pts_seconds"] for row in rows] == [0.0, 0.04, 0.08]
    assert rows[0]["inference_ms"] == 1.5


async def test_a_thousand_frames_fit_into_one_batch(store: Store, ledger: Ledger, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(number, labels=("dog",) * 3) for number in range(1_000)])
    assert (await ledger.existing(scenario_id))["frames_stored"] == 1_000


async def test_storing_and_heartbeats_renew_the_lease(store: Store, ledger: Ledger, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))
    for renew in (partial(store.heartbeat, claim), partial(store.store, claim, 0, [make_result(0)])):
        await expire(ledger, scenario_id)
        await renew()
        assert await seconds_of_lease(ledger, scenario_id) > 0


@pytest.mark.parametrize("expected", [0, 1, 3, 10])
async def test_a_batch_that_does_not_go_on_where_the_ledger_is_stores_nothing(
    store: Store, ledger: Ledger, scenario_id: int, expected: int
) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0), make_result(1)])
    with pytest.raises(RunnerError, match="not where this runner left it") as caught:
        await store.store(claim, expected, [make_result(10)])
    assert caught.value.code is ErrorCode.STORE_REJECTED
    row = await ledger.existing(scenario_id)
    assert (row["next_frame"], row["frames_stored"]) == (2, 2)
    assert len(await ledger.predictions(scenario_id)) == 2


@pytest.mark.parametrize("indices", [[2, 2], [2, 1], [0, 5]])
async def test_a_batch_that_repeats_or_turns_back_is_refused_whole(
    store: Store, ledger: Ledger, scenario_id: int, indices: list[int]
) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0), make_result(1)])
    with pytest.raises(RunnerError) as caught:
        await store.store(claim, 2, [make_result(n, index=index) for n, index in enumerate(indices)])
    assert caught.value.code is ErrorCode.STORE_REJECTED
    row = await ledger.existing(scenario_id)
    assert (row["next_frame"], row["frames_stored"]) == (2, 2)
    assert [row["frame_index"] for row in await ledger.predictions(scenario_id)] == [0, 1]


async def test_writer_and_heartbeat_share_the_connection(store: Store, ledger: Ledger, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))

    async def beat() -> None:
        for _ in range(20):
            await store.heartbeat(claim)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(beat)
        for number in range(20):
            await store.store(claim, number, [make_result(number)])
    assert (await ledger.existing(scenario_id))["frames_stored"] == 20


async def test_the_view_has_a_row_for_every_box(store: Store, ledger: Ledger, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))
    found = (Detection("dog", 0.25, (0.0, 1.5, 2.0, 3.0)), Detection('"Größe\\"', None, (4.0, 5.0, 6.0, 7.25)))
    await store.store(claim, 0, [replace(make_result(0), detections=found), make_result(1)])
    rows = await ledger.query("SELECT * FROM detections WHERE scenario_id = $1 ORDER BY x1", scenario_id)
    assert [tuple(row.values()) for row in rows] == [
        (scenario_id, 0, 0.0, "dog", 0.25, 0.0, 1.5, 2.0, 3.0, 640, 480, None, {}),
        (scenario_id, 0, 0.0, '"Größe\\"', None, 4.0, 5.0, 6.0, 7.25, 640, 480, None, {}),
    ]
    assert await reading.label_counts(store, scenario_id) == [
        {"label": '"Größe\\"', "detections": 1, "frames": 1},
        {"label": "dog", "detections": 1, "frames": 1},
    ]


WHOLE = Detection(
    "person",
    0.5,
    (0.0, 0.0, 9.5, 9.0),
    class_id=-(2**63),
    attributes={
        "keypoints": [[1.0, 2.5, 0.25], [3.0, 4.0, None]],
        "mask": {"polygon": [[0.0, 0.0], [9.5, 0.0], [9.5, 9.0]]},
        "track_id": 17,
        "text": "STOP",
        "raw": {"anything": [1, None, {"at": "all"}]},
    },
)
NO_BOXES = (
    Detection("cat", 0.75, None),
    Detection("class 0", None, None, class_id=0),
    Detection("dog", 1.0, (1.0, 2.0, 3.0, 4.0), attributes={"mask": {"rle": {"size": [480, 640], "counts": "abc"}}}),
    Detection("dog", 0.0, (1.0, 2.0, 3.0, 4.0), attributes={"mask": {"rle": {"size": [2, 2], "counts": [1, 3]}}}),
    Detection("car", 0.5, (1.0, 2.0, 3.0, 4.0), attributes={"track_id": "a-7"}),
    WHOLE,
)


async def test_what_is_stored_of_a_frame_is_what_its_schema_says(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    claim = await store.claim(attempt(scenario_id))
    found = (*NO_BOXES, Detection("dog", None, (0.0, 1.5, 2.0, 3.0)))
    await store.store(claim, 0, [replace(make_result(0), detections=found), make_result(1)])
    for row in await ledger.predictions(scenario_id):
        DETECTIONS_SCHEMA.validate(row["detections"])
    (stored, _) = await ledger.predictions(scenario_id)
    assert msgspec.convert(stored["detections"], tuple[Detection, ...]) == found


def test_the_schema_of_stored_detections_is_sound_and_refuses_what_no_reader_expects() -> None:
    jsonschema.Draft202012Validator.check_schema(DETECTIONS_SCHEMA.schema)
    good = {"label": "dog", "confidence": 0.5, "bbox": [1, 2, 3, 4]}
    DETECTIONS_SCHEMA.validate([good])
    for broken in (
        {"label": "dog", "confidence": 0.5},
        {"label": "dog", "bbox": None},
        good | {"label": ""},
        good | {"confidence": 1.5},
        good | {"bbox": [1, 2, 3]},
        good | {"box": None},
        good | {"class_id": 2**63},
        good | {"attributes": {}},
        good | {"attributes": {"keypoints": [[1, 2]]}},
        good | {"attributes": {"mask": {"polygon": [], "rle": {"size": [1, 1], "counts": []}}}},
        good | {"attributes": {"shoe_size": 43}},
    ):
        with pytest.raises(jsonschema.ValidationError):
            DETECTIONS_SCHEMA.validate([broken])


async def test_the_view_has_class_and_attributes_and_no_corners_where_there_is_no_box(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    claim = await store.claim(attempt(scenario_id))
    found = (Detection("cat", 0.75, None, class_id=3), WHOLE)
    await store.store(claim, 0, [replace(make_result(0), detections=found)])
    rows = await ledger.query("SELECT * FROM detections WHERE scenario_id = $1 ORDER BY label", scenario_id)
    assert [(row["label"], row["x1"], row["y1"], row["x2"], row["y2"], row["class_id"]) for row in rows] == [
        ("cat", None, None, None, None, 3),
        ("person", 0.0, 0.0, 9.5, 9.0, -(2**63)),
    ]
    assert [row["attributes"] for row in rows] == [{}, WHOLE.attributes]


async def test_text_that_postgresql_cannot_hold_costs_no_attempt(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    r"""PostgreSQL's jsonb refuses a NUL; a backslash that stands before `u0000` in the text is no NUL."""
    claim = await store.claim(attempt(scenario_id))
    attributes = {"text": "a\x00b\x00\x00", "raw": {"k\x00": ["\\u0000", "\\\x00", "\\\\u0000"]}}
    await store.store(claim, 0, [replace(make_result(0), detections=(Detection("x", None, None, None, attributes),))])
    (row,) = await ledger.predictions(scenario_id)
    assert row["detections"][0]["attributes"] == {
        "text": "a\ufffdb\ufffd\ufffd",
        "raw": {"k\ufffd": ["\\u0000", "\\\ufffd", "\\\\u0000"]},
    }


async def test_a_frame_that_was_not_inferred_is_never_one_in_which_nothing_was_seen(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    claim = await store.claim(attempt(scenario_id))
    assert claim.frames_not_inferred == 0
    failed = replace(make_result(1), error="inference_rejected: 413\nat http://me:c4n4ry@host/\x00" + "x" * 2000)
    await store.store(claim, 0, [make_result(0, labels=("dog", "cat")), failed, make_result(2)])
    rows = await ledger.predictions(scenario_id)
    assert [row["detections"] is None for row in rows] == [False, True, False]
    error = rows[1]["error"]
    assert error.startswith("inference_rejected: 413 at http://")
    assert (len(error), "c4n4ry" in error, "\x00" in error) == (1000, False, False)
    frames = await ledger.query("SELECT * FROM frames WHERE scenario_id = $1 ORDER BY frame_index", scenario_id)
    assert [(row["inferred"], row["error"], row["detections"]) for row in frames] == [
        (True, None, 2),
        (False, error, None),
        (True, None, 0),
    ]
    assert (frames[0]["width"], frames[0]["height"], frames[0]["inference_ms"]) == (640, 480, 1.5)
    assert len(await ledger.query("SELECT * FROM detections WHERE scenario_id = $1", scenario_id)) == 2
    # The frame is stored, and the next attempt does not infer it either.
    await report(store, claim)
    again = await store.claim(attempt(scenario_id))
    assert (again.next_frame, again.frames_stored, again.frames_not_inferred) == (3, 3, 1)
    await store.store(again, 3, [replace(make_result(3), error="x")])
    await store.finish(again, 4, "active")


@pytest.mark.parametrize(("detections", "error"), [("[]", "x"), (None, None), (None, ""), ("{}", None), ("null", None)])
async def test_a_frame_has_detections_or_a_reason_and_never_both_or_neither(
    store: Store, ledger: Ledger, scenario_id: int, detections: str | None, error: str | None
) -> None:
    await store.claim(attempt(scenario_id))
    with pytest.raises(asyncpg.CheckViolationError):
        await ledger.query(
            "INSERT INTO predictions (scenario_id, frame_index, epoch, pts_seconds, width, height, inference_ms,"
            " detections, error) VALUES ($1, 0, 1, 0, 2, 2, 0, $2::text::jsonb, $3)",
            scenario_id,
            detections,
            error,
        )


async def test_a_program_of_revision_1_stores_without_errors(store: Store, ledger: Ledger, scenario_id: int) -> None:
    """While a fleet is upgraded, its older runners go on: they call `store` with eleven arguments."""
    claim = await store.claim(attempt(scenario_id))
    await store.fetch_one(
        "SELECT store($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
        scenario_id,
        claim.epoch,
        uuid.UUID(claim.instance_id),
        timedelta(seconds=30),
        0,
        *([0, 1], [0.0, 0.04], [640, 640], [480, 480], ["[]", "[]"], [1.0, 1.0]),
    )
    assert [row["error"] for row in await ledger.predictions(scenario_id)] == [None, None]


async def test_each_row_has_the_size_of_its_own_picture(store: Store, ledger: Ledger, scenario_id: int) -> None:
    """A video may change its size on the way."""
    sizes = [(640, 480), (480, 640), (1, 1), (65_535, 65_535)]
    claim = await store.claim(attempt(scenario_id))
    results = [make_result(number, labels=("dog",), size=size) for number, size in enumerate(sizes)]
    await store.store(claim, 0, results)
    rows = await ledger.predictions(scenario_id)
    assert [(row["width"], row["height"]) for row in rows] == sizes
    boxes = await ledger.query("SELECT * FROM detections WHERE scenario_id = $1 ORDER BY frame_index", scenario_id)
    assert [(row["width"], row["height"]) for row in boxes] == sizes


NO_NUMBERS: list[dict[str, Any]] = [
    *({"inference_ms": value} for value in (-math.inf, -1.0, math.inf, math.nan)),
    *({"pts_seconds": value} for value in (-math.inf, math.inf, math.nan, None)),
    *({"width": value} for value in (0, -1, 65_536, 2**31, 2**63, None)),
    *({"height": value} for value in (0, -1, 65_536, 2**31, 2**63, None)),
]


@pytest.mark.parametrize("broken", NO_NUMBERS, ids=str)
async def test_numbers_that_are_none_stay_out(
    store: Store, ledger: Ledger, scenario_id: int, broken: dict[str, Any]
) -> None:
    """The last line of defence, should a protocol or a decoder ever let one through."""
    claim = await store.claim(attempt(scenario_id))
    with pytest.raises(RunnerError) as caught:
        await store.store(claim, 0, [make_result(0), replace(make_result(1), **broken)])
    assert caught.value.code is ErrorCode.STORE_REJECTED
    assert await ledger.predictions(scenario_id) == []


# finishing


@pytest.mark.parametrize("status", ["active", "inactive"])
async def test_finishing_completes_the_scenario(store: Store, ledger: Ledger, scenario_id: int, status: str) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0), make_result(1)])
    await store.finish(claim, 2, status)
    row = await ledger.existing(scenario_id)
    assert (row["status"], row["outcome"], row["total_frames"]) == (status, "completed", 2)
    assert (row["instance_id"], row["lease_until"], row["failures"]) == (None, None, 0)
    (ended,) = await ledger.attempts(scenario_id)
    assert (ended["outcome"], ended["end_frame"], ended["error"]) == ("completed", 2, None)
    await ledger.check_invariants(scenario_id)


@pytest.mark.parametrize("total", [0, 1, 3])
async def test_finishing_is_refused_when_the_count_is_off(
    store: Store, ledger: Ledger, scenario_id: int, total: int
) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0), make_result(1)])
    with pytest.raises(RunnerError, match="has 2 frames stored") as caught:
        await store.finish(claim, total, "active")
    assert caught.value.code is ErrorCode.STORE_REJECTED
    assert (await ledger.existing(scenario_id))["outcome"] is None
    assert (await ledger.attempts(scenario_id))[0]["outcome"] is None


async def test_an_attempt_that_finds_everything_stored_finishes(store: Store, ledger: Ledger, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0)])
    await report(store, claim)
    again = await store.claim(attempt(scenario_id))
    assert (again.next_frame, again.frames_stored) == (1, 1)
    await store.finish(again, 1, "active")
    await ledger.check_invariants(scenario_id)


# the fence


async def superseded(store: Store, ledger: Ledger, scenario_id: int) -> tuple[Claim, Claim]:
    """A claim that was taken over, and the one that took it."""
    old = await store.claim(attempt(scenario_id))
    await store.store(old, 0, [make_result(0), make_result(1)])
    await expire(ledger, scenario_id)
    return old, await claim_scenario(store, attempt(scenario_id))


async def test_a_takeover_goes_on_where_the_ledger_is(store: Store, ledger: Ledger, scenario_id: int) -> None:
    old, new = await superseded(store, ledger, scenario_id)
    assert (old.epoch, new.epoch, new.next_frame, new.frames_stored) == (1, 2, 2, 2)
    row = await ledger.existing(scenario_id)
    assert (row["status"], row["failures"]) == ("in_startup_processing", 0)
    first, second = await ledger.attempts(scenario_id)
    assert (first["outcome"], first["end_frame"]) == ("lost", 2)
    assert (second["outcome"], second["first_frame"]) == (None, 2)
    (death,) = await ledger.retry_events(scenario_id)
    assert (death["epoch"], death["reporter"]) == (1, "takeover")
    assert str(death["event_id"]) == event_id(scenario_id, 1, old.instance_id)
    assert death["body"]["error"]["code"] == "lease_expired"
    assert await store.unpublished_event(scenario_id, 1) is None


async def test_a_claim_whose_lost_reply_outlasts_the_lease_is_still_its_owners(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    asking = attempt(scenario_id)
    claim = await store.claim(asking)
    await expire(ledger, scenario_id)
    assert await claim_scenario(store, asking) == claim
    assert await ledger.retry_events(scenario_id) == []


Verb = Callable[[Store, Claim], Awaitable[Any]]
VERBS: dict[str, Verb] = {
    "store": lambda store, claim: store.store(claim, 2, [make_result(2)]),
    "heartbeat": lambda store, claim: store.heartbeat(claim),
    "finish": lambda store, claim: store.finish(claim, 2, "active"),
}


@pytest.mark.parametrize("verb", VERBS)
async def test_a_superseded_runner_changes_nothing(store: Store, ledger: Ledger, scenario_id: int, verb: str) -> None:
    old, _ = await superseded(store, ledger, scenario_id)
    before = await ledger.existing(scenario_id)
    with pytest.raises(SupersededError, match="it is at attempt 2"):
        await VERBS[verb](store, old)
    assert await ledger.existing(scenario_id) == before
    assert len(await ledger.predictions(scenario_id)) == 2


async def test_the_death_of_a_superseded_runner_changes_nothing(store: Store, ledger: Ledger, scenario_id: int) -> None:
    old, _ = await superseded(store, ledger, scenario_id)
    before = await ledger.existing(scenario_id)
    assert await report(store, old) is False
    assert await ledger.existing(scenario_id) == before
    assert len(await ledger.retry_events(scenario_id)) == 1


@pytest.mark.parametrize("verb", VERBS)
async def test_another_process_of_the_same_attempt_changes_nothing(
    store: Store, ledger: Ledger, scenario_id: int, verb: str
) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0), make_result(1)])
    before = await ledger.existing(scenario_id)
    stranger = replace(claim, instance_id=str(uuid.uuid4()))
    with pytest.raises(SupersededError):
        await VERBS[verb](store, stranger)
    assert await report(store, stranger) is False
    assert await ledger.existing(scenario_id) == before


@pytest.mark.parametrize("verb", VERBS)
async def test_an_earlier_attempt_of_the_same_process_changes_nothing(
    store: Store, ledger: Ledger, scenario_id: int, verb: str
) -> None:
    """`claim` gives one process one attempt, so a second one of the same instance is made by hand."""
    old = await store.claim(attempt(scenario_id))
    await store.store(old, 0, [make_result(0), make_result(1)])
    await report(store, old)
    assert (await store.claim(attempt(scenario_id))).epoch == 2
    for table in (
        "scenarios SET instance_id = $2 WHERE id = $1",
        "attempts SET instance_id = $2 WHERE scenario_id = $1",
    ):
        await ledger.query(f"UPDATE {table} AND epoch = 2", scenario_id, uuid.UUID(old.instance_id))
    before = await ledger.existing(scenario_id)
    with pytest.raises(SupersededError):
        await VERBS[verb](store, old)
    assert await report(store, old) is False
    assert await ledger.existing(scenario_id) == before


@pytest.mark.parametrize("verb", VERBS)
async def test_nothing_can_be_done_after_the_end(store: Store, ledger: Ledger, scenario_id: int, verb: str) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0), make_result(1)])
    await store.finish(claim, 2, "active")
    before = await ledger.existing(scenario_id)
    with pytest.raises(SupersededError):
        await VERBS[verb](store, claim)
    assert await report(store, claim) is False
    assert await ledger.existing(scenario_id) == before


# failing


async def test_a_death_releases_the_claim_and_opens_the_next_attempt(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0)])
    assert await report(store, claim, code="store_lost") is True
    row = await ledger.existing(scenario_id)
    assert (row["status"], row["outcome"], row["epoch"]) == ("init_startup", None, 2)
    assert (row["instance_id"], row["lease_until"]) == (None, None)
    assert row["last_error"] == {"code": "store_lost"}
    (ended,) = await ledger.attempts(scenario_id)
    assert (ended["outcome"], ended["end_frame"], ended["error"]) == ("failed", 1, {"code": "store_lost"})
    (death,) = await ledger.retry_events(scenario_id)
    assert (death["epoch"], death["reporter"]) == (1, "runner")
    await ledger.check_invariants(scenario_id)


async def test_the_first_report_of_a_death_wins(store: Store, ledger: Ledger, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))
    assert await report(store, claim, code="first") is True
    before = await ledger.existing(scenario_id)
    assert await report(store, claim, "permanent", code="second") is False
    assert await ledger.existing(scenario_id) == before
    (death,) = await ledger.retry_events(scenario_id)
    assert death["body"] == {"error": {"code": "first"}}


async def test_attempts_without_progress_are_counted_up_to_the_last(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    for failures in (1, 2, 3):
        await report(store, await store.claim(attempt(scenario_id, max_failures=3)))
        assert (await ledger.existing(scenario_id))["failures"] == failures
    row = await ledger.existing(scenario_id)
    assert (row["status"], row["outcome"], row["epoch"]) == ("inactive", "failed", 4)
    with pytest.raises(ClaimRefusedError, match="given up: x"):
        await store.claim(attempt(scenario_id))
    await ledger.check_invariants(scenario_id)


async def test_progress_starts_the_count_anew(store: Store, ledger: Ledger, scenario_id: int) -> None:
    for frame in range(6):
        await report(store, await store.claim(attempt(scenario_id, max_failures=3)))
        claim = await store.claim(attempt(scenario_id))
        await store.store(claim, frame, [make_result(frame)])
        await report(store, claim)
        row = await ledger.existing(scenario_id)
        assert (row["status"], row["outcome"]) == ("init_startup", None)
    await ledger.check_invariants(scenario_id)


async def test_an_attempt_with_progress_is_none_of_the_failures_without(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    """`max_failures` counts failed attempts in a row without progress, as runner.toml states."""
    claim = await store.claim(attempt(scenario_id, max_failures=1))
    await store.store(claim, 0, [make_result(0)])
    await report(store, claim)
    assert (await ledger.existing(scenario_id))["outcome"] is None


async def test_an_interrupted_attempt_does_not_count_and_may_go_on_at_once(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    for _ in range(3):
        claim = await store.claim(attempt(scenario_id, max_failures=1))
        await report(store, claim, "interrupted")
    row = await ledger.existing(scenario_id)
    assert (row["failures"], row["status"], row["epoch"]) == (0, "init_startup", 4)
    assert [ended["outcome"] for ended in await ledger.attempts(scenario_id)] == ["interrupted"] * 3
    (due,) = await ledger.query(
        "SELECT not_before <= clock_timestamp() AS now FROM scenarios WHERE id = $1", scenario_id
    )
    assert due["now"]


async def test_a_permanent_failure_is_the_last(store: Store, ledger: Ledger, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0)])
    await report(store, claim, "permanent")
    row = await ledger.existing(scenario_id)
    assert (row["status"], row["outcome"]) == ("inactive", "failed")
    await ledger.check_invariants(scenario_id)


async def test_retry_after_is_the_least_of_the_wait(store: Store, ledger: Ledger, scenario_id: int) -> None:
    await report(store, await store.claim(attempt(scenario_id)), retry_after_seconds=250)
    (row,) = await ledger.query(
        "SELECT extract(epoch FROM not_before - updated_at)::float8 AS wait FROM scenarios WHERE id = $1", scenario_id
    )
    # The first failure alone waits up to 2 s.
    assert 250 <= row["wait"] < 251


async def test_the_wait_grows_with_the_failures_and_is_bounded(store: Store, ledger: Ledger, scenario_id: int) -> None:
    for failures in range(1, 12):
        await report(store, await store.claim(attempt(scenario_id, max_failures=100)))
        (row,) = await ledger.query(
            "SELECT extract(epoch FROM not_before - updated_at)::float8 AS wait FROM scenarios WHERE id = $1",
            scenario_id,
        )
        assert 0 <= row["wait"] <= min(300, 2**failures) + 1


async def test_a_takeover_that_spends_the_last_attempt_is_refused_and_recorded(
    store: Store, ledger: Ledger, scenario_id: int
) -> None:
    await store.claim(attempt(scenario_id, max_failures=1))
    await expire(ledger, scenario_id)
    with pytest.raises(ClaimRefusedError, match="given up"):
        await claim_scenario(store, attempt(scenario_id))
    row = await ledger.existing(scenario_id)
    assert (row["status"], row["outcome"], row["instance_id"]) == ("inactive", "failed", None)
    assert await store.unpublished_event(scenario_id, 1) is not None, "no attempt follows: a reaper has to publish it"
    await ledger.check_invariants(scenario_id)


async def test_the_ledger_goes_backwards_for_no_caller(store: Store, ledger: Ledger, scenario_id: int) -> None:
    claim = await store.claim(attempt(scenario_id))
    await store.store(claim, 0, [make_result(0)])
    await store.finish(claim, 1, "active")
    for change in ("epoch = 1 - 1", "next_frame = 0", "frames_stored = 0", "outcome = NULL"):
        with pytest.raises(asyncpg.PostgresError):
            await ledger.query(f"UPDATE scenarios SET {change} WHERE id = $1", scenario_id)  # noqa: S608 - ours

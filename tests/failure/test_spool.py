"""The spool: what Kafka did not take is on the disk, also on a full one, and goes out later under the same id."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.support.harness import PATIENCE_SECONDS, Servers, environment, read_topic
from trio_runner.base import aio, files
from trio_runner.config.load import Config
from trio_runner.config.sections import KafkaSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.failure import spool as spool_module
from trio_runner.failure.outbox import publish_spooled
from trio_runner.failure.spool import RESERVE_BYTES, Spool, SpooledRecord
from trio_runner.kafka import connection as kafka


def record(number: int = 1, value: str = '{"a": "é"}') -> SpooledRecord:
    return SpooledRecord(
        id=f"00000000-0000-0000-0000-{number:012}",
        topic="runner.retry",
        key="7",
        headers=(("ce_id", "x"), ("ce_epoch", "3")),
        value=value,
    )


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    spool = Spool(tmp_path / "state" / "spool")
    yield spool
    spool.close()


def fill(directory: Path) -> None:
    with pytest.raises(OSError, match="No space left"):
        (directory / "filler").write_bytes(bytes(2**20))


async def test_what_is_put_can_be_read_by_another_process_later(spool: Spool) -> None:
    path = await spool.put(record())
    other = Spool(spool.directory)
    assert await other.waiting() == [path]
    assert await other.read(path) == record()
    assert path.stat().st_mode & 0o777 == 0o600
    assert spool.directory.stat().st_mode & 0o777 == 0o700
    assert [file.name for file in spool.directory.iterdir()] == [path.name]
    await other.remove(path)
    assert await spool.waiting() == []
    assert await spool.read(path) is None


async def test_the_same_event_twice_is_one_file(spool: Spool) -> None:
    await spool.put(record())
    await spool.put(record(value="{}"))
    (path,) = await spool.waiting()
    read = await spool.read(path)
    assert read is not None
    assert read.value == "{}"


async def test_records_wait_in_the_order_of_their_coming(spool: Spool) -> None:
    paths = [await spool.put(record(number)) for number in (3, 1, 2)]
    for moment, path in enumerate(paths):
        os.utime(path, ns=(0, 10**18 + moment))
    assert await spool.waiting() == paths


async def test_on_a_full_disk_the_reserve_takes_the_event(small_disk: Path) -> None:
    spool = Spool(small_disk / "spool")
    await spool.reserve()
    fill(small_disk)
    # Larger than anything that 64 KiB, filled up, could still give.
    path = await spool.put(record(value='"' + 16_000 * "x" + '"'))
    read = await spool.read(path)
    assert read == record(value='"' + 16_000 * "x" + '"')
    assert [file.name for file in spool.directory.iterdir()] == [path.name]

    with pytest.raises(RunnerError, match="No space left") as caught:
        await spool.reserve()
    assert caught.value.code is ErrorCode.SPOOL_UNUSABLE
    with pytest.raises(RunnerError, match="No space left"):
        await spool.put(record(2))
    assert await spool.waiting() == [path], "nothing half-written lies among the events"
    # Delivered, it makes room for the next one.
    await spool.remove(path)
    await spool.reserve()
    spool.close()


async def test_a_full_disk_before_the_start_is_found_at_the_start(small_disk: Path) -> None:
    fill(small_disk)
    with pytest.raises(RunnerError, match="No space left") as caught:
        await Spool(small_disk).reserve()
    assert caught.value.code is ErrorCode.SPOOL_UNUSABLE
    assert str(small_disk) in caught.value.message
    assert "kafka.spool_dir" in caught.value.message


async def test_every_process_has_a_reserve_of_its_own_and_none_is_left_behind(spool: Spool) -> None:
    other = Spool(spool.directory)
    await spool.reserve()
    await spool.reserve()
    await other.reserve()
    reserves = sorted(spool.directory.glob("*.reserve"))
    assert [path.stat().st_size for path in reserves] == [RESERVE_BYTES] * 2
    other.close()
    third = Spool(spool.directory)
    await third.reserve()
    assert sorted(spool.directory.glob("*.reserve")) == reserves
    third.close()


def test_the_reserve_of_a_killed_process_serves_the_next_one(spool: Spool) -> None:
    script = (
        "import sys, trio; from pathlib import Path; from trio_runner.failure.spool import Spool\n"
        "spool = Spool(Path(sys.argv[1])); trio.run(spool.reserve); print(flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(spool.directory)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        (left,) = spool.directory.glob("*.reserve")
        process.send_signal(signal.SIGKILL)
        process.wait()
    left.write_bytes(b"half an ev")
    trio.run(spool.reserve)
    assert list(spool.directory.glob("*.reserve")) == [left]
    assert left.stat().st_size == RESERVE_BYTES


async def test_what_is_no_event_is_set_aside_and_holds_nothing_up(spool: Spool) -> None:
    good = await spool.put(record())
    bad = good.with_name(f"{uuid.uuid4()}.json")
    bad.write_text('{"id": 1}')
    assert await spool.read(bad) is None
    assert await spool.waiting() == [good]
    assert bad.with_suffix(".bad").read_text() == '{"id": 1}'


async def test_what_else_lies_there_is_left_alone(spool: Spool) -> None:
    good = await spool.put(record())
    (spool.directory / "servers.json").write_text("{}")
    (spool.directory / "a.reserve").symlink_to("/proc/version")
    (spool.directory / "b.reserve").mkdir()
    fifo = spool.directory / f"{uuid.uuid4()}.json"
    os.mkfifo(fifo)
    await spool.reserve()
    assert good in await spool.waiting()
    with trio.fail_after(PATIENCE_SECONDS):
        assert await spool.read(fifo) is None
    assert await spool.waiting() == [good]
    assert (spool.directory / "servers.json").read_text() == "{}"


async def test_a_directory_that_may_not_be_read_is_not_empty(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: Path) -> None:
        raise PermissionError(13, "Permission denied")

    await spool.put(record())
    monkeypatch.setattr(Path, "iterdir", refuse)
    with pytest.raises(RunnerError, match="Permission denied"):
        await spool.waiting()


@pytest.mark.parametrize("make", [Path.touch, lambda path: path.symlink_to("/proc/version")], ids=["file", "link"])
async def test_a_directory_that_is_none_is_named(tmp_path: Path, make: object) -> None:
    assert callable(make)
    make(tmp_path / "spool")
    for use in (Spool(tmp_path / "spool").reserve, lambda: Spool(tmp_path / "spool").put(record())):
        with pytest.raises(RunnerError, match=r"kafka\.spool_dir") as caught:
            await use()
        assert caught.value.code is ErrorCode.SPOOL_UNUSABLE


async def test_a_disk_that_does_not_answer_is_not_waited_for(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(spool_module, "PUT_SECONDS", 0.05)
    monkeypatch.setattr(spool, "_put", lambda *_: answers.wait(60))
    try:
        with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RunnerError, match="did not answer within"):
            await spool.put(record())
    finally:
        answers.set()


async def test_a_write_that_ends_late_still_goes_into_the_reserve_and_nowhere_else(
    spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow, ended = threading.Event(), threading.Event()
    write_whole = files.write_whole

    def no_room(*_: object) -> None:
        raise OSError("no room")

    def write_late(descriptor: int, content: bytes) -> None:
        trio.from_thread.run_sync(patience.cancel)
        slow.wait(60)
        write_whole(descriptor, content)

    def note_sync(_: Path) -> None:
        ended.set()

    await spool.reserve()
    monkeypatch.setattr(spool_module, "PUT_SECONDS", 60.0)
    monkeypatch.setattr(spool_module, "write_whole", write_late)
    monkeypatch.setattr(spool_module, "_sync_directory", note_sync)
    monkeypatch.setattr(spool_module, "write_private", no_room)
    # As its deadline does; a thread that had yet to begin by then would show nothing.
    with trio.CancelScope() as patience:
        await spool.put(record())
    assert patience.cancelled_caught
    spool.close()
    with (tmp_path / "other").open("wb") as other:
        slow.set()
        assert await trio.to_thread.run_sync(ended.wait, 60)
        assert os.fstat(other.fileno()).st_size == 0
    (path,) = await spool.waiting()
    assert await spool.read(path) == record()


async def test_one_process_at_a_time_empties_it(spool: Spool) -> None:
    await spool.put(record())
    async with spool.flushing() as first, Spool(spool.directory).flushing() as second:
        assert (first, second) == (True, False)
    async with Spool(spool.directory).flushing() as third:
        assert third


@given(value=st.text(max_size=300), key=st.text(max_size=20))
def test_any_text_survives(tmp_path_factory: pytest.TempPathFactory, value: str, key: str) -> None:
    async def there_and_back() -> SpooledRecord | None:
        spool = Spool(tmp_path_factory.getbasetemp() / "any")
        return await spool.read(await spool.put(sent))

    sent = SpooledRecord(id=str(uuid.UUID(int=1)), topic="t", key=key, headers=(("a", value),), value=value)
    assert trio.run(there_and_back) == sent


@pytest.mark.kafka
async def test_a_record_that_its_topic_does_not_take_holds_up_no_other(
    spool: Spool, servers: Servers, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    really_send = kafka.send

    async def send(config: KafkaSection, to: str, *rest: Any) -> None:
        # As Apache Kafka does; the mock cluster lets everybody write to everything.
        if to == "forbidden":
            raise RunnerError(ErrorCode.KAFKA_TOPIC, "not to this one")
        await really_send(config, to, *rest)

    monkeypatch.setattr(kafka, "send", send)
    stuck = msgspec.structs.replace(record(1), topic="forbidden")
    await spool.put(stuck)
    good = msgspec.structs.replace(record(2), topic=topic, headers=(("ce_id", "good"),))
    await spool.put(good)
    os.utime(spool.directory / f"{stuck.id}.json", ns=(0, 0))
    config = Config().replace(kafka={"brokers": servers.brokers, "publish_timeout_seconds": 2.0})
    async with aio.open_loop():
        done = await publish_spooled(config, spool)
    assert (done.sent, done.waiting) == (1, 1)
    assert done.problem is not None
    assert done.problem.code is ErrorCode.KAFKA_TOPIC
    assert [path.stem for path in await spool.waiting()] == [stuck.id]
    assert [event.headers for event in await read_topic(servers.brokers, topic)] == [{"ce_id": "good"}]


async def test_a_topic_that_refused_one_record_is_not_tried_again_in_this_pass(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    async def send(_: KafkaSection, to: str, *__: Any) -> None:
        await trio.lowlevel.checkpoint()
        asked.append(to)
        if to == "retired":
            raise RunnerError(ErrorCode.KAFKA_TOPIC, "no such topic")

    monkeypatch.setattr(kafka, "send", send)
    for number, topic in enumerate(["retired", "retired", "retired", "good"]):
        path = await spool.put(msgspec.structs.replace(record(number), topic=topic))
        os.utime(path, ns=(number, number))
    done = await publish_spooled(Config(), spool)
    assert asked == ["retired", "good"]
    assert (done.sent, done.waiting) == (1, 3)


async def test_a_link_that_leads_nowhere_holds_up_no_record(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    async def send(*_: Any) -> None:
        await trio.lowlevel.checkpoint()

    monkeypatch.setattr(kafka, "send", send)
    path = await spool.put(record(1))
    loop = spool.directory / f"{record(2).id}.json"
    loop.symlink_to(loop)
    assert set(await spool.waiting()) == {path, loop}
    done = await publish_spooled(Config(), spool)
    assert (done.sent, done.waiting, done.problem) == (1, 0, None)
    assert loop.with_suffix(".bad").is_symlink()

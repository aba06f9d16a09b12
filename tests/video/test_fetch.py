"""The fetcher child against a real web server: whole files or none, resumed, within the bounds of its cache."""

from __future__ import annotations

import base64
import fcntl
import hashlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from tests.support.certificates import Authority
from tests.support.harness import PATIENCE_SECONDS, environment, free_port
from tests.support.storage import PREFIX, Fault, Storage, open_storage
from trio_runner.config.location import parse_location
from trio_runner.config.sections import StorageSection
from trio_runner.errors import RunnerError
from trio_runner.video.fetch import connecting, messages
from trio_runner.video.fetch.__main__ import Fetcher
from trio_runner.video.fetch.signing import signed_headers

MIB = 2**20
CONTENT = random.Random(14).randbytes(3 * MIB + 17)
SECRET = "X-Amz-Signature=5up3r53cr3t"


class Child:
    """A fetcher, and the records that it has written."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process

    def record(self) -> messages.Record:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, "it ended without a record"
        return messages.decode(line)

    def result(self) -> messages.Ready | messages.Fault:
        while isinstance(record := self.record(), messages.Received | messages.Waiting):
            pass
        return record


def order_of(url: str, cache: Path, **options: Any) -> messages.Order:
    credentials = options.pop("credentials", None)
    only_look = options.pop("only_look", False)
    prefix = url.partition("?")[0].rpartition("/")[0] + "/"
    named = {"url_prefixes": (prefix,), "cache_dir": str(cache), "stall_timeout_seconds": 5.0, **options}
    return messages.Order(url=url, storage=StorageSection(**named), credentials=credentials, only_look=only_look)


@contextmanager
def started(url: str, cache: Path, **options: Any) -> Iterator[Child]:
    """A fetcher as a process."""
    order = order_of(url, cache, **options)
    process = subprocess.Popen(
        [sys.executable, "-m", "trio_runner.video.fetch"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert process.stdin is not None
    try:
        process.stdin.write(messages.encode(order) + b"\n")
        process.stdin.flush()
        yield Child(process)
    finally:
        process.kill()
        _, err = process.communicate()
        assert b"Traceback" not in err, err.decode()
        assert SECRET.encode() not in err


def fetched(url: str, cache: Path, **options: Any) -> messages.Ready | messages.Fault:
    """The last record of a fetcher that lives in this process, which saves the start of another."""
    with Path(os.devnull).open("wb") as out:
        fetcher = Fetcher(order_of(url, cache, **options), out.fileno())
        result = fetcher.result()
    if fetcher.reading is not None:
        os.close(fetcher.reading)
    assert SECRET not in msgspec.json.encode(result).decode()
    return result


def whole_file(url: str, cache: Path, **options: Any) -> bytes:
    result = fetched(url, cache, **options)
    assert isinstance(result, messages.Ready), result
    return Path(result.path).read_bytes()


def test_a_process_fetches_like_an_object_of_this_one(tmp_path: Path) -> None:
    with open_storage(CONTENT) as storage, started(url_of(storage), tmp_path) as child:
        ready = child.result()
        assert isinstance(ready, messages.Ready)
        assert Path(ready.path).read_bytes() == CONTENT
        with started(f"{storage.url}{PREFIX}", tmp_path) as other:
            refused = other.result()
    assert isinstance(refused, messages.Fault)
    assert refused.code == "video_refused"


@pytest.fixture
def storage() -> Iterator[Storage]:
    with open_storage(CONTENT) as opened:
        yield opened


def url_of(storage: Storage, name: str = "a.mp4") -> str:
    return f"{storage.url}{PREFIX}{name}?{SECRET}"


def test_it_is_fetched_once_and_asked_about_each_time(storage: Storage, tmp_path: Path) -> None:
    first = fetched(url_of(storage), tmp_path)
    second = fetched(f"{url_of(storage)}0ther", tmp_path)
    assert isinstance(first, messages.Ready)
    assert isinstance(second, messages.Ready)
    assert (first.fetched, second.fetched, first.path) == (True, False, second.path)
    assert first.path.endswith(".mp4")
    assert Path(first.path).read_bytes() == CONTENT
    assert [each[":path"].partition("?")[0] for each in storage.asked] == [f"{PREFIX}a.mp4"] * 2
    assert storage.sent == len(CONTENT)
    assert storage.asked[0]["accept-encoding"] == "identity"
    assert not {"authorization", "cookie", "referer"} & storage.asked[0].keys()
    assert Path(first.path).stat().st_mode & 0o777 == 0o600


def test_without_a_name_of_its_version_it_is_fetched_each_time(storage: Storage, tmp_path: Path) -> None:
    storage.etag = None
    assert whole_file(url_of(storage), tmp_path) == CONTENT
    storage.content = CONTENT[::-1]
    assert whole_file(url_of(storage), tmp_path) == CONTENT[::-1]


def test_a_changed_object_is_another_file(storage: Storage, tmp_path: Path) -> None:
    first = fetched(url_of(storage), tmp_path)
    storage.plan = lambda number: Fault.CHANGED if number == 1 else None
    second = fetched(url_of(storage), tmp_path)
    assert isinstance(first, messages.Ready)
    assert isinstance(second, messages.Ready)
    assert first.path != second.path, "a reader of the first one goes on with it"
    assert Path(second.path).read_bytes() == storage.content != CONTENT


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (Fault.CUT, "storage_unavailable"),
        (Fault.STALL, "storage_timeout"),
        (Fault.LESS, "storage_unavailable"),
        (Fault.REDIRECT, "video_refused"),
        (Fault.REDIRECT_CIRCLE, "storage_bad_answer"),
        (Fault.GZIP, "storage_bad_answer"),
        (Fault.ENDLESS, "storage_bad_answer"),
        (Fault.NO_LENGTH, "storage_bad_answer"),
        (Fault.EMPTY, "storage_bad_answer"),
        (Fault.NOT_HTTP, "storage_bad_answer"),
        (Fault.WRONG_CHECKSUM, "storage_bad_answer"),
        (Fault.HUGE, "video_refused"),
        (Fault.DRIP, "storage_timeout"),
        (403, "storage_denied"),
        (401, "storage_denied"),
        (404, "storage_missing"),
        (410, "storage_missing"),
        (429, "storage_unavailable"),
        (500, "storage_unavailable"),
        (503, "storage_unavailable"),
        (400, "storage_bad_answer"),
        (204, "storage_bad_answer"),
        (304, "storage_bad_answer"),
        (206, "storage_bad_answer"),
    ],
)
def test_a_fault_has_a_code_and_leaves_no_file_that_could_be_read(
    tmp_path: Path, fault: Fault | int, code: str
) -> None:
    with open_storage(CONTENT[: 300 * 1024]) as storage:
        storage.plan = lambda _: fault
        options = {"fetch_timeout_seconds": 2.0} if fault is Fault.DRIP else {"stall_timeout_seconds": 1.0}
        result = fetched(url_of(storage), tmp_path, **options)
        assert isinstance(result, messages.Fault)
        assert (result.code, result.message.startswith(f"{storage.url}{PREFIX}a.mp4: ")) == (code, True), result
        assert result.retry_after_seconds == (7 if code == "storage_unavailable" and isinstance(fault, int) else None)
        assert list(tmp_path.glob("*-*")) == []
        # And once the storage is well again, all of it is had.
        storage.plan = lambda _: None
        assert whole_file(url_of(storage), tmp_path) == storage.content


@pytest.mark.parametrize(
    ("fault", "query", "remedy"),
    [
        (Fault.STALL, "", "no byte for 1 s (storage.stall_timeout_seconds). Look at the network, or raise that"),
        (Fault.REDIRECT, "", "Add the target's directory to storage.url_prefixes, if it is to be trusted"),
        (Fault.NO_LENGTH, "", "its answer has no Content-Length. Let the server send the video as a file"),
        (Fault.CUT, "", "Look at the network and at the server's log"),
        (403, "", "The server does not let this runner read it"),
        (403, f"?{SECRET}", "A presigned URL may have expired"),
        (400, "", "it answered 400. Correct video.path, or look at the server's log"),
        (503, "", "it answered 503. Look at the server's log, or try again later"),
    ],
)
def test_a_fault_is_reported_with_its_remedy(tmp_path: Path, fault: Fault | int, query: str, remedy: str) -> None:
    with open_storage(CONTENT[: 300 * 1024]) as storage:
        storage.plan = lambda _: fault
        result = fetched(f"{storage.url}{PREFIX}a.mp4{query}", tmp_path, stall_timeout_seconds=1.0)
    assert isinstance(result, messages.Fault)
    assert result.message.endswith(remedy)


def test_a_server_that_cannot_be_reached_is_reported_with_its_remedy(tmp_path: Path) -> None:
    port = free_port()
    result = fetched(f"http://127.0.0.1:{port}/a.mp4", tmp_path)
    assert isinstance(result, messages.Fault)
    assert result.message.endswith("Connection refused. Correct video.path, or start the server")
    endpoint = f"http://127.0.0.1:{port}"
    result = fetched("s3://bucket/a.mp4", tmp_path, s3_endpoint=endpoint)
    assert isinstance(result, messages.Fault)
    assert result.message.endswith("Connection refused. Correct storage.s3_endpoint, or start the server")


def test_what_came_before_a_cut_is_not_fetched_again(storage: Storage, tmp_path: Path) -> None:
    storage.cut_at = MIB // 2
    storage.plan = lambda number: Fault.CUT if number == 0 else None
    assert isinstance(fetched(url_of(storage), tmp_path), messages.Fault)
    assert whole_file(url_of(storage), tmp_path) == CONTENT
    assert storage.asked[1]["range"] == f"bytes={MIB // 2}-"
    assert storage.sent == len(CONTENT)


def test_a_part_that_is_complete_is_not_fetched_again(storage: Storage, tmp_path: Path) -> None:
    """A fetcher that was killed between the last byte and the file's name leaves one."""
    storage.cut_at = MIB // 2
    storage.plan = lambda number: Fault.CUT if number == 0 else None
    assert isinstance(fetched(url_of(storage), tmp_path), messages.Fault)
    (part,) = tmp_path.glob("*.part")
    part.write_bytes(CONTENT)
    assert whole_file(url_of(storage), tmp_path) == CONTENT
    assert storage.sent == MIB // 2 + 1


@pytest.mark.parametrize(("kind", "right"), [("sha256", True), ("crc32", True), ("crc32", False)])
def test_the_storages_checksum_of_the_whole_object_is_compared(
    storage: Storage, tmp_path: Path, kind: str, *, right: bool
) -> None:
    digest = hashlib.sha256(CONTENT).digest() if kind == "sha256" else zlib.crc32(CONTENT).to_bytes(4)
    storage.checksums = {f"x-amz-checksum-{kind}": base64.b64encode(digest if right else digest[::-1]).decode()}
    storage.cut_at = MIB
    storage.plan = lambda number: Fault.CUT if number == 0 else None
    assert isinstance(fetched(url_of(storage), tmp_path), messages.Ready if right else messages.Fault)
    assert len(list(tmp_path.glob("*-*"))) == right


def test_a_connection_that_brought_much_is_followed_by_another_in_the_same_attempt(
    storage: Storage, tmp_path: Path
) -> None:
    storage.cut_at = MIB
    storage.plan = lambda number: Fault.CUT if number < 3 else None
    assert whole_file(url_of(storage), tmp_path) == CONTENT
    assert [each.get("range") for each in storage.asked] == [None, *(f"bytes={n * MIB}-" for n in (1, 2, 3))]
    assert storage.sent == len(CONTENT)


@pytest.mark.parametrize("fault", [Fault.CHANGED, Fault.OTHER_PART, 416])
def test_parts_of_two_versions_are_never_put_together(storage: Storage, tmp_path: Path, fault: Fault | int) -> None:
    storage.cut_at = MIB
    storage.plan = {0: Fault.CUT, 1: fault}.get
    assert whole_file(url_of(storage), tmp_path) == storage.content


def test_an_answer_to_another_range_is_not_taken(storage: Storage, tmp_path: Path) -> None:
    storage.cut_at = MIB
    storage.plan = {0: Fault.CUT, 1: Fault.WRONG_RANGE}.get
    result = fetched(url_of(storage), tmp_path)
    assert isinstance(result, messages.Fault)
    assert result.code == "storage_bad_answer"


def test_a_redirect_within_the_prefixes_is_followed(storage: Storage, tmp_path: Path) -> None:
    storage.plan = lambda number: Fault.REDIRECT_INSIDE if number == 0 else None
    assert whole_file(url_of(storage), tmp_path) == CONTENT
    assert storage.asked[1][":path"] == f"{PREFIX}moved.mp4?token=again", "the signature is for the first place alone"


@pytest.mark.parametrize("place", ["http://127.0.0.1:9/other/", "//127.0.0.2/videos/a", "file:///etc/passwd", "/x"])
def test_a_redirect_out_of_the_prefixes_is_refused(storage: Storage, tmp_path: Path, place: str) -> None:
    storage.elsewhere, storage.plan = place, lambda number: Fault.REDIRECT if number == 0 else None
    result = fetched(url_of(storage), tmp_path)
    assert isinstance(result, messages.Fault)
    assert (result.code, len(storage.asked)) == ("video_refused", 1)


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "0177.0.0.1", "127.1", "[::ffff:127.0.0.1]"])
def test_a_loopback_address_in_disguise_is_not_connected_to(storage: Storage, tmp_path: Path, host: str) -> None:
    result = fetched(url_of(storage).replace("127.0.0.1", host), tmp_path)
    assert isinstance(result, messages.Fault)
    assert (result.code, storage.asked) == ("video_refused", []), result


def test_a_name_is_looked_up_once_and_what_was_checked_is_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that is harmless when it is checked, and the loopback's when it is connected to, gains nothing."""
    answers = iter([[(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 443))]])
    connected: list[Any] = []

    class Socket:
        def __init__(self, *_: object) -> None:
            pass

        def settimeout(self, _: float) -> None:
            pass

        def connect(self, place: object) -> None:
            connected.append(place)
            raise ConnectionRefusedError(111, "Connection refused")

        def close(self) -> None:
            pass

    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_keys: next(answers))
    monkeypatch.setattr(socket, "socket", Socket)
    location = parse_location("https://media.example/videos/a.mp4")
    with pytest.raises(RunnerError) as refused:
        connecting.connect(location, location, StorageSection(), key="url_prefixes")
    assert refused.value.code == "storage_unreachable"
    assert connected == [("192.0.2.1", 443)]


def test_a_name_with_one_forbidden_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in ("192.0.2.1", "169.254.169.254")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_keys: found)
    location = parse_location("https://media.example/videos/a.mp4")
    with pytest.raises(RunnerError, match="metadata"):
        connecting.connect(location, location, StorageSection(), key="url_prefixes")


def test_a_storage_that_is_not_there(tmp_path: Path) -> None:
    result = fetched(f"http://127.0.0.1:{free_port()}/videos/a.mp4", tmp_path)
    assert isinstance(result, messages.Fault)
    assert result.code == "storage_unreachable"


def test_a_name_that_is_unknown(tmp_path: Path) -> None:
    result = fetched("https://nowhere.invalid/videos/a.mp4", tmp_path)
    assert isinstance(result, messages.Fault)
    assert result.code == "storage_unreachable"


def test_a_certificate_that_is_trusted_and_one_that_is_not(tmp_path: Path) -> None:
    ours, others = Authority(tmp_path / "ours"), Authority(tmp_path / "others")
    with open_storage(CONTENT, certificate=ours.issue("localhost", "127.0.0.1"), name="localhost") as storage:
        assert whole_file(url_of(storage), tmp_path / "cache", ca_file=str(ours.ca_file)) == CONTENT
        refused = fetched(url_of(storage), tmp_path / "cache", ca_file=str(others.ca_file))
        assert isinstance(refused, messages.Fault)
        assert (refused.code, "storage.ca_file" in refused.message) == ("storage_tls", True)
    with open_storage(CONTENT, certificate=ours.issue("media.example"), name="localhost") as storage:
        refused = fetched(url_of(storage), tmp_path / "cache", ca_file=str(ours.ca_file))
        assert isinstance(refused, messages.Fault)
        assert (refused.code, "storage.url_prefixes" in refused.message) == ("storage_tls", True)


def test_to_look_fetches_nothing(storage: Storage, tmp_path: Path) -> None:
    result = fetched(url_of(storage), tmp_path, only_look=True)
    assert isinstance(result, messages.Ready)
    assert result.size_bytes == len(CONTENT)
    assert list(tmp_path.iterdir()) == []


def test_an_object_larger_than_the_cache_is_refused_before_it_comes(storage: Storage, tmp_path: Path) -> None:
    for only_look in (True, False):
        result = fetched(url_of(storage), tmp_path, cache_max_mib=3, only_look=only_look)
        assert isinstance(result, messages.Fault)
        assert (result.code, "storage.cache_max_mib" in result.message) == ("video_refused", True)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) == 0


def test_the_copy_used_longest_ago_goes_first_and_never_one_that_is_read(storage: Storage, tmp_path: Path) -> None:
    def get(name: str) -> messages.Ready | messages.Fault:
        return fetched(url_of(storage, name), tmp_path, cache_max_mib=10)

    def names() -> dict[str, str]:
        return {path.name: path.suffix for path in tmp_path.glob("*-*")}

    first, second, third = (Path(cast("messages.Ready", get(name)).path) for name in ("1.mp4", "2.mkv", "3.avi"))
    assert len(names()) == 3
    for path, age in ((first, 300), (second, 200), (third, 100)):
        os.utime(path, (time.time() - age,) * 2)
    get("1.mp4")
    assert isinstance(get("4.mov"), messages.Ready)
    assert set(names().values()) == {".mp4", ".avi", ".mov"}, "the first was used since, so the second is the oldest"

    with third.open("rb") as reading:
        fcntl.flock(reading, fcntl.LOCK_SH)
        os.utime(third, (0, 0))
        assert isinstance(get("5.ts"), messages.Ready)
        assert third.exists(), "it is read"
    with ExitStack() as readers:
        for path in tmp_path.glob("*-*"):
            fcntl.flock(readers.enter_context(path.open("rb")), fcntl.LOCK_SH)
        refused = get("6.webm")
    assert isinstance(refused, messages.Fault)
    assert (refused.code, "storage.cache_max_mib" in refused.message) == ("cache_unusable", True)
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 10 * MIB
    assert isinstance(get("6.webm"), messages.Ready)


def test_a_part_counts_with_its_whole_size_and_is_evicted_when_nobody_works_on_it(
    storage: Storage, tmp_path: Path
) -> None:
    storage.cut_at = MIB // 2
    storage.plan = lambda number: Fault.CUT if number == 0 else None
    assert isinstance(fetched(url_of(storage, "cut.mp4"), tmp_path, cache_max_mib=6), messages.Fault)
    assert [path.stat().st_size for path in tmp_path.glob("*.part")] == [MIB // 2]
    assert whole_file(url_of(storage, "b.mp4"), tmp_path, cache_max_mib=6) == CONTENT
    assert list(tmp_path.glob("*.part*")) == []
    assert len(list(tmp_path.glob("[0-9a-f]*.lock"))) == 1, "nothing is left of it but the file of the other one"


def test_killed_in_the_middle_it_is_resumed(storage: Storage, tmp_path: Path) -> None:
    storage.pause = 0.05
    with started(url_of(storage), tmp_path) as child:
        while not (isinstance(record := child.record(), messages.Received) and record.received_bytes > MIB // 2):
            pass
        child.process.send_signal(signal.SIGKILL)
        child.process.wait()
    assert list(tmp_path.glob("*-*")) == []
    storage.pause = 0.0
    assert whole_file(url_of(storage), tmp_path) == CONTENT
    assert int(storage.asked[1]["range"].removeprefix("bytes=").removesuffix("-")) >= record.received_bytes


def test_two_at_once_fetch_it_once(storage: Storage, tmp_path: Path) -> None:
    storage.pause = 0.05
    with started(url_of(storage), tmp_path) as one:
        assert isinstance(one.record(), messages.Received)
        with started(url_of(storage), tmp_path) as other:
            assert isinstance(other.record(), messages.Waiting)
            first, second = one.result(), other.result()
    assert isinstance(first, messages.Ready)
    assert isinstance(second, messages.Ready)
    assert (first.path, first.fetched, second.fetched) == (second.path, True, False)
    assert storage.sent == len(CONTENT)


def test_when_the_one_that_fetches_is_killed_the_one_that_waits_goes_on(storage: Storage, tmp_path: Path) -> None:
    storage.pause = 0.05
    with started(url_of(storage), tmp_path) as one:
        assert isinstance(one.record(), messages.Received)
        with started(url_of(storage), tmp_path) as other:
            assert isinstance(other.record(), messages.Waiting)
            one.process.kill()
            second = other.result()
    assert isinstance(second, messages.Ready)
    assert second.fetched
    assert Path(second.path).read_bytes() == CONTENT
    assert storage.asked[1]["range"]


def test_whoever_waits_does_so_within_the_limit(storage: Storage, tmp_path: Path) -> None:
    storage.plan = lambda _: Fault.STALL
    with started(url_of(storage), tmp_path, stall_timeout_seconds=PATIENCE_SECONDS) as one:
        assert isinstance(one.record(), messages.Received)
        result = fetched(url_of(storage), tmp_path, fetch_timeout_seconds=1.0)
    assert isinstance(result, messages.Fault)
    assert result.code == "storage_timeout"


def test_the_file_is_kept_until_the_daemon_has_locked_it(storage: Storage, tmp_path: Path) -> None:
    with started(url_of(storage), tmp_path) as child:
        ready = child.result()
        assert isinstance(ready, messages.Ready)
        with Path(ready.path).open("rb") as file, pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert child.process.stdin is not None
        child.process.stdin.close()
        assert child.process.wait(PATIENCE_SECONDS) == 0
        child.process.stdin = None


def test_a_cache_that_is_no_directory_or_a_full_disk(storage: Storage, tmp_path: Path, small_disk: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    for cache in (blocked / "cache", small_disk):
        result = fetched(url_of(storage), cache)
        assert isinstance(result, messages.Fault)
        assert (result.code, str(cache) in result.message) == ("cache_unusable", True)


def test_neither_its_arguments_nor_its_environment_have_a_secret(storage: Storage, tmp_path: Path) -> None:
    storage.pause = 0.1
    with started(url_of(storage), tmp_path) as child:
        assert isinstance(child.record(), messages.Received)
        for name in ("cmdline", "environ"):
            assert SECRET.encode() not in Path(f"/proc/{child.process.pid}/{name}").read_bytes()


EXAMPLE = messages.Credentials(key_id="AKIAIOSFODNN7EXAMPLE", secret_key="wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
"""Of the examples in AWS's "Signature Calculations for the Authorization Header"."""


@pytest.mark.parametrize(
    ("path", "query", "headers", "signature"),
    [
        (
            "/test.txt",
            "",
            {"range": "bytes=0-9"},
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        ("/", "lifecycle=", {}, "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543"),
        ("/", "max-keys=2&prefix=J", {}, "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7"),
    ],
)
def test_the_published_examples_are_signed_alike(
    path: str, query: str, headers: dict[str, str], signature: str
) -> None:
    signed = signed_headers(
        {"host": "examplebucket.s3.amazonaws.com", **headers},
        path,
        query,
        EXAMPLE,
        region="us-east-1",
        now=datetime(2013, 5, 24, tzinfo=UTC),
    )
    assert signed["authorization"].rpartition("Signature=")[2] == signature
    assert EXAMPLE.secret_key not in repr(EXAMPLE) + json.dumps(signed)


def test_content_is_what_was_sent(storage: Storage, tmp_path: Path) -> None:
    digest = hashlib.sha256(whole_file(url_of(storage), tmp_path)).hexdigest()
    assert digest == hashlib.sha256(CONTENT).hexdigest()

"""Videos from elsewhere, on the real process: fetched under a claim that lives, resumed, and refused by name."""

from __future__ import annotations

import fcntl
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.support import clips
from tests.support.certificates import Authority
from tests.support.fake_inference import open_fake
from tests.support.harness import Running, free_port, open_service_manager, until
from tests.support.s3_server import KEY_ID, SECRET_KEY, open_s3
from tests.support.scene import Scene, held_run
from tests.support.storage import PREFIX, Fault, Storage, open_storage

SIGNATURE = "X-Amz-Signature=5up3r53cr3t51gn4tur3"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def storage(clip: Path, authority: Authority) -> Iterator[Storage]:
    """A web server with TLS that has the clip, and waits a moment after each part of it where a test says so."""
    with open_storage(clip.read_bytes(), certificate=authority.issue("localhost"), name="localhost") as opened:
        yield opened


def remote(storage: Storage, authority: Authority, **keys: Any) -> Any:
    """The sections of a runner that fetches the clip."""
    return {
        "video": {"path": f"{storage.url}{PREFIX}clip.mp4?{SIGNATURE}"},
        "storage": {"url_prefixes": [f"{storage.url}{PREFIX}"], "ca_file": str(authority.ca_file), **keys},
    }


def fetcher(running: Running) -> psutil.Process | None:
    for child in psutil.Process(running.pid).children():
        if "trio_runner.video.fetch" in child.cmdline():
            return child
    return None


async def no_signature(scene: Scene, *texts: str) -> None:
    """The query of a presigned URL is in the scenario's row, and nowhere else that anybody reads."""
    for table in ("attempts", "retry_events"):
        rows = await scene.ledger.query(
            f"SELECT t::text AS text FROM {table} t WHERE scenario_id = $1",  # noqa: S608 - ours
            scene.scenario_id,
        )
        texts += tuple(row["text"] for row in rows)
    texts += tuple(str(event.raw) for event in await scene.events())
    config = scene.write_config("reader.toml")
    for verb in (("show", config, str(scene.scenario_id)), ("show", config, str(scene.scenario_id), "--json")):
        shown = await scene.cli(*verb)
        assert "clip.mp4?***" in shown.out
        texts += (shown.out, shown.err)
    status = await scene.cli("status", config)
    assert not any("5up3r53cr3t" in text for text in (*texts, status.out))


async def test_a_video_is_fetched_over_https_once_and_processed(
    scene: Scene, storage: Storage, authority: Authority
) -> None:
    async with open_fake() as fake:
        config = scene.write_config(inference={"url": fake.url}, **remote(storage, authority))
        checked = await scene.cli("check", config)
        assert checked.code == 0, checked.out
        done = await scene.run_to_the_end(config)
        assert done.code == 0, done.err
        again = await scene.cli("run", config, "--scenario", str(scene.scenario_id + 500_000))
        assert again.code == 0, again.err
    await scene.check_rows(60)
    row = await scene.ledger.existing(scene.scenario_id)
    assert row["video_path"].endswith(SIGNATURE), "the next attempt needs it"
    assert row["video_identity"]
    assert ["if-none-match" in each for each in storage.asked] == [False, False, True]
    assert "is in the cache already" in again.err
    await no_signature(scene, checked.out, checked.err, done.out, done.err, again.err)
    await scene.ledger.check_invariants(scene.scenario_id)


FAULTS: dict[str, tuple[Fault | int, str]] = {
    "storage_unavailable": (503, "503"),
    "storage_denied": (403, "403"),
    "storage_missing": (404, "404"),
    "storage_bad_answer": (Fault.GZIP, "compressed"),
    "storage_timeout": (Fault.STALL, "storage.stall_timeout_seconds"),
}


@pytest.mark.parametrize("code", FAULTS)
async def test_a_storage_that_fails_and_is_well_again(
    scene: Scene, storage: Storage, authority: Authority, code: str
) -> None:
    fault, named = FAULTS[code]
    storage.plan = lambda _: fault
    sections = remote(storage, authority, **({"stall_timeout_seconds": 1.0} if fault is Fault.STALL else {}))
    async with open_fake() as fake:
        done = await scene.run_to_the_end(scene.write_config(inference={"url": fake.url}, **sections))
    assert done.code == 75, done.err
    await scene.check_death(done, code, named=named)
    await no_signature(scene, done.out, done.err)
    storage.plan = lambda _: None
    await scene.check_resume(frames=60, **sections)


async def test_a_storage_that_is_not_there(scene: Scene) -> None:
    url = f"https://localhost:{free_port()}/"
    config = scene.write_config(video={"path": f"{url}clip.mp4"}, storage={"url_prefixes": [url]})
    done = await scene.run_to_the_end(config)
    assert done.code == 75, done.err
    await scene.check_death(done, "storage_unreachable", named=url)


async def test_a_storage_that_is_not_trusted(scene: Scene, storage: Storage, authority: Authority) -> None:
    sections = remote(storage, authority, ca_file="")
    done = await scene.run_to_the_end(scene.write_config(**sections))
    assert done.code == 75, done.err
    await scene.check_death(done, "storage_tls", named="storage.ca_file")


async def test_a_cache_that_cannot_be_written(scene: Scene, storage: Storage, authority: Authority) -> None:
    (scene.directory / "file").write_text("")
    done = await scene.run_to_the_end(scene.write_config(**remote(storage, authority, cache_dir="file/cache")))
    assert done.code == 75, done.err
    await scene.check_death(done, "cache_unusable", named="storage.cache_dir")


async def test_a_fetcher_that_is_killed(scene: Scene, storage: Storage, authority: Authority) -> None:
    storage.plan = lambda number: Fault.STALL if number == 0 else None
    sections = remote(storage, authority, stall_timeout_seconds=60.0)
    async with open_fake() as fake:
        config = scene.write_config(inference={"url": fake.url}, **sections)
        async with scene.cli.started("run", config) as running:

            async def is_fetching() -> psutil.Process | None:
                parts = (scene.directory / "data" / "videos").glob("*.part")
                return fetcher(running) if any(part.stat().st_size == storage.cut_at for part in parts) else None

            child = await until(is_fetching, described="a fetcher that has received something")
            assert child is not None
            child.kill()
            done = await running.wait()
    assert done.code == 75, done.err
    await scene.check_death(done, "fetcher_failed", named="signal KILL")
    await scene.check_resume(frames=60, **sections)
    assert storage.asked[1]["range"] == f"bytes={storage.cut_at}-"


@pytest.mark.parametrize(
    ("url", "named"),
    [
        ("https://elsewhere.example/clip.mp4?X-Amz-Signature=5up3r53cr3t", "storage.url_prefixes"),
        ("https://169.254.169.254/videos/clip.mp4", "metadata"),
        ("https://2130706433/videos/clip.mp4", "loopback"),
        ("file:///etc/passwd", "only https://"),
    ],
)
async def test_a_url_that_is_not_allowed(scene: Scene, url: str, named: str) -> None:
    prefixes = ["https://media.example/", "https://2130706433/videos/"]
    if named == "metadata":
        prefixes = ["https://169.254.169.254.nip.example/", "https://[::ffff:169.254.169.254]/videos/"]
        url = "https://[::ffff:169.254.169.254]/videos/clip.mp4"
    config = scene.write_config(video={"path": url}, storage={"url_prefixes": prefixes})
    done = await scene.run_to_the_end(config)
    assert done.code == 65, done.err
    event = await scene.the_event()
    assert event.body["error"]["code"] == "video_refused"
    assert named in event.body["error"]["message"]
    assert "5up3r53cr3t" not in done.out + done.err + str(event.raw)


async def test_submit_refuses_a_url_that_no_runner_would_fetch(scene: Scene) -> None:
    config = scene.write_config(storage={"url_prefixes": ["s3://bucket/day/"]})
    refused = await scene.cli("submit", config, "--video", "s3://bucket/night/a.mp4", "--id", str(scene.scenario_id))
    assert (refused.code, "storage.url_prefixes" in refused.out) == (1, True), refused.out + refused.err
    assert await scene.ledger.scenario(scene.scenario_id) is None
    taken = await scene.cli("submit", config, "--video", "s3://bucket/day/a.mp4", "--id", str(scene.scenario_id))
    assert taken.code == 0, taken.err
    assert (await scene.ledger.existing(scene.scenario_id))["video_path"] == "s3://bucket/day/a.mp4"


async def test_the_lease_lives_while_the_video_comes(scene: Scene, storage: Storage, authority: Authority) -> None:
    """The download takes three times as long as a lease lasts, and nobody takes the scenario over meanwhile."""
    storage.plan = lambda number: Fault.DRIP if number == 0 else None
    sections = remote(storage, authority, stall_timeout_seconds=60.0)
    async with open_fake() as fake, open_service_manager() as manager:
        config = scene.write_config(inference={"url": fake.url}, database={"lease_seconds": 1.0}, **sections)
        async with scene.cli.started("run", config, variables=manager.variables) as running:
            await manager.wait_for("READY=1")

            async def status_says_so() -> bool:
                return any("bytes fetched" in state for state in manager.states)

            await until(status_says_so, described="a status line about the fetching")
            before = (await scene.ledger.existing(scene.scenario_id))["lease_until"]

            async def was_renewed_three_times() -> bool:
                row = await scene.ledger.existing(scene.scenario_id)
                return bool((row["lease_until"] - before).total_seconds() > 3)

            await until(was_renewed_three_times, described="a lease that is renewed")
            assert (await scene.cli("reap", config)).code == 0
            other = await scene.cli("run", config)
            assert other.code == 79, "the scenario has a living runner"
            assert any(state.startswith("WATCHDOG") for state in manager.states)
            running_fetcher = fetcher(running)
            assert running_fetcher is not None
            running.send_signal(signal.SIGTERM)
            done = await running.wait()
            assert running.family() == []
    assert done.code == 0, done.err
    await scene.check_death(done, "interrupted", named="asked to stop", error_class="interrupted")
    await scene.check_resume(frames=60, **sections)
    assert storage.asked[-1]["range"].startswith("bytes="), "the part of the first attempt was kept"


async def test_another_object_at_the_same_url_is_another_video(
    scene: Scene, storage: Storage, authority: Authority, big_clip: Path, clip: Path
) -> None:
    storage.serve(big_clip, '"first"')
    sections = remote(storage, authority)
    async with held_run(scene, big_clip, **sections) as held:
        decoder = held.running.decoder()
        assert decoder is not None
        assert SIGNATURE not in " ".join(decoder.cmdline())
        decoder.kill()
        held.fake.gate.set()
        done = await held.running.wait()
    assert done.code == 75, done.err
    await scene.check_death(done, "decoder_killed", named=f"{storage.url}{PREFIX}clip.mp4: ")
    storage.serve(clip, '"second"')
    async with open_fake() as fake:
        done = await scene.run_to_the_end(scene.write_config(inference={"url": fake.url}, **sections))
    assert done.code == 65, done.err
    row = await scene.ledger.existing(scene.scenario_id)
    assert row["last_error"]["code"] == "video_changed"


async def test_two_runners_at_once_fetch_a_video_once(scene: Scene, storage: Storage, authority: Authority) -> None:
    storage.pause = 1.0
    async with open_fake() as fake:
        config = scene.write_config(inference={"url": fake.url}, **remote(storage, authority))
        async with (
            scene.cli.started("run", config) as one,
            scene.cli.started("run", config, "--scenario", str(scene.scenario_id + 500_000)) as other,
        ):
            ended = [await one.wait(), await other.wait()]
    assert [done.code for done in ended] == [0, 0], [done.err for done in ended]
    assert ["if-none-match" in each for each in storage.asked] == [False, True]
    assert storage.sent == len(storage.content)


async def test_a_copy_and_the_local_file_are_the_same_video(
    scene: Scene, storage: Storage, authority: Authority, big_clip: Path
) -> None:
    """The identity is of the bytes: an object that was uploaded anew, or in other parts, is still the same video."""
    storage.serve(big_clip, '"first"')
    sections = remote(storage, authority)
    async with held_run(scene, big_clip, **sections) as held:
        (copy,) = (scene.directory / "data" / "videos").glob("*-*")
        with copy.open("rb") as file, pytest.raises(BlockingIOError):
            # An eviction would need this lock.
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        decoder = held.running.decoder()
        assert decoder is not None
        decoder.kill()
        held.fake.gate.set()
        await held.running.wait()
    storage.etag = '"uploaded again"'
    await scene.check_resume(frames=120, size=clips.LARGE_SIZE, **sections)


@pytest.mark.slow
@pytest.mark.parametrize("where", ["files", "environment"])
async def test_a_video_is_fetched_from_s3(
    scene: Scene, clip: Path, tmp_path: Path, canaries: set[str], where: str
) -> None:
    canaries |= {SECRET_KEY}
    with open_s3(tmp_path) as server:
        server.put("bucket", "day 1/clip ä.mp4", clip)
        keys: dict[str, Any] = {"url_prefixes": ["s3://bucket/day 1/"], "s3_endpoint": server.endpoint}
        variables = {}
        if where == "files":
            for name, secret in (("s3_key_id", KEY_ID), ("s3_secret_key", SECRET_KEY)):
                (scene.directory / name).write_text(f"{secret}\n")
                (scene.directory / name).chmod(0o600)
                keys[f"{name}_file"] = name
        else:
            variables = {"AWS_ACCESS_KEY_ID": KEY_ID, "AWS_SECRET_ACCESS_KEY": SECRET_KEY}
        async with open_fake() as fake:
            config = scene.write_config(
                inference={"url": fake.url}, video={"path": "s3://bucket/day 1/clip ä.mp4"}, storage=keys
            )
            async with scene.cli.started("run", config, variables=variables) as running:
                done = await running.wait()
                assert running.family() == []
    assert done.code == 0, done.err
    await scene.check_rows(60)
    assert SECRET_KEY not in json.dumps(done.log())

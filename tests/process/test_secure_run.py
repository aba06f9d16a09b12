"""The whole process with every peer secured: it works, names what is wrong, and no credential is found anywhere."""

from __future__ import annotations

import signal
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest

from tests.kafka.test_kafka_secure import ApacheKafka, apache, wrong_password
from tests.support.certificates import Authority
from tests.support.fake_inference import Fault, at_frame, open_fake
from tests.support.harness import Event, open_service_manager, read_topic
from tests.support.scene import Scene

__all__ = ["apache", "wrong_password"]

pytestmark = pytest.mark.slow

TOKEN = "canary-token-5f0e2a91c7"


def section(config: Any) -> dict[str, Any]:
    """The section of a config file for it."""
    found: dict[str, Any] = msgspec.to_builtins(config)
    return found


async def on_the_topic(scene: Scene, apache: ApacheKafka) -> list[Event]:
    return await read_topic(apache.at("plain").brokers, scene.topic)


@pytest.mark.parametrize(
    ("way", "code", "part"),
    [
        ("expired", "kafka_tls", "expired"),
        ("wrong password", "kafka_auth", "does not accept the name or the password"),
        ("no rights", "kafka_topic", "does not let user 'stranger'"),
    ],
)
async def test_a_broker_that_refuses_the_event_is_named_and_the_event_waits(
    scene: Scene, clip: Path, apache: ApacheKafka, wrong_password: str, way: str, code: str, part: str
) -> None:
    if way == "expired":
        wrong = apache.tls("expired", retry_topic=scene.topic)
    elif way == "wrong password":
        wrong = apache.sasl(password_file=wrong_password, retry_topic=scene.topic)
    else:
        wrong = apache.sasl("stranger", retry_topic=scene.topic)
    scene.cli.canaries.update(apache.secrets())
    async with open_fake() as fake:
        config = scene.write_config(video={"path": str(clip)}, inference={"url": fake.url}, kafka=section(wrong))
        done = await scene.run_to_the_end(config)
    assert done.code == 74, done.err
    assert fake.numbers == [], "a runner that could not report its death does not begin"
    body = await scene.check_death(done, code, named=part, published=False)
    assert body["stage"] == "kafka"

    # The session's database holds other tests' events, which flush-spool would count.
    await scene.ledger.query(
        "UPDATE retry_events SET published_at = now() WHERE published_at IS NULL AND scenario_id <> $1",
        scene.scenario_id,
    )
    right = apache.sasl(retry_topic=scene.topic)
    flushed = await scene.cli("flush-spool", scene.write_config("right.toml", kafka=section(right)))
    assert flushed.code == 0, flushed.err
    (event,) = await on_the_topic(scene, apache)
    (record,) = await scene.ledger.retry_events(scene.scenario_id)
    assert (event.headers["ce_id"], event.body) == (str(record["event_id"]), record["body"])
    await scene.check_resume(frames=60, video={"path": str(clip)})


@pytest.mark.parametrize("ending", ["completed", "failed", "interrupted", "bad certificate"])
async def test_no_credential_is_found_anywhere(scene: Scene, clip: Path, apache: ApacheKafka, ending: str) -> None:
    authority = Authority(scene.directory / "authority")
    server, client = authority.issue("127.0.0.1"), authority.issue("runner.example")
    stranger = Authority(scene.directory / "stranger")
    (scene.directory / "token").write_text(f"{TOKEN}\n")
    kafka = section(apache.sasl(retry_topic=scene.topic, publish_timeout_seconds=3.0))
    key = client.key_file.read_text()
    scene.cli.canaries.update(apache.secrets(), [TOKEN], key.splitlines()[1:-1])
    held = ending in {"interrupted", "failed"}
    async with (
        open_fake(
            tls=server.server_context(client_ca=authority.ca_file),
            plan=at_frame(30, Fault.STATUS_500) if held else lambda _count, _number: None,
            held=lambda number: held and number >= 20,
        ) as fake,
        open_service_manager() as manager,
    ):
        config = scene.write_config(
            video={"path": str(clip)},
            log={"level": "debug"},
            database={"batch_frames": 4},
            inference={
                "url": fake.url,
                "ca_file": str((stranger if ending == "bad certificate" else authority).ca_file),
                "certificate_file": str(client.chain_file),
                "key_file": str(client.key_file),
                "token_file": "token",
            },
            kafka=kafka,
        )
        async with scene.cli.started("run", config, variables=manager.variables, executed=True) as running:
            if held:
                await manager.wait_for("READY=1")
                reach = []
                for process in running.family():
                    # The decoder may have read its video to the end.
                    with suppress(psutil.NoSuchProcess, ProcessLookupError):
                        reach += [*process.cmdline(), *process.environ().values()]
                assert "\n".join(reach).count("trio_runner") > 0
                assert not [canary for canary in scene.cli.canaries if canary in "\n".join(reach)]
            if ending == "interrupted":
                running.send_signal(signal.SIGTERM)
                await manager.wait_for("STOPPING=1")
            fake.gate.set()
            done = await running.wait()
    codes = {"completed": 0, "interrupted": 0}
    assert done.code == codes.get(ending, 75), done.err
    # Printed and logged texts are looked at whenever a process ends, ledger and topics of the session at its end; here
    # what lies elsewhere.
    texts = [event.raw.decode() for event in await on_the_topic(scene, apache)]
    texts += [
        str(await scene.ledger.retry_events(scene.scenario_id)),
        str(await scene.ledger.attempts(scene.scenario_id)),
    ]
    texts += [path.read_text() for path in scene.directory.glob("data/**/*.json")]
    assert not [canary for canary in scene.cli.canaries if any(canary in text for text in texts)]
    assert len(texts) > 2 or ending == "completed"

"""What deploy/ ships agrees with itself and with what was tested; tests/deployment/test_docker.py runs it."""

from __future__ import annotations

import re
from pathlib import Path

from trio_runner.config.load import load_config

ROOT = Path(__file__).resolve().parents[2]
COMPOSE = (ROOT / "deploy" / "compose.yaml").read_text()


def pinned(lock: str) -> dict[str, set[str]]:
    """Every `name==version` of a lock, with its hashes."""
    pins: dict[str, set[str]] = {}
    for line in (ROOT / lock).read_text().splitlines():
        if found := re.match(r"([\w.-]+==[\w.]+)", line):
            hashes = pins.setdefault(found[1], set())
        elif found := re.search(r"--hash=(\S+)", line):
            hashes.add(found[1])
    return pins


def test_the_orchestrators_config_can_be_used_and_names_the_services_of_the_compose_file() -> None:
    config = load_config(ROOT / "deploy" / "orchestrator.toml")
    for host, port in re.findall(r"[@/]([\w-]+):(\d+)", f"{config.database.url} {config.inference.url}"):
        assert f"\n  {host}:\n" in COMPOSE
        assert port in {"5432", "8001"}
    assert f"KAFKA_ADVERTISED_LISTENERS: PLAINTEXT://{config.kafka.brokers}\n" in COMPOSE
    assert f":{config.video.root}:ro\n" in COMPOSE
    assert f":{config.runner.data_dir}\n" in COMPOSE
    assert config.database.password_file == "/run/secrets/database-password"
    assert "\n  database-password:\n" in COMPOSE


def test_the_image_installs_what_was_tested() -> None:
    runtime, tested = pinned("requirements-runtime.lock"), pinned("requirements-dev.lock")
    assert len(runtime) > 20
    assert {pin: hashes for pin, hashes in runtime.items() if tested.get(pin) != hashes} == {}
    assert all(runtime.values())
    assert not [pin for pin in runtime if pin.startswith(("uv==", "pytest==", "onnxruntime=="))]


def test_the_compose_file_has_the_apache_kafka_that_was_tested() -> None:
    pom = (ROOT / "tests" / "support" / "apache_kafka" / "pom.xml").read_text()
    (version,) = re.findall(r"<artifactId>kafka_2.13</artifactId>\s*<version>([\d.]+)</version>", pom)
    assert f"image: apache/kafka:{version}\n" in COMPOSE

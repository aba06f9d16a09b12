"""Puts live addresses where the config says `embedded`."""

from __future__ import annotations

import logging
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trio_runner.config.kinds import EMBEDDED
from trio_runner.embedded.hosting import ServerError, Service, open_servers
from trio_runner.embedded.inference import MODEL_NAME

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from trio_runner.config.load import Config

logger = logging.getLogger(__name__)


def embedded_services(config: Config) -> frozenset[Service]:
    """The services whose address is the word `embedded`."""
    addresses = {
        Service.DATABASE: config.database.url,
        Service.KAFKA: config.kafka.brokers,
        Service.INFERENCE: config.inference.url,
    }
    return frozenset(service for service, address in addresses.items() if address == EMBEDDED)


@asynccontextmanager
async def open_addresses(
    config: Config,
    wanted: frozenset[Service] = frozenset(Service),
    *,
    published: bool = True,
    on_wait: Callable[[str], None] = logger.info,
) -> AsyncIterator[Config]:
    """A config without the word `embedded` for the `wanted` services, valid inside the block.

    Hosts the embedded servers, or attaches to those that another process hosts; a config of real addresses passes
    through untouched.

    Raises:
        ServerError: A server cannot be started; perhaps in an exception group.
    """
    services = embedded_services(config) & wanted
    if not services:
        yield config
        return
    # A server's death is not raised here. Its client notices it and raises the right error code, while the other
    # servers still take the report.
    async with open_servers(
        Path(config.runner.data_dir), services, published=published, on_wait=on_wait, on_death=_log_death
    ) as live:
        changed: dict[str, dict[str, Any]] = {}
        if Service.DATABASE in services:
            changed["database"] = {
                "url": live.database_url,
                "password_file": str(live.database_password_file),
                # The server listens on the loopback, and only while this process lives.
                "sslmode": "disable",
                "allow_plaintext_password": True,
            }
        if Service.KAFKA in services:
            changed["kafka"] = {"brokers": live.kafka_brokers, "security_protocol": "PLAINTEXT"}
        if Service.INFERENCE in services:
            changed["inference"] = {
                "url": live.inference_url,
                "token_file": str(live.inference_token_file),
                "allow_plaintext_token": True,
                "oip": {"model": config.inference.oip.model or MODEL_NAME},
            }
        yield config.replace(**changed)


def _log_death(error: ServerError) -> None:
    logger.error("%s", error)

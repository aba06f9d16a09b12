"""The verb that hosts the embedded servers for other processes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trio_runner.base.stopping import until_signal
from trio_runner.cli.output import say
from trio_runner.embedded.addresses import embedded_services
from trio_runner.embedded.hosting import addresses_as_toml, open_servers
from trio_runner.errors import ExitCode

if TYPE_CHECKING:
    from trio_runner.config.load import Config


async def host_embedded(config: Config) -> ExitCode:
    """Host the embedded servers until the first SIGINT or SIGTERM, and print their addresses as a config."""
    services = embedded_services(config)
    if not services:
        say("nothing to host: every address in this config is a real one")
        return ExitCode.OK
    async with (
        until_signal(),
        open_servers(Path(config.runner.data_dir), services, published=True, on_wait=say) as live,
    ):
        say(addresses_as_toml(live))
        say("# until Ctrl-C")
        await trio.sleep(math.inf)  # noqa: ASYNC116 - the type of sleep_forever forbids a return
    return ExitCode.OK

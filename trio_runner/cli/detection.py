"""Prints what a service is and the config that goes with it."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Final

from trio_runner.base.redact import redact
from trio_runner.cli.output import say
from trio_runner.cli.suggest import command
from trio_runner.config.credentials import secrets_of
from trio_runner.config.errors import ConfigError
from trio_runner.config.load import Config
from trio_runner.errors import ExitCode, RunnerError
from trio_runner.inference.detect import ask
from trio_runner.inference.recognise import guesses

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_runner.inference.replies import Reply


_VERSION: Final = re.compile(r"/v[12]/?\Z")


async def detect(service: str, token_file: str) -> ExitCode:
    """Print the config for the service at this address; 1 with what was asked where it is not recognised.

    Args:
        service: Its address, as `inference.url` takes it.
        token_file: A file with a bearer token; "" for none. The token is sent over http as well.
    """
    token = {"token_file": token_file, "allow_plaintext_token": True} if token_file else {}
    try:
        config = Config().replace(inference={"url": service, **token})
    except ConfigError as error:
        for problem in error.problems:
            print(f"trio-runner probe: --detect: {problem.sentence}", file=sys.stderr)
        return ExitCode.CONFIG
    secrets = await secrets_of(config)
    try:
        replies, missing = await ask(config.inference)
        found = guesses(replies)
        shorter = _VERSION.sub("", service)
        if not found and shorter != service:
            # Clients of chat APIs want the address with /v1; here the paths of the protocols begin with it.
            further, _ = await ask(config.replace(inference={"url": shorter}).inference)
            if found := guesses(further):
                service = shorter
    except RunnerError as error:
        say(redact(str(error), secrets))
        return ExitCode.NOTHING
    if not found:
        _print_unknown(config, replies, missing, secrets)
        return ExitCode.NOTHING
    best, *others = found
    lines = [f"# {service}: {best.what}", "[inference]", f'url = "{service}"']
    if token_file:
        lines.append(f'token_file = "{token_file}"')
        if service.startswith("http:"):
            lines.append("allow_plaintext_token = true")
    lines += best.lines
    for other in others:
        lines += ["", f"# it may also be: {other.what}", *(f"# {line}".rstrip() for line in other.lines)]
    lines += ["", f"# try it: {command('probe', 'CONFIG', '--image', 'FILE', '-o', 'boxes.png')}"]
    say(redact("\n".join(lines), secrets))
    return ExitCode.OK


def _print_unknown(
    config: Config, replies: Mapping[str, Reply], missing: Mapping[str, str], secrets: frozenset[str]
) -> None:
    lines = [f"{config.inference.url} was not recognised. It was asked:"]
    lines += [f"  {question}: {reply.status}" for question, reply in replies.items()]
    lines += [f"  {question}: {why}" for question, why in missing.items()]
    if any(reply.status in {401, 403} for reply in replies.values()):
        lines.append("It wants credentials: --token-file names a file with a bearer token")
    else:
        lines.append('Any service that takes a picture can be described: inference.protocol = "http"')
    say(redact("\n".join(lines), secrets))

"""The headers, parameters and labels that `[inference]` names, read from their files once."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final
from urllib.parse import urlencode

from msgspec import structs

from trio_runner.base.files import read_small_file
from trio_runner.base.threads import bounded
from trio_runner.config.credentials import READ_SECONDS, read_secret
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.inference.answer import BadAnswerError, label

if TYPE_CHECKING:
    from trio_runner.config.inference import InferenceSection

MAX_LABELS_BYTES: Final = 2**20
MAX_PROMPT_BYTES: Final = 2**17


async def read_headers(config: InferenceSection) -> dict[str, str]:
    """The headers of every request: `headers`, those of `header_files`, and the token as a bearer.

    Raises:
        RunnerError: `credential_unreadable`.
    """
    headers = dict(config.headers)
    for name, path in config.header_files.items():
        headers[name] = await _read_word(path, f"inference.header_files.{name}", spaces=True)
    if config.token_file:
        headers["Authorization"] = f"Bearer {await _read_word(config.token_file, 'inference.token_file')}"
    return headers


async def read_query(config: InferenceSection) -> str:
    """The query of every request, percent-encoded: `query` and the parameters of `query_files`.

    Raises:
        RunnerError: `credential_unreadable`.
    """
    files = {
        name: await read_secret(path, f"inference.query_files.{name}") for name, path in config.query_files.items()
    }
    return urlencode({**config.query, **files})


async def with_field_files(config: InferenceSection) -> InferenceSection:
    """The config with the secrets of `http.field_files` among the fields of `http`.

    Raises:
        RunnerError: `credential_unreadable`.
    """
    if config.protocol != "http" or not config.http.field_files:
        return config
    key = "inference.http.field_files"
    secrets = {name: await read_secret(path, f"{key}.{name}") for name, path in config.http.field_files.items()}
    return structs.replace(config, http=structs.replace(config.http, fields={**config.http.fields, **secrets}))


async def read_labels(config: InferenceSection) -> tuple[str, ...]:
    """The names of the classes from 0 on: `labels`, or the lines of `labels_file`.

    Raises:
        RunnerError: `credential_unreadable`: the file cannot be read, or a line is no label.
    """
    if not config.labels_file:
        return config.labels
    try:
        return await bounded(lambda: _labels_in(config.labels_file), seconds=READ_SECONDS)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _unusable("inference.labels_file", config.labels_file, why) from None


async def read_prompt(config: InferenceSection) -> InferenceSection:
    """The config with the text of `openai.prompt_file` as its prompt, if a file is set.

    Raises:
        RunnerError: `credential_unreadable`: the file cannot be read, or holds no text.
    """
    if not (path := config.openai.prompt_file):
        return config
    try:
        data, _ = await bounded(lambda: read_small_file(path, max_bytes=MAX_PROMPT_BYTES), seconds=READ_SECONDS)
        prompt = data.decode("utf-8-sig").strip()
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise _unusable("inference.openai.prompt_file", path, why) from None
    if not prompt:
        raise _unusable("inference.openai.prompt_file", path, "it is empty")
    return structs.replace(config, openai=structs.replace(config.openai, prompt=prompt))


def _labels_in(path: str) -> tuple[str, ...]:
    data, _ = read_small_file(path, max_bytes=MAX_LABELS_BYTES)
    lines = data.decode("utf-8-sig").rstrip().splitlines()
    try:
        # A class without a name has an empty line.
        return tuple(name and label(name, f"line {line}") for line, name in enumerate(map(str.strip, lines), start=1))
    except BadAnswerError as error:
        raise ValueError(str(error)) from None


async def _read_word(path: str, key: str, *, spaces: bool = False) -> str:
    """The secret, if it fits into a header: a line break in it would begin another header."""
    secret = await read_secret(path, key)
    if not re.fullmatch(r"[!-~]([ -~]*[!-~])?" if spaces else r"[!-~]+", secret):
        without = "" if spaces else " without spaces"
        raise _unusable(key, path, f"it must hold one line of printable ASCII{without}")
    return secret


def _unusable(key: str, path: str, why: str) -> RunnerError:
    return RunnerError(ErrorCode.CREDENTIAL_UNREADABLE, f"cannot use {key} {path}: {why}")

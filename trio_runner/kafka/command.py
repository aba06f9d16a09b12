"""Commands on Kafka: start a scenario, stop one, as CloudEvents whose key is the scenario's id."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec
from msgspec import Meta

from trio_runner.base.strict_json import refuse_repeated_keys
from trio_runner.config.errors import ConfigError
from trio_runner.config.settings import check_scenario_settings, is_canonical
from trio_runner.kafka.record import BadEventError

if TYPE_CHECKING:
    from trio_runner.config.load import Config
    from trio_runner.kafka.record import Record

START: Final = "trio-runner.start.v1"
STOP: Final = "trio-runner.stop.v1"
MAX_COMMAND_BYTES: Final = 16 * 1024

Id = Annotated[int, Meta(ge=1, le=2**63 - 1)]


class StartCommand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Process this video, by its absolute path or its URL, as that scenario.

    `settings` are as in a config: section, key, value.
    """

    scenario_id: Id
    video_path: Annotated[str, Meta(max_length=4096, pattern=r"^(/|[a-z0-9]+://)[^\x00-\x1f\x7f-\x9f]*\Z")]
    settings: dict[str, dict[str, Any]] = {}


class StopCommand(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Let the scenario's runner drain, and start no other runner for it."""

    scenario_id: Id


def decode_command(record: Record, config: Config) -> tuple[str, StartCommand | StopCommand]:
    """The command in a record, with the id by which a repeated command is recognised.

    Raises:
        BadEventError: The record is no command, or asks for something impossible; the text is safe to print.
    """
    headers = record.headers
    command_id, kind = headers.get("ce_id", ""), headers.get("ce_type")
    kinds: dict[str | None, type[StartCommand | StopCommand]] = {START: StartCommand, STOP: StopCommand}
    if kind not in kinds:
        raise BadEventError(f"ce_type is {kind!r}, neither {START} nor {STOP}")
    if not (0 < len(command_id) <= 200 and command_id.isprintable()):  # noqa: PLR2004 - the ledger's column
        raise BadEventError("ce_id is absent, or not of 1 to 200 characters")
    value = record.value or b""
    if len(value) > MAX_COMMAND_BYTES:
        raise BadEventError(f"the body has more than {MAX_COMMAND_BYTES} bytes")
    try:
        command = msgspec.json.decode(value, type=kinds[kind])
        refuse_repeated_keys(value)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise BadEventError(f"the body is no command: {error}") from error
    if record.key != str(command.scenario_id).encode():
        # Kafka keeps the order of commands about one scenario only if they share a key.
        raise BadEventError(f"the key is not the scenario's id, {command.scenario_id}")
    if isinstance(command, StartCommand):
        if not is_canonical(command.video_path):
            raise BadEventError("video_path is not without // and /./")
        try:
            check_scenario_settings(command.settings)
            config.replace(**command.settings)
        except ConfigError as error:
            raise BadEventError(f"its settings cannot be used: {error}") from error
    return command_id, command

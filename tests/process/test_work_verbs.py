"""The verbs submit, stop, retry and status: their table, and each as a real process."""

from __future__ import annotations

import io
import json
import signal
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import rich.console

from tests.support.harness import Cli, Ledger, Servers, WriteConfig, new_database, until
from trio_runner.cli.show import overview_table

HOSTILE = "[bold red]boo[/] \x1b[31m\x1b]0;title\x07 \u202e\nsecond line"
ROW: dict[str, Any] = {
    "id": 7,
    "status": "active",
    "outcome": None,
    "epoch": 2,
    "last_epoch": 50,
    "frames_stored": 30,
    "frames_not_inferred": 0,
    "total_frames": None,
    "failures": 1,
    "max_failures": 5,
    "instance_id": uuid.UUID(int=1),
    "lease_seconds": 29.6,
    "due_seconds": -3.0,
    "last_error": json.dumps({"code": "store_lost", "message": HOSTILE}),
    "runner_id": HOSTILE,
    "frames_per_second": 24.96,
    "video_path": f"/videos/{HOSTILE}",
}


def shown(**changes: Any) -> str:
    console = rich.console.Console(file=io.StringIO(), width=400, force_terminal=True, color_system="truecolor")
    console.print(overview_table([ROW | changes]))
    assert isinstance(console.file, io.StringIO)
    (line,) = (line for line in console.file.getvalue().splitlines() if line.lstrip().startswith("7"))
    return line


def test_a_scenario_is_one_line() -> None:
    line = shown(
        runner_id="node_1-7",
        video_path="/videos/a.mp4",
        last_error=json.dumps({"code": "store_lost", "message": "cut off"}),
    )
    assert line.split() == [
        *("7", "active", "2", "30", "25.0", "node_1-7", "30", "s", "1/5", "a.mp4", "store_lost:", "cut", "off"),
    ]


def test_names_and_messages_are_neither_markup_nor_control_characters() -> None:
    line = shown()
    assert line.count("[bold red]boo[/]") == 2, "as the runner's id and in the error"
    assert not any(forbidden in line for forbidden in ("\x1b", "\x07", "\u202e"))
    assert "second line" in line


def test_each_value_stands_under_its_name() -> None:
    columns = overview_table(
        [ROW | {"runner_id": "node_1-7", "video_path": "/videos/a.mp4", "last_error": None}]
    ).columns
    assert {str(column.header): str(*column.cells) for column in columns} == {
        "id": "7",
        "state": "active",
        "attempt": "2",
        "frames": "30",
        "per s": "25.0",
        "runner": "node_1-7",
        "lease": "30 s",
        "failures": "1/5",
        "video": "a.mp4",
        "last error": "",
    }


@pytest.mark.parametrize(
    ("changes", "description"),
    [
        ({"status": "init_startup", "due_seconds": 41.7, "instance_id": None}, "init_startup in 42 s"),
        ({"status": "init_startup", "due_seconds": -41.7, "instance_id": None}, " init_startup  "),
        ({"status": "inactive", "outcome": "failed", "instance_id": None}, "failed (inactive)"),
        ({"outcome": "completed", "total_frames": 30, "instance_id": None}, "30/30"),
        ({"last_error": None, "frames_per_second": None}, "1/5"),
    ],
)
def test_each_state_is_described(changes: dict[str, Any], description: str) -> None:
    assert description in shown(**changes)


def test_an_empty_ledger_is_an_empty_table() -> None:
    assert overview_table([]).row_count == 0


# as processes


async def test_a_scenario_is_submitted_stopped_and_tried_again(
    cli: Cli, write_config: WriteConfig, ledger: Ledger, scenario_id: int, clip: Path
) -> None:
    config = write_config(orchestrator={"max_epochs": 9})
    submit = ("submit", config, "--video", clip, "--id", str(scenario_id), "--set", "scenario.max_failures=3")
    for _ in range(2):
        done = await cli(*submit)
        assert (done.code, done.out) == (0, f"scenario {scenario_id} is submitted\n"), done.err
    row = await ledger.existing(scenario_id)
    assert (row["status"], row["video_path"], row["max_failures"]) == ("init_startup", str(clip), 3)
    assert (row["settings"], row["last_epoch"]) == ({"scenario": {"max_failures": 3}}, 9)
    refused = await cli("submit", config, "--video", "other.mp4", "--id", str(scenario_id))
    assert refused.code == 1
    assert "another video or other settings" in refused.out
    done = await cli("stop", config, str(scenario_id))
    assert (done.code, done.out) == (0, f"scenario {scenario_id}: init_shutdown\n")
    refused = await cli("retry", config, str(scenario_id))
    assert (refused.code, refused.out) == (1, f"scenario {scenario_id} is not dead: it is init_shutdown\n")
    await ledger.query(
        "UPDATE scenarios SET status = 'inactive', outcome = 'failed', last_epoch = 1 WHERE id = $1", scenario_id
    )
    refused = await cli(*submit)
    assert refused.code == 1
    assert f" retry {config} {scenario_id}\n" in refused.out, "the suggested command names this config"
    done = await cli("retry", config, str(scenario_id))
    assert (done.code, done.out) == (0, f"scenario {scenario_id}: attempt 1 is due\n")
    row = await ledger.existing(scenario_id)
    assert (row["outcome"], row["last_epoch"]) == (None, 9)


async def test_submit_makes_the_schema_of_an_empty_database(
    cli: Cli, write_config: WriteConfig, servers: Servers, scenario_id: int
) -> None:
    async with new_database(servers, f"empty_{scenario_id}") as empty:
        config = write_config(database={"url": empty.database_url})
        refused = await cli("stop", config, str(scenario_id))
        assert refused.code == 74
        assert "init-db" in refused.err
        done = await cli("submit", config, "--video", "/a.mp4")
    assert (done.code, done.out) == (0, "scenario 1 is submitted\n"), done.err


async def test_a_new_id_is_given_and_a_relative_path_made_absolute(
    cli: Cli, write_config: WriteConfig, ledger: Ledger, tmp_path: Path
) -> None:
    done = await cli("submit", write_config(), "--video", "a [b].mp4")
    assert done.code == 0, done.err
    given = int(done.out.split()[1])
    assert (await ledger.existing(given))["video_path"] == str(tmp_path / "a [b].mp4")


@pytest.mark.parametrize("verb", ["stop", "retry"])
async def test_a_scenario_that_does_not_exist_is_refused_by_its_number(
    cli: Cli, write_config: WriteConfig, new_scenario_id: Callable[[], int], verb: str
) -> None:
    missing = new_scenario_id()
    config = write_config()
    done = await cli(verb, config, str(missing))
    assert (done.code, done.out) == (1, f"scenario {missing} does not exist\n")
    wrong = await cli(verb, config, "seven")
    assert wrong.code == 64


async def test_status_as_json_and_as_a_table(
    cli: Cli, write_config: WriteConfig, ledger: Ledger, scenario_id: int
) -> None:
    config = write_config()
    await cli("submit", config, "--video", "/a.mp4", "--id", str(scenario_id))
    error = {"code": "not_started", "message": HOSTILE}
    await ledger.query("UPDATE scenarios SET last_error = $2 WHERE id = $1", scenario_id, error)
    await ledger.query(
        "UPDATE scenarios SET instance_id = gen_random_uuid(), lease_until = now() + interval '1 h',"
        " status = 'active' WHERE id = $1",
        scenario_id,
    )
    done = await cli("status", config, "--json")
    assert done.code == 0, done.err
    (row,) = [row for row in json.loads(done.out) if row["id"] == scenario_id]
    assert (row["last_error"], row["status"], row["epoch"]) == (error, "active", 1)
    assert uuid.UUID(row["instance_id"])
    done = await cli("status", config)
    assert done.code == 0
    (line,) = [line for line in done.out.splitlines() if str(scenario_id) in line]
    assert "not_started: [bold red]boo[/]" in line
    assert "\x1b" not in done.out
    await ledger.query("UPDATE scenarios SET instance_id = NULL, lease_until = NULL WHERE id = $1", scenario_id)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_watching_ends_with_0_on_a_signal(
    cli: Cli, write_config: WriteConfig, ledger: Ledger, scenario_id: int, number: signal.Signals
) -> None:
    config = write_config()
    await cli("submit", config, "--video", "/a.mp4", "--id", str(scenario_id))
    # The database session of an earlier `status --watch` may last for a moment longer.
    (now,) = await ledger.query("SELECT clock_timestamp() AS time")
    moments: set[object] = set()
    async with cli.started("status", config, "--watch") as watching:

        async def asked() -> bool:
            rows = await ledger.query(
                "SELECT query_start FROM pg_stat_activity"
                " WHERE application_name = 'trio-runner' AND query LIKE '%overview()%' AND backend_start > $1",
                now["time"],
            )
            moments.update(row["query_start"] for row in rows)
            # The first query counts as three: parse, bind, execute. `status` draws its result before it asks again.
            return len(moments) > 3

        await until(asked, described="the ledger is asked for an overview once more")
        watching.send_signal(number)
        done = await watching.wait()
    assert done.code == 0, done.err
    assert str(scenario_id) in done.out


async def test_status_without_a_ledger_names_the_remedy(cli: Cli, write_config: WriteConfig) -> None:
    done = await cli("status", write_config(database={"url": "postgresql://x@127.0.0.1:9/x"}))
    assert done.code == 74
    assert "127.0.0.1:9" in done.err

"""The command line: each verb as a real process, its output and its exit code."""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import Any

import cv2
import httpx
import pytest
import trio

import trio_runner
from tests.support import clips
from tests.support.fake_inference import Fault, at_frame, open_fake
from tests.support.harness import (
    PATIENCE_SECONDS,
    REPOSITORY,
    Cli,
    Ledger,
    Servers,
    WriteConfig,
    command,
    free_port,
    new_database,
    until,
)
from tests.support.scene import SMALL_WINDOW

VERBS = ["run", "validate", "inspect", "check", "probe", "init-db", "show", "events", "flush-spool"]
VERBS += [
    "report-death",
    "reap",
    "embedded",
    "orchestrate",
    "submit",
    "stop",
    "retry",
    "status",
    "protocols",
    "serve-inference",
]
EXIT_CODES = (0, 1, 64, 65, 74, 75, 78, 79)


@pytest.mark.parametrize("verb", ["", *VERBS])
async def test_help(cli: Cli, verb: str) -> None:
    done = await cli(*filter(None, [verb]), "--help")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith(f"usage: trio-runner {verb}".rstrip())
    if not verb:
        assert [line.split()[0] for line in done.out.splitlines() if re.match(r" {4}\w", line)] == VERBS
    own = {"inspect": (0, 1, 64, 65, 74, 78), "probe": (0, 1, 64, 78)}
    codes = {"": EXIT_CODES, "run": EXIT_CODES, **own}.get(verb, ())
    assert re.findall(r"\n  (\d+) ", done.out) == [str(code) for code in codes], "exit codes are explained"


async def test_version(cli: Cli) -> None:
    done = await cli("--version")
    assert (done.code, done.out) == (0, f"trio-runner {trio_runner.__version__}\n")


@pytest.mark.parametrize(
    "arguments",
    [[], ["walk"], ["run"], ["run", "a.toml", "--scenario", "one"], ["show", "a.toml", "--yaml"]],
    ids=" ".join,
)
async def test_wrong_usage(cli: Cli, arguments: list[str]) -> None:
    done = await cli(*arguments)
    assert (done.code, done.out) == (64, "")
    assert "usage: trio-runner" in done.err


async def test_the_installed_program_is_the_same(cli: Cli) -> None:
    program = Path(sys.executable).with_name("trio-runner")
    if not program.exists():
        pytest.skip("the package is not installed, only imported")
    async with cli.started("--version", program=[str(program)]) as running:
        done = await running.wait()
    assert (done.code, done.out) == (0, f"trio-runner {trio_runner.__version__}\n")


async def test_a_valid_config(cli: Cli) -> None:
    done = await cli("validate", REPOSITORY / "runner.toml")
    assert (done.code, done.err) == (0, "")
    assert "valid" in done.out


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[video]\nstrid = 2\n", ["video.strid", ":2:", "unknown key", "stride"]),
        ("[vidio]\npath = 'a'\n", ["vidio", ":1:", "unknown section", "video"]),
        ("\n[inference]\nin_flight = 0\n", ["inference.in_flight", ":3:", "1"]),
        ("[scenario]\nid = 'seven'\n", ["scenario.id", ":2:", "seven"]),
        ("[database]\nurl = 'postgresql://u:canary@h/d'\n", ["database.url", ":2:", "password_file"]),
        ("[video]\nstride = 2\nmax_fps = 5.0\n", ["video.max_fps", ":3:", "one"]),
        ("[video\n", ["TOML", ":1:"]),
    ],
    ids=["unknown key", "unknown table", "out of range", "wrong type", "secret", "conflict", "syntax"],
)
@pytest.mark.parametrize("verb", ["validate", "run"])
async def test_a_bad_config_is_refused_with_key_line_and_remedy(
    cli: Cli, tmp_path: Path, verb: str, text: str, parts: list[str]
) -> None:
    (tmp_path / "bad.toml").write_text(text)
    done = await cli(verb, "bad.toml")
    assert (done.code, done.out) == (78, "")
    assert re.match(r"bad\.toml:\d+: ", done.err)
    assert "config_invalid" in done.err
    assert all(part in done.err for part in parts), done.err
    assert "canary" not in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / ".trio-runner").exists(), "nothing was started"


async def test_a_missing_config(cli: Cli) -> None:
    done = await cli("run", "nowhere.toml")
    assert done.code == 78
    assert "nowhere.toml" in done.err


async def test_a_bad_override_is_refused_too(cli: Cli, write_config: WriteConfig) -> None:
    done = await cli("run", write_config(), "--inference-url", "ftp://nowhere")
    assert done.code == 78
    assert "inference.url" in done.err


async def test_the_schema_is_made_once(
    cli: Cli, write_config: WriteConfig, servers: Servers, scenario_id: int, clip: Path
) -> None:
    async with new_database(servers, f"tests_{scenario_id}") as empty, open_fake() as fake:
        config = write_config(
            database={"url": empty.database_url, "create_schema": False},
            video={"path": str(clip)},
            inference={"url": fake.url},
        )
        for verb in ("show", "run"):
            early = await cli(verb, config)
            assert early.code not in (0, 1), early.out
            assert "init-db" in early.out + early.err
        first, second = await cli("init-db", config), await cli("init-db", config)
        assert (first.code, second.code) == (0, 0), first.err + second.err
        assert "applied tables.sql" in first.out
        assert "applied" not in second.out
        done = await cli("run", config)
        assert done.code == 0, done.err
        assert (await Ledger(empty).existing(scenario_id))["outcome"] == "completed"


async def test_overrides_on_the_command_line(
    cli: Cli, write_config: WriteConfig, ledger: Ledger, scenario_id: int, tmp_path: Path
) -> None:
    clips.pixel_coded(tmp_path / "other.mp4", frames=3)
    config = write_config(
        scenario={"id": 1}, video={"path": "nowhere.mp4"}, inference={"url": "http://nowhere.invalid"}
    )
    async with open_fake() as fake:
        done = await cli(
            *("run", config, "--scenario", str(scenario_id), "--video", "other.mp4", "--inference-url", fake.url)
        )
    assert done.code == 0, done.err
    scenario = await ledger.existing(scenario_id)
    assert (scenario["frames_stored"], scenario["video_path"]) == (3, str(tmp_path / "other.mp4"))


async def test_show(cli: Cli, write_config: WriteConfig, scenario_id: int, clip: Path) -> None:
    async with open_fake(plan=at_frame(20, Fault.STATUS_500)) as fake:
        config = write_config("runner.toml", video={"path": str(clip)}, inference={"url": fake.url}, **SMALL_WINDOW)
        assert (await cli("run", config)).code == 75

    everything = await cli("show", config)
    assert (everything.code, everything.err) == (0, "")
    (line,) = (line for line in everything.out.splitlines() if str(scenario_id) in line)
    assert "init_startup" in line
    assert "inference_unavailable" in line

    listed = await cli("show", config, "--json")
    (row,) = (row for row in json.loads(listed.out) if row["id"] == scenario_id)
    assert (row["status"], row["failures"], row["last_error"]["code"]) == ("init_startup", 0, "inference_unavailable")

    one = await cli("show", config, str(scenario_id))
    assert one.code == 0
    assert all(word in one.out for word in ("runner_under_test", "failures:   0 of 5", "inference_unavailable", "500"))

    one_json = json.loads((await cli("show", config, str(scenario_id), "--json")).out)
    (attempt,) = one_json["attempts"]
    assert (attempt["outcome"], attempt["error"]["code"]) == ("failed", "inference_unavailable")
    assert sum(label["frames"] for label in one_json["found"]) == one_json["frames_stored"]


async def test_show_and_status_tell_frames_that_were_not_inferred_from_frames_with_nothing(
    cli: Cli, write_config: WriteConfig, ledger: Ledger, scenario_id: int
) -> None:
    config = write_config()
    assert (await cli("submit", config, "--video", "/videos/a.mp4", "--id", str(scenario_id))).code == 0
    found = [{"label": "cat", "confidence": 0.5, "bbox": None}]
    rows: list[tuple[int, Any, str | None]] = [
        (0, found, None),
        (1, [], None),
        (2, [], None),
        *((number, None, f"inference_rejected: 413 {HOSTILE} {number}") for number in range(3, 28)),
    ]
    for number, detections, error in rows:
        await ledger.query(
            "INSERT INTO predictions (scenario_id, epoch, frame_index, pts_seconds, width, height, inference_ms,"
            " detections, error) VALUES ($1, 1, $2, $3, 2, 2, 1, $4, $5)",
            *(scenario_id, number, number / 8, detections, error),
        )
    await ledger.query("UPDATE scenarios SET next_frame = 28, frames_stored = 28 WHERE id = $1", scenario_id)

    shown = await cli("show", config, str(scenario_id))
    assert (shown.code, shown.err) == (0, "")
    assert "stored:     28 frames, next is frame 28\n  inferred:   3 of them; nothing was seen in 2\n" in shown.out
    lines = [line.split() for line in shown.out.splitlines()]
    assert ["cat", "1", "1"] in lines
    assert ["frame", "time", "not", "inferred", "because"] in lines
    assert lines[-2][:5] == ["22", "2.750", "s", "inference_rejected:", "413"]
    assert shown.out.endswith("\nand 5 more, which the view trio_runner.frames has\n")
    assert not any(forbidden in shown.out for forbidden in ("\x1b", "\x07", "\x9b", "\u202e"))

    as_json = json.loads((await cli("show", config, str(scenario_id), "--json")).out)
    assert as_json["frames"] == {"with_detections": 1, "without_detections": 2, "not_inferred": 25}
    assert as_json["not_inferred"][0] == {"frame_index": 3, "pts_seconds": 0.375, "reason": rows[3][2]}

    (line,) = (line for line in (await cli("status", config)).out.splitlines() if line.startswith(f"{scenario_id} "))
    assert "28, 25 not inferred" in line


async def test_show_without_a_number_is_status(
    cli: Cli, write_config: WriteConfig, servers: Servers, scenario_id: int
) -> None:
    """In a database of its own: the leases of other tests' scenarios get shorter between two calls."""
    async with new_database(servers, f"tests_{scenario_id}") as empty:
        config = write_config(database={"url": empty.database_url})
        assert (await cli("submit", config, "--video", "/videos/seven.mp4", "--id", str(scenario_id))).code == 0
        shown, status = await cli("show", config), await cli("status", config)
        assert (shown.code, status.code) == (0, 0)
        assert shown.out == status.out
        (line,) = (line for line in shown.out.splitlines() if line.startswith(f"{scenario_id} "))
        assert "seven.mp4" in line
        (row,) = json.loads((await cli("show", config, "--json")).out)
        assert row["video_path"] == "/videos/seven.mp4"


HOSTILE = "\x1b]0;title\x07\x1b[31m\x9b31m\u202e"


async def test_no_verb_sends_control_characters_of_others_to_a_terminal(
    cli: Cli, write_config: WriteConfig, ledger: Ledger, scenario_id: int
) -> None:
    config = write_config()
    assert (await cli("submit", config, "--video", f"/videos/a{HOSTILE}b.mp4", "--id", str(scenario_id))).code == 0
    error = {"code": "store_lost", "message": f"lost{HOSTILE}"}
    await ledger.query("UPDATE scenarios SET last_error = $2 WHERE id = $1", scenario_id, error)
    await ledger.query(
        "INSERT INTO attempts (scenario_id, epoch, instance_id, runner_id, host, first_frame)"
        " VALUES ($1, 1, gen_random_uuid(), $2, 'here', 0)",
        scenario_id,
        f"runner{HOSTILE}",
    )
    detection = {"label": f"cat{HOSTILE}", "confidence": 0.5, "bbox": [0, 0, 1, 1]}
    await ledger.query(
        "INSERT INTO predictions (scenario_id, epoch, frame_index, pts_seconds, width, height, detections,"
        " inference_ms) VALUES ($1, 1, 0, 0, 2, 2, $2, 1)",
        scenario_id,
        [detection],
    )
    for arguments in (["status"], ["show"], ["show", str(scenario_id)]):
        for as_json in ([], ["--json"]):
            verb, *rest = arguments
            done = await cli(verb, config, *rest, *as_json)
            assert (done.code, done.err) == (0, "")
            assert not any(forbidden in done.out for forbidden in ("\x1b", "\x07", "\x9b")), done.out
            assert as_json or "\u202e" not in done.out
    shown = json.loads(done.out)
    assert shown["video_path"] == f"/videos/a{HOSTILE}b.mp4", "a program gets it as it is"
    assert [row["label"] for row in shown["found"]] == [f"cat{HOSTILE}"]


async def test_show_an_unknown_scenario(cli: Cli, write_config: WriteConfig, scenario_id: int) -> None:
    done = await cli("show", write_config(), str(scenario_id))
    assert done.code == 1
    assert f"there is no scenario {scenario_id}" in done.out + done.err
    as_json = await cli("show", write_config(), str(scenario_id), "--json")
    assert as_json.code == 1
    assert as_json.out in ("", "null\n"), "what is read by a program stays JSON"


async def test_show_without_a_database(cli: Cli, write_config: WriteConfig) -> None:
    port = free_port()
    config = write_config(database={"url": f"postgresql://u@127.0.0.1:{port}/d"})
    for verb in ("show", "init-db"):
        done = await cli(verb, config)
        assert done.code not in (0, 1)
        assert f"127.0.0.1:{port}" in done.err
        assert "Traceback" not in done.err


async def test_events(cli: Cli, write_config: WriteConfig, ledger: Ledger, scenario_id: int, clip: Path) -> None:
    config = write_config(video={"path": str(clip)}, inference={"url": f"http://127.0.0.1:{free_port()}"})
    none = await cli("events", config, "--json")
    assert (none.code, none.out) == (0, ""), none.err
    for _ in range(2):
        assert (await cli("run", config)).code == 75

    lines = (await cli("events", config)).out.splitlines()
    assert len(lines) == 2
    assert all(f"scenario {scenario_id}" in line and "inference_unreachable" in line for line in lines)

    events = [json.loads(line) for line in (await cli("events", config, "--json")).out.splitlines()]
    recorded = {str(row["event_id"]): row["epoch"] for row in await ledger.retry_events(scenario_id)}
    assert {event["headers"]["ce_id"]: event["body"]["epoch"] for event in events} == recorded
    assert sorted(recorded.values()) == [1, 2]


async def test_events_are_followed_until_ctrl_c(cli: Cli, write_config: WriteConfig, clip: Path) -> None:
    config = write_config(video={"path": str(clip)}, inference={"url": f"http://127.0.0.1:{free_port()}"})

    async with cli.started("events", config, "--json", "--follow") as follower:
        for expected in (1, 2):
            assert (await cli("run", config)).code == 75

            async def seen(count: int = expected) -> bool:
                return len(follower.out().splitlines()) == count

            await until(seen, described=f"{expected} events")
        follower.send_signal(signal.SIGINT)
        done = await follower.wait()
    assert done.code in (0, 130)
    assert "Traceback" not in done.err
    assert [json.loads(line)["body"]["epoch"] for line in done.out.splitlines()] == [1, 2]


async def test_events_without_a_broker(cli: Cli, write_config: WriteConfig) -> None:
    address = f"127.0.0.1:{free_port()}"
    done = await cli("events", write_config(kafka={"brokers": address}))
    assert done.code not in (0, 1)
    assert address in done.err
    assert "Traceback" not in done.err


async def test_events_from_the_ledger_when_the_embedded_broker_is_gone(
    cli: Cli, write_config: WriteConfig, ledger: Ledger, scenario_id: int, clip: Path
) -> None:
    config = write_config(
        video={"path": str(clip)},
        inference={"url": f"http://127.0.0.1:{free_port()}"},
        kafka={"brokers": "embedded"},
    )
    assert (await cli("run", config)).code == 75
    done = await cli("events", config)
    assert done.code == 0, done.err
    assert "the embedded broker is not running" in done.err
    assert any(f"scenario {scenario_id}" in line for line in done.out.splitlines())
    as_json = await cli("events", config, "--json")
    events = [json.loads(line) for line in as_json.out.splitlines()]
    (event,) = (event for event in events if event["body"].get("scenario_id") == scenario_id)
    (recorded,) = await ledger.retry_events(scenario_id)
    assert event["headers"]["ce_id"] == str(recorded["event_id"])


async def test_the_printed_addresses_are_a_config(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "host.toml").touch()
    video = REPOSITORY / "test_videos" / "test_video.mp4"
    async with cli.started("embedded", "host.toml") as host:

        async def printed() -> str:
            return host.out() if "# until Ctrl-C" in host.out() else ""

        text = await until(printed, described="addresses")
        (tmp_path / "pasted.toml").write_text(f"{text}\n[video]\npath = '{video}'\nmax_frames = 5\n")
        assert "embedded" not in (tmp_path / "pasted.toml").read_text().replace("# embedded", "")
        assert (await cli("validate", "pasted.toml")).code == 0
        done = await cli("run", "pasted.toml")
        assert done.code == 0, done.err
        # The same scenario, seen by a process that attaches to the host by its data directory.
        attached = await cli("show", "host.toml", "1", "--json")
        assert json.loads(attached.out)["frames_stored"] == 5
        host.send_signal(signal.SIGINT)
        assert (await host.wait()).code == 0
        assert host.family() == []


async def test_embedded_with_nothing_to_host(cli: Cli, write_config: WriteConfig) -> None:
    done = await cli("embedded", write_config())
    assert done.code == 0
    assert "nothing to host" in done.out


def catches(pid: int, number: signal.Signals) -> bool:
    """Whether that process has a handler for the signal (proc_pid_status(5))."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return bool(int(fields["SigCgt"], 16) & 1 << number - 1)


@pytest.mark.parametrize("verb", ["events", "embedded"])
async def test_a_closed_terminal_ends_events_and_not_embedded(
    cli: Cli, write_config: WriteConfig, tmp_path: Path, verb: str
) -> None:
    (tmp_path / "host.toml").touch()
    arguments = ("events", write_config(), "--follow") if verb == "events" else ("embedded", "host.toml")
    async with cli.started(*arguments) as running:

        async def at_work() -> bool:
            return catches(running.pid, signal.SIGTERM)

        await until(at_work, described="its own handling of SIGTERM")
        running.send_signal(signal.SIGHUP)
        if verb == "embedded":
            await trio.sleep(1)
            assert not running.exited()
            running.send_signal(signal.SIGINT)
        done = await running.wait()
    assert done.code == (0 if verb == "embedded" else -signal.SIGHUP)


async def test_standard_output_that_takes_nothing_ends_no_run(
    cli: Cli, write_config: WriteConfig, ledger: Ledger, scenario_id: int, clip: Path
) -> None:
    async with open_fake() as fake:
        config = write_config(video={"path": str(clip)}, inference={"url": fake.url})
        program = ["sh", "-c", 'exec "$@" >/dev/full', "sh", *command()]
        async with cli.started("run", config, program=program) as running:
            done = await running.wait()
    assert done.code == 0, done.err
    assert (await ledger.existing(scenario_id))["outcome"] == "completed"


ONLY_FOR_A_TERMINAL = """
import sys
sys.modules["click"] = None  # with it, httpx loads rich for a command line of its own
from trio_runner.cli.main import main
code = main()
print("loaded:", *sorted({name.partition(".")[0] for name in sys.modules} & {"rich", "structlog", "kr8s", "cv2"}))
print("loaded:", *sorted(name for name in sys.modules if name.startswith("trio_runner.orchestrator")))
sys.exit(code)
"""


async def test_a_run_without_a_terminal_loads_nothing_for_one(cli: Cli, write_config: WriteConfig, clip: Path) -> None:
    async with open_fake() as fake:
        config = write_config(video={"path": str(clip)}, inference={"url": fake.url})
        program = [sys.executable, "-c", ONLY_FOR_A_TERMINAL]
        async with cli.started("run", config, program=program) as running:
            done = await running.wait()
    assert done.code == 0, done.err
    assert done.out.splitlines()[-2:] == ["loaded:", "loaded:"]


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("[orchestrator]\nmax_runner = 2\n", ["a.toml:2: orchestrator.max_runner: unknown key"]),
        ('[orchestrator]\nspawner = "systemd"\n', ["a.toml:2: orchestrator.", "runner_config"]),
        ('[orchestrator]\nrunner_config = "b.toml"\n', ["b.toml:2: video.strid: unknown key"]),
        ('[orchestrator]\nrunner_config = "nowhere.toml"\n', ["nowhere.toml"]),
        (
            '[orchestrator]\nrunner_config = "c.toml"\n',
            ["c.toml: database.url: runners of a fleet share their servers"],
        ),
    ],
    ids=["unknown key", "units without a config", "a bad config of runners", "none", "embedded servers for runners"],
)
async def test_an_orchestrators_bad_config_is_refused_before_anything_is_started(
    cli: Cli, tmp_path: Path, text: str, parts: list[str]
) -> None:
    (tmp_path / "a.toml").write_text(text)
    (tmp_path / "b.toml").write_text("[video]\nstrid = 2\n")
    (tmp_path / "c.toml").touch()
    done = await cli("orchestrate", "a.toml")
    assert (done.code, done.out) == (78, "")
    assert all(part in done.err for part in parts), done.err
    assert "config_invalid" in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / ".trio-runner").exists(), "nothing was started"


async def test_serve_inference(cli: Cli) -> None:
    async with cli.started("serve-inference", "--listen", "127.0.0.1:0") as running:

        async def listening() -> str:
            return running.out() if running.out().endswith("\n") else ""

        port = json.loads(await until(listening, described="a port"))["port"]
        jpeg = cv2.imencode(".jpg", clips.paint(1, (320, 240)))[1].tobytes()
        async with httpx.AsyncClient(timeout=PATIENCE_SECONDS) as client:
            answer = await client.post(f"http://127.0.0.1:{port}/predict", files={"frame": jpeg})
        assert answer.status_code == 200
        assert isinstance(answer.json()["predictions"], list)
        running.send_signal(signal.SIGINT)
        assert (await running.wait()).code == 0


async def test_on_a_terminal_a_bar_is_drawn(cli: Cli, write_config: WriteConfig, clip: Path) -> None:
    in_terminal = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
    async with open_fake(delay=lambda _: 0.05) as fake:
        config = write_config(video={"path": str(clip)}, inference={"url": fake.url})
        program = [sys.executable, "-c", in_terminal, *command()]
        async with cli.started("run", config, program=program) as running:
            done = await running.wait()
    assert done.code == 0, done.out
    assert "60/60" in done.out
    assert "completed" in done.out
    assert "Traceback" not in done.out

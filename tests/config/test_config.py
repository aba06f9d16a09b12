from __future__ import annotations

from operator import attrgetter
from pathlib import Path

import msgspec
import pytest
import tomli
from hypothesis import given
from hypothesis import strategies as st

from tests.support.harness import REPOSITORY
from trio_runner.cli.main import main
from trio_runner.config import inference_rules
from trio_runner.config.errors import ConfigError, Problem
from trio_runner.config.inference import InferenceSection
from trio_runner.config.keys import is_table
from trio_runner.config.kinds import EMBEDDED
from trio_runner.config.lines import key_lines
from trio_runner.config.load import Config, load_config, parse_config
from trio_runner.config.settings import parse_settings
from trio_runner.config.tensor import TensorSection
from trio_runner.errors import ErrorCode

BASE = Path("/somewhere")
KEYS = {
    section.name: [key.encode_name for key in msgspec.structs.fields(section.type)]
    for section in msgspec.structs.fields(Config)
}
ALL_KEYS = [
    *((section, key) for section, keys in KEYS.items() for key in keys),
    *(
        (f"inference.{table.name}", key.name)
        for table in msgspec.structs.fields(InferenceSection)
        if is_table(table.type)
        for key in msgspec.structs.fields(table.type)
        if not is_table(key.type)
    ),
    *(("inference.oip.tensor", key.name) for key in msgspec.structs.fields(TensorSection)),
]
LISTS = {"url_prefixes", "labels", "classes"}


def refused(text: str) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        parse_config(text, base_dir=BASE, environ={})
    return caught.value


def the_problem(text: str) -> Problem:
    (problem,) = refused(text).problems
    return problem


def problems(text: str) -> list[tuple[str, int | None]]:
    return [(problem.key, problem.line) for problem in refused(text).problems]


# runner.toml, the reference


def test_reference_config_states_the_defaults() -> None:
    written = tomli.loads((REPOSITORY / "runner.toml").read_text())
    assert written == msgspec.json.decode(msgspec.json.encode(Config()))


def test_reference_config_lists_every_section_in_order_and_every_key() -> None:
    written = tomli.loads((REPOSITORY / "runner.toml").read_text())
    assert list(written) == list(KEYS)
    # Not in the structs' order: what all peers have in common is first there, and stands beside its like in the file.
    assert {section: sorted(keys) for section, keys in written.items()} == {
        section: sorted(keys) for section, keys in KEYS.items()
    }


def test_reference_config_loads_with_paths_beside_it() -> None:
    config = load_config(REPOSITORY / "runner.toml")
    assert config.video.path == str(REPOSITORY / "test_videos/test_video.mp4")
    assert config.runner.data_dir == str(REPOSITORY / ".trio-runner")
    assert config.database.password_file == ""


def test_an_empty_file_is_the_defaults() -> None:
    assert parse_config("", base_dir=Path()).inference == Config().inference


# what is refused, and how


@pytest.mark.parametrize(("section", "key"), ALL_KEYS)
def test_every_key_refuses_a_value_of_another_type_and_says_where(section: str, key: str) -> None:
    value, found = ("1", "1") if key in LISTS else ("[]", "an array")
    problem = the_problem(f"# one\n\n[{section}]\n{key} = {value}\n")
    assert (problem.key, problem.line, problem.found) == (f"{section}.{key}", 4, found)
    assert problem.allowed
    assert str(problem) == f"line 4: {section}.{key}: bad value, found {found}; allowed: {problem.allowed}"


@pytest.mark.parametrize(("section", "key"), ALL_KEYS)
def test_a_misspelt_key_is_met_with_the_right_one(section: str, key: str) -> None:
    # Doubling the last letter stays nearer to the key than to any other.
    problem = the_problem(f"[{section}]\n{key}{key[-1]} = 1\n")
    assert (problem.key, problem.line, problem.nearest) == (f"{section}.{key}{key[-1]}", 2, key)
    assert str(problem).endswith(f": unknown key; did you mean '{key}'?")


@pytest.mark.parametrize("written", ["Stride", "STRIDE", "strid", "stirde"])
def test_a_key_in_other_letters_is_met_with_the_right_one(written: str) -> None:
    assert the_problem(f"[video]\n{written} = 1\n").nearest == "stride"


def test_a_misspelt_section_is_met_with_the_right_one() -> None:
    problem = the_problem("[runner]\n\n[infrence]\nurl = 'http://h'\n")
    assert str(problem) == "line 3: infrence: unknown section; did you mean 'inference'?"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[log]\nzzz = 1\n", "line 2: log.zzz: unknown key; allowed: level, format"),
        (
            "[zzz]\n",
            "allowed: [runner], [log], [scenario], [video], [storage], [inference], [pipeline], [database], [kafka]",
        ),
        ("[kafka]\nstride = 1\n", "line 2: kafka.stride: unknown key; known in [video]"),
        ("stride = 1\n", "line 1: stride: unknown key; known in [video]"),
        ("strid = 1\n", "line 1: strid: unknown key; did you mean 'stride'?; known in [video]"),
        ("[log]\nin_flihgt = 1\n", "log.in_flihgt: unknown key; did you mean 'in_flight'?; known in [inference]"),
        ("[runner]\nca_file = 1\n", "unknown key; known in [storage], [inference], [database], [kafka]"),
        ("[runner.video]\npath = 1\n", "line 1: runner.video: unknown key; [video] is a section of its own"),
        ("runner = 1\n", "line 1: runner: bad value, found 1; allowed: the table [runner]"),
        ("[[runner]]\nid = 'a'\n", "line 1: runner: bad value, found an array; allowed: the table [runner]"),
        ('[video]\n"str\u0456de" = 1\n', "line 2: video.\"str\\u0456de\": unknown key; did you mean 'stride'?"),
        ("[log]\nlevel = 'loud'\n", 'found "loud"; allowed: "debug" | "info" | "warning" | "error"'),
        ("[video]\nstride = 0\n", "found 0; allowed: an integer from 1 to 2147483647"),
        ("[video]\nlimit_fps = 0\n", "found 0; allowed: a number above 0, at most 1000"),
        ("[video]\nstride = true\n", "found true; allowed: an integer"),
        ("[video]\nmax_fps = nan\n", "found nan; allowed: a number from 0 to 1000"),
        ("[database]\ncreate_schema = 1979-05-27\n", "found a date or time; allowed: true or false"),
        ("[runner]\nid = 'a b'\n", 'found "a b"; allowed: 1 to 200 letters, digits or any of . _ : @ -'),
        ("[scenario]\nid = 0x" + "f" * 5000, "found a huge integer; allowed: an integer from 1 to 9223372036854775807"),
    ],
)
def test_the_message_has_the_value_found_and_those_allowed(text: str, message: str) -> None:
    assert message in str(refused(text))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("runner.id", '""'),
        ("runner.id", '"a b"'),
        ("runner.id", '"runner\\n"'),
        ("runner.drain_seconds", "0"),
        ("runner.drain_seconds", "nan"),
        ("runner.drain_seconds", "inf"),
        ("log.level", '"loud"'),
        ("scenario.id", "0"),
        ("scenario.id", "9223372036854775808"),
        ("scenario.id", "true"),
        ("scenario.id", "1.5"),
        ("scenario.epoch", "-1"),
        ("scenario.epoch", "9223372036854775808"),
        ("scenario.max_failures", "0"),
        ("scenario.max_failures", "2147483648"),
        ("scenario.on_complete", '"init_startup"'),
        ("video.path", '""'),
        ("video.path", '"a\\u0000b"'),
        ("video.stride", "0"),
        ("video.start_seconds", "-0.1"),
        ("video.start_seconds", "inf"),
        ("video.start_seconds", "nan"),
        ("video.max_fps", "nan"),
        ("video.jpeg_quality", "101"),
        ("video.limit_memory_mib", "99999999999999999"),
        ("inference.url", '""'),
        ("inference.url", '"localhost:8001"'),
        ("inference.url", '"ftp://h"'),
        ("inference.url", '"http://"'),
        ("inference.url", '"http://h:0"'),
        ("inference.url", '"http://h:99999"'),
        ("inference.url", '"http://h:port"'),
        ("inference.url", '"http://[::1"'),
        ("inference.url", '"http://two words"'),
        ("inference.url", '"http://h?key=1"'),
        ("inference.url", '"http://h/#part"'),
        ("inference.predict.path", '"predict"'),
        ("inference.predict.path", '"/a b"'),
        ("inference.predict.path", '"/predict?x=1"'),
        ("inference.predict.path", '"/predict\\n"'),
        ("inference.url", '"unix:model.sock"'),
        ("inference.url", '"unix:/a\\u0000b"'),
        ("inference.url", f'"unix:/{"a" * 107}"'),
        ("inference.in_flight", "0"),
        ("inference.in_flight", "257"),
        ("pipeline.max_buffered_bytes", "1"),
        ("database.url", '"mysql://h/db"'),
        ("database.url", '"postgresql://h:99999/db"'),
        ("database.url", '"postgresql://a,b/db"'),
        ("database.url", '"postgresql://a@b@h/db"'),
        ("database.url", '"postgresql://h/db#part"'),
        ("database.url", '"postgresql://h/db?port=x"'),
        ("database.url", '"postgresql://h/db?words"'),
        ("database.password_file", '"a\\u0000b"'),
        ("database.batch_frames", "1001"),
        ("database.lease_seconds", "0.5"),
        ("kafka.brokers", '""'),
        ("kafka.brokers", '"host"'),
        ("kafka.brokers", '"host:9092,"'),
        ("kafka.brokers", '"host:9092, other:9092"'),
        ("kafka.brokers", '"host:99999"'),
        ("kafka.brokers", '"host:0"'),
        ("kafka.username", '"a\\u0000b"'),
        ("kafka.retry_topic", '"a/b"'),
        ("kafka.retry_topic", '"retry\\n"'),
    ],
)
def test_values_that_cannot_work_are_refused_by_key_and_line(key: str, value: str) -> None:
    section, _, name = key.rpartition(".")
    problem = the_problem(f"[{section}]\n{name} = {value}\n")
    assert (problem.key, problem.line) == (key, 2)
    assert problem.allowed or problem.remedy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("inference.url", "https://gpu.example.org/v1"),
        ("inference.url", "http://[::1]:8001"),
        ("inference.url", f"unix:/{'a' * 106}"),
        ("database.url", "postgresql:///local_database"),
        ("database.url", "postgres://user@h:5432/db"),
        ("database.url", "postgresql:///db?host=/run/postgresql&port=5433&user=me"),
        ("database.url", "postgresql://me@%2Frun%2Fpostgresql/db"),
        ("kafka.brokers", "a:9092,b.example.org:9093,[::1]:9094"),
        ("kafka.brokers", EMBEDDED),
        ("runner.id", "runner_1.eu-west@host:7"),
    ],
)
def test_values_that_work_are_taken(key: str, value: str) -> None:
    section, name = key.split(".")
    config = parse_config(f'[{section}]\n{name} = "{value}"\n', base_dir=BASE)
    assert getattr(getattr(config, section), name) == value


def test_two_ways_of_sampling_at_once_are_refused() -> None:
    assert problems("[video]\nstride = 2\nmax_fps = 5\n") == [("video.max_fps", 3)]


def test_a_batch_larger_than_the_buffer_is_refused() -> None:
    text = "[database]\nbatch_frames = 100\n[pipeline]\nmax_buffered_frames = 99\n"
    assert problems(text) == [("database.batch_frames", 2)]
    # Where the key itself is not written, the other one is to blame.
    assert problems("[pipeline]\nmax_buffered_frames = 5\n") == [("database.batch_frames", 2)]


# all at once


def test_every_mistake_is_named_in_the_order_of_the_lines() -> None:
    error = refused("[video]\nstrid = 1\nmax_fps = -1\n[vdieo]\n[kafka]\nstride = 2\n[log]\nlevel = 'loud'\n")
    assert error.code is ErrorCode.CONFIG_INVALID
    assert [problem.line for problem in error.problems] == [2, 3, 4, 6, 8]
    assert str(error).splitlines() == [str(problem) for problem in error.problems]
    report = error.report("runner.toml").splitlines()
    assert report[0] == "runner.toml:2: video.strid: unknown key; did you mean 'stride'?"
    assert report[-1] == "runner.toml: config_invalid: 5 errors, nothing was started"
    assert len(report) == 6


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        (["video.strid=2"], "video.strid: unknown key; did you mean 'stride'?"),
        (["video.stride = 2", "video.max_fps=1"], "video.max_fps: stride and max_fps are both set; choose one"),
        (["vidoe.stride=2"], "vidoe: unknown section; did you mean 'video'?"),
        (["video.stride"], '"video.stride": not of the form section.key=value'),
    ],
)
def test_the_place_of_a_mistake_in_a_command_line_is_its_option(settings: list[str], first: str) -> None:
    with pytest.raises(ConfigError) as caught:
        Config().replace(**parse_settings(settings))
    assert caught.value.report("a.toml", settings).startswith(f"--set: {first}")
    assert caught.value.report("a.toml", settings).endswith("\na.toml: config_invalid: 1 error, nothing was started")
    # The verb `inspect` needs no config.
    assert caught.value.report("", settings).startswith(f"--set: {first}")
    assert caught.value.report("", settings).endswith("\n--set: config_invalid: 1 error")


def test_a_report_of_one_mistake_without_a_line() -> None:
    with pytest.raises(ConfigError) as caught:
        Config().replace(scenario={"id": 0})
    assert caught.value.report("a.toml").splitlines() == [
        "a.toml: scenario.id: bad value, found 0; allowed: an integer from 1 to 9223372036854775807",
        "a.toml: config_invalid: 1 error, nothing was started",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[kafka]\nsecurity_protocol = 'SASL_SLL'\nusername = 'u'\npassword_file = 'p'\n",
        "[kafka]\nsecurity_protocl = 'SASL_SSL'\nusername = 'u'\npassword_file = 'p'\n",
        "[kafka]\nbrokers = 'h:1'\nsecurity_protocol = 'SASL_SSL'\nusername = 'u'\npassword = 'p'\n",
        "[video]\nsecurity_protocol = 'SSL'\n[kafka]\nca_file = 'ca'\n",
        "[database]\nurl = 'postgresql://u@h/d'\nsslmode = 'require'\npassword_file = 'p'\nallow_plaintext_pw = true\n",
        "[inference]\nurl = 'http://h'\ntoken_file = 't'\nallow_plaintext = true\n",
        "[pipelin]\nmax_buffered_frames = 999\n[database]\nbatch_frames = 100\n",
        "[inference]\nurl = 'htp://h'\ntoken_file = 't'\nca_file = 'c'\n",
    ],
)
def test_a_mistake_is_not_blamed_on_its_neighbours(text: str) -> None:
    assert len(refused(text).problems) == 1


# secrets over connections that are not encrypted, and what has to go together

DATABASE = "[database]\nurl = 'postgresql://u@h/d'\n"
KAFKA = "[kafka]\nbrokers = 'h:9092'\n"
INFERENCE = "[inference]\nurl = 'http://h:1'\n"
SECURE = "[inference]\nurl = 'https://h:1'\n"
SASL = "username = 'u'\npassword_file = 'p'\n"


@pytest.mark.parametrize(
    ("text", "expected", "remedy"),
    [
        (
            DATABASE + "password_file = 'p'\nsslmode = 'disable'\n",
            [("database.sslmode", 4)],
            "allow_plaintext_password",
        ),
        (DATABASE + "password_file = 'p'\nsslmode = 'require'\n", [("database.sslmode", 4)], "verify-full"),
        (DATABASE + "sslmode = 'verify-ca'\n", [("database.sslmode", 3)], "database.ca_file"),
        (DATABASE + "sslmode = 'require'\nca_file = 'c'\n", [("database.ca_file", 4)], "verify-full"),
        (
            DATABASE + "sslmode = 'disable'\nca_file = 'c'\ncertificate_file = 'c'\nkey_file = 'k'\n",
            [("database.ca_file", 4), ("database.certificate_file", 5), ("database.key_file", 6)],
            "remove this",
        ),
        (DATABASE + "key_file = 'k'\n", [("database.key_file", 3)], "database.certificate_file"),
        ("[database]\nurl = 'postgresql:///d'\nca_file = 'c'\n", [("database.ca_file", 3)], "remove it"),
        ("[database]\nca_file = 'c'\n", [("database.ca_file", 2)], "remove it"),
        ("[database]\npassword_file = 'p'\n", [("database.password_file", 2)], "remove it"),
        (INFERENCE + "token_file = 't'\n", [("inference.url", 2)], "inference.allow_plaintext_token"),
        (INFERENCE + "ca_file = 'c'\n", [("inference.ca_file", 3)], "https://"),
        (SECURE + "key_file = 'k'\n", [("inference.key_file", 3)], "inference.certificate_file"),
        ("[inference]\ntoken_file = 't'\n", [("inference.token_file", 2)], "remove it"),
        ("[inference]\ncertificate_file = 't'\n", [("inference.certificate_file", 2)], "remove it"),
        (
            KAFKA + "security_protocol = 'SASL_PLAINTEXT'\n" + SASL,
            [("kafka.security_protocol", 3)],
            "kafka.allow_plaintext_password",
        ),
        (
            KAFKA + "security_protocol = 'SASL_SSL'\n",
            [("kafka.username", 3), ("kafka.password_file", 3)],
            "SASL_SSL needs it",
        ),
        (KAFKA + SASL, [("kafka.username", 3), ("kafka.password_file", 4)], "SASL_SSL"),
        (KAFKA + "security_protocol = 'SSL'\nusername = 'u'\n", [("kafka.username", 4)], "SASL_SSL"),
        (KAFKA + "ca_file = 'c'\n", [("kafka.ca_file", 3)], "to SSL,"),
        (KAFKA + "security_protocol = 'SSL'\nkey_file = 'k'\n", [("kafka.key_file", 4)], "kafka.certificate_file"),
        ("[kafka]\nsecurity_protocol = 'SSL'\nca_file = 'c'\n", [("kafka.security_protocol", 2)], "remove it"),
    ],
)
def test_keys_that_do_not_go_together_are_refused(text: str, expected: list[tuple[str, int]], remedy: str) -> None:
    assert problems(text) == expected
    assert all(remedy in problem.remedy for problem in refused(text).problems)


@pytest.mark.parametrize(
    "text",
    [
        DATABASE + "password_file = 'p'\n",
        DATABASE + "password_file = 'p'\nsslmode = 'verify-ca'\nca_file = 'c'\n",
        DATABASE + "password_file = 'p'\nsslmode = 'require'\nallow_plaintext_password = true\n",
        DATABASE + "password_file = 'p'\nsslmode = 'disable'\nallow_plaintext_password = true\n",
        DATABASE + "sslmode = 'require'\ncertificate_file = 'c'\nkey_file = 'k'\n",
        DATABASE + "sslmode = 'disable'\n",
        "[database]\nurl = 'postgresql:///d'\nsslmode = 'disable'\npassword_file = 'p'\n",
        "[database]\nurl = 'postgresql:///d?host=/run/postgresql'\nsslmode = 'disable'\npassword_file = 'p'\n",
        "[database]\nurl = 'postgresql://u@%2Frun/d'\nsslmode = 'require'\npassword_file = 'p'\n",
        INFERENCE + "token_file = 't'\nallow_plaintext_token = true\n",
        SECURE + "token_file = 't'\nca_file = 'c'\ncertificate_file = 'c'\nkey_file = 'k'\n",
        KAFKA + "security_protocol = 'SASL_SSL'\n" + SASL,
        KAFKA + "security_protocol = 'SASL_SSL'\nca_file = 'c'\ncertificate_file = 'b'\n" + SASL,
        KAFKA + "security_protocol = 'SASL_PLAINTEXT'\nallow_plaintext_password = true\n" + SASL,
        KAFKA + "security_protocol = 'SSL'\n",
    ],
)
def test_keys_that_go_together_are_taken(text: str) -> None:
    assert parse_config(text, base_dir=BASE)


def test_a_socket_must_be_named_as_one_to_go_without_tls() -> None:
    for url in (
        "postgresql:///d?host=h",
        "postgresql://:5432/d?host=h",
        "postgresql://[::1]/d",
        "postgresql://h/d?host=/run",
    ):
        text = f"[database]\nurl = '{url}'\nsslmode = 'disable'\npassword_file = 'p'\n"
        assert problems(text) == [("database.sslmode", 3)]
    # A port alone makes no network address.
    assert problems("[database]\nurl = 'postgresql://:5432/d'\nca_file = 'c'\n") == [("database.ca_file", 3)]


@pytest.mark.parametrize(
    ("parameter", "key"),
    [
        ("sslmode=disable", "database.sslmode"),
        ("password=c4n4ryc4n4ry", "database.password_file"),
        ("%70assword=c4n4ryc4n4ry", "database.password_file"),
        ("passfile=/p", "database.password_file"),
        ("sslrootcert=/c", "database.ca_file"),
        ("sslcert=/c", "database.certificate_file"),
        ("sslkey=/k", "database.key_file"),
        ("service=c4n4ryc4n4ry", "dbname"),
        ("c4n4ryc4n4ry=1", "dbname"),
        ("target_session_attrs=any", "dbname"),
    ],
)
def test_a_parameter_that_is_a_key_of_its_own_is_refused_with_that_key(parameter: str, key: str) -> None:
    problem = the_problem(f"[database]\nurl = 'postgresql://u@h/d?user=u&{parameter}'\n")
    assert (problem.key, problem.line) == ("database.url", 2)
    assert key in str(problem)
    assert CANARY not in str(problem)


# secrets

CANARY = "c4n4ryc4n4ry"


@pytest.mark.parametrize(
    ("key", "url"),
    [
        ("database.url", f"postgresql://user:{CANARY}@h:5432/db"),
        ("database.url", f"postgresql://user@h:5432/db?password={CANARY}"),
        ("inference.url", f"http://user:{CANARY}@h:8001"),
        ("inference.url", f"http://{CANARY}@h:8001"),
    ],
)
def test_a_secret_in_an_address_is_refused_and_not_repeated(key: str, url: str) -> None:
    section, name = key.split(".")
    error = refused(f'[{section}]\n{name} = "{url}"\n')
    assert [problem.key for problem in error.problems] == [key]
    assert CANARY not in str(error)
    assert CANARY not in repr(error)


@given(
    st.sampled_from(["mysql", "postgresql", "http", "ftp", ""]),
    st.sampled_from(["database.url", "inference.url"]),
    st.text(alphabet=":/?#[]@ab1", max_size=8),
)
def test_whatever_else_is_wrong_with_an_address_the_password_stays_in_the_file(scheme: str, key: str, odd: str) -> None:
    section, name = key.split(".")
    text = f'[{section}]\n{name} = "{scheme}://user:{CANARY}@{odd}h"\n'
    error = refused(text)
    assert [problem.key for problem in error.problems] == [key]
    assert CANARY not in str(error)


@pytest.mark.parametrize(
    ("section", "key", "remedy"),
    [
        ("database", "password", "name that in password_file"),
        ("kafka", "sasl_password", "name that in password_file"),
        ("inference", "token", "name that in token_file"),
        ("inference", "auth_token", "name that in token_file"),
        ("runner", "secret", "password_file of [database] or [kafka]"),
    ],
)
def test_a_secret_in_a_key_of_its_own_belongs_into_a_file(section: str, key: str, remedy: str) -> None:
    error = refused(f'[{section}]\n{key} = "{CANARY}"\n')
    assert f"line 2: {section}.{key}: unknown key; write it into a file" in str(error)
    assert remedy in str(error)
    assert CANARY not in repr(error.problems)


@pytest.mark.parametrize(
    "text",
    [
        f"[database]\nallow_plaintext_password = '{CANARY}'\n",
        f"[kafka]\nbrokers = 'user:{CANARY}@h:9092'\n",
        f"[kafka]\nretry_topic = 'password={CANARY}'\n",
        f"[runner]\nid = 'x://user:{CANARY}@h'\n",
        f"[inference]\nurl = 'htp://h?key={CANARY}'\n",
        f"[database]\nurl = 'postgresql://u:{CANARY}@h:99999/d'\n",
        f"[database.password]\nvalue = '{CANARY}'\n",
        f"database = 'postgresql://u:{CANARY}@h/d'\n",
        f"password = '{CANARY}'\n",
        f"[kafka]\npassword = '{CANARY}'\npassword = '{CANARY}'\n",
        f"[kafka]\npassword = '{CANARY}\n",
    ],
)
def test_what_may_be_a_secret_is_not_repeated(text: str) -> None:
    error = refused(text)
    assert CANARY not in error.report("a.toml")
    assert CANARY not in repr(error.problems)
    assert error.__cause__ is None or CANARY not in repr(error.__cause__)


# $CREDENTIALS_DIRECTORY

FILE_KEYS = [(section, key) for section, key in ALL_KEYS if key.endswith("_file")]


@pytest.mark.parametrize(("section", "key"), FILE_KEYS)
@pytest.mark.parametrize("variable", ["$CREDENTIALS_DIRECTORY", "${CREDENTIALS_DIRECTORY}"])
def test_a_file_may_lie_where_systemd_puts_credentials(section: str, key: str, variable: str) -> None:
    rest = {
        "inference": "url = 'https://h'\n",
        "inference.openai": "",
        "database": "url = 'postgresql://u@h/d'\n",
        "kafka": "brokers = 'h:1'\nsecurity_protocol = 'SASL_SSL'\nusername = 'u'\n",
        "storage": "",
    }[section]
    others = {"kafka": {"password_file"}}.get(section, set()) | ({"certificate_file"} if key == "key_file" else set())
    others |= {"s3_key_id_file", "s3_secret_key_file"} if key.startswith("s3_") else set()
    rest += "".join(f"{other} = 'x'\n" for other in others - {key})
    text = f"[{section}]\n{rest}{key} = '{variable}/name'\n"
    config = parse_config(text, base_dir=BASE, environ={"CREDENTIALS_DIRECTORY": "/run/credentials/x"})
    assert attrgetter(f"{section}.{key}")(config) == "/run/credentials/x/name"
    for environ in ({}, {"CREDENTIALS_DIRECTORY": ""}):
        with pytest.raises(
            ConfigError, match=rf"{section}\.{key}: \$CREDENTIALS_DIRECTORY is not set.*LoadCredential="
        ):
            parse_config(text, base_dir=BASE, environ=environ)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("database", "password_file", "$HOME/x"),
        ("database", "password_file", "~/x"),
        ("database", "password_file", "$CREDENTIALS_DIRECTORYx/y"),
        ("database", "password_file", "a/$CREDENTIALS_DIRECTORY/y"),
        ("video", "path", "$CREDENTIALS_DIRECTORY/x"),
        ("kafka", "spool_dir", "$CREDENTIALS_DIRECTORY/x"),
    ],
)
def test_no_other_variable_and_no_other_key_is_expanded(section: str, key: str, value: str) -> None:
    url = "url = 'postgresql://u@h/d'\n" if section == "database" else ""
    environ = {"HOME": "/h", "CREDENTIALS_DIRECTORY": "/c"}
    config = parse_config(f"[{section}]\n{url}{key} = '{value}'\n", base_dir=BASE, environ=environ)
    assert getattr(getattr(config, section), key) == str(BASE / value)


def test_the_environment_of_the_process_is_what_a_file_is_loaded_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "x.toml").write_text(f"{DATABASE}password_file = '$CREDENTIALS_DIRECTORY/p'\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "/run/c")
    assert load_config(tmp_path / "x.toml").database.password_file == "/run/c/p"


# TOML itself


@pytest.mark.parametrize(
    ("text", "line"),
    [("[runner]\nid = \n", 2), ("[runner]\n[runner]\n", 2), ("x", 1), ("\n\n\x00", 3), ("a = 1\r", 1)],
)
def test_bad_toml_names_its_line(text: str, line: int) -> None:
    problem = the_problem(text)
    assert problem.line == line
    assert "not valid TOML" in str(problem)


@pytest.mark.parametrize(
    ("text", "key", "line", "first"),
    [
        ("[video]\nstride = 1\npath = 'a'\nstride = 2\n", "video.stride", 4, 2),
        ('[video]\nstride = 1\npath = """\na\n"""\n\'stride\' = 2\n', "video.stride", 6, 2),
        ("[video]\n[log]\n[video]\n", "video", 3, 1),
        ("video.stride = 1\n[video]\n", "video", 2, 1),
        ("video = 1\n[video]\n", "video", 2, 1),
        ("[video]\nstride = 1\nstride.x = 2\n", "video.stride", 3, 2),
        ("[video]\na.b.c = 1\na.b.c = 2\n", "video.a.b.c", 3, 2),
        ("video = {}\nvideo.x = 1\n", "video", 2, 1),
    ],
)
def test_what_is_written_twice_is_named_with_both_lines(text: str, key: str, line: int, first: int) -> None:
    problem = the_problem(text)
    assert (problem.key, problem.line) == (key, line)
    assert f"written twice, first on line {first}" in str(problem)


def test_nesting_beyond_the_parsers_depth_is_an_ordinary_error() -> None:
    assert "nested too deeply" in str(refused("x = " + "[" * 20_000))


@pytest.mark.parametrize(
    "text",
    [
        "[scenario]\nid = " + "9" * 5_000,
        "[video]\nlimit_fps = 1" + "0" * 400,
        "[video]\nlimit_fps = 1e999",
        "[runner]\nid = 1979-05-27T07:32:00Z",
        "[runner]\nid = '''" + "x" * 100_000 + "'''",
        '"a`b" = 1',
        '"" = 1',
        '[video]\n"x - at `$.y" = 1',
        '"x - at `$.y.z" = 1',
        "a.b.c.d = 1",
        "[[runner]]\nid = 'x'",
        "runner = [{id = 'x'}]",
    ],
    ids=lambda text: repr(text[:30]),
)
def test_odd_toml_is_a_config_error(text: str) -> None:
    assert len(str(refused(text))) < 1_000


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[ runner ]\nid = ""', 2),
        ('["runner"]\n"id" = ""', 2),
        ('\nrunner.id = ""', 2),
        ('# [runner]\n# id = 1\n[log]\nlevel = "info"\n[runner]\nid = ""', 6),
        ('[log] # id\r\nlevel = "info"\r\n\r\n[runner]\r\nid = ""', 5),
        ('# a line separator\u2028 ends no line of TOML\n[runner]\nid = ""', 3),
        ('runner = {id = ""}', 1),
    ],
)
def test_lines_are_found_in_every_way_of_writing(text: str, line: int) -> None:
    assert problems(text) == [("runner.id", line)]


def test_a_key_that_is_not_written_has_the_line_of_another_or_none() -> None:
    assert problems("[log]\n[kafka]\nbrokers = 'h:1'\nsecurity_protocol = 'SASL_SSL'\nusername = 'u'\n") == [
        ("kafka.password_file", 4)
    ]
    assert problems("[log]\n[kafka]\nbrokers = ''") == [("kafka.brokers", 3)]
    with pytest.raises(ConfigError) as caught:
        Config().replace(kafka={"username": "u"})
    assert [problem.line for problem in caught.value.problems] == [None]


# A text whose lines are known: each entry is what is written and the paths that it writes.
entries = st.sampled_from(
    [
        ("# [x] 'a", []),
        ("", []),
        ("{} = 1", [()]),
        ('\'{}\' = "[x]" # """', [()]),
        ('{} = """a"""" # "[', [()]),
        ('"{}" = """\n[x]\n#\\"""\ny = 1\n""""" # """', [()]),
        ("{} = '''\n{{[\n'''' # '", [()]),
        ('{} = [ # ]\n  [1, "]",\n\n  2],\n]', [()]),
        ("{} . 'b.c' = {{ d = 1, e.f = [{{g = 2}}] }}", [(), ("b.c",), ("b.c", "d"), ("b.c", "e"), ("b.c", "e", "f")]),
        ("[{}] # [", [None]),
        ('[ {} . "b]" ]', [None, ("b]",)]),
        ("[[{}]]", [None]),
    ]
)


@given(st.lists(entries, max_size=12), st.sampled_from(["\n", "\r\n"]))
def test_every_key_is_found_on_its_line(written: list[tuple[str, list[tuple[str, ...] | None]]], newline: str) -> None:
    text = ""
    expected: dict[tuple[str, ...], int] = {}
    header: tuple[str, ...] = ()
    for number, (form, paths) in enumerate(written):
        name, line = f"k{number}", text.count("\n") + 1
        if None in paths:
            header = ()
        for path in paths:
            expected[(*header, name, *(path or ()))] = line
        if None in paths:
            header = (name, *(paths[-1] or ()))
        text += form.format(name).replace("\n", newline) + newline
    assert key_lines(text) == expected


# files


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read .*no\.toml: No such file"):
        load_config(tmp_path / "no.toml")


def test_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="it is a directory"):
        load_config(tmp_path)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe[\0r\0")
    with pytest.raises(ConfigError, match="line 1: not UTF-8"):
        load_config(tmp_path / "x.toml")


def test_relative_paths_start_from_the_file_and_absolute_ones_stay(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_text(f'[video]\npath = "a.mp4"\n{DATABASE}password_file = "/etc/secret"\n')
    config = load_config(tmp_path / "x.toml")
    assert config.video.path == str(tmp_path / "a.mp4")
    assert config.database.password_file == "/etc/secret"


# replace


def test_replace_changes_single_keys_and_checks_them() -> None:
    config = Config().replace(scenario={"id": 7}, video={"stride": 3})
    assert (config.scenario.id, config.video.stride, config.scenario.max_failures) == (7, 3, 5)
    with pytest.raises(ConfigError, match=r"^scenario\.id: "):
        Config().replace(scenario={"id": 0})
    with pytest.raises(ConfigError, match=r"^inference\.url: "):
        Config().replace(inference={"url": "nonsense"})
    with pytest.raises(ConfigError, match=r"^vidoe: unknown section; did you mean 'video'\?$"):
        Config().replace(vidoe={"stride": 1})


def test_replace_names_all_mistakes_and_checks_rules() -> None:
    with pytest.raises(ConfigError) as caught:
        Config().replace(scenario={"id": 0}, database={"url": "postgresql://u@h/d?sslmode=disable"}, log={"level": 1})
    assert {problem.key for problem in caught.value.problems} == {"scenario.id", "database.url", "log.level"}


# from where a video may be fetched


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ('url_prefixes = ["https://h/a"]', "url_prefixes: number 1 does not end with /"),
        ('url_prefixes = ["https://h/", "s3://bucket"]', "url_prefixes: number 2 is not usable"),
        ('url_prefixes = ["https://u:c4n4ry@h/"]', "url_prefixes: number 1 is not usable: it has a user name"),
        ('url_prefixes = ["https://h/a/?c4n4ry=/"]', "url_prefixes: number 1 does not end with /"),
        ('url_prefixes = ["ftp://h/"]', "url_prefixes: number 1 is not usable: only https://"),
        ('url_prefixes = ["https://h/../"]', "url_prefixes: number 1 is not usable: its path"),
        ('url_prefixes = ["/srv/"]', "url_prefixes: number 1 is not usable"),
        ('url_prefixes = "https://h/"', "url_prefixes: bad value"),
        ("url_prefixes = [1]", "url_prefixes: bad value"),
        ('s3_endpoint = "https://h/path"', "s3_endpoint: not a usable address"),
        ('s3_endpoint = "s3://bucket/"', "s3_endpoint: not a usable address"),
        ('s3_key_id_file = "a"', "s3_secret_key_file: missing"),
        ('s3_secret_key_file = "a"', "s3_key_id_file: missing"),
        ('s3_session_token_file = "a"', "s3_session_token_file: of no use"),
        ('key_file = "a"', "key_file: a key without its certificate"),
    ],
)
def test_a_storage_that_cannot_be_used_is_named(text: str, problem: str) -> None:
    found = the_problem(f"[storage]\n{text}\n")
    assert f"storage.{problem}" in str(found)
    assert "c4n4ry" not in str(found)


def test_a_stream_has_a_number_from_0_on() -> None:
    problem = the_problem("[video]\nstream = -1\n")
    assert str(problem) == 'line 2: video.stream: bad value, found -1; allowed: "auto", or an integer from 0'
    for text, stream in (("0", 0), ("7", 7), ('"auto"', "auto")):
        assert parse_config(f"[video]\nstream = {text}\n", base_dir=Path()).video.stream == stream


@pytest.mark.parametrize(
    ("path", "prefixes", "problem"),
    [
        (
            "https://h/a.mp4",
            "",
            "begins with none of storage.url_prefixes; add its directory there, or correct the path",
        ),
        ("https://h/a.mp4", '"https://h/b/"', "begins with none of storage.url_prefixes"),
        ("s3://b/k", '"https://h/"', "not a URL that can be fetched: the bucket's name is not valid (3 to 63"),
        ("file:///etc/passwd", "", "not a URL that can be fetched: only https://"),
        ("https://h/../c4n4ry", '"https://h/"', "not a URL that can be fetched: its path"),
    ],
)
def test_a_video_that_the_same_config_does_not_allow_is_refused(path: str, prefixes: str, problem: str) -> None:
    text = f'[video]\npath = "{path}"\n[storage]\nurl_prefixes = [{prefixes}]\n'
    with pytest.raises(ConfigError) as caught:
        parse_config(text, base_dir=Path(), with_video=True)
    (found,) = caught.value.problems
    assert (found.key, found.line) == ("video.path", 2)
    assert problem in str(found)
    assert "c4n4ry" not in str(found)
    # A runner's config may hold the path of a scenario, and the scenario has an error of its own.
    assert parse_config(text, base_dir=Path()).video.path == path


def test_a_prefix_that_is_not_usable_is_the_only_problem_of_a_url() -> None:
    text = '[video]\npath = "https://h/a"\n[storage]\nurl_prefixes = ["ftp://h/"]\n'
    with pytest.raises(ConfigError) as caught:
        parse_config(text, base_dir=Path(), with_video=True)
    assert [problem.line for problem in caught.value.problems] == [4]


def test_validate_checks_the_url_of_the_video(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.toml"
    path.write_text('[video]\npath = "https://h/a.mp4"\n')
    assert main(["validate", str(path)]) == 78
    assert f"{path}:2: video.path: begins with none of storage.url_prefixes" in capsys.readouterr().err
    path.write_text('[video]\npath = "https://h/a.mp4"\n[storage]\nurl_prefixes = ["https://h/"]\n')
    assert main(["validate", str(path)]) == 0


def test_a_url_is_no_relative_path(tmp_path: Path) -> None:
    text = '[video]\npath = "s3://bucket/a b.mp4"\n[storage]\nurl_prefixes = ["s3://bucket/"]\ncache_dir = "cache"\n'
    config = parse_config(text, base_dir=tmp_path)
    assert config.video.path == "s3://bucket/a b.mp4"
    assert config.storage.cache_dir == str(tmp_path / "cache")
    assert config.replace(video={"stride": 2}).storage.url_prefixes == ("s3://bucket/",)


# tables inside a section


def test_a_key_of_a_table_inside_has_its_line() -> None:
    problem = the_problem("[inference]\nin_flight = 1\n\n[inference.predict]\nfeild = 'image'\n")
    assert str(problem) == "line 5: inference.predict.feild: unknown key; did you mean 'field'?"
    problem = the_problem("[inference]\npredict.path = 'predict'\n")
    assert (problem.key, problem.line) == ("inference.predict.path", 2)


def test_a_key_of_a_table_that_stands_above_it_is_met_with_that_table() -> None:
    problem = the_problem("[inference]\nfield = 'image'\n")
    assert str(problem) == "line 2: inference.field: unknown key; known in [inference.predict]"


def test_a_table_inside_is_a_table() -> None:
    assert str(the_problem("[inference]\npredict = 1\n")).endswith("found 1; allowed: the table [inference.predict]")


def test_a_change_of_one_key_keeps_the_others_of_its_table() -> None:
    config = Config().replace(inference={"predict": {"field": "image"}})
    config = config.replace(inference={"predict": {"path": "/v2"}}).with_absolute_paths(BASE)
    assert (config.inference.predict.field, config.inference.predict.path) == ("image", "/v2")


def test_files_in_a_table_start_from_the_configs_directory() -> None:
    text = "[inference]\nurl = 'https://h'\nheader_files = { a = 'k', b = '$CREDENTIALS_DIRECTORY/b' }\n"
    config = parse_config(text, base_dir=BASE, environ={"CREDENTIALS_DIRECTORY": "/run/c"})
    assert config.inference.header_files == {"a": str(BASE / "k"), "b": "/run/c/b"}
    text = text.replace("'k'", "'$CREDENTIALS_DIRECTORY/k'")
    with pytest.raises(ConfigError, match=r"line 3: inference\.header_files: \$CREDENTIALS_DIRECTORY is not set"):
        parse_config(text, base_dir=BASE, environ={})


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ('headers = { Authorization = "Bearer abc" }', "Authorization looks like a secret"),
        ('headers = { "X-Api-Key" = "abc" }', "X-Api-Key looks like a secret"),
        ('query = { api_key = "abc" }', "api_key looks like a secret"),
        ('headers = { "X-A" = "b" }\nheader_files = { "X-A" = "k" }', "X-A is set in inference.header_files too"),
        ('headers = { "Content-Length" = "1" }', "content-length is set by the client"),
        ('headers = { "a b" = "1" }', "bad value"),
        ('headers = { a = "1\\r\\nb: 2" }', "bad value"),
        ('header_files = { a = "k" }', "secrets of inference.header_files would be sent over a connection"),
        ('labels = ["a"]\nlabels_file = "b"', "labels and labels_file are both set"),
    ],
)
def test_headers_and_parameters_hold_no_secret_and_are_set_once(keys: str, message: str) -> None:
    error = refused(f"[inference]\nurl = 'http://h:1'\n{keys}\n")
    assert any(message in str(problem) for problem in error.problems)
    assert "abc" not in str(error)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[inference]\nready_path = '/health'\n", [("inference.ready_path", 2)]),
        (
            "[inference]\nmax_failed_frames = 1\n[pipeline]\nmax_buffered_frames = 1\n[database]\nbatch_frames = 1\n",
            [("inference.max_failed_frames", 2)],
        ),
        ("[inference]\nready_timeout_seconds = 1\nready_path = 'health'\n", [("inference.ready_path", 3)]),
        ("[inference]\nretry_seconds = -1\n", [("inference.retry_seconds", 2)]),
        (
            "[inference]\nready_timeout_seconds = 120\n[orchestrator]\nspawner = 'kubernetes'\n",
            [("inference.ready_timeout_seconds", 2)],
        ),
    ],
)
def test_keys_for_a_service_that_is_not_always_well_go_together(text: str, expected: list[tuple[str, int]]) -> None:
    assert problems(text) == expected


PROXY = "proxy = 'http://h:3128'\n"


@pytest.mark.parametrize(
    ("text", "expected", "remedy"),
    [
        ("[inference]\nurl = 'unix:/s'\nca_file = 'c'\n", [("inference.ca_file", 3)], "remove it"),
        ("[inference]\nurl = 'unix:/s'\n" + PROXY, [("inference.proxy", 3)], "remove it"),
        ("[inference]\nurl = 'unix:/s'\nhttp2 = true\n", [("inference.http2", 3)], "remove it"),
        ("[inference]\n" + PROXY, [("inference.proxy", 2)], "remove it"),
        (INFERENCE + PROXY + "http2 = true\n", [("inference.http2", 4)], "choose one"),
        (INFERENCE + "proxy = 'h:3128'\n", [("inference.proxy", 3)], ""),
        (INFERENCE + "proxy = 'https://h:3128'\n", [("inference.proxy", 3)], ""),
        (INFERENCE + "proxy = 'http://h:3128/path'\n", [("inference.proxy", 3)], ""),
    ],
)
def test_the_way_to_the_service_is_one_that_there_is(text: str, expected: list[tuple[str, int]], remedy: str) -> None:
    problems = refused(text).problems
    assert [(problem.key, problem.line) for problem in problems] == expected
    assert remedy in problems[0].remedy


def test_a_proxy_with_a_password_is_refused_and_not_repeated() -> None:
    text = str(refused(INFERENCE + f"proxy = 'http://user:{CANARY}@h:3128'\n"))
    assert "inference.proxy" in text
    assert CANARY not in text


def test_http2_without_its_package_is_refused_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference_rules, "find_spec", lambda _: None)
    problem = the_problem(INFERENCE + "http2 = true\n")
    assert (problem.key, problem.line) == ("inference.http2", 3)
    assert "trio_runner[http2]" in problem.remedy


# the embedded service


@pytest.mark.parametrize("protocol", ["http", "openai"])
def test_the_embedded_service_is_asked_by_its_own_protocols_alone(protocol: str) -> None:
    problem = the_problem(f"[inference]\nurl = 'embedded'\nprotocol = '{protocol}'\n[inference.http]\nraw = true\n")
    assert (problem.key, problem.line) == ("inference.protocol", 3)
    assert "inference.url" in problem.remedy


def test_the_model_of_the_embedded_service_needs_no_name() -> None:
    config = parse_config("[inference]\nurl = 'embedded'\nprotocol = 'oip'\n", base_dir=BASE, environ={})
    assert config.inference.oip.model == ""
    elsewhere = the_problem("[inference]\nurl = 'http://h:1'\nprotocol = 'oip'\n")
    assert elsewhere.key == "inference.oip.model"


# a chat with a language model


@pytest.mark.parametrize(
    ("keys", "key", "problem"),
    [
        ("prompt = 'a'\nprompt_file = 'b'", "prompt_file", "both set"),
        ("min_pixels = 5000\nmax_pixels = 4000", "min_pixels", "larger than max_pixels"),
        ("extra = { stream = true }", "extra", "stream is set by the protocol"),
        ("extra = { api_key = 'a' }", "extra", "api_key looks like a secret"),
        ("extra = { stop = nan }", "extra", "which JSON has not"),
        ("extra = { day = 2026-01-01 }", "extra", "which JSON has not"),
    ],
)
def test_a_chat_that_cannot_be_meant_is_refused(keys: str, key: str, problem: str) -> None:
    found = the_problem(f"[inference.openai]\n{keys}\n")
    assert found.key == f"inference.openai.{key}"
    assert problem in str(found)


def test_the_address_of_a_chat_is_written_without_its_path() -> None:
    url = "http://h/v1/chat/completions"
    assert "ends with" in str(the_problem(f"[inference]\nurl = '{url}'\nprotocol = 'openai'\n"))


@pytest.mark.parametrize(
    ("url", "protocol", "problem"),
    [
        ("http://h/v1", "openai", "ends with /v1, with which inference.openai.path begins"),
        ("http://h/gateway/v1/", "openai", "ends with /v1, with which inference.openai.path begins"),
        ("http://h/v2", "oip", "ends with /v2, with which every path of the protocol oip begins"),
    ],
)
def test_an_address_does_not_repeat_the_version_of_the_protocol(url: str, protocol: str, problem: str) -> None:
    found = the_problem(f"[inference]\nurl = '{url}'\nprotocol = '{protocol}'\n[inference.oip]\nmodel = 'm'\n")
    assert found.key == "inference.url"
    assert problem in str(found)
    assert "write the address alone" in str(found)


def test_an_address_may_have_the_version_where_the_path_has_not() -> None:
    text = "[inference]\nurl = 'http://h/v1'\nprotocol = 'openai'\n[inference.openai]\npath = '/chat/completions'\n"
    assert parse_config(text, base_dir=BASE, environ={}).inference.url == "http://h/v1"


def test_the_file_of_a_prompt_starts_from_the_directory_of_the_config() -> None:
    config = parse_config("[inference.openai]\nprompt_file = 'prompt.txt'\n", base_dir=BASE, environ={})
    assert config.inference.openai.prompt_file == "/somewhere/prompt.txt"
    extra = parse_config("[inference.openai]\nextra = { seed = 1, a = { b = [1] } }\n", base_dir=BASE, environ={})
    assert extra.inference.openai.extra == {"seed": 1, "a": {"b": [1]}}


# the protocol http

HTTP = "[inference]\nurl = 'http://h:1'\nprotocol = 'http'\n[inference.http]\n"


def test_an_own_service_is_described_key_by_key() -> None:
    config = parse_config(HTTP + "path = '/detect'\nlist = 'found'\nlabel = 'name'\n", base_dir=BASE)
    assert (config.inference.http.path, config.inference.http.list) == ("/detect", "found")


@pytest.mark.parametrize(
    ("text", "key", "line", "message"),
    [
        ("", "inference.http.list", 3, "not set: where are the detections in the answer?"),
        ("list = 'found'\n", "inference.http.label", 5, "not set: where is the class in an item?"),
        ("boxes = 'b'\n", "inference.http.labels", 5, "not set: where are the classes?"),
        ("list = 'a'\nlabel = 'b'\nboxes = 'c'\n", "inference.http.boxes", 7, "inference.http.list is set too"),
        ("list = 'a'\nlabel = 'b.'\n", "inference.http.label", 6, "not valid JMESPath: it ends too early"),
        ("list = 'a'\nlabel = 'b[? x'\n", "inference.http.label", 6, "not valid JMESPath: it ends too early"),
        ("list = 'a ~ b'\nlabel = 'b'\n", "inference.http.list", 5, "not valid JMESPath: at character 3, before '~ b'"),
        ("list = 'a'\nlabel = 'lower(b)'\n", "inference.http.label", 6, "unknown function lower(); known: abs, "),
        ("list = 'zip()'\nlabel = 'b'\n", "inference.http.list", 5, "zip() takes at least 1 arguments, not 0"),
        ("list = 'keys(a, b)'\nlabel = 'b'\n", "inference.http.list", 5, "keys() takes 1 arguments, not 2"),
        (f"list = '{'[' * 60}a{']' * 60}'\nlabel = 'b'\n", "inference.http.list", 5, "nested too deeply"),
        (f"list = '{'[' * 450}a{']' * 450}'\nlabel = 'b'\n", "inference.http.list", 5, "nested too deeply"),
        (
            "raw = true\nimage = 'base64'\nimage_at = 'a..b'\n",
            "inference.http.image_at",
            7,
            "not of the form key.key[0]",
        ),
        ("raw = true\nimage = 'base64'\nimage_at = 'a[1]'\n", "inference.http.fields", 7, "leaves a gap"),
        ("raw = true\nimage = 'base64'\nfields = {'a[x]' = 1}\n", "inference.http.fields", 7, "not of the form"),
        ("raw = true\nimage = 'base64'\nfields = {image = 1, 'image.b' = 2}\n", "inference.http.fields", 7, "not go"),
        ("raw = true\nimage = 'raw'\nfields = {a = 1}\n", "inference.http.fields", 7, "of no use where the image is"),
        ("raw = true\nfields = {a = [{b = nan}]}\n", "inference.http.fields", 6, "holds nan or inf"),
        (f"raw = true\nfields = {{a = {'[' * 60}{']' * 60}}}\n", "inference.http.fields", 6, "nested too deeply"),
        ("list = '&a'\nlabel = 'b'\n", "inference.http.list", 5, "& stands only before an argument"),
        ("list = '[&a]'\nlabel = 'b'\n", "inference.http.list", 5, "& stands only before an argument"),
        ("raw = true\nfields = {api_key = 'x'}\n", "inference.http.fields", 6, "api_key looks like a secret"),
        ("raw = true\nfield_files = {a = 'f'}\n", "inference.url", 2, "the secrets of inference.http.field_files"),
        ("preset = 'robflow'\n", "inference.http.preset", 5, "unknown preset"),
    ],
)
def test_what_cannot_work_in_an_own_service_is_refused_by_key_and_line(
    text: str, key: str, line: int, message: str
) -> None:
    problem = the_problem(HTTP + text)
    assert (problem.key, problem.line) == (key, line)
    assert message in problem.problem


def test_a_field_stands_either_in_the_config_or_in_a_file() -> None:
    text = HTTP.replace("http://h", "https://h") + "raw = true\nfields = {a = 1}\nfield_files = {a = 'f'}\n"
    assert "a is set in field_files too" in the_problem(text).problem
    config = parse_config(text.replace("fields = {a = 1}\n", ""), base_dir=BASE)
    assert config.inference.http.field_files == {"a": "/somewhere/f"}

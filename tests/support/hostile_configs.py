"""Configs that no runner may start with, each with the keys and lines that must be named: kept as code.

`python hostile_configs.py DIRECTORY` writes them all, to be tried by hand.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

Place = tuple[str, int | None]
"""A key and its line; no key where the file as a whole is wrong."""

CANARY = "c4n4ryc4n4ry"
"""Stands wherever a secret may have been written by mistake, and must not be repeated."""


@dataclass(frozen=True)
class HostileConfig:
    """What lies at the config's path, and all that is wrong with it."""

    name: str
    content: str | bytes | Callable[[Path], object]
    places: tuple[Place, ...]

    def write(self, path: Path) -> None:
        """Put it there."""
        if isinstance(self.content, str):
            path.write_bytes(self.content.encode())
        elif isinstance(self.content, bytes):
            path.write_bytes(self.content)
        else:
            self.content(path)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        # An address has 108 bytes at the most, a path may have more.
        back = Path.cwd()
        os.chdir(path.parent)
        try:
            listener.bind(path.name)
        finally:
            os.chdir(back)


def _unreadable(path: Path) -> None:
    path.touch(mode=0)


def _hole(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**10)


def _directory(path: Path) -> None:
    path.mkdir()


def _nothing(path: Path) -> None:
    """The file is missing."""


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _link_to_itself(path: Path) -> None:
    path.symlink_to(path.name)


def _many(count: int, line: str) -> str:
    return "".join(line.format(number) for number in range(count))


FILES: Sequence[HostileConfig] = (
    HostileConfig("no file", _nothing, (("", None),)),
    HostileConfig("directory", _directory, (("", None),)),
    HostileConfig("FIFO", _fifo, (("", None),)),
    HostileConfig("socket", _socket, (("", None),)),
    HostileConfig("endless device", _link("/dev/zero"), (("", None),)),
    HostileConfig("empty device", _link("/dev/null"), (("", None),)),
    HostileConfig("terminal", _link("/dev/tty"), (("", None),)),
    HostileConfig("kernel file", _link("/proc/self/mem"), (("", None),)),
    HostileConfig("link to nothing", _link("nowhere"), (("", None),)),
    HostileConfig("link to itself", _link_to_itself, (("", None),)),
    HostileConfig("link under a file", _link("/etc/passwd/x"), (("", None),)),
    HostileConfig("10 MB of comments", b"#" * 79 + b"\n" + b"#" * 10_000_000, (("", None),)),
    HostileConfig("10 GB with a hole", _hole, (("", None),)),
    HostileConfig("UTF-16", "[video]\n".encode("utf-16"), (("", 1),)),
    HostileConfig("Latin-1", b"[runner]\n# caf\xe9\n", (("", 2),)),
    HostileConfig("truncated UTF-8", b"[runner]\nid = 'a'\n# \xf0\x9f", (("", 3),)),
    HostileConfig("encoded surrogate", b"[runner]\nid = '\xed\xa0\x80'\n", (("", 2),)),
    HostileConfig("overlong NUL", b"[runner]\n\nid = 'a\xc0\x80'\n", (("", 3),)),
    HostileConfig("a picture", b"\xff\xd8\xff\xe0\x00\x10JFIF\x00", (("", 1),)),
    HostileConfig("an ELF header", b"\x7fELF\x02\x01\x01\x00\n", (("", 1),)),
)
"""What the system or the encoding already stops. `("", line)`: no key."""

SYNTAX: Sequence[HostileConfig] = (
    HostileConfig("byte order mark", b"\xef\xbb\xbf[video]\nstride = 1\n", (("", 1),)),
    HostileConfig("NUL bytes", b"[video]\n\0\0\0\0\n", (("", 2),)),
    HostileConfig("NUL in a string", b"[video]\npath = 'a\0b'\n", (("", 2),)),
    HostileConfig("bare carriage return", "[video]\nstride = 1\r\rmax_width = 1\n", (("", 2),)),
    HostileConfig("old Mac newlines", "[video]\rstride = 1\r", (("", 1),)),
    HostileConfig("JSON", '{"video": {"stride": 1}}', (("", 1),)),
    HostileConfig("YAML", "video:\n  stride: 1\n", (("", 1),)),
    HostileConfig("INI", "[video]\nstride: 1\n", (("", 2),)),
    HostileConfig("unclosed table", "[video\nstride = 1\n", (("", 1),)),
    HostileConfig("unclosed string", "[video]\npath = 'a\n", (("", 2),)),
    HostileConfig("unclosed string of many lines", "[video]\npath = '''a\nb\n", (("", 2),)),
    HostileConfig("unclosed array", "[video]\nstride = [1,\n\n", (("", 2),)),
    HostileConfig("no value", "[video]\nstride =\n", (("", 2),)),
    HostileConfig("no key", "[video]\n= 1\n", (("", 2),)),
    HostileConfig("no quotes", "[log]\nlevel = info\n", (("", 2),)),
    HostileConfig("typographic quotes", "[log]\nlevel = “info”\n", (("", 2),)),
    HostileConfig("no-break space", "[log]\nlevel\N{NO-BREAK SPACE}= 'info'\n", (("", 2),)),
    HostileConfig("full-width equals sign", "[log]\nlevel = 'info'\nformat \uff1d 'json'\n", (("", 3),)),
    HostileConfig("line separator for a newline", "[log]\u2028level = 'info'\n", (("", 1),)),
    HostileConfig("unknown escape", '[video]\npath = "C:\\videos"\n', (("", 2),)),
    HostileConfig("escaped surrogate", '[video]\npath = "\\ud800"\n', (("", 2),)),
    HostileConfig("leading zero", "[video]\nstride = 01\n", (("", 2),)),
    HostileConfig("thirteenth month", "[video]\nstride = 2025-13-01\n", (("", 2),)),
    HostileConfig("5000 digits", "\n\n[scenario]\nid = " + "9" * 5000 + "\n", (("", 4),)),
    HostileConfig("deep array", "[video]\nstride = " + "[" * 30_000, (("", 2),)),
    HostileConfig("deep inline table", "[video]\nstride = " + "{a = " * 9_000, (("", 2),)),
    HostileConfig("deep key", "[video]\n" + ".".join("a" * 30_000) + " = 1\n", (("", 2),)),
    HostileConfig("deep table", "[" + ".".join("a" * 30_000) + "]\n", (("", 1),)),
    HostileConfig("key twice", "[video]\nstride = 1\n\nstride = 2\n", (("video.stride", 4),)),
    HostileConfig("key twice, quoted", '[video]\nstride = 1\n"stride" = 2\n', (("video.stride", 3),)),
    HostileConfig("table twice", "[video]\n[log]\n[video]\n", (("video", 3),)),
    HostileConfig("table over a key", "video = 1\n[video]\n", (("video", 2),)),
    HostileConfig("table over a dotted key", "video.stride = 1\n[video]\n", (("video", 2),)),
    HostileConfig("key under a key", "[video]\nstride = 1\nstride.x = 1\n", (("video.stride", 3),)),
    HostileConfig("key twice in an inline table", "video = {stride = 1, stride = 2}\n", (("", 1),)),
    HostileConfig("secret twice", f"[kafka]\npassword = '{CANARY}'\npassword = '{CANARY}'\n", (("kafka.password", 3),)),
    HostileConfig("secret without an end", f"[kafka]\npassword = '{CANARY}\n", (("", 2),)),
)
"""No TOML; one mistake hides the rest."""

VALUES: Sequence[HostileConfig] = (
    HostileConfig("text for a number", "[video]\nstride = '1'\n", (("video.stride", 2),)),
    HostileConfig("number for text", "[video]\npath = 1\n", (("video.path", 2),)),
    HostileConfig("truth for a number", "[scenario]\nid = true\n", (("scenario.id", 2),)),
    HostileConfig("number for truth", "[database]\ncreate_schema = 1\n", (("database.create_schema", 2),)),
    HostileConfig("fraction", "[scenario]\nid = 1.0\n", (("scenario.id", 2),)),
    HostileConfig("date", "[scenario]\nid = 1979-05-27T07:32:00Z\n", (("scenario.id", 2),)),
    HostileConfig("time", "[log]\nlevel = 07:32:00\n", (("log.level", 2),)),
    HostileConfig("array", "[log]\nlevel = [\n 'info',\n]\nformat = []\n", (("log.level", 2), ("log.format", 5))),
    HostileConfig("array of tables", "[[video]]\nstride = 1\n[[video]]\n", (("video", 1),)),
    HostileConfig("table for a value", "[video.stride]\nx = 1\n", (("video.stride", 1),)),
    HostileConfig("value for a table", "\nvideo = 'test.mp4'\n", (("video", 2),)),
    HostileConfig("NaN", "[video]\nlimit_fps = nan\nmax_fps = -nan\n", (("video.limit_fps", 2), ("video.max_fps", 3))),
    HostileConfig("infinity", "[runner]\ndrain_seconds = inf\n", (("runner.drain_seconds", 2),)),
    HostileConfig("1e400", "[runner]\ndrain_seconds = 1e400\n", (("runner.drain_seconds", 2),)),
    HostileConfig("minus nothing", "[runner]\ndrain_seconds = -0.0\n", (("runner.drain_seconds", 2),)),
    HostileConfig("denormal less than nothing", "[video]\nmax_fps = -5e-324\n", (("video.max_fps", 2),)),
    HostileConfig("2**63", "[scenario]\nid = 9223372036854775808\n", (("scenario.id", 2),)),
    HostileConfig("4000 digits", "[video]\nlimit_fps = " + "9" * 4000 + "\n", (("video.limit_fps", 2),)),
    HostileConfig("50000 hexadecimal digits", "[scenario]\nid = 0x" + "f" * 50_000 + "\n", (("scenario.id", 2),)),
    HostileConfig("minus one", "[scenario]\nepoch = -1\n", (("scenario.epoch", 2),)),
    HostileConfig("60 kB of text", "[runner]\nid = '" + "x" * 60_000 + "'\n", (("runner.id", 2),)),
    HostileConfig("a path of 5000 letters", "[video]\npath = '" + "x/" * 2500 + "'\n", (("video.path", 2),)),
    HostileConfig("newline in a name", '[runner]\nid = "runner_1\\n"\n', (("runner.id", 2),)),
    HostileConfig("escape sequence", '[runner]\nid = "\\u001b[2J\\u001b]0;x\\u0007"\n', (("runner.id", 2),)),
    HostileConfig("right-to-left override", "[runner]\nid = '\u202e1_rennur'\n", (("runner.id", 2),)),
    HostileConfig("Cyrillic letter", "[log]\nlevel = 'inf\u043e'\n", (("log.level", 2),)),
    HostileConfig("full-width digits", "[kafka]\nbrokers = 'h:\uff19\uff10\uff19\uff12'\n", (("kafka.brokers", 2),)),
    HostileConfig("zero-width space", "[inference]\nurl = 'http://h\u200b:1'\n", (("inference.url", 2),)),
    HostileConfig(
        "header smuggled into a path",
        '[inference.predict]\npath = "/x\\r\\nHost: y"\n',
        (("inference.predict.path", 2),),
    ),
    HostileConfig("NUL in a path", '[video]\npath = "a\\u0000.mp4"\n', (("video.path", 2),)),
    HostileConfig("NUL in a user name", '[kafka]\nusername = "a\\u0000b"\n', (("kafka.username", 2),)),
    HostileConfig("other scheme", "[inference]\nurl = 'file:///etc/passwd'\n", (("inference.url", 2),)),
    HostileConfig("port 0", "[inference]\nurl = 'http://h:0'\n", (("inference.url", 2),)),
    HostileConfig("after a comment that looks like it", "# [log]\n#level = 1\n[log]\nlevel = 1\n", (("log.level", 4),)),
    HostileConfig(
        "after a string that looks like it",
        '[video]\npath = """\n[log]\nlevel = 1\n"""\n[log]\nlevel = 2\n',
        (("log.level", 7),),
    ),
    HostileConfig("Windows newlines", "[log]\r\nformat = 'json'\r\nlevel = 1\r\n", (("log.level", 3),)),
    HostileConfig("dotted keys", "log.format = 'json'\nlog.level = 1\n", (("log.level", 2),)),
    HostileConfig("inline table", "scenario = {epoch = 1, id = 0}\n", (("scenario.id", 1),)),
    HostileConfig("quoted keys", "['log']\n\"level\" = 1\n", (("log.level", 2),)),
    HostileConfig("escaped keys", '["l\\u006fg"]\n"l\\u0065vel" = 1\n', (("log.level", 2),)),
)
"""TOML, but a value of the wrong kind."""

KEYS: Sequence[HostileConfig] = (
    HostileConfig("misspelt key", "[video]\nstrid = 1\n", (("video.strid", 2),)),
    HostileConfig("misspelt section", "[vidoe]\nstride = 1\n", (("vidoe", 1),)),
    HostileConfig("key in another section", "[runner]\nstride = 1\n", (("runner.stride", 2),)),
    HostileConfig("key before all sections", "stride = 1\n[video]\n", (("stride", 1),)),
    HostileConfig("section in a section", "[runner.video]\nstride = 1\n", (("runner.video", 1),)),
    HostileConfig("no key at all", "'' = 1\n[log]\n'' = 1\n", (('""', 1), ('log.""', 3))),
    HostileConfig("a key with dots", "'log.level' = 'info'\n", (('"log.level"', 1),)),
    HostileConfig("a key of 60 kB", "'" + "x" * 60_000 + "' = 1\n", (('"' + "x" * 60 + '"…', 1),)),
    HostileConfig("a key that breaks lines", '"a\\nb: ok" = 1\n', (('"a\\nb: ok"', 1),)),
    HostileConfig("a key in Cyrillic", "[video]\n'str\u0456de' = 1\n", (('video."str\\u0456de"', 2),)),
    HostileConfig("a key for JSON paths", "['a`$.b']\n", (('"a`$.b"', 1),)),
    HostileConfig("a key of 500 parts", ".".join("a" * 500) + " = 1\n", (("a", 1),)),
    HostileConfig("private attribute", "[video]\n__class__ = 'x'\n", (("video.__class__", 2),)),
    HostileConfig(
        "6000 keys", "[video]\n" + _many(6000, "k{} = 1\n"), tuple((f"video.k{i}", i + 2) for i in range(6000))
    ),
    HostileConfig("6000 sections", _many(6000, "[s{}]\n"), tuple((f"s{i}", i + 1) for i in range(6000))),
    HostileConfig("password as a key", f"[database]\npassword = '{CANARY}'\n", (("database.password", 2),)),
    HostileConfig("token as a key", f"[inference]\ntoken = '{CANARY}'\n", (("inference.token", 2),)),
    HostileConfig("password as a section", f"[password]\nvalue = '{CANARY}'\n", (("password", 1),)),
)
"""TOML, but keys that do not exist."""

_POSTGRESQL = "[database]\nurl = 'postgresql://u@h/d'\n"
_SASL = "[kafka]\nbrokers = 'h:1'\nusername = 'u'\npassword_file = 'p'\n"

RULES: Sequence[HostileConfig] = (
    HostileConfig("password in a URL", f"[database]\nurl = 'postgresql://u:{CANARY}@h/d'\n", (("database.url", 2),)),
    HostileConfig(
        "password in a query", f"[database]\nurl = 'postgresql://h/d?password={CANARY}'\n", (("database.url", 2),)
    ),
    HostileConfig(
        "sslmode in a query", "[database]\nurl = 'postgresql://h/d?sslmode=disable'\n", (("database.url", 2),)
    ),
    HostileConfig(
        "service in a query", f"[database]\nurl = 'postgresql://h/d?service={CANARY}'\n", (("database.url", 2),)
    ),
    HostileConfig("user in a URL", f"[inference]\nurl = 'http://{CANARY}@h'\n", (("inference.url", 2),)),
    HostileConfig("key in a query", f"[inference]\nurl = 'http://h?key={CANARY}'\n", (("inference.url", 2),)),
    HostileConfig("user among the brokers", f"[kafka]\nbrokers = 'u:{CANARY}@h:1'\n", (("kafka.brokers", 2),)),
    HostileConfig(
        "password in the open", _POSTGRESQL + "password_file = 'p'\nsslmode = 'disable'\n", (("database.sslmode", 4),)
    ),
    HostileConfig(
        "password to whoever answers",
        _POSTGRESQL + "password_file = 'p'\nsslmode = 'require'\n",
        (("database.sslmode", 4),),
    ),
    HostileConfig("token in the open", "[inference]\nurl = 'http://h'\ntoken_file = 't'\n", (("inference.url", 2),)),
    HostileConfig(
        "SASL in the open",
        _SASL + "security_protocol = 'SASL_PLAINTEXT'\n",
        (("kafka.security_protocol", 5),),
    ),
    HostileConfig("SASL without SASL", _SASL, (("kafka.username", 3), ("kafka.password_file", 4))),
    HostileConfig(
        "SASL without credentials",
        "[kafka]\nbrokers = 'h:1'\nsecurity_protocol = 'SASL_SSL'\n",
        (("kafka.username", 3), ("kafka.password_file", 3)),
    ),
    HostileConfig("TLS files without TLS", "[kafka]\nbrokers = 'h:1'\nca_file = 'c'\n", (("kafka.ca_file", 3),)),
    HostileConfig("key without certificate", _POSTGRESQL + "key_file = 'k'\n", (("database.key_file", 3),)),
    HostileConfig(
        "no credentials directory",
        _POSTGRESQL + "password_file = '$CREDENTIALS_DIRECTORY/p'\n",
        (("database.password_file", 3),),
    ),
    HostileConfig("two ways of sampling", "[video]\nstride = 2\nmax_fps = 1\n", (("video.max_fps", 3),)),
    HostileConfig("keys by number", "[video]\nkey_frames_only = true\nstride = 2\n", (("video.key_frames_only", 2),)),
    HostileConfig(
        "units without a config", "[orchestrator]\nspawner = 'systemd'\n", (("orchestrator.runner_config", 2),)
    ),
    HostileConfig("batch larger than the buffer", "[database]\nbatch_frames = 65\n", (("database.batch_frames", 2),)),
    HostileConfig(
        "everything at once",
        "[vidoe]\n[log]\nlevel = 1\nlevl = 'info'\n[kafka]\nusername = 'u'\nstride = 2\n[database]\nca_file = 'c'\n",
        (
            ("vidoe", 1),
            ("log.level", 3),
            ("log.levl", 4),
            ("kafka.username", 6),
            ("kafka.stride", 7),
            ("database.ca_file", 9),
        ),
    ),
)
"""TOML of known keys, which do not go together."""

HOSTILE_CONFIGS: Sequence[HostileConfig] = (*FILES, *SYNTAX, *VALUES, *KEYS, *RULES)

UNREADABLE = HostileConfig("no permission", _unreadable, (("", None),))
"""Apart, for root may read everything."""


def main(directory: Path) -> None:
    """Write each config under its name."""
    directory.mkdir(exist_ok=True)
    for number, config in enumerate((*HOSTILE_CONFIGS, UNREADABLE)):
        config.write(directory / f"{number:03} {config.name}.toml")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

"""Files with secrets and certificates: what is in them, and everything else that may lie at their path."""

from __future__ import annotations

import logging
import os
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import msgspec
import pytest
import trio

from tests.support.certificates import Authority, Certificate
from trio_runner.config import credentials
from trio_runner.config.credentials import read_secret, secrets_of, tls_context
from trio_runner.config.load import Config
from trio_runner.config.sections import KafkaSection
from trio_runner.errors import ErrorCode, RunnerError

CANARY = "c4n4ryc4n4ry"


async def refusal(opened: Awaitable[object]) -> str:
    with pytest.raises(RunnerError) as caught:
        await opened
    assert caught.value.code is ErrorCode.CREDENTIAL_UNREADABLE
    # Nothing of a file is repeated, also not by the exceptions behind this one.
    assert CANARY not in repr((caught.value, caught.value.__cause__))
    assert caught.value.__suppress_context__
    return caught.value.message


# secrets


@pytest.mark.parametrize(
    ("content", "secret"),
    [
        (b"hunter2", "hunter2"),
        (b"hunter2\n", "hunter2"),
        (b"hunter2\r\n", "hunter2"),
        (b" two words \n", " two words "),
        ("\N{BYTE ORDER MARK}größe€\n".encode(), "größe€"),
        (b"x" * 4096, "x" * 4096),
    ],
)
async def test_a_secret_is_the_text_of_its_file(tmp_path: Path, content: bytes, secret: str) -> None:
    (tmp_path / "secret").write_bytes(content)
    assert await read_secret(str(tmp_path / "secret"), "kafka.password_file") == secret


def _hole(path: Path) -> None:
    path.touch()
    os.truncate(path, 10**10)


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


ODD_FILES: dict[str, tuple[Callable[[Path], object], str]] = {
    "missing": (lambda _: None, "No such file"),
    "directory": (Path.mkdir, "it is a directory"),
    "FIFO": (os.mkfifo, "it is not a regular file"),
    "endless device": (lambda path: path.symlink_to("/dev/zero"), "it is not a regular file"),
    "empty device": (lambda path: path.symlink_to("/dev/null"), "it is not a regular file"),
    "socket": (_socket, "No such device"),
    "link to itself": (lambda path: path.symlink_to(path.name), "Too many levels"),
    "huge": (_hole, "it is larger than"),
}
"""What to make at the path, and why it is refused."""

ODD_SECRETS: dict[str, tuple[Callable[[Path], object], str]] = ODD_FILES | {
    "empty": (Path.touch, "it is empty"),
    "an empty line": (lambda path: path.write_bytes(b"\r\n\n"), "it is empty"),
    "a byte too many": (lambda path: path.write_bytes(b"x" * 4097), "it is larger than 4096 bytes"),
    "no text": (lambda path: path.write_bytes(CANARY.encode() + b"\xff"), "it is not UTF-8 text"),
    "two lines": (lambda path: path.write_text(f"{CANARY}\n{CANARY}\n"), "more than one line"),
    "NUL": (lambda path: path.write_text(f"{CANARY}\0"), "control characters"),
    "terminal colours": (lambda path: path.write_text(f"\x1b[1m{CANARY}"), "control characters"),
}


@pytest.mark.parametrize(("make", "why"), ODD_SECRETS.values(), ids=ODD_SECRETS)
async def test_what_is_no_secret_is_refused_by_key_and_path(
    tmp_path: Path, make: Callable[[Path], object], why: str
) -> None:
    path = tmp_path / "secret"
    make(path)
    message = await refusal(read_secret(str(path), "kafka.password_file"))
    assert message.startswith(f"cannot use kafka.password_file {path}: ")
    assert why in message


async def test_a_secret_that_may_not_be_read(tmp_path: Path) -> None:
    if os.geteuid() == 0:
        pytest.skip("root may read everything")
    (tmp_path / "secret").touch(mode=0)
    assert "Permission denied" in await refusal(read_secret(str(tmp_path / "secret"), "kafka.password_file"))


async def test_storage_that_does_not_answer_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = threading.Event()
    monkeypatch.setattr(credentials, "_secret_in", lambda _: answers.wait(60))
    monkeypatch.setattr(credentials, "READ_SECONDS", 0.01)
    try:
        assert "it did not answer within" in await refusal(read_secret("/nfs/secret", "kafka.password_file"))
    finally:
        answers.set()


# what no message may show


def config_with(tmp_path: Path, **content: str) -> Config:
    for name, text in content.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o600)
    return Config().replace(
        database={"url": "postgresql://u@h/d", "password_file": str(tmp_path / "database")},
        kafka={
            "brokers": "h:1",
            "security_protocol": "SASL_SSL",
            "username": "u",
            "password_file": str(tmp_path / "kafka"),
        },
        inference={"url": "https://h", "token_file": str(tmp_path / "token")},
    )


async def test_every_secret_is_known_that_can_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_with(tmp_path, database="first\n", kafka="second\n", token="third\n")
    assert await secrets_of(config) == {"first", "second", "third"}
    (tmp_path / "kafka").unlink()
    assert await secrets_of(config) == {"first", "third"}
    assert await secrets_of(Config()) == frozenset()
    assert not caplog.records


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o604, 0o640, 0o620, 0o666])
async def test_files_that_others_can_read_are_named(
    tmp_path: Path, mode: int, caplog: pytest.LogCaptureFixture
) -> None:
    config = config_with(tmp_path, database="first", kafka="second", token="third", key="pem")
    config = config.replace(kafka={"certificate_file": "x", "key_file": str(tmp_path / "key")})
    for name in ("database", "key"):
        (tmp_path / name).chmod(mode)
    with caplog.at_level(logging.WARNING):
        await secrets_of(config)
    # A file of root's may be shared with a group, but not be written by it.
    open_to_others = mode not in ({0o600, 0o400, 0o640} if os.geteuid() == 0 else {0o600, 0o400})
    named = [f"database.password_file {tmp_path / 'database'}", f"kafka.key_file {tmp_path / 'key'}"]
    messages = [f"{what} can be read by others (mode {mode:04o}); chmod 600 it" for what in named]
    assert caplog.messages == (messages if open_to_others else [])


async def test_a_secret_too_short_to_be_masked_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        await secrets_of(config_with(tmp_path, database="xyz", kafka="wxyz", token="third"))
    assert caplog.messages == ["database.password_file holds fewer than 4 characters, which is too short to be masked"]


# certificates


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def mine(authority: Authority) -> Certificate:
    return authority.issue("runner.example")


def section(**files: Path | str) -> KafkaSection:
    return msgspec.convert({name: str(path) for name, path in files.items()}, KafkaSection)


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, host: str = "localhost") -> ssl.SSLObject:
    """The server's end of a handshake in memory; raises what either side raises."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_hostname=host)
    far = server.wrap_bio(up, down, server_side=True)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for end in {near, far} - done:
            try:
                end.do_handshake()
                done.add(end)
            except ssl.SSLWantReadError:
                continue
    return far


async def test_the_named_authority_is_trusted_and_no_other(authority: Authority, tmp_path: Path) -> None:
    server = authority.issue("localhost").server_context()
    shake_hands(await tls_context(section(ca_file=authority.ca_file), "kafka"), server)
    with pytest.raises(ssl.SSLCertVerificationError, match=r"not valid for 'other\.example'"):
        shake_hands(await tls_context(section(ca_file=authority.ca_file), "kafka"), server, host="other.example")
    for other in (section(ca_file=Authority(tmp_path / "other").ca_file), section()):
        with pytest.raises(ssl.SSLCertVerificationError):
            shake_hands(await tls_context(other, "kafka"), server)


async def test_without_a_file_the_system_s_authorities_are_trusted() -> None:
    expected = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    expected.load_default_certs()
    assert (await tls_context(section(), "kafka")).cert_store_stats() == expected.cert_store_stats()


async def test_a_certificate_of_ones_own_is_shown(authority: Authority, mine: Certificate) -> None:
    server = authority.issue("localhost").server_context(client_ca=authority.ca_file)
    for files in (
        section(ca_file=authority.ca_file, certificate_file=mine.chain_file, key_file=mine.key_file),
        section(ca_file=authority.ca_file, certificate_file=mine.both_file),
    ):
        shown = shake_hands(await tls_context(files, "kafka"), server).getpeercert()
        assert shown
        assert ("DNS", "runner.example") in shown["subjectAltName"]


async def test_session_keys_are_written_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert (await tls_context(section(), "kafka")).keylog_filename is None


NO_CERTIFICATE = "it holds no usable certificate in PEM form"
NO_KEY = "it holds no private key in PEM form"


@pytest.mark.parametrize(("make", "why"), ODD_FILES.values(), ids=ODD_FILES)
@pytest.mark.parametrize("name", ["ca_file", "certificate_file", "key_file"])
async def test_what_is_no_file_is_refused_by_key_and_path(
    tmp_path: Path, mine: Certificate, name: str, make: Callable[[Path], object], why: str
) -> None:
    odd = tmp_path / "odd.pem"
    make(odd)
    files = {"certificate_file": mine.chain_file, "key_file": mine.key_file} | {name: odd}
    message = await refusal(tls_context(section(**files), "kafka"))
    assert message.startswith(f"cannot use kafka.{name} {odd}: ")
    assert why in message


@pytest.mark.parametrize("content", [b"", b"junk\n", b"\xff\xfe\x00", f"{CANARY}\n".encode()], ids=repr)
@pytest.mark.parametrize(
    ("name", "why"), [("ca_file", NO_CERTIFICATE), ("certificate_file", NO_CERTIFICATE), ("key_file", NO_KEY)]
)
async def test_what_is_no_pem_is_refused(
    tmp_path: Path, mine: Certificate, name: str, why: str, content: bytes
) -> None:
    odd = tmp_path / "odd.pem"
    odd.write_bytes(content)
    files = {"certificate_file": mine.chain_file, "key_file": mine.key_file} | {name: odd}
    assert await refusal(tls_context(section(**files), "kafka")) == f"cannot use kafka.{name} {odd}: {why}"


async def test_files_in_each_other_s_place_are_refused(mine: Certificate) -> None:
    chain, key = mine.chain_file, mine.key_file
    for files, problem in (
        ({"ca_file": key}, f"kafka.ca_file {key}: {NO_CERTIFICATE}"),
        ({"certificate_file": key, "key_file": chain}, f"kafka.certificate_file {key}: {NO_CERTIFICATE}"),
        ({"certificate_file": chain, "key_file": chain}, f"kafka.key_file {chain}: {NO_KEY}"),
        ({"certificate_file": chain}, f"kafka.certificate_file {chain}: {NO_KEY}, and no key_file is set"),
    ):
        assert await refusal(tls_context(section(**files), "kafka")) == f"cannot use {problem}"


async def test_a_key_of_another_certificate_is_refused(authority: Authority, mine: Certificate) -> None:
    other = authority.issue("other.example")
    message = await refusal(tls_context(section(certificate_file=mine.chain_file, key_file=other.key_file), "kafka"))
    assert message == f"cannot use kafka.key_file {other.key_file}: its key does not belong to {mine.chain_file}"


async def test_damaged_pem_is_refused(tmp_path: Path, mine: Certificate) -> None:
    for name, good in (
        ("ca_file", mine.chain_file),
        ("certificate_file", mine.chain_file),
        ("key_file", mine.key_file),
    ):
        odd = tmp_path / f"{name}.pem"
        begin, *rest = good.read_text().splitlines(keepends=True)
        odd.write_text(begin + "".join(line if line.startswith("-") else line[:8] + "\n" for line in rest))
        files = {"certificate_file": mine.chain_file, "key_file": mine.key_file} | {name: odd}
        message = await refusal(tls_context(section(**files), "kafka"))
        assert str(odd) in message


@pytest.mark.parametrize("form", ["pkcs8", "traditional"])
async def test_an_encrypted_key_is_refused_without_a_question(tmp_path: Path, mine: Certificate, form: str) -> None:
    encrypted = tmp_path / "encrypted.pem"
    verb = ["pkey"] if form == "pkcs8" else ["ec"]
    await trio.run_process(
        ["openssl", *verb, "-in", mine.key_file, "-aes256", "-passout", f"pass:{CANARY}", "-out", encrypted],
        capture_stdout=True,
        capture_stderr=True,
    )
    message = await refusal(tls_context(section(certificate_file=mine.chain_file, key_file=encrypted), "kafka"))
    assert message.startswith(f"cannot use kafka.key_file {encrypted}: its key is encrypted")

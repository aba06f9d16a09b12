"""TLS and tokens of the HTTP client, on real listeners: peers that are accepted, and the codes of all others."""

from __future__ import annotations

import logging
import socket
import ssl
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
import trio

from tests.inference.test_client import Script, answers, failure, http, read_request, serving
from tests.inference.test_hostile_answers import painted
from tests.support.certificates import Authority
from tests.support.fake_inference import open_fake
from tests.support.harness import PATIENCE_SECONDS
from tests.support.makers import make_frame
from trio_runner.config.inference import InferenceSection
from trio_runner.errors import ErrorCode, RunnerError
from trio_runner.inference import client
from trio_runner.inference.client import InferenceClient, open_client

Action = Callable[[InferenceClient], Awaitable[object]]
BOTH = pytest.mark.parametrize(
    "action", [lambda client: client.infer([painted(7)]), lambda client: client.check()], ids=["infer", "check"]
)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"))


async def refusal(action: Action, section: InferenceSection) -> RunnerError:
    with trio.fail_after(PATIENCE_SECONDS), pytest.raises(RunnerError) as caught:
        async with open_client(section) as client:
            await action(client)
    return caught.value


# certificates


@BOTH
async def test_a_service_with_a_right_certificate_is_accepted(authority: Authority, action: Action) -> None:
    async with open_fake(tls=authority.issue("127.0.0.1").server_context()) as fake:
        async with open_client(InferenceSection(url=fake.url, ca_file=str(authority.ca_file))) as client:
            await action(client)
        assert fake.url.startswith("https:")


@BOTH
@pytest.mark.parametrize(
    ("names", "expired", "trusted", "part"),
    [
        (("127.0.0.1",), False, "stranger", "inference.ca_file"),
        (("127.0.0.1",), False, "system", "inference.ca_file"),
        (("localhost",), False, "authority", "not valid for '127.0.0.1'"),
        (("127.0.0.1",), True, "authority", "expired"),
    ],
    ids=["unknown authority", "unknown to the system", "wrong name", "expired"],
)
async def test_a_service_with_a_wrong_certificate_is_refused(
    authority: Authority,
    stranger: Authority,
    action: Action,
    names: tuple[str, ...],
    trusted: str,
    part: str,
    *,
    expired: bool,
) -> None:
    ca_file = {"authority": str(authority.ca_file), "stranger": str(stranger.ca_file), "system": ""}[trusted]
    async with open_fake(tls=authority.issue(*names, expired=expired).server_context()) as fake:
        error = await refusal(action, InferenceSection(url=fake.url, ca_file=ca_file))
        assert fake.numbers == []
    assert error.code is ErrorCode.INFERENCE_TLS
    assert fake.url in error.message
    assert part in error.message


async def test_a_variable_adds_no_authority_to_ours(
    authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.ca_file))
    async with open_fake(tls=authority.issue("127.0.0.1").server_context()) as fake:
        section = InferenceSection(url=fake.url, ca_file=str(stranger.ca_file))
        assert (await refusal(InferenceClient.check, section)).code is ErrorCode.INFERENCE_TLS


@BOTH
async def test_a_certificate_of_ones_own_is_shown_where_it_is_wanted(authority: Authority, action: Action) -> None:
    tls = authority.issue("127.0.0.1").server_context(client_ca=authority.ca_file)
    mine = authority.issue("runner")
    async with open_fake(tls=tls) as fake:
        for files in (
            {"certificate_file": str(mine.chain_file), "key_file": str(mine.key_file)},
            {"certificate_file": str(mine.both_file)},
        ):
            section = msgspec.convert(files | {"url": fake.url, "ca_file": str(authority.ca_file)}, InferenceSection)
            async with open_client(section) as client:
                await action(client)


@contextmanager
def openssl(context: ssl.SSLContext) -> Iterator[str]:
    """A service that sends why it refuses a certificate, as servers in C do; Trio's close without an alert."""

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    context.wrap_socket(connection, server_side=True).close()
                except OSError:
                    continue

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"https://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("shown", ["none", "foreign"])
@pytest.mark.parametrize("says_why", [True, False])
async def test_the_preflight_finds_out_that_our_certificate_is_refused(
    authority: Authority, stranger: Authority, monkeypatch: pytest.MonkeyPatch, shown: str, *, says_why: bool
) -> None:
    monkeypatch.setattr(client, "VERDICT_SECONDS", PATIENCE_SECONDS)
    tls = authority.issue("127.0.0.1").server_context(client_ca=authority.ca_file)
    mine = str(stranger.issue("runner").both_file) if shown == "foreign" else ""

    def section(url: str) -> InferenceSection:
        return InferenceSection(url=url, ca_file=str(authority.ca_file), certificate_file=mine)

    if says_why:
        with openssl(tls) as url:
            error = await refusal(InferenceClient.check, section(url))
    else:
        async with open_fake(tls=tls) as fake:
            error = await refusal(InferenceClient.check, section(fake.url))
    assert error.code is ErrorCode.INFERENCE_TLS
    assert "inference.certificate_file" in error.message


@BOTH
@pytest.mark.parametrize("shown", ["none", "foreign"])
async def test_with_tls_1_2_the_handshake_itself_finds_out(
    authority: Authority, stranger: Authority, action: Action, shown: str
) -> None:
    tls = authority.issue("127.0.0.1").server_context(client_ca=authority.ca_file)
    tls.maximum_version = ssl.TLSVersion.TLSv1_2
    mine = str(stranger.issue("runner").both_file) if shown == "foreign" else ""
    with openssl(tls) as url:
        section = InferenceSection(url=url, ca_file=str(authority.ca_file), certificate_file=mine)
        error = await refusal(action, section)
    assert error.code is ErrorCode.INFERENCE_TLS
    assert "inference.certificate_file" in error.message


@pytest.mark.parametrize("key", ["ca_file", "certificate_file"])
@pytest.mark.parametrize("content", [None, "", "no certificate"])
async def test_a_certificate_that_cannot_be_read_is_named_before_anything_is_asked(
    tmp_path: Path, key: str, content: str | None
) -> None:
    path = tmp_path / "a.pem"
    if content is not None:
        path.write_text(content)
    error = await refusal(
        InferenceClient.check, msgspec.convert({"url": "https://127.0.0.1:9", key: str(path)}, InferenceSection)
    )
    assert error.code is ErrorCode.CREDENTIAL_UNREADABLE
    assert f"inference.{key}" in error.message
    assert str(path) in error.message


# peers that are up to something


async def say_http(stream: trio.SocketStream) -> None:
    await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")


async def say_nothing(_: trio.SocketStream) -> None:
    await trio.sleep_forever()


async def hang_up(stream: trio.SocketStream) -> None:
    # Read first: closing with something unread would be a reset, which is another way to go.
    await stream.receive_some()


async def reset(stream: trio.SocketStream) -> None:
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
    await stream.receive_some(1)


@BOTH
@pytest.mark.parametrize(
    ("script", "code", "part"),
    [
        (say_http, ErrorCode.INFERENCE_TLS, "speaks TLS"),
        (say_nothing, ErrorCode.INFERENCE_UNREACHABLE, "in time"),
        (hang_up, ErrorCode.INFERENCE_UNREACHABLE, ""),
        (reset, ErrorCode.INFERENCE_UNREACHABLE, ""),
    ],
)
async def test_a_peer_that_completes_no_handshake_is_named_in_time(
    action: Action, script: Script, code: ErrorCode, part: str
) -> None:
    async with serving(script) as server:
        url = server.url.replace("http:", "https:")
        # The whole exchange has longer: it is connect_timeout_seconds that ends the handshake.
        patience: dict[str, Any] = {"timeout_seconds": PATIENCE_SECONDS, "connect_timeout_seconds": 0.3}
        if code is ErrorCode.INFERENCE_TLS:
            patience["connect_timeout_seconds"] = PATIENCE_SECONDS
        error = await refusal(action, InferenceSection(url=url, **patience))
    assert error.code is code
    assert url in error.message
    assert part in error.message


# the token


async def test_the_token_goes_with_every_frame_and_into_no_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    (tmp_path / "token").write_text("c4n4ry.token-~+/=\n")
    heads: list[bytes] = []

    async def script(stream: trio.SocketStream) -> None:
        while request := await read_request(stream):
            heads.append(request.partition(b"\r\n\r\n")[0])
            await stream.send_all(http())

    async with serving(script) as server:
        section = InferenceSection(url=server.url, token_file=str(tmp_path / "token"))
        async with open_client(section) as client:
            for number in range(3):
                await client.infer([make_frame(number)])
    assert [head.count(b"\r\nAuthorization: Bearer c4n4ry.token-~+/=") for head in heads] == [1, 1, 1]
    assert "c4n4ry" not in caplog.text


@pytest.mark.parametrize("status", ["401 Unauthorized", "403 Forbidden"])
async def test_an_error_of_authorisation_names_the_token_file(tmp_path: Path, status: str) -> None:
    (tmp_path / "token").write_text("c4n4ry")
    error = await failure(answers(http(b"", status)), token_file=str(tmp_path / "token"))
    assert error.code is ErrorCode.INFERENCE_REJECTED
    assert "inference.token_file" in error.message
    assert "c4n4ry" not in repr((error, error.__cause__, error.__context__))


@pytest.mark.parametrize(
    "content",
    [b"", b"\n", b"c4n4ry c4n4ry", b"c4n4ry\nHost: x", b"c4n4ry\r\n\r\n\r\nX", b"c4n4ry\x00", "c4n4ryä".encode()],
)
async def test_a_token_that_fits_into_no_header_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "token").write_bytes(content)
    section = InferenceSection(url="http://127.0.0.1:9", token_file=str(tmp_path / "token"))
    error = await refusal(InferenceClient.check, section)
    assert error.code is ErrorCode.CREDENTIAL_UNREADABLE
    assert "inference.token_file" in error.message
    assert "c4n4ry" not in repr((error, error.__cause__, error.__context__))


async def test_a_token_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    section = InferenceSection(url="http://127.0.0.1:9", token_file=str(tmp_path / "token"))
    error = await refusal(InferenceClient.check, section)
    assert error.code is ErrorCode.CREDENTIAL_UNREADABLE
    assert str(tmp_path / "token") in error.message

"""Passwords, tokens and certificates, read from files within a deadline and kept nowhere."""

from __future__ import annotations

import errno
import logging
import re
import ssl
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Final, TypeVar

from trio_runner.base.files import read_small_file
from trio_runner.base.logs import conceal
from trio_runner.base.redact import MIN_SECRET_CHARACTERS
from trio_runner.base.threads import bounded
from trio_runner.config.location import is_url
from trio_runner.errors import ErrorCode, RunnerError

if TYPE_CHECKING:
    import os
    from collections.abc import Callable

    from trio_runner.config.kinds import PeerSection
    from trio_runner.config.load import Config

T = TypeVar("T")

READ_SECONDS: Final = 5.0
"""Reading all public authorities takes 0.03 s of CPU. On two cores with a load of 20 that has taken more than 2 s."""
MAX_SECRET_BYTES: Final = 4096
MAX_PEM_BYTES: Final = 4 * 2**20
"""Twenty times the bundle of all public authorities."""

logger = logging.getLogger(__name__)


async def read_secret(path: str, key: str) -> str:
    """The text of the file at `path`, without the line's end; `key` is the config key that names it.

    From then on no log line shows the secret.

    Raises:
        RunnerError: `credential_unreadable`.
    """
    secret, _ = await _read(_secret_in, path, key=key, path=path)
    conceal(frozenset({secret}))
    return secret


async def tls_context(section: PeerSection, name: str) -> ssl.SSLContext:
    """A client's TLS context that checks certificate and host name, with the section's authority and certificate.

    This does not look at expiry: the peer does, and the handshake then fails with that reason.

    Args:
        section: The section with `ca_file`, `certificate_file` and `key_file`.
        name: The section's name, for messages.

    Raises:
        RunnerError: `credential_unreadable`, naming the file.
    """
    # `create_default_context` would write session keys into the file that SSLKEYLOGFILE names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if section.ca_file:
        await _read(_load_authorities, context, section.ca_file, key=f"{name}.ca_file", path=section.ca_file)
    else:
        await _read(context.load_default_certs, key=f"{name}.ca_file", path="(not set: the system's authorities)")
    if section.certificate_file:
        certificate, path = f"{name}.certificate_file", section.certificate_file
        # This context only tries the certificate: `load_cert_chain` does not say whether certificate or key is damaged.
        await _read(_load_authorities, ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT), path, key=certificate, path=path)
        key, key_path = (f"{name}.key_file", section.key_file) if section.key_file else (certificate, path)
        await _read(_load_chain, context, path, section.key_file, key=key, path=key_path)
    return context


async def secrets_of(config: Config) -> frozenset[str]:
    """The secrets that no message may show, the query of a video's URL among them.

    A secret that cannot be read is left out: it cannot leak.
    Private keys are not among them: OpenSSL reads them from their paths, and no text ever holds one. Files that others
    can read, and secrets too short to be masked, are logged as warnings, because they may be right all the same.
    """
    found = {query} if is_url(config.video.path) and (query := config.video.path.partition("?")[2]) else set()
    for key, path in (
        ("inference.token_file", config.inference.token_file),
        *((f"inference.header_files.{name}", path) for name, path in config.inference.header_files.items()),
        *((f"inference.query_files.{name}", path) for name, path in config.inference.query_files.items()),
        *((f"inference.http.field_files.{name}", path) for name, path in config.inference.http.field_files.items()),
        ("database.password_file", config.database.password_file),
        ("kafka.password_file", config.kafka.password_file),
        ("storage.s3_secret_key_file", config.storage.s3_secret_key_file),
        ("storage.s3_session_token_file", config.storage.s3_session_token_file),
    ):
        with suppress(RunnerError):
            if path:
                secret, state = await _read(_secret_in, path, key=key, path=path)
                found.add(secret)
                _warn_if_open(key, path, state)
                if len(secret) < MIN_SECRET_CHARACTERS:
                    problem = "%s holds fewer than %d characters, which is too short to be masked"
                    logger.warning(problem, key, MIN_SECRET_CHARACTERS)
    peers = {name: getattr(config, name) for name in ("inference", "database", "kafka", "storage")}
    for name, section in peers.items():
        with suppress(RunnerError):
            if path := section.key_file:
                _, state = await _read(_pem_in, path, key=f"{name}.key_file", path=path)
                _warn_if_open(f"{name}.key_file", path, state)
    return frozenset(found)


def _warn_if_open(key: str, path: str, state: os.stat_result) -> None:
    # The rule of libpq for private keys. A file of root's may be readable by its group: systemd gives a service its
    # credentials by an ACL, which shows as the group's bits.
    if state.st_mode & (0o037 if state.st_uid == 0 else 0o077):
        logger.warning("%s %s can be read by others (mode %04o); chmod 600 it", key, path, state.st_mode & 0o7777)


async def _read(function: Callable[..., T], *args: object, key: str, path: str) -> T:
    """Call `function` in a thread with a deadline: the file may lie on storage that does not answer."""
    try:
        return await bounded(partial(function, *args), seconds=READ_SECONDS)
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or str(error)
        if isinstance(error, UnicodeDecodeError):
            why = "it is not UTF-8 text"
        # Not chained, because a decoding error holds the bytes that it could not decode.
        raise RunnerError(ErrorCode.CREDENTIAL_UNREADABLE, f"cannot use {key} {path}: {why}") from None


def _secret_in(path: str) -> tuple[str, os.stat_result]:
    data, state = read_small_file(path, max_bytes=MAX_SECRET_BYTES)
    secret = data.decode("utf-8-sig").rstrip("\r\n")
    if not secret:
        raise OSError(errno.EINVAL, "it is empty")
    if re.search(r"[\x00-\x1f\x7f]", secret):
        raise OSError(errno.EINVAL, "it holds more than one line, or control characters")
    return secret, state


def _pem_in(path: str) -> tuple[bytes, os.stat_result]:
    # OpenSSL itself would wait for ever where the path is a FIFO.
    return read_small_file(path, max_bytes=MAX_PEM_BYTES)


def _load_authorities(context: ssl.SSLContext, ca_file: str) -> None:
    _pem_in(ca_file)
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError:
        raise OSError(errno.EINVAL, "it holds no usable certificate in PEM form") from None


def _load_chain(context: ssl.SSLContext, certificate_file: str, key_file: str) -> None:
    pem, _ = _pem_in(key_file or certificate_file)
    if b"PRIVATE KEY-----" not in pem:
        or_else = "" if key_file else ", and no key_file is set"
        raise OSError(errno.EINVAL, f"it holds no private key in PEM form{or_else}")
    if b"ENCRYPTED" in pem:
        raise OSError(errno.EINVAL, "its key is encrypted, and nobody is asked for a passphrase; store it without one")
    try:
        # Without a password callback OpenSSL would ask for a password on the terminal.
        context.load_cert_chain(certificate_file, key_file or None, password=lambda: "")
    except ssl.SSLError as error:
        mismatch = error.reason == "KEY_VALUES_MISMATCH"
        why = f"its key does not belong to {certificate_file}" if mismatch else "OpenSSL finds no usable key in it"
        raise OSError(errno.EINVAL, why) from None

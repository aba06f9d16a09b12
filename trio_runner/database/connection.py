"""The connection to PostgreSQL, made from the config and nothing else; asyncpg's errors become errors with a code."""

from __future__ import annotations

import getpass
import ssl
from dataclasses import replace
from typing import TYPE_CHECKING, Final

import asyncpg
import trio

from trio_runner.base import aio
from trio_runner.config.address import parse_database_url
from trio_runner.config.credentials import read_secret, tls_context
from trio_runner.config.tls import tls_problem
from trio_runner.errors import ClaimRefusedError, ErrorCode, RunnerError, ScenarioCompletedError, SupersededError

if TYPE_CHECKING:
    from typing import Literal

    from trio_runner.config.address import DatabaseAddress
    from trio_runner.config.sections import DatabaseSection

LIBRARY_ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    aio.LibraryCancelledError,
    OSError,
)
"""What asyncpg raises; a connection that was cut raises any of these but the first."""

SCHEMA: Final = "trio_runner"
SCHEMA_LOCK: Final = 0x7472_696F
"""The advisory lock under which the schema and its grants are changed."""

GRANT: Final = "trio-runner init-db CONFIG --grant ROLE"

_INSUFFICIENT_PRIVILEGE: Final = "42501"


def address_of(url: str) -> DatabaseAddress:
    """Take a `postgresql://` address apart; a part that is missing is the default, and no PG* variable changes it.

    Raises:
        RunnerError: `store_unreachable`: the address cannot be used, or holds something that is not read, as `sslmode`.
    """
    address = parse_database_url(url)
    if address is None or address.has_password or address.unread:
        # The address is not repeated: it may hold a secret.
        raise _unusable('write "postgresql://user@host:port/database"; sslmode and its like are keys of [database]')
    try:
        user = address.user or getpass.getuser()
    except (KeyError, OSError) as error:
        raise _unusable('it names no user; write "postgresql://user@host:port/database"') from error
    return replace(address, user=user, database=address.database or user)


def _unusable(why: str) -> RunnerError:
    return RunnerError(ErrorCode.STORE_UNREACHABLE, f"database.url: {why}")


async def connect(config: DatabaseSection, *, application_name: str) -> asyncpg.Connection[asyncpg.Record]:
    """Connect within `connect_timeout_seconds`.

    Every argument is given, so that asyncpg looks for none in PG* variables, ~/.pgpass, ~/.postgresql or a service
    file. None of these can bring in another password, switch TLS off, or make it check less.

    Raises:
        RunnerError: `credential_unreadable`, `store_tls`, `store_auth` or `store_unreachable`, naming the cause.
    """
    address = address_of(config.url)
    password = await read_secret(config.password_file, "database.password_file") if config.password_file else ""
    tls = False if address.is_socket else await _tls(config)
    seconds = config.connect_timeout_seconds
    try:
        with trio.fail_after(seconds):
            return await aio.call(
                asyncpg.connect,
                host=list(address.hosts),
                port=address.port,
                user=address.user,
                password=password,
                database=address.database,
                ssl=tls,
                direct_tls=False,
                target_session_attrs="any",
                krbsrvname="postgres",
                gsslib="gssapi",
                timeout=seconds,
                command_timeout=config.command_timeout_seconds,
                server_settings={
                    "search_path": SCHEMA,
                    "lock_timeout": "5s",
                    "idle_in_transaction_session_timeout": "15s",
                    "tcp_keepalives_idle": "30",
                    "application_name": application_name[:63],
                    "statement_timeout": str(int(config.command_timeout_seconds * 1000)),
                },
            )
    except (trio.TooSlowError, TimeoutError) as error:
        code, why = ErrorCode.STORE_UNREACHABLE, f"did not answer within {seconds:g} s; see database.url"
        raise RunnerError(code, f"PostgreSQL at {address} {why}") from error
    except (*LIBRARY_ERRORS, ValueError) as error:
        code, why = _why_not(error, config)
        raise RunnerError(code, f"PostgreSQL at {address}: {why}") from error


async def _tls(config: DatabaseSection) -> ssl.SSLContext | Literal[False]:
    """TLS as `sslmode` asks for it, with the meaning of PostgreSQL's own clients; there is never a fallback."""
    if config.sslmode == "disable":
        return False
    context = await tls_context(config, "database")
    context.check_hostname = config.sslmode == "verify-full"
    if config.sslmode == "require":
        context.verify_mode = ssl.CERT_NONE
    return context


def _why_not(error: Exception, config: DatabaseSection) -> tuple[ErrorCode, str]:
    """The code for a connection that failed, and the cause with its remedy."""
    state = getattr(error, "sqlstate", None) or ""
    message = str(error) or type(error).__name__
    if problem := _tls_trouble(error, state, message, config):
        return ErrorCode.STORE_TLS, problem
    if state in {"28000", "28P01"}:
        remedy = "check the user in database.url, database.password_file, database.sslmode and the server's pg_hba.conf"
        return ErrorCode.STORE_AUTH, f"{message}; {remedy}"
    if state == _INSUFFICIENT_PRIVILEGE:
        return ErrorCode.STORE_AUTH, f"{message}; let its owner run: {GRANT}"
    return ErrorCode.STORE_UNREACHABLE, f"{message}; see database.url"


def _tls_trouble(error: Exception, state: str, message: str, config: DatabaseSection) -> str | None:
    # asyncpg raises this where the server answers "N" to the request for TLS.
    if isinstance(error, ConnectionError) and "rejected SSL upgrade" in message:
        remedy = 'switch TLS on there, or set database.sslmode to "disable" where the network can be trusted'
        return f"it speaks no TLS; {remedy}"
    if state == "28000" and "certificate" in message:
        return f"{message}; see database.certificate_file and database.key_file"
    # With TLS 1.3 a server checks our certificate after the handshake, and its alert may be lost on the way.
    lost = "it hung up after the TLS handshake: does it want another database.certificate_file?"
    return tls_problem(error, "database") or (lost if state == "08003" and config.certificate_file else None)


def named_error(error: Exception) -> RunnerError:
    """The error with a code for what asyncpg raised after connecting. No SQLSTATE means that the connection is lost."""
    state = getattr(error, "sqlstate", None) or ""
    message = str(error) or type(error).__name__
    if state == "RN002":
        return ScenarioCompletedError(ErrorCode.CLAIM_REFUSED, message)
    if state in {"RN001", "RN003", "RN004", "RN006"}:
        return ClaimRefusedError(ErrorCode.CLAIM_REFUSED, message)
    if state == "RN005":
        return SupersededError(message)
    if state in {"3F000", "42P01", "42883"}:
        remedy = "run: trio-runner init-db CONFIG; or upgrade this program where the database is of a newer version"
        code, message = ErrorCode.STORE_SCHEMA, f"{message}; {remedy}"
    elif state == _INSUFFICIENT_PRIVILEGE:
        remedy = f"a runner's rights come from: {GRANT}; for more, log in as the schema's owner"
        code, message = ErrorCode.STORE_AUTH, f"PostgreSQL: {message}; {remedy}"
    elif state in {"57014", "55P03"} or isinstance(error, TimeoutError):
        code, message = ErrorCode.STORE_TIMEOUT, f"PostgreSQL gave up: {message}"
    elif isinstance(error, asyncpg.DataError):
        code, message = ErrorCode.STORE_REJECTED, f"a value does not fit its column: {message}"
    elif not isinstance(error, asyncpg.PostgresError) or not state or state[:2] in {"08", "57"}:
        code, message = ErrorCode.STORE_LOST, f"the connection to PostgreSQL was lost: {message}"
    else:
        code, message = ErrorCode.STORE_REJECTED, f"PostgreSQL refused: {message} (SQLSTATE {state})"
    return RunnerError(code, message)

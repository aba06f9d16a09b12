"""For test modules whose database speaks TLS: the fixtures `server` and `stranger`, and the mark of such a module.

A module imports all three names, and pytest finds them there.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

from tests.support.certificates import Authority
from tests.support.database_server import DatabaseServer, database_with_tls

# asyncpg closes a TLS connection whose login was refused politely. Where the loop ends before the server has hung up,
# the transport is left to the garbage collector, which warns.
pytestmark = pytest.mark.filterwarnings(
    r"ignore:Exception ignored in. <(function _SelectorTransport.__del__|socket.socket fd=)"
    ":pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(name="server", scope="module")
def tls_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DatabaseServer]:
    """A PostgreSQL with TLS, for one module."""
    with database_with_tls(tmp_path_factory.mktemp("database")) as started:
        yield started
    # Such transports are collected under this module's mark, because the next module does not expect their warnings.
    gc.collect()


@pytest.fixture(name="stranger", scope="module")
def unknown_authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """An authority that nobody trusts."""
    return Authority(tmp_path_factory.mktemp("stranger"))

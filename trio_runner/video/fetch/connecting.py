"""Connects to an address that was checked, and to no other: a name is looked up once."""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from trio_runner.config.tls import tls_problem
from trio_runner.errors import ErrorCode, RunnerError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_runner.config.location import Location
    from trio_runner.config.sections import StorageSection

IPAddress: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address

_Place: TypeAlias = tuple[socket.AddressFamily, Any]
"""An address family, and an address as the socket module has it."""

_METADATA: Final = frozenset(map(ipaddress.ip_address, ("169.254.169.254", "fd00:ec2::254", "100.100.100.200")))
"""Addresses at which clouds give credentials to every client. The first one is link-local as well."""

_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_IPV4_COMPATIBLE: Final = ipaddress.ip_network("::/96")
_PROTOCOL_ASSIGNMENTS: Final = ipaddress.ip_network("192.0.0.0/24")
_THIS_NETWORK: Final = ipaddress.ip_network("0.0.0.0/8")


def connect(location: Location, listed: Location, storage: StorageSection, *, key: str) -> http.client.HTTPConnection:
    """A connection to the host of `location`, with TLS for https; its socket waits `stall_timeout_seconds` at most.

    Args:
        location: Where to connect to.
        listed: The prefix or the endpoint of the config that allows this location. A host that is written there as an
            address, or as localhost, may be one that is refused otherwise.
        storage: Time limits and TLS files.
        key: The key of `[storage]` that `listed` comes from, for messages.

    Raises:
        RunnerError: `video_refused` for a forbidden address; `storage_unreachable`, `storage_tls`.
    """
    plain = _connect_to_one(_addresses(location, listed, key), location, storage, key)
    try:
        if location.scheme == "https":
            plain = tls_context(storage).wrap_socket(plain, server_hostname=location.host)
        plain.settimeout(storage.stall_timeout_seconds)
    except (OSError, ValueError) as error:
        plain.close()
        problem = tls_problem(error, "storage", address=key)
        if problem:
            raise RunnerError(ErrorCode.STORAGE_TLS, f"{location}: {problem}") from error
        why = "no TLS handshake in time" if isinstance(error, TimeoutError) else "it hung up in the TLS handshake"
        raise RunnerError(ErrorCode.STORAGE_UNREACHABLE, f"{location}: {why}. {_remedy(key)}") from error
    connection = http.client.HTTPConnection(location.host, location.port)
    # http.client connects nowhere by itself once it has a socket.
    connection.sock = plain
    return connection


def why_forbidden(address: IPAddress, listed_host: str) -> str:
    """The kind of address that is not connected to, in words; "" for one that is allowed.

    `listed_host` is the host as the config names it: an address that stands there itself is allowed.
    """
    if listed_host == str(address) or (address.is_loopback and _is_localhost(listed_host)):
        return ""
    # An IPv6 address with an IPv4 address in it is judged by the latter: that is what is reached.
    return next((kind for each in list(_embedded(address)) or [address] if (kind := _kind(each))), "")


def tls_context(storage: StorageSection) -> ssl.SSLContext:
    """Checks certificate and host name; the daemon has read the same files before, with better messages."""
    # `create_default_context` would write session keys into the file that SSLKEYLOGFILE names.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if storage.ca_file:
        context.load_verify_locations(storage.ca_file)
    else:
        context.load_default_certs()
    if storage.certificate_file:
        context.load_cert_chain(storage.certificate_file, storage.key_file or None, password=lambda: "")
    return context


def _addresses(location: Location, listed: Location, key: str) -> list[_Place]:
    """Every address of the host, all of them allowed: a name that has one forbidden address is refused."""
    try:
        found = socket.getaddrinfo(location.host, location.port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "not a host name"
        raise RunnerError(ErrorCode.STORAGE_UNREACHABLE, f"{location}: {why}. {_remedy(key)}") from error
    for *_, place in found:
        address = ipaddress.ip_address(str(place[0]).partition("%")[0])
        if kind := why_forbidden(address, listed.host):
            what = f"{location.host} is the address {address}, which is {kind}"
            remedy = f"If that is meant, write the address itself into storage.{key}"
            raise RunnerError(ErrorCode.VIDEO_REFUSED, f"{location}: {what}. {remedy}")
    return [(family, place) for family, _, _, _, place in found]


def _connect_to_one(addresses: list[_Place], location: Location, storage: StorageSection, key: str) -> socket.socket:
    problem: OSError | None = None
    for family, place in addresses:
        attempt = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        attempt.settimeout(storage.connect_timeout_seconds)
        try:
            attempt.connect(place)
        except OSError as error:
            attempt.close()
            problem = error
        else:
            return attempt
    timed_out = isinstance(problem, TimeoutError)
    limit = f"{storage.connect_timeout_seconds:g} s (storage.connect_timeout_seconds)"
    why = f"no connection within {limit}" if timed_out else (problem and problem.strerror) or "no address"
    raise RunnerError(ErrorCode.STORAGE_UNREACHABLE, f"{location}: {why}. {_remedy(key)}") from problem


def _remedy(key: str) -> str:
    """What to do about a server that cannot be reached, where the key `key` of `[storage]` has its address."""
    return f"Correct {'storage.s3_endpoint' if key == 's3_endpoint' else 'video.path'}, or start the server"


def _kind(address: IPAddress) -> str:
    if address in _METADATA:
        return "a cloud's metadata service"
    if address.is_loopback:
        return "a loopback address"
    if address.is_link_local:
        return "a link-local address"
    special = address.is_multicast or address.is_unspecified or address.is_reserved
    if special or (address.version == 4 and (address in _THIS_NETWORK or address in _PROTOCOL_ASSIGNMENTS)):  # noqa: PLR2004
        return "no address of a host"
    return ""


def _embedded(address: IPAddress) -> Iterator[IPAddress]:
    """The IPv4 addresses that a gateway or this machine itself could reach by this IPv6 address."""
    if isinstance(address, ipaddress.IPv4Address):
        return
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    if address.sixtofour:
        yield address.sixtofour
    if address.teredo:
        yield from address.teredo
    # ::1 is a loopback address and no 0.0.0.1.
    if address in _NAT64 or (address in _IPV4_COMPATIBLE and int(address) > 1):
        yield ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)


def _is_localhost(host: str) -> bool:
    return host == "localhost" or host.endswith(".localhost")

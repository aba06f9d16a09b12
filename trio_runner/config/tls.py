"""Why two peers could not agree on TLS, in words that name the config key to change."""

from __future__ import annotations

import ssl
from types import MappingProxyType
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_BROKE_OFF = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)

# X509_V_ERR_* of <openssl/x509_vfy.h>
_REMEDIES: Final = MappingProxyType(
    {
        9: "set the clock of this machine, or of the one that issued it",
        10: "let it be renewed, or set the clock of this machine",
        62: "write the host in {address} as the certificate names it",
        64: "write the host in {address} as the certificate names it",
    }
)
_OTHER_REMEDY: Final = "set {section}.ca_file to the authority that issued it"


def tls_problem(error: BaseException, section: str, *, address: str = "url") -> str | None:
    """The reason and its remedy, if `error` or one of its causes comes from TLS itself.

    Args:
        error: What a library raised.
        section: The section of the config whose keys are named.
        address: The key in it that names the peer.

    Returns:
        A sentence; None where it is no matter of TLS, as a connection that merely broke during the handshake.
    """
    cause = next((link for link in causes(error) if isinstance(link, ssl.SSLError)), None)
    if cause is None or isinstance(cause, _BROKE_OFF):
        return None
    if isinstance(cause, ssl.SSLCertVerificationError):
        remedy = _REMEDIES.get(cause.verify_code, _OTHER_REMEDY).format(section=section, address=f"{section}.{address}")
        return f"its certificate is not accepted: {cause.verify_message.rstrip('.')}; {remedy}"
    reason = (cause.reason or "unknown reason").replace("_", " ").lower()
    if "alert" in reason:
        return f"it refused our side of TLS ({reason}); see {section}.certificate_file and {section}.key_file"
    return f"TLS failed ({reason}); is {section}.{address} a port that speaks TLS?"


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error and its chain of causes; a group is followed by its first member."""
    link: BaseException | None = error
    while link is not None:
        yield link
        link = link.exceptions[0] if isinstance(link, BaseExceptionGroup) else link.__cause__ or link.__context__

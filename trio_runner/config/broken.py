"""Problems that rules find: with one key and perhaps others, and with the files of TLS."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trio_runner.config.errors import Problem

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trio_runner.config.kinds import PeerSection


def broken(key: str, problem: str, remedy: str = "", *others: str, allowed: str = "", found: str = "") -> Problem:
    """The problem with a key, as `section.key`; `others` are keys that it does not go together with."""
    return Problem(
        path=tuple(key.split(".")),
        problem=problem,
        remedy=remedy,
        found=found,
        allowed=allowed,
        others=tuple(tuple(other.split(".")) for other in others),
    )


def lonely_key_file(peer: PeerSection, section: str) -> Iterator[Problem]:
    """A key needs its certificate."""
    if peer.key_file and not peer.certificate_file:
        certificate = f"{section}.certificate_file"
        yield broken(f"{section}.key_file", "a key without its certificate", f"set {certificate} too", certificate)


def no_tls_files(peer: PeerSection, section: str, why: str, remedy: str, *others: str) -> Iterator[Problem]:
    """Files of TLS are of no use without TLS."""
    for name in ("ca_file", "certificate_file", "key_file"):
        if getattr(peer, name):
            yield broken(f"{section}.{name}", f"of no use, for {why}", remedy, *others)

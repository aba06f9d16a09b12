"""The wire protocols by the name that `inference.protocol` gives them: one small pure module for each."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING, Final, cast

from trio_runner.inference.protocols import predict

if TYPE_CHECKING:
    from collections.abc import Mapping

    from trio_runner.inference.answer import WireProtocol

PROTOCOLS: Final[Mapping[str, WireProtocol]] = MappingProxyType({"predict": cast("WireProtocol", predict)})

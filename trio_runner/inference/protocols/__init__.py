"""The wire protocols by the name that `inference.protocol` gives them: one small pure module for each."""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trio_runner.config.inference import InferenceSection
    from trio_runner.inference.protocol import WireProtocol


def open_protocol(config: InferenceSection, names: Sequence[str] = ()) -> WireProtocol:
    """The protocol that the config names; `names` are the labels of class numbers.

    A module is called what its protocol and its table in the config are called. Only the module in use is imported: one
    of the others may need numpy.
    """
    # By default numpy starts a thread of OpenBLAS for every core, and no protocol has use for them.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    protocol: WireProtocol = import_module(f"{__name__}.{config.protocol}").open_protocol(config, names)
    return protocol

"""The interface of the wire protocols: the request for some frames, the answer to it, and its detections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, Self, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from trio_runner.model import Detection, Frame


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request, without what the client adds to every one: the address, credentials, Content-Length."""

    path: str
    """Comes after `inference.url`: begins with "/", and may end with a query."""
    body: tuple[bytes, ...] = ()
    """In several pieces, so that a picture is not copied."""
    method: str = "POST"
    headers: tuple[tuple[str, str], ...] = ()
    otherwise: Call | None = None
    """Asked about readiness where the service does not have this path."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer with a status of success."""

    headers: Mapping[str, str]
    """Names count in any case."""
    body: bytes


@dataclass(frozen=True, slots=True)
class Reading:
    """What an answer says about one frame."""

    detections: tuple[Detection, ...]
    clipped: int = 0
    """How many boxes were cut off at the picture's border, or lay in its padding."""
    tokens: int = 0
    """How many tokens a language model counted for this frame, prompt and answer together."""


class WireProtocol(Protocol):
    """How one kind of service is asked and its answer read; pure, so that a test needs no network."""

    @property
    def max_answer_bytes(self) -> int:
        """The limit of an answer's size where `inference.max_response_bytes` is 0."""
        ...

    @property
    def max_frames(self) -> int:
        """How many frames one request may carry."""
        ...

    def call(self, frames: Sequence[Frame]) -> Call:
        """The request that carries these frames: at least one, at most `max_frames`."""
        ...

    def read(self, answer: Answer, frames: Sequence[Frame]) -> Sequence[Reading]:
        """The detections of each frame, with boxes in source pixels; raises BadAnswerError."""
        ...

    def readiness(self) -> Call | None:
        """The request whose success says that the service can answer frames; None if the protocol has none."""
        ...


@runtime_checkable
class DescribedProtocol(WireProtocol, Protocol):
    """A protocol whose services describe what they take and give, which is compared with the config."""

    def description(self) -> Call | None:
        """The request for the description; None if the config says that the service has none."""
        ...

    def described(self, answer: Answer) -> Self:
        """The protocol for the service that this answer describes.

        Raises:
            BadAnswerError: The config does not fit the description; the message names the key to change.
        """
        ...

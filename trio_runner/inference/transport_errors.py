"""The errors of an HTTP transport by the error codes of this program."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx

from trio_runner.config.tls import causes, tls_problem
from trio_runner.errors import ErrorCode
from trio_runner.inference.http1 import ExtraDataError
from trio_runner.inference.statuses import InferenceError

if TYPE_CHECKING:
    from trio_runner.config.inference import InferenceSection


def transport_error(config: InferenceSection, error: httpx.HTTPError | UnicodeError) -> InferenceError:
    """The error of a request to this service that got no whole answer."""
    url = config.url
    if isinstance(error, UnicodeError):
        return _unreachable(url, f"not a host name: {error}", transient=False)
    if isinstance(error, httpx.ConnectTimeout):
        return _unreachable(url, "did not accept a connection in time")
    if isinstance(error, ExtraDataError):
        return InferenceError(ErrorCode.INFERENCE_BAD_ANSWER, f"{url} {error}")
    if broken := broken_tls(url, error):
        return broken
    if isinstance(error, httpx.ConnectError):
        return _unreachable(url, _root_cause(error))
    message = f"{url} broke off the exchange: {str(error) or type(error).__name__}"
    if config.http2:
        message += "; does it speak HTTP/2 (inference.http2)?"
    return InferenceError(ErrorCode.INFERENCE_UNAVAILABLE, message, transient=True)


def broken_tls(url: str, error: BaseException) -> InferenceError | None:
    """`inference_tls`, if TLS is what failed."""
    problem = tls_problem(error, "inference")
    return InferenceError(ErrorCode.INFERENCE_TLS, f"{url}: {problem}") if problem else None


def _unreachable(url: str, why: str, *, transient: bool = True) -> InferenceError:
    return InferenceError(ErrorCode.INFERENCE_UNREACHABLE, f"{url}: {why}", transient=transient)


def _root_cause(error: BaseException) -> str:
    """The system's own error, which httpx and Trio wrap into "all attempts to connect failed"."""
    *_, error = causes(error)
    return (error.strerror if isinstance(error, OSError) else None) or str(error) or type(error).__name__

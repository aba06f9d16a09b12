"""The client of Kubernetes' API server: one call under one deadline, and errors with a cause and a remedy."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import kr8s
import kr8s.asyncio
import trio

from trio_runner.orchestrator.spawners.spawner import SpawnRefusedError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_runner.config.sections import KubernetesSection

CALL_SECONDS: Final = 10.0
STEP_SECONDS: Final = 5.0
"""How long httpx gives each step of a call: connecting, sending, receiving.

httpx closes a connection whose step took too long, but not one whose caller was cancelled. So a step ends before
`CALL_SECONDS` cancels the call.
"""

CLOSE_SECONDS: Final = 2.0


class KubernetesError(SpawnRefusedError):
    """A call to the API server that failed: why, and what to do; `status` is None where there was no answer."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class KubernetesApi:
    """One namespace, with the rights of the kubeconfig or of the pod's service account. Made by `open_api`."""

    def __init__(self, settings: KubernetesSection) -> None:
        self._settings = settings
        # kr8s' factory shares connections among callers, and leaks them if its first call fails.
        self._api = kr8s.asyncio.Api(bypass_factory=True, kubeconfig=settings.kubeconfig or None)
        self._api.timeout = STEP_SECONDS
        self._has_credentials = False
        # One call at a time: after each 401 and 403 kr8s reads its credentials again, and closes every connection.
        self._one_at_a_time = trio.Lock()

    async def call(
        self,
        method: str,
        resource: str,
        *,
        version: str = "batch/v1",
        parameters: dict[str, str] | None = None,
        body: dict[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Send a request for "jobs" or "jobs/NAME" of the namespace; raises KubernetesError, after 10 s at most."""
        kind = "merge-patch+json" if method == "PATCH" else "json"
        try:
            # Shielded: after a call that was cancelled halfway nobody would know what the server has done.
            with trio.fail_after(CALL_SECONDS, shield=True):
                async with self._one_at_a_time:
                    if not self._has_credentials:
                        await self._api.reauthenticate()
                        self._has_credentials = True
                    async with self._api.call_api(
                        method,
                        version=version,
                        namespace=self._settings.namespace,
                        url=resource,
                        params=parameters or {},
                        content=json.dumps(body) if body else None,
                        headers={"Content-Type": f"application/{kind}"},
                    ) as response:
                        answer: dict[str, Any] = response.json()
                        return answer
        except trio.TooSlowError:
            raise self._away(f"no answer within {CALL_SECONDS:g} s") from None
        except kr8s.ServerError as error:
            status = error.response.status_code if error.response is not None else 0
            raise KubernetesError(f"{_cause(error)}. {self._remedy(status, str(error))}", status) from None
        except Exception as error:
            # httpx raises its own errors for the network, and kr8s raises anything for a kubeconfig that it cannot use.
            raise self._away(str(error) or type(error).__name__) from error

    async def aclose(self) -> None:
        """Close the connections, within `CLOSE_SECONDS`."""
        if (session := self._api._session) is not None:  # noqa: SLF001 - kr8s never closes its session
            with trio.move_on_after(CLOSE_SECONDS, shield=True):
                await session.aclose()

    def _away(self, why: str) -> KubernetesError:
        where = self._settings.kubeconfig or "$KUBECONFIG, ~/.kube/config or the pod's service account"
        remedy = f"Check that it is up, and the address in kubernetes.kubeconfig ({where})"
        return KubernetesError(f"Kubernetes' API server cannot be used: {why}. {remedy}")

    def _remedy(self, status: int, message: str) -> str:
        namespace = self._settings.namespace
        if "exceeded quota" in message:
            return "Raise that ResourceQuota, or lower orchestrator.max_runners or kubernetes.*_request and *_limit"
        if status in {400, 422}:
            return "Correct the section [kubernetes]"
        if status == 401:  # noqa: PLR2004 - Unauthorized
            return "Give the orchestrator valid credentials, by kubernetes.kubeconfig or a service account"
        if status == 403:  # noqa: PLR2004 - Forbidden
            return f"Give it the Role of deploy/kubernetes/rbac.yaml in {namespace}, or look at what admits Jobs there"
        if status == 404:  # noqa: PLR2004 - Not Found
            return f"Make the namespace {namespace}, or correct kubernetes.namespace"
        return "Look at the API server"


def _cause(error: kr8s.ServerError) -> str:
    return f"Kubernetes refuses: {error}".rstrip(". ")


@asynccontextmanager
async def open_api(settings: KubernetesSection) -> AsyncIterator[KubernetesApi]:
    """A client that connects at its first call. A call that fails leaves the client usable."""
    api = KubernetesApi(settings)
    try:
        yield api
    finally:
        await api.aclose()

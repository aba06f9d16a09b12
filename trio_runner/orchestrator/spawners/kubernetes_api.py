"""The door to Kubernetes' API server: one call under one deadline, and errors with a cause and a remedy."""

from __future__ import annotations

import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Final

import kr8s
import kr8s.asyncio
import trio

from trio_runner.orchestrator.spawners.kubernetes_job import KubernetesError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trio_runner.config.sections import KubernetesSection

CALL_SECONDS: Final = 10.0
STEP_SECONDS: Final = 5.0
"""For each step of a call: what did not connect in time httpx closes, and what is cancelled meanwhile it does not."""

CLOSE_SECONDS: Final = 2.0


class KubernetesApi:
    """One namespace, as whoever the kubeconfig or the pod's service account is. Made by `open_api`."""

    def __init__(self, settings: KubernetesSection) -> None:
        self._settings = settings
        # Not by its factory, which shares connections among callers, and loses them where its first question fails.
        self._api = kr8s.asyncio.Api(bypass_factory=True, kubeconfig=settings.kubeconfig or None)
        self._api.timeout = STEP_SECONDS
        self._knows_whom_to_ask = False
        # kr8s closes its connections under everybody when it reads its credentials again, as after each 401 and 403.
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
        """Ask for `resource` of the namespace, as "jobs" or "jobs/NAME"; raises KubernetesError, after 10 s at most."""
        kind = "merge-patch+json" if method == "PATCH" else "json"
        try:
            # Not cancelled halfway: nobody would know whether the server has done it.
            with trio.fail_after(CALL_SECONDS, shield=True):
                async with self._one_at_a_time:
                    if not self._knows_whom_to_ask:
                        await self._api.reauthenticate()
                        self._knows_whom_to_ask = True
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
            # httpx for the network, and for a kubeconfig that cannot be used whatever reading it raised.
            raise self._away(str(error) or type(error).__name__) from error

    async def aclose(self) -> None:
        """Close its connections."""
        if (session := self._api._session) is not None:  # noqa: SLF001 - kr8s itself never closes it
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
    """Nothing is asked before the first call, and an API server that is away then is asked again by the next."""
    api = KubernetesApi(settings)
    try:
        yield api
    finally:
        await api.aclose()

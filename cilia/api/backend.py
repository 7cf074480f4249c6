"""What stands behind the agent's doors.

The servers of this room know HTTP and CNI; a `Backend` knows the node. Methods may raise `ApiError`;
anything else is a bug of ours, logged with its trace and answered with a plain sentence.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from cilia.api.types import (
    CheckRequest,
    CookieView,
    EndpointPolicy,
    EndpointView,
    IdentityView,
    IpEntry,
    LocalService,
    MapDump,
    MapView,
    MetricForecast,
    NatUse,
    NodeView,
    OptionChange,
    PolicyList,
    PolicyRevision,
    PolicyUsage,
    SelectorView,
    ServiceList,
    Setting,
    StatusResponse,
    VerifyReport,
)
from cilia.model.explain import CheckReport, Explanation
from cilia.wire import cni

CniRequest = cni.Add | cni.Delete | cni.Check | cni.CollectGarbage | cni.Status


class ApiError(Exception):
    """An answer that isn't a success: an HTTP status and one sentence."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence


def not_found(what: str, name: object, hint: str) -> ApiError:
    """404, with the command that lists what there is."""
    return ApiError(404, f"There is no {what} {name} on this node; {hint} lists what there is.")


class EndpointReference(msgspec.Struct, frozen=True, kw_only=True):
    """How a caller names an endpoint; one of the three is set."""

    id: int = 0
    container_id: str = ""
    namespace: str = ""
    pod: str = ""
    """With `namespace`."""

    def __str__(self) -> str:
        if self.pod:
            return f"pod-name:{self.namespace}/{self.pod}"
        return f"container-id:{self.container_id}" if self.container_id else str(self.id)


def parse_reference(text: str) -> EndpointReference:
    """Read `17`, `container-id:ID` or `pod-name:NAMESPACE/NAME`. Raises `ApiError` 400."""
    kind, colon, rest = text.partition(":")
    if not colon and text.isascii() and text.isdigit() and len(text) <= 5 and int(text) > 0:
        return EndpointReference(id=int(text))
    if kind == "container-id" and rest:
        return EndpointReference(container_id=rest)
    namespace, slash, pod = rest.partition("/")
    if kind == "pod-name" and slash and namespace and pod and "/" not in pod:
        return EndpointReference(namespace=namespace, pod=pod)
    raise ApiError(
        400,
        f"{text[:80]!r} names no endpoint; write its number, container-id:ID or pod-name:NAMESPACE/NAME.",
    )


class Caller(msgspec.Struct, frozen=True, kw_only=True):
    """Who asks for a change, as the kernel tells (SO_PEERCRED)."""

    pid: int = 0
    uid: int = 0


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """What to explain: a flow, or a packet between two ends."""

    source: str = ""
    destination: str = ""
    port: str = "80/TCP"
    """80, 80/TCP, http, icmp/8, a protocol's name or number."""
    flow: str = ""
    """A flow's UUID; the rest is then ignored."""


class CniBackend(Protocol):
    """Serves the plugin."""

    async def cni(self, request: CniRequest) -> cni.Result | None:
        """Serve one call: ADD returns its result, the others None. Raises `cni.CniError`.

        Calls of one container come one after the other; those of different containers at once.
        A DEL that can't be served before the agent is ready is refused with NOT_AVAILABLE: the plugin
        then keeps it on disk, and the agent replays it when it is ready.
        """
        ...


class Backend(CniBackend, Protocol):
    """Serves the plugin and the REST API."""

    async def status(self) -> StatusResponse: ...

    async def endpoints(self) -> list[EndpointView]: ...

    async def endpoint(self, reference: EndpointReference) -> EndpointView: ...

    async def endpoint_policy(self, reference: EndpointReference) -> EndpointPolicy: ...

    async def identities(self) -> list[IdentityView]: ...

    async def identity(self, number: int) -> IdentityView: ...

    async def addresses(self) -> list[IpEntry]: ...

    async def policies(self) -> PolicyList: ...

    async def wait_policy(self, revision: int, timeout: float) -> PolicyRevision:
        """Return once all endpoints enforce `revision` or a newer one, or after `timeout` seconds."""
        ...

    async def policy_usage(self) -> PolicyUsage: ...

    async def selectors(self) -> list[SelectorView]: ...

    async def explain(self, question: Question) -> Explanation:
        """Why packets pass or not, as policy is now; of a flow also what was decided then."""
        ...

    async def check(self, request: CheckRequest) -> CheckReport:
        """What proposed policies would change. Changes nothing; one check runs at a time."""
        ...

    async def cookie(self, number: int) -> CookieView: ...

    async def metrics_forecast(self, metrics: str) -> list[MetricForecast]:
        """How many series metrics, as --hubble-metrics names them, would have by the flows in memory."""
        ...

    async def maps(self) -> list[MapView]: ...

    async def map(self, name: str, limit: int, *, raw: bool = False) -> MapDump:
        """Elements of a map; `raw`: numbers as the programs have them, where there are names."""
        ...

    async def nodes(self) -> list[NodeView]: ...

    async def settings(self) -> list[Setting]: ...

    async def change_settings(self, change: OptionChange, caller: Caller) -> list[Setting]:
        """Change settings of the running agent; returns all, once every endpoint is judged by them."""
        ...

    async def endpoint_settings(self, reference: EndpointReference) -> list[Setting]: ...

    async def change_endpoint(
        self, reference: EndpointReference, change: OptionChange, caller: Caller
    ) -> list[Setting]:
        """The same for what can be changed of one endpoint."""
        ...

    async def verify(self, *, repair: bool) -> VerifyReport:
        """Compare what is intended with what the kernel has, and put it right if asked to."""
        ...

    async def services(self) -> ServiceList:
        """All frontends, and all objects that are wrong in part."""
        ...

    async def service(self, reference: str) -> ServiceList:
        """Those of NAMESPACE/NAME, or at ADDRESS:PORT[/PROTOCOL], with what the kernel has of them."""
        ...

    async def nat(self) -> NatUse:
        """Ports in use for translated sources."""
        ...

    async def local_services(self) -> list[LocalService]: ...

    async def put_local_service(self, service: LocalService, caller: Caller) -> LocalService:
        """Write or replace a service by hand; returns it in its one spelling."""
        ...

    async def delete_local_service(self, frontend: str, caller: Caller) -> list[LocalService]:
        """Remove one; returns those that are left."""
        ...

    async def metrics(self) -> bytes:
        """Prometheus text format."""
        ...

"""Who is behind a number: the questions Hubble asks, and a plain answerer for tests and tools.

The agent answers from its tables. `revision` must change whenever any answer may change; until then
answers are remembered.
"""

from __future__ import annotations

from typing import Protocol

import msgspec

from cilia.model.identity import RESERVED_NAMES, UNKNOWN
from cilia.model.policy import CookieRow

NAMESPACE_LABEL = "k8s:io.kubernetes.pod.namespace="


class Workload(msgspec.Struct, frozen=True):
    """The controller that owns a pod."""

    kind: str
    name: str


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of the endpoint at an address, local or remote."""

    id: int = 0
    """Endpoint id on its node; 0 when it is another node's."""
    identity: int = 0
    cluster: str = ""
    namespace: str = ""
    name: str = ""
    labels: tuple[str, ...] = ()
    """`source:key=value`, sorted; used when the identity's labels are unknown."""
    workloads: tuple[Workload, ...] = ()


class Party(msgspec.Struct, frozen=True, kw_only=True):
    """One side of a flow as it was when the flow was stored."""

    id: int = 0
    identity: int = 0
    cluster: str = ""
    namespace: str = ""
    pod: str = ""
    labels: tuple[str, ...] = ()
    workloads: tuple[Workload, ...] = ()
    names: tuple[str, ...] = ()


class Service(msgspec.Struct, frozen=True):
    """What a flow's initiator asked for; without a name: no service."""

    namespace: str = ""
    name: str = ""


class Device(msgspec.Struct, frozen=True):
    """A network device of the node; index 0 is none."""

    index: int = 0
    name: str = ""


class Directory(Protocol):
    """What the agent's tables can tell."""

    def revision(self) -> int:
        """Changes whenever an answer below may change."""
        ...

    def endpoint(self, address: str, endpoint_id: int) -> Pod | None:
        """The endpoint at an address; `endpoint_id` (0: unknown) is the local one the kernel named."""
        ...

    def labels(self, identity: int) -> tuple[str, ...]:
        """Labels of an identity as `source:key=value`, sorted; empty when unknown."""
        ...

    def names(self, address: str) -> tuple[str, ...]:
        """DNS names pods asked for to get this address."""
        ...

    def rules(self, cookie: int) -> CookieRow | None:
        """The rules a cookie stands for."""
        ...

    def service(self, number: int) -> Service | None:
        """The service of a frontend's number."""
        ...

    def service_at(self, address: str, port: int, protocol: int, *, any_address: bool) -> Service | None:
        """The service at an address; `any_address`: also one at that port of every node."""
        ...

    def service_revision(self) -> int:
        """Changes whenever one of the two answers above may change."""
        ...

    def policy_revision(self) -> int:
        """Newest policy revision of this node; 0: unknown."""
        ...

    def device(self, index: int) -> str:
        """Name of an interface, or an empty string."""
        ...


class MemoryDirectory:
    """A directory one fills by hand: assign to the dictionaries, then call `touch()`."""

    def __init__(self) -> None:
        self.pods: dict[str, Pod] = {}
        """By address."""
        self.identity_labels: dict[int, tuple[str, ...]] = {}
        self.dns: dict[str, tuple[str, ...]] = {}
        self.cookies: dict[int, CookieRow] = {}
        self.devices: dict[int, str] = {}
        self.services: dict[int, Service] = {}
        """By the number of a frontend."""
        self.frontends: dict[tuple[str, int, int], Service] = {}
        """By address, port and protocol; an empty address: of every node."""
        self.policies = 0
        """Newest policy revision."""
        self._revision = 1

    def touch(self) -> None:
        """Say that answers changed."""
        self._revision += 1

    def revision(self) -> int:
        return self._revision

    def endpoint(self, address: str, endpoint_id: int) -> Pod | None:
        found = self.pods.get(address)
        if found is None and endpoint_id:
            found = next((pod for pod in self.pods.values() if pod.id == endpoint_id), None)
        return found

    def labels(self, identity: int) -> tuple[str, ...]:
        return self.identity_labels.get(identity, ())

    def names(self, address: str) -> tuple[str, ...]:
        return self.dns.get(address, ())

    def rules(self, cookie: int) -> CookieRow | None:
        return self.cookies.get(cookie)

    def service(self, number: int) -> Service | None:
        return self.services.get(number)

    def service_at(self, address: str, port: int, protocol: int, *, any_address: bool) -> Service | None:
        found = self.frontends.get((address, port, protocol))
        return found or (self.frontends.get(("", port, protocol)) if any_address else None)

    def service_revision(self) -> int:
        return self._revision

    def policy_revision(self) -> int:
        return self.policies

    def device(self, index: int) -> str:
        return self.devices.get(index, "")


NOBODY = (f"reserved:{RESERVED_NAMES[UNKNOWN][0]}",)
"""Labels of who is not known: clients leave such flows out, or name them so."""


def describe(directory: Directory, address: str, identity: int, endpoint_id: int) -> Party:
    """Put together what is known of one side. The kernel's identity wins: it is what was judged."""
    pod = directory.endpoint(address, endpoint_id) or Pod(id=endpoint_id)
    number = identity or pod.identity
    labels = directory.labels(number) or (pod.labels if number == pod.identity else ())
    if not number and not labels:
        labels = NOBODY
    return Party(
        id=endpoint_id or pod.id,
        identity=number,
        cluster=pod.cluster,
        namespace=pod.namespace or namespace_of(labels),
        pod=pod.name,
        labels=labels,
        workloads=pod.workloads,
        names=directory.names(address),
    )


def namespace_of(labels: tuple[str, ...]) -> str:
    """The namespace an identity's labels tell, or an empty string."""
    for label in labels:
        if label.startswith(NAMESPACE_LABEL):
            return label.removeprefix(NAMESPACE_LABEL)
    return ""

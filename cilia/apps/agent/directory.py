"""Hubble's questions, answered from the agent's tables."""

from __future__ import annotations

from collections.abc import Callable

from cilia.dataplane.maps.services import Services
from cilia.hubble.directory import Pod, Service, Workload
from cilia.model.endpoint import Endpoint
from cilia.model.ids import Cookie, EndpointId, IdentityId
from cilia.model.policy import CookieRow
from cilia.model.service import Frontend, Protocol, ServiceEntry
from cilia.schema import Desired, Inputs

PROTOCOLS = frozenset(map(int, Protocol))


class TableDirectory:
    """Who is behind an address, an identity, a cookie or an interface, at this moment."""

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        services: Services,
        *,
        cluster: str,
        device: Callable[[int], str],
        policies: bool = True,
    ) -> None:
        """`policies`: whether rules are told."""
        self._inputs = inputs
        self._desired = desired
        self._services = services
        self._cluster = cluster
        self._device = device
        self._policies = policies

    def revision(self) -> int:
        """The tables' revisions together: each only grows, so the sum changes with any of them."""
        desired = self._desired
        return (
            desired.endpoints.revision
            + desired.identities.revision
            + desired.ipcache.revision
            + desired.cookies.revision
            + self._inputs.pods.revision
            + self._inputs.policies.revision
        )

    def endpoint(self, address: str, endpoint_id: int) -> Pod | None:
        """A local endpoint, or another node's pod.

        The kernel's word, which is about the interface, goes before the address, which a pod may forge.
        """
        named = self._desired.endpoints.get(EndpointId(endpoint_id)) if endpoint_id else None
        if named is not None:
            return self._local(named)
        local = self._desired.endpoints.by("address", address)
        if local:
            return self._local(local[0])
        if endpoint_id:
            return None
        entry = self._desired.ipcache.get(f"{address}/128" if ":" in address else f"{address}/32")
        if entry is None:
            return None
        return Pod(
            identity=entry.identity,
            cluster=self._cluster if entry.pod else "",
            namespace=entry.namespace,
            name=entry.pod,
        )

    def labels(self, identity: int) -> tuple[str, ...]:
        row = self._desired.identities.get(IdentityId(identity))
        return tuple(row.labels.strings()) if row is not None else ()

    def names(self, address: str) -> tuple[str, ...]:
        """DNS names: none are learned yet."""
        return ()

    def rules(self, cookie: int) -> CookieRow | None:
        return self._desired.cookies.get(Cookie(cookie)) if self._policies else None

    def service(self, number: int) -> Service | None:
        return _service(self._services.entry(number))

    def service_at(self, address: str, port: int, protocol: int, *, any_address: bool) -> Service | None:
        if protocol not in PROTOCOLS:
            return None
        everywhere = ("::" if ":" in address else "0.0.0.0") if any_address else ""
        for host in filter(None, (address, everywhere)):
            number = self._services.id_of(Frontend(host, port, Protocol(protocol)))
            if number:
                return _service(self._services.entry(number))
        return None

    def service_revision(self) -> int:
        return self._services.names

    def policy_revision(self) -> int:
        return self._inputs.policies.revision

    def device(self, index: int) -> str:
        return self._device(index)

    def _local(self, endpoint: Endpoint) -> Pod:
        attachment = endpoint.attachment
        pod = self._inputs.pods.get((attachment.namespace, attachment.pod))
        owner = (Workload(pod.owner_kind, pod.owner_name),) if pod is not None and pod.owner_name else ()
        return Pod(
            id=endpoint.id,
            identity=endpoint.identity,
            cluster=self._cluster,
            namespace=attachment.namespace,
            name=attachment.pod,
            labels=tuple(endpoint.labels.strings()),
            workloads=owner,
        )


def _service(entry: ServiceEntry | None) -> Service | None:
    """What is not a Service goes by the name of what asks for it: a pod's host port, a redirect."""
    return Service(entry.namespace, entry.name or str(entry.frontend)) if entry is not None else None

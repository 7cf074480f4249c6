"""What the agent tells the cluster of its endpoints: CiliumEndpoints.

Desired tables in, objects out. The publisher keeps cursors, writes what changed, and tries again what
failed; the API server may be away for as long as it likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec

from cilia.cluster import store as cluster
from cilia.cluster.store import Store
from cilia.model.endpoint import Endpoint
from cilia.model.ids import EndpointId
from cilia.model.policy import SubjectPolicy
from cilia.model.resources import cilium_endpoint as cep
from cilia.model.resources.base import AnyObject, ObjectMeta, OwnerReference
from cilia.schema import Desired

WRITE_ATTEMPTS = 5
"""How often a CiliumEndpoint is written anew when somebody else changed it in between."""


def endpoint_object(
    endpoint: Endpoint, subject: SubjectPolicy | None, node_ip: str, *, audit: bool = False
) -> cep.CiliumEndpoint:
    """The CiliumEndpoint of a local endpoint: named, placed and owned like its pod. `audit`: of the node."""
    attachment = endpoint.attachment
    return cep.CiliumEndpoint(
        metadata=ObjectMeta(
            name=attachment.pod,
            namespace=attachment.namespace,
            owner_references=(
                OwnerReference(api_version="v1", kind="Pod", name=attachment.pod, uid=attachment.pod_uid),
            )
            if attachment.pod_uid
            else None,
        ),
        status=cep.EndpointStatus(
            id=endpoint.id,
            external_identifiers=cep.ExternalIdentifiers(
                cni_attachment_id=f"{attachment.container_id}:{attachment.interface}",
                container_id=attachment.container_id,
                k8s_namespace=attachment.namespace,
                k8s_pod_name=attachment.pod,
                pod_name=endpoint.pod_name,
            ),
            identity=cep.EndpointIdentity(id=endpoint.identity, labels=tuple(endpoint.labels.strings())),
            networking=cep.EndpointNetworking(
                addressing=(cep.AddressPair(ipv4=attachment.ipv4 or None, ipv6=attachment.ipv6 or None),),
                node=node_ip,
            ),
            policy=_policy_status(subject, audit or endpoint.audit),
            state=endpoint.state.value,
            named_ports=tuple(
                cep.NamedPort(name=port.name, port=port.port, protocol=port.protocol)
                for port in endpoint.named_ports
            )
            or None,
        ),
    )


def _policy_status(subject: SubjectPolicy | None, audit: bool) -> cep.EndpointPolicy | None:
    if subject is None:
        return None
    return cep.EndpointPolicy(
        ingress=_direction(subject.ingress_enforced, audit), egress=_direction(subject.egress_enforced, audit)
    )


def _direction(enforced: bool, audit: bool) -> cep.PolicyDirection:
    state = "disabled" if not enforced else "non-enforcing" if audit else "enforcing"
    return cep.PolicyDirection(enforcing=enforced and not audit, state=state)


class Published(msgspec.Struct, frozen=True):
    """A CiliumEndpoint as this agent wrote it last, and the version the store gave it."""

    object: cep.CiliumEndpoint
    version: str


def _says(present: cep.CiliumEndpoint, wanted: cep.CiliumEndpoint) -> bool:
    """Whether an object is as wanted: after a restart most are."""
    owners = (present.metadata.owner_references, wanted.metadata.owner_references)
    return present.status == wanted.status and owners[0] == owners[1]


def _of_version(wanted: cep.CiliumEndpoint, version: str) -> cep.CiliumEndpoint:
    metadata = msgspec.structs.replace(wanted.metadata, resource_version=version)
    return msgspec.structs.replace(wanted, metadata=metadata)


class EndpointPublisher:
    """Keeps the CiliumEndpoints of this node's pods as the endpoints table has them."""

    def __init__(
        self,
        store: Store,
        desired: Desired,
        node_ip: Callable[[], str],
        audit: Callable[[], bool] = lambda: False,
    ) -> None:
        """`audit`: whether all denials on this node are noted only."""
        self._store = store
        self._desired = desired
        self._node_ip = node_ip
        self._audit = audit
        self._endpoints = desired.endpoints.cursor()
        self._subjects = desired.subjects.cursor()
        self._published: dict[EndpointId, Published] = {}
        self._writing: dict[EndpointId, asyncio.Lock] = {}

    def dirty(self) -> list[EndpointId]:
        """Endpoints whose object may be out of date."""
        put, deleted = self._endpoints.take()
        touched = dict.fromkeys([*(row.id for row in put), *deleted])
        subjects, _ = self._subjects.take()
        for subject in subjects:
            rows = self._desired.endpoints.by("identity", subject.identity)
            touched.update(dict.fromkeys(row.id for row in rows))
        return list(touched)

    @property
    def pending(self) -> bool:
        """Whether something waits to be written."""
        return self._endpoints.pending or self._subjects.pending

    def retry(self, identifier: EndpointId) -> None:
        """Have `dirty` name an endpoint again."""
        self._endpoints.mark(identifier)

    async def publish(self, identifier: EndpointId) -> None:
        """Write or remove one CiliumEndpoint. Raises StoreError."""
        async with self._writing.setdefault(identifier, asyncio.Lock()):
            endpoint = self._desired.endpoints.get(identifier)
            before = self._published.get(identifier)
            if endpoint is None or not endpoint.attachment.pod:
                if before is not None:
                    await self._delete(before.object)
                    self._published.pop(identifier, None)
                self._writing.pop(identifier, None)
                return
            entry = self._desired.endpoint_entries.get(identifier)
            subject = self._desired.subjects.get(entry.subject) if entry is not None else None
            wanted = endpoint_object(endpoint, subject, self._node_ip(), audit=self._audit())
            if before is None or wanted != before.object:
                version = await self._write(wanted, before.version if before is not None else "")
                self._published[identifier] = Published(wanted, version)

    async def _write(self, wanted: cep.CiliumEndpoint, version: str) -> str:
        """Create the object, or replace the one of that version; returns the new version.

        One that somebody else has made or changed meanwhile is replaced as it then is. Raises StoreError.
        """
        namespace, name = wanted.metadata.namespace, wanted.metadata.name
        for _ in range(WRITE_ATTEMPTS):
            body = cluster.encode(cluster.CILIUM_ENDPOINTS, _of_version(wanted, version))
            try:
                if version:
                    raw = await self._store.replace(cluster.CILIUM_ENDPOINTS, name, body, namespace=namespace)
                else:
                    raw = await self._store.create(cluster.CILIUM_ENDPOINTS, body, namespace=namespace)
                return cluster.decode(raw, AnyObject).metadata.resource_version
            except (cluster.AlreadyExists, cluster.Conflict, cluster.NotFound):
                present = await self._present(name, namespace)
            version = present.metadata.resource_version if present is not None else ""
            if present is not None and _says(present, wanted):
                return version
        raise cluster.Conflict(f"CiliumEndpoint {namespace}/{name} is written by others all the time")

    async def _present(self, name: str, namespace: str) -> cep.CiliumEndpoint | None:
        """The object that is there, if any."""
        try:
            raw = await self._store.get(cluster.CILIUM_ENDPOINTS, name, namespace=namespace)
        except cluster.NotFound:
            return None
        return cluster.decode(raw, cep.CiliumEndpoint)

    async def _delete(self, before: cep.CiliumEndpoint) -> None:
        """Remove the object, unless another pod of the same name has taken it over."""
        name, namespace = before.metadata.name, before.metadata.namespace
        present = await self._present(name, namespace)
        mine, theirs = (
            found.status.external_identifiers if found is not None and found.status else None
            for found in (before, present)
        )
        if present is None or mine != theirs:
            return
        conditions = cluster.Preconditions(uid=present.metadata.uid or None)
        try:
            await self._store.delete(
                cluster.CILIUM_ENDPOINTS, name, namespace=namespace, preconditions=conditions
            )
        except (cluster.NotFound, cluster.Conflict):
            return

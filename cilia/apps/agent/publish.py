"""What the agent tells the cluster: CiliumEndpoints and policy statuses.

Desired tables in, objects out. Each publisher keeps a cursor, writes what changed, and tries again what
failed; the API server may be away for as long as it likes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec

from cilia.apps.agent.persist import each
from cilia.cluster import store as cluster
from cilia.cluster.store import Store
from cilia.kit.clock import Clock
from cilia.model.endpoint import Endpoint
from cilia.model.ids import EndpointId
from cilia.model.policy import PolicyState, SubjectPolicy
from cilia.model.resources import cilium_endpoint as cep
from cilia.model.resources.base import AnyObject, ObjectMeta, OwnerReference
from cilia.schema import Desired, Inputs
from cilia.tables.table import Cursor

POLICY_RESOURCES = {
    "CiliumNetworkPolicy": cluster.CILIUM_NETWORK_POLICIES,
    "CiliumClusterwideNetworkPolicy": cluster.CILIUM_CLUSTERWIDE_NETWORK_POLICIES,
}

WRITE_ATTEMPTS = 5
"""How often a CiliumEndpoint is written anew when somebody else changed it in between."""


def endpoint_object(endpoint: Endpoint, subject: SubjectPolicy | None, node_ip: str) -> cep.CiliumEndpoint:
    """The CiliumEndpoint of a local endpoint: named, placed and owned like its pod."""
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
            policy=_policy_status(subject),
            state=endpoint.state.value,
            named_ports=tuple(
                cep.NamedPort(name=port.name, port=port.port, protocol=port.protocol)
                for port in endpoint.named_ports
            )
            or None,
        ),
    )


def _policy_status(subject: SubjectPolicy | None) -> cep.EndpointPolicy | None:
    if subject is None:
        return None
    return cep.EndpointPolicy(
        ingress=_direction(subject.ingress_enforced), egress=_direction(subject.egress_enforced)
    )


def _direction(enforced: bool) -> cep.PolicyDirection:
    return cep.PolicyDirection(enforcing=enforced, state="enforcing" if enforced else "disabled")


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

    def __init__(self, store: Store, desired: Desired, node_ip: Callable[[], str]) -> None:
        self._store = store
        self._desired = desired
        self._node_ip = node_ip
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
            subject = next((row for row in self._desired.subjects if row.identity == endpoint.identity), None)
            wanted = endpoint_object(endpoint, subject, self._node_ip())
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


class StatusPublisher:
    """Writes the `Valid` condition of CiliumNetworkPolicies and their clusterwide kind."""

    def __init__(self, store: Store, inputs: Inputs, desired: Desired, clock: Clock) -> None:
        self._store = store
        self._inputs = inputs
        self._clock = clock
        self._states: Cursor[tuple[str, str, str], PolicyState] = desired.policy_states.cursor()

    @property
    def pending(self) -> bool:
        """Whether a status waits to be written."""
        return self._states.pending

    async def publish(self) -> None:
        """Write all statuses that changed; what fails is tried again at the next call. Raises StoreError."""
        rows, _ = self._states.take()
        await each(rows, self._write, lambda state: self._states.mark(state.key))

    async def _write(self, state: PolicyState) -> None:
        resource = POLICY_RESOURCES.get(state.kind)
        if resource is None or self._is_said(state):
            return
        try:
            await self._store.patch(
                resource,
                state.name,
                self._patch(state),
                namespace=state.namespace or None,
                subresource="status",
            )
        except cluster.NotFound:
            return

    def _is_said(self, state: PolicyState) -> bool:
        """Whether the object says it already: every node computes the same, one write is enough."""
        policy = self._inputs.policies.get(state.key)
        status = getattr(policy.body, "status", None) if policy is not None else None
        valid = [row for row in (status.conditions or ()) if row.type == "Valid"] if status else []
        return any(
            (row.status, row.message) == (_truth(state.valid), condition_message(state)) for row in valid
        )

    def _patch(self, state: PolicyState) -> bytes:
        stamp = datetime.fromtimestamp(self._clock.wall(), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        condition = {
            "type": "Valid",
            "status": _truth(state.valid),
            "message": condition_message(state),
            "reason": "Accepted" if state.valid else "Refused",
            "lastTransitionTime": stamp,
        }
        return msgspec.json.encode({"status": {"conditions": [condition]}})


def condition_message(state: PolicyState) -> str:
    """One sentence for the author of the policy."""
    if state.valid:
        return "Policy validation succeeded"
    return "; ".join(f"{problem.path}: {problem.sentence}" for problem in state.problems)


def _truth(value: bool) -> str:
    return "True" if value else "False"

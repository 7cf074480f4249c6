"""Local endpoints: from an attachment and its pod to an identity, a state and a kernel entry."""

from __future__ import annotations

from collections.abc import Iterable

from cilia.model.endpoint import Attachment, Endpoint, EndpointEntry, EndpointState, NamedPort
from cilia.model.identity import INIT, Identity
from cilia.model.ids import EndpointId, IdentityId, SubjectId
from cilia.model.labels import Labels
from cilia.schema import Desired, Inputs, PodRow


class EndpointNode:
    """attachments + pods + namespaces + cluster_identities -> endpoints, and the identities they lack.

    An endpoint whose labels change keeps its old identity for `grace` seconds, so that the other nodes
    know the new one before packets carry it.
    """

    def __init__(
        self, inputs: Inputs, desired: Desired, *, cluster: str = "default", grace: float = 0.0
    ) -> None:
        self._inputs = inputs
        self._desired = desired
        self._cluster = cluster
        self._grace = grace
        self._attachments = inputs.attachments.cursor()
        self._pods = inputs.pods.cursor()
        self._namespaces = inputs.namespaces.cursor()
        self._identities = inputs.cluster_identities.cursor()
        self._changing: dict[EndpointId, tuple[IdentityId, float]] = {}
        self.wanted: dict[Labels, None] = {}
        """Label sets that local endpoints have and no identity stands for yet."""

    def step(self, now: float) -> None:
        """Recompute what the changes since the last step touch. `now`: monotonic seconds."""
        for identifier in self._touched(now):
            attachment = self._inputs.attachments.get(identifier)
            if attachment is None:
                self._desired.endpoints.delete(identifier)
                self._changing.pop(identifier, None)
            else:
                self._desired.endpoints.put(self._endpoint(attachment, now))
        self.wanted = {
            endpoint.labels: None
            for endpoint in self._desired.endpoints
            if endpoint.state is EndpointState.WAITING_FOR_IDENTITY and endpoint.labels.items
        }

    def next_deadline(self) -> float | None:
        """When the earliest pending identity change is due (monotonic seconds), or None."""
        return min((due for _, due in self._changing.values()), default=None)

    def labels_of(self, namespace: str, pod: PodRow) -> Labels:
        """The identity labels of a pod."""
        row = self._inputs.namespaces.get(namespace)
        return Labels.kubernetes(
            namespace, pod.labels, row.labels if row else None, pod.service_account, self._cluster
        )

    def _touched(self, now: float) -> Iterable[EndpointId]:
        touched: dict[EndpointId, None] = {}
        put, deleted = self._attachments.take()
        touched.update(dict.fromkeys([*(row.id for row in put), *deleted]))
        pods, gone = self._pods.take()
        for key in [*((pod.namespace, pod.name) for pod in pods), *gone]:
            touched.update(dict.fromkeys(row.id for row in self._inputs.attachments.by("pod", key)))
        namespaces, vanished = self._namespaces.take()
        names = {*(row.name for row in namespaces), *vanished}
        if names:
            touched.update(
                dict.fromkeys(row.id for row in self._inputs.attachments if row.namespace in names)
            )
        if self._identities.pending:
            self._identities.take()
            touched.update(dict.fromkeys(endpoint.id for endpoint in self._desired.endpoints))
        touched.update(dict.fromkeys(key for key, (_, due) in self._changing.items() if due <= now))
        return touched

    def _endpoint(self, attachment: Attachment, now: float) -> Endpoint:
        pod = self._inputs.pods.get((attachment.namespace, attachment.pod)) if attachment.pod else None
        if pod is None:
            return self._without_pod(attachment)
        labels = self.labels_of(attachment.namespace, pod)
        identity = self._lookup(labels)
        before = self._desired.endpoints.get(attachment.id)
        if identity is None:
            return self._without_identity(attachment, labels, pod.named_ports, before)
        identity = self._after_grace(attachment.id, before, identity, now)
        if identity.labels != labels:
            labels = identity.labels
        return Endpoint(
            attachment=attachment,
            labels=labels,
            identity=identity.id,
            named_ports=pod.named_ports,
            state=EndpointState.READY,
        )

    def _without_pod(self, attachment: Attachment) -> Endpoint:
        """A container without a pod is reserved:init; one whose pod is not known speaks for nobody.

        A pod that vanishes before its container does keeps whom it spoke for: it is on its way out, and
        its last packets are judged as before.
        """
        if not attachment.pod:
            return Endpoint(
                attachment=attachment,
                labels=Labels.reserved("init"),
                identity=INIT,
                state=EndpointState.READY,
            )
        before = self._desired.endpoints.get(attachment.id)
        if before is not None and before.identity and before.attachment == attachment:
            return before
        return Endpoint(attachment=attachment, state=EndpointState.WAITING_FOR_IDENTITY)

    def _without_identity(
        self,
        attachment: Attachment,
        labels: Labels,
        ports: tuple[NamedPort, ...],
        before: Endpoint | None,
    ) -> Endpoint:
        """The label set has no number yet: the old one stays in force while it is allocated."""
        kept = before.identity if before is not None else IdentityId(0)
        return Endpoint(
            attachment=attachment,
            labels=labels,
            identity=kept,
            named_ports=ports,
            state=EndpointState.WAITING_FOR_IDENTITY,
        )

    def _after_grace(
        self, identifier: EndpointId, before: Endpoint | None, fresh: Identity, now: float
    ) -> Identity:
        old = before.identity if before is not None else IdentityId(0)
        if old in (0, INIT, fresh.id) or not self._grace:
            self._changing.pop(identifier, None)
            return fresh
        target, due = self._changing.get(identifier, (IdentityId(0), 0.0))
        if target != fresh.id:
            due = now + self._grace
            self._changing[identifier] = (fresh.id, due)
        known = self._inputs.cluster_identities.get(old)
        if due <= now or known is None:
            del self._changing[identifier]
            return fresh
        return known

    def _lookup(self, labels: Labels) -> Identity | None:
        """The lowest number that stands for exactly these labels (two nodes may have made one each)."""
        rows = self._inputs.cluster_identities.by("labels", labels)
        return min(rows, key=lambda row: row.id, default=None)


class EntryNode:
    """endpoints + subjects -> endpoint_entries: what the kernel is told, once there is a policy for it.

    An endpoint without identity or without a resolved subject gets no entry: nobody reaches it.
    """

    def __init__(self, desired: Desired) -> None:
        self._desired = desired
        self._endpoints = desired.endpoints.cursor()
        self._subjects = desired.subjects.cursor()
        self._by_identity: dict[IdentityId, SubjectId] = {}

    def step(self) -> None:
        """Recompute the entries that changed endpoints or subjects touch."""
        touched: dict[EndpointId, None] = {}
        put, deleted = self._subjects.take()
        if put or deleted:
            self._by_identity = {row.identity: row.subject for row in self._desired.subjects}
            for row in put:
                touched.update(
                    dict.fromkeys(e.id for e in self._desired.endpoints.by("identity", row.identity))
                )
            if deleted:
                touched.update(dict.fromkeys(endpoint.id for endpoint in self._desired.endpoints))
        endpoints, gone = self._endpoints.take()
        touched.update(dict.fromkeys([*(endpoint.id for endpoint in endpoints), *gone]))
        for identifier in touched:
            entry = self._entry(self._desired.endpoints.get(identifier))
            if entry is None:
                self._desired.endpoint_entries.delete(identifier)
            else:
                self._desired.endpoint_entries.put(entry)

    def _entry(self, endpoint: Endpoint | None) -> EndpointEntry | None:
        if endpoint is None or not endpoint.identity:
            return None
        subject = self._by_identity.get(endpoint.identity)
        if subject is None:
            return None
        attachment = endpoint.attachment
        return EndpointEntry(
            id=attachment.id,
            ifindex=attachment.ifindex,
            identity=endpoint.identity,
            subject=subject,
            mac=attachment.mac,
            host_mac=attachment.host_mac,
            ipv4=attachment.ipv4,
            ipv6=attachment.ipv6,
        )

"""Local endpoints: from an attachment and its pod to an identity, a state and a kernel entry."""

from __future__ import annotations

from collections.abc import Iterable

from cilia.model.endpoint import HOST_ENDPOINT, Attachment, Endpoint, EndpointEntry, EndpointState, NamedPort
from cilia.model.identity import HOST, INIT, Identity
from cilia.model.ids import EndpointId, IdentityId, SubjectId
from cilia.model.labels import Labels
from cilia.model.node import Node
from cilia.model.policy import SubjectKey, SubjectPolicy
from cilia.schema import Desired, Inputs, PodRow

AUDIT = "policy.cilia.io/audit"
"""Annotation of a pod or a namespace: "true" means that denials are noted, not enforced."""
HOST_FLAG = 1
"""ENDPOINT_HOST of bpf/abi/endpoint.h."""
DEFAULTS = 2
"""Entries of a subject without rules: one verdict for each direction."""


class EndpointNode:
    """attachments + pods + namespaces + options + identities -> endpoints, and the identities they lack.

    The host is one of them, by what its node knows of itself and the labels of its identity.

    An endpoint whose labels change keeps its old identity for `grace` seconds, so that the other nodes
    know the new one before packets carry it.
    """

    def __init__(
        self,
        inputs: Inputs,
        desired: Desired,
        *,
        cluster: str = "default",
        grace: float = 0.0,
        own: Node | None = None,
    ) -> None:
        """`own`: this node, whose host is an endpoint; None: the host is none."""
        self._inputs = inputs
        self._desired = desired
        self._cluster = cluster
        self._grace = grace
        self._attachments = inputs.attachments.cursor()
        self._pods = inputs.pods.cursor()
        self._namespaces = inputs.namespaces.cursor()
        self._options = inputs.endpoint_options.cursor()
        self._host = _host_attachment(own) if own is not None else None
        self._identities = inputs.cluster_identities.cursor()
        self._changing: dict[EndpointId, tuple[IdentityId, float]] = {}
        self.wanted: dict[Labels, None] = {}
        """Label sets that local endpoints have and no identity stands for yet."""

    def step(self, now: float) -> None:
        """Recompute what the changes since the last step touch. `now`: monotonic seconds."""
        self._step_host()
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

    def _step_host(self) -> None:
        """The host's labels are those of its identity, which follow its node's."""
        identity = self._desired.identities.get(HOST)
        if self._host is None or identity is None:
            return
        self._desired.endpoints.put(
            Endpoint(
                attachment=self._host,
                labels=identity.labels,
                identity=HOST,
                audit=self._audit(HOST_ENDPOINT),
                state=EndpointState.READY,
            )
        )

    def _audit(self, identifier: EndpointId, namespace: str = "") -> bool:
        """The live switch says it, else the namespace; never the pod, which must not disarm what binds it."""
        options = self._inputs.endpoint_options.get(identifier)
        if options is not None and options.audit is not None:
            return options.audit
        row = self._inputs.namespaces.get(namespace)
        return row is not None and row.annotations.get(AUDIT) == "true"

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
        options, unset = self._options.take()
        touched.update(dict.fromkeys([*(row.endpoint for row in options), *unset]))
        touched.update(dict.fromkeys(key for key, (_, due) in self._changing.items() if due <= now))
        touched.pop(HOST_ENDPOINT, None)
        return touched

    def _endpoint(self, attachment: Attachment, now: float) -> Endpoint:
        pod = self._inputs.pods.get((attachment.namespace, attachment.pod)) if attachment.pod else None
        if pod is None:
            return self._without_pod(attachment)
        labels = self.labels_of(attachment.namespace, pod)
        identity = self._lookup(labels)
        before = self._desired.endpoints.get(attachment.id)
        ports = tuple(sorted(pod.named_ports))
        audit = self._audit(attachment.id, attachment.namespace)
        if identity is None:
            return self._without_identity(attachment, labels, ports, audit, before)
        identity = self._after_grace(attachment.id, before, identity, now)
        if identity.labels != labels:
            labels = identity.labels
        return Endpoint(
            attachment=attachment,
            labels=labels,
            identity=identity.id,
            named_ports=ports,
            audit=audit,
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
                audit=self._audit(attachment.id),
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
        audit: bool,
        before: Endpoint | None,
    ) -> Endpoint:
        """The label set has no number yet: the old one stays in force while it is allocated."""
        kept = before.identity if before is not None else IdentityId(0)
        return Endpoint(
            attachment=attachment,
            labels=labels,
            identity=kept,
            named_ports=ports,
            audit=audit,
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


def _host_attachment(own: Node) -> Attachment:
    """The host is attached to nothing; its first addresses stand for all it has."""
    addresses = (*own.addresses, *own.router_addresses)
    return Attachment(
        id=HOST_ENDPOINT,
        container_id="",
        interface="",
        netns="",
        host_interface="",
        ifindex=0,
        mac="",
        host_mac="",
        ipv4=next((address for address in addresses if ":" not in address), ""),
        ipv6=next((address for address in addresses if ":" in address), ""),
    )


class EntryNode:
    """endpoints + subjects -> endpoint_entries: what the kernel is told, once there is a policy for it.

    An endpoint without identity or without a resolved subject gets no entry: nobody reaches it. The host is
    reached all the same; its policy is asked when the firewall of hosts is on and some rule is about it.
    """

    def __init__(self, desired: Desired, *, host_firewall: bool = False) -> None:
        self._desired = desired
        self._host_firewall = host_firewall
        self._endpoints = desired.endpoints.cursor()
        self._subjects = desired.subjects.cursor()
        self._by_key: dict[SubjectKey, SubjectId] = {}

    def step(self) -> None:
        """Recompute the entries that changed endpoints or subjects touch."""
        touched: dict[EndpointId, None] = {}
        put, deleted = self._subjects.take()
        if put or deleted:
            self._by_key = {row.key: row.subject for row in self._desired.subjects}
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
        key = SubjectKey(endpoint.identity, endpoint.named_ports, endpoint.audit)
        subject = self._by_key.get(key)
        if subject is None:
            return None
        attachment = endpoint.attachment
        is_host = endpoint.id == HOST_ENDPOINT
        return EndpointEntry(
            id=attachment.id,
            ifindex=attachment.ifindex,
            identity=endpoint.identity,
            subject=subject,
            mac=attachment.mac,
            host_mac=attachment.host_mac,
            ipv4=attachment.ipv4,
            ipv6=attachment.ipv6,
            flags=HOST_FLAG if is_host else 0,
            judged=not is_host or self._is_host_judged(self._desired.subjects.get(subject)),
        )

    def _is_host_judged(self, policy: SubjectPolicy | None) -> bool:
        if policy is None or not self._host_firewall:
            return False
        entries = policy.entries
        return len(entries) > DEFAULTS or not all(entry.allow for entry in entries.values())

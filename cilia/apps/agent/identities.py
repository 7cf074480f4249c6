"""Numbers for label sets: CiliumIdentities made when none is there."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from cilia.apps.agent.persist import each
from cilia.cluster import store as cluster
from cilia.cluster.store import Store
from cilia.model.identity import CLUSTER_FIRST, CLUSTER_LAST, Identity
from cilia.model.ids import IdentityId
from cilia.model.labels import NAMESPACE, Labels
from cilia.model.resources.base import ObjectMeta
from cilia.model.resources.cilium_identity import CiliumIdentity
from cilia.schema import Inputs, PodRow


class IdentityAllocator:
    """Gives a label set a cluster-wide number by creating its CiliumIdentity.

    Numbers are tried from a start that depends on the labels, so that two nodes rarely race for one, and
    a name that exists for other labels is passed over. Should two nodes give one label set a number each
    after all, both are right: selection goes by labels.
    """

    def __init__(self, store: Store, inputs: Inputs) -> None:
        self._store = store
        self._inputs = inputs
        self._running: dict[Labels, asyncio.Future[IdentityId]] = {}

    async def allocate(self, labels: Labels) -> IdentityId:
        """Return the number of a label set, creating it when there is none. Raises StoreError."""
        rows = self._inputs.cluster_identities.by("labels", labels)
        if rows:
            return min(row.id for row in rows)
        running = self._running.get(labels)
        if running is None:
            running = asyncio.ensure_future(self._create(labels))
            self._running[labels] = running
            running.add_done_callback(lambda _: self._running.pop(labels, None))
        return await asyncio.shield(running)

    async def _create(self, labels: Labels) -> IdentityId:
        span = CLUSTER_LAST - CLUSTER_FIRST + 1
        start = hash_of(labels) % span
        for offset in range(span):
            number = IdentityId(CLUSTER_FIRST + (start + offset) % span)
            if number in self._inputs.cluster_identities:
                continue
            try:
                await self._store.create(cluster.CILIUM_IDENTITIES, identity_object(number, labels))
            except cluster.AlreadyExists:
                if not await self._stands_for(number, labels):
                    continue
            # The watch will say so too; the caller need not wait for it.
            self._inputs.cluster_identities.put(Identity(number, labels))
            return number
        raise cluster.Unavailable(f"all {span} identity numbers of the cluster are taken")

    async def _stands_for(self, number: IdentityId, labels: Labels) -> bool:
        """Whether another node gave the number to just these labels a moment ago."""
        try:
            raw = await self._store.get(cluster.CILIUM_IDENTITIES, str(number))
        except cluster.NotFound:
            return False
        held = cluster.decode(raw, CiliumIdentity).security_labels
        return Labels.from_security_labels(held) == labels


class PodIdentities:
    """Has a number made for the labels of every pod that is bound to this node, so that its ADD, which comes
    a moment later, need not wait for the store. A number nobody comes to use is the operator's garbage.
    """

    def __init__(
        self, inputs: Inputs, labels_of: Callable[[str, PodRow], Labels], identities: IdentityAllocator
    ) -> None:
        self._inputs = inputs
        self._labels_of = labels_of
        self._identities = identities
        self._pods = inputs.pods.cursor()

    @property
    def pending(self) -> bool:
        """Whether there are pods to look at."""
        return self._pods.pending

    async def allocate(self) -> None:
        """See to all pods that came or changed. Raises StoreError; those it failed for stay pending."""
        rows, _ = self._pods.take()
        await each([row for row in rows if self._foreseen(row)], self._allocate, self._retry)

    def _foreseen(self, pod: PodRow) -> bool:
        """Whether the identity is certain: the namespace's labels are part of it."""
        return not pod.host_network and pod.namespace in self._inputs.namespaces

    async def _allocate(self, pod: PodRow) -> None:
        await self._identities.allocate(self._labels_of(pod.namespace, pod))

    def _retry(self, pod: PodRow) -> None:
        self._pods.mark((pod.namespace, pod.name))


def hash_of(labels: Labels) -> int:
    """A number that depends on the labels only (FNV-1a, 64 bits)."""
    value = 0xCBF29CE484222325
    for byte in "\n".join(labels.strings()).encode():
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def identity_object(number: IdentityId, labels: Labels) -> bytes:
    """The CiliumIdentity of a number, as JSON."""
    security = labels.security_labels()
    plain = {label.key: label.value for label in labels.items if label.source == "k8s"}
    body = CiliumIdentity(
        metadata=ObjectMeta(
            name=str(number),
            labels={key: value for key, value in plain.items() if key == NAMESPACE or _is_label(key, value)},
        ),
        security_labels=security,
    )
    return cluster.encode(cluster.CILIUM_IDENTITIES, body)


def _is_label(key: str, value: str) -> bool:
    """Whether a pair is a valid Kubernetes label (prefixed namespace labels can be too long)."""
    name = key.rpartition("/")[2]
    return len(name) <= 63 and len(value) <= 63 and key.count("/") <= 1

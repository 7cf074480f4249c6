"""Numbers for label sets."""

from __future__ import annotations

import asyncio

import pytest

from cilia.apps.agent.identities import IdentityAllocator, PodIdentities, hash_of, identity_object
from cilia.cluster import store as cluster
from cilia.model.identity import CLUSTER_FIRST, CLUSTER_LAST, Identity
from cilia.model.ids import IdentityId
from cilia.model.labels import Labels
from cilia.model.resources.cilium_identity import CiliumIdentity
from cilia.schema import Inputs, NamespaceRow, PodRow
from tests.support.memory_store import MemoryStore

WEB = Labels.kubernetes("demo", {"app": "web"})
DB = Labels.kubernetes("demo", {"app": "db"})


def test_a_number_is_made_once_however_many_ask() -> None:
    async def play() -> None:
        store, inputs = MemoryStore(), Inputs()
        allocator = IdentityAllocator(store, inputs)
        numbers = await asyncio.gather(*(allocator.allocate(WEB) for _ in range(20)))
        assert len(set(numbers)) == 1
        assert CLUSTER_FIRST <= numbers[0] <= CLUSTER_LAST
        assert store.names(cluster.CILIUM_IDENTITIES) == [str(numbers[0])]
        assert await allocator.allocate(DB) != numbers[0]

    asyncio.run(play())


def test_a_number_that_is_taken_is_passed_over() -> None:
    async def play() -> None:
        store, inputs = MemoryStore(), Inputs()
        first = IdentityId(CLUSTER_FIRST + hash_of(WEB) % (CLUSTER_LAST - CLUSTER_FIRST + 1))
        await store.create(cluster.CILIUM_IDENTITIES, identity_object(first, DB))
        assert await IdentityAllocator(store, inputs).allocate(WEB) == first + 1

    asyncio.run(play())


def test_two_nodes_that_race_agree_on_one_number() -> None:
    async def play() -> None:
        store = MemoryStore()
        one, two = IdentityAllocator(store, Inputs()), IdentityAllocator(store, Inputs())
        numbers = await asyncio.gather(one.allocate(WEB), two.allocate(WEB))
        assert numbers[0] == numbers[1]
        assert len(store.names(cluster.CILIUM_IDENTITIES)) == 1

    asyncio.run(play())


def test_the_lowest_of_two_numbers_for_one_label_set_is_used() -> None:
    async def play() -> None:
        inputs = Inputs()
        inputs.cluster_identities.put(Identity(IdentityId(500), WEB))
        inputs.cluster_identities.put(Identity(IdentityId(400), WEB))
        assert await IdentityAllocator(MemoryStore(), inputs).allocate(WEB) == 400

    asyncio.run(play())


def test_pods_that_will_come_have_their_number_made() -> None:
    async def play() -> None:
        store, inputs = MemoryStore(), Inputs()
        upcoming = PodIdentities(inputs, labels_of, IdentityAllocator(store, inputs))
        inputs.namespaces.put(NamespaceRow(name="demo"))
        inputs.pods.put(PodRow(namespace="demo", name="web-1", labels={"app": "web"}))
        inputs.pods.put(PodRow(namespace="demo", name="web-2", labels={"app": "web"}))
        inputs.pods.put(PodRow(namespace="demo", name="agent", labels={"app": "agent"}, host_network=True))
        inputs.pods.put(PodRow(namespace="unheard", name="db-1", labels={"app": "db"}))
        await upcoming.allocate()
        assert {row.labels for row in inputs.cluster_identities} == {WEB}
        assert not upcoming.pending

    asyncio.run(play())


def test_a_pod_whose_number_the_store_refuses_is_not_forgotten() -> None:
    async def play() -> None:
        store, inputs = MemoryStore(), Inputs()
        upcoming = PodIdentities(inputs, labels_of, IdentityAllocator(store, inputs))
        inputs.namespaces.put(NamespaceRow(name="demo"))
        inputs.pods.put(PodRow(namespace="demo", name="web-1", labels={"app": "web"}))
        store.down = cluster.Unavailable("away")
        with pytest.raises(cluster.Unavailable):
            await upcoming.allocate()
        assert upcoming.pending
        store.down = None
        await upcoming.allocate()
        assert len(store.names(cluster.CILIUM_IDENTITIES)) == 1

    asyncio.run(play())


def labels_of(namespace: str, pod: PodRow) -> Labels:
    return Labels.kubernetes(namespace, pod.labels)


def test_an_identity_object_reads_back_as_its_labels() -> None:
    found = cluster.decode(identity_object(IdentityId(300), WEB), CiliumIdentity)
    assert found.metadata.name == "300"
    assert Labels.from_security_labels(found.security_labels) == WEB

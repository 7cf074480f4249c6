"""What the agent tells the cluster, and how it gives numbers to label sets."""

from __future__ import annotations

import asyncio

import pytest

from cilia.apps.agent.publish import (
    EndpointPublisher,
    IdentityAllocator,
    PodIdentities,
    StatusPublisher,
    condition_message,
    hash_of,
    identity_object,
    persist,
)
from cilia.cluster import store as cluster
from cilia.kit.clock import ManualClock
from cilia.model.endpoint import Attachment, Endpoint, EndpointState
from cilia.model.identity import CLUSTER_FIRST, CLUSTER_LAST, Identity
from cilia.model.ids import EndpointId, IdentityId
from cilia.model.labels import Labels
from cilia.model.policy import PolicyProblem, PolicyState
from cilia.model.resources.cilium_identity import CiliumIdentity
from cilia.schema import Desired, Inputs, NamespaceRow, PodRow
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


def test_an_endpoint_is_published_changed_and_taken_back() -> None:
    async def play() -> None:
        store, desired = MemoryStore(), Desired()
        publisher = EndpointPublisher(store, desired, lambda: "192.0.2.1")
        desired.endpoints.put(endpoint(EndpointState.READY))
        await publisher.publish(EndpointId(5))
        desired.endpoints.put(endpoint(EndpointState.REGENERATING))
        await publisher.publish(EndpointId(5))
        assert store.fields(cluster.CILIUM_ENDPOINTS, "web-1", "demo")["status"]["state"] == "regenerating"
        desired.endpoints.delete(EndpointId(5))
        await publisher.publish(EndpointId(5))
        assert store.names(cluster.CILIUM_ENDPOINTS) == []

    asyncio.run(play())


def test_an_endpoint_that_others_made_or_changed_is_written_over() -> None:
    async def play() -> None:
        store, desired = MemoryStore(), Desired()
        foreign = {"metadata": {"name": "web-1", "namespace": "demo"}, "status": {"id": 77}}
        await store.put(cluster.CILIUM_ENDPOINTS, foreign)
        publisher = EndpointPublisher(store, desired, lambda: "192.0.2.1")
        desired.endpoints.put(endpoint(EndpointState.READY))
        await publisher.publish(EndpointId(5))
        assert store.fields(cluster.CILIUM_ENDPOINTS, "web-1", "demo")["status"]["id"] == 5
        await store.put(cluster.CILIUM_ENDPOINTS, foreign)
        desired.endpoints.put(endpoint(EndpointState.REGENERATING))
        await publisher.publish(EndpointId(5))
        assert store.fields(cluster.CILIUM_ENDPOINTS, "web-1", "demo")["status"]["id"] == 5

    asyncio.run(play())


def test_a_restarted_agent_leaves_alone_what_is_as_it_should_be() -> None:
    async def play() -> None:
        store, desired = MemoryStore(), Desired()
        desired.endpoints.put(endpoint(EndpointState.READY))
        await EndpointPublisher(store, desired, lambda: "192.0.2.1").publish(EndpointId(5))
        again = EndpointPublisher(store, desired, lambda: "192.0.2.1")
        await again.publish(EndpointId(5))
        assert store.writes == [("create", "ciliumendpoints", "web-1")]
        desired.endpoints.put(endpoint(EndpointState.REGENERATING))
        await again.publish(EndpointId(5))
        assert store.writes[-1] == ("replace", "ciliumendpoints", "web-1")

    asyncio.run(play())


def test_an_endpoint_that_others_removed_is_made_again() -> None:
    async def play() -> None:
        store, desired = MemoryStore(), Desired()
        publisher = EndpointPublisher(store, desired, lambda: "192.0.2.1")
        desired.endpoints.put(endpoint(EndpointState.READY))
        await publisher.publish(EndpointId(5))
        await store.delete(cluster.CILIUM_ENDPOINTS, "web-1", namespace="demo")
        desired.endpoints.put(endpoint(EndpointState.REGENERATING))
        await publisher.publish(EndpointId(5))
        assert store.names(cluster.CILIUM_ENDPOINTS) == ["web-1"]

    asyncio.run(play())


def endpoint(state: EndpointState) -> Endpoint:
    attachment = Attachment(
        id=EndpointId(5),
        container_id="c5",
        interface="eth0",
        netns="/run/netns/web-1",
        host_interface="lxc5",
        ifindex=7,
        mac="02:00:00:00:00:05",
        host_mac="02:00:00:00:00:06",
        ipv4="10.0.0.5",
        namespace="demo",
        pod="web-1",
        pod_uid="u1",
    )
    return Endpoint(attachment=attachment, identity=IdentityId(300), labels=WEB, state=state)


def test_a_policy_condition_names_the_fields_at_fault() -> None:
    state = PolicyState(
        kind="CiliumNetworkPolicy",
        namespace="demo",
        name="web",
        resource_version="1",
        generation=1,
        valid=False,
        problems=(PolicyProblem("spec.ingress[0]", "no."), PolicyProblem("spec.egress[1]", "neither.")),
    )
    assert condition_message(state) == "spec.ingress[0]: no.; spec.egress[1]: neither."


def test_a_status_is_written_where_the_policy_is() -> None:
    async def play() -> None:
        store, desired = MemoryStore(), Desired()
        await store.put(
            cluster.CILIUM_NETWORK_POLICIES, {"metadata": {"name": "web", "namespace": "demo"}, "spec": {}}
        )
        publisher = StatusPublisher(store, Inputs(), desired, ManualClock())
        desired.policy_states.put(
            PolicyState(
                kind="CiliumNetworkPolicy",
                namespace="demo",
                name="web",
                resource_version="1",
                generation=1,
                valid=True,
            )
        )
        await publisher.publish()
        status = store.fields(cluster.CILIUM_NETWORK_POLICIES, "web", "demo")["status"]
        assert status["conditions"][0]["status"] == "True"
        assert not publisher.pending

    asyncio.run(play())


def test_work_the_store_refuses_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    async def play() -> None:
        attempts = 0
        done = asyncio.Event()

        async def work() -> None:
            nonlocal attempts
            attempts += 1
            if attempts < 3:
                raise cluster.Unavailable("not now")
            done.set()

        wake = asyncio.Event()
        wake.set()
        running = asyncio.ensure_future(persist("things", wake, work))
        await asyncio.wait_for(done.wait(), 5)
        running.cancel()
        assert attempts == 3

    asyncio.run(play())

"""What the agent tells the cluster."""

from __future__ import annotations

import asyncio

import pytest

from cilia.apps.agent.persist import persist
from cilia.apps.agent.publish import EndpointPublisher
from cilia.cluster import store as cluster
from cilia.model.endpoint import Attachment, Endpoint, EndpointState
from cilia.model.ids import EndpointId, IdentityId
from cilia.model.labels import Labels
from cilia.schema import Desired
from tests.support.memory_store import MemoryStore

WEB = Labels.kubernetes("demo", {"app": "web"})
DB = Labels.kubernetes("demo", {"app": "db"})


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
        await asyncio.wait_for(done.wait(), 30)
        running.cancel()
        assert attempts == 3

    asyncio.run(play())

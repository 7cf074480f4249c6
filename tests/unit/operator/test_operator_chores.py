"""Definitions, node prefixes and garbage: decided purely, carried out against a store."""

import asyncio
import ipaddress
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from cilia.cluster import store as cluster
from cilia.cluster.store import CILIUM_ENDPOINTS, CILIUM_IDENTITIES, CILIUM_NODES, CRDS, PODS, Resource
from cilia.control.ipam import NodePool, NodePools
from cilia.kit.clock import ManualClock
from cilia.kit.tasks import TaskGroup
from cilia.model.resources import crd
from cilia.model.resources.base import ObjectMeta
from cilia.operator import crds
from cilia.operator.garbage import GarbageCollector, sweeps
from cilia.operator.metrics import Metrics
from cilia.operator.nodes import NodeAllocator
from cilia.operator.settings import GarbageSettings
from tests.support.memory_store import MemoryStore
from tests.support.waiting import until_async


def run(story: Callable[[MemoryStore], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            await story(MemoryStore())

    asyncio.run(main())


def node(name: str, ip: str = "", cidrs: list[str] | None = None) -> dict[str, Any]:
    addresses = [{"type": "InternalIP", "ip": ip}] if ip else []
    return {"metadata": {"name": name}, "spec": {"addresses": addresses, "ipam": {"podCIDRs": cidrs or []}}}


def pools(*texts: str) -> NodePools:
    return NodePools([NodePool(ipaddress.ip_network(text), 24 if "." in text else 120) for text in texts])


def cidrs(memory: MemoryStore, name: str) -> list[str]:
    found: list[str] = memory.fields(CILIUM_NODES, name)["spec"]["ipam"]["podCIDRs"]
    return found


def error(memory: MemoryStore, name: str) -> str | None:
    status = memory.fields(CILIUM_NODES, name).get("status", {})
    found: str | None = status.get("ipam", {}).get("operator-status", {}).get("error")
    return found


def supplied(
    memory: MemoryStore, node_pools: NodePools, story: Callable[[], Awaitable[None]]
) -> Awaitable[None]:
    async def main() -> None:
        async with TaskGroup() as tasks:
            tasks.spawn("nodes", NodeAllocator(memory, node_pools, Metrics()).run())
            await story()

    return main()


def test_nodes_get_prefixes_as_they_come() -> None:
    async def scenario(memory: MemoryStore) -> None:
        await memory.put(CILIUM_NODES, node("old", cidrs=["10.0.0.0/24", "fd00::/120"]))

        async def story() -> None:
            await memory.put(CILIUM_NODES, node("new"))
            await until_async(lambda: cidrs(memory, "new") == ["10.0.1.0/24", "fd00::100/120"])

        await supplied(memory, pools("10.0.0.0/16", "fd00::/104"), story)
        assert memory.writes == [("patch", "ciliumnodes", "new")]

    run(scenario)


def test_a_full_pool_is_told_and_the_error_cleared_when_there_is_room() -> None:
    async def scenario(memory: MemoryStore) -> None:
        await memory.put(CILIUM_NODES, node("a", cidrs=["10.0.0.0/24"]))
        await memory.put(CILIUM_NODES, node("b"))

        async def story() -> None:
            await until_async(lambda: error(memory, "b") is not None)
            assert "append another cluster pool" in str(error(memory, "b"))
            assert cidrs(memory, "b") == []
            await memory.delete(CILIUM_NODES, "a")
            await until_async(lambda: cidrs(memory, "b") == ["10.0.0.0/24"] and error(memory, "b") is None)

        await supplied(memory, pools("10.0.0.0/24"), story)

    run(scenario)


def test_an_absent_store_delays_but_does_not_lose() -> None:
    async def scenario(memory: MemoryStore) -> None:
        memory.down = cluster.Unavailable("away")

        async def story() -> None:
            await asyncio.sleep(0.01)
            memory.down = None
            await memory.put(CILIUM_NODES, node("a"))
            await until_async(lambda: cidrs(memory, "a") == ["10.0.0.0/24"])

        await supplied(memory, pools("10.0.0.0/24"), story)

    run(scenario)


class Establishing(MemoryStore):
    """Establishes definitions as an API server does."""

    async def create(self, resource: Resource, body: bytes, *, namespace: str | None = None) -> bytes:
        answer = await super().create(resource, body, namespace=namespace)
        status = b'{"status": {"conditions": [{"type": "Established", "status": "True"}]}}'
        name = self.names(resource)[-1]
        for name in self.names(resource):
            await self.patch(resource, name, status, subresource="status")
        return answer


def test_definitions_are_created_upgraded_and_never_downgraded() -> None:
    async def main() -> None:
        memory = Establishing()
        await crds.install(memory)
        assert memory.names(CRDS) == sorted(definition.name for definition in crd.DEFINITIONS)
        memory.writes.clear()
        await crds.install(memory)
        assert memory.writes == []
        first, second, *_ = (definition.name for definition in crd.DEFINITIONS)
        for name, version in ((first, "0.9"), (second, "99.0.0")):
            metadata = {
                "labels": {crd.SCHEMA_VERSION_LABEL: version},
                "annotations": {crd.DIGEST_ANNOTATION: "another"},
            }
            change = {"metadata": metadata, "spec": {"versions": []}}
            await memory.patch(CRDS, name, json.dumps(change).encode())
        memory.writes.clear()
        await crds.install(memory)
        assert memory.writes == [("patch", "customresourcedefinitions", first)]
        assert memory.fields(CRDS, first)["spec"]["versions"]

    asyncio.run(main())


def test_a_definition_that_somebody_else_made_of_a_kind_not_ours_is_left_alone() -> None:
    async def main() -> None:
        memory = Establishing()
        (other,) = (definition for definition in crd.DEFINITIONS if definition.group != crd.OWN_GROUP)
        theirs = {"metadata": {"name": other.name}, "spec": {"group": other.group, "versions": []}}
        await memory.create(CRDS, json.dumps(theirs).encode())
        await crds.install(memory)
        assert memory.fields(CRDS, other.name)["spec"] == theirs["spec"]

    asyncio.run(main())


@pytest.mark.parametrize(("text", "version"), [("1.2.10", (1, 2, 10)), ("", ()), ("x.1", ())])
def test_schema_versions(text: str, version: tuple[int, ...]) -> None:
    assert crds.version({crd.SCHEMA_VERSION_LABEL: text}) == version


def endpoint(name: str, node_ip: str, identity: int = 300, uid: str = "") -> dict[str, Any]:
    owners = [{"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}] if uid else []
    return {
        "metadata": {"name": name, "namespace": "n", "ownerReferences": owners},
        "status": {"identity": {"id": identity}, "networking": {"node": node_ip, "addressing": []}},
    }


def pod(name: str, uid: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "namespace": "n", "uid": uid}}


def collector(memory: MemoryStore, clock: ManualClock | None = None, **settings: Any) -> GarbageCollector:
    return GarbageCollector(memory, GarbageSettings(**settings), clock or ManualClock(), Metrics())


def test_endpoints_without_pod_or_node_go() -> None:
    async def story(memory: MemoryStore) -> None:
        await memory.put(CILIUM_NODES, node("n1", "10.1.0.1"))
        for name, address, uid in (
            ("stays", "10.1.0.1", "u1"),
            ("unowned", "10.1.0.1", ""),
            ("no-pod", "10.1.0.1", "u2"),
            ("other-pod", "10.1.0.1", "u3"),
            ("no-node", "10.1.0.9", "u4"),
        ):
            await memory.put(CILIUM_ENDPOINTS, endpoint(name, address, uid=uid))
        for name, uid in (("stays", "u1"), ("unowned", "u5"), ("other-pod", "u9"), ("no-node", "u4")):
            await memory.put(PODS, pod(name, uid))
        await collector(memory).collect_endpoints()
        assert memory.names(CILIUM_ENDPOINTS) == ["stays", "unowned"]

    run(story)


def test_what_a_node_that_is_gone_said_of_a_policy_goes_and_the_rest_stays() -> None:
    async def story(memory: MemoryStore) -> None:
        await memory.put(CILIUM_NODES, node("n1"))
        words = {"n1": {"ok": True}, "n2": {"ok": True}}
        for name, nodes in (("some", words), ("none", {})):
            policy = {
                "metadata": {"name": name, "namespace": "demo"},
                "status": {"nodes": nodes, "conditions": [{"type": "Valid", "status": "True"}]},
            }
            await memory.put(cluster.CILIUM_NETWORK_POLICIES, policy)
        await collector(memory).collect_words()
        status = memory.fields(cluster.CILIUM_NETWORK_POLICIES, "some", "demo")["status"]
        assert set(status["nodes"]) == {"n1"}
        assert status["conditions"][0]["type"] == "Valid"
        assert [write[0] for write in memory.writes] == ["patch"]

    run(story)


def test_one_policy_that_may_not_be_written_does_not_hold_up_the_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def story(memory: MemoryStore) -> None:
        await memory.put(CILIUM_NODES, node("n1"))
        for name in ("a-refused", "b"):
            status = {"nodes": {"n2": {"ok": True}}}
            await memory.put(
                cluster.CILIUM_NETWORK_POLICIES,
                {"metadata": {"name": name, "namespace": "demo"}, "status": status},
            )
        patch = memory.patch

        async def refusing(resource: Any, name: str, *args: Any, **kwargs: Any) -> Any:
            if name == "a-refused":
                raise cluster.Invalid("a webhook says no")
            return await patch(resource, name, *args, **kwargs)

        monkeypatch.setattr(memory, "patch", refusing)
        await collector(memory).collect_words()
        left = memory.fields(cluster.CILIUM_NETWORK_POLICIES, "b", "demo")["status"]["nodes"]
        assert left == {}

    run(story)


def test_one_look_deletes_only_so_many() -> None:
    async def story(memory: MemoryStore) -> None:
        for index in range(5):
            await memory.put(CILIUM_ENDPOINTS, endpoint(f"e{index}", "10.1.0.1"))
        await collector(memory, limit=2).collect_endpoints()
        assert len(memory.names(CILIUM_ENDPOINTS)) == 3

    run(story)


def test_an_unused_identity_is_marked_then_deleted_and_a_used_one_kept() -> None:
    async def story(memory: MemoryStore) -> None:
        clock = ManualClock()
        for name in ("300", "301"):
            await memory.put(CILIUM_IDENTITIES, {"metadata": {"name": name}, "security-labels": {}})
        await memory.put(CILIUM_ENDPOINTS, endpoint("e", "10.1.0.1", 300))
        garbage = collector(memory, clock, identity_timeout=1800)
        await garbage.collect_identities()
        mark = memory.fields(CILIUM_IDENTITIES, "301")["metadata"]["annotations"]["io.cilium.heartbeat"]
        assert mark == "2023-11-14T22:13:20Z"
        assert "annotations" not in memory.fields(CILIUM_IDENTITIES, "300")["metadata"]
        clock.advance(1799)
        await garbage.collect_identities()
        assert memory.names(CILIUM_IDENTITIES) == ["300", "301"]
        clock.advance(1)
        await garbage.collect_identities()
        assert memory.names(CILIUM_IDENTITIES) == ["300"]

    run(story)


def test_an_identity_in_use_again_loses_its_mark() -> None:
    async def story(memory: MemoryStore) -> None:
        clock = ManualClock()
        await memory.put(CILIUM_IDENTITIES, {"metadata": {"name": "300"}, "security-labels": {}})
        garbage = collector(memory, clock)
        await garbage.collect_identities()
        await memory.put(CILIUM_ENDPOINTS, endpoint("e", "10.1.0.1", 300))
        clock.advance(7200)
        await garbage.collect_identities()
        assert memory.fields(CILIUM_IDENTITIES, "300")["metadata"]["annotations"] == {}
        await memory.delete(CILIUM_ENDPOINTS, "e", namespace="n")
        await garbage.collect_identities()
        assert memory.names(CILIUM_IDENTITIES) == ["300"], "the time starts anew"

    run(story)


def test_an_endpoint_nobody_understands_ends_the_look() -> None:
    async def story(memory: MemoryStore) -> None:
        old = {"name": "300", "annotations": {"io.cilium.heartbeat": "2000-01-01T00:00:00Z"}}
        await memory.put(CILIUM_IDENTITIES, {"metadata": old, "security-labels": {}})
        await memory.put(CILIUM_ENDPOINTS, {"metadata": {"name": "e"}, "status": {"identity": {"id": "x"}}})
        with pytest.raises(cluster.Invalid):
            await collector(memory).collect_identities()
        assert memory.names(CILIUM_IDENTITIES) == ["300"]

    run(story)


def test_who_takes_an_identity_into_use_meanwhile_keeps_it() -> None:
    class Racing(MemoryStore):
        async def delete(self, resource: Resource, name: str, **options: Any) -> None:
            await self.patch(resource, name, b'{"metadata": {"annotations": {"touched": "yes"}}}')
            await super().delete(resource, name, **options)

    async def main() -> None:
        memory = Racing()
        old = {"name": "300", "annotations": {"io.cilium.heartbeat": "2000-01-01T00:00:00Z"}}
        await memory.put(CILIUM_IDENTITIES, {"metadata": old, "security-labels": {}})
        await collector(memory).collect_identities()
        assert memory.names(CILIUM_IDENTITIES) == ["300"]

    asyncio.run(main())


@pytest.mark.parametrize("mark", ["", "soon", "2000-01-01T00:00:00"])
def test_a_strange_mark_is_replaced(mark: str) -> None:
    meta = ObjectMeta(name="300", annotations={"io.cilium.heartbeat": mark})
    assert [sweep.action for sweep in sweeps([meta], (), 2e9, 1)] == ["mark"]

"""This node in the cluster: prefixes, addresses, and what a restart remembers."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from cilia.apps.agent.attach import PoolExhausted
from cilia.apps.agent.node import PodAddresses, Registration, own_labels
from cilia.apps.agent.runtime import address_of
from cilia.apps.agent.state import EndpointFiles, NodeFile, SavedEndpoint
from cilia.cluster import store as cluster
from cilia.kit.clock import ManualClock
from cilia.model.endpoint import Attachment
from cilia.model.ids import EndpointId
from cilia.model.node import Node
from tests.support.memory_store import MemoryStore


def attachment(ipv4: str = "10.0.1.5") -> Attachment:
    return Attachment(
        id=EndpointId(7),
        container_id="c",
        interface="eth0",
        netns="/n",
        host_interface="lxc7",
        ifindex=4,
        mac="02:00:00:00:00:01",
        host_mac="02:00:00:00:00:02",
        ipv4=ipv4,
    )


def test_both_families_or_nothing() -> None:
    addresses = PodAddresses(["10.0.1.0/30", "fd00::/120"], ManualClock())
    assert addresses.allocate("a") == ("10.0.1.2", "fd00::2")
    with pytest.raises(PoolExhausted):
        addresses.allocate("b")
    assert addresses.usage(6)[0] == 1
    addresses.release("a")
    assert addresses.usage(4)[0] == 0


def test_a_restored_address_is_not_given_out() -> None:
    addresses = PodAddresses(["10.0.1.0/29"], ManualClock())
    addresses.restore(attachment("10.0.1.2"))
    assert addresses.allocate("other") == ("10.0.1.3", "")


def test_an_address_outside_of_the_prefix_is_told_and_left_alone() -> None:
    addresses = PodAddresses(["10.0.1.0/29"], ManualClock())
    addresses.restore(attachment("10.9.9.9"))
    assert addresses.usage(4)[0] == 0


def test_the_node_waits_for_the_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cilia.apps.agent.node.POLL", 0.001)

    async def play() -> None:
        store = MemoryStore()
        registration = Registration(store, "one", ["172.18.0.2"], "boot")
        waiting = asyncio.ensure_future(registration.pod_prefixes())
        while store.names(cluster.CILIUM_NODES) != ["one"]:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await store.patch(cluster.CILIUM_NODES, "one", b'{"spec":{"ipam":{"podCIDRs":["10.0.1.0/24"]}}}')
        assert await waiting == ["10.0.1.0/24"]
        await registration.keep(["10.0.1.0/24"], ("10.0.1.1", ""), fixed=False)
        addresses = store.fields(cluster.CILIUM_NODES, "one")["spec"]["addresses"]
        assert [row["type"] for row in addresses] == ["InternalIP", "CiliumInternalIP"]

    asyncio.run(play())


def test_a_deleted_node_comes_back_with_the_prefixes_in_use() -> None:
    async def play() -> None:
        store = MemoryStore()
        await Registration(store, "one", ["172.18.0.2"], "boot").keep(["10.0.1.0/24"], (), fixed=False)
        spec = store.fields(cluster.CILIUM_NODES, "one")["spec"]
        assert spec["ipam"]["podCIDRs"] == ["10.0.1.0/24"]

    asyncio.run(play())


def test_foreign_prefixes_are_not_adopted_but_own_settings_win() -> None:
    async def play() -> None:
        store = MemoryStore()
        registration = Registration(store, "one", ["172.18.0.2"], "boot")
        await registration.keep(["10.0.1.0/24"], (), fixed=False)
        await registration.keep(["10.0.2.0/24"], (), fixed=False)
        assert store.fields(cluster.CILIUM_NODES, "one")["spec"]["ipam"]["podCIDRs"] == ["10.0.1.0/24"]
        await registration.keep(["10.0.2.0/24"], (), fixed=True)
        assert store.fields(cluster.CILIUM_NODES, "one")["spec"]["ipam"]["podCIDRs"] == ["10.0.2.0/24"]

    asyncio.run(play())


def test_endpoints_come_back_from_disk_and_garbage_is_set_aside(tmp_path: Path) -> None:
    files = EndpointFiles(tmp_path)
    files.save(SavedEndpoint(attachment=attachment(), identity=300, labels=("k8s:app=web",)))
    (tmp_path / "endpoints" / "8.json").write_bytes(b"{not json")
    (tmp_path / "endpoints" / "9.json").write_bytes(b"")
    (saved,) = EndpointFiles(tmp_path).load()
    assert saved.attachment == attachment()
    assert sorted(path.name for path in (tmp_path / "endpoints").glob("*.broken")) == [
        "8.broken",
        "9.broken",
    ]
    files.remove(EndpointId(7))
    files.remove(EndpointId(7))
    assert EndpointFiles(tmp_path).load() == []


def test_prefixes_on_disk(tmp_path: Path) -> None:
    found = NodeFile(tmp_path)
    assert found.load() == []
    found.save(["10.0.1.0/24"])
    assert NodeFile(tmp_path).load() == ["10.0.1.0/24"]
    (tmp_path / "node.json").write_bytes(b"\xff")
    assert found.load() == []


def test_the_nodes_object_has_the_labels_of_the_kubernetes_node() -> None:
    async def play() -> None:
        store = MemoryStore()
        await store.put(
            cluster.CILIUM_NODES,
            {
                "metadata": {"name": "n1", "labels": {"zone": "a", "gone": "yes"}},
                "spec": {"ipam": {"podCIDRs": ["10.0.1.0/24"]}},
            },
        )
        registration = Registration(store, "n1", ["192.0.2.1"], "boot")
        await registration.keep(["10.0.1.0/24"], [], fixed=False)
        fields = store.fields(cluster.CILIUM_NODES, "n1")
        assert fields["metadata"]["labels"] == {"zone": "a", "gone": "yes"}
        registration.labels = {"zone": "b", "new": ""}
        await registration.keep(["10.0.1.0/24"], [], fixed=False)
        fields = store.fields(cluster.CILIUM_NODES, "n1")
        assert fields["metadata"]["labels"] == {"zone": "b", "new": ""}
        writes = len(store.writes)
        await registration.keep(["10.0.1.0/24"], [], fixed=False)
        assert len(store.writes) == writes

    asyncio.run(play())


def test_the_own_nodes_labels_are_read() -> None:
    raw = msgspec.Raw(b'{"metadata":{"name":"n1","labels":{"zone":"a"}}}')
    assert own_labels("n1").row(raw) == Node(name="n1", labels={"zone": "a"})
    assert own_labels("n1").field_selector == "metadata.name=n1"


@pytest.mark.parametrize(
    ("server", "addresses"),
    [
        ("https://192.0.2.7:6443", ("192.0.2.7",)),
        ("https://[2001:db8::7]:6443/", ("2001:db8::7",)),
        ("https://127.0.0.1:6443", ()),
        ("https://kubernetes.example:6443", ()),
        ("/etc/cilia/yaml", ()),
        ("", ()),
    ],
)
def test_the_api_servers_address_is_known_from_its_url(server: str, addresses: tuple[str, ...]) -> None:
    assert address_of(server) == addresses

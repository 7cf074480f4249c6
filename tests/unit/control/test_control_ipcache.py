"""The ipcache follows the present claims, whatever came before."""

from __future__ import annotations

import msgspec

from cilia.control.apiserver import ApiServerNode
from cilia.control.ipcache import IpcacheNode
from cilia.model.endpoint import Attachment, Endpoint, EndpointState, RemoteEndpoint
from cilia.model.identity import HOST, KUBE_APISERVER, REMOTE_NODE
from cilia.model.ids import EndpointId, IdentityId
from cilia.model.node import Node
from cilia.model.policy import CidrIdentity
from cilia.schema import Desired, Inputs
from cilia.tables.table import Table

NODE_ONE = Node(
    name="one", addresses=("172.18.0.2",), router_addresses=("10.0.1.1",), pod_cidrs=("10.0.1.0/24",)
)
NODE_TWO = Node(
    name="two", addresses=("172.18.0.3",), router_addresses=("10.0.2.1",), pod_cidrs=("10.0.2.0/24",)
)
REMOTE = RemoteEndpoint(
    namespace="demo",
    name="web",
    identity=IdentityId(300),
    node_ip="172.18.0.3",
    addresses=("10.0.2.7", "fd00::7"),
)


def build() -> tuple[Inputs, Desired, Table[str, CidrIdentity], IpcacheNode]:
    inputs, desired = Inputs(), Desired()
    cidrs: Table[str, CidrIdentity] = Table("cidrs", lambda row: row.prefix)
    apiservers = ApiServerNode(inputs, dialled=["172.18.0.3"]).addresses
    node = IpcacheNode(inputs, desired, cidrs, node="one", tunnel=True, apiservers=apiservers)
    return inputs, desired, cidrs, node


def identity_of(desired: Desired, prefix: str) -> int | None:
    row = desired.ipcache.get(prefix)
    return row.identity if row is not None else None


def test_nodes_are_host_or_remote_or_the_api_server() -> None:
    inputs, desired, _, node = build()
    inputs.nodes.put(NODE_ONE)
    inputs.nodes.put(NODE_TWO)
    node.step()
    assert identity_of(desired, "172.18.0.2/32") == HOST
    assert identity_of(desired, "172.18.0.3/32") == KUBE_APISERVER
    assert identity_of(desired, "10.0.2.1/32") == REMOTE_NODE
    row = desired.ipcache.get("10.0.2.1/32")
    assert row is not None and row.tunnel_endpoint == "172.18.0.3"
    assert identity_of(desired, "10.0.2.0/24") == 0


def test_a_remote_pod_is_reached_through_its_node() -> None:
    inputs, desired, _, node = build()
    inputs.remote_endpoints.put(REMOTE)
    node.step()
    row = desired.ipcache.get("fd00::7/128")
    assert row is not None
    assert (row.identity, row.tunnel_endpoint, row.pod) == (300, "172.18.0.3", "web")
    inputs.remote_endpoints.delete(("demo", "web"))
    node.step()
    assert desired.ipcache.get("fd00::7/128") is None


def test_what_lives_here_wins_and_the_other_claim_returns_when_it_goes() -> None:
    inputs, desired, cidrs, node = build()
    cidrs.put(CidrIdentity("10.0.2.7/32", IdentityId(1 << 24)))
    inputs.remote_endpoints.put(REMOTE)
    node.step()
    assert identity_of(desired, "10.0.2.7/32") == 300
    attachment = Attachment(
        id=EndpointId(9),
        container_id="c",
        interface="eth0",
        netns="/n",
        host_interface="lxc1",
        ifindex=4,
        mac="02:00:00:00:00:01",
        host_mac="02:00:00:00:00:02",
        ipv4="10.0.2.7",
    )
    desired.endpoints.put(
        Endpoint(attachment=attachment, identity=IdentityId(301), state=EndpointState.READY)
    )
    node.step()
    assert identity_of(desired, "10.0.2.7/32") == 301
    desired.endpoints.delete(EndpointId(9))
    inputs.remote_endpoints.delete(("demo", "web"))
    node.step()
    assert identity_of(desired, "10.0.2.7/32") == 1 << 24
    cidrs.delete("10.0.2.7/32")
    node.step()
    assert desired.ipcache.get("10.0.2.7/32") is None


def test_a_prefix_among_pods_does_not_become_world() -> None:
    inputs, desired, cidrs, node = build()
    cidrs.put(CidrIdentity("10.0.2.0/24", IdentityId(1 << 24)))
    cidrs.put(CidrIdentity("10.0.2.128/25", IdentityId((1 << 24) + 1)))
    cidrs.put(CidrIdentity("10.0.0.0/8", IdentityId((1 << 24) + 2)))
    node.step()
    assert identity_of(desired, "10.0.2.128/25") == (1 << 24) + 1
    inputs.nodes.put(NODE_TWO)
    node.step()
    assert identity_of(desired, "10.0.2.0/24") == 0
    assert desired.ipcache.get("10.0.2.128/25") is None
    assert identity_of(desired, "10.0.0.0/8") == (1 << 24) + 2
    inputs.nodes.delete("two")
    node.step()
    assert identity_of(desired, "10.0.2.0/24") == 1 << 24


def test_the_world_is_always_there_in_both_families() -> None:
    _, desired, _, _ = build()
    assert identity_of(desired, "0.0.0.0/0") == 9
    assert identity_of(desired, "::/0") == 10


def test_nobody_takes_this_nodes_addresses() -> None:
    inputs, desired, _, node = build()
    for claim in (Node(name="an-impostor", addresses=("172.18.0.2",)), NODE_ONE):
        inputs.nodes.put(claim)
        node.step()
    assert identity_of(desired, "172.18.0.2/32") == HOST


def test_a_pod_prefix_that_holds_a_nodes_address_is_no_pod_prefix() -> None:
    inputs, desired, _, node = build()
    greedy = msgspec.structs.replace(NODE_TWO, pod_cidrs=("172.18.0.0/16", "10.0.2.0/24"))
    inputs.nodes.put(greedy)
    node.step()
    assert desired.ipcache.get("172.18.0.0/16") is None
    assert identity_of(desired, "10.0.2.0/24") == 0
    inputs.nodes.put(Node(name="three", addresses=("10.0.2.9",)))
    node.step()
    assert desired.ipcache.get("10.0.2.0/24") is None
    inputs.nodes.delete("three")
    node.step()
    assert identity_of(desired, "10.0.2.0/24") == 0


def test_what_a_node_knows_of_itself_needs_no_cluster() -> None:
    inputs, desired = Inputs(), Desired()
    cidrs: Table[str, CidrIdentity] = Table("cidrs", lambda row: row.prefix)
    node = IpcacheNode(inputs, desired, cidrs, node="one", tunnel=True, own=NODE_ONE)
    cidrs.put(CidrIdentity("10.0.1.128/25", IdentityId(1 << 24)))
    node.step()
    assert identity_of(desired, "172.18.0.2/32") == HOST
    assert desired.ipcache.get("10.0.1.128/25") is None
    inputs.nodes.put(Node(name="one", addresses=("198.51.100.1",)))
    node.step()
    inputs.nodes.delete("one")
    node.step()
    assert identity_of(desired, "172.18.0.2/32") == HOST
    assert identity_of(desired, "10.0.1.1/32") == HOST
    assert desired.ipcache.get("198.51.100.1/32") is None


def test_nodes_that_are_told_apart_have_identities_of_their_own() -> None:
    inputs, desired = Inputs(), Desired()
    cidrs: Table[str, CidrIdentity] = Table("cidrs", lambda row: row.prefix)
    ids: Table[str, CidrIdentity] = Table("node_ids", lambda row: row.prefix)
    node = IpcacheNode(inputs, desired, cidrs, node="one", tunnel=True, own=NODE_ONE, node_ids=ids)
    inputs.nodes.replace([NODE_ONE, NODE_TWO])
    node.step()
    assert identity_of(desired, "172.18.0.3/32") == REMOTE_NODE
    number = IdentityId((2 << 24) + 5)
    for prefix in ("172.18.0.3/32", "10.0.2.1/32", "172.18.0.2/32"):
        ids.put(CidrIdentity(prefix, number))
    node.step()
    assert identity_of(desired, "172.18.0.3/32") == number
    row = desired.ipcache.get("10.0.2.1/32")
    assert row is not None
    assert (row.identity, row.tunnel_endpoint) == (number, "172.18.0.3")
    assert identity_of(desired, "172.18.0.2/32") == HOST
    ids.replace([])
    node.step()
    assert identity_of(desired, "172.18.0.3/32") == REMOTE_NODE

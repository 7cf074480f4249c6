"""Backends of other nodes that answer the client themselves: what they are told, and what they believe."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP

from tests.support.datapath_world import DENY_ALL, FAR_NODE4, TCX_DROP, WORLD4, Outcome, World, payload
from tests.support.service_world import (
    BALANCER4,
    DIRECT,
    FAMILIES,
    NODE_PORT,
    OF,
    POD4,
    TRANSPORTS,
    Balancer,
    answer,
    balancing,
    ends,
    from_tunnel,
    ip,
    request,
    telling,
    told,
    whole,
)

pytestmark = pytest.mark.root


@pytest.fixture
def balancer(world: World) -> Iterator[Balancer]:
    with balancing(world) as made:
        yield made


@FAMILIES
@TRANSPORTS
def test_told_through_the_tunnel(balancer: Balancer, family: int, transport: str) -> None:
    world, at = balancer.world, OF[family]
    balancer.add(at.balancer, 80, (at.far, 8080), protocol=transport, flags=DIRECT)
    packet = ip(at.world, at.balancer) / request(transport, 5000, 80) / payload()
    done = world.from_wire(packet)
    assert (done.action, done.tunnel, done.vni) == ("TUNNEL", FAR_NODE4, 9 if family == 4 else 10)
    seen = whole(done.packet.payload)
    layer = seen[TCP if transport == "tcp" else UDP]
    assert (seen.src, layer.sport, seen.dst, layer.dport) == (at.world, 5000, at.far, 8080)
    assert told(seen) == (at.balancer, 80)
    assert bytes(layer.payload) == bytes(payload())


@FAMILIES
@TRANSPORTS
def test_a_host_is_told_beside_the_tunnel(balancer: Balancer, family: int, transport: str) -> None:
    """Nodes reach each other's own addresses without it."""
    world, at = balancer.world, OF[family]
    world.settings["flags"][0] |= world.layout.value("NODE_HOST_BACKENDS")
    balancer.add(at.balancer, 80, (at.node, 8080), protocol=transport, flags=DIRECT)
    arriving = telling(ip(at.world, at.node) / request(transport, 5000, 8080) / payload(), at.balancer, 80)
    assert world.from_wire(arriving).action == "STACK"
    back = world.to_wire(ip(at.node, at.world) / answer(transport, 8080, 5000))
    assert ends(whole(back.packet.payload)) == (at.balancer, 80, at.world, 5000)


@FAMILIES
@pytest.mark.parametrize("first", ["here", "there"])
def test_a_client_that_is_routed_by_another_node_keeps_its_connection(
    door: World, balancer: Balancer, family: int, first: str
) -> None:
    """The backend is here; the client comes by this node and by another one in turn."""
    world, at = balancer.world, OF[family]
    balancer.add(at.balancer, 80, (at.pod, 8080), flags=DIRECT)
    balancer.add(at.balancer, 81, (at.pod, 8080), flags=DIRECT)
    vni = 9 if family == 4 else 10

    def here(flags: str) -> Outcome:
        return world.from_wire(ip(at.world, at.balancer) / request("tcp", 5000, 80, flags))

    def there(flags: str, port: int = 80) -> Outcome:
        bare = ip(at.world, at.pod) / request("tcp", 5000, 8080, flags)
        return from_tunnel(world, telling(bare, at.balancer, port), vni=vni)

    turns = [here, there, there, here] if first == "here" else [there, here, here, there]
    for number, send in enumerate(turns):
        assert send("A" if number else "S").action == "LOCAL"
        back = world.from_pod(world.pod_a, ip(at.pod, at.world) / answer("tcp", 8080, 5000))
        assert ends(whole(back.packet.payload)) == (at.balancer, 80, at.world, 5000)
    assert there("A", 81).reason == 173


@FAMILIES
def test_told_once_by_streams(balancer: Balancer, family: int) -> None:
    world, at = balancer.world, OF[family]
    balancer.add(at.balancer, 80, (at.far, 8080), flags=DIRECT)
    world.from_wire(ip(at.world, at.balancer) / request("tcp", 5000, 80))
    done = world.from_wire(ip(at.world, at.balancer) / request("tcp", 5000, 80, "A") / payload())
    assert ends(whole(done.packet.payload)) == (at.world, 5000, at.far, 8080)


@FAMILIES
def test_room_for_being_told(balancer: Balancer, family: int) -> None:
    """A first packet that can't tell is refused; a later one goes without."""
    world, at = balancer.world, OF[family]
    balancer.add(at.balancer, 53, (at.far, 5353), protocol="udp", flags=DIRECT)
    large = ip(at.world, at.balancer) / request("udp", 5000, 53) / payload(1450 - (28 if family == 4 else 48))
    assert world.from_wire(large).reason == 193
    assert world.from_wire(ip(at.world, at.balancer) / request("udp", 5000, 53)).action == "TUNNEL"
    done = world.from_wire(large)
    assert (done.action, done.packet.payload[UDP].dport) == ("TUNNEL", 5353)
    assert len(done.packet.payload) == 1450


@FAMILIES
@TRANSPORTS
@pytest.mark.parametrize("kind", ["balancer", "node port"])
def test_heard_through_the_tunnel(
    door: World, balancer: Balancer, family: int, transport: str, kind: str
) -> None:
    world, at = balancer.world, OF[family]
    vni = 9 if family == 4 else 10
    flags: tuple[str, ...] = DIRECT
    if kind == "balancer":
        frontend, port, key = at.balancer, 80, at.balancer
    else:
        frontend = FAR_NODE4 if family == 4 else "2001:db8:f::2"
        port, key, flags = NODE_PORT, "0.0.0.0" if family == 4 else "::", ("DSR",)
    balancer.add(key, port, (at.pod, 8080), protocol=transport, flags=flags)
    bare = ip(at.world, at.pod) / request(transport, 5000, 8080) / payload()
    assert from_tunnel(world, bare, vni=vni).reason == 171
    done = from_tunnel(world, telling(bare, frontend, port), vni=vni)
    assert (done.action, done.source_identity) == ("LOCAL", vni)
    back = world.from_pod(world.pod_a, ip(at.pod, at.world) / answer(transport, 8080, 5000) / payload())
    assert (back.action, back.state) == ("NETWORK", 3)
    assert ends(whole(back.packet.payload)) == (frontend, port, at.world, 5000)
    assert world.to_wire(back.packet.payload).data[14:] == bytes(back.packet.payload)
    assert from_tunnel(world, bare, vni=vni).action == "LOCAL"


FORGED = {
    "a frontend that is none": ("198.51.100.99", 80, 9, FAR_NODE4),
    "a frontend that does not answer so": (BALANCER4, 81, 9, FAR_NODE4),
    "a port nobody serves": (BALANCER4, 82, 9, FAR_NODE4),
    "not a node": (BALANCER4, 80, 9, "192.0.2.77"),
    "as a pod": (BALANCER4, 80, 1003, FAR_NODE4),
    "as a node": (BALANCER4, 80, 6, FAR_NODE4),
}


@pytest.mark.parametrize(("frontend", "port", "vni", "node"), FORGED.values(), ids=FORGED.keys())
def test_forged_tellings(
    door: World, balancer: Balancer, frontend: str, port: int, vni: int, node: str
) -> None:
    world = balancer.world
    balancer.add(BALANCER4, 80, (POD4, 8080), flags=DIRECT)
    balancer.add(BALANCER4, 81, (POD4, 8080))
    packet = telling(ip(WORLD4, POD4) / request("tcp", 5000, 8080), frontend, port)
    done = from_tunnel(world, packet, vni=vni, node=node)
    assert (done.value, done.reason) == (TCX_DROP, 171)


def test_what_is_denied_is_not_remembered(door: World, balancer: Balancer) -> None:
    world = balancer.world
    balancer.add(BALANCER4, 80, (POD4, 8080), flags=DIRECT)
    world.set_policy(1, DENY_ALL)
    packet = telling(ip(WORLD4, POD4) / request("tcp", 5000, 8080), BALANCER4, 80)
    assert from_tunnel(world, packet, vni=9).action == "DROP"
    assert not len(world.dataplane.maps["snat"].dump()[0])


def test_pods_tell_nothing(door: World, balancer: Balancer) -> None:
    """Neither a pod of another node nor one of this."""
    world = balancer.world
    balancer.add(BALANCER4, 80, ("10.0.0.12", 8080), flags=DIRECT)
    for source, send in (("10.0.1.13", lambda one: from_tunnel(world, one)), (POD4, from_pod_a(world))):
        packet = telling(ip(source, "10.0.0.12") / request("tcp", 5000, 8080), BALANCER4, 80)
        assert send(packet).action == "LOCAL"
        back = world.from_pod(world.pod_b, ip("10.0.0.12", source) / answer("tcp", 8080, 5000))
        assert ends(back.packet.payload) == ("10.0.0.12", 8080, source, 5000)


def from_pod_a(world: World):  # type: ignore[no-untyped-def]
    return lambda packet: world.from_pod(world.pod_a, packet)


def test_nobody_outside_tells_in_a_tunnelled_cluster(balancer: Balancer) -> None:
    world = balancer.world
    balancer.add(BALANCER4, 80, (POD4, 8080), flags=DIRECT)
    packet = telling(ip(WORLD4, POD4) / request("tcp", 5000, 8080), BALANCER4, 80)
    assert world.from_wire(packet).action == "LOCAL"
    back = world.from_pod(world.pod_a, ip(POD4, WORLD4) / answer("tcp", 8080, 5000))
    assert ends(back.packet.payload) == (POD4, 8080, WORLD4, 5000)


def test_backends_outside_are_not_told(balancer: Balancer) -> None:
    """They would not understand: they see this node."""
    world = balancer.world
    balancer.add(BALANCER4, 80, ("203.0.113.88", 8080), flags=DIRECT)
    done = world.from_wire(ip(WORLD4, BALANCER4) / request("tcp", 5000, 80))
    assert (done.action, done.packet[IP].src, done.packet[IP].ihl) == ("NETWORK", OF[4].node, 5)

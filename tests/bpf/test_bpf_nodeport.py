"""Services asked for from outside: who gets the packet, as whose, and what becomes of the answer."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkInitAck
from scapy.packet import Packet, Raw

from tests.support.datapath_world import (
    DENY_ALL,
    FAR_NODE4,
    NODE4,
    POD_FAR4,
    ROUTER4,
    TCX_DROP,
    TCX_NEXT,
    WORLD4,
    World,
    payload,
)
from tests.support.ring_reader import Ring
from tests.support.service_world import (
    BALANCER4,
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
    verified,
)

pytestmark = pytest.mark.root


@pytest.fixture
def balancer(world: World) -> Iterator[Balancer]:
    with balancing(world) as made:
        yield made


@FAMILIES
@TRANSPORTS
@pytest.mark.parametrize("kind", ["node", "balancer"])
def test_a_pod_of_this_node(balancer: Balancer, family: int, transport: str, kind: str) -> None:
    """The pod sees the client; the client hears the frontend."""
    world, at = balancer.world, OF[family]
    asked = at.node if kind == "node" else at.balancer
    made = balancer.add(asked, NODE_PORT, (at.pod, 8080), protocol=transport)
    done = world.from_wire(ip(at.world, asked) / request(transport, 5000, NODE_PORT) / payload())
    assert (done.action, done.ifindex, done.state) == ("LOCAL", world.pod_a.ifindex, 1)
    assert ends(verified(done)) == (at.world, 5000, at.pod, 8080)
    _, flow = world.only_flow()
    assert int(flow["service"]) == made.id
    back = world.from_pod(world.pod_a, ip(at.pod, at.world) / answer(transport, 8080, 5000) / payload())
    assert (back.action, back.state) == ("NETWORK", 3)
    assert ends(verified(back)) == (asked, NODE_PORT, at.world, 5000)
    left = world.to_wire(back.packet.payload)
    assert (left.value, left.action) == (TCX_NEXT, "STACK")
    assert ends(verified(left)) == (asked, NODE_PORT, at.world, 5000)


@FAMILIES
@TRANSPORTS
def test_a_pod_behind_the_tunnel(door: World, balancer: Balancer, family: int, transport: str) -> None:
    """It sees this node's address towards pods, from where its answer finds back through the tunnel."""
    world, at = balancer.world, OF[family]
    balancer.add(at.balancer, 80, (at.far, 8080), protocol=transport)
    done = world.from_wire(ip(at.world, at.balancer) / request(transport, 5000, 80) / payload())
    assert (done.action, done.tunnel, done.ifindex) == ("TUNNEL", FAR_NODE4, world.devices["tunnel"])
    assert done.vni == (9 if family == 4 else 10)
    seen = verified(done)
    source, port, *backend = ends(seen)
    assert (source, backend) == (at.router, [at.far, 8080])
    assert 32768 <= port <= 33279
    assert (seen.ttl if family == 4 else seen.hlim) == 63
    back = from_tunnel(world, ip(at.far, at.router) / answer(transport, 8080, port) / payload())
    assert (back.action, back.state) == ("NETWORK", 3)
    assert ends(verified(back)) == (at.balancer, 80, at.world, 5000)
    again = world.from_wire(ip(at.world, at.balancer) / request(transport, 5000, 80, "A"))
    assert (again.action, again.state) == ("TUNNEL", 2)
    assert ends(verified(again)) == (at.router, port, at.far, 8080)


def test_events_know_both_sources(balancer: Balancer) -> None:
    """The client behind the node's address, and the backend behind the service's."""
    world, at = balancer.world, OF[4]
    balancer.add(at.balancer, 80, (at.far, 8080))
    ring = Ring(world.dataplane.maps["events"], world.layout.dtype("event"))
    ring.read()
    port = ends(world.from_wire(ip(at.world, at.balancer) / request("tcp", 5000, 80)).packet)[1]
    (event,) = ring.read()
    assert event["source"].tobytes() == world.address(at.router).tobytes()
    assert event["original_source"].tobytes() == world.address(at.world).tobytes()
    assert (int(event["source_port"]), int(event["original_source_port"])) == (port, 5000)
    assert event["original_destination"].tobytes() == world.address(at.balancer).tobytes()
    assert int(event["destination_port"]) == 8080


@FAMILIES
@TRANSPORTS
def test_a_backend_by_native_routes(balancer: Balancer, family: int, transport: str) -> None:
    world, at = balancer.world, OF[family]
    backend = "203.0.113.77" if family == 4 else "2001:db8:77::77"
    world.add_prefix(f"{backend}/{32 if family == 4 else 128}", 1004)
    balancer.add(at.node, NODE_PORT, (backend, 8080), protocol=transport)
    done = world.from_wire(ip(at.world, at.node) / request(transport, 5000, NODE_PORT) / payload())
    assert (done.action, done.ifindex) == ("NETWORK", world.devices["eth"])
    source, port, *rest = ends(verified(done))
    assert (source, rest) == (at.node, [backend, 8080])
    back = world.from_wire(ip(backend, at.node) / answer(transport, 8080, port) / payload())
    assert (back.action, back.state) == ("NETWORK", 3)
    assert ends(verified(back)) == (at.node, NODE_PORT, at.world, 5000)


@FAMILIES
@TRANSPORTS
def test_the_node_itself(balancer: Balancer, family: int, transport: str) -> None:
    world, at = balancer.world, OF[family]
    world.settings["flags"][0] |= world.layout.value("NODE_HOST_BACKENDS")
    balancer.add(at.balancer, 80, (at.node, 8080), protocol=transport)
    done = world.from_wire(ip(at.world, at.balancer) / request(transport, 5000, 80) / payload())
    assert (done.value, done.action) == (TCX_NEXT, "STACK")
    assert ends(verified(done)) == (at.world, 5000, at.node, 8080)
    back = world.to_wire(ip(at.node, at.world) / answer(transport, 8080, 5000) / payload())
    assert (back.value, back.action) == (TCX_NEXT, "STACK")
    assert ends(verified(back)) == (at.balancer, 80, at.world, 5000)
    other = world.to_wire(ip(at.node, at.world) / answer(transport, 8080, 5001) / payload())
    assert ends(verified(other)) == (at.node, 8080, at.world, 5001)


@pytest.mark.parametrize("backend", [POD4, POD_FAR4])
def test_a_flow_keeps_its_backend(balancer: Balancer, backend: str) -> None:
    world = balancer.world
    made = balancer.add(BALANCER4, 80, *((backend, port) for port in range(8000, 8016)))
    first = world.from_wire(ip(WORLD4, BALANCER4) / request("tcp", 5000, 80)).packet[TCP].dport
    for flags in "SAA":
        packet = ip(WORLD4, BALANCER4) / request("tcp", 5000, 80, flags)
        assert world.from_wire(packet).packet[TCP].dport == first
    seen = {
        world.from_wire(ip(WORLD4, BALANCER4) / request("tcp", port, 80)).packet[TCP].dport
        for port in range(6000, 6030)
    }
    assert len(seen) > 5
    for number in made.backends:
        if balancer.memory["backends"][number]["port"] == first:
            balancer.kill(number)
            made.backends.remove(number)
            break
    balancer.put(made)
    moved = world.from_wire(ip(WORLD4, BALANCER4) / request("tcp", 5000, 80, "A"))
    assert moved.packet[TCP].dport not in (first, 80)


def test_policy_judges_the_client(balancer: Balancer) -> None:
    world = balancer.world
    balancer.add(BALANCER4, 80, (POD4, 8080))
    world.set_policy(1, DENY_ALL)
    done = world.from_wire(ip(WORLD4, BALANCER4) / request("tcp", 5000, 80))
    assert (done.value, done.reason, done.source_identity, done.ingress_cookie) == (TCX_DROP, 133, 9, 3)
    assert len(world.dataplane.maps["service_flows"].dump()[0]) == 0


def test_cluster_addresses_are_for_the_cluster(balancer: Balancer) -> None:
    world = balancer.world
    balancer.add("10.96.0.7", 80, (POD4, 8080), flags=())
    done = world.from_wire(ip(WORLD4, "10.96.0.7") / request("tcp", 5000, 80))
    assert (done.value, done.reason) == (TCX_DROP, 174)


@pytest.mark.parametrize(("flag", "inside", "outside"), [("ALLOWED", 0, 177), ("DENIED", 177, 0)])
def test_source_ranges(balancer: Balancer, flag: str, inside: int, outside: int) -> None:
    world = balancer.world
    made = balancer.add(BALANCER4, 80, (POD4, 8080), flags=("OUTSIDE", f"SOURCES_{flag}"))
    balancer.add_source_range(made, "203.0.113.0/24")
    found = [
        world.from_wire(ip(source, BALANCER4) / request("tcp", 5000, 80)).reason
        for source in (WORLD4, "198.51.100.9")
    ]
    assert found == [inside, outside]


def test_nobody_serves(balancer: Balancer) -> None:
    world = balancer.world
    balancer.add(BALANCER4, 80)
    done = world.from_wire(ip(WORLD4, BALANCER4) / request("tcp", 5000, 80))
    assert (done.value, done.reason) == (TCX_DROP, 158)
    balancer.add(NODE4, 80, flags=("OUTSIDE", "LOOSE"))
    packet = ip(WORLD4, NODE4) / request("tcp", 5000, 80)
    done = world.from_wire(packet)
    assert (done.value, done.action, bytes(done.packet.payload)) == (TCX_NEXT, "STACK", bytes(packet))


def test_protocols_are_kept_apart(balancer: Balancer) -> None:
    world = balancer.world
    balancer.add(BALANCER4, 53, (POD4, 5353), protocol="udp")
    done = world.from_wire(ip(WORLD4, BALANCER4) / request("tcp", 5000, 53))
    assert (done.action, done.packet[TCP].dport) == ("STACK", 53)
    done = world.from_wire(ip(WORLD4, BALANCER4) / request("udp", 5000, 53))
    assert (done.action, done.packet[UDP].dport) == ("LOCAL", 5353)


def test_two_frontends_of_one_backend(door: World, balancer: Balancer) -> None:
    """A client may use one port for both: each answer comes from whom it asked."""
    world = balancer.world
    for port in (80, 81):
        balancer.add(BALANCER4, port, (POD_FAR4, 8080))
    ports = [
        world.from_wire(ip(WORLD4, BALANCER4) / request("tcp", 5000, port)).packet[TCP].sport
        for port in (80, 81)
    ]
    assert ports[0] != ports[1]
    backs = [from_tunnel(world, ip(POD_FAR4, ROUTER4) / answer("tcp", 8080, port)) for port in ports]
    assert [ends(verified(back)) for back in backs] == [(BALANCER4, port, WORLD4, 5000) for port in (80, 81)]


@pytest.mark.parametrize("backend", [POD4, POD_FAR4])
def test_fragments(balancer: Balancer, backend: str) -> None:
    world = balancer.world
    balancer.add(BALANCER4, 53, (backend, 5353), protocol="udp")
    whole = bytes(IP(bytes(ip(WORLD4, BALANCER4, id=5) / request("udp", 5000, 53) / payload(24)))[UDP])
    first = ip(WORLD4, BALANCER4, id=5, flags="MF", proto=17) / Raw(whole[:16])
    later = ip(WORLD4, BALANCER4, id=5, frag=2, proto=17) / Raw(whole[16:])
    done = [world.from_wire(packet) for packet in (first, later)]
    assert {one.action for one in done} == {"LOCAL" if backend == POD4 else "TUNNEL"}
    heads = [one.packet[IP] for one in done]
    assert {(head.src, head.dst) for head in heads} == {(heads[0].src, backend)}
    joined = IP(src=heads[0].src, dst=backend, proto=17) / Raw(
        b"".join(bytes(head.payload) for head in heads)
    )
    made = IP(bytes(joined))
    copy = made.copy()
    del copy[UDP].chksum
    assert (made.dport, made[UDP].chksum) == (5353, IP(bytes(copy))[UDP].chksum)


def test_the_table_of_ports_is_full(balancer: Balancer) -> None:
    world = balancer.world
    world.settings["nat_first_port"][0] = world.settings["nat_last_port"][0] = 33000
    balancer.add(BALANCER4, 80, (POD_FAR4, 8080))
    assert world.from_wire(ip(WORLD4, BALANCER4) / request("tcp", 1, 80)).action == "TUNNEL"
    assert world.from_wire(ip(WORLD4, BALANCER4) / request("tcp", 2, 80)).reason == 167
    assert world.from_wire(ip(WORLD4, BALANCER4) / request("tcp", 1, 80, "A")).action == "TUNNEL"


def test_a_node_speaks_for_clients_outside(door: World, balancer: Balancer) -> None:
    """By its own address only, and for nobody of the cluster."""
    world = balancer.world
    syn = TCP(sport=33000, dport=80, flags="S")
    done = from_tunnel(world, ip("10.0.1.1", POD4) / syn, vni=9)
    assert (done.action, done.source_identity) == ("LOCAL", 9)
    back = world.from_pod(world.pod_a, ip(POD4, "10.0.1.1") / TCP(sport=80, dport=33000, flags="SA"))
    assert (back.action, back.tunnel, back.state, back.destination_identity) == ("TUNNEL", FAR_NODE4, 3, 9)
    for source, vni in ((WORLD4, 9), (POD_FAR4, 9), ("10.0.1.1", 1003), ("10.0.0.12", 9)):
        assert from_tunnel(world, ip(source, POD4) / syn, vni=vni).reason == 171


def test_without_services_nothing_is_asked(balancer: Balancer) -> None:
    world = balancer.world
    balancer.add(NODE4, 80, (POD4, 8080))
    world.settings["flags"][0] &= ~np.uint32(world.layout.value("NODE_SERVICES"))
    packet = ip(WORLD4, NODE4) / request("tcp", 5000, 80)
    done = world.from_wire(packet)
    assert (done.value, done.action, bytes(done.packet.payload)) == (TCX_NEXT, "STACK", bytes(packet))


def init(sport: int, dport: int) -> Packet:
    return SCTP(sport=sport, dport=dport, tag=0) / SCTPChunkInit()


@FAMILIES
@pytest.mark.parametrize("place", ["here", "elsewhere"])
def test_associations_keep_their_ports(door: World, balancer: Balancer, family: int, place: str) -> None:
    """Their checksum covers all of the packet, and is as the client made it."""
    world, at = balancer.world, OF[family]
    backend = at.pod if place == "here" else at.far
    balancer.add(at.balancer, 80, (backend, 80), protocol="sctp")
    packet = ip(at.world, at.balancer) / init(5000, 80)
    done = world.from_wire(packet)
    assert done.action == ("LOCAL" if place == "here" else "TUNNEL")
    seen = done.packet.payload
    assert ends(seen) == (at.world if place == "here" else at.router, 5000, backend, 80)
    assert bytes(seen.payload) == bytes(type(packet)(bytes(packet)).payload)
    reply = SCTP(sport=80, dport=5000, tag=1) / SCTPChunkInitAck()
    if place == "here":
        back = world.from_pod(world.pod_a, ip(at.pod, at.world) / reply)
    else:
        back = from_tunnel(world, ip(at.far, at.router) / reply)
    assert (back.action, ends(back.packet.payload)) == ("NETWORK", (at.balancer, 80, at.world, 5000))
    balancer.add(at.balancer, 81, (backend, 8080), protocol="sctp")
    assert world.from_wire(ip(at.world, at.balancer) / init(5000, 81)).reason == 142


@pytest.mark.parametrize("flags", [("OUTSIDE", "AFFINITY"), ("OUTSIDE", "MAGLEV")])
def test_choices_that_stay(balancer: Balancer, flags: tuple[str, ...]) -> None:
    """Of a client, by its address; of a flow, by its tuple, also where nobody knows the flow."""
    world = balancer.world
    made = balancer.add(BALANCER4, 80, *((POD4, port) for port in range(8000, 8016)), flags=flags)
    if "AFFINITY" in flags:
        key = world.row("service_key", address=BALANCER4, protocol=6)
        key["port"] = made.port
        value = np.array([world.dataplane.maps["services"].lookup(key)])
        value["affinity"] = 60
        world.put("services", key, value)
    seen = set()
    for _ in range(4):
        ports = [5000] if "MAGLEV" in flags else range(5000, 5004)
        for port in ports:
            seen.add(world.from_wire(ip(WORLD4, BALANCER4) / request("tcp", port, 80)).packet[TCP].dport)
        for name in ("service_flows", "conntrack"):
            for known in world.dataplane.maps[name].dump()[0]:
                world.dataplane.maps[name].delete(known)
    assert len(seen) == 1

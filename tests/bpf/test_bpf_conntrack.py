"""Flows: opened, answered, closed, judged again."""

from __future__ import annotations

import time

import msgspec
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.packet import Packet

from tests.support.datapath_world import (
    ALLOW,
    ALLOW_ALL,
    DENY,
    DENY_ALL,
    EGRESS,
    INGRESS,
    POD_FAR4,
    ROUTER4,
    WORLD4,
    Rule,
    World,
)

pytestmark = pytest.mark.root

NEW, ESTABLISHED, REPLY = 1, 2, 3


def ahead(flags: str, port: int = 80) -> Packet:
    return IP(src="10.0.0.11", dst="10.0.0.12") / TCP(sport=40000, dport=port, flags=flags)


def back(flags: str, port: int = 80) -> Packet:
    return IP(src="10.0.0.12", dst="10.0.0.11") / TCP(sport=port, dport=40000, flags=flags)


def shake_hands(world: World) -> None:
    for pod, packet, state in (
        (world.pod_a, ahead("S"), NEW),
        (world.pod_b, back("SA"), REPLY),
        (world.pod_a, ahead("A"), ESTABLISHED),
    ):
        done = world.from_pod(pod, packet)
        assert (done.action, done.state) == ("LOCAL", state)


def life_left(world: World) -> int:
    _, value = world.only_flow()
    return int(value["expires"]) - int(time.clock_gettime(time.CLOCK_MONOTONIC))


def change_flow(world: World, **fields: int) -> None:
    key, value = world.only_flow()
    changed = value.copy()
    for name, number in fields.items():
        changed[name] = number
    world.store_flow(key, changed)


def test_one_entry_for_both_directions(world: World) -> None:
    shake_hands(world)
    key, value = world.only_flow()
    assert (int(key["low_port"]), int(key["high_port"]), int(key["protocol"])) == (40000, 80, 6)
    assert value["packets"].tolist() == [2, 1]
    assert value["bytes"].tolist() == [80, 40]
    assert int(value["source_identity"]) == 1001
    assert [int(side["endpoint"]) for side in value["side"]] == [101, 102]
    assert [int(side["cookie"]) for side in value["side"]] == [2, 1]
    revision_b = world.active["revision"][2]
    assert int(value["side"][1]["judged"]) == int(revision_b) << 32 | 1001


def test_the_higher_end_may_open_it(world: World) -> None:
    assert world.from_pod(world.pod_b, back("S")).state == NEW
    assert world.from_pod(world.pod_a, ahead("SA")).state == REPLY
    _, value = world.only_flow()
    assert int(value["flags"]) & world.layout.value("CT_INITIATOR_HIGH")
    assert [int(side["endpoint"]) for side in value["side"]] == [102, 101]


def test_replies_need_no_rule_of_their_own(world: World) -> None:
    world.set_policy(2, (Rule(INGRESS, ALLOW, flags=4), Rule(EGRESS, DENY, flags=4)))
    world.set_policy(1, (Rule(INGRESS, DENY, flags=4), Rule(EGRESS, ALLOW, flags=4)))
    shake_hands(world)
    assert world.from_pod(world.pod_b, back("S", port=81)).reason == 133


def test_lifetimes(world: World) -> None:
    world.from_pod(world.pod_a, ahead("S"))
    assert 57 <= life_left(world) <= 60
    world.from_pod(world.pod_b, back("SA"))
    assert 57 <= life_left(world) <= 60
    world.from_pod(world.pod_a, ahead("A"))
    assert 7997 <= life_left(world) <= 8000
    world.from_pod(world.pod_a, ahead("FA"))
    assert life_left(world) > 7000
    world.from_pod(world.pod_b, back("FA"))
    assert life_left(world) <= 10
    change_flow(world, expires=int(time.clock_gettime(time.CLOCK_MONOTONIC)) + 4)
    world.from_pod(world.pod_a, ahead("A"))
    assert life_left(world) <= 4


def test_half_open_flows_are_soon_forgotten(world: World) -> None:
    """Whoever forges SYNs never says more, though each of them is answered, again and again."""
    world.from_pod(world.pod_a, ahead("S"))
    for _ in range(3):
        world.from_pod(world.pod_b, back("SA"))
        assert life_left(world) <= 60


def test_a_forged_syn_does_not_cut_a_connection_short(world: World) -> None:
    shake_hands(world)
    world.from_pod(world.pod_a, ahead("S"))
    world.from_pod(world.pod_b, back("SA"))
    assert life_left(world) > 7000


def test_reset_closes(world: World) -> None:
    shake_hands(world)
    world.from_pod(world.pod_b, back("R"))
    assert life_left(world) <= 10


def test_stray_reset_is_soon_forgotten(world: World) -> None:
    world.from_pod(world.pod_a, ahead("R"))
    assert life_left(world) <= 10


@pytest.mark.parametrize("closing", ["FA", "R"])
def test_closed_flow_is_opened_again_from_either_end(world: World, closing: str) -> None:
    shake_hands(world)
    world.from_pod(world.pod_a, ahead(closing))
    assert world.from_pod(world.pod_b, back("S")).state == NEW
    _, value = world.only_flow()
    assert value["packets"].tolist() == [1, 0]
    assert [int(side["endpoint"]) for side in value["side"]] == [102, 101]
    assert (world.quota(101), world.quota(102)) == (0, 1)


def test_reopening_is_judged(world: World) -> None:
    world.set_policy(2, (Rule(INGRESS, ALLOW, flags=4), Rule(EGRESS, DENY, flags=4)))
    shake_hands(world)
    world.from_pod(world.pod_a, ahead("R"))
    assert world.from_pod(world.pod_b, back("S")).reason == 133


def test_a_syn_is_never_a_reply(world: World) -> None:
    shake_hands(world)
    assert world.from_pod(world.pod_b, back("S")).reason == 163
    assert world.from_pod(world.pod_a, ahead("S")).state == ESTABLISHED


def test_mid_stream_may_open(world: World) -> None:
    assert world.from_pod(world.pod_a, ahead("A")).state == NEW
    assert life_left(world) <= 60
    assert world.from_pod(world.pod_b, back("A")).state == REPLY
    assert life_left(world) > 7000


def test_expired_counts_as_absent(world: World) -> None:
    shake_hands(world)
    change_flow(world, expires=1)
    assert world.from_pod(world.pod_b, back("A")).state == NEW
    _, value = world.only_flow()
    assert value["packets"].tolist() == [1, 0]


def test_two_pings_with_one_identifier(world: World) -> None:
    a, b = world.pod_a, world.pod_b
    assert world.from_pod(a, IP(src=a.ipv4, dst=b.ipv4) / ICMP(type=8, id=7)).state == NEW
    assert world.from_pod(b, IP(src=b.ipv4, dst=a.ipv4) / ICMP(type=8, id=7)).state == NEW
    assert world.from_pod(b, IP(src=b.ipv4, dst=a.ipv4) / ICMP(type=0, id=7)).state == REPLY
    assert world.from_pod(a, IP(src=a.ipv4, dst=b.ipv4) / ICMP(type=0, id=7)).state == REPLY
    assert len(world.flows()) == 2


def test_icmpv6_echo(world: World) -> None:
    a, b = world.pod_a, world.pod_b
    assert world.from_pod(b, IPv6(src=b.ipv6, dst=a.ipv6) / ICMPv6EchoReply(id=7)).reason == 163
    assert world.from_pod(a, IPv6(src=a.ipv6, dst=b.ipv6) / ICMPv6EchoRequest(id=7)).state == NEW
    assert world.from_pod(b, IPv6(src=b.ipv6, dst=a.ipv6) / ICMPv6EchoReply(id=7)).state == REPLY


@pytest.mark.parametrize("subject", [1, 2], ids=["sender", "receiver"])
@pytest.mark.parametrize("direction", ["ahead", "back"])
def test_a_new_policy_ends_running_flows(world: World, subject: int, direction: str) -> None:
    shake_hands(world)
    world.set_policy(subject, DENY_ALL)
    pod, packet = (world.pod_a, ahead("A")) if direction == "ahead" else (world.pod_b, back("A"))
    cookie = 4 if subject == 1 else 3
    for _ in range(2):
        done = world.from_pod(pod, packet)
        assert (done.reason, max(done.egress_cookie, done.ingress_cookie)) == (133, cookie)
    _, value = world.only_flow()
    assert int(value["side"][subject - 1]["judged"]) >> 63 == 1
    assert int(value["packets"].sum()) == 3
    world.set_policy(subject, ALLOW_ALL)
    assert world.from_pod(pod, packet).action == "LOCAL"


def test_denied_flows_leave_no_entry(world: World) -> None:
    world.set_policy(2, DENY_ALL)
    assert world.from_pod(world.pod_a, ahead("S")).reason == 133
    assert (world.flows(), world.quota(101)) == ([], 0)


def test_a_relabelled_peer_is_judged_anew(world: World) -> None:
    world.set_policy(2, (Rule(INGRESS, DENY, precedence=1, flags=4), Rule(INGRESS, ALLOW, peer=1001)))
    shake_hands(world)
    world.add_pod(msgspec.structs.replace(world.pod_a, identity=1111))
    assert world.from_pod(world.pod_b, back("A")).reason == 133
    assert world.from_pod(world.pod_a, ahead("A")).reason == 133
    world.add_pod(world.pod_a)
    assert world.from_pod(world.pod_a, ahead("A")).action == "LOCAL"


def test_a_changed_ipcache_is_judged_anew(world: World) -> None:
    world.set_policy(1, (Rule(EGRESS, DENY, precedence=1, flags=4), Rule(EGRESS, ALLOW, peer=1003)))
    far = IP(src="10.0.0.11", dst=POD_FAR4) / TCP(sport=40000, dport=80, flags="A")
    assert world.from_pod(world.pod_a, far).action == "TUNNEL"
    world.add_prefix(POD_FAR4, 1004, tunnel="192.0.2.2")
    assert world.from_pod(world.pod_a, far).reason == 133


def test_a_reused_address_is_judged_anew(world: World) -> None:
    shake_hands(world)
    world.add_pod(msgspec.structs.replace(world.pod_b, id=202))
    assert world.from_pod(world.pod_a, ahead("A")).action == "LOCAL"
    _, value = world.only_flow()
    assert int(value["side"][1]["endpoint"]) == 202


def test_same_revision_does_not_ask_the_rules(world: World) -> None:
    """Emptied rules behind an unchanged revision: an established flow does not notice."""
    shake_hands(world)
    inner = world._inner(2)
    for key in inner.dump()[0]:
        inner.delete(key)
    assert world.from_pod(world.pod_a, ahead("A")).action == "LOCAL"
    world.switch(2)
    assert world.from_pod(world.pod_a, ahead("A")).reason == 165


def test_quota_holds_back_one_endpoint_only(world: World) -> None:
    world.settings["ct_quota"][0] = 3
    done = [world.from_pod(world.pod_a, ahead("S", port=port)) for port in range(100, 104)]
    assert [outcome.reason for outcome in done] == [0, 0, 0, 198]
    assert world.quota(101) == 3
    assert world.from_pod(world.pod_b, back("S", port=300)).action == "LOCAL"
    assert world.from_pod(world.pod_a, ahead("S", port=100)).action == "LOCAL"


def test_who_pays(world: World) -> None:
    world.from_host(IP(src=ROUTER4, dst="10.0.0.12") / UDP(sport=1, dport=2))
    assert int(world.only_flow()[1]["owner"]) == 102
    assert world.quota(102) == 1


def test_full_table_refuses_new_flows_only(world: World) -> None:
    shake_hands(world)
    reasons = [
        world.from_pod(world.pod_a, IP(src="10.0.0.11", dst=WORLD4) / UDP(sport=port, dport=9)).reason
        for port in range(1, 140)
    ]
    assert reasons[0] == 0
    assert reasons[-1] == 155
    assert world.from_pod(world.pod_a, ahead("A")).state == ESTABLISHED
    live = len(world.flows())
    assert world.quota(101) == live
    assert reasons.count(0) == live - 1


def test_retransmitted_syn_is_the_same_flow(world: World) -> None:
    assert world.from_pod(world.pod_a, ahead("S")).state == NEW
    assert world.from_pod(world.pod_a, ahead("S")).state == ESTABLISHED
    assert len(world.flows()) == 1


def test_counters_know_directions(world: World) -> None:
    before = world.counted(0, INGRESS)
    shake_hands(world)
    assert world.counted(0, INGRESS) == before + 3
    before = world.counted(0, EGRESS)
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst=WORLD4) / UDP(sport=1, dport=9))
    assert world.counted(0, EGRESS) == before + 1

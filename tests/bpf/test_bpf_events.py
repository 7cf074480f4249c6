"""What is reported of packets, and what is only counted."""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from cilia.dataplane import bpf
from tests.support.datapath_ears import Ears, ahead, back
from tests.support.datapath_world import (
    DENY,
    DENY_ALL,
    EGRESS,
    INGRESS,
    POD_FAR4,
    ROUTER4,
    WORLD4,
    Rule,
    World,
    address_bytes,
    load_world,
    pinned_cpu,
)

pytestmark = pytest.mark.root

DROP, TRACE, VERDICT = 1, 2, 3
NEW, ESTABLISHED, REPLY, RELATED = 1, 2, 3, 4
FIRST, LAST, IS_REPLY, IS_IPV6, JUDGED_APART = 8, 16, 1, 2, 32


@pytest.fixture
def ears(world: World) -> Ears:
    return Ears(world)


def test_every_field_of_a_new_flow(world: World, ears: Ears) -> None:
    world.from_pod(world.pod_a, ahead("S"))
    (event,) = ears.traces()
    assert event["source"].tobytes() == address_bytes("10.0.0.11")
    assert event["destination"].tobytes() == address_bytes("10.0.0.12")
    expected = {
        "kind": TRACE,
        "point": 101,
        "verdict": 1,
        "reason": 0,
        "source_port": 40000,
        "destination_port": 80,
        "protocol": 6,
        "tcp_flags": 2,
        "direction": INGRESS,
        "state": NEW,
        "flags": FIRST | JUDGED_APART,
        "source_identity": 1001,
        "destination_identity": 1002,
        "source_endpoint": 101,
        "destination_endpoint": 102,
        "egress_cookie": 2,
        "ingress_cookie": 1,
        "egress_match": 4,
        "ingress_match": 4,
        "length": 40,
        "ifindex": world.pod_a.ifindex,
        "cpu": pinned_cpu(),
        "ring": 1,
        "line": 0,
        "suppressed": 0,
    }
    assert {name: int(event[name]) for name in expected} == expected
    assert bytes(event["source_mac"]).hex(":") == world.pod_a.mac
    assert bytes(event["destination_mac"]).hex(":") == world.pod_a.host_mac


def test_medium_aggregation_tells_a_life_in_four_reports(world: World, ears: Ears) -> None:
    for pod, packet in (
        (world.pod_a, ahead("S")),
        (world.pod_b, back("SA")),
        *[(world.pod_a, ahead("A")), (world.pod_b, back("PA"))] * 5,
        (world.pod_a, ahead("FA")),
        (world.pod_b, back("FA")),
        (world.pod_a, ahead("A")),
    ):
        assert world.from_pod(pod, packet).action == "LOCAL"
    found = [(int(event["state"]), int(event["tcp_flags"]), int(event["flags"])) for event in ears.traces()]
    assert found == [
        (NEW, 0x02, FIRST | JUDGED_APART),
        (REPLY, 0x12, IS_REPLY),
        (ESTABLISHED, 0x11, 0),
        (REPLY, 0x11, IS_REPLY | LAST),
    ]


def test_one_report_per_interval_and_direction(world: World, ears: Ears) -> None:
    world.from_pod(world.pod_a, ahead("A"))
    world.from_pod(world.pod_b, back("A"))
    assert len(ears.traces()) == 2
    world.from_pod(world.pod_a, ahead("A"))
    assert ears.traces() == []
    key, value = world.only_flow()
    late = value.copy()
    late["reported"][0] -= 5
    world.store_flow(key, late)
    for _ in range(3):
        world.from_pod(world.pod_a, ahead("A"))
        world.from_pod(world.pod_b, back("A"))
    assert [int(event["state"]) for event in ears.traces()] == [ESTABLISHED]


@pytest.mark.parametrize("level", ["NONE", "LOW"])
def test_no_aggregation_reports_every_packet(world: World, ears: Ears, level: str) -> None:
    world.settings["aggregation"][0] = world.layout.value(f"AGGREGATION_{level}")
    for _ in range(7):
        world.from_pod(world.pod_a, ahead("A"))
    assert len(ears.traces()) == 7


@pytest.mark.parametrize(
    ("destination", "point", "vni", "tunnel"),
    [(POD_FAR4, 4, 1001, "192.0.2.2"), (ROUTER4, 2, 0, ""), (WORLD4, 11, 0, "")],
)
def test_observation_points(
    world: World, ears: Ears, destination: str, point: int, vni: int, tunnel: str
) -> None:
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst=destination) / UDP(sport=5, dport=53))
    (event,) = ears.traces()
    assert (int(event["point"]), int(event["vni"]), int(event["direction"])) == (point, vni, 2)
    assert event["tunnel"].tobytes() == address_bytes(tunnel)


def test_icmp_and_ipv6(world: World, ears: Ears) -> None:
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst="10.0.0.12") / ICMP(type=8, id=7))
    world.from_pod(world.pod_a, IPv6(src="fd00::11", dst="fd00::12") / UDP(sport=5, dport=53))
    ping, query = ears.traces()
    assert (int(ping["icmp_type"]), int(ping["source_port"]), int(ping["destination_port"])) == (8, 0, 0)
    assert int(query["flags"]) == FIRST | IS_IPV6 | JUDGED_APART


def test_a_drop_names_its_reason_place_and_rule(world: World, ears: Ears) -> None:
    world.set_policy(2, DENY_ALL)
    done = world.from_pod(world.pod_a, ahead("S"))
    (event,) = ears.drops()
    assert (int(event["kind"]), int(event["verdict"]), int(event["reason"])) == (DROP, 2, 133)
    assert (int(event["point"]), int(event["direction"]), int(event["state"])) == (0, INGRESS, NEW)
    assert (int(event["egress_cookie"]), int(event["ingress_cookie"])) == (2, 3)
    assert int(event["file"]) == world.layout.value("FILE_CONNTRACK")
    assert int(event["line"]) == done.line > 0


def test_multicast_is_not_reported(world: World, ears: Ears) -> None:
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst="224.0.0.1") / UDP())
    assert ears.read() == ([], [])


def test_audit_is_a_verdict_of_its_own(world: World, ears: Ears) -> None:
    world.set_policy(2, (Rule(INGRESS, DENY, cookie=3, flags=4 | 1),))
    world.from_pod(world.pod_a, ahead("S"))
    world.from_pod(world.pod_a, ahead("A"))
    (audit,), (allowed, *traces) = ears.read()
    assert (int(allowed["kind"]), int(allowed["verdict"]), int(allowed["direction"])) == (VERDICT, 1, EGRESS)
    assert (int(audit["kind"]), int(audit["verdict"]), int(audit["reason"])) == (VERDICT, 4, 133)
    assert (int(audit["egress_cookie"]), int(audit["ingress_cookie"])) == (2, 3)
    assert (int(audit["point"]), int(audit["line"]), int(audit["direction"])) == (101, 0, INGRESS)
    assert len(traces) == 1
    world.set_policy(2, (Rule(INGRESS, DENY, cookie=4, flags=1),))
    world.from_pod(world.pod_a, ahead("A"))
    (audit,) = ears.drops()
    assert (int(audit["reason"]), int(audit["ingress_cookie"])) == (181, 4)
    world.set_policy(2, (Rule(INGRESS, cookie=3),))
    world.set_policy(1, (Rule(EGRESS, DENY, cookie=5, flags=1),))
    world.from_pod(world.pod_a, ahead("A"))
    (audit,) = ears.drops()
    assert (int(audit["direction"]), int(audit["egress_cookie"]), int(audit["point"])) == (EGRESS, 5, 101)


def verdict_of(event: np.void) -> tuple[int, int, int]:
    """(direction, its cookie, its match)."""
    side = "egress" if int(event["direction"]) == EGRESS else "ingress"
    return int(event["direction"]), int(event[f"{side}_cookie"]), int(event[f"{side}_match"])


def test_each_side_tells_once_that_it_lets_a_flow_begin(world: World, ears: Ears) -> None:
    for flags in ("S", "S", "A", "FA"):
        world.from_pod(world.pod_a, ahead(flags))
        world.from_pod(world.pod_b, back("A"))
    priority, normal = ears.read()
    assert not priority, "what is allowed must not push drops out"
    egress, ingress = (event for event in normal if event["kind"] == VERDICT)
    assert [verdict_of(each) for each in (egress, ingress)] == [(EGRESS, 2, 4), (INGRESS, 1, 4)]
    for event in (egress, ingress):
        assert (int(event["verdict"]), int(event["reason"]), int(event["state"])) == (1, 0, NEW)
        assert (int(event["source_endpoint"]), int(event["destination_endpoint"])) == (101, 102)
        assert (int(event["tcp_flags"]), int(event["ring"]), int(event["line"])) == (2, 1, 0)
    numbers = [int(event["sequence"]) for event in normal]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))


def test_a_flow_that_begins_anew_is_told_again(world: World, ears: Ears) -> None:
    for flags in ("S", "R", "S"):
        world.from_pod(world.pod_a, ahead(flags))
    assert [verdict_of(event)[0] for event in ears.verdicts()] == [EGRESS, INGRESS] * 2


def test_who_is_not_isolated_says_nothing(world: World, ears: Ears) -> None:
    world.set_policy(1, (Rule(EGRESS, cookie=0, flags=4), Rule(INGRESS, cookie=0, flags=4)))
    world.from_pod(world.pod_a, ahead("S"))
    assert [verdict_of(event) for event in ears.verdicts()] == [(INGRESS, 1, 4)]


def test_a_remote_end_says_it_on_its_own_node(world: World, ears: Ears) -> None:
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst=POD_FAR4) / UDP(sport=5, dport=53))
    assert [verdict_of(event)[0] for event in ears.verdicts()] == [EGRESS]


def test_of_a_denied_flow_only_the_drop_is_told(world: World, ears: Ears) -> None:
    world.set_policy(2, DENY_ALL)
    for _ in range(3):
        world.from_pod(world.pod_a, ahead("S"))
    drops, others = ears.read()
    assert ([int(event["kind"]) for event in drops], others) == ([DROP] * 3, [])


def test_a_running_flow_judged_anew_is_no_new_one(world: World, ears: Ears) -> None:
    world.from_pod(world.pod_a, ahead("S"))
    ears.read()
    world.set_policy(2, (Rule(INGRESS, cookie=11), Rule(EGRESS, cookie=12)))
    world.from_pod(world.pod_a, ahead("A"))
    assert ears.verdicts() == []


def test_both_sides_may_audit(world: World, ears: Ears) -> None:
    world.set_policy(1, (Rule(EGRESS, DENY, cookie=5, flags=1),))
    world.set_policy(2, (Rule(INGRESS, DENY, cookie=3, flags=4 | 1),))
    world.from_pod(world.pod_a, ahead("S"))
    priority, normal = ears.read()
    told = [(*verdict_of(event)[:2], int(event["reason"])) for event in priority]
    assert told == [(EGRESS, 5, 181), (INGRESS, 3, 133)]
    assert [int(event["kind"]) for event in normal] == [TRACE]


def test_an_answer_has_the_direction_in_which_it_was_asked_for(world: World, ears: Ears) -> None:
    world.from_pod(world.pod_a, ahead("S"))
    world.from_pod(world.pod_b, back("SA"))
    asked, answered = ears.traces()
    assert [int(event["point"]) for event in (asked, answered)] == [101, 101]
    assert [int(event["direction"]) for event in (asked, answered)] == [INGRESS, EGRESS]
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst=WORLD4) / UDP(sport=5, dport=53))
    (out,) = ears.traces()
    assert int(out["direction"]) == EGRESS


def test_a_flow_judged_anew_tells_its_new_rules(world: World, ears: Ears) -> None:
    world.from_pod(world.pod_a, ahead("S"))
    world.from_pod(world.pod_b, back("SA"))
    ears.read()
    world.set_policy(2, (Rule(INGRESS, cookie=11), Rule(EGRESS, cookie=12)))
    world.from_pod(world.pod_a, ahead("A"))
    (trace,) = ears.traces()
    assert (int(trace["egress_cookie"]), int(trace["ingress_cookie"])) == (2, 11)
    world.switch(2)
    world.from_pod(world.pod_a, ahead("A"))
    assert ears.traces() == []


@pytest.mark.parametrize("remembered", [False, True])
@pytest.mark.parametrize("denier", ["initiator", "responder"])
@pytest.mark.parametrize("direction", ["request", "reply"])
def test_a_running_flow_drops_with_the_denying_sides_rule(
    world: World, ears: Ears, denier: str, direction: str, remembered: bool
) -> None:
    """However the packet travels: the side that denies gives reason, direction, cookie and bucket."""
    world.from_pod(world.pod_a, ahead("S"))
    world.from_pod(world.pod_b, back("SA"))
    world.settings["drop_rate"][0] = world.settings["drop_burst"][0] = 2
    subject, flow_direction = (1, EGRESS) if denier == "initiator" else (2, INGRESS)
    world.set_policy(subject, (Rule(flow_direction, DENY, cookie=21), Rule(3 - flow_direction, cookie=22)))
    for _ in range(1 + remembered):
        ears.read()
        if direction == "request":
            world.from_pod(world.pod_a, ahead("A"))
        else:
            world.from_pod(world.pod_b, back("A"))
        (event,) = ears.drops()
    cookies = (21, 0) if denier == "initiator" else (2, 21)
    assert (int(event["egress_cookie"]), int(event["ingress_cookie"])) == cookies
    assert (int(event["reason"]), int(event["direction"])) == (181, flow_direction)
    assert bool(int(event["flags"]) & IS_REPLY) == (direction == "reply")
    keys, _ = world.dataplane.maps["drop_buckets"].dump()
    assert [int(key["endpoint"]) for key in keys] == [101 if denier == "initiator" else 102]


def test_a_flow_with_a_remote_end_carries_the_local_sides_rule(world: World, ears: Ears) -> None:
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst=POD_FAR4) / UDP(sport=5, dport=53))
    world.from_host(IP(src=ROUTER4, dst="10.0.0.12") / UDP(sport=5, dport=53))
    out, inwards = ears.traces()
    assert (int(out["egress_cookie"]), int(out["ingress_cookie"])) == (2, 0)
    assert (int(inwards["egress_cookie"]), int(inwards["ingress_cookie"])) == (0, 1)


def test_sequences_have_no_gap(world: World, ears: Ears) -> None:
    world.settings["aggregation"][0] = 0
    world.from_pod(world.pod_a, ahead("S"))
    ears.read()
    for _ in range(10):
        world.from_pod(world.pod_a, ahead("A"))
        world.from_pod(world.pod_a, IP(src="10.9.9.9", dst="10.0.0.12") / UDP())
    for events in ears.read():
        numbers = [int(event["sequence"]) for event in events]
        assert numbers == list(range(numbers[0], numbers[0] + 10))


def test_a_full_ring_leaves_a_gap_and_a_count(world: World, ears: Ears) -> None:
    def state() -> np.void:
        found = world.dataplane.maps["event_state"].lookup(np.uint32(0))
        assert found is not None
        mine: np.void = found[pinned_cpu()]
        return mine

    before = state()
    sent = (1 << 20) // 200
    spoof = bytes_of(world, IP(src="10.9.9.9", dst="10.0.0.12") / UDP())
    for _ in range(sent):
        world.from_pod(world.pod_a, spoof)
    after = state()
    lost = int(after["lost"][0] - before["lost"][0])
    read = ears.drops()
    assert lost > 0
    assert len(read) + lost == sent == int(after["sequence"][0] - before["sequence"][0])
    world.from_pod(world.pod_a, spoof)
    (event,) = ears.drops()
    assert int(event["sequence"]) - int(read[-1]["sequence"]) == lost + 1


def bytes_of(world: World, packet: Packet) -> bytes:
    mac = bytes.fromhex((world.pod_a.host_mac + world.pod_a.mac).replace(":", ""))
    return mac + b"\x08\x00" + bytes(packet)


def test_a_flood_does_not_hide_the_others(world: World, ears: Ears) -> None:
    world.settings["drop_rate"][0] = 1
    world.settings["drop_burst"][0] = 3
    world.set_policy(2, DENY_ALL)
    for _ in range(10):
        world.from_pod(world.pod_a, ahead("S"))
    assert len(ears.drops()) == 3
    world.from_pod(world.pod_a, IP(src="10.9.9.9", dst="10.0.0.12") / UDP())
    world.from_pod(world.pod_b, IP(src="10.9.9.9", dst="10.0.0.12") / UDP())
    assert [int(event["reason"]) for event in ears.drops()] == [132, 132]
    keys, values = world.dataplane.maps["suppressed"].dump()
    held = {
        (int(key["cookie"]), int(key["endpoint"]), int(key["reason"])): int(value)
        for key, value in zip(keys, values, strict=True)
    }
    assert held == {(3, 102, 133): 7}


def test_what_was_held_back_is_said_later(world: World, ears: Ears) -> None:
    world.settings["drop_rate"][0] = 1
    world.settings["drop_burst"][0] = 1
    spoof = IP(src="10.9.9.9", dst="10.0.0.12") / UDP()
    for _ in range(5):
        world.from_pod(world.pod_a, spoof)
    assert len(ears.drops()) == 1
    buckets = world.dataplane.maps["drop_buckets"]
    keys, values = buckets.dump()
    full = values[0].copy()
    full["tokens"] = 1
    buckets.update(keys[0], full)
    world.from_pod(world.pod_a, spoof)
    assert [int(event["suppressed"]) for event in ears.drops()] == [4]


def test_a_sleeping_reader_is_woken_once(world: World, ears: Ears) -> None:
    asleep = world.layout.value("NODE_READER_ASLEEP")
    world.settings["flags"][0] |= asleep
    world.from_pod(world.pod_a, ahead("S"))
    assert not world.settings["flags"][0] & asleep
    assert len(ears.traces()) == 1


@pytest.fixture(scope="module")
def deaf_world() -> Iterator[World]:
    with load_world("deaf", events_enabled=False) as world:
        yield world


def test_without_events_packets_are_still_counted(loaded_world: World, deaf_world: World) -> None:
    world = deaf_world
    ears = Ears(world)
    before = world.counted(0), world.counted(132)
    assert world.from_pod(world.pod_a, ahead("S")).action == "LOCAL"
    assert world.from_pod(world.pod_a, IP(src="10.9.9.9", dst="10.0.0.12") / UDP()).reason == 132
    assert (world.counted(0), world.counted(132)) == (before[0] + 1, before[1] + 1)
    assert ears.read() == ([], [])


def test_related_errors_are_reported(world: World, ears: Ears) -> None:
    asked = IP(src="10.0.0.11", dst="10.0.0.12") / UDP(sport=1000, dport=53)
    world.from_pod(world.pod_a, asked)
    world.from_pod(world.pod_b, IP(src="10.0.0.12", dst="10.0.0.11") / ICMP(type=3, code=3) / asked)
    assert [int(event["state"]) for event in ears.traces()] == [NEW, RELATED]


def test_log_rules_do_not_change_what_is_reported(world: World, ears: Ears) -> None:
    world.set_policy(2, (Rule(INGRESS, cookie=50, flags=2),))
    world.from_pod(world.pod_a, ahead("S"))
    assert [int(event["ingress_cookie"]) for event in ears.traces()] == [50]


def records_of(world: World) -> int:
    """How many records the ring of traces has been given so far."""
    ring = world.dataplane.maps["events"]
    with mmap.mmap(ring.fd, mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ, offset=mmap.PAGESIZE) as page:
        (produced,) = struct.unpack_from("<Q", page, 0)
    return int(produced) // (8 + world.layout.dtype("event").itemsize)


@pytest.mark.parametrize(
    ("muted", "limit", "expected"),
    [("", 0, 1), ("VERDICTS", 0, 1), ("TRACES", 0, 2), ("", 1000, 3)],
)
def test_verdicts_travel_with_the_trace_if_there_is_one(
    world: World, ears: Ears, muted: str, limit: int, expected: int
) -> None:
    world.settings["event_rate"][0] = world.settings["event_burst"][0] = limit
    if muted:
        world.settings["flags"][0] |= world.layout.value(f"NODE_MUTE_{muted}")
    before = records_of(world)
    world.from_pod(world.pod_a, ahead("S"))
    assert records_of(world) - before == expected
    found = [(int(event["kind"]), int(event["direction"])) for event in ears.read()[1]]
    verdicts, traces = [(VERDICT, EGRESS), (VERDICT, INGRESS)], [(TRACE, INGRESS)]
    assert found == verdicts * (muted != "VERDICTS") + traces * (muted != "TRACES")


def test_only_sides_with_rules_are_in_the_record(world: World, ears: Ears) -> None:
    world.set_policy(2, (Rule(INGRESS, cookie=0),))
    world.from_pod(world.pod_a, ahead("S"))
    world.set_policy(1, (Rule(EGRESS, cookie=0),))
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst="10.0.0.12") / UDP(sport=5, dport=53))
    found = [(int(event["kind"]), int(event["direction"])) for event in ears.read()[1]]
    assert found == [(VERDICT, EGRESS), (TRACE, INGRESS), (TRACE, INGRESS)]


def test_numbers_follow_each_other_across_records(world: World, ears: Ears) -> None:
    world.from_pod(world.pod_a, ahead("S"))
    world.from_pod(world.pod_b, back("SA"))
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst="10.0.0.12") / UDP(sport=5, dport=53))
    numbers = [int(event["sequence"]) for event in ears.read()[1]]
    assert len(numbers) == 7 and numbers == list(range(numbers[0], numbers[0] + 7))


def test_a_record_that_is_lost_counts_for_all_it_stands_for(world: World, ears: Ears) -> None:
    state = world.dataplane.maps["event_state"]

    def told() -> tuple[int, int]:
        found = state.lookup(np.uint32(0))
        assert found is not None
        return int(found["lost"][:, 1].sum()), int(found["sequence"][:, 1].sum())

    world.settings["aggregation"][0] = world.layout.value("AGGREGATION_NONE")
    lost = told()[0]
    world.from_pod(world.pod_a, ahead("A"))
    context = bytearray(192)
    struct.pack_into("<I", context, 40, world.pod_a.ifindex)
    packet = bytes(Ether(src=world.pod_a.mac, dst=world.pod_a.host_mac) / ahead("A"))
    program = world.dataplane.programs["from_container"]
    while told()[0] == lost:
        bpf.test_run(program, packet, context=bytes(context), repeat=5000)
    before = told()
    world.from_pod(world.pod_a, IP(src="10.0.0.11", dst="10.0.0.12") / UDP(sport=5, dport=53))
    assert told() == (before[0] + 3, before[1] + 3)
    ears.read()

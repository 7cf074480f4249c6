"""Desired tables into real kernel maps: order, switches, failures, restarts."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from cilia.dataplane.loader import Dataplane
from cilia.dataplane.maps.policy import RUN
from cilia.dataplane.order import KernelState
from cilia.dataplane.pool import OPEN_LIMIT, POLICY_ENTRIES, PolicyPool
from cilia.model.entries import Entries
from cilia.model.ids import EndpointId, SubjectId
from cilia.model.node import IpcacheEntry, NodeAddress, NodeSettings
from cilia.model.policy import Entry, EntryKey
from cilia.schema import Desired
from tests.support.dataplane import (
    allow,
    dataplane,
    deny,
    endpoint,
    kernel_state,
    loaded_once,
    needs_kernel,
    subject,
)

__all__ = ["dataplane", "loaded_once"]
pytestmark = needs_kernel

INGRESS = 1
PEER_A, PEER_B = EntryKey(INGRESS, 256), EntryKey(INGRESS, 257)
ANYONE = EntryKey(INGRESS, 0)


def entries(state: KernelState, number: int = 1) -> dict[tuple[int, int], int]:
    """(peer, port) to verdict of a subject, as the kernel holds it."""
    rows = state.policies.entries(SubjectId(number))
    return {(row["peer"], row["port"]): row["verdict"] for row in rows}


def test_every_table_reaches_its_maps(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    desired.node_addresses.put(NodeAddress(address="192.0.2.9", node="b", local=False, mtu=1450))
    desired.ipcache.put(
        IpcacheEntry(prefix="10.1.0.0/24", identity=300, tunnel_endpoint="192.0.2.9", flags=1)
    )
    desired.ipcache.put(IpcacheEntry(prefix="fd00::5/128", identity=301))
    desired.subjects.put(subject(1, "r1", {PEER_A: allow(), EntryKey(INGRESS, 0, 6, 80, 24): allow(7)}))
    desired.endpoint_entries.put(endpoint(5, "10.0.0.5", "fd00::5"))
    assert not state.realised(EndpointId(5))
    state.apply(1.0)
    assert state.errors() == [] and not state.pending
    assert state.realised(EndpointId(5))
    assert state.dump("nodes") == [{"key": "192.0.2.9", "value": {"flags": 6, "mtu": 1450}}]
    (prefix,) = state.dump("ipcache")
    assert prefix["key"] == {"prefixlen": 152, "family": 4, "cluster": 0, "address": "10.1.0.0"}
    assert prefix["value"] == {"identity": 300, "flags": 1, "tunnel_endpoint": "192.0.2.9"}
    assert [row["key"]["address"] for row in state.dump("ipcache_hosts")] == ["fd00::5"]
    assert {row["key"] for row in state.dump("endpoints")} == {"10.0.0.5", "fd00::5"}
    (iface,) = state.dump("ifaces")
    assert iface["key"] == 1005 and iface["value"]["ipv6"] == "fd00::5"
    assert iface["value"]["endpoint"]["mac"] == "02:00:00:00:00:01"
    assert entries(state) == {(256, 0): 1, (0, 80): 1}


def test_removals_take_everything_back(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    desired.ipcache.put(IpcacheEntry(prefix="10.1.0.0/24", identity=300))
    desired.subjects.put(subject(1, "r1", {PEER_A: allow()}))
    desired.endpoint_entries.put(endpoint(5, "10.0.0.5"))
    desired.node_addresses.put(NodeAddress(address="2001:db8::1", node="b", local=False))
    state.apply(1.0)
    for table in (desired.ipcache, desired.subjects, desired.endpoint_entries, desired.node_addresses):
        table.replace([])
    state.apply(2.0)
    for name in ("ipcache", "ipcache_hosts", "endpoints", "ifaces", "nodes", "policy_active"):
        assert state.dump(name) == [], name
    assert state.conntrack.flush_pending


def test_an_identity_that_comes_or_goes_leaves_the_revision(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    desired.subjects.put(subject(1, "r1", {PEER_A: allow()}))
    state.apply(1.0)
    revision = state.policies.revision(SubjectId(1))
    desired.subjects.put(subject(1, "r1", {PEER_A: allow(), PEER_B: allow()}))
    state.apply(2.0)
    assert set(entries(state)) == {(256, 0), (257, 0)}
    desired.subjects.put(subject(1, "r1", {PEER_B: allow()}))
    state.apply(3.0)
    assert set(entries(state)) == {(257, 0)}
    assert state.policies.revision(SubjectId(1)) == revision


def test_other_rules_switch_to_another_map_and_revision(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    desired.subjects.put(subject(1, "r1", {PEER_A: allow()}))
    state.apply(1.0)
    slot, revision = state.policies._word(SubjectId(1))
    desired.subjects.put(subject(1, "r2", {PEER_B: allow()}))
    state.apply(2.0)
    assert entries(state) == {(257, 0): 1}
    after = state.policies._word(SubjectId(1))
    assert after[0] != slot and after[1] > revision
    state.pool.settle()
    inner = state.pool.open(slot)
    try:
        assert len(inner.dump()[0]) == 0, "a map that comes back to the pool is empty"
    finally:
        inner.close()


def test_denials_of_a_leaving_identity_outlast_its_prefix(dataplane: Dataplane) -> None:
    """The old denial is carried through the switch and goes only after the ipcache moved on."""
    desired = Desired()
    state = kernel_state(dataplane, desired)
    desired.subjects.put(subject(1, "r1", {PEER_A: deny(), ANYONE: allow()}))
    state.apply(1.0)
    desired.subjects.put(subject(1, "r2", {PEER_B: deny(), ANYONE: allow()}))
    state.subjects.step(2.0)
    assert entries(state) == {(256, 0): 0, (257, 0): 0, (0, 0): 1}
    switched = state.policies.revision(SubjectId(1))
    state.apply(3.0)
    assert entries(state) == {(257, 0): 0, (0, 0): 1}
    assert state.policies.revision(SubjectId(1)) > switched, "what was judged meanwhile is judged again"


def test_too_many_entries_deny_everything_and_say_so(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    desired.subjects.put(subject(1, "r1", {EntryKey(INGRESS, 256 + i): allow() for i in range(17000)}))
    state.apply(1.0)
    (problem,) = state.errors()
    assert "17000 policy entries, 16384 fit" in problem.error and "denied" in problem.error
    assert entries(state) == {(0, 0): 0}
    desired.subjects.put(subject(1, "r1", {PEER_A: allow()}))
    state.apply(2.0)
    assert state.errors() == [] and entries(state) == {(256, 0): 1}


def full_policy(first: int, verdict: Callable[..., Entry]) -> dict[EntryKey, Entry]:
    """As many entries as fit, about peers from a number on, and about anybody."""
    made = {EntryKey(INGRESS, first + number): verdict() for number in range(POLICY_ENTRIES - 1)}
    return made | {ANYONE: allow()}


@pytest.mark.parametrize("verdict", [allow, deny])
@pytest.mark.parametrize("rules", ["r1", "r2"])
def test_a_full_policy_becomes_another_full_one(
    dataplane: Dataplane, verdict: Callable[..., Entry], rules: str
) -> None:
    """All peers leave and as many come: no moment in which the map is too small for both."""
    desired = Desired()
    state = kernel_state(dataplane, desired)
    desired.subjects.put(subject(1, "r1", full_policy(1000, verdict)))
    state.apply(1.0)
    desired.subjects.put(subject(1, rules, full_policy(50_000, verdict)))
    state.subjects.step(2.0)
    assert state.errors() == []
    held = entries(state)
    assert held[(50_000, 0)] == held[(50_000 + POLICY_ENTRIES - 2, 0)] == int(verdict().allow)
    state.apply(3.0)
    held = entries(state)
    assert state.errors() == [] and len(held) == POLICY_ENTRIES and min(held)[0] == 0
    assert (1000, 0) not in held


def test_a_full_ipcache_fails_by_row_and_recovers(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    rows = [IpcacheEntry(prefix=f"10.{i >> 8}.{i & 255}.1/32", identity=300) for i in range(4100)]
    desired.ipcache.replace(rows)
    state.apply(1.0)
    assert len(state.errors()) == 4
    assert "map ipcache_hosts is full (4096 entries)" in state.errors()[0].error
    desired.ipcache.replace(rows[:10] + rows[-4:])
    state.apply(2.0)
    assert state.errors() == [] or state.next_retry() is not None
    state.apply(60.0)
    assert state.errors() == [] and len(state.dump("ipcache_hosts")) == 14


def test_fifty_subjects_switch_at_once(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    for rules in ("r1", "r2", "r3"):
        for number in range(1, 51):
            desired.subjects.put(subject(number, rules, {PEER_A: allow()}))
        state.apply(1.0)
        assert state.errors() == []
    words = [state.policies._word(SubjectId(number)) for number in range(1, 51)]
    assert len({slot for slot, _ in words}) == 50 and len({revision for _, revision in words}) == 50


def test_alike_subjects_and_others_of_one_batch_get_each_their_entries(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    alike = {PEER_A: allow()}
    for number in range(1, 9):
        held = alike if number % 2 else {PEER_B: allow(number), ANYONE: deny(9)}
        desired.subjects.put(subject(number, "r1", held))
    state.apply(1.0)
    for number in range(1, 9):
        found = {row["peer"]: row["cookie"] for row in state.policies.entries(SubjectId(number))}
        assert found == ({256: 1} if number % 2 else {257: number, 0: 9})


def test_one_that_cannot_be_written_denies_and_the_others_switch(dataplane: Dataplane) -> None:
    """Also where so many are switched at once that it takes several runs."""
    desired = Desired()
    state = kernel_state(dataplane, desired)
    numbers, bad = range(1, 2 * RUN + 10), RUN // 2
    for number in numbers:
        bits = 25 if number == bad else 24
        desired.subjects.put(subject(number, "r1", {EntryKey(1, 256, 6, number, bits): allow(number)}))
    state.apply(1.0)
    state.pool.settle()
    assert [int(error.key) for error in state.errors()] == [bad]
    assert {row["verdict"] for row in state.policies.entries(SubjectId(bad))} == {0}
    for number in numbers:
        if number != bad:
            assert [row["cookie"] for row in state.policies.entries(SubjectId(number))] == [number]
    in_force = len(numbers)
    assert state.pool.size - state.pool.idle == in_force, "no map is lost"
    desired.subjects.put(subject(bad, "r1", {EntryKey(1, 256, 6, bad, 24): allow(bad)}))
    state.apply(2.0)
    assert state.errors() == []


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_the_pool_keeps_few_maps_open_and_none_when_closed(dataplane: Dataplane) -> None:
    before = descriptors()
    outer, layout = dataplane.maps["policies"], dataplane.layout
    pool = PolicyPool(outer, layout, (), initial=OPEN_LIMIT + 20)
    pool.settle()
    assert pool.idle >= OPEN_LIMIT + 20
    assert descriptors() <= before + OPEN_LIMIT
    pool.retire(pool.take())
    pool.open(pool.take()).close()
    pool.close()
    assert descriptors() == before


def test_an_endpoint_that_moves_leaves_nothing_behind(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    state.set_node(NodeSettings(router_ipv4="10.0.0.1", mtu=1450), ["10.0.0.1", "192.0.2.1"])
    desired.endpoint_entries.put(endpoint(5, "10.0.0.5", ifindex=21))
    state.apply(1.0)
    desired.endpoint_entries.put(endpoint(5, "10.0.0.6", ifindex=22))
    state.apply(2.0)
    assert {row["key"] for row in state.dump("endpoints")} == {"10.0.0.6", "10.0.0.1", "192.0.2.1"}
    assert [row["key"] for row in state.dump("ifaces")] == [22]
    desired.endpoint_entries.synced = True
    assert state.endpoints.prune() == 0
    state.set_node(NodeSettings(), ["192.0.2.1"])
    assert {row["key"] for row in state.dump("endpoints")} == {"10.0.0.6", "192.0.2.1"}


def test_the_sweep_removes_what_expired_and_counts_the_rest(dataplane: Dataplane) -> None:
    state = kernel_state(dataplane, Desired())
    flows = state.map("conntrack")
    state.map("ct_quota").memory()["opened"][7] = 3000
    keys, values = flows.keys(3000), flows.values(3000)
    keys["low_port"] = range(3000)
    keys["low"]["lo"][:100] = 0xFFFF0A000005
    values["expires"][:2000] = 1000
    values["expires"][2000:] = 50
    values["owner"] = 7
    assert flows.put(keys, values) == {}
    steps = list(state.conntrack.sweep(lambda: 100))
    stats = steps[-1]
    assert stats is not None and (stats.entries, stats.expired, stats.heaviest) == (2000, 1000, ((7, 2000),))
    quota = state.dump("ct_quota")
    paid = {"opened": 3000, "closed": 1000, "service_opened": 0, "service_closed": 0}
    assert quota == [{"key": 7, "value": paid}]
    assert state.conntrack.flush(["10.0.0.5"], 100) == 100
    assert len(state.conntrack.rows(100)) == 1900
    uses = {use.name: use for use in state.map_uses()}
    assert uses["conntrack"].used == 1900 and uses["conntrack"].pressure == 1900 / 4096
    assert uses["events"].pressure is None and uses["nodes"].used == 0


def slots(state: KernelState, *numbers: int) -> list[int]:
    return [state.policies._word(SubjectId(number))[0] for number in numbers]


def test_subjects_with_the_same_entries_share_a_map_under_revisions_of_their_own(
    dataplane: Dataplane,
) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    alike = {PEER_A: allow()}
    for number in (1, 2, 3):
        desired.subjects.put(subject(number, "r1", alike))
    state.apply(1.0)
    assert len(set(slots(state, 1, 2, 3))) == 1
    assert len({state.policies.revision(SubjectId(number)) for number in (1, 2, 3)}) == 3
    more = {PEER_A: allow(), PEER_B: allow()}
    revisions = [state.policies.revision(SubjectId(number)) for number in (1, 2, 3)]
    for number in (1, 2, 3):
        desired.subjects.put(subject(number, "r1", more))
    state.apply(2.0)
    assert set(entries(state, 3)) == {(256, 0), (257, 0)}
    fewer = {PEER_B: allow()}
    for number in (1, 2, 3):
        desired.subjects.put(subject(number, "r1", fewer))
    state.apply(3.0)
    assert set(entries(state, 2)) == {(257, 0)}
    assert [state.policies.revision(SubjectId(number)) for number in (1, 2, 3)] == revisions


def test_whoever_leaves_a_shared_map_is_gone_before_it_changes(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    alike = {PEER_A: allow()}
    for number in (1, 2, 3):
        desired.subjects.put(subject(number, "r1", alike))
    state.apply(1.0)
    (shared, *_) = slots(state, 1)
    more = {PEER_A: allow(), PEER_B: allow()}
    desired.subjects.put(subject(1, "r1", more))
    desired.subjects.put(subject(2, "r1", more))
    desired.subjects.put(subject(3, "r2", {PEER_A: deny()}))
    state.apply(2.0)
    assert slots(state, 1, 2) == [shared, shared]
    assert entries(state, 3) == {(256, 0): 0}
    assert slots(state, 3) != [shared]


def test_who_alone_gets_other_entries_gets_a_map_of_its_own(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    alike = {PEER_A: allow()}
    for number in (1, 2):
        desired.subjects.put(subject(number, "r1", alike))
    state.apply(1.0)
    desired.subjects.put(subject(2, "r1", {PEER_A: allow(), PEER_B: allow()}))
    state.apply(2.0)
    assert entries(state, 1) == {(256, 0): 1}
    assert entries(state, 2) == {(256, 0): 1, (257, 0): 1}


def test_a_shared_map_comes_back_when_its_last_user_leaves(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    alike = {PEER_A: allow()}
    for number in (1, 2):
        desired.subjects.put(subject(number, "r1", alike))
    state.apply(1.0)
    state.pool.settle()
    idle = state.pool.idle
    desired.subjects.delete(SubjectId(1))
    state.apply(2.0)
    assert entries(state, 2) == {(256, 0): 1}
    desired.subjects.delete(SubjectId(2))
    state.apply(3.0)
    state.pool.settle()
    assert state.pool.idle == idle + 1
    assert state.dump("policy_active") == []


def test_another_epoch_is_another_revision(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    alike = {PEER_A: allow()}
    desired.subjects.put(subject(1, "r1", alike))
    state.apply(1.0)
    revision = state.policies.revision(SubjectId(1))
    desired.subjects.put(msgspec.structs.replace(subject(1, "r1", {PEER_B: allow()}), epoch=1))
    state.apply(2.0)
    assert state.policies.revision(SubjectId(1)) > revision
    assert entries(state) == {(257, 0): 1}


def test_a_successor_adopts_shared_maps(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    alike = {PEER_A: allow()}
    for number in (1, 2, 3):
        desired.subjects.put(subject(number, "r1", alike))
    state.apply(1.0)
    words = [state.policies._word(SubjectId(number)) for number in (1, 2, 3)]
    state.pool.close()
    desired = Desired()
    successor = kernel_state(dataplane, desired)
    again = {PEER_A: allow()}
    for number in (1, 2):
        desired.subjects.put(subject(number, "r1", again))
    desired.subjects.put(subject(3, "r1", {PEER_B: allow()}))
    successor.apply(2.0)
    assert [successor.policies._word(SubjectId(number)) for number in (1, 2)] == words[:2]
    assert entries(successor, 3) == {(257, 0): 1}
    assert entries(successor, 1) == {(256, 0): 1}
    desired.subjects.replace([])
    successor.apply(3.0)
    assert successor.dump("policy_active") == []


def test_whatever_subjects_share_and_leave_each_has_its_entries(dataplane: Dataplane) -> None:
    """Random batches: groups change by identities or by rules, subjects move between them, come and go."""
    rng = random.Random(11)
    desired = Desired()
    state = kernel_state(dataplane, desired)
    rules = [0, 1, 2]
    groups = [Entries.of({ANYONE: deny(), EntryKey(INGRESS, 300 + n): allow(n + 1)}) for n in rules]
    member: dict[int, int] = {}
    for now in range(60):
        for group in range(3):
            if rng.random() < 0.5:
                peer = rng.randrange(400, 406)
                kept = {**groups[group]}
                if kept.pop(EntryKey(INGRESS, peer), None) is None:
                    kept[EntryKey(INGRESS, peer)] = rng.choice((allow(group + 1), deny(group + 1)))
                groups[group] = Entries.of(kept)
            if rng.random() < 0.2:
                rules[group] += 3
        for number in range(1, 9):
            draw = rng.random()
            if draw < 0.1:
                member.pop(number, None)
            elif draw < 0.4:
                member[number] = rng.randrange(3)
        rows = [subject(number, f"r{rules[g]}", groups[g]) for number, g in member.items()]
        if rng.random() < 0.1 and rows:
            too_many = {EntryKey(INGRESS, 1000 + n): allow() for n in range(17000)}
            rows[0] = subject(rows[0].subject, "much", too_many)
        desired.subjects.replace(rows)
        state.apply(float(now * 100))
        for row in rows:
            held = {row["peer"]: row["cookie"] for row in state.policies.entries(row.subject)}
            if len(row.entries) > POLICY_ENTRIES:
                assert held == {0: 0}
            else:
                assert held == {key.peer: entry.cookie for key, entry in row.entries.items()}
        state.pool.settle()
        words = [state.policies._word(SubjectId(number)) for number in range(1, 9)]
        live = {slot for slot, revision in words if revision}
        assert state.pool.size - state.pool.idle == len(live)
        assert len({revision for _, revision in words if revision}) == len(rows)

"""A change of policy amid a stream of packets: each packet meets the old rules or the new ones, whole.

One thread runs packets through the data path on a CPU of its own, each judged as a new flow; the other one
changes the receiver's rules as the agent does: revisions of 16,384 entries, identities that come and go.
"""

from __future__ import annotations

import os
import struct
import threading
import time
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from cilia.dataplane import bpf, loader
from cilia.dataplane.maps.policy import Policies
from cilia.dataplane.pool import POLICY_ENTRIES, PolicyPool
from cilia.model.entries import Entries, Layer
from cilia.model.ids import Cookie, IdentityId, Revision, SubjectId
from cilia.model.labels import Labels
from cilia.model.policy import Entry, EntryFlags, EntryKey, MatchKind, SubjectKey, SubjectPolicy
from tests.support.datapath_world import (
    EGRESS,
    INGRESS,
    SKB_CONTEXT,
    SKB_IFINDEX,
    World,
    load_world,
)

pytestmark = pytest.mark.root

SECONDS = float(os.environ.get("CILIA_SWAP_SECONDS", "4"))
LEAST = 6
"""Changes of policy that a run sees, however long they take."""
REPEAT = 20_000
TCP_NUMBER = 6
Switching = Callable[[Policies, SubjectPolicy], Iterator[None]]
ALLOWED_PORT, DENIED_PORT = 80, 81
LIMITED = 198
"""What becomes here of a flow that policy allows: the sender may open no more, so none is remembered."""
COOKIES = {
    "old": {ALLOWED_PORT: 11, DENIED_PORT: 21},
    "new": {ALLOWED_PORT: 12, DENIED_PORT: 22},
}


def entry(precedence: int, allow: bool, cookie: int, flags: EntryFlags = EntryFlags.NONE) -> Entry:
    return Entry(precedence, allow, Cookie(cookie), MatchKind.ALL, flags)


def rules_of(name: str, room: int) -> Entries:
    """Both revisions allow port 80 and deny port 81 to the peer, by opposite entries: whoever mixes the two
    look-ups of one with those of the other gets the wrong answer. The rest is about others; with room left in
    the new ones they don't know some that the old ones deny, and carry those denials for a moment."""
    old, cookies = name == "old", COOKIES[name]
    entries = {
        EntryKey(INGRESS, 0): entry(0, False, 3, EntryFlags.DEFAULT),
        EntryKey(EGRESS, 0): entry(0, True, 0, EntryFlags.DEFAULT),
    }
    for port, allow in ((ALLOWED_PORT, True), (DENIED_PORT, False)):
        decides, loses = entry(9, allow, cookies[port]), entry(5, not allow, 99)
        key = {peer: EntryKey(INGRESS, peer, TCP_NUMBER, port, 24) for peer in (0, 1001)}
        entries[key[1001 if old else 0]] = decides
        entries[key[0 if old else 1001]] = loses
    mixed = Entries.of(entries)
    other: Layer = {(TCP_NUMBER, ALLOWED_PORT, 24): entry(7, not old, 77)}
    count = POLICY_ENTRIES - (0 if old else room) - len(entries)
    return mixed.replaced({(INGRESS, 2000 + number): other for number in range(count)})


def row(subject: int, rules: str, entries: Mapping[EntryKey, Entry]) -> SubjectPolicy:
    return SubjectPolicy(
        subject=SubjectId(subject),
        key=SubjectKey(IdentityId(1000 + subject)),
        labels=Labels(),
        rules=rules,
        revision=Revision(1),
        entries=entries,
        ingress_enforced=True,
        egress_enforced=True,
    )


class Stream:
    """Packets of pod_a to pod_b, to either port in turn, on a CPU of their own."""

    def __init__(self, world: World, cpu: int) -> None:
        self._world = world
        self._cpu = cpu
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent = dict.fromkeys((ALLOWED_PORT, DENIED_PORT), 0)
        self.failure: BaseException | None = None

    def __enter__(self) -> Stream:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            os.sched_setaffinity(0, {self._cpu})
            while not self._stop.is_set():
                for port in self.sent:
                    self._send(port)
        except BaseException as error:
            self.failure = error

    def _send(self, port: int) -> None:
        pod = self._world.pod_a
        frame = Ether(src=pod.mac, dst=pod.host_mac) / IP(src=pod.ipv4, dst="10.0.0.12")
        context = bytearray(SKB_CONTEXT)
        struct.pack_into("<I", context, SKB_IFINDEX, pod.ifindex)
        program = self._world.dataplane.programs["from_container"]
        packet = bytes(frame / TCP(sport=40000, dport=port, flags="S"))
        bpf.test_run(program, packet, context=bytes(context), repeat=REPEAT)
        self.sent[port] += REPEAT


@pytest.fixture(scope="module")
def world() -> Iterator[World]:
    if os.geteuid() != 0:
        pytest.skip("needs root: loads eBPF programs")
    with load_world("swap", record_decisions=False, events_enabled=False) as made:
        yield made


@pytest.fixture
def policies(world: World) -> Iterator[Policies]:
    maps = world.dataplane.maps
    world.furnish()
    world.active["slot"] = world.active["revision"] = 0
    pool = PolicyPool(maps["policies"], world.layout, (), initial=8)
    yield Policies(maps["policy_active"], maps[loader.REVISION_MAP], pool, world.layout)
    pool.close()


def limit_flows(world: World) -> None:
    """No flow is remembered, so that every packet is judged."""
    world.settings["ct_quota"][0] = 1
    quota = np.zeros(1, world.layout.dtype("ct_quota"))
    quota["opened"] = 1
    world.dataplane.maps["ct_quota"].update(np.uint32(world.pod_a.id), quota)


def switch_to_filled(policies: Policies, sender: SubjectPolicy) -> Iterator[None]:
    """Each revision is written into a map of its own first; identities come and go in the new one."""
    revisions = {name: rules_of(name, room=64) for name in COOKIES}
    assert len(revisions["old"]) == POLICY_ENTRIES
    while True:
        for name, entries in revisions.items():
            assert policies.update([sender, row(2, name, entries)]) == {}
            policies.finish()
            yield
        for _ in come_and_go(policies, sender, revisions["new"]):
            yield


def switch_to_shared(policies: Policies, sender: SubjectPolicy) -> Iterator[None]:
    """Both revisions are in force for other subjects: a switch only names the other map."""
    revisions = {name: rules_of(name, room=0) for name in COOKIES}
    others = [row(3 + number, *revision) for number, revision in enumerate(revisions.items())]
    assert policies.update([sender, *others]) == {}
    while True:
        for name, entries in revisions.items():
            assert policies.update([sender, *others, row(2, name, entries)]) == {}
            policies.finish()
            yield


@pytest.mark.parametrize("switch", [switch_to_filled, switch_to_shared])
def test_no_packet_meets_half_a_policy(world: World, policies: Policies, switch: Switching) -> None:
    cpus = sorted(os.sched_getaffinity(0))
    limit_flows(world)
    sender = row(1, "any", {EntryKey(direction, 0): entry(0, True, 2) for direction in (INGRESS, EGRESS)})
    steps = switch(policies, sender)
    next(steps)
    switched = 0
    before = {reason: world.counted(reason) for reason in (0, 133, 165, 181, LIMITED)}
    with Stream(world, cpus[-1]) as stream:
        os.sched_setaffinity(0, {cpus[0]})
        ends = time.monotonic() + SECONDS
        while time.monotonic() < ends or switched < LEAST:
            next(steps)
            switched += 1
    assert stream.failure is None
    got = {reason: world.counted(reason) - count for reason, count in before.items()}
    print(f"{sum(stream.sent.values()):,} packets across {switched} changes of policy")
    assert got == {0: 0, 133: 0, 165: 0, 181: stream.sent[DENIED_PORT], LIMITED: stream.sent[ALLOWED_PORT]}
    assert named(world, ALLOWED_PORT) == {11, 12}
    assert named(world, DENIED_PORT) == {21, 22}


def come_and_go(policies: Policies, sender: SubjectPolicy, entries: Entries) -> Iterator[None]:
    """Sixty identities get entries in the live map, and lose them again."""
    layer: Layer = {(TCP_NUMBER, DENIED_PORT, 24): entry(7, True, 78)}
    more = entries.replaced({(INGRESS, 90000 + number): layer for number in range(60)})
    for rules in (more, entries):
        assert policies.update([sender, row(2, "new", rules)]) == {}
        policies.finish()
        yield


def named(world: World, port: int) -> set[int]:
    """The cookies of the entries that judged packets to a port of pod_b."""
    return {key[6] for key in world.entry_counts() if key[0] == 2 and key[4] == port}

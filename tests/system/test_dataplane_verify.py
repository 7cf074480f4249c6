"""What is intended against what the kernel has: nothing is reported that is right, all that is wrong is, and
repair leaves nothing to report."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import pytest

from cilia.dataplane.bpf import Map
from cilia.dataplane.loader import Dataplane
from cilia.dataplane.order import KernelState
from cilia.dataplane.verify import Verifier
from cilia.model.ids import EndpointId, SubjectId
from cilia.model.node import IpcacheEntry, NodeAddress, Route
from cilia.model.policy import EntryKey
from cilia.model.service import Algorithm
from cilia.schema import Desired
from tests.support.dataplane import allow, dataplane, deny, endpoint, loaded_once, needs_kernel, subject
from tests.support.service_rows import entry, frontend

__all__ = ["dataplane", "loaded_once"]
pytestmark = needs_kernel

INGRESS = 1


class ListedRoutes:
    """A target for routes that remembers them, as the kernel would."""

    def __init__(self) -> None:
        self.present: set[str] = set()

    def update(self, rows: Sequence[Route]) -> dict[str, str]:
        self.present |= {row.prefix for row in rows}
        return {}

    def delete(self, keys: Sequence[str]) -> dict[str, str]:
        self.present -= set(keys)
        return {}

    def prune(self, keep: Iterable[Route]) -> int:
        return 0

    def ours(self) -> set[str]:
        return set(self.present)


class Node:
    """A node with some of everything, all of it in force."""

    def __init__(self, dataplane: Dataplane) -> None:
        self.desired = desired = Desired()
        self.routes = ListedRoutes()
        self.state = KernelState(dataplane, desired, self.routes)
        self.state.pool.settle()
        self.state.set_hosts(["10.0.0.1", "192.0.2.1"])
        alike = {EntryKey(INGRESS, 256): allow(), EntryKey(INGRESS, 0, 6, 80, 24): deny(7)}
        for number in range(1, 4):
            desired.node_addresses.put(NodeAddress(address=f"192.0.2.{number}", node="b", local=False))
            desired.ipcache.put(IpcacheEntry(prefix=f"10.{number}.0.0/16", identity=300 + number))
            desired.ipcache.put(IpcacheEntry(prefix=f"10.{number}.3.0/24", identity=400 + number))
            desired.ipcache.put(IpcacheEntry(prefix=f"10.0.0.1{number}/32", identity=500 + number))
            desired.endpoint_entries.put(endpoint(number, f"10.0.0.1{number}", f"fd00::1{number}"))
            desired.routes.put(Route(prefix=f"10.{number}.0.0/16", device="cilia_host"))
            desired.subjects.put(subject(number, "r1", alike if number < 3 else {}))
            rows = {
                "source_ranges": ("192.0.2.0/24",),
                "algorithm": Algorithm.MAGLEV if number == 2 else Algorithm.RANDOM,
            }
            desired.service_entries.put(entry(number, number, number + 1, draining=(number + 9,), **rows))
        self.now = 0.0
        self.apply()
        self.verifier = Verifier(self.state)

    def apply(self) -> None:
        self.now += 1
        self.state.apply(self.now)

    def look(self) -> list[tuple[str, str]]:
        """(map, key) of every difference."""
        for _ in self.verifier.round(lambda: self.now):
            pass
        return [(found.map, found.key) for found in self.verifier.differences]

    def map(self, name: str) -> Map:
        return self.state.map(name)


@pytest.fixture
def node(dataplane: Dataplane) -> Node:
    return Node(dataplane)


def test_nothing_is_reported_that_is_right(node: Node) -> None:
    assert node.look() == []
    assert node.verifier.checked == node.now and node.verifier.differed is None


def first_key(found: Map) -> np.ndarray[Any, Any]:
    keys, _ = found.dump()
    return keys[:1]


@pytest.mark.parametrize(
    "name",
    ["nodes", "ipcache", "ipcache_hosts", "endpoints", "ifaces", "services", "source_ranges"],
)
def test_what_is_missing_comes_back(node: Node, name: str) -> None:
    found = node.map(name)
    before = _snapshot(found)
    assert found.remove(first_key(found)) == 1
    reported = node.look()
    assert [where for where, _ in reported] == [name]
    assert node.verifier.differences[0].actual == "" and node.verifier.differences[0].intended
    assert node.verifier.repair() == 1
    node.apply()
    assert node.look() == [] and _snapshot(found) == before


@pytest.mark.parametrize("name", ["nodes", "ipcache", "ipcache_hosts", "endpoints", "ifaces", "services"])
def test_what_was_changed_is_changed_back(node: Node, name: str) -> None:
    found = node.map(name)
    before = _snapshot(found)
    keys, values = found.dump()
    raw = bytearray(values[:1].tobytes())
    raw[0] ^= 1
    found.put(keys[:1], np.frombuffer(bytes(raw), found.value))
    assert [where for where, _ in node.look()] == [name]
    assert node.verifier.differences[0].actual != node.verifier.differences[0].intended
    node.verifier.repair()
    node.apply()
    assert node.look() == [] and _snapshot(found) == before


@pytest.mark.parametrize(
    "name",
    [
        "nodes",
        "ipcache",
        "ipcache_hosts",
        "endpoints",
        "ifaces",
        "services",
        "source_ranges",
        "skip_redirect",
    ],
)
def test_strangers_go(node: Node, name: str) -> None:
    found = node.map(name)
    before = _snapshot(found)
    keys, values = found.keys(1), found.values(1)
    if name == "ifaces":
        keys[:] = 4711
    else:
        address = keys if keys.dtype.names == ("hi", "lo") else keys["address"]
        address["lo"] = 0xFFFF0C000000
    if name.startswith("ipcache") or name == "source_ranges":
        keys["prefixlen"] = 160 if name == "ipcache_hosts" else 150
    if name in ("services", "skip_redirect"):
        keys["protocol"] = 99
    assert found.put(keys, values) == {}
    assert [where for where, _ in node.look()] == [name]
    assert node.verifier.differences[0].intended == ""
    node.verifier.repair()
    node.apply()
    assert node.look() == [] and _snapshot(found) == before


def damage_backend(node: Node) -> None:
    rows = node.map("backends").memory()
    rows["port"][rows["port"].nonzero()[0][0]] = 4711


def kill_backend(node: Node) -> None:
    rows = node.map("backends").memory()
    rows["flags"][rows["port"].nonzero()[0][-1]] = 0


def raise_dead_backend(node: Node) -> None:
    rows = node.map("backends").memory()
    rows[999]["port"], rows[999]["flags"] = 80, 1


def damage_frontend(node: Node) -> None:
    rows = node.map("frontends").memory()
    rows["port"][node.state.service_maps.id_of(frontend(1))] = 4711


def damage_slots(node: Node) -> None:
    for at in (1, 2):
        first = node.map("services").dump()[1]["range"]["first"][at - 1, 0]
        node.map("slots").memory()[first] = 4711


def damage_policy(node: Node) -> None:
    inner = node.state.pool.open(node.state.policies._word(SubjectId(1))[0])
    try:
        inner.remove(inner.dump()[0][:1])
    finally:
        inner.close()


def point_elsewhere(node: Node) -> None:
    words = node.map("policy_active").memory()
    words["slot"][1] = words["slot"][3]


def take_policy_away(node: Node) -> None:
    node.map("policy_active").memory()[2:3].view("<u8")[0] = 0


def bring_stranger_into_force(node: Node) -> None:
    words = node.map("policy_active").memory().view("<u8")
    words[77] = words[1]


def remove_route(node: Node) -> None:
    node.routes.present.discard("10.2.0.0/16")


def add_route(node: Node) -> None:
    node.routes.present.add("10.77.0.0/16")


@pytest.mark.parametrize(
    ("harm", "where", "times"),
    [
        (damage_backend, "backends", 1),
        (kill_backend, "backends", 1),
        (raise_dead_backend, "backends", 1),
        (damage_frontend, "frontends", 1),
        (damage_slots, "slots", 2),
        (damage_policy, "policies", 2),
        (point_elsewhere, "policies", 1),
        (take_policy_away, "policies", 1),
        (bring_stranger_into_force, "policy_active", 1),
        (remove_route, "routes", 1),
        (add_route, "routes", 1),
    ],
)
def test_harm_is_found_and_repaired(node: Node, harm: Callable[[Node], None], where: str, times: int) -> None:
    before = [_entries(node, number) for number in (1, 2, 3)]
    harm(node)
    assert [found for found, _ in node.look()] == [where] * times
    assert node.verifier.differed == node.now
    assert node.verifier.repair() == times
    node.apply()
    assert node.look() == [] and node.state.errors() == []
    assert [_entries(node, number) for number in (1, 2, 3)] == before
    assert node.routes.present == {row.prefix for row in node.desired.routes}


def test_a_damaged_map_that_subjects_share_is_left_by_all_of_them(node: Node) -> None:
    slots = {node.state.policies._word(SubjectId(number))[0] for number in (1, 2)}
    assert len(slots) == 1
    damage_policy(node)
    node.look()
    node.verifier.repair()
    node.apply()
    assert {node.state.policies._word(SubjectId(number))[0] for number in (1, 2)} & slots == set()
    for table in (node.desired.subjects, node.desired.endpoint_entries):
        table.replace([])
    node.apply()
    node.state.pool.settle()
    assert node.state.dump("policy_active") == [] and node.state.pool.idle == node.state.pool.size


def test_rows_on_their_way_are_no_difference(node: Node) -> None:
    """Rows come, change and go between the slices of a round."""
    rng = random.Random(3)
    for _ in node.verifier.round(lambda: node.now):
        number = rng.randrange(4, 9)
        node.desired.ipcache.put(IpcacheEntry(prefix=f"10.{number}.0.0/16", identity=rng.randrange(300, 400)))
        node.desired.ipcache.delete(f"10.{rng.randrange(1, 9)}.3.0/24")
        node.desired.service_entries.put(entry(rng.randrange(1, 6), rng.randrange(9), rng.randrange(9)))
        node.desired.service_entries.delete(frontend(rng.randrange(1, 9)))
        node.desired.endpoint_entries.put(endpoint(number, f"10.0.0.{rng.randrange(20, 200)}"))
        node.desired.endpoint_entries.delete(EndpointId(rng.randrange(1, 9)))
        if rng.random() < 0.7:
            node.apply()
    assert node.verifier.differences == ()


def test_whatever_is_damaged_is_found_and_repaired(node: Node) -> None:
    rng = random.Random(4)
    names = ("nodes", "ipcache", "ipcache_hosts", "endpoints", "ifaces", "services", "source_ranges")
    healthy = {name: _snapshot(node.map(name)) for name in names}
    memories = {name: node.map(name).memory() for name in ("backends", "frontends", "slots")}
    rows = {name: memory.copy() for name, memory in memories.items()}
    for _ in range(20):
        for name in names:
            found = node.map(name)
            keys, values = found.dump()
            some = rng.randrange(len(keys) + 1)
            if rng.random() < 0.5:
                found.remove(keys[:some])
            elif name != "source_ranges":
                found.put(keys[:some], np.frombuffer(rng.randbytes(some * values.itemsize), found.value))
        for name in memories:
            used = np.frombuffer(rows[name].tobytes(), np.uint8).reshape(len(rows[name]), -1).any(axis=1)
            memories[name][rng.choice(np.flatnonzero(used).tolist())] = np.frombuffer(
                rng.randbytes(memories[name].itemsize), memories[name].dtype
            )[0]
        node.look()
        node.verifier.repair()
        node.apply()
        assert node.look() == [] and node.state.errors() == []
        assert {name: _snapshot(node.map(name)) for name in names} == healthy
        services = node.state.service_maps
        assert services.differences(list(node.desired.service_entries.keys())) == []


def _entries(node: Node, number: int) -> set[tuple[int, int, int]]:
    rows = node.state.policies.entries(SubjectId(number))
    return {(row["peer"], row["port"], row["verdict"]) for row in rows}


def _snapshot(found: Map) -> dict[bytes, bytes]:
    keys, values = found.dump()
    return {key.tobytes(): value.tobytes() for key, value in zip(keys, values, strict=True)}

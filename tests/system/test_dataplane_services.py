"""Rows of services into real kernel maps: what packets find there after each step, and after a restart."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from cilia import abi
from cilia.dataplane import sockets
from cilia.dataplane.bpf import Map
from cilia.dataplane.loader import Dataplane
from cilia.dataplane.maps import packing
from cilia.dataplane.maps.services import LocalPod, ServiceOptions, Services
from cilia.dataplane.order import KernelState
from cilia.lab import cgroups
from cilia.model.node import NodeSettings
from cilia.model.service import Algorithm, Backend, ForwardingMode, Frontend, Protocol, ServiceEntry
from cilia.schema import Desired
from tests.support.dataplane import NoRoutes, dataplane, endpoint, kernel_state, loaded_once, needs_kernel
from tests.support.service_rows import Clock, backend, entry, frontend, random_entry, service_maps, target

__all__ = ["dataplane", "loaded_once"]
pytestmark = needs_kernel


@pytest.fixture
def maps() -> Iterator[dict[str, Map]]:
    with service_maps() as made:
        yield made


class Kernel:
    """Reads the maps as the programs do."""

    def __init__(self, maps: dict[str, Map]) -> None:
        self.maps = maps
        layout = abi.layout()
        self.live, self.draining = layout.value("BACKEND_LIVE"), layout.value("BACKEND_DRAINING")
        self.slots = maps["slots"].memory()
        self.backends = maps["backends"].memory()
        self.frontends = maps["frontends"].memory()

    def service(self, asked: Frontend) -> dict[str, object] | None:
        key = self.maps["services"].keys(1)
        key["address"] = packing.addresses([asked.address], key.dtype["address"])
        key["port"], key["protocol"] = asked.port, int(asked.protocol)
        value = self.maps["services"].lookup(key)
        return None if value is None else packing.records(value.reshape(1))[0]

    def candidates(self, asked: Frontend, scope: int = 0) -> Counter[str] | None:
        """Live backends by how many slots lead to each; None: no such service."""
        found = self.service(asked)
        if found is None:
            return None
        first, count = found["range"][scope].values()  # type: ignore[index]
        numbers = self.slots[first : first + count].tolist()
        assert all(self.backends["flags"][n] & self.live for n in numbers), "a slot leads to a dead backend"
        return Counter(self.text(number) for number in numbers)

    def text(self, number: int) -> str:
        row = packing.records(self.backends[number : number + 1])[0]
        return str(Backend(row["address"], row["port"], Protocol(row["protocol"])))

    def flags(self) -> dict[str, str]:
        """What the kernel says of each backend: new flows (chosen), old ones (draining), or none (dead)."""
        names = {self.live: "chosen", self.live | self.draining: "draining", 0: "dead"}
        return {
            self.text(int(number)): names[int(self.backends["flags"][number])]
            for number in self.backends["port"].nonzero()[0]
        }


def expected(row: ServiceEntry, scope: int) -> set[str]:
    """Who may be chosen."""
    side = row.external if scope else row.internal
    return {str(found) for found in side if found.weight > 0}


def agree(kernel: Kernel, rows: dict[Frontend, ServiceEntry], services: Services) -> None:
    """The kernel has just these rows."""
    assert services.ours() == set(rows)
    ids = set()
    for row in rows.values():
        value = kernel.service(row.frontend)
        assert value is not None
        named = packing.records(kernel.frontends[value["id"] : value["id"] + 1])[0]  # type: ignore[operator]
        assert (named["address"], named["port"]) == (row.frontend.address, row.frontend.port)
        ids.add(value["id"])
        for scope in (0, 1):
            found = kernel.candidates(row.frontend, scope)
            assert found is not None and set(found) == expected(row, scope), row
    assert len(ids) == len(rows) and 0 not in ids
    wanted: dict[str, str] = {}
    for row in rows.values():
        for found_backend in (*row.draining, *row.internal, *row.external):
            wanted.setdefault(str(found_backend), "draining")
    for row in rows.values():
        wanted |= dict.fromkeys(expected(row, 0) | expected(row, 1), "chosen")
    assert {name: state for name, state in kernel.flags().items() if state != "dead"} == wanted
    keys = kernel.maps["source_ranges"].dump()[0]
    assert len(keys) == sum(len(row.source_ranges) for row in rows.values())
    assert set(keys["service"].tolist()) <= ids


def test_a_service_and_its_backends_are_found(maps: dict[str, Map]) -> None:
    services, kernel = target(maps), Kernel(maps)
    row = entry(1, 1, 2, affinity=30, outside=True, mode=ForwardingMode.DSR, keeps_client=True)
    row = msgspec.structs.replace(row, external=row.internal[:1])
    assert services.update([row]) == {}
    agree(kernel, {row.frontend: row}, services)
    found = kernel.service(row.frontend)
    assert found is not None and found["affinity"] == 30
    (listed,) = services.rows()
    assert set(listed["flags"]) == {"AFFINITY", "DSR", "OUTSIDE", "REJECT", "KEEPS_CLIENT"}
    assert listed["internal"] == ["10.0.0.1:8080/TCP", "10.0.0.2:8080/TCP"]
    assert listed["external"] == ["10.0.0.1:8080/TCP"]
    assert services.id_of(row.frontend) == found["id"] and services.entry(found["id"]) == row
    services.delete([row.frontend])
    assert kernel.service(row.frontend) is None and set(kernel.flags().values()) == {"dead"}
    assert services.delete([row.frontend]) == {}


def test_a_change_leaves_the_old_stretch_as_it_was_for_a_while(maps: dict[str, Map]) -> None:
    clock = Clock()
    services, kernel = target(maps, clock), Kernel(maps)
    services.update([entry(1, 1, 2)])
    before = kernel.service(frontend(1))
    assert before is not None
    first = before["range"][0]["first"]  # type: ignore[index]
    old = kernel.slots[first : first + 2].tolist()
    services.update([entry(1, 2, 3)])
    services.update([entry(2, 4, 5), entry(3, 6, 7)])
    assert kernel.slots[first : first + 2].tolist() == old, "a program may still be reading it"
    after = kernel.service(frontend(1))
    assert after is not None and after["revision"] != before["revision"] and after["id"] == before["id"]
    assert kernel.flags()["10.0.0.1:8080/TCP"] == "dead"


def test_alike_candidates_share_a_stretch_and_keep_their_revision(maps: dict[str, Map]) -> None:
    services, kernel = target(maps), Kernel(maps)
    services.update([entry(1, 1, 2), entry(2, 1, 2)])
    one, two = kernel.service(frontend(1)), kernel.service(frontend(2))
    assert one is not None and two is not None and one["range"] == two["range"]
    services.update([entry(1, 1, 2, affinity=5)])
    again = kernel.service(frontend(1))
    assert again is not None and (again["range"], again["revision"]) == (one["range"], one["revision"])
    services.delete([frontend(1)])
    assert kernel.candidates(frontend(2)) == {"10.0.0.1:8080/TCP": 1, "10.0.0.2:8080/TCP": 1}


def test_weights_are_shares_and_none_is_maintenance(maps: dict[str, Map]) -> None:
    services, kernel = target(maps), Kernel(maps)
    backends = (backend(1, 0), backend(2, 20), backend(3, 60))
    services.update([msgspec.structs.replace(entry(1), internal=backends, external=backends)])
    assert kernel.candidates(frontend(1)) == {"10.0.0.2:8080/TCP": 1, "10.0.0.3:8080/TCP": 3}
    assert kernel.flags()["10.0.0.1:8080/TCP"] == "draining"


def test_a_maglev_table_has_the_size_asked_for(maps: dict[str, Map]) -> None:
    services, kernel = target(maps, maglev=1021), Kernel(maps)
    services.update(
        [entry(1, *range(10), algorithm=Algorithm.MAGLEV), entry(2, 1, algorithm=Algorithm.MAGLEV)]
    )
    found = kernel.candidates(frontend(1))
    assert found is not None and sum(found.values()) == 1021 and len(found) == 10
    assert min(found.values()) > 95
    assert kernel.candidates(frontend(2)) == {"10.0.0.1:8080/TCP": 1}


def test_draining_backends_stay_until_the_last_service_lets_go(maps: dict[str, Map]) -> None:
    services, kernel = target(maps), Kernel(maps)
    services.update([entry(1, 1, 2), entry(2, 2)])
    services.update([entry(1, 1, draining=(2,))])
    assert kernel.flags()["10.0.0.2:8080/TCP"] == "chosen"
    services.update([entry(2, draining=(2,))])
    assert kernel.flags()["10.0.0.2:8080/TCP"] == "draining"
    assert kernel.candidates(frontend(2)) == Counter()
    services.update([entry(1, 1)])
    assert kernel.flags()["10.0.0.2:8080/TCP"] == "draining"
    services.update([entry(2)])
    assert kernel.flags()["10.0.0.2:8080/TCP"] == "dead"


def test_source_ranges_follow_their_frontend(maps: dict[str, Map]) -> None:
    services = target(maps)
    services.update([entry(1, 1, source_ranges=("192.0.2.0/24", "2001:db8::/32"))])
    keys = packing.records(maps["source_ranges"].dump()[0])
    assert {(key["address"], key["prefixlen"]) for key in keys} == {("192.0.2.0", 152), ("2001:db8::", 64)}
    services.update([entry(1, 1, source_ranges=("192.0.2.0/24", "198.51.100.0/24"))])
    keys = packing.records(maps["source_ranges"].dump()[0])
    assert {key["address"] for key in keys} == {"192.0.2.0", "198.51.100.0"}
    services.delete([frontend(1)])
    assert len(maps["source_ranges"].dump()[0]) == 0


def test_a_redirect_leaves_the_pods_alone_that_are_here(maps: dict[str, Map]) -> None:
    services = target(maps)
    pods: dict[str, LocalPod] = {}
    services.locate = pods.get
    row = entry(1, 1, skip=("10.0.0.1", "10.0.0.9"))
    services.update([row])
    assert len(maps["skip_redirect"].dump()[0]) == 0 and services.moved_skips() == []
    pods["10.0.0.1"] = LocalPod(7, 4711)
    assert services.moved_skips() == [row.frontend]
    services.update([row])
    keys = packing.records(maps["skip_redirect"].dump()[0])
    assert {(key["endpoint"], key["netns"]) for key in keys} == {(7, 0), (0, 4711)}
    assert services.moved_skips() == []
    services.delete([row.frontend])
    assert len(maps["skip_redirect"].dump()[0]) == 0


def test_a_number_of_a_frontend_rests_until_no_flow_names_it(maps: dict[str, Map]) -> None:
    clock = Clock()
    services, kernel = target(maps, clock), Kernel(maps)
    services.update([entry(1, 1), entry(2, 1)])
    number = services.id_of(frontend(1))
    services.delete([frontend(1)])
    assert kernel.frontends["port"][number] == 80 and services.entry(number) is not None
    used = kernel.frontends["port"] != 0
    clock.now += 60
    assert services.forget(used, clock.now) == 0
    assert services.forget(used & False, clock.now - 61) == 0, "it had not gone yet when the sweep began"
    assert services.forget(used & False, clock.now) == 1
    assert kernel.frontends["port"][number] == 0 and services.entry(number) is None
    services.update([entry(2, 1), entry(3, 1)])
    assert services.id_of(frontend(3)) != number, "fresh numbers first"


def test_the_same_frontend_and_backend_get_their_numbers_back(maps: dict[str, Map]) -> None:
    services, kernel = target(maps), Kernel(maps)
    services.update([entry(1, 1)])
    number, places = services.id_of(frontend(1)), kernel.flags()
    services.delete([frontend(1)])
    services.update([entry(1, 1)])
    assert services.id_of(frontend(1)) == number and kernel.flags() == places


@pytest.mark.parametrize(
    ("full", "size", "fit"),
    [
        ("services", 8, 8),
        ("frontends", 9, 8),
        ("backends", 17, 8),
        ("slots", 32, 16),
        ("source_ranges", 5, 5),
    ],
)
def test_what_does_not_fit_says_so_and_all_else_works(full: str, size: int, fit: int) -> None:
    with service_maps({full: size}) as maps:
        services, kernel = target(maps), Kernel(maps)
        made = [entry(n, 2 * n, 2 * n + 1, source_ranges=("192.0.2.0/24",)) for n in range(1, 21)]
        rows = {row.frontend: row for row in made}
        failures = services.update(list(rows.values()))
        assert len(failures) == len(rows) - fit
        assert set(failures.values()) == {f"map {full} is full ({size} entries): raise its size"}
        standing = {key: row for key, row in rows.items() if key not in failures}
        agree(kernel, standing, services)
        services.delete(list(standing)[:4])
        services.forget(kernel.frontends["port"] < 0, 1e9)
        late = [rows[key] for key in list(failures)[:4]]
        assert services.update(late) == {}
        rest = dict(list(standing.items())[4:])
        agree(kernel, rest | {row.frontend: row for row in late}, services)


def test_tables_that_can_not_fit_are_not_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    with service_maps({"slots": 1 << 14}) as maps:
        services = target(maps, maglev=16381)
        services.prune([])
        assert services.update([entry(1, 1, 2, algorithm=Algorithm.MAGLEV)]) == {}
        monkeypatch.setattr("cilia.model.maglev.table", None)
        assert len(services.update([entry(2, 3, 4, algorithm=Algorithm.MAGLEV)])) == 1


def test_a_service_that_can_not_change_keeps_what_it_had() -> None:
    with service_maps({"backends": 4}) as maps:
        services, kernel = target(maps), Kernel(maps)
        services.update([entry(1, 1, 2)])
        assert services.update([entry(1, 3, 4, 5)]) != {}
        assert kernel.candidates(frontend(1)) == {"10.0.0.1:8080/TCP": 1, "10.0.0.2:8080/TCP": 1}
        assert services.update([entry(1, 1, 2, 3)]) == {}
        agree(kernel, {frontend(1): entry(1, 1, 2, 3)}, services)


def test_a_successor_finds_everything_where_it_was(maps: dict[str, Map]) -> None:
    rng = random.Random(5)
    rows = {row.frontend: row for row in (random_entry(rng, n, 60) for n in range(200))}
    target(maps).update(list(rows.values()))
    before = {name: _snapshot(maps[name]) for name in ("services", "frontends", "backends", "source_ranges")}
    clock, kernel = Clock(), Kernel(maps)
    slots = kernel.slots.copy()
    services = target(maps, clock)
    assert services.update(list(rows.values())) == {}
    assert services.prune(rows.values()) == 0
    after = {name: _snapshot(maps[name]) for name in before}
    assert after == before and (kernel.slots == slots).all()
    agree(kernel, rows, services)
    services.delete(list(rows))
    assert set(kernel.flags().values()) == {"dead"}


def _snapshot(found: Map) -> dict[bytes, bytes]:
    keys, values = found.dump()
    return dict(zip(packing.raw_rows(keys), packing.raw_rows(values), strict=True))


def test_a_successor_prunes_what_nobody_claims(maps: dict[str, Map]) -> None:
    first = target(maps)
    first.update([entry(1, 1, 2, draining=(3,)), entry(2, 2, 4, source_ranges=("192.0.2.0/24",))])
    services, kernel = target(maps), Kernel(maps)
    assert kernel.flags()["10.0.0.3:8080/TCP"] == "draining"
    services.update([entry(1, 1, 2)])
    assert kernel.flags()["10.0.0.3:8080/TCP"] == "draining", "its row may not have come yet"
    assert kernel.candidates(frontend(2)) == {"10.0.0.2:8080/TCP": 1, "10.0.0.4:8080/TCP": 1}
    assert services.prune([entry(1, 1, 2)]) == 1
    agree(kernel, {frontend(1): entry(1, 1, 2)}, services)


class Killed(BaseException):
    """The agent ends here."""


@pytest.mark.parametrize(
    "step",
    ["backends.write", "_write_frontends", "_open", "_write", "_close", "_release", "backends.settle"],
)
def test_killed_between_two_steps_a_successor_mends_it(
    maps: dict[str, Map], step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until then every frontend has live backends: the former or the new ones."""
    kernel = Kernel(maps)
    former = {n: entry(n, n, n + 1, source_ranges=("192.0.2.0/24",)) for n in range(1, 6)}
    later = {n: entry(n, n + 1, n + 2, source_ranges=("192.0.3.0/24",)) for n in range(1, 8)}
    first = target(maps)
    first.update(list(former.values()))

    def killed(*_: object) -> None:
        raise Killed

    part, _, method = step.rpartition(".")
    monkeypatch.setattr(first.backends if part else first, method, killed)
    with pytest.raises(Killed):
        first.update(list(later.values()))
    for number, row in former.items():
        found = kernel.candidates(row.frontend)
        assert found is not None and set(found) in (expected(row, 0), expected(later[number], 0))
    services = target(maps)
    rows = {row.frontend: row for row in later.values()}
    assert services.update(list(rows.values())) == {}
    services.prune(rows.values())
    agree(kernel, rows, services)


@pytest.mark.parametrize("seed", range(4))
def test_whatever_comes_and_goes_the_kernel_has_the_rows(seed: int) -> None:
    """Random batches, sweeps and restarts; maps so small that numbers and stretches are used again."""
    rng = random.Random(seed)
    sizes = {"services": 64, "frontends": 200, "backends": 64, "slots": 16384, "source_ranges": 256}
    with service_maps(sizes) as maps:
        clock, kernel = Clock(), Kernel(maps)
        services = target(maps, clock)
        rows: dict[Frontend, ServiceEntry] = {}
        for _ in range(40):
            clock.now += rng.choice((0.0, 0.01, 5.0))
            gone = [key for key in rows if rng.random() < 0.2]
            services.delete(gone)
            rows = {key: row for key, row in rows.items() if key not in gone}
            fresh = {
                row.frontend: row for row in (random_entry(rng, rng.randrange(50), 30) for _ in range(8))
            }
            assert services.update(list(fresh.values())) == {}
            rows |= fresh
            if rng.random() < 0.2:
                services.forget(kernel.frontends["port"] < 0, clock.now)
            if rng.random() < 0.15:
                services = target(maps, clock)
                services.update([row for row in rows.values() if rng.random() < 0.5])
                services.update(list(rows.values()))
                services.prune(rows.values())
            agree(kernel, rows, services)
        services.delete(list(rows))
        clock.now += 1
        services.backends._stretches.reclaim(clock.now)
        assert services.backends._stretches.free == sizes["slots"] and len(services.backends._numbers) == 0


def test_packets_are_looked_up_while_there_is_something_to_find(dataplane: Dataplane) -> None:
    """The node's flags follow the services and the node's addresses, and outlast other settings."""
    desired, value = Desired(), dataplane.layout.value
    state = kernel_state(dataplane, desired)
    row = dataplane.maps["node"].memory()

    def flags() -> tuple[bool, bool]:
        found = int(row["flags"][0])
        return bool(found & value("NODE_SERVICES")), bool(found & value("NODE_HOST_BACKENDS"))

    state.set_node(NodeSettings(), ["192.0.2.1"])
    state.apply(1.0)
    assert flags() == (False, False)
    desired.service_entries.put(entry(1, 1, 2))
    state.apply(2.0)
    assert flags() == (True, False)
    state.set_node(NodeSettings(mtu=1400), ["192.0.2.1", "10.0.0.2"])
    assert flags() == (True, True)
    desired.service_entries.put(entry(1, 1))
    state.apply(3.0)
    assert flags() == (True, False)
    desired.service_entries.delete(frontend(1))
    state.apply(4.0)
    assert flags() == (False, False) and state.errors() == []


def test_services_that_take_long_leave_others_their_turn(dataplane: Dataplane) -> None:
    desired = Desired()
    state = KernelState(dataplane, desired, NoRoutes(), ServiceOptions(step=0.0))
    for number in range(600):
        desired.service_entries.put(entry(number, number))
    turns = 0
    while state.pending:
        assert state.next_retry() == 0.0 if turns else True
        state.apply(float(turns))
        turns += 1
    assert turns == 3 and state.next_retry() is None and state.errors() == []
    assert len(state.dump("services")) == 600


def test_a_redirect_follows_the_pods_it_leaves_alone(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    state.local_pods.netns_cookie = lambda number: 1000 + number
    desired.service_entries.put(entry(1, 1, skip=("10.0.0.7",)))
    state.apply(1.0)
    assert state.dump("skip_redirect") == []
    desired.endpoint_entries.put(endpoint(7, "10.0.0.7"))
    state.apply(2.0)
    keys = [row["key"] for row in state.dump("skip_redirect")]
    assert {(key["endpoint"], key["netns"]) for key in keys} == {(7, 0), (0, 1007)}
    desired.endpoint_entries.delete(endpoint(7).id)
    state.apply(3.0)
    assert state.dump("skip_redirect") == []


def test_what_no_row_claims_goes_when_the_tables_are_complete(dataplane: Dataplane) -> None:
    desired = Desired()
    state = kernel_state(dataplane, desired)
    desired.service_entries.put(entry(1, 1))
    desired.service_entries.put(entry(2, 2))
    state.apply(1.0)
    state.pool.close()
    desired = Desired()
    successor = kernel_state(dataplane, desired)
    desired.service_entries.put(entry(2, 2))
    successor.apply(2.0)
    assert len(successor.dump("services")) == 2
    for table in desired.tables():
        table.synced = True
    successor.prune()
    (left,) = successor.service_maps.rows()
    assert left["frontend"] == "10.96.0.2:80/TCP" and left["internal"] == ["10.0.0.2:8080/TCP"]


CLIENT = """
import socket, sys
wanted = int(sys.argv[1])
failures = 0
for number in range(wanted):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        try:
            client.connect((f"10.96.0.{1 + number % 2}", 80))
        except OSError:
            failures += 1
    if not number:
        print("began", flush=True)
print(failures, flush=True)
"""


@contextmanager
def clients(dataplane: Dataplane, group: Path, sockets_each: int) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes whose sockets ask for services 1 and 2, as fast as they can."""

    def join() -> None:
        cgroups.join(group, os.getpid())

    command = [sys.executable, "-c", CLIENT, str(sockets_each)]
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, preexec_fn=join) for _ in range(2)
    ]
    try:
        for client in started:
            assert client.stdout is not None and client.stdout.readline() == "began\n"
        yield started
    finally:
        for client in started:
            client.kill()
            client.wait()
            assert client.stdout is not None
            client.stdout.close()


def datagram_service(number: int, *backends: int) -> ServiceEntry:
    """At an address of the cluster, with backends that are addresses of the loopback device."""
    made = tuple(Backend(f"127.0.0.{at}", 9000, Protocol.UDP) for at in sorted(backends))
    return entry(number, frontend=frontend(number, 80, Protocol.UDP), internal=made, external=made)


def test_no_socket_meets_a_service_half_changed(dataplane: Dataplane) -> None:
    """Backends and stretches are few, so that both are used again at once; a service without a backend, or a
    backend that is gone, would refuse the socket."""
    group = cgroups.create(cgroups.find_mount() / f"cilia-test-services-{os.getpid()}")
    desired, rng = Desired(), random.Random(1)
    state = kernel_state(dataplane, desired)
    sockets.attach(dataplane, group)
    try:
        for number in (1, 2):
            desired.service_entries.put(datagram_service(number))
        state.apply(0.0)
        with clients(dataplane, group, 10) as running:
            assert [client.communicate()[0] for client in running] == ["10\n", "10\n"]
        for number in (1, 2):
            desired.service_entries.put(datagram_service(number, 2))
        state.apply(1.0)
        changes = 0
        with clients(dataplane, group, 20_000) as running:
            while any(client.poll() is None for client in running):
                for number in (1, 2):
                    some = rng.sample(range(2, 40), rng.randrange(1, 6))
                    desired.service_entries.put(datagram_service(number, *some))
                changes += 1
                state.apply(1.0 + changes)
            assert [client.communicate()[0] for client in running] == ["0\n", "0\n"]
        assert changes > 10 and state.errors() == []
    finally:
        sockets.detach(dataplane)
        cgroups.remove(group)
